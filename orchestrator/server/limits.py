"""Hold a project to its limits: what its runs would have, against what it may."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set

from orchestrator.api import Plans
from orchestrator.apply import Deletion, FleetPlan, RunPlan, VolumePlan
from orchestrator.backend import Offer, Rent, Resources
from orchestrator.errors import Denied
from orchestrator.frozen import frozen
from orchestrator.reconcile import Job, JobState, Run, Template, Wanted
from orchestrator.reconcile.serving import price_of
from orchestrator.spec.models import Fleet, Service, Spec, spec_of
from orchestrator.store.values import Limits, Project
from orchestrator.units import format_usd


@frozen
class _Up:
    """A run that would be up: its launches, its most replicas, and what was planned for each."""

    template: Template
    most: int
    plan_usd_hour: float
    id: str = ""
    """The run on record, "" for a new one."""


def require_limits(
    project: Project,
    runs: Iterable[Run],
    plans: Plans,
    *,
    offers: Callable[[], Sequence[Offer]],
    jobs: Callable[[Collection[str]], Mapping[str, Sequence[Job]]],
) -> None:
    """Refuse plans that would take a project over a limit.

    What is counted is computed here from the launches themselves, at what machines cost now. A plan's
    own words, which whoever sent it may have written, count only for what is no longer offered.

    Args:
        project: The project and its limits.
        runs: The project's runs as they are on record.
        plans: What would be done.
        offers: What can be had now, asked only where there is a limit in dollars.
        jobs: Returns the launches of runs by run id, asked only where there is a limit in dollars.

    Raises:
        Denied: a limit would be passed; says which, and by how much.
    """
    limits = project.limits
    if limits == Limits():
        return
    after = _after(runs, plans)
    _require_backends(limits, after, plans)
    held = _held(after)
    paid = [up for up in after if not _goes_to(up.template, held)]
    gpus = sum(up.most * gpus_of(up.template) for up in paid)
    if limits.gpus is not None and gpus > limits.gpus:
        raise Denied(
            f"project {project.name!r} would hold {gpus} GPUs and may hold {limits.gpus}",
            fix="stop a run, ask for fewer, or have an admin raise the limit",
        )
    if limits.usd_hour is not None:
        prices = Prices(offers())
        known = jobs([up.id for up in after if up.id])
        costs = sum(_usd_hour(up, known.get(up.id, ()), prices, held=held) for up in after)
        if costs > limits.usd_hour:
            most = format_usd(limits.usd_hour)
            raise Denied(
                f"project {project.name!r} would cost ${format_usd(costs)}/h and may cost ${most}/h",
                fix="stop a run, ask for less, or have an admin raise the limit",
            )


def _after(runs: Iterable[Run], plans: Plans) -> list[_Up]:
    """Return every run that would be up."""
    found = {
        run.name: _Up(
            run.template, _most(spec_of(json.loads(run.spec)), run.template), price_of(run.plan), run.id
        )
        for run in runs
        if run.wanted is Wanted.RUN and not run.state.is_final
    }
    for plan in plans:
        if isinstance(plan, RunPlan | FleetPlan) and plan.template is not None:
            most, run_id = _most(plan.spec, plan.template), plan.run.id if plan.run else ""
            found[plan.name] = _Up(plan.template, most, price_of(plan.serving), run_id)
        elif isinstance(plan, Deletion) and (plan.run is not None or plan.type == "fleet"):
            found.pop(plan.name, None)
    return list(found.values())


def _held(after: Sequence[_Up]) -> set[str]:
    """Return the fleets among them: all that they may rent counts, so what goes there costs nothing more."""
    return {up.template.launch.run for up in after if up.template.holding is not None}


def _goes_to(template: Template, fleets: Set[str]) -> bool:
    """Return whether a replica goes to one of these fleets first."""
    return not fleets.isdisjoint(template.backends[:1])


def _most(spec: Spec, template: Template) -> int:
    """Return the most replicas that a run may come to have, or machines that a fleet may."""
    if isinstance(spec, Fleet):
        return (spec.nodes.max or 0) if spec.nodes else 0
    most = spec.replicas.max if isinstance(spec, Service) else None
    return max(template.replicas, most or 0)


def _require_backends(limits: Limits, after: Sequence[_Up], plans: Plans) -> None:
    if limits.backends is None:
        return
    used = {name for up in after for name in up.template.backends} - _held(after)
    used |= {plan.backend for plan in plans if isinstance(plan, VolumePlan)}
    if over := sorted(used - set(limits.backends)):
        allowed = ", ".join(limits.backends) or "none"
        raise Denied(f"backend {over[0]!r} is not one this project may use", fix=f"backends: [{allowed}]")


def gpus_of(template: Template) -> int:
    """Return the most GPUs that one replica may have, or that a machine of a fleet may."""
    rented = max((rent.accelerators for rent in template.rents if rent), default=0)
    if template.holding is not None:
        return rented
    return template.nodes * max(rented, template.launch.resources.accelerators)


_Kind = tuple[str, str, str | None, str, bool, str | None]


def _kind(backend: str, of: Offer | Rent) -> _Kind:
    """Return what tells a kind of machine that is rented from all others."""
    return backend, of.region, of.zone, of.instance_type, of.spot, of.reservation


class Prices:
    """What places and machines cost by the hour.

    Args:
        offers: What can be had now.
    """

    def __init__(self, offers: Sequence[Offer]) -> None:
        self._at: dict[str, list[Offer]] = defaultdict(list)
        self._of_kind: dict[_Kind, list[Offer]] = defaultdict(list)
        for offer in offers:
            self._at[offer.backend].append(offer)
            self._of_kind[_kind(offer.backend, offer)].append(offer)

    def usd_hour_of(self, template: Template, *, planned: float = 0.0, held: Set[str] = frozenset()) -> float:
        """Return the most that one replica may cost, or of a fleet one machine, wherever it is tried.

        ``planned`` stands in for places that offer nothing now. What goes to a fleet of ``held`` first
        costs nothing: its machines are counted already.
        """
        if _goes_to(template, held):
            return 0.0
        wanted, each = template.launch.resources, planned / template.nodes
        nodes = 1 if template.holding is not None else template.nodes
        tries = [
            (place, rent)
            for place, rent in template.places
            if place not in held and (rent or not template.holding)
        ]
        return nodes * max((self.node(*at, wanted, planned=each) for at in tries), default=0.0)

    def node(self, place: str, rent: Rent | None, wanted: Resources, *, planned: float) -> float:
        """Return the most that one launch costs at a place, on a machine of this kind where it rents one."""
        if rent is not None:
            return self._machine(place, rent)
        prices = [
            offer.costs_usd_hour(count=wanted.accelerators)
            for offer in self._at.get(place, ())
            if (not wanted.accelerators or offer.accelerator == wanted.accelerator)
            and (offer.divisible or _is_enough(offer, wanted))
        ]
        return max(prices, default=planned)

    def _machine(self, backend: str, rent: Rent) -> float:
        """Return what a kind of machine costs now, and what was planned for it where it is not offered."""
        found = self._of_kind.get(_kind(backend, rent), ())
        prices = (offer.with_disk(rent.disk_bytes).price_usd_hour for offer in found)
        return min(prices, default=rent.price_usd_hour)


def _usd_hour(up: _Up, jobs: Sequence[Job], prices: Prices, *, held: Set[str]) -> float:
    """Return what a run costs: its replicas that have a place there, the others at their dearest try."""
    template, wanted = up.template, up.template.launch.resources
    if template.holding is not None:
        return up.most * prices.usd_hour_of(template)
    placed = dict(_placed(template, jobs))
    paid = [
        prices.node(job.backend, job.rent, wanted, planned=up.plan_usd_hour / template.nodes)
        for nodes in placed.values()
        for job in nodes
        if job.backend not in held
    ]
    others = max(0, up.most - len(placed))
    return sum(paid) + others * prices.usd_hour_of(template, planned=up.plan_usd_hour, held=held)


def _placed(template: Template, jobs: Sequence[Job]) -> Iterator[tuple[int, list[Job]]]:
    """Yield the replicas of a template that have found their place, each with its launches."""
    live = [job for job in jobs if not job.state.is_final and job.spec_hash == template.launch.spec_hash]
    for replica in sorted({job.replica for job in live}):
        nodes = [job for job in live if job.replica == replica]
        if all(job.state is not JobState.PROVISIONING for job in nodes):
            yield replica, nodes


def _is_enough(offer: Offer, wanted: Resources) -> bool:
    """Return whether a machine that is had whole is enough; one's own tells only what of it is free now."""
    return (
        offer.count >= wanted.accelerators
        and offer.cpu >= (wanted.cpu or 0)
        and offer.memory_bytes >= (wanted.memory_bytes or 0)
    )
