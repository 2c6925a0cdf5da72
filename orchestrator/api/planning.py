"""Planning, wherever the record is: documents and facts are here, runs and offers are asked for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from orchestrator.api.protocol import Offers, Plans, Rehearsal
from orchestrator.api.rehearsal import is_kept, rehearsed, to_rehearse
from orchestrator.apply import (
    NO_SET,
    NOTHING_LOST,
    Consent,
    Difference,
    FleetRecord,
    Scope,
    World,
    diff_documents,
    plan_documents,
)
from orchestrator.apply.lock import LockedModel, is_commit, model_of, pinned
from orchestrator.apply.planfile import Origin, default_expiry, plan_file, read_plan, resume
from orchestrator.apply.prices import check_prices, is_priced
from orchestrator.apply.results import names_runs, place, resolved
from orchestrator.apply.unset import unset
from orchestrator.backend import Can, Offer
from orchestrator.catalog.digest import digest
from orchestrator.catalog.hardware import candidates
from orchestrator.errors import BackendError, ModelyardError, NothingFits, Problem, UsageError
from orchestrator.planner.ask import Work
from orchestrator.planner.mirrors import Mirrors
from orchestrator.planner.plan import Sort
from orchestrator.reconcile import Run
from orchestrator.spec.load import Document
from orchestrator.spec.models import Adapter, Fleet, Model
from orchestrator.spec.models import Volume as VolumeSpec
from orchestrator.store.values import Artifact
from orchestrator.store.values import Volume as KeptVolume

if TYPE_CHECKING:  # only for a model
    from orchestrator.catalog import ModelFacts
    from orchestrator.facts.datasets import DatasetFacts, Unknown


class Asked(Protocol):
    """What a plan asks of whoever keeps the record and the places."""

    def record_id(self) -> str:
        """Return which record it is and whose part: ``<deployment>/<project>``, "" before it is made."""

    def record_of(self, names: Collection[str] | None) -> Mapping[str, Run]:
        """Return the runs on record by name: those of ``names`` and of fleets, or all; asks no place."""

    def kept_volumes(self) -> Mapping[str, KeptVolume]:
        """Return the volumes on record by name."""

    def fleet_records(self) -> Mapping[str, FleetRecord]:
        """Return the fleets on record by name, with who is on them."""

    def expect(self, fleets: Sequence[Fleet]) -> frozenset[str]:
        """Count on the hosts of fleets that are about to be applied; return the names it could."""

    def secret_names(self) -> Collection[str]:
        """Return the names of the secrets on record."""

    def abilities(self) -> Mapping[str, frozenset[Can]]:
        """Return what each place is able to do, preferred ones first."""

    def rehearse(self, plans: Plans) -> Mapping[str, Rehearsal]:
        """Return what clusters say of plans that are theirs to keep, by run; writes nothing."""

    def offers(self) -> Offers:
        """Return what every place offers now."""

    def mirrors(self) -> Mirrors:
        """Return where images and models are had from."""

    def left_by(self, name: str) -> Sequence[Artifact]:
        """Return what a run of training left; nothing where it is not on record."""


class Planner(Asked):
    """The part of the api that decides: the same in process and from afar. It asks itself, as ``Asked`` says.

    Args:
        environ: The user's environment: tokens of the hub, and what a plan may not hold.
        clock: The time, in UTC.
    """

    def __init__(self, *, environ: Mapping[str, str], clock: Callable[[], datetime]) -> None:
        self._environ = environ
        self._clock = clock
        self._found = Offers(())
        self._unheard: dict[str, str] = {}
        self._bases: dict[str, tuple[str, str | None]] = {}
        """What models that runs left were made from: id and revision by where they are."""

    def plan(
        self,
        documents: Sequence[Document],
        *,
        rerun: bool = False,
        resume: bool = False,
        sort: Sort = "price",
        strict: bool = False,
        scope: Scope = NO_SET,
        models: Mapping[str, LockedModel] | None = None,
    ) -> Plans:
        """Return what ``apply`` would do, with ``models`` by run as a lock has them; changes nothing."""
        documents = _pinned(self._resolved(documents), models)
        world = self._world(
            documents, rerun=rerun, resume=resume, sort=sort, strict=strict, scope=scope, models=models
        )
        try:
            plans = plan_documents(documents, world)
        except NothingFits as error:
            if refusal := self._silence(error, documents):
                raise refusal from error
            raise
        said = tuple(plan for plan in plans if plan.action not in ("unchanged", "delete") or is_kept(plan))
        return rehearsed(plans, self._rehearse(said, world))

    @property
    def silent(self) -> Mapping[str, str]:
        """The places of which the last plan or look at runs knew nothing, with the reason of each."""
        return {**self._found.silent, **self._unheard}

    def _silence(self, error: NothingFits, documents: Sequence[Document]) -> BackendError | None:
        """Return why nothing fits a document that names its places, where none of them could be read."""
        named = (getattr(d.spec, "backends", ()) for d in documents if d.position == error.where)
        return self._found.refusal_of(next(named, ()) or ())

    def _rehearse(self, plans: Plans, world: World) -> Mapping[str, Rehearsal]:
        asked = to_rehearse(plans, world.places)
        return self.rehearse(asked) if asked else {}

    def resolve_models(self, documents: Sequence[Document]) -> dict[str, LockedModel]:
        """Return the commits that the documents' models are at now, by run; asks the hub."""
        return {
            document.spec.name: LockedModel(model.id, model.revision, self._commit(model))
            for document in self._resolved(documents)
            if (model := model_of(document)) is not None
        }

    def _commit(self, model: Model) -> str | None:
        from orchestrator.facts import Hub, commit_of  # asks the hub: only where a lock is written

        if is_commit(model.revision):
            return model.revision
        if self._offline:
            raise UsageError("a lock asks the hub, and HF_HUB_OFFLINE forbids it", fix="unset HF_HUB_OFFLINE")
        hub = Hub.from_environment(self.mirrors().environment(self._environ))
        return commit_of(model.id, revision=model.revision, hub=hub)

    def save(
        self,
        plans: Plans,
        *,
        scope: Scope = NO_SET,
        consent: Consent = NOTHING_LOST,
        lasts_s: int | None = None,
        locks: Sequence[Path] = (),
    ) -> str:
        """Return plans as the text of a plan file, good until the day after tomorrow or ``lasts_s``."""
        now = self._clock()
        return plan_file(
            plans,
            origin=origin(),
            record=self.record_id(),
            scope=scope,
            consent=consent,
            expires_at=default_expiry(now) if lasts_s is None else now + timedelta(seconds=lasts_s),
            environ=self._environ,
            locks=locks,
        )

    def resume(self, path: str) -> tuple[Plans, Consent]:
        """Return the plans of a file and what they may lose, or refuse when they no longer hold."""
        saved = read_plan(path, origin=origin(), now=self._clock())
        plans = resume(
            saved, record=self.record_id(), runs=self.record_of(None), volumes=self.kept_volumes(),
            fleets=self.fleet_records(),
        )  # fmt: skip
        if is_priced(plans):
            found = self.offers()
            check_prices(plans, found.offers, found.silent)
        return plans, saved.consent

    def diff(
        self, documents: Sequence[Document], *, models: Mapping[str, LockedModel] | None = None
    ) -> tuple[Difference, ...]:
        """Return how the documents differ from the record, and from what clusters have of their runs."""
        documents = _pinned(self._resolved(documents), models)
        world = self._world(documents)
        found = diff_documents(documents, world)
        clusters = frozenset(name for name, can in world.places.items() if Can.GROUPS in can)
        kept = tuple(plan for document in documents for plan in _kept_by(document, clusters, world))
        said = self._rehearse(kept, world)
        return tuple(
            replace(each, places=said[each.name].phrases()) if each.name in said else each for each in found
        )

    def _resolved(self, documents: Sequence[Document]) -> Sequence[Document]:
        """Return documents with what runs of training left in place of the runs they name."""
        if not any(names_runs(document) for document in documents):
            return documents
        return [resolved(document, self._left) for document in documents]

    def _left(self, name: str) -> Sequence[Artifact]:
        found = self.left_by(name)
        self._bases |= {place(each): (each.base_id, each.base_revision or None) for each in found}
        return found

    def _world(
        self,
        documents: Sequence[Document],
        *,
        rerun: bool = False,
        resume: bool = False,
        sort: Sort = "price",
        strict: bool = False,
        scope: Scope = NO_SET,
        models: Mapping[str, LockedModel] | None = None,
    ) -> World:
        locked = {(each.id, each.commit): each for each in (models or {}).values()}
        has_volumes = scope.prune or any(_speaks_of_volumes(document) for document in documents)
        names = None if scope.prune else [document.spec.name for document in documents]
        fleets = [document.spec for document in documents if isinstance(document.spec, Fleet)]
        return World(
            runs=self.record_of(names),
            volumes=self.kept_volumes() if has_volumes else {},
            fleets=self.fleet_records() if fleets or scope.prune else {},
            expected=self.expect(fleets) if fleets else frozenset(),
            places=self.abilities(),
            offers=self._offered,
            names=lambda name: [device.name for device in candidates(name)],
            facts=lambda model: self._facts(model, locked.get((model.id, model.revision))),
            rerun=rerun,
            resume=resume,
            sort=sort,
            strict=strict,
            scope=scope,
            unset=self._unset,
            datasets=self._dataset,
            mirrors=self.mirrors(),
            rank_of=self._rank,
        )

    def _unset(self, document: Document, spec: Work | Fleet) -> Sequence[Problem]:
        return unset(document, spec, environ=self._environ, secrets=self.secret_names)

    def _offered(self) -> Sequence[Offer]:
        """Return what there is to choose from; where nothing is, a place that is silent is why."""
        self._found = self.offers()
        if refusal := self._found.refusal():
            raise refusal
        return self._found.offers

    def _facts(self, model: Model, locked: LockedModel | None) -> ModelFacts:
        """Return what a model is; one the catalog knows needs no hub, at whatever commit it is locked."""
        from orchestrator.catalog import model as published  # and these: only for a model
        from orchestrator.facts import Hub, resolve

        if model.id in self._bases and not Path(model.id, "config.json").exists():
            base, revision = self._bases[model.id]
            model = model.model_copy(update={"id": base, "revision": revision})
        # a base that was trained on was known by then, at the commit its trainer fetched
        is_base = (model.id, model.revision) in self._bases.values()
        if (is_base or (locked and locked.asked in (None, "main"))) and (known := published(model.id)):
            return replace(known, revision=model.revision)
        hub = Hub.from_environment(self.mirrors().environment(self._environ))
        return resolve(model.id, revision=model.revision, hub=hub, offline=self._offline)

    def _rank(self, adapter: Adapter) -> int | None:
        from orchestrator.facts import adapter_rank  # only for adapters

        return adapter_rank(adapter.id, revision=adapter.revision, environ=self._environ)

    def _dataset(self, id: str, split: str, config: str | None) -> DatasetFacts | Unknown:
        from orchestrator.facts import Hub, resolve_dataset  # only for training

        hub = Hub.from_environment(self.mirrors().environment(self._environ))
        return resolve_dataset(id, split=split, config=config, hub=hub, offline=self._offline)

    @property
    def _offline(self) -> bool:
        return self._environ.get("HF_HUB_OFFLINE", "") not in ("", "0")


def _kept_by(document: Document, clusters: frozenset[str], world: World) -> Plans:
    """Return what to say to the cluster that keeps a document's run; nothing where none does.

    A task's objects never change, and one that cannot be planned is not compared.
    """
    run = world.runs.get(document.spec.name)
    if run is None or run.state.is_final or run.type == "task":
        return ()
    if not clusters.intersection(run.template.backends[:1]):
        return ()
    try:
        return plan_documents([document], world)
    except ModelyardError:
        return ()


def _pinned(documents: Sequence[Document], models: Mapping[str, LockedModel] | None) -> Sequence[Document]:
    return (
        [pinned(document, models.get(document.spec.name)) for document in documents] if models else documents
    )


def _speaks_of_volumes(document: Document) -> bool:
    spec = document.spec
    return isinstance(spec, VolumeSpec) or any(mount.name for mount in getattr(spec, "volumes", ()))


def origin() -> Origin:
    """Return what plans are made with here."""
    from importlib.metadata import version  # email and zipfile: only for plans that are kept

    return Origin(version("modelyard"), digest())
