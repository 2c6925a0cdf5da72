"""Compare documents with the record, and plan what has to change."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

from orchestrator.apply.adapters import (
    adapter_notes,
    held_adapters,
    held_by,
    known_ranks,
    shared,
    takes_adapters,
    with_ranks,
)
from orchestrator.apply.fleets import FleetPlan, fleet_template, plan_fleet
from orchestrator.apply.inputs import read_inputs
from orchestrator.apply.of_spec import OfSpec
from orchestrator.apply.sets import NO_SET, Deletion, FleetRecord, Scope, deletions, joined, joining
from orchestrator.apply.templates import all_scale, in_place, rescaled, scales_now, updated
from orchestrator.backend import SCRATCH_BYTES, Can, Launch, Mount, Offer, Rent
from orchestrator.errors import Denied, ModelError, NothingFits, Problem, Refusal, SpecError, UsageError
from orchestrator.frozen import frozen
from orchestrator.planner.ask import Names, Work, demand_of, fleet_demand, runs_bare
from orchestrator.planner.compose import Inputs, compose, fixed_port, opens_itself
from orchestrator.planner.demand import AcceleratorDemand, Demand, Span
from orchestrator.planner.index import OfferIndex
from orchestrator.planner.mirrors import NO_MIRRORS, Mirrors
from orchestrator.planner.plan import Action, Choice, Placed, Sort, place, tries_of
from orchestrator.reconcile import Run, RunState, Template, Wanted
from orchestrator.reconcile.serving import adapters_of
from orchestrator.spec.load import Document
from orchestrator.spec.models import Adapter as AdapterSpec
from orchestrator.spec.models import (
    DevEnvironment,
    Fleet,
    Model,
    Service,
    Task,
    Volume,
    changes,
    spec_of,
)
from orchestrator.spec.parts import IN_PLACE, REPLACE, Change
from orchestrator.spec.unheeded import unheeded

if TYPE_CHECKING:  # catalog, sizing and engines: a third of a plan's time, and only for a model
    from orchestrator.catalog import ModelFacts
    from orchestrator.engines import EngineLaunch
    from orchestrator.facts.datasets import DatasetFacts, Unknown
    from orchestrator.planner.serve import Served
    from orchestrator.planner.tune import Trained
    from orchestrator.store.values import Volume as KeptVolume

_Found = TypeVar("_Found")


@frozen
class World:
    """What a plan is made against.

    ``offers`` is called only when a document needs a place: a plan that changes nothing asks
    nobody. ``names`` spells accelerators as the catalog does.
    """

    runs: Mapping[str, Run]
    volumes: Mapping[str, KeptVolume]
    """The volumes on record, by name."""
    places: Mapping[str, frozenset[Can]]
    offers: Callable[[], Sequence[Offer]]
    names: Names
    facts: Callable[[Model], ModelFacts]
    """What a model is; asked only about models that are to be placed."""
    rerun: bool = False
    resume: bool = False
    """Let training that ended start again, from the last checkpoint in its output."""
    sort: Sort = "price"
    strict: bool = False
    """Refuse a spec that contradicts its model, rather than note it."""
    scope: Scope = NO_SET
    fleets: Mapping[str, FleetRecord] = field(default_factory=dict)
    """The fleets on record, by name."""
    expected: frozenset[str] = frozenset()
    """The places that are fleets among the documents, and that no configuration names."""
    unset: Callable[[Document, Work | Fleet], Sequence[Problem]] = lambda _document, _spec: ()
    """The values that a document names and that nobody has given."""
    datasets: Callable[[str, str, str | None], DatasetFacts | Unknown] | None = None
    """What a hub's data set holds, by id, split and configuration; None asks nobody."""
    mirrors: Mirrors = NO_MIRRORS
    """Where images and models are had from."""
    rank_of: Callable[[AdapterSpec], int | None] = lambda _adapter: None
    """The rank that an adapter's weights tell; None where they are not at hand."""


