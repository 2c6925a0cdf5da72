"""A plan, for a person in ten seconds and for a machine in full."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from orchestrator.apply import Difference, RunPlan, VolumePlan
from orchestrator.backend import Offer
from orchestrator.planner.plan import Choice, Placed
from orchestrator.render.table import columns, plural, to_json
from orchestrator.spec.parts import Change

_SHOWN_REASONS = 4


def plan_text(plans: Sequence[RunPlan | VolumePlan]) -> str:
    """Return the plans one below the other, and a line that counts what would be done."""
    blocks = ["\n".join(_block(plan)) for plan in plans]
    return "\n".join([*blocks, _count(plans)])


def _block(plan: RunPlan | VolumePlan) -> Iterator[str]:
    yield f"{plan.name}  {plan.spec.type}  {_verb(plan)}"
    for change in plan.changes:
        yield "  " + change_text(change)
    if isinstance(plan, VolumePlan):
        if plan.action != "unchanged":
            yield f"  backend  {plan.backend}"
        return
    if plan.demand:
        yield f"  needs    {plan.demand.summary()}"
    if plan.placed:
        yield from _offers(plan.placed)
    for note in plan.notes:
        yield f"  note     {note}"


def _verb(plan: RunPlan | VolumePlan) -> str:
    if plan.action == "unchanged" and isinstance(plan, RunPlan) and plan.run and plan.run.state.is_final:
        return f"unchanged, {plan.run.state.value} before (--rerun starts it again)"
    return plan.action


def change_text(change: Change) -> str:
    """Return one changed field: its path, the old and the new value, and what the change needs.

    >>> change_text(Change("replicas", 1, 2, "in-place"))
    '~ replicas: 1 -> 2  (in place)'
    """
    how = "in place" if change.mark == "in-place" else "replaces the container"
    old, new = ("unset" if side is None else side for side in (change.old, change.new))
    return f"~ {change.path}: {old} -> {new}  ({how})"


def _offers(placed: Placed) -> Iterator[str]:
    lines = columns([_offer_cells(choice) for choice in placed.choices])
    for at, line in enumerate(lines):
        yield f"  {'offers' if at == 0 else '':<7}  {line}"
    if (more := placed.fitting - len(placed.choices)) > 0:
        yield f"           and {plural(more, 'more offer')}"
    if placed.refused:
        total = sum(r.offers for r in placed.refused)
        reasons = [f"{r.offers:,} {r.reason}" for r in placed.refused[:_SHOWN_REASONS]]
        rest = len(placed.refused) - _SHOWN_REASONS
        tail = f" · {plural(rest, 'more reason')}" if rest > 0 else ""
        yield f"  refused  {plural(total, 'offer')}: {' · '.join(reasons)}{tail}"


def _offer_cells(choice: Choice) -> list[str]:
    offer = choice.offer
    where = offer.region or offer.zone or "-"
    many = f" × {choice.nodes} nodes" if choice.nodes > 1 else ""
    return [
        offer.backend, where, offer.instance_type, holds(offer) + many, price_text(choice.price_usd_hour),
        "spot" if offer.spot else "", "<- chosen" if choice.chosen else "",
    ]  # fmt: skip


def holds(offer: Offer) -> str:
    """Return the accelerators of an offer in words.

    >>> holds(Offer("aws", "p5.48xlarge", 192, 2**41, accelerator="H100-80GB", count=8))
    '8 × H100-80GB'
    """
    return f"{offer.count} × {offer.accelerator}" if offer.accelerator else f"{offer.cpu:g} cpu"


def price_text(usd_hour: float) -> str:
    """Return a price per hour.

    >>> price_text(0), price_text(1.861)
    ('$0/h', '$1.861/h')
    """
    return f"${usd_hour:.4g}/h"


def _count(plans: Sequence[RunPlan | VolumePlan]) -> str:
    """Return how many things would be done, by kind, in a fixed order."""
    order = ("create", "rerun", "update", "replace", "unchanged")
    counts = {action: sum(plan.action == action for plan in plans) for action in order}
    said = [f"{count} to {action}" for action, count in counts.items() if count and action != "unchanged"]
    if counts["unchanged"]:
        said.append(f"{counts['unchanged']} unchanged")
    return "plan: " + (", ".join(said) or "nothing to do")


def plan_json(plans: Sequence[RunPlan | VolumePlan]) -> str:
    """Return the plans as ``modelyard/plan/v1``."""
    return to_json("modelyard/plan/v1", {"runs": [_plan_object(plan) for plan in plans]})


def _plan_object(plan: RunPlan | VolumePlan) -> dict[str, object]:
    body: dict[str, object] = {
        "name": plan.name,
        "type": plan.spec.type,
        "action": plan.action,
        "changes": [change_object(change) for change in plan.changes],
    }
    if isinstance(plan, VolumePlan):
        return body | {"backend": plan.backend}
    body["spec_hash"] = plan.spec_hash
    if plan.template:
        launch = plan.template.launch
        body["engine"] = {"name": None, "image": launch.image, "command": list(launch.command)}
        body["surge"] = plan.template.surge
    if plan.placed:
        body["offers"] = [_choice_object(choice) for choice in plan.placed.choices]
        body["refused"] = [{"reason": r.reason, "offers": r.offers} for r in plan.placed.refused]
    body["notes"] = list(plan.notes)
    return body


def change_object(change: Change) -> dict[str, object]:
    """Return one changed field as JSON has it."""
    return {"path": change.path, "old": change.old, "new": change.new, "on_change": change.mark}


def _choice_object(choice: Choice) -> dict[str, object]:
    return offer_object(choice.offer) | {
        "nodes": choice.nodes,
        "price_usd_hour": choice.price_usd_hour,
        "chosen": choice.chosen,
    }


def offer_object(offer: Offer) -> dict[str, object]:
    """Return an offer as JSON has it."""
    return {
        "backend": offer.backend,
        "region": offer.region,
        "instance_type": offer.instance_type,
        "cpu": offer.cpu,
        "memory_bytes": offer.memory_bytes,
        "disk_bytes": offer.disk_bytes,
        "accelerator": offer.accelerator,
        "count": offer.count,
        "device_bytes": offer.vram_bytes,
        "spot": offer.spot,
        "price_usd_hour": offer.price_usd_hour,
        "available": offer.available,
    }


def diff_text(found: Sequence[Difference]) -> str:
    """Return the fields that differ, document by document."""
    lines: list[str] = []
    for difference in found:
        lines.append(f"{difference.name}  {difference.type}  {difference.action}")
        lines += ["  " + change_text(change) for change in difference.changes]
    return "\n".join(lines)


def diff_json(found: Sequence[Difference]) -> str:
    """Return the differences as ``modelyard/diff/v1``."""
    runs = [
        {"name": d.name, "type": d.type, "action": d.action, "changes": [change_object(c) for c in d.changes]}
        for d in found
    ]
    return to_json("modelyard/diff/v1", {"runs": runs})
