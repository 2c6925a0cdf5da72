"""The loop: every pass reads the record and the backends, decides, writes down, and acts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Self

from orchestrator.backend import Backend, Group, GroupBackend, HostKeeper, Instance, Launch, Renter
from orchestrator.errors import BackendError, NoCapacity, StateMoved, Temporary
from orchestrator.frozen import frozen
from orchestrator.loop.figures import Figures
from orchestrator.loop.leases import LOOK_S, Leases
from orchestrator.loop.observe import FIRST_PAUSE_S, MOST_PAUSE_S, Observer
from orchestrator.loop.queue import Queue
from orchestrator.loop.replicas import Replicas, may_tell
from orchestrator.loop.rest import Rest, is_quiet
from orchestrator.loop.secrets import secrets_of, with_variables
from orchestrator.loop.words import Words
from orchestrator.reconcile import Job, JobState, Run, RunEvent, Wanted
from orchestrator.reconcile.decide import reconcile, start_failed
from orchestrator.reconcile.fleets import Gate, Guest, gate_of, reconcile_fleet
from orchestrator.reconcile.groups import GroupSeen, reconcile_group
from orchestrator.reconcile.steps import (
    ApplyGroup,
    DeleteGroup,
    Forget,
    ForgetJob,
    Observed,
    Record,
    Release,
    Remove,
    Start,
    Step,
    Stop,
    Told,
    Turn,
    Write,
)
from orchestrator.units import backoff_s

if TYPE_CHECKING:  # it imports SQLAlchemy, which a plan on a fresh machine does without
    from orchestrator.loop.training import Follower
    from orchestrator.store.records import Store


@frozen
class _PutOff:
    """How often a place refused to end something, until when it is not asked again, and its words."""

    tries: int = 0
    until: datetime = datetime.min.replace(tzinfo=UTC)
    words: str = ""


Effect = Start | Stop | Remove | Release | ApplyGroup | DeleteGroup


def _say_nothing(*_: object) -> None:
    """Stand in for a hook that nobody set."""


@frozen
class Hooks:
    """What the world outside may want to know; each is called from any thread.

    ``boundary`` is told of every step before and after it takes effect, by name: tests that kill
    the process do it there. ``serving`` is asked how many requests launches work on, where a gateway
    runs beside the loop.
    """

    event: Callable[[RunEvent], None] = _say_nothing
    progress: Callable[[str, str], None] = _say_nothing
    postponed: Callable[[str, str], None] = _say_nothing
    unknown: Callable[[str, BackendError], None] = _say_nothing
    boundary: Callable[[str], None] = _say_nothing
    serving: Callable[[], Mapping[str, int]] = dict


class Loop:
    """Drives runs that nobody else drives.

    Args:
        store: The record.
        backends: Every configured place by name.
        owner: Who we are to other loops on this record: ``host:pid:start``.
        clock: The time, in UTC.
        hooks: What the world outside wants to know.
        look_s: How often the record is read while others drive some of the runs; None leaves it to
            whoever calls ``wake``.
        share: How many of so many active runs are ours to drive; by default all that are free.
        refresh: Called before each pass, to take up places that came, changed or went.
    """

    def __init__(
        self,
        store: Store,
        backends: Mapping[str, Backend],
        *,
        owner: str,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        hooks: Hooks | None = None,
        look_s: float | None = LOOK_S,
        share: Callable[[int], int] = lambda active: active,
        refresh: Callable[[], None] = _say_nothing,
    ) -> None:
        self._refresh = refresh
        self._store = store
        self._backends = backends
        self._clock = clock
        self._hooks = hooks or Hooks()
        self.figures = Figures()
        self._woken = threading.Event()
        self._pool = ThreadPoolExecutor(max_workers=16, thread_name_prefix="loop")
        self._observer = Observer(backends, self._pool, time.monotonic, self._woken.set, self._hooks.unknown)
        self._replicas = Replicas(store, self._pool, self._woken.set)
        self._active: Sequence[Run] = ()
        """Every run that is not over, those that others drive too."""
        self._words = Words(backends, self._pool, time.monotonic, self._woken.set)
        self._queue = Queue()
        self._unheard: Mapping[str, Collection[str]] = {}
        """Machines of which nothing is known in this pass, by place; most places have none such."""
        self._gates: Mapping[str, Gate] = {}
        """Who may start on the machines of each rented fleet, by its name."""
        self._rests: dict[str, Rest] = {}
        """Runs of which the last pass left everything as it was, by id."""
        self._under_way: dict[str, Future[Write | None]] = {}
        self._asked_for: frozenset[str] = frozenset()
        self._begun: set[str] = set()
        """Launches that this process wrote down before anybody could have asked for them."""
        self._refused: dict[str, tuple[str, str]] = {}
        self._put_off: dict[str, _PutOff] = {}
        """What places refused to end, by the name that it is under way as."""
        self._leases = Leases(store, owner, clock, look_s=look_s, share=share)
        self._wake_at: datetime | None = None
        self._follower: Follower | None = None
        self._trains: dict[str, Run] = {}
        """Runs of training among those that are driven, by id."""

    def close(self) -> None:
        """Wait for actions under way, write down what became of them, and let go of the runs."""
        self._observer.close()
        self._pool.shutdown(wait=True)
        self._collect()
        self._leases.close()

    def __enter__(self) -> Self:
        return self

    def wake(self) -> None:
        """Have the record looked at soon, from any thread."""
        self._woken.set()

    def __exit__(self, *_: object) -> None:
        self.close()

    def drive(
        self,
        until: Callable[[], bool],
        *,
        timeout_s: float | None = None,
        closed: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Pass after pass until ``until`` holds; return False when time ran out first, or it was ``closed``.

        ``until`` is asked when there is nothing to do at the moment, ``closed`` after each pass.
        """
        from orchestrator.loop.training import Follower  # only where runs are driven to an end

        self._follower = Follower(self._backends, self._clock, self._note, self._hooks.progress)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            self._woken.clear()
            settled = not self.step()
            if settled and until():
                return True
            if closed():
                return False
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            if settled:
                self._woken.wait(self._pause_s(left))

    def settle(self) -> None:
        """Pass after pass until there is nothing to do at this moment, actions included."""
        while self.step() or self._under_way:
            if self._under_way:
                self._woken.wait()
                self._woken.clear()

    def step(self) -> bool:
        """One pass over all runs; return whether it wrote or started anything.

        A run whose record moved between reading and writing is left to the next pass.
        """
        began = time.monotonic()
        try:
            return self._pass()
        finally:
            self.figures.passed(time.monotonic() - began, driven=len(self._leases))

    def _pass(self) -> bool:
        moved = self._collect()
        self._refresh()
        self._active = active = self._store.active_runs()
        self._replicas.begin(active)
        runs = self._leases.take(active, is_busy=self._is_busy)
        jobs = self._store.jobs_of([run.id for run in runs])
        self._observe(runs, jobs)
        writes: list[Write] = []
        effects: list[Effect] = []
        self._wake_at = None
        self._trains = {run.id: run for run in runs if run.template.resumes}
        if len(self._rests) > len(runs):
            self._rests = {run.id: self._rests[run.id] for run in runs if run.id in self._rests}
        self._queue.begin(active, jobs, self._clock())
        self._gates = self._decide_fleets(runs, jobs, writes, effects)
        for run in (run for run in runs if run.template.holding is None):
            self._decide(run, jobs.get(run.id, ()), writes, effects)
            self._listen(run, jobs.get(run.id, ()))
        if writes and not self._commit(writes, {run.id: run.serial for run in runs}):
            return True
        carried = [self._carry_out(effect) for effect in effects]
        return bool(writes or any(carried) or moved)

    # Deciding --------------------------------------------------------------------------------

    def _decide(self, run: Run, jobs: Sequence[Job], writes: list[Write], effects: list[Effect]) -> None:
        if run.template.base:
            lacks, is_alone = self._replicas.lacks(run)
            seen = Observed({}, lacks=lacks, is_alone=is_alone)
            step = reconcile(run, jobs, seen, now=self._clock())
            writes += [action for action in step.actions if isinstance(action, Turn | Record | Forget)]
            return
        if self._observer.keeps_groups(run.template.backends[0]):
            self._decide_group(run, jobs, writes, effects)
            return
        found = self._observer.of_run(run.name, _homes(run, jobs))
        if run.wanted is Wanted.DELETE:
            found |= self._gone(found, jobs)
        if run.type == "service" and run.wanted is Wanted.RUN:
            known = {job.name: job for job in jobs}
            found = {name: self._replicas.probed(seen, run, known) for name, seen in found.items()}
        unsure = self._unsure(jobs, found)
        words, unread = self._words.read(found, {job.name for job in jobs if may_tell(job)})
        ahead = self._queue.ahead_of(run)
        replicas, busy = self._replicas, frozenset(self._under_way) | unread | unsure
        observed = Observed(
            found, busy, self._asked_for, self._hooks.serving(), replicas.sick(run, jobs, found), words,
            ahead.run if ahead else "", self._queue.asks_again(run), replicas.loaded(run, jobs, found),
            troubles=replicas.troubles(jobs),
        )  # fmt: skip
        now = self._clock()
        rest = self._rests.pop(run.id, None)
        if rest is not None and rest.holds(run, jobs, observed, now):
            self._rests[run.id] = rest
            self._wake_by(rest.wake_at)
            return
        step = reconcile(run, jobs, observed, now=now)
        if not step.actions and not step.yields and is_quiet(run, jobs, observed):
            self._rests[run.id] = Rest(run, tuple(jobs), found, step.wake_at, observed.loaded)
        self._sort(step, writes, effects)
        if ahead and step.yields:
            self._wake_by(self._queue.yielded(run, ahead))
        else:
            self._queue.went_on(run)

    def _sort(self, step: Step, writes: list[Write], effects: list[Effect]) -> None:
        """Put the actions of a step to what is written and what is carried out then."""
        for action in step.actions:
            if isinstance(action, Start) and (gate := self._gates.get(action.backend)):
                self._pass_gate(action, gate, writes, effects)
            elif isinstance(action, Start | Stop | Remove | Release):
                effects.append(action)
            else:
                writes.append(action)
                if isinstance(action, Record) and action.job.state.is_final:
                    self._queue.ended(action.job.backend)
        self._wake_by(step.wake_at)

    def _pass_gate(self, start: Start, gate: Gate, writes: list[Write], effects: list[Effect]) -> None:
        """Let a launch start on a fleet where a machine has room; else it waits for one, or is refused."""
        name = start.job.name
        backend = self._backends[start.backend]
        assert isinstance(backend, HostKeeper)  # every fleet is
        if start.job.machine or gate.admitted.get(name) in backend.host_names():
            effects.append(start)
        elif why := gate.refused.get(name):
            error = NoCapacity(why, backend=start.backend)
            refused = start_failed(start.job, error, now=self._clock())
            assert refused is not None  # no capacity ends an attempt
            writes.append(refused)
        else:
            self._hooks.progress(name, f"fleet {start.backend} rents a machine for it")

    def _decide_fleets(
        self, ours: Sequence[Run], jobs: Mapping[str, Sequence[Job]], writes: list[Write],
        effects: list[Effect],
    ) -> Mapping[str, Gate]:  # fmt: skip
        """See to the machines of fleets; return who may start on those of each, others' fleets too."""
        fleets = [run for run in self._active if run.template.holding is not None]
        if not fleets:
            return {}
        every = self._store.jobs_of([run.id for run in self._active])
        driven = {run.id for run in ours}
        self._gates = {}
        gates: dict[str, Gate] = {}
        guests: dict[str, list[Guest]] = {fleet.name: [] for fleet in fleets}
        for run in self._active:
            for job in every.get(run.id, ()):
                if job.backend in guests and not job.state.is_final:
                    guests[job.backend].append(Guest(job, run.template.of_node(job.node).resources))
        for fleet in fleets:
            now, on = self._clock(), guests[fleet.name]
            if fleet.id not in driven:
                gates[fleet.name] = gate_of(fleet, every.get(fleet.id, ()), on, now=now)
                continue
            holders = jobs.get(fleet.id, ())
            found = self._observer.of_run(fleet.name, _homes(fleet, holders))
            if fleet.wanted is Wanted.DELETE:
                found |= self._gone(found, holders)
            observed = Observed(found, frozenset(self._under_way), self._asked_for)
            step, gates[fleet.name] = reconcile_fleet(fleet, holders, observed, on, now=now)
            self._sort(step, writes, effects)
        return gates

    def _unsure(self, jobs: Sequence[Job], found: Mapping[str, Sequence[Instance] | None]) -> frozenset[str]:
        """Return the launches that may be on machines of which nothing is known, and are left alone.

        Those that the record has there, and those that another process may have sent there and
        died: what this one begins, it begins on machines that answer.
        """
        if not self._unheard.keys() & found.keys():
            return frozenset()
        seen = {instance.name for there in found.values() for instance in there or ()}
        return frozenset(
            job.name for job in jobs
            if not job.state.is_final and job.name not in seen and (hosts := self._unheard.get(job.backend))
            and (job.machine in hosts or (not job.machine and job.name not in self._begun))
        )  # fmt: skip

    def _gone(self, places: Collection[str], jobs: Sequence[Job]) -> Mapping[str, Sequence[Instance]]:
        """Return places that are configured no more, on which all had ended: nothing is there for us."""
        alive = {job.backend for job in jobs if not job.state.is_final}
        return {name: () for name in places if name not in self._backends and name not in alive}

    def _decide_group(
        self, run: Run, jobs: Sequence[Job], writes: list[Write], effects: list[Effect]
    ) -> None:
        place = run.template.backends[0]
        known, status = self._observer.group(run.name, place)
        busy = _group_key(run.name) in self._under_way
        seen = GroupSeen(known, status, busy, self._refused.get(run.name))
        step = reconcile_group(run, jobs, seen, backend=place, now=self._clock())
        for action in step.actions:
            if isinstance(action, ApplyGroup | DeleteGroup):
                effects.append(action)
            else:
                writes.append(action)
        self._wake_by(step.wake_at)

    def _listen(self, run: Run, jobs: Sequence[Job]) -> None:
        """Follow the output of training that runs; of what another process started, from now on."""
        if self._follower is None or not run.template.resumes:
            return
        for job in jobs:
            if job.state is JobState.RUNNING and job.node == 0:
                since = None if job.name in self._asked_for else self._clock()
                self._follower.follow(run, job, since=since)

    def _note(self, told: Told) -> None:
        """Write down what training told; a run that is gone by now has nobody to read it."""
        self._store.commit([told])
        self._hooks.event(told.event)

    def _wake_by(self, at: datetime | None) -> None:
        if at and (self._wake_at is None or at < self._wake_at):
            self._wake_at = at

    def _observe(self, runs: Sequence[Run], jobs: Mapping[str, Sequence[Job]]) -> None:
        names = {home for run in runs for home in _homes(run, jobs.get(run.id, ()))}
        self._observer.watch(names)
        self._observer.read(names)
        self._unheard = {
            name: hosts
            for name in names
            if isinstance(backend := self._backends.get(name), HostKeeper) and (hosts := backend.unheard())
        }
        alive = {job.name for found in jobs.values() for job in found if not job.state.is_final}
        self._asked_for &= alive
        self._begun &= alive
        self._replicas.forget(alive)
        self._words.forget(alive)

    def _is_busy(self, run: Run) -> bool:
        return any(_is_of(run.name, name) for name in self._under_way)

    def _pause_s(self, left: float | None) -> float:
        """Return how long nothing can be due: a change wakes us before."""
        waits = [self._observer.next_read_s(), self._leases.next_s()]
        if self._wake_at is not None:
            waits.append((self._wake_at - self._clock()).total_seconds())
        waits += self._replicas.next_s()
        if left is not None:
            waits.append(left)
        return max(0.005, min(waits))

    # Acting ----------------------------------------------------------------------------------

    def _commit(self, writes: Sequence[Write], serials: Mapping[str, int]) -> bool:
        """Write down, all or nothing; return False when another process was there first."""
        touched = {_run_id(write) for write in writes}
        self._hooks.boundary("before commit")
        try:
            self._store.commit(writes, expected={i: s for i, s in serials.items() if i in touched})
        except StateMoved:
            return False
        self._hooks.boundary("after commit")
        for write in writes:
            if isinstance(write, Record) and _is_new(write):
                self._begun.add(write.job.name)
            if write.event is not None:
                self._hooks.event(write.event)
            if isinstance(write, Record) and is_finished(write.job) and write.job.run_id in self._trains:
                self._pool.submit(self._keep_artifacts, self._trains[write.job.run_id], write.job)
        return True

    def _keep_artifacts(self, run: Run, job: Job) -> None:
        from orchestrator.loop.training import keep_artifacts

        keep_artifacts(self._store, self._backends[job.backend], run, job, now=self._clock())

    def _carry_out(self, effect: Effect) -> bool:
        """Begin an action, if it is not under way; return False where it was refused and has to wait."""
        name = _key(effect)
        if name in self._under_way:
            return True
        if (off := self._put_off.get(name)) and off.until > self._clock():
            self._wake_by(off.until)
            return False
        if isinstance(effect, Start):
            self._asked_for |= {name}
        future = self._pool.submit(self._act, effect)
        self._under_way[name] = future
        future.add_done_callback(lambda _: self._woken.set())
        return True

    def _act(self, effect: Effect) -> Write | None:
        """Carry out one action; return what is to be written down of it."""
        backend = self._backends[effect.backend]
        verb = type(effect).__name__.lower()
        self._hooks.boundary(f"before {verb}")
        try:
            match effect:
                case Start(_, _, launch):
                    self._start(backend, launch)
                case Stop(_, name, grace_s):
                    backend.stop(name, grace_s=grace_s)
                case Remove(_, name):
                    backend.remove(name)
                case Release(_, name, keep_s):
                    assert isinstance(backend, Renter)
                    backend.release(name, keep_s=keep_s)
                case ApplyGroup(_, group):
                    self._apply_group(backend, group)
                case DeleteGroup(_, name, grace_s):
                    assert isinstance(backend, GroupBackend)
                    backend.delete_group(name, grace_s=grace_s)
        except BackendError as error:
            is_over = not isinstance(error, Temporary)
            self.figures.acted(verb, effect.backend, "refused" if is_over else "postponed")
            if isinstance(effect, ApplyGroup) and not isinstance(error, Temporary):
                self._refused[effect.group.name] = effect.group.digest(), error.line
            if isinstance(effect, Start) and (record := start_failed(effect.job, error, now=self._clock())):
                return record
            if isinstance(error, Temporary):
                if isinstance(effect, Start):
                    self._asked_for -= {effect.launch.name}  # the asking came to its end: ask again
                    self._hooks.postponed(effect.launch.name, error.what)
                self._observer.failed(effect.backend, error)
            elif not isinstance(effect, Start | ApplyGroup):
                return self._refused_to_end(effect, error)
            return None
        finally:
            self._observer.changed(effect.backend)
        self._put_off.pop(_key(effect), None)
        self.figures.acted(verb, effect.backend, "done")
        self._hooks.boundary(f"after {verb}")
        return None

    def _refused_to_end(self, effect: Effect, error: BackendError) -> Told | None:
        """Put off what a place will not end, each time for longer; return why, where that is new."""
        name = _key(effect)
        before = self._put_off.get(name, _PutOff())
        now = self._clock()
        tries = before.tries + 1
        pause_s = backoff_s(tries, first_s=FIRST_PAUSE_S, most_s=MOST_PAUSE_S)
        self._put_off[name] = _PutOff(tries, now + timedelta(seconds=pause_s), error.line)
        run = next((each for each in self._active if _is_of(each.name, name)), None)
        if run is None or error.line == before.words:
            return None
        subject, state = name.removeprefix(_group_key("")), run.state.value
        event = RunEvent(
            run.id, run.name, now, subject, state, state, "refused", f"{subject}:refused", error.line
        )
        return Told(event)

    def _start(self, backend: Backend, launch: Launch) -> None:
        if isinstance(backend, HostKeeper) and backend.env:
            launch = with_variables(launch, backend.env)
        secrets = secrets_of(self._store, backend.name, launch)
        backend.start(
            launch, secrets=secrets, progress=lambda phrase: self._hooks.progress(launch.name, phrase)
        )

    def _apply_group(self, backend: Backend, group: Group) -> None:
        assert isinstance(backend, GroupBackend)
        backend.apply_group(group, secrets=secrets_of(self._store, backend.name, group.template))
        self._refused.pop(group.name, None)

    def _collect(self) -> bool:
        """Write down what became of actions that are over; return whether any was."""
        over = [name for name, future in self._under_way.items() if future.done()]
        writes = [write for name in over if (write := self._under_way.pop(name).result()) is not None]
        if writes:
            self._commit(writes, {})
        return bool(over)


