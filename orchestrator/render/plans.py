"""A plan, for a person in ten seconds and for a machine in full."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from math import isfinite
from typing import TYPE_CHECKING

from orchestrator.apply import Deletion, Difference, FleetPlan, Plan, RunPlan, VolumePlan, host_names
from orchestrator.apply.prices import Cost, cost, cost_of, count_of
from orchestrator.backend import Launch, Offer
from orchestrator.planner.ask import Work
from orchestrator.planner.plan import Choice, Placed
from orchestrator.reconcile.values import Holding
from orchestrator.render.problems import problem_object
from orchestrator.render.table import columns, plural, to_json
from orchestrator.spec.models import Service
from orchestrator.spec.parts import Change
from orchestrator.units import GIB, format_duration, format_figure, format_usd

if TYPE_CHECKING:  # their modules are heavy, and most plans serve no model
    from orchestrator.planner.serve import Served
    from orchestrator.planner.sizing import Size
    from orchestrator.planner.tune import Trained

_SHOWN_REASONS = 4


def plan_text(plans: Sequence[Plan], *, explain: bool = False) -> str:
    """Return the plans one below the other, and a line that counts what would be done.

    With ``explain`` the arithmetic of every served model follows its plan, and what would admit
    the machines that were refused.
    """
    blocks = ["\n".join(_block(plan, explain=explain)) for plan in plans]
    return "\n".join([*blocks, f"plan: {count_text(plans)}{total_text(plans)}"])


def _block(plan: Plan, *, explain: bool) -> Iterator[str]:
    yield f"{plan.name}  {plan.type}  {_verb(plan)}"
    if isinstance(plan, Deletion):
        yield from _deletion(plan)
        return
    for change in plan.changes:
        yield "  " + change_text(change)
    if isinstance(plan, VolumePlan):
        if plan.action != "unchanged":
            yield f"  backend  {plan.backend}"
        return
    if isinstance(plan, FleetPlan):
        yield from _fleet(plan)
        return
    if plan.served:
        yield from _served(plan.served, plan.spec)
    elif plan.trained:
        chosen = [choice for choice in plan.placed.choices if choice.chosen] if plan.placed else []
        yield from _trained(plan.trained, chosen[0].price_usd_hour if chosen else None)
    elif plan.demand:
        yield f"  needs    {plan.demand.summary()}"
    if plan.placed:
        yield from _offers(plan.placed)
    if plan.template and (told := cost_text(cost_of(plan))):
        least, most = count_of(plan.spec, plan.template)
        many = plural(most, "replica") if least == most else f"{least} to {most} replicas"
        yield from [f"  cost     {told} for {many}"] if (least, most) != (1, 1) else []
    for phrase in plan.drift:
        yield f"  drift    {phrase}"
    for note in plan.notes:
        yield f"  note     {note}"
    if explain:
        from orchestrator.render.explained import explained_text  # brings sizing and engines in

        yield from explained_text(plan)


def _deletion(plan: Deletion) -> Iterator[str]:
    yield f"  because  {plan.reason}"
    if plan.type == "volume":
        yield "  note     what it holds is lost: apply needs --allow-destroy"


def _served(served: Served, spec: Work) -> Iterator[str]:
    """Yield what would serve the model, in four lines: model, engine, memory, speed."""
    facts, job = served.facts, served.job
    count = f"{served.parameters / 1e9:.3g} B · " if served.parameters else ""
    stated = isinstance(spec, Service) and spec.model and spec.model.precision != "auto"
    how = "as asked" if stated else served.lowered or "as published"
    context = f"{job.context:,} tokens × {job.concurrency} at once"
    yield f"  model    {facts.id} · {count}{job.precision} ({how}) · {context}"
    many = f" on {served.layout.nodes} nodes" if served.layout.nodes > 1 else ""
    yield f"  engine   {served.engine} {served.version} · {served.layout}{many}"
    yield f"  memory   {memory_text(served.size)}"
    if served.speed:
        s = served.speed
        first = f"{format_figure(s.ttft_s, 2)} s"
        what, when = "input", f"an answer in {first}"
        if not facts.pools:
            what, when = "output", f"first token {first}, then {s.tpot_s * 1000:.0f} ms each"
        yield (
            f"  speed    about {s.output_tokens_s:,.0f} {what} tokens/s ({s.low:,.0f} to {s.high:,.0f}) · "
            f"{when} · bound by {s.bound_by}"
        )
        yield from (f"  caution  {caution}" for caution in s.cautions)


def _trained(trained: Trained, price_usd_hour: float | None) -> Iterator[str]:
    """Yield what would tune the model, line by line: model, engine and batch, memory, speed, course."""
    where, job = trained.candidate, trained.candidate.job
    kind = "every weight" if trained.adapter == "none" else trained.adapter
    count = f"{trained.parameters / 1e9:.3g} B"
    length = f"{job.sequence_length:,} tokens a sequence"
    yield f"  model    {trained.facts.id} · {count} · {trained.method}, {kind} · {length}"
    machines = f"{plural(where.nodes, 'node')} × {plural(where.count, 'device')}"
    cut = f"{job.micro_batch} micro batch × {where.accumulation} accumulation × {machines}"
    shard = "" if job.sharding == "none" else f" · {job.sharding}"
    yield f"  engine   {trained.engine} {trained.version}{shard} · batch {trained.batch_size} = {cut}"
    device = trained.size.device
    parts = [
        ("weights", device.weights_bytes), ("gradients", device.gradients_bytes),
        ("optimizer state", device.optimizer_bytes), ("adapter", device.adapter_bytes),
        ("activations", device.activations_bytes), ("logits", device.logits_bytes),
        ("rollout", device.kv_cache_bytes), ("other", device.non_torch_bytes),
    ]  # fmt: skip
    told = " · ".join(f"{name} {value / GIB:.1f}" for name, value in parts if value)
    whole = f"{device.peak_bytes / GIB:.1f} of {device.visible_bytes / GIB:.1f} GiB a device"
    yield f"  memory   {whole} (margin {trained.size.margin:.0%}): {told}"
    if trained.speed:
        s = trained.speed
        yield (
            f"  speed    about {s.tokens_s:,.0f} tokens/s ({s.low:,.0f} to {s.high:,.0f}), "
            f"{s.mfu:.0%} of the peak"
        )
        yield from (f"  caution  {caution}" for caution in s.cautions)
    yield f"  course   {_course(trained, price_usd_hour)}"
    if trained.smaller:
        near = trained.smaller
        needs = f"would do with {near.change}" if near.change else "would not do with any change tried"
        yield (
            f"  smaller  {near.count} × {near.accelerator} at {price_text(near.price_usd_hour)} lacks "
            f"{near.short_bytes / GIB:.1f} GiB a device, {needs}"
        )


def _course(trained: Trained, price_usd_hour: float | None) -> str:
    """Return the steps of a run, what they take at most, and how often it is saved."""
    course = trained.course
    told = ["steps unknown: the data set is not here to be counted"]
    if course.steps is not None:
        of = "as asked" if course.is_asked else f"{trained.rows:,} rows × {trained.epochs:g} epochs"
        told = [f"{plural(course.steps, 'step')} ({of})"]
    if course.hours is not None:
        told.append(f"at most {format_duration(max(60, course.hours * 3600))}")
        told += [f"${course.hours * price_usd_hour:,.2f}"] if price_usd_hour else []
    elif course.step_s is not None:
        told.append(f"at most {format_figure(course.step_s, 2)} s each")
    told.append(f"a checkpoint every {plural(course.save_steps, 'step')}")
    return " · ".join(told)


def memory_text(size: Size) -> str:
    """Return how full the fullest device is, by part, largest parts named.

    The KV cache is what the engine reserves, not only what the job needs.
    """
    device = size.device
    parts = [
        ("weights", device.weights_bytes), ("KV cache", device.kv_cache_bytes),
        ("activations", device.activations_bytes), ("adapters", device.adapter_bytes),
        ("other", device.non_torch_bytes + device.graphs_bytes),
    ]  # fmt: skip
    told = [f"{name} {value / GIB:.1f}{_tokens(name, size)}" for name, value in parts if value]
    whole = f"{device.peak_bytes / GIB:.1f} of {device.visible_bytes / GIB:.1f} GiB a device"
    return f"{whole}: {' · '.join(told)}"


def _fleet(plan: FleetPlan) -> Iterator[str]:
    if plan.action == "create" and plan.spec.ssh_config:
        yield f"  hosts    {', '.join(host_names(plan.spec))}"
    if plan.placed and plan.template and plan.template.holding:
        yield f"  machines {_machines(plan.template.holding, plan.placed)}"
        yield from _offers(plan.placed)
    for host, runs in plan.leaving:
        yield f"  leaves   {host}" + (f", with runs on it: {', '.join(runs)}" if runs else "")
    for note in plan.notes:
        yield f"  note     {note}"


def _machines(holding: Holding, placed: Placed) -> str:
    """Return how many machines a fleet holds, what the least of them cost, and how long others stay."""
    least, most = holding.least, holding.most
    price = next((choice.price_usd_hour for choice in placed.choices if choice.chosen), 0.0)
    told = [f"{least} at {price_text(least * price)}" if least else "none until a run needs one"]
    if most > least:
        told.append(f"up to {most} at {price_text(most * price)} while runs need them")
        idle = (
            "kept" if holding.idle_s is None else f"given back after {format_duration(holding.idle_s)} idle"
        )
        told.append(idle)
    if holding.blocks > 1:
        told.append(f"each in {holding.blocks} blocks")
    return " · ".join(told)


def _tokens(part: str, size: Size) -> str:
    return (
        f" ({size.kv_cache_tokens // 1000:,}k tokens)" if part == "KV cache" and size.kv_cache_tokens else ""
    )


def _verb(plan: Plan) -> str:
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
    where = offer.zone or offer.region or "-"
    many = f" × {choice.nodes} nodes" if choice.nodes > 1 else ""
    return [
        offer.backend, where, offer.instance_type, holds(offer, choice.count) + many,
        price_text(choice.price_usd_hour), _token_price(choice),
        f"in {choice.lowered}" if choice.lowered else "", "spot" if offer.spot else "",
        "<- chosen" if choice.chosen else "",
    ]  # fmt: skip


def _token_price(choice: Choice) -> str:
    cost = choice.usd_per_million_tokens
    return f"${format_usd(cost, 2)}/M tokens" if cost else ""


def holds(offer: Offer, count: int | None = None) -> str:
    """Return the accelerators of an offer in words, or ``count`` of them.

    >>> holds(Offer("aws", "p5.48xlarge", 192, 2**41, accelerator="H100-80GB", count=8))
    '8 × H100-80GB'
    """
    return f"{count or offer.count} × {offer.accelerator}" if offer.accelerator else f"{offer.cpu:g} cpu"


def price_text(usd_hour: float) -> str:
    """Return a price per hour.

    >>> price_text(0), price_text(1.861)
    ('$0/h', '$1.861/h')
    """
    return f"${format_usd(usd_hour)}/h"


def cost_text(cost: Cost) -> str:
    """Return what is paid by the hour now, where that is something else, and what would be; "" for nothing.

    >>> cost_text(Cost(1.8, 3.6, 7.2)), cost_text(Cost(1.8, 0, 0))
    ('$1.8/h now, $3.6/h to $7.2/h after', '$1.8/h now, $0/h after')
    >>> cost_text(Cost(0, 0.25, 0.75)), cost_text(Cost(2, 2, 6)), cost_text(Cost())
    ('$0.25/h to $0.75/h', '$2/h to $6/h', '')
    """
    least, most = price_text(cost.least), price_text(cost.most)
    after = least if least == most else f"{least} to {most}"
    if cost.now in (0, cost.least):
        return after if cost.most else ""
    return f"{price_text(cost.now)} now, {after} after"


def total_text(plans: Sequence[Plan]) -> str:
    """Return what all runs and fleets of the plans cost by the hour, "" for nothing."""
    told = cost_text(cost(plans))
    return f", at {told}" if told else ""


def count_text(plans: Sequence[Plan]) -> str:
    """Return how many things would be done, by kind, in a fixed order."""
    order = ("create", "rerun", "update", "replace", "delete", "unchanged")
    counts = {action: sum(plan.action == action for plan in plans) for action in order}
    said = [f"{count} to {action}" for action, count in counts.items() if count and action != "unchanged"]
    if counts["unchanged"]:
        said.append(f"{counts['unchanged']} unchanged")
    return ", ".join(said) or "nothing to do"


def plan_json(plans: Sequence[Plan], *, explain: bool = False) -> str:
    """Return the plans as ``modelyard/plan/v1``; ``explain`` adds ``explained`` and ``why_not``."""
    runs = [_plan_object(plan, explain=explain) for plan in plans]
    return to_json("modelyard/plan/v1", {"usd_hour": asdict(cost(plans)), "runs": runs})


def _plan_object(plan: Plan, *, explain: bool) -> dict[str, object]:
    if isinstance(plan, Deletion):
        head: dict[str, object] = {"name": plan.name, "type": plan.type, "action": plan.action}
        return {**head, "changes": [], "reason": plan.reason}
    body: dict[str, object] = {
        "name": plan.name,
        "type": plan.type,
        "action": plan.action,
        "changes": [change_object(change) for change in plan.changes],
    }
    if isinstance(plan, VolumePlan):
        return body | {"backend": plan.backend}
    if isinstance(plan, FleetPlan):
        leaving = [{"host": host, "runs": list(runs)} for host, runs in plan.leaving]
        body |= {"hosts": list(host_names(plan.spec)), "leaving": leaving, "notes": list(plan.notes)}
        if plan.template and plan.template.holding:
            body["nodes"] = {"least": plan.template.holding.least, "most": plan.template.holding.most}
        return body | _placed_object(plan.placed)
    body["spec_hash"] = plan.spec_hash
    if plan.template:
        launch = plan.template.launch
        chosen = plan.served or plan.trained
        engine = chosen.engine if chosen else None
        body["engine"] = {"name": engine, "image": launch.image, "command": _whole_command(launch)}
        body["surge"] = plan.template.surge
    if plan.served:
        body |= _served_object(plan.served)
    if plan.trained:
        body |= _trained_object(plan.trained)
    body |= _placed_object(plan.placed)
    body["usd_hour"] = asdict(cost_of(plan))
    body["notes"] = list(plan.notes)
    if plan.drift:
        body["drift"] = list(plan.drift)
    if plan.problems:
        body["problems"] = [problem_object(problem) for problem in plan.problems]
    if explain:
        from orchestrator.render.explained import explained_object

        body |= explained_object(plan)
    return body


def _placed_object(placed: Placed | None) -> dict[str, object]:
    if placed is None:
        return {}
    return {
        "offers": [_choice_object(choice) for choice in placed.choices],
        "refused": [{"reason": r.reason, "offers": r.offers} for r in placed.refused],
    }


def _whole_command(launch: Launch) -> list[str]:
    return [*(launch.entrypoint or ()), *launch.command]


def _served_object(served: Served) -> dict[str, object]:
    device, layout, speed = served.size.device, served.layout, served.speed
    return {
        "model": {
            "id": served.facts.id,
            "revision": served.facts.revision,
            "parameters": served.parameters,
            "precision": served.job.precision,
            "lowered": served.lowered,
            "context_tokens": served.job.context,
            "concurrency": served.job.concurrency,
        },
        "memory": memory_object(served.size) | {
            "overhead_bytes": device.non_torch_bytes + device.graphs_bytes,
            "total_bytes": device.peak_bytes,
            "device_bytes": device.visible_bytes,
        },
        "parallelism": {
            "nodes": layout.nodes, "tensor": layout.tensor, "pipeline": layout.pipeline,
            "data": served.job.data, "expert": served.job.expert,
        },
        "speed": None if speed is None else {
            **tokens_object(speed.output_tokens_s, reads=served.facts.pools),
            "low": speed.low, "high": speed.high, "bound_by": speed.bound_by,
            "ttft_s": speed.ttft_s, "tpot_s": None if served.facts.pools else speed.tpot_s,
            "cautions": list(speed.cautions),
        },
    }  # fmt: skip


def _trained_object(trained: Trained) -> dict[str, object]:
    where, job, speed = trained.candidate, trained.candidate.job, trained.speed
    device = trained.size.device
    return {
        "model": {"id": trained.facts.id, "parameters": trained.parameters, "precision": job.precision},
        "training": {
            "method": trained.method, "adapter": trained.adapter, "sequence_length": job.sequence_length,
            "batch_size": trained.batch_size, "micro_batch": job.micro_batch,
            "accumulation": where.accumulation, "sharding": job.sharding,
        },
        "memory": {
            "weights_bytes": device.weights_bytes, "gradients_bytes": device.gradients_bytes,
            "optimizer_bytes": device.optimizer_bytes, "adapter_bytes": device.adapter_bytes,
            "activations_bytes": device.activations_bytes, "logits_bytes": device.logits_bytes,
            "overhead_bytes": device.non_torch_bytes, "total_bytes": device.peak_bytes,
            "device_bytes": device.visible_bytes, "margin": trained.size.margin,
        },
        "parallelism": {"nodes": where.nodes, "tensor": job.tensor, "pipeline": job.pipeline,
                        "data": job.devices, "expert": job.expert},
        "speed": None if speed is None else {
            "tokens_s": speed.tokens_s, "low": speed.low, "high": speed.high, "mfu": speed.mfu,
            "cautions": list(speed.cautions),
        },
        "course": {
            "steps": trained.course.steps, "save_steps": trained.course.save_steps,
            "step_s": trained.course.step_s, "hours": trained.course.hours, "rows": trained.rows,
        },
    }  # fmt: skip


def tokens_object(tokens_s: float | None, *, reads: bool) -> dict[str, object]:
    """Return a speed as JSON has it: of tokens that come out, else of those that are read."""
    return {"output_tokens_s": None, "input_tokens_s": tokens_s} if reads else {"output_tokens_s": tokens_s}


def memory_object(size: Size) -> dict[str, object]:
    """Return the memory of the fullest device by part, with the tokens its KV cache holds."""
    device = size.device
    return {
        "weights_bytes": device.weights_bytes,
        "kv_cache_bytes": device.kv_cache_bytes,
        "activations_bytes": device.activations_bytes,
        "adapter_bytes": device.adapter_bytes,
        "kv_cache_tokens": size.kv_cache_tokens,
        "max_concurrency": size.max_concurrency if isfinite(size.max_concurrency) else None,
        "margin": size.margin,
    }


def change_object(change: Change) -> dict[str, object]:
    """Return one changed field as JSON has it."""
    return {"path": change.path, "old": change.old, "new": change.new, "on_change": change.mark}


def _choice_object(choice: Choice) -> dict[str, object]:
    return offer_object(choice.offer) | {
        "count": choice.count or choice.offer.count,
        "nodes": choice.nodes,
        "price_usd_hour": choice.price_usd_hour,
        "usd_per_million_tokens": choice.usd_per_million_tokens,
        **tokens_object(choice.output_tokens_s, reads=choice.reads),
        **({"lowered": choice.lowered} if choice.lowered else {}),
        "chosen": choice.chosen,
    }


def offer_object(offer: Offer) -> dict[str, object]:
    """Return an offer as JSON has it."""
    return {
        "backend": offer.backend,
        "region": offer.region,
        **({"zone": offer.zone} if offer.zone else {}),
        "instance_type": offer.instance_type,
        "cpu": offer.cpu,
        "memory_bytes": offer.memory_bytes,
        "disk_bytes": offer.disk_bytes,
        "accelerator": offer.accelerator,
        "count": offer.count,
        "device_bytes": offer.vram_bytes,
        "spot": offer.spot,
        "price_usd_hour": offer.price_usd_hour,
        **({"own_usd_hour": offer.own_usd_hour} if offer.own_usd_hour else {}),
        "available": offer.available,
        **({"unfit": offer.unfit} if offer.unfit else {}),
    }


def diff_text(found: Sequence[Difference]) -> str:
    """Return the fields that differ, document by document."""
    lines: list[str] = []
    for difference in found:
        lines.append(f"{difference.name}  {difference.type}  {difference.action}")
        lines += ["  " + change_text(change) for change in difference.changes]
        lines += [f"  ~ {phrase}" for phrase in difference.places]
    return "\n".join(lines)


def diff_json(found: Sequence[Difference]) -> str:
    """Return the differences as ``modelyard/diff/v1``."""
    runs = [
        {
            "name": d.name,
            "type": d.type,
            "action": d.action,
            "changes": [change_object(c) for c in d.changes],
            "places": list(d.places),
        }
        for d in found
    ]
    return to_json("modelyard/diff/v1", {"runs": runs})
