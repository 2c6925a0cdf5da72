"""One pass over a run that a cluster keeps: hand the group over, then write down what comes of it.

A cluster's own controllers start, restart and replace; nothing here does. What is unknown changes
nothing, as for launches, and a group is handed over again only when it differs from what the
cluster says it was last told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from orchestrator.backend import Group, GroupStatus, Instance, Phase
from orchestrator.frozen import frozen
from orchestrator.reconcile.ledger import Ledger
from orchestrator.reconcile.steps import ApplyGroup, DeleteGroup, Forget, GroupAction
from orchestrator.reconcile.values import ROLLING, Job, JobState, Run, RunState, Wanted, group_of


@frozen
class GroupSeen:
    """What is known of a run's group.

    ``known`` says whether the backend answered; ``status`` is None where it has no such group.
    ``refused`` are the digest of a group that the backend refused and its words.
    """

    known: bool
    status: GroupStatus | None = None
    busy: bool = False
    refused: tuple[str, str] | None = None


@frozen
class GroupStep:
    """What one pass asks for, in order, and when to look again at the latest."""

    actions: tuple[GroupAction, ...]
    wake_at: datetime | None = None


def reconcile_group(
    run: Run, jobs: Sequence[Job], seen: GroupSeen, *, backend: str, now: datetime
) -> GroupStep:
    """Return the next steps of one run that ``backend`` keeps as a group.

    Args:
        run: The record of the run.
        jobs: The record of its launches, in any order.
        seen: What the backend says of the group.
        backend: The backend's name.
        now: The time, with its zone.
    """
    if not seen.known or seen.busy:
        return GroupStep(())
    step = _Pass(run, jobs, seen.status, backend, now)
    if run.wanted is Wanted.RUN:
        step.keep(seen.refused)
    else:
        step.take_down()
    return GroupStep(tuple(step.actions), step.wake_at)


class _Pass(Ledger[GroupAction]):
    """The working state of one pass over a run that a cluster keeps."""

    def __init__(
        self, run: Run, jobs: Sequence[Job], status: GroupStatus | None, backend: str, now: datetime
    ) -> None:
        super().__init__(run, jobs, now)
        self.status = status
        self.backend = backend

    def keep(self, refused: tuple[str, str] | None) -> None:
        """Hand the group over where it is not so yet, and follow what the cluster makes of it."""
        if self.run.state.is_final:
            return
        group = group_of(self.run, attempt=self._attempt())
        if refused is not None and refused[0] == group.digest():
            self._refused(refused[1])
        elif not _says(self.status, group):
            self.actions.append(ApplyGroup(self.backend, group))
            self._turn(RunState.PROVISIONING, cause="applied")
        elif self.status is not None:
            self._follow(self.status, group)

    def take_down(self) -> None:
        """Delete the group; when it is gone the run has stopped, and a deleted one is forgotten."""
        ended = self.run.state.is_final
        if self.status is not None and (not ended or self.run.wanted is Wanted.DELETE):
            grace_s = self.run.template.launch.stop_grace_s
            self.actions.append(DeleteGroup(self.backend, self.run.name, grace_s))
            if not ended:
                self._turn(RunState.STOPPING, cause="asked to stop")
            return
        if not ended:
            self._end_jobs(JobState.STOPPED, "asked to stop")
            self._turn(RunState.STOPPED, cause="asked to stop")
        if self.run.wanted is Wanted.DELETE:
            event = self._event(self.run.name, self.run.state.value, "deleted", "asked to delete")
            self.actions.append(Forget(self.run, event))

    def _attempt(self) -> int:
        """Return the number of a run's first launch: one that is run again is another than before."""
        before = [job.attempt for job in self.jobs.values() if job.created_at < self.run.since]
        return 1 + max(before) if before and self.run.type == "task" else 0

    def _refused(self, words: str) -> None:
        if self.status is None:
            self._turn(RunState.FAILED, cause="refused", reason=words, message=words)
        else:  # what was there before goes on
            self._turn(_state_of(self.status, self.run), reason=f"rollout failed: {words}")

    def _follow(self, status: GroupStatus, group: Group) -> None:
        for instance in status.instances:
            self._record(instance)
        names = {instance.name for instance in status.instances}
        for job in list(self.jobs.values()):
            if job.name not in names and not job.state.is_final:
                self._put(replace(job, state=JobState.STOPPED, finished_at=self.now), "no longer there")
        if status.phase is Phase.EXITED and self.run.type == "task":
            self._ended(status)
        elif self._is_over_time():
            self.actions.append(DeleteGroup(self.backend, self.run.name, group.template.stop_grace_s))
            reason = f"ran for {group.max_duration_s} s"
            self._turn(RunState.FAILED, cause="max-duration", reason=reason)
        else:
            ready = status.ready_replicas if self.run.type != "task" else 0
            state = _state_of(status, self.run)
            # what keeps it from there, as it changes
            told = status.message
            if state is RunState.READY:  # what was there before may serve on
                told = f"{ROLLING}{told}" if told and _is_rolling(status, group) else ""
            if status.stalled:  # what was there before may be ready, and serves on
                words = status.message or "what was asked for did not come up in its time"
                told = f"rollout failed: {words}"
            self._turn(state, reason=told, ready=ready, answered=ready > 0)

    def _ended(self, status: GroupStatus) -> None:
        if status.exit_code == 0 and not status.reason:
            self._turn(RunState.SUCCEEDED, cause="every node ended with exit code 0")
            return
        told = status.message or status.reason or f"exit code {status.exit_code}"
        self._turn(RunState.FAILED, cause=status.reason or "error", reason=told)

    def _is_over_time(self) -> bool:
        """Return whether what is kept up has had its time; a cluster ends tasks by itself."""
        limit = self.run.template.max_duration_s
        started = [job.started_at for job in self.jobs.values() if job.started_at]
        if limit is None or self.run.type == "task" or not started:
            return False
        self.wake_at = min(started) + timedelta(seconds=limit)
        return self.wake_at <= self.now

    def _record(self, instance: Instance) -> None:
        job = self.jobs.get(instance.name)
        state = _job_state(instance, self.run)
        fresh = replace(
            job or self._new(instance),
            spec_hash=instance.spec_hash or self.run.spec_hash,
            state=state,
            exit_code=instance.exit_code,
            reason=instance.reason,
            message=instance.message,
            started_at=instance.started_at,
            ready_at=(job.ready_at if job else None) or (self.now if state is JobState.READY else None),
            finished_at=instance.finished_at,
            # of a life before, whose place was not known to be a cluster
            stop_asked_at=None,
            stop_cause="",
            address=instance.address,
            ports=instance.ports,
        )
        if fresh != job:
            moved = job is None or (job.state, job.message) != (fresh.state, fresh.message)
            self._put(fresh, (instance.reason or instance.message or state.value) if moved else None)

    def _new(self, instance: Instance) -> Job:
        return Job(
            self.run.id, instance.name, instance.replica, instance.node, instance.attempt,
            instance.spec_hash, self.backend, JobState.PROVISIONING, self.now,
        )  # fmt: skip

    def _end_jobs(self, state: JobState, cause: str) -> None:
        for job in list(self.jobs.values()):
            if not job.state.is_final:
                self._put(replace(job, state=state, finished_at=self.now), cause)