@frozen
class RunPlan(OfSpec):
    """What would be done for one document that runs containers.

    ``template`` and ``placed`` are None where nothing is started, ``served`` and ``trained``
    where no engine is. ``run`` is the record that
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
    served: Served | None = None
    trained: Trained | None = None
    run: Run | None = None
    notes: tuple[str, ...] = ()
    set_name: str = ""
    serving: str = "{}"
    """What the gateway has to know of the engine, as JSON."""
    held: str = ""
    """What its containers hold of its adapters, which is part of the hash."""
    problems: tuple[Problem, ...] = ()
    """What has to be put right before it can be applied: values that nobody has given."""
    drift: tuple[str, ...] = ()
    """What the cluster that keeps it has otherwise than it was told, where the spec changes nothing."""


@frozen
class VolumePlan(OfSpec):
    """What would be done for one volume."""

    document: Document
    spec: Volume
    action: Action
    backend: str
    changes: tuple[Change, ...] = ()
    set_name: str = ""


@frozen
class Difference:
    """How one document differs from the record, and what applying it would do.

    ``places`` is what the cluster that keeps its run has otherwise, whoever changed it there, and
    what it would refuse.
    """

    name: str
    type: str
    action: Action
    changes: tuple[Change, ...] = ()
    places: tuple[str, ...] = ()

    @property
    def is_change(self) -> bool:
        """Whether what runs is not what the document says."""
        return self.action != "unchanged" or bool(self.places)


Plan = RunPlan | VolumePlan | FleetPlan | Deletion
"""What would be done for one thing."""


@dataclass(slots=True)
class _Offers:
    """Offers, asked for once and indexed once."""

    world: World
    declared: Mapping[str, Volume] = field(default_factory=dict)
    """The volumes among the documents."""
    fleets: Sequence[Fleet] = ()
    """The fleets of rented machines among the documents."""
    services: Mapping[str, bool] = field(default_factory=dict)
    """The services among the documents that can take adapters, and whether each runs without a container."""
    served: dict[str, tuple[Placed, Served]] = field(default_factory=dict)
    """Answers by question: a folder of services asks few different ones."""
    _index: OfferIndex | None = None

    def index(self) -> OfferIndex:
        if self._index is None:
            found, preference = self.world.offers(), tuple(self.world.places)
            rented = [run for run in self.world.runs.values() if run.template.holding is not None]
            specs = {run.name: (spec_of(json.loads(run.spec)), run.ready) for run in rented}
            specs |= {spec.name: (spec, specs.get(spec.name, (spec, 0))[1]) for spec in self.fleets}
            index = OfferIndex(found, preference=preference)
            if specs:
                more = [o for s, up in specs.values() if isinstance(s, Fleet) for o in self._of(s, up, index)]
                index = OfferIndex([*found, *more], preference=preference)
            self._index = index
        return self._index

    def own_machines(self, placed: Placed) -> int | None:
        """Return how many machines launches may share at all places to try, None where there may be more.

        A place that rents has one for each, and a cluster publishes no port of its machines.
        """
        places, tries = self.world.places, {offer.backend for offer in placed.tries}
        more = {run.name for run in self.world.runs.values() if run.template.holding is not None}
        more |= {spec.name for spec in self.fleets}
        if tries & more or any({Can.GROUPS, Can.RENT} & places.get(name, frozenset()) for name in tries):
            return None
        found = [offer for offer in self.index().offers if offer.backend in tries]
        return len({(o.backend, o.instance_type) for o in found}) if all(o.divisible for o in found) else None

    def _of(self, spec: Fleet, up: int, index: OfferIndex) -> Iterator[Offer]:
        """Yield what a fleet may still rent: machines for launches that find none of its own free."""
        left = (spec.nodes.max or 0) - up if spec.nodes else 0
        if left <= 0 or spec.name not in self.world.places:
            return
        demand = fleet_demand(spec, places=self.world.places, names=self.world.names)
        for offer in tries_of(index.roomy(demand).match(demand).fitting, demand):
            yield replace(
                offer, backend=spec.name, fleet=spec.name, reservation=None, divisible=True, available=left,
                price_usd_hour=offer.price_usd_hour / spec.blocks, growth=None,
            )  # fmt: skip


def plan_documents(documents: Sequence[Document], world: World) -> tuple[Plan, ...]:
    """Return what would be done, in the order it would be done; same input, same plan.

    Fleets and volumes come first, since runs use them, then runs, each in the order of the documents,
    then what the world's set no longer has.

    Raises:
        NothingFits: no offer holds one or more of them; it carries the reasons of each.
        SpecError: a file that a spec names cannot be read or, where the world is strict, a spec
            contradicts its model; all problems of all documents, with the values that nobody gave.
        UsageError: a document cannot take the place of what is on record.
    """
    declared = {d.spec.name: d.spec for d in documents if isinstance(d.spec, Volume)}
    services = {
        d.spec.name: runs_bare(d.spec, world.places)
        for d in documents
        if isinstance(d.spec, Service) and takes_adapters(d.spec)
    }
    rented = [d.spec for d in documents if isinstance(d.spec, Fleet) and d.spec.nodes is not None]
    offers = _Offers(world, declared, rented, services)
    fleets: list[FleetPlan] = []
    volumes: list[VolumePlan] = []
    runs: list[RunPlan] = []
    homeless: list[NothingFits] = []
    wrong: list[Problem] = []
    for document in documents:
        spec = document.spec
        try:
            if isinstance(spec, Volume):
                volumes.append(_plan_volume(document, spec, world))
            elif isinstance(spec, Fleet):
                fleets.append(_rented(_plan_fleet(document, spec, world), world, offers))
            else:
                runs.append(_told_of_set(_plan_run(document, spec, world, offers), world))
        except NothingFits as error:
            homeless.append(error)
        except SpecError as error:
            unset = world.unset(document, spec) if world.strict and not isinstance(spec, Volume) else ()
            wrong += (*error.problems, *unset)
    if wrong:
        planned: list[FleetPlan | RunPlan] = [*fleets, *runs] if world.strict else []
        raise SpecError([*wrong, *(each for plan in planned for each in plan.problems)])
    if homeless:
        first, *others = homeless
        first.also = tuple(others)
        raise first
    return (*fleets, *volumes, *runs, *_deletions(fleets, volumes, runs, world))


def _plan_fleet(document: Document, spec: Fleet, world: World) -> FleetPlan:
    known = world.fleets.get(spec.name)
    taken = spec.name in world.places and spec.name not in world.expected
    plan = plan_fleet(document, spec, known, taken=taken, scope=world.scope)
    return replace(plan, problems=tuple(world.unset(document, spec))) if spec.env else plan


def _rented(plan: FleetPlan, world: World, offers: _Offers) -> FleetPlan:
    """Return the plan of a fleet with where its machines are rented; one of one's own as it is."""
    spec, run = plan.spec, world.runs.get(plan.name)
    if run is not None and run.type != "fleet":
        raise UsageError(f"a run is called {plan.name!r} already", fix="choose another name for the fleet")
    if run is not None and run.wanted is Wanted.DELETE:
        raise UsageError(f"fleet {run.name!r} is being deleted", fix=f"modelyard fleet delete {run.name}")
    if spec.nodes is None:
        return plan
    over = run is None or run.state.is_final
    # a run that moved meanwhile keeps the machines it was told of, while the fleet is written down anew
    told = run is not None and not changes(spec_of(json.loads(run.spec)), spec)
    if plan.action == "unchanged" and told and not over:
        return plan
    action: Action = ("rerun" if over else "update") if plan.action == "unchanged" else plan.action
    demand = fleet_demand(spec, places=world.places, names=world.names)
    placed = place(demand, offers.index(), what=f"fleet {spec.name!r}", where=plan.document.position)
    backends, rents = _places(placed, demand, shared=True)
    return replace(
        plan, action=action, placed=placed, run=run, serving=_serving(None, placed.choices[0], world),
        template=fleet_template(spec, backends=backends, rents=rents),
    )  # fmt: skip


