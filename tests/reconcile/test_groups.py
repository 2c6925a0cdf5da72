"""Runs that a cluster keeps: what is handed over, when, and what is written down of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from orchestrator.api.goals import has_arrived, has_missed, has_reached
from orchestrator.backend import GroupStatus, Instance, Launch, Phase, Reason
from orchestrator.reconcile import Job, JobState, Retry, Run, RunState, Template, Wanted
from orchestrator.reconcile.groups import GroupSeen, reconcile_group
from orchestrator.reconcile.steps import ApplyGroup, DeleteGroup, Forget, Record, Turn
from orchestrator.reconcile.values import group_of

T0 = datetime(2026, 1, 1, tzinfo=UTC)
LATER = T0 + timedelta(hours=1)


def run(**fields: Any) -> Run:
    template = Template(Launch("chat-0-0-0", "chat", spec_hash="h1"), ("k8s",))
    base = Run("1", "chat", "service", "{}", "h1", template, T0)
    return replace(base, **fields)


def task(**fields: Any) -> Run:
    return run(type="task", **fields)


def instance(replica: int = 0, *, phase: Phase = Phase.RUNNING, **fields: Any) -> Instance:
    name = f"chat-{replica}-0-0"
    base = Instance(name, "chat", replica, 0, 0, "h1", phase, started_at=T0, ready=phase is Phase.RUNNING)
    return replace(base, **fields)


def status(
    of: Run, *instances: Instance, phase: Phase = Phase.RUNNING, code: int | None = None, reason: Reason = ""
) -> GroupStatus:
    ready = sum(bool(i.ready) for i in instances)
    digest = group_of(of).digest()
    return GroupStatus("chat", "h1", phase, ready, instances, code, reason, digest=digest)


def step(of: Run, seen: GroupSeen, jobs: Sequence[Job] = (), now: datetime = LATER) -> list[Any]:
    return list(reconcile_group(of, jobs, seen, backend="k8s", now=now).actions)


def turns(actions: Sequence[Any]) -> list[RunState]:
    return [a.run.state for a in actions if isinstance(a, Turn)]


def settled(of: Run, seen: GroupSeen) -> tuple[Run, list[Job]]:
    """Return run and jobs as the record has them after one pass."""
    jobs = {}
    for action in step(of, seen):
        if isinstance(action, Record):
            jobs[action.job.name] = action.job
        elif isinstance(action, Turn):
            of = action.run
    return of, list(jobs.values())


def test_group_that_is_not_there_is_handed_over() -> None:
    applied, turn = step(run(), GroupSeen(True))
    assert applied == ApplyGroup("k8s", group_of(run()))
    assert turn.run.state is RunState.PROVISIONING


@pytest.mark.parametrize("seen", [GroupSeen(False), GroupSeen(True, busy=True)])
@pytest.mark.parametrize("wanted", Wanted)
def test_what_is_unknown_or_under_way_changes_nothing(seen: GroupSeen, wanted: Wanted) -> None:
    assert step(run(wanted=wanted), seen) == []


def test_a_group_that_does_not_come_up_in_its_time_is_a_failed_rollout_until_it_does() -> None:
    pending = instance(phase=Phase.PENDING, message="0/1 nodes are available", ready=False)
    waits = replace(status(run(), pending, phase=Phase.PENDING), message="0/1 nodes are available")
    of, _ = settled(run(), GroupSeen(True, waits))
    assert (of.state, of.reason) == (RunState.STARTING, "0/1 nodes are available")
    assert not has_reached(of, "ready")
    of, _ = settled(of, GroupSeen(True, replace(waits, stalled=True)))
    assert (of.state, of.reason) == (RunState.STARTING, "rollout failed: 0/1 nodes are available")
    assert has_reached(of, "ready")
    assert has_missed(of, "ready")
    of, _ = settled(of, GroupSeen(True, replace(waits, stalled=True, message="")))
    assert of.reason == "rollout failed: what was asked for did not come up in its time"
    before = replace(status(run(), instance()), stalled=True, message="no such image")
    of, _ = settled(of, GroupSeen(True, before))
    assert (of.state, of.reason) == (RunState.READY, "rollout failed: no such image")
    of, _ = settled(of, GroupSeen(True, status(run(), instance())))
    assert (of.state, of.reason) == (RunState.READY, "")


def test_second_pass_does_nothing() -> None:
    seen = GroupSeen(True, status(run(), instance()))
    of, jobs = settled(run(), seen)
    assert of.state is RunState.READY
    assert step(of, seen, jobs) == []


def test_launch_that_was_told_to_stop_in_a_life_before_is_not_stopping() -> None:
    seen = GroupSeen(True, status(run(), instance()))
    of, (job,) = settled(run(), seen)
    before = replace(job, state=JobState.STOPPED, stop_asked_at=T0, stop_cause="asked to stop")
    (again,) = [a.job for a in step(of, seen, [before]) if isinstance(a, Record)]
    assert (again.state, again.stop_asked_at, again.stop_cause) == (JobState.READY, None, "")


def test_changed_template_is_handed_over_again() -> None:
    before = status(run(), instance())
    scaled = run(template=replace(run().template, replicas=3))
    assert isinstance(step(scaled, GroupSeen(True, before))[0], ApplyGroup)


def test_backend_that_keeps_no_digest_is_compared_by_hash_and_replicas() -> None:
    silent = replace(status(run(), instance()), digest="")
    assert not any(isinstance(a, ApplyGroup) for a in step(run(), GroupSeen(True, silent)))
    scaled = run(template=replace(run().template, replicas=2))
    assert isinstance(step(scaled, GroupSeen(True, silent))[0], ApplyGroup)


def test_service_is_ready_when_every_replica_is() -> None:
    two = run(template=replace(run().template, replicas=2))
    half = status(two, instance(0), instance(1, phase=Phase.PENDING))
    assert turns(step(two, GroupSeen(True, half))) == [RunState.RUNNING]
    assert turns(step(two, GroupSeen(True, status(two, instance(0), instance(1))))) == [RunState.READY]


def test_run_that_waits_says_for_what_each_time_it_is_something_else() -> None:
    waiting = replace(status(task(), phase=Phase.PENDING), message="waits for quota in queue 'a'")
    of, _ = settled(task(), GroupSeen(True, waiting))
    assert (of.state, of.reason) == (RunState.STARTING, waiting.message)
    (turn,) = step(of, GroupSeen(True, replace(waiting, message="0/8 nodes are available")))
    assert (turn.run.reason, turn.event.cause) == ("0/8 nodes are available",) * 2
    of, _ = settled(turn.run, GroupSeen(True, status(task(), instance())))
    assert (of.state, of.reason) == (RunState.RUNNING, "")


def test_service_that_is_ready_has_nothing_to_explain() -> None:
    seen = GroupSeen(True, replace(status(run(), instance()), message="a replica that goes was killed"))
    of, _ = settled(run(), seen)
    assert (of.state, of.reason) == (RunState.READY, "")


def test_service_that_serves_on_says_what_keeps_its_next_spec_from_taking_over() -> None:
    """An apply waited without a word where the cluster let no pod be made: a quota, or a LimitRange."""
    changed = run(
        spec_hash="h2",
        template=replace(run().template, launch=replace(run().template.launch, spec_hash="h2")),
    )
    serving = replace(
        status(changed, instance()), spec_hash="h2", message="no pod may be made: exceeded quota"
    )
    of, jobs = settled(changed, GroupSeen(True, serving))
    assert (of.state, of.reason) == (RunState.READY, "rolling out: no pod may be made: exceeded quota")
    assert not has_arrived(of, jobs, "settled")
    over = replace(status(changed, instance(spec_hash="h2")), spec_hash="h2")
    of, jobs = settled(of, GroupSeen(True, over))
    assert (of.state, of.reason) == (RunState.READY, "")
    assert has_arrived(of, jobs, "settled")


def test_service_of_no_replicas_is_ready_and_a_first_one_is_waited_for() -> None:
    for replicas, state in ((0, RunState.READY), (1, RunState.STARTING)):
        of = run(template=replace(run().template, replicas=replicas))
        assert turns(step(of, GroupSeen(True, status(of, phase=Phase.PENDING)))) == [state]


@pytest.mark.parametrize(
    ("code", "reason", "state"),
    [(0, "", RunState.SUCCEEDED), (7, "error", RunState.FAILED), (137, "oom", RunState.FAILED)],
)
def test_task_ends_as_its_group_does(code: int, reason: Reason, state: RunState) -> None:
    ended = instance(phase=Phase.EXITED, exit_code=code, reason=reason, ready=None)
    seen = GroupSeen(True, status(task(), ended, phase=Phase.EXITED, code=code, reason=reason))
    of, jobs = settled(task(), seen)
    assert of.state is state
    assert (jobs[0].exit_code, jobs[0].reason) == (code, reason)
    assert step(of, seen, jobs) == []


def test_ended_task_that_is_run_again_is_another_group() -> None:
    job = Job("1", "chat-0-0-0", 0, 0, 0, "h1", "k8s", JobState.SUCCEEDED, T0)
    again = task(since=T0 + timedelta(minutes=1))
    applied = step(again, GroupSeen(True, status(task())), [job])[0]
    assert isinstance(applied, ApplyGroup)
    assert applied.group.template.name == "chat-0-0-1"


def test_refused_group_fails_the_run_once() -> None:
    refused = group_of(run()).digest(), "no such thing"
    of, jobs = settled(run(), GroupSeen(True, refused=refused))
    assert (of.state, of.reason) == (RunState.FAILED, "no such thing")
    assert step(of, GroupSeen(True, refused=refused), jobs) == []


def test_refused_change_leaves_what_serves() -> None:
    changed = run(template=replace(run().template, replicas=3))
    refused = group_of(changed).digest(), "no quota"
    seen = GroupSeen(True, status(run(), instance()), refused=refused)
    of, _ = settled(changed, seen)
    assert of.reason == "rollout failed: no quota"
    assert not of.state.is_final


def test_group_is_tried_again_once_it_differs_from_what_was_refused() -> None:
    other = run(template=replace(run().template, replicas=3))
    seen = GroupSeen(True, refused=(group_of(run()).digest(), "no quota"))
    assert isinstance(step(other, seen)[0], ApplyGroup)


def test_stop_deletes_the_group_and_then_ends_the_run() -> None:
    stopping = run(wanted=Wanted.STOP, state=RunState.READY)
    jobs = [Job("1", "chat-0-0-0", 0, 0, 0, "h1", "k8s", JobState.READY, T0)]
    deleted, turn = step(stopping, GroupSeen(True, status(run(), instance())), jobs)
    assert isinstance(deleted, DeleteGroup)
    assert turn.run.state is RunState.STOPPING
    gone = step(stopping, GroupSeen(True), jobs)
    assert [a.job.state for a in gone if isinstance(a, Record)] == [JobState.STOPPED]
    assert turns(gone) == [RunState.STOPPED]


def test_stop_leaves_the_group_of_a_task_that_ended() -> None:
    ended = task(wanted=Wanted.STOP, state=RunState.SUCCEEDED)
    assert step(ended, GroupSeen(True, status(task()))) == []


def test_delete_takes_the_group_of_an_ended_task_too() -> None:
    ended = task(wanted=Wanted.DELETE, state=RunState.SUCCEEDED)
    (deleted,) = step(ended, GroupSeen(True, status(task())))
    assert isinstance(deleted, DeleteGroup)
    (forgotten,) = step(ended, GroupSeen(True))
    assert isinstance(forgotten, Forget)


def test_replica_that_is_no_longer_there_is_written_down() -> None:
    jobs = [
        Job("1", f"chat-{r}-0-0", r, 0, 0, "h1", "k8s", JobState.READY, T0, started_at=T0) for r in (0, 1)
    ]
    actions = step(run(), GroupSeen(True, status(run(), instance())), jobs)
    written = {a.job.name: a.job.state for a in actions if isinstance(a, Record)}
    assert written["chat-1-0-0"] is JobState.STOPPED


def test_service_that_had_its_time_is_deleted() -> None:
    limited = run(template=replace(run().template, max_duration_s=60))
    seen = GroupSeen(True, status(limited, instance()))
    _, jobs = settled(limited, seen)
    assert not any(isinstance(a, DeleteGroup) for a in step(limited, seen, jobs, T0 + timedelta(seconds=59)))
    assert any(isinstance(a, DeleteGroup) for a in step(limited, seen, jobs, T0 + timedelta(seconds=60)))


@pytest.mark.parametrize(
    ("retry", "retries"),
    [(Retry(), 0), (Retry(frozenset({"error"}), attempts=3), 3), (Retry(frozenset({"error"})), 6)],
)
def test_retries_of_a_task_are_the_clusters(retry: Retry, retries: int) -> None:
    assert group_of(task(template=replace(run().template, retry=retry))).retries == retries
