"""The answer of this very process: the record is opened, and places are asked, when there is a need."""

from __future__ import annotations

import difflib
import json
import os
import re
import threading
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from orchestrator.api.activity import active
from orchestrator.api.goals import has_arrived
from orchestrator.api.planning import Planner
from orchestrator.api.protocol import FleetView, Goal, Offers, Orphan, Plans, Rehearsal, RunView, Stray
from orchestrator.api.rehearsal import rehearse
from orchestrator.apply import (
    NOTHING_LOST,
    Consent,
    Deletion,
    FleetPlan,
    FleetRecord,
    VolumePlan,
    require_consent,
    require_unused,
)
from orchestrator.apply.drift import Drift, drifts
from orchestrator.apply.recording import record
from orchestrator.backend import (
    Backend,
    Can,
    Check,
    Forwarder,
    HeldMachine,
    Host,
    HostKeeper,
    Leave,
    LogLine,
    Machine,
    Offer,
    Phase,
    Rent,
    Renter,
    Volume,
    ZonedVolumes,
)
from orchestrator.catalog.hardware import accelerator
from orchestrator.errors import (
    AuthFailed,
    BackendError,
    ModelyardError,
    NotFound,
    StateMoved,
    Unreachable,
    UsageError,
)
from orchestrator.places import Places, Recorded, fleet_place, read_mirrors, read_places, rented_place
from orchestrator.planner.mirrors import Mirrors
from orchestrator.reconcile import Job, JobState, Run, RunEvent, Turn, Wanted
from orchestrator.spec.interpolation import is_secret_name
from orchestrator.spec.models import Fleet, spec_of
from orchestrator.store import current_fleets, current_runs, current_secrets, open_store
from orchestrator.store.leases import this_owner
from orchestrator.store.urls import sqlite_path
from orchestrator.store.values import MAIN, Cordon
from orchestrator.store.values import Fleet as KeptFleet
from orchestrator.store.values import Volume as KeptVolume

if TYPE_CHECKING:  # the store imports SQLAlchemy, which a plan on a fresh machine does without
    from orchestrator.loop import Hooks
    from orchestrator.store.records import Store
    from orchestrator.store.values import Artifact


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


class Driver(Protocol):
    """What drives runs while a command waits, or looks on while somebody else does."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of what was taken."""

    def settle(self) -> None:
        """See to what there is to do at this moment."""

    def drive(self, until: Callable[[], bool], *, timeout_s: float | None = None) -> bool:
        """Go on until ``until`` holds; False when time ran out first."""