def _deletions(
    fleets: Sequence[FleetPlan], volumes: Sequence[VolumePlan], runs: Sequence[RunPlan], world: World
) -> tuple[Deletion, ...]:
    kept = {("volume", plan.name) for plan in volumes} | {("run", plan.name) for plan in runs}
    kept |= {("fleet", plan.name) for plan in fleets}
    uses = {mount.name: plan.name for plan in runs for mount in plan.spec.volumes if mount.name}
    return deletions(
        world.scope, kept=kept, runs=world.runs, volumes=world.volumes, uses=uses, fleets=world.fleets
    )


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
        elif isinstance(spec, Fleet):
            fleet = _plan_fleet(document, spec, world)
            found.append(Difference(spec.name, spec.type, fleet.action, fleet.changes))
        elif isinstance(spec, Task | Service | DevEnvironment):
            run = world.runs.get(spec.name)
            held = held_by(spec, run, known_ranks(document, spec, world.rank_of))
            spec_hash = fingerprint(spec, read_inputs(document, spec), held)
            action, changed = _compare(spec, spec_hash, run, world)
            found.append(Difference(spec.name, spec.type, action, changed))
    return tuple(found)


def _plan_run(document: Document, spec: Work, world: World, offers: _Offers) -> RunPlan:
    run = world.runs.get(spec.name)
    inputs = read_inputs(document, spec)
    ranks = known_ranks(document, spec, world.rank_of)
    held = held_by(spec, run, ranks)
    spec_hash = fingerprint(spec, inputs, held)
    action, changed = _compare(spec, spec_hash, run, world)
    there = run.set_name if run else ""
    joins = joined(spec.name, there, world.scope)
    if run and (moves := joining(there, joins)):
        changed += moves
        action = "update" if action == "unchanged" else action
    plan = RunPlan(document, spec, action, spec_hash, changed, run=run, set_name=joins, held=held)
    if action == "unchanged":
        return plan
    plan = replace(plan, problems=tuple(world.unset(document, spec)))
    if isinstance(spec, Service) and spec.base:
        return replace(plan, template=shared(document, spec, world.runs, offers.services, ranks))
    if action == "update" and run:
        template = in_place(run, spec, scales=scales_now(run.template, world.places))
        return replace(plan, template=template, notes=tuple(adapter_notes(template, adapters_of(run.plan))))
    demand = demand_of(spec, places=world.places, names=world.names)
    if not demand.zones and (zones := _zones_of(spec, offers)):
        demand = replace(demand, zones=zones)
    replaced = run if action == "replace" else None
    placing = _Placing(document, with_ranks(spec, ranks), demand, offers, replaced)
    engine = placing.engine(world.facts)
    placed, surge = (engine.placed, engine.beside) if engine else placing.plain()
    demand = engine.taken(demand) if engine else demand
    serving = _serving(engine, placed.choices[0], world)
    takes = adapters_of(serving)
    if engine and engine.served:  # only now it is known what a change of its adapters would take
        held = held_adapters(spec, takes, bare=not engine.launch.image, ranks=ranks)
        spec_hash = fingerprint(spec, inputs, held)
    launch = compose(spec, spec_hash=spec_hash, inputs=inputs, offer=placed.choices[0].offer, demand=demand)
    follower = engine.onto(launch, engine.follower) if engine and engine.follower else None
    if engine:
        launch = engine.onto(launch, engine.launch)
    launch = world.mirrors.launch(launch)
    follower = world.mirrors.launch(follower) if follower else None
    port_notes = _taken_once(document, spec, launch, placed, offers)
    surge = surge and isinstance(spec, Service) and all(port.host is None for port in launch.ports)
    own = opens_itself(spec) if _shares_ports(placed, world) else False
    surge = surge and own is not True
    backends, rents = _places(placed, demand)
    # a disk of a cloud is at one machine at a time: a successor would wait for it, and be waited for
    surge = surge and not (any(mount.name for mount in spec.volumes) and any(rents))
    resumes = engine is not None and engine.trained is not None
    template = Template(
        launch, backends, follower, nodes=demand.nodes, surge=surge, rents=rents, resumes=resumes,
        scales=all_scale(backends, demand.places),
        serves=_serves(spec, engine.served) if engine and engine.served else (),
    )  # fmt: skip
    return replace(
        plan, demand=demand, placed=placed, spec_hash=spec_hash, held=held,
        served=engine.served if engine else None, trained=engine.trained if engine else None,
        template=updated(
            template, spec, least_grace_s=engine.launch.stop_grace_s if engine else 0.0,
            kept=run.template.replicas if action == "replace" and run else 0,
            metrics=engine.served.launch.metrics if engine and engine.served else None, takes=takes,
        ),
        notes=(
            *_notes(action, surge, engine, run, (isinstance(spec, Service) and spec.rollout.weight) or 0),
            *_port_notes(spec, action, own),
            *port_notes,
            *_volume_notes(spec, offers),
            *(f"{found.path}: {found.what}" for found in unheeded(spec)),
        ),
        serving=serving,
    )  # fmt: skip


