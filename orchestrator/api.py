"""What can be asked of Modelyard, as one protocol, and the answer of this very process."""

from __future__ import annotations

import json
import os
import re
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from orchestrator.apply import (
    NO_SET,
    NOTHING_LOST,
    Consent,
    Deletion,
    Difference,
    Drift,
    RunPlan,
    Scope,
    VolumePlan,
    World,
    diff_documents,
    drifts,
    plan_documents,
    record,
    require_consent,
)
from orchestrator.apply.lock import LockedModel, is_commit, model_of, pinned
from orchestrator.apply.planfile import Origin, default_expiry, plan_file, read_plan, resume
from orchestrator.apply.prices import check_prices, is_priced
from orchestrator.apply.unset import unset
from orchestrator.backend import Backend, Check, Instance, LogLine, Offer, Phase, Volume
from orchestrator.catalog.digest import digest
from orchestrator.catalog.hardware import accelerator, candidates
from orchestrator.errors import (
    BackendError,
    ModelyardError,
    NotFound,
    Problem,
    StateMoved,
    Unreachable,
    UsageError,
)
from orchestrator.places import Places, read_places
from orchestrator.planner.ask import Work
from orchestrator.planner.plan import Sort
from orchestrator.reconcile import Job, Run, RunEvent, RunState, Turn, Wanted
from orchestrator.spec.interpolation import is_secret_name
from orchestrator.spec.load import Document
from orchestrator.spec.models import Model
from orchestrator.spec.models import Volume as VolumeSpec
from orchestrator.store import current_runs, current_secrets, open_store
from orchestrator.store.leases import this_owner

if TYPE_CHECKING:  # the store imports SQLAlchemy, which a plan on a fresh machine does without
    from orchestrator.catalog import ModelFacts
    from orchestrator.loop import Hooks, Loop
    from orchestrator.store.records import Store

Plans = tuple[RunPlan | VolumePlan | Deletion, ...]
Goal = Literal["accepted", "started", "ready", "settled", "ended", "deleted"]
"""Where to follow a run to: *accepted* by a backend, *settled* (a task has ended, what is kept up
is ready), or what the word says. A run that has ended has reached whatever it can.
"""


@dataclass(frozen=True, slots=True)
class RunView:
    """A run with its jobs, oldest first."""

    run: Run
    jobs: tuple[Job, ...]


@dataclass(frozen=True, slots=True)
class Offers:
    """What can be had, and the places that did not answer, with the reason of each."""

    offers: tuple[Offer, ...]
    silent: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Orphan:
    """An instance that carries our labels and whose run nobody has on record."""

    backend: str
    instance: Instance