class Local(Planner):
    """The answers of this process: nothing has to be started first.

    The record is opened when it is first needed, and places are built when they are first
    asked: a plan that changes nothing touches neither.

    Args:
        url: Where the record is.
        config: The configuration of places, None for the defaults.
        environ: Where the values of bare variables come from.
        clock: The time, in UTC.
        project: Whose runs, volumes and secrets are seen and made; None sees all, and makes them in
            the project ``main``.
        wishes: Options of backends that this command asks for, whatever is configured.
    """

    def __init__(
        self,
        url: str,
        *,
        config: Path | None,
        environ: Mapping[str, str] = os.environ,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        project: str | None = None,
        wishes: Mapping[str, object] = MappingProxyType({}),
    ) -> None:
        super().__init__(self, environ=environ, clock=clock)
        self._wishes = wishes
        self._url = url
        self._config = config
        self._project = project
        self._told: int | None = None
        """The last event before what this process asked for; what follows is told."""

    @cached_property
    def places(self) -> Places:
        """The configured backends."""
        configured = [replace(place, wishes=self._wishes) for place in read_places(self._config)]
        return Places(configured, recorded=self._recorded_places)

    def _recorded_places(self) -> Recorded:
        if "store" in self.__dict__ or sqlite_path(self._url) is None:  # a server is not asked twice
            fleets, cordons = self.store.fleets(), self.store.cordons()
        else:
            fleets, cordons = current_fleets(self._url)
        return recorded_places(fleets, cordons, wishes=self._wishes, machines=self._machines)

    def _machines(self, fleet: str) -> Sequence[HeldMachine]:
        return machines_of(self.store, fleet)

    @cached_property
    def store(self) -> Store:
        """The record."""
        return open_store(self._url, secret_key=self._environ.get("MODELYARD_SECRET_KEY"))

    def close(self) -> None:
        """Let go of the record, where it was opened."""
        if "store" in self.__dict__:
            self.store.close()

    @property
    def has_asked(self) -> bool:
        """Whether this process wrote down that something shall be, or shall end."""
        return self._told is not None

    # What a plan asks ------------------------------------------------------------------------

    def rehearse(self, plans: Plans) -> Mapping[str, Rehearsal]:
        """Return what clusters say of plans that are theirs to keep, by run; writes nothing."""
        return rehearse(plans, self.places)

    def record_of(self, names: Collection[str] | None) -> Mapping[str, Run]:
        """Return the runs on record by name: those of ``names``, or all; asks no place.

        Raises:
            UsageError: a name is taken by a run of another project.
        """
        found = {run.name: run for run in self._all_runs()}
        for name in names or ():
            if name in found and not self._is_ours(found[name].project):
                raise UsageError(
                    f"another project has a run called {name!r}", fix="choose another name for yours"
                )
        return {name: run for name, run in found.items() if self._is_ours(run.project)}

    def _all_runs(self) -> Sequence[Run]:
        return self.store.runs() if "store" in self.__dict__ else current_runs(self._url)

    def kept_volumes(self) -> Mapping[str, KeptVolume]:
        """Return the volumes on record by name."""
        return {v.name: v for v in self.store.volumes() if self._is_ours(v.project)}

    def secret_names(self) -> Collection[str]:
        """Return the names of the secrets on record."""
        if self._project in (None, MAIN) and "store" not in self.__dict__:
            return {name for name in current_secrets(self._url) if ":" not in name}
        return {name for name, _ in self.secrets()}

    def abilities(self) -> Mapping[str, frozenset[Can]]:
        """Return what each place is able to do, preferred ones first."""
        return {name: backend.can for name, backend in self._open_places()}

    def _open_places(self) -> list[tuple[str, Backend]]:
        """Return the places that this project may use."""
        return [(name, self.places[name]) for name in self.places if self._may_use(name)]

    def _may_use(self, place: str) -> bool:
        return self.places.is_open_to(place, self._project)

    def fleet_records(self) -> Mapping[str, FleetRecord]:
        """Return the fleets on record by name, with who is on them.

        Those of other projects are among them: a name is taken across projects.
        """
        fleets = self.store.fleets()
        on = self._on([fleet.name for fleet in fleets]) if fleets else {}
        active = self.store.active_runs() if fleets else []
        return {
            fleet.name: FleetRecord(
                fleet,
                on.get(fleet.name, {}),
                tuple(run.name for run in active if fleet.name in run.template.backends),
            )
            for fleet in fleets
        }

    def _on(self, places: Collection[str]) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
        """Return the runs with a launch that has not ended, by place and host."""
        found: dict[str, dict[str, set[str]]] = {}
        for job in self.store.jobs():
            if job.backend in places and not job.state.is_final:
                run = job.name.rsplit("-", 3)[0]
                found.setdefault(job.backend, {}).setdefault(job.machine, set()).add(run)
        return {p: {host: tuple(sorted(runs)) for host, runs in on.items()} for p, on in found.items()}

    def expect(self, fleets: Sequence[Fleet]) -> frozenset[str]:
        """Count on the hosts of fleets that are about to be applied; return the names it could."""
        own = [replace(fleet_place(each), wishes=self._wishes) for each in fleets if each.ssh_config]
        own += [rented_place(each, self._machines(each.name)) for each in fleets if not each.ssh_config]
        return self.places.expect(own)

    def mirrors(self) -> Mirrors:
        """Return where images and models are had from, as the configuration says."""
        return read_mirrors(self._config)

    def _is_ours(self, project: str) -> bool:
        return self._project in (None, project)

    # Apply -----------------------------------------------------------------------------------

    # Plan and apply --------------------------------------------------------------------------

    def apply(
        self,
        plans: Plans,
        *,
        consent: Consent = NOTHING_LOST,
        variables: Mapping[str, str] | None = None,
        message: str = "",
    ) -> tuple[str, ...]:
        """Write down what the plans say; volumes are made at once.

        Args:
            plans: What was planned.
            consent: What may be lost.
            variables: Where the values of bare variables come from; None is this process's environment.
            message: What the events of it say.

        Raises:
            UsageError: the plans lose what ``consent`` does not allow to be lost.
        """
        require_consent(plans, consent)
        self._told = self.store.last_serial()
        fleets = [plan for plan in plans if isinstance(plan, FleetPlan) and plan.action != "unchanged"]
        if fleets:
            self._require_ours(fleets)
            self.places.expect(())  # back to what is on record: hosts that leave are in no plan
        for fleet in fleets:
            for host, _ in fleet.leaving:
                self._clear(fleet.name, host)
        names = record(
            plans, self.store, environ=self._environ if variables is None else variables,
            now=self._clock(), new_id=lambda: uuid.uuid4().hex, project=self._project or MAIN,
            message=message,
        )  # fmt: skip
        if fleets:
            self.places.refresh()
        for plan in plans:
            if isinstance(plan, VolumePlan) and plan.action != "unchanged":
                self._make_volume(plan)
        return names

    def _make_volume(self, plan: VolumePlan) -> None:
        place, spec = self.places[plan.backend], plan.spec
        if isinstance(place, ZonedVolumes):
            place.create_volume_in(plan.name, size_bytes=spec.size, zone=spec.availability_zone)
        else:
            place.create_volume(plan.name, size_bytes=spec.size)

    def finish_deletions(self, plans: Plans, *, hooks: Hooks | None = None) -> None:
        """See the runs off that the plans delete, then delete the plans' volumes.

        Runs that an earlier plan was to delete are seen off too, where it was cut short: they may
        still hold a volume.
        """
        deletions = [plan for plan in plans if isinstance(plan, Deletion)]
        leaving = [run.name for run in self.runs_on_record() if run.wanted is Wanted.DELETE]
        if deletions and leaving:
            self.follow(leaving, "deleted", hooks=hooks)
        for deletion in deletions:
            if deletion.type == "volume":
                self.delete_volume(deletion.name)
            elif deletion.type == "fleet":
                self.delete_fleet(deletion.name)

    def _require_ours(self, fleets: Sequence[FleetPlan]) -> None:
        known = {fleet.name: fleet for fleet in self.store.fleets()}
        for plan in fleets:
            if plan.name in known and not self._is_ours(known[plan.name].project):
                raise UsageError(
                    f"another project has a fleet called {plan.name!r}", fix="choose another name for yours"
                )

    def _clear(self, place: str, host: str | None = None) -> None:
        """Remove what is on a host that leaves, or on all of a place; one that is silent keeps it."""
        backend = self.places[place]
        try:
            for instance in backend.instances():
                if host in (None, instance.machine):
                    backend.remove(instance.name)
        except BackendError:
            return

    def drift(self) -> tuple[Drift, ...]:
        """Return where the places differ from the record, which is left as it is."""
        volumes = self.kept_volumes().values()
        found = drifts(
            self.store.runs(),
            self.store.jobs(),
            instances={name: backend.instances() for name, backend in self._answering()},
            volumes=[(volume.backend, volume.name) for volume in volumes],
            held={
                name: {volume.name for volume in self.places[name].volumes()}
                for name in sorted({volume.backend for volume in volumes})
            },
        )
        theirs = {run.name for run in self.store.runs() if not self._is_ours(run.project)}
        return tuple(drift for drift in found if drift.run not in theirs)

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
            runs = {run.name: run for run in self.runs_on_record()}
            return all(
                name not in runs or has_arrived(runs[name], self.store.jobs(runs[name].id), goal)
                for name in names
            )

        with self._loop(replace(asked, event=lambda _: teller.tell())) as loop:
            found = loop.drive(is_there, timeout_s=timeout_s)
        teller.tell()
        return found

    def _loop(self, hooks: Hooks | None = None) -> Driver:
        from orchestrator.loop import Hooks, Loop  # http, ssl and threads: only where runs are driven

        return Loop(
            self.store, self.places, owner=this_owner(), clock=self._clock, hooks=hooks or Hooks(),
            refresh=self.places.refresh,
        )  # fmt: skip

    # Reading ---------------------------------------------------------------------------------

    def runs(self) -> list[RunView]:
        """Return every run, by name, brought up to date first."""
        self._settle()
        return self.on_record()

    def on_record(self) -> list[RunView]:
        """Return every run, by name, as it is on record, asking no backend."""
        return self.views(self.runs_on_record())

    def views(self, runs: Sequence[Run]) -> list[RunView]:
        """Return these runs with their jobs."""
        jobs = self.store.jobs_of([run.id for run in runs])
        return [RunView(run, tuple(jobs[run.id])) for run in runs]

    def runs_on_record(self) -> list[Run]:
        """Return every run by name, without its jobs."""
        return [run for run in self.store.runs() if self._is_ours(run.project)]

    def _run(self, name: str) -> Run:
        run = self.store.run(name)
        if not self._is_ours(run.project):
            raise NotFound(f"no run {name!r}", fix="modelyard ps lists the runs")
        return run

    def run(self, name: str) -> RunView:
        """Return one run, brought up to date first."""
        self._settle()
        view = self.recorded(name)
        return view if view.artifacts else self._with_artifacts(view)

    def _with_artifacts(self, view: RunView) -> RunView:
        """Read what training left where nobody could when it ended."""
        finished = [job for job in view.jobs if job.state is JobState.SUCCEEDED and job.node == 0]
        if not view.run.template.resumes or not finished:
            return view
        from orchestrator.loop.training import keep_artifacts

        last = max(finished, key=lambda job: job.attempt)
        keep_artifacts(self.store, self.places[last.backend], view.run, last, now=self._clock())
        return self.recorded(view.run.name)

    def recorded(self, name: str) -> RunView:
        """Return one run as it is on record, asking no backend."""
        run = self._run(name)
        return RunView(run, tuple(self.store.jobs(run.id)), tuple(self.store.artifacts(run.id)))

    def left_by(self, name: str) -> Sequence[Artifact]:
        """Return what a run of training left; nothing where it is not on record."""
        try:
            return self.run(name).artifacts
        except NotFound:
            return ()

    def events(self, name: str | None, *, after: int = 0) -> list[tuple[int, RunEvent]]:
        """Return events with their serials, oldest first."""
        self._settle()
        found: list[tuple[int, RunEvent]] = []
        while page := self.store.events(name, after=found[-1][0] if found else after, project=self._project):
            found += page
        return found

    def _settle(self) -> None:
        """Let what happened since the last command reach the record."""
        with self._loop() as loop:
            loop.settle()

    def output(self, launch: str, *, follow: bool) -> Iterator[LogLine]:
        """Yield the output of one launch."""
        view = self.recorded(launch.rsplit("-", 3)[0])
        job = next((job for job in view.jobs if job.name == launch), None)
        if job is None:
            raise NotFound(f"no launch {launch!r}", fix=f"modelyard show {view.run.name}")
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

    def running_job(self, name: str, *, replica: int = 0, node: int = 0) -> Job:
        """Return the job that runs at one place of a run.

        Raises:
            NotFound: none does.
        """
        return self._latest(name, replica, node, alive=True)

    def execute(
        self, name: str, command: Sequence[str], *, replica: int = 0, node: int = 0, tty: bool
    ) -> int:
        """Run a command inside a running job on this terminal; return its exit code."""
        job = self.running_job(name, replica=replica, node=node)
        with active(self.store, self.store.run(name), self._clock):
            return self.places[job.backend].execute(job.name, command, tty=tty)

    def container(self, name: str, *, replica: int = 0, node: int = 0) -> str:
        """Return what a running job's container is called on this machine, "" where there is none."""
        job = self.running_job(name, replica=replica, node=node)
        found = (i.container for i in self.places[job.backend].instances() if i.name == job.name)
        return next(found, "")

    @contextmanager
    def forwarded(
        self, name: str, *, replica: int = 0, node: int = 0
    ) -> Iterator[Mapping[int, tuple[str, int]]]:
        """Give addresses of this machine that lead to a running job's ports, where it has none yet."""
        job = self.running_job(name, replica=replica, node=node)
        launch = self.store.run(name).template.of_node(job.node)
        with ExitStack() as open_ports:
            found: dict[int, tuple[str, int]] = {}
            if isinstance(self.places[job.backend], Forwarder) and not job.ports:
                for port in launch.ports:
                    found[port.container] = open_ports.enter_context(self.reached(job, port.container))
            yield found

    def require_port(self, job: Job, port: int) -> None:
        """Refuse a port that does not lead from here to a running job.

        Raises:
            NotFound: always then.
        """
        if port not in job.ports and not (
            isinstance(self.places[job.backend], Forwarder) and port in self._opens(job)
        ):
            raise NotFound(f"{job.name} has no port {port}", fix="its spec says which, with ports or port")

    def _opens(self, job: Job) -> Collection[int]:
        run = self.store.run(job.name.rsplit("-", 3)[0])
        return {port.container for port in run.template.of_node(job.node).ports}

    @contextmanager
    def reached(self, job: Job, port: int) -> Iterator[tuple[str, int]]:
        """Give the address at which this process reaches a port of a running job, until left.

        Raises:
            NotFound: it has no such port.
        """
        self.require_port(job, port)
        place = self.places[job.backend]
        if port in job.ports:
            yield job.ports[port]
            return
        assert isinstance(place, Forwarder)  # asked for above
        with place.forwarded(job.name, port) as address:
            yield address

    # Ending ----------------------------------------------------------------------------------

    def ask(self, names: Sequence[str], wanted: Wanted) -> None:
        """Write down that the runs shall stop, or be deleted; what is to be deleted stays so.

        Raises:
            NotFound: one of them is not on record; nothing was written.
        """
        for name in names:
            if self._run(name).type == "fleet":
                raise UsageError(f"{name!r} is a fleet", fix=f"modelyard fleet delete {name}")
        self._turn_to(names, wanted)

    def _turn_to(self, names: Sequence[str], wanted: Wanted) -> None:
        self._told = self.store.last_serial()
        while True:
            runs = [self._run(name) for name in names]
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
        denied: frozenset[str] = frozenset()
        for name, backend in self._open_places():
            try:
                found += [self._priced(_spelled(offer)) for offer in backend.offers()]
            except BackendError as error:
                if self.places.is_required(name) or not isinstance(error, Unreachable):
                    silent[name] = f"{error.what} ({error.fix})" if error.fix else error.what
                if isinstance(error, AuthFailed):
                    denied |= {name}
        return Offers(tuple(found), silent, denied)

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
            for name, backend in self._open_places()
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
            found.append(("record", Check.failed("opens", error)))
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

    def strays(self) -> list[Stray]:
        """Return machines that are paid for and serve no run on record, ordered by place and id."""
        renters = {name: place for name, place in self.places.items() if isinstance(place, Renter)}
        if not renters:
            return []
        runs = {run.name: run for run in self.store.runs()}
        jobs = {job.name: job for job in self.store.jobs()}
        now = self._clock()
        return [
            Stray(name, machine, why)
            for name, renter in renters.items()
            for machine in renter.machines()
            if (why := why_stray(machine, runs.get(machine.run), jobs.get(machine.launch), now=now))
        ]

    def terminate(self, strays: Sequence[Stray]) -> None:
        """End them, and all that belongs to them."""
        for stray in strays:
            backend = self.places[stray.backend]
            assert isinstance(backend, Renter)  # none else has machines
            backend.terminate(stray.machine.id)

    def volumes(self) -> list[tuple[str, Volume]]:
        """Return every volume on record with its backend, as the backend has it."""
        held: dict[str, dict[str, Volume]] = {}
        found: list[tuple[str, Volume]] = []
        for volume in self.kept_volumes().values():
            if volume.backend not in held:
                held[volume.backend] = {v.name: v for v in self.places[volume.backend].volumes()}
            found.append((volume.backend, held[volume.backend].get(volume.name, Volume(volume.name))))
        return found

    def delete_volume(self, name: str) -> None:
        """Delete a volume and what it holds."""
        volume = self.kept_volumes().get(name)
        if volume is None:
            raise NotFound(f"no volume {name!r}", fix="modelyard volume list")
        backend = self.places[volume.backend]
        self._let_go(name, backend)
        backend.delete_volume(name)
        self.store.forget_volume(name)

    def _let_go(self, volume: str, backend: Backend) -> None:
        """Remove what ended while its run had a volume that it has no more: it would hold it for ever."""
        holders = {each for found in backend.volumes() if found.name == volume for each in found.used_by}
        if not holders:
            return
        mounting = {
            run.name
            for run in self.store.runs()
            if any((m.kind, m.source) == ("volume", volume) for m in run.template.launch.mounts)
        }
        for instance in backend.instances():
            if instance.name in holders and instance.run not in mounting and instance.phase is Phase.EXITED:
                backend.remove(instance.name)

    def fleets(self, name: str | None = None) -> list[FleetView]:
        """Return every fleet by name, or one, with its hosts as they are at this moment.

        Raises:
            NotFound: there is no such fleet.
        """
        keepers = {
            place: backend
            for place, backend in self._open_places()
            if isinstance(backend, HostKeeper) and name in (None, place)
        }
        if name is not None and not keepers:
            raise NotFound(f"no fleet {name!r}", fix="modelyard fleet list")
        if not keepers:
            return []
        self._settle()
        on, applied = self._on(keepers), {fleet.name for fleet in self.store.fleets()}
        holding = {run.name: run for run in self.store.runs() if run.type == "fleet"}
        return [
            self._rented(place, self.places[place], on.get(place, {}), holding[place])
            if place in holding
            else FleetView(place, tuple(backend.hosts()), on.get(place, {}), place in applied)
            for place, backend in sorted(keepers.items())
        ]

    def _rented(self, name: str, backend: Backend, on: Mapping[str, tuple[str, ...]], run: Run) -> FleetView:
        """Return a fleet of rented machines: those that are up, and those on their way."""
        assert isinstance(backend, HostKeeper)  # asked for above
        up = tuple(backend.hosts())
        known, holding = {host.name for host in up}, run.template.holding
        assert holding is not None  # every fleet's run has it
        coming = tuple(
            Host(job.machine or job.name, "booting", rent=job.rent)
            for job in self.store.jobs(run.id)
            if not job.state.is_final and (not job.machine or job.machine not in known)
        )
        nodes = str(holding.most) if holding.least == holding.most else f"{holding.least}..{holding.most}"
        return FleetView(name, (*up, *coming), on, nodes=nodes, note=run.reason)

    def delete_fleet(self, name: str) -> None:
        """Let go of a fleet's hosts, and end those that it rents; what ended there goes with its output.

        Raises:
            NotFound, UsageError: as for ``end_fleet``.
        """
        if self.end_fleet(name):
            self.follow([name], "deleted")
            self.places.refresh()

    def end_fleet(self, name: str) -> bool:
        """Let go of a fleet's hosts; return whether it rents them, and is gone once they have ended.

        Raises:
            NotFound: no spec asked for it.
            UsageError: runs or volumes are on it.
        """
        known = self.fleet_records().get(name)
        if known is None or not self._is_ours(known.fleet.project):
            configured = name in self.places and self._may_use(name)
            fix = "take it out of the configuration" if configured else "modelyard fleet list"
            raise NotFound(f"no fleet {name!r} was applied", fix=fix)
        require_unused(known)
        if volumes := sorted(v.name for v in self.store.volumes() if v.backend == name):
            raise UsageError(
                f"fleet {name!r} keeps volumes: {', '.join(volumes)}",
                fix=f"modelyard volume delete {volumes[0]}",
            )
        if name in self.places:
            self._clear(name)
        if any(run.name == name and run.type == "fleet" for run in self.store.runs()):
            self._turn_to([name], Wanted.DELETE)  # with the last of the run goes the fleet
            return True
        self.store.forget_fleet(name)
        self.places.refresh()
        return False

    def cordon(self, fleet: str, host: str, *, reason: str = "", leave: Leave = "") -> None:
        """Let nothing new start on a host; with ``leave`` also move away what is there.

        Raises:
            NotFound: there is no such fleet, or no such host in it.
        """
        self._require_host(fleet, host)
        self.store.put_cordon(Cordon(fleet, host, self._clock(), reason, leave))
        self.places.refresh()

    def uncordon(self, fleet: str, host: str) -> None:
        """Let launches start on a host again.

        Raises:
            NotFound: there is no such fleet, or no such host in it.
        """
        self._require_host(fleet, host)
        self.store.forget_cordon(fleet, host)
        self.places.refresh()

    def _require_host(self, fleet: str, host: str) -> None:
        backend = self.places[fleet] if fleet in self.places and self._may_use(fleet) else None
        if not isinstance(backend, HostKeeper):
            raise NotFound(f"no fleet {fleet!r}", fix="modelyard fleet list")
        names = backend.host_names()
        if host not in names:
            near = difflib.get_close_matches(host, names, 1)
            fix = f"did you mean {near[0]!r}?" if near else f"modelyard fleet show {fleet} lists them"
            raise NotFound(f"fleet {fleet!r} has no host {host!r}", fix=fix)

    def emptied(
        self, fleet: str, host: str, *, hooks: Hooks | None = None, timeout_s: float | None = None
    ) -> bool:
        """Drive runs until none has a launch on a host; False when time ran out."""
        with self._loop(hooks) as loop:
            return loop.drive(lambda: not self._on([fleet]).get(fleet, {}).get(host), timeout_s=timeout_s)

    def secrets(self) -> list[tuple[str, datetime]]:
        """Return the names of the secrets, and when each was last set."""
        return self.store.secrets.of(self._project).list()

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
        self.store.secrets.of(self._project).set(name, value, now=self._clock())

    def delete_secret(self, name: str) -> None:
        """Forget a secret."""
        self.store.secrets.of(self._project).delete(name)