def _is_new(write: Record) -> bool:
    """Return whether a job is written down for the first time, before its start."""
    return write.job.state is JobState.PROVISIONING and write.event is not None and not write.event.before


def is_finished(job: Job) -> bool:
    """Return whether a launch ended well and was the one of its replica that writes the results."""
    return job.state is JobState.SUCCEEDED and job.node == 0


def _homes(run: Run, jobs: Sequence[Job]) -> Collection[str]:
    """Return the backends that may hold something of a run."""
    return sorted({*run.template.backends, *(job.backend for job in jobs)})


def _is_of(run: str, name: str) -> bool:
    """Return whether what is under way as ``name`` is about this run."""
    return name == _group_key(run) or name.rsplit("-", 3)[0] == run


def _group_key(run: str) -> str:
    """Return what an action on a whole run is under way as; no launch has such a name."""
    return f"group {run}"


def _key(effect: Effect) -> str:
    match effect:
        case Start(_, _, launch):
            return launch.name
        case ApplyGroup(_, group):
            return _group_key(group.name)
        case DeleteGroup(_, name, _):
            return _group_key(name)
        case _:
            return effect.name


def _run_id(write: Write) -> str:
    match write:
        case Record(job, _) | ForgetJob(job):
            return job.run_id
        case Turn(run, _) | Forget(run, _):
            return run.id
        case Told(event):
            return event.run_id