def _told_of_set(plan: RunPlan, world: World) -> RunPlan:
    """Return a plan that says whose word is about to be changed, where nobody named the run's set."""
    if plan.action == "unchanged" or not plan.set_name or world.scope.name:
        return plan
    note = (
        f"set {plan.set_name!r} has it: whoever applies that set, as a server's sync, puts back what differs"
    )
    return replace(plan, notes=(*plan.notes, note))


def _places(
    placed: Placed, demand: Demand, *, shared: bool = False
) -> tuple[tuple[str, ...], tuple[Rent | None, ...]]:
    """Return the backends to try, and what each rents; no rents where none does.

    Of machines that launches are to share it is told what there is to share.
    """
    rents = tuple(
        _rent(offer, shared=shared) if Can.RENT in demand.places.get(offer.backend, ()) else None
        for offer in placed.tries
    )
    return tuple(offer.backend for offer in placed.tries), rents if any(rents) else ()


def _rent(offer: Offer, *, shared: bool) -> Rent:
    rent = Rent(
        offer.instance_type, offer.region, offer.zone, offer.spot, offer.price_usd_hour, offer.reservation,
        offer.accelerator, offer.vendor, offer.count, offer.vram_bytes, offer.compute_capability,
    )  # fmt: skip
    if offer.growth is not None:
        rent = replace(rent, disk_bytes=offer.disk_bytes or 0)
    return replace(rent, cpu=offer.cpu, memory_bytes=offer.memory_bytes) if shared else rent


