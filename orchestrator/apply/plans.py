"""What a plan is made against, and what it says of each document."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from typing import TYPE_CHECKING

from orchestrator.apply.fleets import FleetPlan
from orchestrator.apply.of_spec import OfSpec
from orchestrator.apply.sets import NO_SET, Deletion, FleetRecord, Scope
from orchestrator.backend import Can, Offer
from orchestrator.errors import Problem
from orchestrator.frozen import frozen
from orchestrator.planner.ask import Names, Work
from orchestrator.planner.demand import Demand
from orchestrator.planner.mirrors import NO_MIRRORS, Mirrors
from orchestrator.planner.plan import Action, Placed, Sort
from orchestrator.reconcile import Run, Template
from orchestrator.spec.load import Document
from orchestrator.spec.models import Adapter as AdapterSpec
from orchestrator.spec.models import Fleet, Model, Volume
from orchestrator.spec.parts import Change

if TYPE_CHECKING:  # catalog, sizing and engines: a third of a plan's time, and only for a model
    from orchestrator.catalog import ModelFacts
    from orchestrator.facts.datasets import DatasetFacts, Unknown
    from orchestrator.planner.serve import Served
    from orchestrator.planner.tune import Trained
    from orchestrator.store.values import Volume as KeptVolume


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
