"""The life of runs in this process: driven, read, entered and ended."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from orchestrator.api.activity import active
from orchestrator.api.goals import has_arrived
from orchestrator.api.opened import Opened, why_silent
from orchestrator.api.protocol import Goal, RunView
from orchestrator.backend import Forwarder, LogLine
from orchestrator.errors import BackendError, NotFound, StateMoved, Temporary, UsageError
from orchestrator.reconcile import Job, JobState, Run, RunEvent, Wanted
from orchestrator.reconcile.steps import asking, by_hand
from orchestrator.store.leases import this_owner

if TYPE_CHECKING:  # the store imports SQLAlchemy, which a plan on a fresh machine does without
    from orchestrator.loop import Hooks
    from orchestrator.store.records import Store
    from orchestrator.store.values import Artifact

_NO_OUTPUT = frozenset({"no-capacity", "rejected", "quota", "denied"})
"""Reasons of jobs that never had a container."""


def _why_stuck(run: Run, refusals: Mapping[str, Sequence[BackendError]]) -> BackendError | None:
    """Return why a run that is asked to end does not, where trying on is in vain; None while it may."""
    if run.wanted is Wanted.RUN:
        return None
    told = [refusals.get(place, ()) for place in run.template.backends]
    return next((errors[-1] for errors in told if len(errors) >= SURE), None)


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


SURE = 3
"""How often a place is asked in vain before whoever waits for an end there is told to put it right."""


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


class Runs(Opened):
    """Runs on record, and those who drive them."""

    def follow(
        self, names: Sequence[str], goal: Goal, *, hooks: Hooks | None = None, timeout_s: float | None = None
    ) -> bool:
        """Drive the runs until each has reached ``goal`` or its end; False when time ran out.

        Raises:
            BackendError: all that are left are asked to end, at places that are asked with a wrong
                configuration or credentials: that is no matter of time.
        """
        from orchestrator.loop import Hooks  # http, ssl and threads: only where runs are driven

        asked = hooks or Hooks()
        after = self.store.last_serial() if self._told is None else self._told
        teller = _Teller(self.store, frozenset(names), asked.event, after)
        refusals: dict[str, list[BackendError]] = {}

        def unknown(place: str, error: BackendError) -> None:
            if not isinstance(error, Temporary):
                refusals.setdefault(place, []).append(error)
            asked.unknown(place, error)

        def is_there() -> bool:
            teller.tell()
            runs = [run for run in self.runs_on_record() if run.name in names]
            left = [run for run in runs if not has_arrived(run, self.store.jobs(run.id), goal)]
            stuck = [why for run in left if (why := _why_stuck(run, refusals))]
            if stuck and len(stuck) == len(left):
                raise stuck[0]
            return not left

        with self._loop(replace(asked, event=lambda _: teller.tell(), unknown=unknown)) as loop:
            found = loop.drive(is_there, timeout_s=timeout_s)
        teller.tell()
        return found

    def _loop(self, hooks: Hooks | None = None) -> Driver:
        from orchestrator.loop import Hooks, Loop  # http, ssl and threads: only where runs are driven

        return Loop(
            self.store, self.places, owner=this_owner(), clock=self._clock, hooks=hooks or Hooks(),
            refresh=self.places.refresh,
        )  # fmt: skip

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
        from orchestrator.loop import Hooks  # http, ssl and threads: only where runs are driven

        def unknown(place: str, error: BackendError) -> None:
            self._unheard[place] = why_silent(place, error)

        with self._loop(Hooks(unknown=unknown)) as loop:
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

    def ask(
        self, names: Sequence[str], wanted: Wanted, *, hold: Callable[[Run], None] = lambda _run: None
    ) -> None:
        """Write down that the runs shall stop, or be deleted; what is to be deleted stays so.

        ``hold`` is shown each run as it is asked of, and may refuse with an error of its own.

        Raises:
            NotFound: one of them is not on record; nothing was written.
        """
        for name in names:
            if self._run(name).type == "fleet":
                raise UsageError(f"{name!r} is a fleet", fix=f"modelyard fleet delete {name}")
        self._turn_to(names, wanted, hold)

    def _turn_to(
        self, names: Sequence[str], wanted: Wanted, hold: Callable[[Run], None] = lambda _run: None
    ) -> None:
        self._told = self.store.last_serial()
        while True:
            runs = [self._run(name) for name in names]
            for run in runs:
                hold(run)
            turns = [
                asking(run, wanted, at=self._clock(), cause=by_hand(wanted))
                for run in runs
                if run.wanted not in (wanted, Wanted.DELETE)
            ]
            try:
                if turns:
                    self.store.commit(turns, expected={turn.run.id: turn.run.serial for turn in turns})
                return
            except StateMoved:
                continue  # a loop wrote in between: ask of what it wrote


def _place(job: Job) -> tuple[int, int]:
    return job.replica, job.node


def spec_of_run(run: Run) -> Mapping[str, object]:
    """Return a run's spec as plain values."""
    plain: Mapping[str, object] = json.loads(run.spec)
    return plain
