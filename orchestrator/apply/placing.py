"""Where a document can go, with an engine where it has one; offers are asked for once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

from orchestrator.apply.plans import World
from orchestrator.backend import SCRATCH_BYTES, Can, Launch, Mount, Offer
from orchestrator.errors import Denied, ModelError, NothingFits, SpecError
from orchestrator.frozen import frozen
from orchestrator.planner.ask import Work, fleet_demand, runs_bare
from orchestrator.planner.demand import AcceleratorDemand, Demand, Span
from orchestrator.planner.index import OfferIndex
from orchestrator.planner.plan import Placed, place, tries_of
from orchestrator.reconcile import Run, RunState, Template
from orchestrator.spec.load import Document
from orchestrator.spec.models import Fleet, Model, Service, Task, Volume, spec_of

if TYPE_CHECKING:  # catalog, sizing and engines: a third of a plan's time, and only for a model
    from orchestrator.catalog import ModelFacts
    from orchestrator.engines import EngineLaunch
    from orchestrator.planner.serve import Served
    from orchestrator.planner.tune import Trained

_Found = TypeVar("_Found")


@dataclass(slots=True)
class AskedOffers:
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
        """Return all offers, those of fleets that may still rent included."""
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


@frozen
class Engine:
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


@frozen
class Placing:
    """One spec on its way to a place; ``replaced`` is the run whose room it may take over."""

    document: Document
    spec: Work
    demand: Demand
    offers: AskedOffers
    replaced: Run | None

    def plain(self) -> tuple[Placed, bool]:
        """Return where the spec can go, and whether it fits beside the run it replaces."""
        return self._try(
            lambda index: place(self.demand, index, what=self.what, where=self.document.position)
        )

    def engine(self, facts: Callable[[Model], ModelFacts]) -> Engine | None:
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

    def _serve(self, spec: Service, facts: ModelFacts) -> Engine:
        from orchestrator.apply.serving import against
        from orchestrator.catalog import accelerators, prices
        from orchestrator.planner.cpu import is_cpu
        from orchestrator.planner.question import question_of
        from orchestrator.planner.serve import place_model

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
        return Engine(
            placed, beside, launch, device, layout.count, layout.nodes, served.mounts, fetch_bytes,
            follower=served.follower, served=served,
        )  # fmt: skip

    def _tune(self, spec: Task, facts: ModelFacts) -> Engine:
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
        return Engine(
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