def recorded_places(
    fleets: Sequence[KeptFleet],
    cordons: Sequence[Cordon],
    *,
    wishes: Mapping[str, object],
    machines: Callable[[str], Sequence[HeldMachine]],
) -> Recorded:
    """Return what the record says of places, as places take it; ``machines`` are those a fleet holds."""
    held: dict[str, dict[str, dict[str, str]]] = {}
    for cordon in cordons:
        held.setdefault(cordon.place, {})[cordon.host] = {"reason": cordon.reason, "leave": cordon.leave}
    places = []
    for fleet in fleets:
        spec = spec_of(json.loads(fleet.spec))
        assert isinstance(spec, Fleet)  # the table holds no other type
        if spec.ssh_config:
            places.append(replace(fleet_place(spec, project=fleet.project), wishes=wishes))
        else:
            places.append(rented_place(spec, machines(spec.name), project=fleet.project))
    return Recorded(tuple(places), held)


def machines_of(store: Store, fleet: str) -> Sequence[HeldMachine]:
    """Return the machines of a fleet that are up, as the record has them."""
    try:
        run = store.run(fleet)
    except NotFound:
        return ()
    return [
        HeldMachine(
            job.machine, job.backend, job.name, job.address, job.rent or Rent(""),
            leaving=job.stop_asked_at is not None,
        )
        for job in store.jobs(run.id)
        if job.state is JobState.READY and job.machine and job.address
    ]  # fmt: skip


GRACE = timedelta(minutes=10)
"""A machine this young may be somebody's who is just about to write it down."""


def why_stray(machine: Machine, run: Run | None, job: Job | None, *, now: datetime) -> str | None:
    """Say why a machine serves nobody; None where it serves a run, or is kept for the next."""
    if machine.since is not None and now - machine.since < GRACE:
        return None
    if not machine.launch:
        over = machine.expires_at is not None and now - machine.expires_at > GRACE
        return "kept longer than it should be" if over else None
    if run is None:
        return f"no run {machine.run!r} is on record"
    if job is None:
        return f"no launch {machine.launch!r} is on record"
    return f"run {run.name!r} has ended" if run.state.is_final else None


_NO_OUTPUT = frozenset({"no-capacity", "rejected", "quota", "denied"})
"""Reasons of jobs that never had a container."""


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
    each = price / offer.nodes  # machines that are one have one price
    return replace(offer, price_usd_hour=round(offer.price_usd_hour + each, 6), price_list="")


def spec_of_run(run: Run) -> Mapping[str, object]:
    """Return a run's spec as plain values."""
    plain: Mapping[str, object] = json.loads(run.spec)
    return plain