@frozen
class _Engine:
    """What an engine was found to do for a spec, and where; ``beside`` the run it replaces or not.

    ``fetch_bytes`` is what every node downloads of the model.
    """

    placed: Placed
    beside: bool
    launch: EngineLaunch
    accelerator: str | None
    count: int
    nodes: int
    mounts: tuple[Mount, ...]
    fetch_bytes: int
    follower: EngineLaunch | None = None
    served: Served | None = None
    trained: Trained | None = None
    notes: tuple[str, ...] = ()

    def taken(self, demand: Demand) -> Demand:
        """Return the demand with the accelerators that the sizing chose."""
        if self.accelerator is None:
            return replace(demand, accelerator=None, nodes=self.nodes)
        wanted = AcceleratorDemand(
            frozenset({self.accelerator}),
            count=Span(self.count, self.count),
            as_written=f"{self.count} × {self.accelerator}",
        )
        return replace(demand, accelerator=wanted, nodes=self.nodes)

    def onto(self, launch: Launch, part: EngineLaunch) -> Launch:
        """Return ``launch`` with the engine's part, and the folders it reads and writes."""
        mounted = {mount.target for mount in launch.mounts}
        more = tuple(mount for mount in self.mounts if mount.target not in mounted)
        mounts = (*launch.mounts, *more)
        return part.onto(replace(launch, mounts=mounts, fetch_bytes=self.fetch_bytes))


