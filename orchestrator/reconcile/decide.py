"""One pass over one run: settle what was observed, then ask for the next steps.

Three rules hold everywhere. What is unknown changes nothing: a backend that did not answer is
left alone, and so is a launch on which an action is under way. A start is written down before
the backend is asked, under a name that the record alone decides, so that whoever comes after a
crash asks for the same launch again. And only what carries this run's name is touched.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from orchestrator.backend import Instance, Leave, Phase
from orchestrator.errors import AuthFailed, BackendError, NoCapacity, Quota, Temporary
from orchestrator.reconcile.history import outlived
from orchestrator.reconcile.ledger import Ledger, word_of
from orchestrator.reconcile.precedence import REFUSED_S
from orchestrator.reconcile.retry import Again, GiveUp, failures_in_a_row, next_attempt, told
from orchestrator.reconcile.steps import (
    Action,
    Forget,
    Observed,
    Record,
    Release,
    Remove,
    Start,
    Step,
    Stop,
    Turn,
)
from orchestrator.reconcile.values import (
    CANARY,
    GIVEN_UP,
    Before,
    Job,
    JobState,
    Run,
    RunEvent,
    RunState,
    Wanted,
)

DEREGISTER_S = 1.0
"""From taking a replica out of the routes until it is told to end: gateways look every 0.2 s, and one
that still sent a request would see it refused."""

DRAIN_LOOK_S = 0.5
"""How often to look whether the requests of a replica that drains have ended."""
SIGTERMED = 143
"""Exit code of a program that SIGTERM ended: 128 and the signal."""
INTERRUPTED = "interrupted"
MASTER_DONE = "master-done"
_STARTED = frozenset({JobState.RUNNING, JobState.READY, JobState.SUCCEEDED})
EVICTED = "evicted"
UNKNOWN = "unknown since"

KEPT_ATTEMPTS = 2
"""Ended launches kept per replica and node, so that the output of the last failure can be read."""


def reconcile(run: Run, jobs: Sequence[Job], observed: Observed, *, now: datetime) -> Step:
    """Return the next steps of one run.

    Args:
        run: The record of the run.
        jobs: The record of its launches, in any order.
        observed: What the backends say of this run, and nothing of others.
        now: The time, with its zone.
    """
    step = Pass(run, jobs, observed, now)
    step.adopt()
    step.settle()
    step.let_go()
    if run.wanted is Wanted.RUN:
        step.keep_up()
    else:
        step.take_down()
    return step.result()


def start_failed(job: Job, error: BackendError, *, now: datetime) -> Record | None:
    """Return what a refused start makes of its job; None when nothing is known or it may pass.

    >>> from datetime import UTC
    >>> t = datetime(2026, 1, 1, tzinfo=UTC)
    >>> job = Job("1", "chat-0-0-0", 0, 0, 0, "", "sim", JobState.PROVISIONING, t)
    >>> start_failed(job, NoCapacity("full"), now=t).job.reason
    'no-capacity'
    """
    if isinstance(error, NoCapacity):
        reason = "no-capacity"
    elif isinstance(error, Temporary):
        return None
    elif isinstance(error, Quota):
        reason = "quota"
    elif isinstance(error, AuthFailed):
        reason = "denied"
    else:
        reason = "rejected"
    ended = replace(job, state=JobState.FAILED, reason=reason, message=error.line, finished_at=now)
    run = job.name.rsplit("-", 3)[0]
    event = RunEvent(
        job.run_id, run, now, job.name, job.state.value, "failed", reason,
        action=f"{job.name}:failed", message=error.line,
    )  # fmt: skip
    return Record(ended, event)


class Pass(Ledger[Action]):
    """The working state of one pass over a run whose launches are ours to start."""

    def __init__(self, run: Run, jobs: Sequence[Job], observed: Observed, now: datetime) -> None:
        super().__init__(run, sorted(jobs, key=lambda j: (j.replica, j.node, j.attempt)), now)
        self.observed = observed
        self.waiting: list[str] = []
        """What the replicas that are to be tried again wait for."""
        self.yields = False
        self.seen: dict[str, Instance] = {
            i.name: i for found in observed.instances.values() if found is not None for i in found
        }

    def result(self) -> Step:
        """Return what this pass asks for."""
        return Step(tuple(self.actions), self.wake_at, self.yields)

    # What was observed -----------------------------------------------------------------------

    def adopt(self) -> None:
        """Take instances that carry our run's name into the record: the store may have lost its disk."""
        for backend, found in self.observed.instances.items():
            for instance in found or ():
                if instance.name not in self.jobs:
                    self._put(_adopted(self.run, backend, instance, self.now), "found running")

    def settle(self) -> None:
        """Bring every live job's record up to what its backend says."""
        for job in list(self.jobs.values()):
            if job.state.is_final or not self._is_known(job):
                continue
            instance = self.seen.get(job.name)
            if instance is None:
                self._settle_absent(job)
            elif instance.phase is Phase.EXITED:
                self._settle_exited(job, instance)
            else:
                self._settle_alive(job, instance)

    def _settle_absent(self, job: Job) -> None:
        if job.state is not JobState.PROVISIONING:
            if job.stop_asked_at:
                self._end_stopped(job, None)
            else:
                gone = f"backend {job.backend} no longer has it"
                self._end(job, JobState.FAILED, reason="lost", message=gone, cause="lost")
        elif job.stop_asked_at or self.run.wanted is not Wanted.RUN or not self._is_current(job):
            self._end(job, JobState.STOPPED, cause="never started")
        elif self._has_its_turn(job):
            self._start(job)

    def _has_its_turn(self, job: Job) -> bool:
        """Return whether the nodes that are to start before this one run by now."""
        order = self.run.template.order
        if order == "any" or (job.node == 0) == (order == "master-first"):
            return True
        first = [
            other for other in self.jobs.values()
            if (other.replica, other.attempt) == (job.replica, job.attempt)
            and (other.node == 0) == (order == "master-first")
        ]  # fmt: skip
        return all(other.state in _STARTED for other in first)

    def _settle_exited(self, job: Job, instance: Instance) -> None:
        if job.stop_asked_at:
            self._end_stopped(job, instance)
        elif instance.exit_code == SIGTERMED and self.run.template.resumes:
            told = "a signal from outside ended it, after its last checkpoint"
            reason = "preempted"
            self._end(job, JobState.FAILED, instance, reason=reason, cause="interrupted", message=told)
        elif instance.exit_code == 0 and not instance.reason and self.run.type == "task":
            self._end(job, JobState.SUCCEEDED, instance, cause="exit code 0")
        elif instance.exit_code == 0 and not instance.reason:
            ended = f"a {self.run.type} must not end"
            self._end(job, JobState.FAILED, instance, reason="error", cause=ended, message=ended)
        else:
            failure = self.observed.words.get(job.name)
            if failure is not None:
                cause, told = f"exit code {instance.exit_code}", failure.told()
                self._end(job, JobState.FAILED, instance, reason=failure.reason(), cause=cause, message=told)
                return
            reason = instance.reason or "error"
            cause = f"exit code {instance.exit_code}" if reason == "error" else reason
            self._end(job, JobState.FAILED, instance, reason=reason, cause=cause, message=instance.message)

    def _end_stopped(self, job: Job, instance: Instance | None) -> None:
        """End a job that we asked to stop; some causes make it a failure.

        What resumes is interrupted, whatever its exit code: it may end with 0, 1 or 143 then, and
        none of them says that it is done.
        """
        if job.stop_cause == EVICTED:
            self._end(job, JobState.FAILED, instance, reason="preempted", cause=EVICTED)
            return
        if self.run.template.resumes and job.stop_cause not in ("node-failed", MASTER_DONE):
            self._end(job, JobState.STOPPED, instance, reason=INTERRUPTED, cause=job.stop_cause or "stopped")
            return
        if job.stop_cause in ("max-duration", "not-ready", "node-failed", "hung"):
            self._end(job, JobState.FAILED, instance, reason=job.stop_cause, cause=job.stop_cause)
        else:
            self._end(job, JobState.STOPPED, instance, cause=job.stop_cause or "stopped")

    def _settle_alive(self, job: Job, instance: Instance) -> None:
        wanted = self.run.wanted is Wanted.RUN and job.stop_asked_at is None and self._is_current(job)
        is_made = instance.phase is Phase.PENDING and job.name not in self.observed.asked
        if is_made and wanted and self._has_its_turn(job):
            self._start(job)  # made, and perhaps never started: a killed process may have left it so
        state, cause = self._alive_state(job, instance)
        fresh = replace(
            job,
            state=state,
            started_at=instance.started_at or job.started_at,
            ready_at=(job.ready_at or self.now) if state is JobState.READY else job.ready_at,
            address=instance.address,
            ports=instance.ports,
            devices=instance.devices,
            message=_last_seen(instance) or instance.message,
            machine=instance.machine,
            adapters=self._loaded(job),
        )
        was_unknown, is_unknown = job.message.startswith(UNKNOWN), instance.silent_since is not None
        if state is not job.state:
            self._put(fresh, None if job.stop_asked_at else cause)
        elif fresh.adapters != job.adapters:
            self._put(fresh, _serves(fresh))
        elif was_unknown is not is_unknown:
            self._put(fresh, "its machine does not answer" if is_unknown else "its machine answers again")
        elif _whereabouts(fresh) != _whereabouts(job):
            self._put(fresh, None)

    def _loaded(self, job: Job) -> tuple[str, ...]:
        """Return the adapters that a launch serves; what nobody asked it this time stays."""
        loaded = self.observed.loaded.get(job.name)
        return job.adapters if loaded is None else loaded.adapters

    def _alive_state(self, job: Job, instance: Instance) -> tuple[JobState, str]:
        if instance.phase is Phase.PENDING:
            return JobState.STARTING, "starts again" if job.started_at else "accepted"
        if self.run.type == "task":
            return JobState.RUNNING, "started"
        if instance.ready is None and job.state is JobState.READY:
            return job.state, ""  # nobody asked it this time
        if instance.ready or (instance.ready is None and not self.run.template.of_node(job.node).probes()):
            return JobState.READY, "answers its probe" if instance.ready else "started"
        return JobState.RUNNING, "does not answer its probe" if job.ready_at else "started"

    def let_go(self) -> None:
        """Give back the machines of launches whose end is on record."""
        keep_s = self.run.template.idle_s
        for job in self._paying():
            if job.name not in self.observed.busy:
                self.actions.append(Release(job.backend, job.name, keep_s))

    def _paying(self) -> list[Job]:
        """Return ended jobs whose machines are still to be given back: the run has no end before that."""
        return [
            job for job in self.jobs.values()
            if job.state.is_final and (seen := self.seen.get(job.name)) and seen.rented
        ]  # fmt: skip

    # Taking down -----------------------------------------------------------------------------

    def take_down(self) -> None:
        """Stop what is live; then, for a delete, remove what is left and forget the run."""
        for job in self._live():
            self._ask_stop(job, "asked to stop")
        if self._live():
            self._turn(RunState.STOPPING)
            return
        if self._paying():
            return
        if not self.run.state.is_final:
            self._turn(RunState.STOPPED, cause="asked to stop")
        if self.run.wanted is Wanted.DELETE:
            self._delete()

    def _delete(self) -> None:
        homes = {job.backend for job in self.jobs.values() if job.reason not in ("no-capacity", "rejected")}
        for backend, found in self.observed.instances.items():
            self.actions += [Remove(backend, i.name) for i in found or () if i.name not in self.observed.busy]
        if not self.seen and all(self.observed.is_known(b) for b in homes):
            event = self._event(self.run.name, self.run.state.value, "deleted", "asked to delete")
            self.actions.append(Forget(self.run, event))

    # Keeping up ------------------------------------------------------------------------------

    def keep_up(self) -> None:
        """Bring every replica of the present spec up, and stop what is of an older one."""
        if self.run.state.is_final:
            self._clean()
            return
        failed = [why for r in range(self.run.template.replicas) if (why := self._keep_replica(r))]
        self._scale_down()
        self._summarize(failed)
        self._clean()

    def _scale_down(self) -> None:
        """Stop the replicas above the number, the highest first; those that answer, once enough others do."""
        wanted, live = self.run.template.replicas, self._live()
        serving = _ready_replicas([job for job in live if job.stop_asked_at is None])
        for replica in sorted({job.replica for job in live if job.replica >= wanted}, reverse=True):
            if replica in serving and len(serving) <= wanted:
                continue
            serving.discard(replica)
            for job in live:
                if job.replica == replica:
                    self._ask_stop(job, "scaled down")

    def _keep_replica(self, replica: int) -> str | None:
        """Bring one replica forward; return why it will not be tried again, if so."""
        stale = [j for j in self._live() if j.replica == replica and not self._stays(j)]
        attempts = self._attempts(replica)
        latest = attempts[-1] if attempts else []
        if not latest and stale and not self._may_roll(replica, stale):
            return None
        if not latest:
            self._begin(replica, 0, stale, cause=self._why_begun(stale))
            return None
        if any(not job.state.is_final for job in latest):
            self._keep_attempt(latest, stale)
            return None
        if self._is_done(latest):
            return None
        if timed_out := next((j for j in latest if _is_out_of_time(j)), None):
            return f"{INTERRUPTED}: {timed_out.message}, apply --resume goes on from its last checkpoint"
        row = failures_in_a_row([_verdict(a) for a in attempts], steady_s=self.run.template.retry.most_s)
        return self._after_failures(replica, row, stale)

    def _may_roll(self, replica: int, stale: list[Job]) -> bool:
        """Return whether a replica of an older spec may be replaced now.

        One after the other, so that a spec that does not work costs one replica; where they may stand
        beside each other and one has become ready, a quarter of them at once. What does not answer, or
        is to end anyway, has nothing to lose.
        """
        if any(job.state is not JobState.READY or job.stop_asked_at for job in stale):
            return True
        if self.run.template.canary and replica > min(j.replica for j in self._live()):
            return False
        wanted = range(self.run.template.replicas)
        live = [job for job in self._live() if job.stop_asked_at is None]
        done = _ready_replicas([job for job in live if self._stays(job)])
        untouched = {job.replica for job in live if not self._stays(job)}
        begun = {r for r in wanted if self._attempts(r)} | (set(wanted) - untouched)
        moving = begun - done - {replica}
        most = len(wanted) // 4 if self.run.template.surge and done else 1
        return len(moving) < max(1, most)

    def _keep_attempt(self, attempt: list[Job], stale: list[Job]) -> None:
        """Watch a live attempt: the gang falls together, and time limits hold."""
        if self._is_done(attempt):
            for job in (j for j in attempt if not j.state.is_final):
                self._ask_stop(job, MASTER_DONE)
            return
        broken = next((j for j in attempt if j.state in (JobState.FAILED, JobState.STOPPED)), None)
        for job in attempt:
            if job.state.is_final:
                continue
            if broken:
                where = f" on {broken.machine}" if broken.machine else ""
                told = f"node {broken.node}{where} ended first: {broken.message or broken.reason}"
                self._ask_stop(job, "node-failed", told)
            else:
                self._keep_limits(job)
        if stale and not self.run.template.canary and all(job.state is JobState.READY for job in attempt):
            for job in stale:
                self._ask_stop(job, "replaced")

    def _keep_limits(self, job: Job) -> None:
        if job.stop_asked_at:
            self._ask_stop(job, job.stop_cause)
            return
        if self._leave(job) == "evict":
            self._ask_stop(job, EVICTED, "its host is being emptied")
            return
        if why := self.observed.sick.get(job.name):
            self._ask_stop(job, "hung", why)
            return
        started, limit = job.started_at, self.run.template.runs_for_s()
        if started and limit is not None and self._is_due(started + timedelta(seconds=limit)):
            self._ask_stop(job, "max-duration", f"ran for {limit:g} s")
            return
        probes = self.run.template.of_node(job.node).probes()
        if self.run.type != "service" or not probes or not started or job.ready_at is not None:
            return
        slowest = max(probes, key=lambda probe: probe.start_s)
        if self._is_due(started + timedelta(seconds=slowest.start_s)):
            said = self.observed.troubles.get(job.name, "")
            told = f"no answer on port {slowest.port} within {slowest.start_s:g} s"
            told = f"{said} after {slowest.start_s:g} s" if said else told
            self._ask_stop(job, "not-ready", told)

    def _after_failures(self, replica: int, row: list[Job], stale: list[Job]) -> str | None:
        template = self.run.template
        if not row:  # scaled down and up again, or its host was emptied
            self._begin(replica, 0, stale, cause=self._why_begun(stale) if stale else "scaled up")
            return None
        limit = None if self.run.was_ready else template.retry.attempts
        verdict = next_attempt(row, policy=template.retry, places=template.places, limit=limit)
        match verdict:
            case GiveUp(why):
                return f"{told(row)} ({why})" if why else told(row)
            case Again(at, backend):
                if self._is_due(at) or self._may_ask_again(row[-1]):
                    self._begin(replica, backend, stale, cause=f"attempt {len(row) + 1}")
                else:
                    self.waiting.append(f"{told(row[-1:])}; tries again at {at:%Y-%m-%dT%H:%M:%SZ}")
                return None

    def _may_ask_again(self, last: Job) -> bool:
        """Return whether a place that had no capacity a while ago is asked before the pause is over."""
        if last.reason != "no-capacity" or not self.observed.ask_again or last.finished_at is None:
            return False
        return (
            self.run.template.retry.attempts is None
            and self.now - last.finished_at >= timedelta(seconds=REFUSED_S)
        )  # fmt: skip

    def _begin(self, replica: int, backend: int, stale: list[Job], *, cause: str) -> None:
        """Write down and start the next attempt of a replica, once nothing stands in its way."""
        template = self.run.template
        if stale and template.canary and not template.surge:
            self.waiting.append("there is no room for a canary: remove rollout.weight")
            return
        if stale and not template.surge:
            for job in stale:
                self._ask_stop(job, "replaced")
            return
        place, rent = template.places[backend]
        if not self.observed.is_known(place):
            return
        if self.observed.ahead:
            self.waiting.append(f"{self.observed.ahead} goes first: it has a higher priority")
            self.yields = True
            return
        attempt = 1 + max((j.attempt for j in self.jobs.values() if j.replica == replica), default=-1)
        for node in range(template.nodes):
            name = f"{self.run.name}-{replica}-{node}-{attempt}"
            job = Job(
                self.run.id, name, replica, node, attempt, self.run.spec_hash, place,
                JobState.PROVISIONING, self.now, rent=rent,
            )  # fmt: skip
            self._put(job, f"{cause}: {place}, {rent}" if rent else cause)
        for job in [j for j in self.jobs.values() if (j.replica, j.attempt) == (replica, attempt)]:
            if self._has_its_turn(job):
                self._start(job)

    def _summarize(self, failed: list[str]) -> None:
        """Turn the run into what its replicas make of it."""
        if self.run.template.base:
            alone = RunState.QUEUED if self.observed.is_alone else RunState.STARTING
            state = alone if self.observed.lacks else RunState.READY
            self._turn(state, reason=self.observed.lacks, answered=not self.observed.lacks)
            return
        live = self._live()
        loaded = [self.observed.loaded[job.name] for job in live if job.name in self.observed.loaded]
        self.waiting += [each.trouble for each in loaded if each.trouble]
        current = [j for j in live if self._is_current(j)]
        ready = len(_ready_replicas(current) & set(range(self.run.template.replicas)))
        if failed and self.run.template.rollback and self.run.template.before:
            self._roll_back(self.run.template.before, failed[0])
            return
        if failed and (self.run.type == "task" or len(failed) == self.run.template.replicas):
            if self.run.type == "task" and live:
                for job in live:
                    self._ask_stop(job, "another replica failed")
                return
            if not live:
                if not self._paying():
                    ended = RunState.STOPPED if failed[0].startswith(INTERRUPTED) else RunState.FAILED
                    self._turn(ended, cause=failed[0], reason=failed[0])
                return
        if self.run.type == "task" and not live and self._all_succeeded():
            if not self._paying():
                self._turn(RunState.SUCCEEDED, cause="every node ended with exit code 0")
            return
        serving = len(_ready_replicas(live) & set(range(self.run.template.replicas)))
        if failed and len(live) > len(current):  # the older spec's replicas go on serving
            state = RunState.READY if serving else RunState.RUNNING
            self._turn(state, reason=f"rollout failed: {failed[0]}", ready=serving, answered=ready > 0)
            return
        gave_up = self.run.template.gave_up
        unknown = [f"{job.name}: {job.message}" for job in live if job.message.startswith(UNKNOWN)]
        others = len(failed) < self.run.template.replicas
        over = [f"{GIVEN_UP}{why}" if others else why for why in failed]
        reason = next(
            iter([*over, *self.waiting, *unknown, *([f"rollout failed: {gave_up}"] if gave_up else [])]), ""
        )
        if self.run.template.canary and len(live) > len(current):
            told = f"{CANARY}{self.run.template.canary} % of requests for the new spec" if ready else ""
            state = RunState.READY if serving == self.run.template.replicas else RunState.RUNNING
            self._turn(state, reason=reason or told, ready=serving, answered=ready > 0)
            return
        self._turn(self._live_state(current, ready), reason=reason, ready=serving, answered=ready > 0)

    def _roll_back(self, was: Before, why: str) -> None:
        """Put the spec back that worked before this one."""
        run = replace(
            self.run, spec=was.spec, spec_hash=was.spec_hash, plan=was.plan, since=self.now, was_ready=True,
            template=self.run.template.put_back(why),
        )  # fmt: skip
        state = run.state.value
        event = self._event(run.name, state, state, "rolled back", why)
        self.run = run
        self.actions.append(Turn(run, event))

    def _live_state(self, current: list[Job], ready: int) -> RunState:
        if self.run.type != "task" and ready == self.run.template.replicas:
            return RunState.READY
        states = {j.state for j in current}
        if not states:
            return RunState.QUEUED
        if states <= {JobState.RUNNING, JobState.READY}:
            return RunState.RUNNING
        return RunState.PROVISIONING if JobState.PROVISIONING in states else RunState.STARTING

    def _all_succeeded(self) -> bool:
        latest = [self._attempts(r)[-1:] for r in range(self.run.template.replicas)]
        return all(a and self._is_done(a[0]) for a in latest)

    def _is_done(self, attempt: Sequence[Job]) -> bool:
        """Return whether the nodes ended well whose end is the task's."""
        if self.run.template.ends_with_master:
            attempt = [job for job in attempt if job.node == 0]
        return bool(attempt) and all(job.state is JobState.SUCCEEDED for job in attempt)

    def _clean(self) -> None:
        """Remove ended launches, but for the last few of each place."""
        places: dict[tuple[int, int], list[Instance]] = defaultdict(list)
        for instance in self.seen.values():
            job = self.jobs.get(instance.name)
            if instance.phase is Phase.EXITED and job and job.state.is_final:
                places[instance.replica, instance.node].append(instance)
        for ended in places.values():
            for instance in sorted(ended, key=lambda i: i.attempt)[:-KEPT_ATTEMPTS]:
                if instance.name not in self.observed.busy:
                    self.actions.append(Remove(self.jobs[instance.name].backend, instance.name))
        if self.run.type == "service":
            self.actions += outlived(
                list(self.jobs.values()), policy=self.run.template.retry,
                places=len(self.run.template.places), is_current=self._is_current,
                is_gone=lambda job: self._is_known(job) and job.name not in self.seen,
            )  # fmt: skip

    # Small pieces ----------------------------------------------------------------------------

    def _is_known(self, job: Job) -> bool:
        return self.observed.is_known(job.backend) and job.name not in self.observed.busy

    def _is_current(self, job: Job) -> bool:
        return job.spec_hash == self.run.spec_hash and (
            not job.state.is_final or job.created_at >= self.run.since
        )

    def _leave(self, job: Job) -> Leave:
        """Return how the host that a job is on is emptied, if it is."""
        seen = self.seen.get(job.name)
        return seen.leave if seen else ""

    def _stays(self, job: Job) -> bool:
        """Return whether a job is of the present spec, and where it may stay: a service leaves its host."""
        leaves = self.run.type == "service" and not job.state.is_final and self._leave(job)
        return self._is_current(job) and not leaves

    def _why_begun(self, stale: Sequence[Job]) -> str:
        if not stale:
            return "applied"
        moves = all(self._is_current(job) for job in stale)
        return f"replaces {stale[0].name}" + (", whose host is being emptied" if moves else "")

    def _live(self) -> list[Job]:
        return [job for job in self.jobs.values() if not job.state.is_final]

    def _attempts(self, replica: int) -> list[list[Job]]:
        """Return the present spec's attempts at one replica, oldest first, each with its nodes in order."""
        by_number: dict[int, list[Job]] = defaultdict(list)
        for job in self.jobs.values():
            if job.replica == replica and self._is_current(job):
                by_number[job.attempt].append(job)
        return [by_number[n] for n in sorted(by_number) if all(map(self._stays, by_number[n]))]

    def _is_due(self, at: datetime) -> bool:
        if at <= self.now:
            return True
        self.wake_at = at if self.wake_at is None else min(at, self.wake_at)
        return False

    def _start(self, job: Job) -> None:
        template = self.run.template
        self.actions.append(
            Start(job.backend, job, template.at(job.replica, job.node, job.attempt, job.rent))
        )

    def _ask_stop(self, job: Job, cause: str, message: str = "") -> None:
        if job.stop_asked_at is None:
            job = replace(job, stop_asked_at=self.now, stop_cause=cause, message=message or job.message)
            event = self._event(job.name, word_of(self.jobs[job.name]), word_of(job), cause, message)
            self.jobs[job.name] = job
            self.actions.append(Record(job, event))
        if self._is_known(job) and job.name in self.seen and self._has_drained(job):
            self.actions.append(Stop(job.backend, job.name, self.run.template.launch.stop_grace_s))

    def _has_drained(self, job: Job) -> bool:
        """Return whether a replica that another one stands in for has let its requests end, or had time to.

        It has left the routes by now. An engine drains by itself too; a program of the user's own may not.
        """
        asked, template = job.stop_asked_at, self.run.template
        hands_over = job.stop_cause in ("scaled down", "replaced") and job.ready_at is not None
        if not hands_over or asked is None or self.run.type != "service" or not template.launch.ports:
            return True
        if not self._is_due(asked + timedelta(seconds=DEREGISTER_S)):
            return False
        if not self.observed.serving.get(job.name):
            return True
        self._is_due(self.now + timedelta(seconds=DRAIN_LOOK_S))
        return self._is_due(asked + timedelta(seconds=template.launch.stop_grace_s))

    def _end(
        self,
        job: Job,
        state: JobState,
        instance: Instance | None = None,
        *,
        cause: str,
        reason: str = "",
        message: str = "",
    ) -> None:
        ended = replace(
            job,
            state=state,
            exit_code=instance.exit_code if instance else None,
            reason=reason,
            message=message or job.message or cause,
            started_at=(instance.started_at if instance else None) or job.started_at,
            finished_at=(instance.finished_at if instance else None) or self.now,
            machine=(instance.machine if instance else "") or job.machine,
        )
        self._put(ended, cause)