class Api(Protocol):
    """Everything the command line can ask for; held in process and over HTTP by the same tests."""

    def plan(
        self,
        documents: Sequence[Document],
        *,
        rerun: bool = False,
        sort: Sort = "price",
        strict: bool = False,
        scope: Scope = NO_SET,
        models: Mapping[str, LockedModel] | None = None,
    ) -> Plans:
        """Return what ``apply`` would do, with ``models`` by run as a lock has them; changes nothing."""

    def resolve_models(self, documents: Sequence[Document]) -> dict[str, LockedModel]:
        """Return the commits that the documents' models are at now, by run; asks the hub."""

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

    def resume(self, path: str) -> tuple[Plans, Consent]:
        """Return the plans of a file and what they may lose, or refuse when they no longer hold."""

    def diff(
        self, documents: Sequence[Document], *, models: Mapping[str, LockedModel] | None = None
    ) -> tuple[Difference, ...]:
        """Return how the documents differ from the record; asks no backend."""

    def apply(self, plans: Plans, *, consent: Consent = NOTHING_LOST) -> tuple[str, ...]:
        """Write down what the plans say; return the names of the runs that changed."""

    def finish_deletions(self, plans: Plans, *, hooks: Hooks | None = None) -> None:
        """See the runs off that the plans delete, then delete the plans' volumes."""

    def drift(self) -> tuple[Drift, ...]:
        """Return where the places differ from the record, which is left as it is."""

    def follow(self, names: Sequence[str], goal: Goal, *, hooks: Hooks, timeout_s: float | None) -> bool:
        """Drive the runs until each has reached ``goal`` or its end; False when time ran out."""

    def runs(self) -> list[RunView]:
        """Return every run, by name, as it is at this moment."""

    def run(self, name: str) -> RunView:
        """Return one run as it is at this moment."""

    def recorded(self, name: str) -> RunView:
        """Return one run as it is on record, asking no backend."""

    def on_record(self) -> list[RunView]:
        """Return every run, by name, as it is on record, asking no backend."""

    def events(self, name: str | None, *, after: int = 0) -> list[tuple[int, RunEvent]]:
        """Return events with their serials, oldest first."""

    def output(self, launch: str, *, follow: bool) -> Iterator[LogLine]:
        """Yield the output of one launch."""

    def logs(
        self, name: str, *, replica: int, node: int, follow: bool, since: datetime | None, tail: int | None
    ) -> Iterator[LogLine]:
        """Yield a run's output; with ``follow`` over all attempts until the run ends."""

    def execute(self, name: str, command: Sequence[str], *, replica: int, node: int, tty: bool) -> int:
        """Run a command inside a running job on this terminal; return its exit code."""

    def container(self, name: str, *, replica: int, node: int) -> str:
        """Return what a running job's container is called on this machine, "" where there is none."""

    def ask(self, names: Sequence[str], wanted: Wanted) -> None:
        """Write down that the runs shall stop, or be deleted."""

    def offers(self) -> Offers:
        """Return what every place offers now."""

    def check(self) -> list[tuple[str, Check]]:
        """Look whether every configured place is usable."""

    def diagnose(self) -> list[tuple[str, Check]]:
        """Look whether this installation, its record and every place are well."""

    def orphans(self) -> list[Orphan]:
        """Return instances that carry our labels and belong to no run on record."""

    def remove_orphans(self, orphans: Sequence[Orphan]) -> None:
        """Stop and remove them."""

    def volumes(self) -> list[tuple[str, Volume]]:
        """Return every volume with its backend."""

    def delete_volume(self, name: str) -> None:
        """Delete a volume and what it holds."""

    def secrets(self) -> list[tuple[str, datetime]]:
        """Return the names of the secrets, and when each was last set."""

    def set_secret(self, name: str, value: str) -> None:
        """Keep a secret, encrypted."""

    def delete_secret(self, name: str) -> None:
        """Forget a secret."""


class _Teller:
    """Tells events of some runs in the order of the record, whoever wrote them down.

    Another process may drive a run of ours: what it does is told here all the same.
    """

    def __init__(
        self, store: Store, runs: frozenset[str], tell: Callable[[RunEvent], None], after: int
    ) -> None:
        self._store = store
        self._runs = runs
        self._tell = tell
        self._lock = threading.Lock()
        self._last = after

    def tell(self) -> None:
        """Tell what is new."""
        with self._lock:
            while page := self._store.events(after=self._last):
                for serial, event in page:
                    self._last = serial
                    if event.run in self._runs and event.action:  # not what the user just asked for
                        self._tell(event)


