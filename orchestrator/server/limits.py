"""Hold a project to its limits: what its runs would have, against what it may."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence

from orchestrator.api import Plans
from orchestrator.apply import Deletion, FleetPlan, RunPlan, VolumePlan
from orchestrator.backend import Offer, Rent, Resources
from orchestrator.errors import Denied
from orchestrator.reconcile import Run, Template, Wanted
from orchestrator.spec.models import Fleet, Service, Spec, spec_of
from orchestrator.store.values import Limits, Project


def require_limits(
    project: Project, runs: Iterable[Run], plans: Plans, offers: Callable[[], Sequence[Offer]]
) -> None:
    """Refuse plans that would take a project over a limit.

    What is counted is computed here from the launches themselves, never taken from a plan's own
    words: whoever sent it may have written them.

    Args:
        project: The project and its limits.
        runs: The project's runs as they are on record.
        plans: What would be done.
        offers: What can be had now, asked only where there is a limit in dollars.

    Raises:
        Denied: a limit would be passed; says which, and by how much.
    """
    limits = project.limits
    if limits == Limits():
        return
    after = _after(runs, plans)
    _require_backends(limits, after, plans)
    after = _paid(after)
    gpus = sum(most * gpus_of(template) for template, most in after)
    if limits.gpus is not None and gpus > limits.gpus:
        raise Denied(
            f"project {project.name!r} would hold {gpus} GPUs and may hold {limits.gpus}",
            fix="stop a run, ask for fewer, or have an admin raise the limit",
        )
    if limits.usd_hour is not None:
        found = offers()
        costs = sum(most * usd_hour_of(template, found) for template, most in after)
        if costs > limits.usd_hour:
            raise Denied(
                f"project {project.name!r} would cost ${costs:g}/h and may cost ${limits.usd_hour:g}/h",
                fix="stop a run, ask for less, or have an admin raise the limit",
            )


def _after(runs: Iterable[Run], plans: Plans) -> list[tuple[Template, int]]:
    """Return the launches of every run that would be up, each with its most replicas."""
    found: dict[str, tuple[Template, int]] = {
        run.name: (run.template, _most(spec_of(json.loads(run.spec)), run.template))
        for run in runs
        if run.wanted is Wanted.RUN and not run.state.is_final
    }
    for plan in plans:
        if isinstance(plan, RunPlan | FleetPlan) and plan.template is not None:
            found[plan.name] = plan.template, _most(plan.spec, plan.template)
        elif isinstance(plan, Deletion) and (plan.run is not None or plan.type == "fleet"):
            found.pop(plan.name, None)
    return list(found.values())


def _paid(after: Sequence[tuple[Template, int]]) -> list[tuple[Template, int]]:
    """Return what is paid for: not what goes to a fleet among them, of which all that it may rent counts."""
    held = _held(after)
    return [each for each in after if not held.intersection(each[0].backends[:1])]


def _held(after: Sequence[tuple[Template, int]]) -> set[str]:
    return {template.launch.run for template, _ in after if template.holding is not None}


def _most(spec: Spec, template: Template) -> int:
    """Return the most replicas that a run may come to have, or machines that a fleet may."""
    if isinstance(spec, Fleet):
        return (spec.nodes.max or 0) if spec.nodes else 0
    most = spec.replicas.max if isinstance(spec, Service) else None
    return max(template.replicas, most or 0)


def _require_backends(limits: Limits, after: Sequence[tuple[Template, int]], plans: Plans) -> None:
    if limits.backends is None:
        return
    used = {name for template, _ in after for name in template.backends} - _held(after)
    used |= {plan.backend for plan in plans if isinstance(plan, VolumePlan)}
    if over := sorted(used - set(limits.backends)):
        allowed = ", ".join(limits.backends) or "none"
        raise Denied(f"backend {over[0]!r} is not one this project may use", fix=f"backends: [{allowed}]")


def gpus_of(template: Template) -> int:
    """Return the GPUs of one replica, or of the largest machine that a fleet may rent."""
    if template.holding is not None:
        return max((rent.accelerators for rent in template.rents if rent), default=0)
    return template.nodes * template.launch.resources.accelerators


def usd_hour_of(template: Template, offers: Sequence[Offer]) -> float:
    """Return the least that one replica costs by the hour where it may go first, 0 where nothing holds it.

    Of a fleet it is what the dearest machine costs that it may rent.
    """
    if template.holding is not None:
        rented = [(place, rent) for place, rent in template.places if rent]
        return max((_machine_usd_hour(place, rent, offers) for place, rent in rented), default=0.0)
    wanted = template.launch.resources
    prices = [
        offer.costs_usd_hour(count=wanted.accelerators, nodes=template.nodes)
        for offer in offers
        if (offer.backend,) == template.backends[:1]
        and (not wanted.accelerators or offer.accelerator == wanted.accelerator)
        and (offer.divisible or _is_enough(offer, wanted))
    ]
    return min(prices, default=0.0)


def _machine_usd_hour(backend: str, rent: Rent, offers: Sequence[Offer]) -> float:
    """Return what a kind of machine costs by the hour now, 0 where there is none."""
    kind = backend, rent.region, rent.zone, rent.instance_type, rent.spot, rent.reservation
    prices = [
        offer.price_usd_hour
        for offer in offers
        if (offer.backend, offer.region, offer.zone, offer.instance_type, offer.spot, offer.reservation)
        == kind
    ]
    return min(prices, default=0.0)


def _is_enough(offer: Offer, wanted: Resources) -> bool:
    """Return whether a machine that is had whole is enough; one's own tells only what of it is free now."""
    return (
        offer.count >= wanted.accelerators
        and offer.cpu >= (wanted.cpu or 0)
        and offer.memory_bytes >= (wanted.memory_bytes or 0)
    )
