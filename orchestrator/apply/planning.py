"""Compare documents with the record, and plan what has to change."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from orchestrator.apply.inputs import read_inputs
from orchestrator.backend import Can, Launch, Offer
from orchestrator.errors import NothingFits, UsageError
from orchestrator.planner.ask import Names, Work, demand_of
from orchestrator.planner.compose import Inputs, compose
from orchestrator.planner.demand import Demand
from orchestrator.planner.index import OfferIndex
from orchestrator.planner.plan import Action, Placed, place
from orchestrator.reconcile import Retry, Run, Template, Wanted
from orchestrator.spec.load import Document
from orchestrator.spec.models import DevEnvironment, Fleet, Service, Task, Volume, changes, spec_of
from orchestrator.spec.parts import Change


@dataclass(frozen=True, slots=True)
class World:
    """What a plan is made against.

    ``offers`` is called only when a document needs a place: a plan that changes nothing asks
    nobody. ``names`` spells accelerators as the catalog does.
    """

    runs: Mapping[str, Run]
    volumes: Mapping[str, str]
    """Canonical JSON of the volumes on record, by name."""
    places: Mapping[str, frozenset[Can]]
    offers: Callable[[], Sequence[Offer]]
    names: Names
    rerun: bool = False


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What would be done for one document that runs containers.

    ``template`` and ``placed`` are None where nothing is started. ``run`` is the record that
    the plan was made against, None for a new run.
    """

    document: Document
    spec: Work
    action: Action
    spec_hash: str
    changes: tuple[Change, ...] = ()
    demand: Demand | None = None
    placed: Placed | None = None
    template: Template | None = None
    run: Run | None = None
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The run's name."""
        return self.spec.name


@dataclass(frozen=True, slots=True)
class VolumePlan:
    """What would be done for one volume."""

    document: Document
    spec: Volume
    action: Action
    backend: str
    changes: tuple[Change, ...] = ()

    @property
    def name(self) -> str:
        """The volume's name."""
        return self.spec.name


@dataclass(frozen=True, slots=True)
class Difference:
    """How one document differs from the record, and what applying it would do."""

    name: str
    type: str
    action: Action
    changes: tuple[Change, ...] = ()

    @property
    def is_change(self) -> bool:
        """Whether applying the document would do anything."""
        return self.action != "unchanged"


@dataclass(slots=True)
class _Offers:
    """Offers, asked for once and indexed once."""

    world: World
    _index: OfferIndex | None = None

    def index(self) -> OfferIndex:
        if self._index is None:
            self._index = OfferIndex(self.world.offers(), preference=tuple(self.world.places))
        return self._index


def plan_documents(documents: Sequence[Document], world: World) -> tuple[RunPlan | VolumePlan, ...]:
    """Return what would be done for every document, in their order; same input, same plan.

    Raises:
        NothingFits: no offer holds one of them; it carries the reasons.
        SpecError: a file that a spec names cannot be read.
        UsageError: a document cannot take the place of what is on record.
    """
    offers = _Offers(world)
    plans: list[RunPlan | VolumePlan] = []
    for document in documents:
        spec = document.spec
        if isinstance(spec, Volume):
            plans.append(_plan_volume(document, spec, world))
        elif isinstance(spec, Fleet):
            raise NothingFits(
                f"no backend holds fleets, which fleet {spec.name!r} needs", where=document.position,
                fix="name the machines of a fleet as backends in the configuration",
            )  # fmt: skip
        else:
            plans.append(_plan_run(document, spec, world, offers))
    return tuple(plans)


def diff_documents(documents: Sequence[Document], world: World) -> tuple[Difference, ...]:
    """Return how every document differs from the record; asks no backend.

    Raises:
        SpecError: a file that a spec names cannot be read.
        UsageError: a document cannot take the place of what is on record.
    """
    found: list[Difference] = []
    for document in documents:
        spec = document.spec
        if isinstance(spec, Volume):
            volume = _plan_volume(document, spec, world)
            found.append(Difference(spec.name, spec.type, volume.action, volume.changes))
        elif isinstance(spec, Task | Service | DevEnvironment):
            run = world.runs.get(spec.name)
            spec_hash = fingerprint(spec, read_inputs(document, spec))
            action, changed = _compare(spec, spec_hash, run, rerun=world.rerun)
            found.append(Difference(spec.name, spec.type, action, changed))
    return tuple(found)


def _plan_run(document: Document, spec: Work, world: World, offers: _Offers) -> RunPlan:
    run = world.runs.get(spec.name)
    inputs = read_inputs(document, spec)
    spec_hash = fingerprint(spec, inputs)
    action, changed = _compare(spec, spec_hash, run, rerun=world.rerun)
    plan = RunPlan(document, spec, action, spec_hash, changed, run=run)
    if action == "unchanged":
        return plan
    if action == "update" and run:
        return replace(plan, template=_updated(run.template, spec))
    demand = demand_of(spec, places=world.places, names=world.names)
    placed, surge = _place(document, spec, demand, offers, run if action == "replace" else None)
    launch = compose(spec, spec_hash=spec_hash, inputs=inputs, offer=placed.choices[0].offer, demand=demand)
    surge = surge and isinstance(spec, Service) and all(port.host is None for port in launch.ports)
    template = _updated(Template(launch, placed.backends, nodes=demand.nodes, surge=surge), spec)
    return replace(plan, demand=demand, placed=placed, template=template, notes=_notes(action, template))