class Local:
    """The answers of this process: nothing has to be started first.

    The record is opened when it is first needed, and places are built when they are first
    asked: a plan that changes nothing touches neither.

    Args:
        url: Where the record is.
        config: The configuration of places, None for the defaults.
        environ: Where the values of bare variables come from.
        clock: The time, in UTC.
    """

    def __init__(
        self,
        url: str,
        *,
        config: Path | None,
        environ: Mapping[str, str] = os.environ,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._url = url
        self._config = config
        self._environ = environ
        self._clock = clock
        self._told: int | None = None
        """The last event before what this process asked for; what follows is told."""

    @cached_property
    def places(self) -> Places:
        """The configured backends."""
        return Places(read_places(self._config))

    @cached_property
    def store(self) -> Store:
        """The record."""
        return open_store(self._url, secret_key=self._environ.get("MODELYARD_SECRET_KEY"))

    def close(self) -> None:
        """Let go of the record, where it was opened."""
        if "store" in self.__dict__:
            self.store.close()

    # Plan and apply --------------------------------------------------------------------------

    def plan(
        self,
        documents: Sequence[Document],
        *,
        rerun: bool = False,
        sort: Sort = "price",
        strict: bool = False,
        scope: Scope = NO_SET,
        models: Mapping[str, LockedModel] | None = None,
    ) -> Plans:
        """Return what ``apply`` would do, with ``models`` by run as a lock has them; changes nothing."""
        documents = _pinned(documents, models)
        world = self._world(documents, rerun=rerun, sort=sort, strict=strict, scope=scope, models=models)
        return plan_documents(documents, world)

    def resolve_models(self, documents: Sequence[Document]) -> dict[str, LockedModel]:
        """Return the commits that the documents' models are at now, by run; asks the hub."""
        return {
            document.spec.name: LockedModel(model.id, model.revision, self._commit(model))
            for document in documents
            if (model := model_of(document)) is not None
        }

    def _commit(self, model: Model) -> str | None:
        from orchestrator.facts import Hub, commit_of  # asks the hub: only where a lock is written

        if is_commit(model.revision):
            return model.revision
        if self._offline:
            raise UsageError("a lock asks the hub, and HF_HUB_OFFLINE forbids it", fix="unset HF_HUB_OFFLINE")
        return commit_of(model.id, revision=model.revision, hub=Hub.from_environment(self._environ))

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
            origin=_origin(),
            scope=scope,
            consent=consent,
            expires_at=default_expiry(now) if lasts_s is None else now + timedelta(seconds=lasts_s),
            environ=self._environ,
            locks=locks,
        )

    def resume(self, path: str) -> tuple[Plans, Consent]:
        """Return the plans of a file and what they may lose, or refuse when they no longer hold."""
        saved = read_plan(path, origin=_origin(), now=self._clock())
        volumes = {volume.name: volume for volume in self.store.volumes()}
        plans = resume(saved, runs={run.name: run for run in self.store.runs()}, volumes=volumes)
        if is_priced(plans):
            found = self.offers()
            check_prices(plans, found.offers, found.silent)
        return plans, saved.consent

    def diff(
        self, documents: Sequence[Document], *, models: Mapping[str, LockedModel] | None = None
    ) -> tuple[Difference, ...]:
        """Return how the documents differ from the record; asks no backend."""
        return diff_documents(_pinned(documents, models), self._world(documents))

    def _world(
        self,
        documents: Sequence[Document],
        *,
        rerun: bool = False,
        sort: Sort = "price",
        strict: bool = False,
        scope: Scope = NO_SET,
        models: Mapping[str, LockedModel] | None = None,
    ) -> World:
        locked = {(each.id, each.commit): each for each in (models or {}).values()}
        has_volumes = scope.prune or any(_speaks_of_volumes(document) for document in documents)
        return World(
            runs={run.name: run for run in current_runs(self._url)},
            volumes={v.name: v for v in self.store.volumes()} if has_volumes else {},
            places={name: backend.can for name, backend in self.places.items()},
            offers=self._offered,
            names=lambda name: [device.name for device in candidates(name)],
            facts=lambda model: self._facts(model, locked.get((model.id, model.revision))),
            rerun=rerun,
            sort=sort,
            strict=strict,
            scope=scope,
            unset=self._unset,
        )

    def _unset(self, document: Document, spec: Work) -> Sequence[Problem]:
        return unset(document, spec, environ=self._environ, secrets=lambda: current_secrets(self._url))

    def _offered(self) -> Sequence[Offer]:
        """Return what there is to choose from; where nothing is, a place that is silent is why."""
        found = self.offers()
        if found.silent and not found.offers:
            what = "; ".join(f"backend {name!r}: {why}" for name, why in sorted(found.silent.items()))
            raise Unreachable(what, fix="see: modelyard backend check")
        return found.offers

    def _facts(self, model: Model, locked: LockedModel | None) -> ModelFacts:
        """Return what a model is; one the catalog knows needs no hub, at whatever commit it is locked."""
        from orchestrator.catalog import model as published  # and these: only for a model
        from orchestrator.facts import Hub, resolve

        if locked and locked.asked in (None, "main") and (known := published(model.id)):
            return replace(known, revision=model.revision)
        hub = Hub.from_environment(self._environ)
        return resolve(model.id, revision=model.revision, hub=hub, offline=self._offline)

    @property
    def _offline(self) -> bool:
        return self._environ.get("HF_HUB_OFFLINE", "") not in ("", "0")

    def apply(self, plans: Plans, *, consent: Consent = NOTHING_LOST) -> tuple[str, ...]:
        """Write down what the plans say; volumes are made at once.

        Raises:
            UsageError: the plans lose what ``consent`` does not allow to be lost.
        """
        require_consent(plans, consent)
        self._told = self.store.last_serial()
        names = record(
            plans, self.store, environ=self._environ, now=self._clock(), new_id=lambda: uuid.uuid4().hex
        )
        for plan in plans:
            if isinstance(plan, VolumePlan) and plan.action != "unchanged":
                self.places[plan.backend].create_volume(plan.name, size_bytes=plan.spec.size)
        return names

    def finish_deletions(self, plans: Plans, *, hooks: Hooks | None = None) -> None:
        """See the runs off that the plans delete, then delete the plans' volumes.

        Runs that an earlier plan was to delete are seen off too, where it was cut short: they may
        still hold a volume.
        """
        deletions = [plan for plan in plans if isinstance(plan, Deletion)]
        leaving = [run.name for run in self.store.runs() if run.wanted is Wanted.DELETE]
        if deletions and leaving:
            self.follow(leaving, "deleted", hooks=hooks)
        for deletion in deletions:
            if deletion.run is None:
                self.delete_volume(deletion.name)

    def drift(self) -> tuple[Drift, ...]:
        """Return where the places differ from the record, which is left as it is."""
        return drifts(
            self.store.runs(),
            self.store.jobs(),
            instances={name: backend.instances() for name, backend in self._answering()},
            volumes=[(volume.backend, volume.name) for volume in self.store.volumes()],
            held={
                name: {volume.name for volume in self.places[name].volumes()}
                for name in sorted({volume.backend for volume in self.store.volumes()})
            },
        )

    def follow(
        self, names: Sequence[str], goal: Goal, *, hooks: Hooks | None = None, timeout_s: float | None = None
    ) -> bool:
        """Drive the runs until each has reached ``goal`` or its end; False when time ran out."""
        from orchestrator.loop import Hooks  # http, ssl and threads: only where runs are driven

        asked = hooks or Hooks()
        after = self.store.last_serial() if self._told is None else self._told
        teller = _Teller(self.store, frozenset(names), asked.event, after)

        def is_there() -> bool:
            teller.tell()
            return self._have_reached(names, goal)

        with self._loop(replace(asked, event=lambda _: teller.tell())) as loop:
            found = loop.drive(is_there, timeout_s=timeout_s)
        teller.tell()
        return found

    def _loop(self, hooks: Hooks | None = None) -> Loop:
        from orchestrator.loop import Hooks, Loop  # http, ssl and threads: only where runs are driven

        return Loop(self.store, self.places, owner=this_owner(), clock=self._clock, hooks=hooks or Hooks())

    def _have_reached(self, names: Sequence[str], goal: Goal) -> bool:
        runs = {run.name: run for run in self.store.runs()}
        return all(name not in runs or self._has_reached(runs[name], goal) for name in names)

    def _has_reached(self, run: Run, goal: Goal) -> bool:
        if not has_reached(run, goal) or goal != "settled" or run.state.is_final:
            return has_reached(run, goal)
        live = [job for job in self.store.jobs(run.id) if not job.state.is_final]
        return bool(run.reason) or all(
            job.spec_hash == run.spec_hash and not job.stop_asked_at for job in live
        )

    # Reading ---------------------------------------------------------------------------------

    def runs(self) -> list[RunView]:
        """Return every run, by name, brought up to date first."""
        self._settle()
        return self.on_record()

    def on_record(self) -> list[RunView]:
        """Return every run, by name, as it is on record, asking no backend."""
        return [RunView(run, tuple(self.store.jobs(run.id))) for run in self.store.runs()]

    def run(self, name: str) -> RunView:
        """Return one run, brought up to date first."""
        self._settle()
        return self.recorded(name)

    def recorded(self, name: str) -> RunView:
        """Return one run as it is on record, asking no backend."""
        run = self.store.run(name)
        return RunView(run, tuple(self.store.jobs(run.id)))

    def events(self, name: str | None, *, after: int = 0) -> list[tuple[int, RunEvent]]:
        """Return events with their serials, oldest first."""
        self._settle()
        found: list[tuple[int, RunEvent]] = []
        while page := self.store.events(name, after=found[-1][0] if found else after):
            found += page
        return found

    def _settle(self) -> None:
        """Let what happened since the last command reach the record."""
        with self._loop() as loop:
            loop.settle()

    def output(self, launch: str, *, follow: bool) -> Iterator[LogLine]:
        """Yield the output of one launch."""
        view = self.recorded(launch.rsplit("-", 3)[0])
        job = next(job for job in view.jobs if job.name == launch)
        return self.places[job.backend].logs(launch, follow=follow)

    def logs(
        self,
        name: str,
        *,
        replica: int = 0,
        node: int = 0,
        follow: bool = False,
        since: datetime | None = None,
        tail: int | None = None,
    ) -> Iterator[LogLine]:
        """Yield a run's output; with ``follow`` over all attempts until the run ends."""
        job = self._latest(name, replica, node)
        while True:
            backend = self.places[job.backend]
            yield from backend.logs(job.name, follow=follow, since=since, tail=tail)
            if not follow or (successor := self._successor(job)) is None:
                return
            job, since, tail = successor, None, None

    def _latest(self, name: str, replica: int, node: int, *, alive: bool = False) -> Job:
        view = self.run(name)
        jobs = [j for j in view.jobs if (j.replica, j.node) == (replica, node) and j.reason not in _NO_OUTPUT]
        if alive:
            jobs = [j for j in jobs if not j.state.is_final]
        if not jobs:
            kind = "running job" if alive else "job with output"
            reason = f": {view.run.reason}" if view.run.reason else ""
            raise NotFound(
                f"run {name!r} has no {kind} at replica {replica}, node {node}{reason}",
                fix=f"modelyard events {name} tells what happened",
            )
        return max(jobs, key=lambda j: j.attempt)

    def _successor(self, job: Job) -> Job | None:
        """Return the next attempt after ``job``, once it runs; None when the run ended without."""
        run_name = self.store.run(job.name.rsplit("-", 3)[0]).name
        found: list[Job] = []

        def has_gone_on() -> bool:
            run = self.store.run(run_name)
            later = [
                j for j in self.store.jobs(run.id) if _place(j) == _place(job) and j.attempt > job.attempt
            ]
            found[:] = [j for j in later if j.started_at]
            return bool(found) or run.state.is_final

        with self._loop() as loop:
            loop.drive(has_gone_on)
        return min(found, key=lambda j: j.attempt) if found else None

    def execute(
        self, name: str, command: Sequence[str], *, replica: int = 0, node: int = 0, tty: bool
    ) -> int:
        """Run a command inside a running job on this terminal; return its exit code."""
        job = self._latest(name, replica, node, alive=True)
        return self.places[job.backend].execute(job.name, command, tty=tty)

    def container(self, name: str, *, replica: int = 0, node: int = 0) -> str:
        """Return what a running job's container is called on this machine, "" where there is none."""
        job = self._latest(name, replica, node, alive=True)
        found = (i.container for i in self.places[job.backend].instances() if i.name == job.name)
        return next(found, "")

    # Ending ----------------------------------------------------------------------------------

    def ask(self, names: Sequence[str], wanted: Wanted) -> None:
        """Write down that the runs shall stop, or be deleted; what is to be deleted stays so.

        Raises:
            NotFound: one of them is not on record; nothing was written.
        """
        self._told = self.store.last_serial()
        while True:
            runs = [self.store.run(name) for name in names]
            turns = [self._asked(run, wanted) for run in runs if run.wanted not in (wanted, Wanted.DELETE)]
            try:
                if turns:
                    self.store.commit(turns, expected={turn.run.id: turn.run.serial for turn in turns})
                return
            except StateMoved:
                continue  # a loop wrote in between: ask of what it wrote

    def _asked(self, run: Run, wanted: Wanted) -> Turn:
        asked = run.asked(wanted)
        before, after = run.state.value, asked.state.value
        return Turn(
            asked,
            RunEvent(run.id, run.name, self._clock(), run.name, before, after, f"{wanted.value} asked for"),
        )

    # Places ----------------------------------------------------------------------------------

    def offers(self) -> Offers:
        """Return what every place offers now, with accelerators spelled as the catalog does."""
        found: list[Offer] = []
        silent: dict[str, str] = {}
        for name, backend in self.places.items():
            try:
                found += [self._priced(_spelled(offer)) for offer in backend.offers()]
            except BackendError as error:
                if self.places.is_required(name) or not isinstance(error, Unreachable):
                    silent[name] = error.what
        return Offers(tuple(found), silent)

    def _priced(self, offer: Offer) -> Offer:
        """Return an offer with what its machine costs, and what the owner counts for one of his own."""
        if offer.price_list:
            offer = _listed(offer)
        own = self.places.price_usd_hour(offer.backend, offer.accelerator)
        return replace(offer, own_usd_hour=own) if own else offer

    def check(self) -> list[tuple[str, Check]]:
        """Look whether every configured place is usable."""
        return [
            (
                name,
                check
                if check.ok or self.places.is_required(name)
                else replace(check, ok=True, detail="not here"),
            )
            for name, backend in self.places.items()
            for check in backend.check()
        ]

    def diagnose(self) -> list[tuple[str, Check]]:
        """Look whether this installation, its record and every place are well."""
        found: list[tuple[str, Check]] = []
        try:
            runs = self.store.runs()
            found.append(
                ("record", Check("opens", True, f"{len(runs)} runs at {_without_password(self._url)}"))
            )
        except ModelyardError as error:
            found.append(("record", Check("opens", False, error.what, error.fix or "")))
        where = str(self._config) if self._config else "none: docker where an engine answers, else process"
        found.append(("config", Check("is read", True, where)))
        return found + self.check()

    def orphans(self) -> list[Orphan]:
        """Return instances that carry our labels and belong to no run on record."""
        known = {run.name for run in self.store.runs()}
        found: list[Orphan] = []
        for name, backend in self._answering():
            found += [Orphan(name, i) for i in backend.instances() if i.run not in known]
        return found

    def _answering(self) -> Iterator[tuple[str, Backend]]:
        for name, backend in self.places.items():
            try:
                backend.instances()
            except Unreachable:
                if self.places.is_required(name):
                    raise
                continue
            yield name, backend

    def remove_orphans(self, orphans: Sequence[Orphan]) -> None:
        """Stop those that run, and remove them all."""
        for orphan in orphans:
            backend = self.places[orphan.backend]
            if orphan.instance.phase is not Phase.EXITED:
                backend.stop(orphan.instance.name, grace_s=10.0)
            backend.remove(orphan.instance.name)

    def volumes(self) -> list[tuple[str, Volume]]:
        """Return every volume on record with its backend, as the backend has it."""
        held: dict[str, dict[str, Volume]] = {}
        found: list[tuple[str, Volume]] = []
        for volume in self.store.volumes():
            if volume.backend not in held:
                held[volume.backend] = {v.name: v for v in self.places[volume.backend].volumes()}
            found.append((volume.backend, held[volume.backend].get(volume.name, Volume(volume.name))))
        return found

    def delete_volume(self, name: str) -> None:
        """Delete a volume and what it holds."""
        volume = next((v for v in self.store.volumes() if v.name == name), None)
        if volume is None:
            raise NotFound(f"no volume {name!r}", fix="modelyard volume list")
        self.places[volume.backend].delete_volume(name)
        self.store.forget_volume(name)

    def secrets(self) -> list[tuple[str, datetime]]:
        """Return the names of the secrets, and when each was last set."""
        return self.store.secrets.list()

    def set_secret(self, name: str, value: str) -> None:
        """Keep a secret, encrypted.

        Raises:
            UsageError: there is nothing in it, or no spec could name it.
        """
        if not is_secret_name(name.rpartition("/")[2]):
            fix = "letters, digits, '_' and '-', not beginning with a digit"
            raise UsageError(f"{name!r} is no name of a secret", fix=fix)
        if not value:
            fix = f"for example: modelyard secret set {name} < FILE"
            raise UsageError(f"secret {name}: an empty value", fix=fix)
        self.store.secrets.set(name, value, now=self._clock())

    def delete_secret(self, name: str) -> None:
        """Forget a secret."""
        self.store.secrets.delete(name)