def fingerprint(spec: Work, inputs: Inputs, held: str = "") -> str:
    """Return the hash of all that needs new containers when it changes.

    That is the spec's, its files', and ``held``: what containers hold of adapters (``held_adapters``).
    """
    parts = [spec.hash(), *(part for part in (inputs.digest, held) if part)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest() if len(parts) > 1 else parts[0]


def _starts_again(spec: Work, world: World) -> bool:
    """Return whether a run of ``spec`` that has ended is asked to start again."""
    return world.rerun or (world.resume and isinstance(spec, Task) and spec.train is not None)


def _compare(spec: Work, spec_hash: str, run: Run | None, world: World) -> tuple[Action, tuple[Change, ...]]:
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
    if spec_hash != run.spec_hash and changed and all(change.mark == IN_PLACE for change in changed):
        # adapters that the engine cannot take while it runs, or not from where they are
        changed = tuple(
            replace(each, mark=REPLACE) if each.path.startswith("model.adapters") else each
            for each in changed
        )
    over = run.state.is_final or run.wanted is Wanted.STOP
    if spec_hash != run.spec_hash:
        return ("rerun" if over else "replace"), changed
    kept_up = not isinstance(spec, Task)
    if over and (_starts_again(spec, world) or kept_up or run.wanted is Wanted.STOP):
        return "rerun", changed
    changed += rescaled(run, spec, world.places)
    return ("update" if changed else "unchanged"), changed


@frozen
class _Placing:
    """One spec on its way to a place; ``replaced`` is the run whose room it may take over."""

    document: Document
    spec: Work
    demand: Demand
    offers: _Offers
    replaced: Run | None

    def plain(self) -> tuple[Placed, bool]:
        """Return where the spec can go, and whether it fits beside the run it replaces."""
        return self._try(
            lambda index: place(self.demand, index, what=self.what, where=self.document.position)
        )

    def engine(self, facts: Callable[[Model], ModelFacts]) -> _Engine | None:
        """Return what an engine would do for the spec, None where it brings its own commands."""
        if isinstance(self.spec, Service) and self.spec.model and not self.spec.commands:
            return self._serve(self.spec, self._known(self.spec.model, "model.id", facts))
        if isinstance(self.spec, Task) and self.spec.train:
            return self._tune(self.spec, self._known(self.spec.train.model, "train.model.id", facts))
        return None

    def _known(self, model: Model, path: str, facts: Callable[[Model], ModelFacts]) -> ModelFacts:
        """Return what a model is; where nobody knows it, say which line asks for it."""
        try:
            return facts(model)
        except (ModelError, Denied) as error:
            error.where = error.where or self.document.at(path)
            raise

    def _serve(self, spec: Service, facts: ModelFacts) -> _Engine:
        from orchestrator.apply.serving import against
        from orchestrator.catalog import accelerators, prices
        from orchestrator.planner.cpu import is_cpu
        from orchestrator.planner.serve import place_model, question_of

        question = question_of(spec, facts, bare=runs_bare(spec, self.demand.places))
        wanted = self.demand.accelerator
        if wrong := tuple(against(self.document, question)):
            raise SpecError(wrong)
        found = question.objections(wanted, accelerators())
        if found and self.offers.world.strict:
            raise SpecError(
                [self.document.problem(each.field, each.text, each.fix or None) for each in found]
            )

        fetch_bytes = _fetched(spec.model, facts)
        demand = replace(self.demand, fetch_bytes=fetch_bytes)

        def choose(index: OfferIndex) -> tuple[Placed, Served]:
            return place_model(
                question, demand, index, accelerators(),
                what=self.what, where=self.document.position, sort=self.offers.world.sort, prices=prices(),
            )  # fmt: skip

        key = repr((question, demand))
        known = self.offers.served.get(key)
        (placed, served), beside = (known, True) if known else self._try(choose)
        if beside:
            self.offers.served[key] = placed, served
        served = replace(served, notes=(*(each.text for each in found), *served.notes))
        layout = served.layout
        launch = served.launch.installed() if question.bare else served.launch
        device = None if is_cpu(served.accelerator) else served.accelerator.name
        return _Engine(
            placed, beside, launch, device, layout.count, layout.nodes, served.mounts, fetch_bytes,
            follower=served.follower, served=served,
        )  # fmt: skip

    def _tune(self, spec: Task, facts: ModelFacts) -> _Engine:
        from orchestrator.apply.training import looked_at
        from orchestrator.catalog import accelerators
        from orchestrator.planner.cpu import is_cpu
        from orchestrator.planner.tune import place_training, tuning_question_of

        bare = runs_bare(spec, self.demand.places)
        question = tuning_question_of(spec, facts, bare=bare, resume=self.offers.world.resume)
        question, unchecked = looked_at(self.document, question, self.offers.world.datasets)
        fetch_bytes = _fetched(spec.train.model if spec.train else None, facts)
        demand = replace(self.demand, fetch_bytes=fetch_bytes)
        (placed, trained), beside = self._try(
            lambda index: place_training(
                question, demand, index, accelerators(), what=self.what, where=self.document.position
            )
        )
        where = trained.candidate
        return _Engine(
            placed, beside, trained.launch, None if is_cpu(where.accelerator) else where.accelerator.name,
            where.count, where.nodes, trained.mounts, fetch_bytes, trained=trained, notes=unchecked,
        )  # fmt: skip

    @property
    def what(self) -> str:
        """The spec in words."""
        return f"{self.spec.type} {self.spec.name!r}"

    def _try(self, choose: Callable[[OfferIndex], _Found]) -> tuple[_Found, bool]:
        """Return what was found, and whether it has room beside the run that is replaced.

        What stops first takes the room over in any case: beside itself it may only fit elsewhere.
        """
        run = self.replaced
        if run is None:
            return choose(self.offers.index()), True
        if isinstance(self.spec, Service) or run.state is RunState.QUEUED:
            with suppress(NothingFits):
                return choose(self.offers.index()), True
        freed = [_with_back(offer, run.template) for offer in self.offers.index().offers]
        return choose(OfferIndex(freed, preference=tuple(self.offers.world.places))), False


def _fetched(model: Model | None, facts: ModelFacts) -> int:
    """Return the bytes of a model's files that a node downloads; none where it is mounted."""
    from orchestrator.planner.sizing.weights import published_format, weight_bytes
    from orchestrator.planner.sources import model_source

    if model is None or model_source(model)[1]:
        return 0
    return facts.weights_bytes or round(weight_bytes(facts, published_format(facts), loaded=False).total)


def _with_back(offer: Offer, template: Template) -> Offer:
    """Return a machine's offer with what a run holds of it given back."""
    if offer.backend not in template.backends:
        return offer
    held = template.launch.resources
    many = template.replicas * template.nodes
    accelerators = held.accelerators * many if held.accelerator == offer.accelerator else 0
    if not offer.divisible:
        alike = (offer.accelerator, offer.count) == (held.accelerator, held.accelerators)
        counted = alike and offer.available is not None
        return replace(offer, available=(offer.available or 0) + many) if counted else offer
    return replace(
        offer,
        cpu=offer.cpu + (held.cpu or 0) * many,
        memory_bytes=offer.memory_bytes + (held.memory_bytes or 0) * many,
        disk_bytes=None if offer.disk_bytes is None else offer.disk_bytes + _disk_of(template) * many,
        count=offer.count + accelerators,
    )


def _disk_of(template: Template) -> int:
    """Return what a place keeps of a disk for one launch, where it does."""
    launch = template.launch
    fetched = launch.fetch_bytes + SCRATCH_BYTES if launch.fetch_bytes else 0
    return fetched if launch.resources.disk_bytes is None else launch.resources.disk_bytes


def _serves(spec: Work, served: Served) -> tuple[str, ...]:
    """Return what requests call the model, and its adapters, each once."""
    assert isinstance(spec, Service)  # nothing else is served
    model = [spec.model.id, *(adapter.name for adapter in spec.model.adapters)] if spec.model else []
    return tuple(dict.fromkeys(filter(None, [*model, served.launch.model_name])))


def _serving(engine: _Engine | None, choice: Choice, world: World) -> str:
    """Return what has to be known later of the engine and the offer that the plan chose, as JSON.

    A cluster keeps its replicas by their commands: there nothing is loaded while one runs.
    """
    price_usd_hour = choice.price_usd_hour
    told: dict[str, object] = {"price_usd_hour": price_usd_hour} if price_usd_hour else {}
    if engine is None:
        return json.dumps(told)
    told["least_grace_s"] = engine.launch.stop_grace_s
    served = engine.served
    if served is None:
        return json.dumps(told, sort_keys=True)
    launch = served.launch
    serving: dict[str, object] = {
        "engine": served.engine,
        "version": served.version,
        "model_name": launch.model_name,
        "routes": launch.routes,
        "metrics": asdict(launch.metrics) if launch.metrics else None,
    }
    if launch.adapters and Can.GROUPS not in world.places[choice.offer.backend]:
        serving["adapters"] = asdict(launch.adapters)
    return json.dumps({"serving": serving, **told}, sort_keys=True)


def _notes(
    action: Action, surge: bool, engine: _Engine | None, run: Run | None, canary: int
) -> tuple[str, ...]:
    notes: list[str] = []
    if engine and engine.served:
        notes += [engine.served.lowered] if engine.served.lowered else []
        notes += engine.served.notes
    if engine and engine.trained:
        notes += (*engine.launch.warnings, *engine.notes)
    if action == "replace":
        ready = "the new replica is ready before the old one is stopped"
        notes.append(ready if surge else "the old one is stopped first")
        if canary and not surge:
            notes.append("there is no room for a canary: nothing starts until rollout.weight is removed")
        elif canary:
            notes.append(f"one replica of it gets {canary} % of the requests until rollout.weight is removed")
    if loses_work(action, run):
        notes.append("it is running: apply needs --allow-replace")
    return tuple(notes)


def _shares_ports(placed: Placed, world: World) -> bool:
    """Return whether launches of the chosen place share the ports of one machine: no image, no network."""
    return Can.IMAGES not in world.places[placed.choices[0].offer.backend]


def _port_notes(spec: Work, action: Action, own: bool | None) -> Iterator[str]:
    """Say what becomes of a service whose commands open a port of their own choice."""
    if own is False or not isinstance(spec, Service) or not spec.port or not spec.commands:
        return
    number = spec.port.container_port
    if own and (spec.replicas.max or 0) > 1:
        yield f"its commands open port {number}: a second replica here has to listen on $MODELYARD_PORT"
    elif own:
        yield f"its commands open port {number}: to be replaced without a gap, listen on $MODELYARD_PORT"
    elif action == "replace":
        yield f"the new replica has to listen on $MODELYARD_PORT: the old one has port {number}"


def _taken_once(
    document: Document, spec: Work, launch: Launch, placed: Placed, offers: _Offers
) -> tuple[str, ...]:
    """Say that further replicas cannot have a port of the machine that one has, where places are few.

    Raises:
        NothingFits: not even the least number of replicas can.
    """
    fixed = fixed_port(spec, launch)
    machines = offers.own_machines(placed) if fixed else None
    if fixed is None or machines is None or not isinstance(spec, Service):
        return ()
    least, most = spec.replicas.min or 0, spec.replicas.max or 0
    if least > machines:
        raise NothingFits(
            f"no offer fits service {spec.name!r}",
            needs=f"{least} machines: port {fixed.number} of one leads to one replica",
            refused=(Refusal(f"with one port {fixed.number}", machines), *placed.refused),
            where=document.at(fixed.path), fix=fixed.fix,
        )  # fmt: skip
    if most <= machines:
        return ()
    here = "the one machine" if machines == 1 else f"each of the {machines} machines"
    return (f"of {most} replicas {machines} can start: port {fixed.number} of {here} leads to one replica",)


def _volume_notes(spec: Work, offers: _Offers) -> Iterator[str]:
    """Say which volumes nobody declares: a place that has not got them refuses to start the launch."""
    known = {*offers.declared, *offers.world.volumes}
    for mount in spec.volumes:
        if mount.name and not mount.optional and mount.name not in known:
            yield f"volume {mount.name}: neither declared here nor on record; it starts where it is there"


def loses_work(action: Action, run: Run | None) -> bool:
    """Say whether ``action`` stops a task that has begun; a service hands over, a task begins again."""
    begun = run is not None and run.type == "task" and run.state is not RunState.QUEUED
    return action == "replace" and begun


def _zones_of(spec: Work, offers: _Offers) -> frozenset[str]:
    """Return the zones that machines with the spec's volumes can be in; none where any may do."""
    found: set[str] = set()
    for mount in spec.volumes:
        kept = offers.world.volumes.get(mount.name or "")
        volume = offers.declared.get(mount.name or "") or (spec_of(json.loads(kept.spec)) if kept else None)
        if isinstance(volume, Volume) and volume.availability_zone:
            place = (kept.backend if kept else volume.backend) or ""
            if Can.RENT in offers.world.places.get(place, frozenset()):
                found.add(volume.availability_zone)
    return frozenset(found)


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
    joins = joined(spec.name, known.set_name if known else "", world.scope)
    if known is None:
        return VolumePlan(document, spec, "create", backend, set_name=joins)
    changed = changes(spec_of(json.loads(known.spec)), spec)
    if any(change.mark == "replace" for change in changed):
        raise UsageError(
            f"volume {spec.name!r} cannot change its {changed[0].path}: what it holds would be lost",
            fix=f"choose another name, or modelyard volume delete {spec.name}",
        )
    changed += joining(known.set_name, joins)
    action: Action = "update" if changed else "unchanged"
    return VolumePlan(document, spec, action, backend, changed, joins)