def _last_seen(instance: Instance) -> str:
    """Return since when nothing is known of an instance, "" where its machine answers."""
    since = instance.silent_since
    return f"{UNKNOWN} {since:%Y-%m-%dT%H:%M:%SZ}: {instance.message}" if since else ""


def _whereabouts(job: Job) -> tuple[object, ...]:
    return job.ports, job.devices, job.address, job.machine


def _serves(job: Job) -> str:
    names = ", ".join(told.partition("@")[0] for told in job.adapters)
    return f"serves adapters {names}" if names else "serves no adapters"


def _is_out_of_time(job: Job) -> bool:
    return job.state is JobState.STOPPED and (job.reason, job.stop_cause) == (INTERRUPTED, "max-duration")


def _verdict(attempt: list[Job]) -> Job:
    """Return the job that stands for a whole attempt: the first node that failed by itself."""
    own = [j for j in attempt if j.state is JobState.FAILED and j.reason != "node-failed"]
    return (own or attempt)[0]


def _ready_replicas(jobs: Sequence[Job]) -> set[int]:
    """Return the replicas of which every node of one attempt is ready."""
    attempts: dict[tuple[int, int], list[Job]] = defaultdict(list)
    for job in jobs:
        attempts[job.replica, job.attempt].append(job)
    return {r for (r, _), nodes in attempts.items() if all(job.state is JobState.READY for job in nodes)}


def _adopted(run: Run, backend: str, instance: Instance, now: datetime) -> Job:
    return Job(
        run.id, instance.name, instance.replica, instance.node, instance.attempt,
        instance.spec_hash, backend, JobState.STARTING, now,
        started_at=instance.started_at, machine=instance.machine,
    )  # fmt: skip