_NO_OUTPUT = frozenset({"no-capacity", "rejected", "quota", "denied"})
"""Reasons of jobs that never had a container."""

_UP = frozenset({RunState.RUNNING, RunState.READY})
_ACCEPTED = _UP | {RunState.STARTING}


def has_reached(run: Run, goal: Goal) -> bool:
    """Return whether a run has come to ``goal``, or to an end from which it will not."""
    if goal == "deleted":
        return False
    if run.state.is_final or run.reason.startswith("rollout failed"):
        return True
    match goal:
        case "accepted":
            return run.state in _ACCEPTED
        case "started":
            return run.state in _UP
        case "ready":
            return run.state is RunState.READY or (run.type == "task" and run.state is RunState.RUNNING)
        case "settled":
            return run.state is RunState.READY
        case _:
            return False


def has_missed(run: Run, goal: Goal) -> bool:
    """Return whether a run came to an end that is not ``goal``.

    A task that succeeded was ready on the way.
    """
    if run.state is RunState.FAILED:
        return True
    if goal == "ended":
        return False
    return run.state is RunState.STOPPED or run.reason.startswith("rollout failed")


def _pinned(documents: Sequence[Document], models: Mapping[str, LockedModel] | None) -> Sequence[Document]:
    return (
        [pinned(document, models.get(document.spec.name)) for document in documents] if models else documents
    )