def fingerprint(spec: Work, inputs: Inputs) -> str:
    """Return the hash of all that needs new containers when it changes: the spec's, and its files'."""
    return (
        hashlib.sha256(f"{spec.hash()}\0{inputs.digest}".encode()).hexdigest()
        if inputs.digest
        else spec.hash()
    )


def _compare(
    spec: Work, spec_hash: str, run: Run | None, *, rerun: bool
) -> tuple[Action, tuple[Change, ...]]:
    """Return what has to be done to the run on record, and the fields that differ."""
    if run is None:
        return "create", ()
    if run.wanted is Wanted.DELETE:
        raise UsageError(f"run {run.name!r} is being deleted", fix=f"modelyard wait {run.name} --for deleted")
    if run.type != spec.type:
        raise UsageError(
            f"{run.name!r} is a {run.type} on record and a {spec.type} here",
            fix=f"choose another name, or modelyard delete {run.name}",
        )
    changed = changes(spec_of(json.loads(run.spec)), spec)
    over = run.state.is_final or run.wanted is Wanted.STOP
    if spec_hash != run.spec_hash:
        return ("rerun" if over else "replace"), changed
    kept_up = not isinstance(spec, Task)
    if over and (rerun or kept_up or run.wanted is Wanted.STOP):
        return "rerun", changed
    return ("update" if changed else "unchanged"), changed


def _place(
    document: Document, spec: Work, demand: Demand, offers: _Offers, replaced: Run | None
) -> tuple[Placed, bool]:
    """Return where the spec can go, and whether it fits beside the run it replaces."""
    what = f"{spec.type} {spec.name!r}"
    where = document.position
    if replaced is None:
        return place(demand, offers.index(), what=what, where=where), True
    try:
        return place(demand, offers.index(), what=what, where=where), True
    except NothingFits:
        freed = [_with_back(o, replaced.template) for o in offers.index().offers]
        index = OfferIndex(freed, preference=tuple(offers.world.places))
        return place(demand, index, what=what, where=where), False


def _with_back(offer: Offer, template: Template) -> Offer:
    """Return a machine's offer with what a run holds of it given back."""
    if not offer.divisible or offer.backend not in template.backends:
        return offer
    held = template.launch.resources
    many = template.replicas * template.nodes
    return replace(
        offer,
        cpu=offer.cpu + (held.cpu or 0) * many,
        memory_bytes=offer.memory_bytes + (held.memory_bytes or 0) * many,
        count=offer.count + held.accelerators * many,
    )


def _updated(template: Template, spec: Work) -> Template:
    """Return ``template`` with what a spec may change in place."""
    launch: Launch = replace(template.launch, stop_grace_s=_grace_s(spec))
    replicas = (spec.replicas.min or 0) if isinstance(spec, Service) else 1
    return replace(
        template, launch=launch, replicas=replicas, retry=_retry(spec), max_duration_s=spec.max_duration
    )


NO_LIMIT_S = 10 * 365 * 86_400.0


def _grace_s(spec: Work) -> float:
    return NO_LIMIT_S if spec.stop_duration is None else float(spec.stop_duration)


def _retry(spec: Work) -> Retry:
    """Return when an attempt is followed by another; what is kept up is, unless the spec says when."""
    if spec.retry:
        return Retry(frozenset(spec.retry.on_events), spec.retry.duration)
    if isinstance(spec, Service | DevEnvironment):
        return Retry(frozenset({"no-capacity", "interruption", "error"}), attempts=3)
    return Retry()


def _notes(action: Action, template: Template) -> tuple[str, ...]:
    if action != "replace":
        return ()
    if template.surge:
        return ("the new replica is ready before the old one is stopped",)
    return ("the old one is stopped first",)


def _plan_volume(document: Document, spec: Volume, world: World) -> VolumePlan:
    able = [name for name, can in world.places.items() if Can.VOLUMES in can]
    backend = spec.backend or (able[0] if able else "")
    if backend not in able:
        raise NothingFits(
            f"no backend keeps volume {spec.name!r}",
            where=document.position,
            fix="configure a backend with volumes, such as docker",
        )
    known = world.volumes.get(spec.name)
    if known is None:
        return VolumePlan(document, spec, "create", backend)
    changed = changes(spec_of(json.loads(known)), spec)
    action: Action = "unchanged"
    if any(change.mark == "replace" for change in changed):
        raise UsageError(
            f"volume {spec.name!r} cannot change its {changed[0].path}: what it holds would be lost",
            fix=f"choose another name, or modelyard volume delete {spec.name}",
        )
    if changed:
        action = "update"
    return VolumePlan(document, spec, action, backend, changed)