def _says(status: GroupStatus | None, group: Group) -> bool:
    """Return whether the cluster was told this very group."""
    if status is None:
        return False
    if status.digest:
        return status.digest == group.digest()
    replicas = {instance.replica for instance in status.instances}
    return status.spec_hash == group.template.spec_hash and len(replicas) == group.replicas


def _is_rolling(status: GroupStatus, group: Group) -> bool:
    """Return whether something of a spec before is there."""
    return any(
        instance.spec_hash != group.template.spec_hash
        for instance in status.instances
        if instance.phase is not Phase.EXITED
    )


def _state_of(status: GroupStatus, run: Run) -> RunState:
    if status.phase is Phase.PENDING and (run.type == "task" or run.template.replicas):
        return RunState.STARTING  # of none there is none to wait for
    if run.type != "task" and status.ready_replicas >= run.template.replicas:
        return RunState.READY
    return RunState.RUNNING


def _job_state(instance: Instance, run: Run) -> JobState:
    match instance.phase:
        case Phase.PENDING:
            return JobState.STARTING
        case Phase.RUNNING:
            return JobState.READY if instance.ready and run.type != "task" else JobState.RUNNING
        case Phase.EXITED:
            ended = instance.exit_code == 0 and not instance.reason
            return JobState.SUCCEEDED if ended else JobState.FAILED