def _speaks_of_volumes(document: Document) -> bool:
    spec = document.spec
    return isinstance(spec, VolumeSpec) or any(mount.name for mount in getattr(spec, "volumes", ()))


def _origin() -> Origin:
    from importlib.metadata import version  # email and zipfile: only for plans that are kept

    return Origin(version("modelyard"), digest())


def _without_password(url: str) -> str:
    return re.sub(r"//([^/@:]*):[^/@]*@", r"//\1:***@", url)


def _place(job: Job) -> tuple[int, int]:
    return job.replica, job.node


def _spelled(offer: Offer) -> Offer:
    """Return an offer with its accelerator's catalog name, where the catalog knows it."""
    known = (
        accelerator(offer.accelerator, memory_bytes=offer.vram_bytes or None) if offer.accelerator else None
    )
    if known is None:
        return offer
    capability = offer.compute_capability or known.capability
    return replace(offer, accelerator=known.name, vendor=known.vendor, compute_capability=capability)


def _listed(offer: Offer) -> Offer:
    """Return an offer with the catalog's price added, as it was where the catalog has none."""
    from orchestrator.catalog.pricing import listed  # only for places whose machines are rented

    price = listed(offer.price_list, offer.region, offer.instance_type, spot=offer.spot)
    if price is None:
        return offer
    return replace(offer, price_usd_hour=round(offer.price_usd_hour + price, 6), price_list="")


def spec_of_run(run: Run) -> Mapping[str, object]:
    """Return a run's spec as plain values."""
    plain: Mapping[str, object] = json.loads(run.spec)
    return plain
