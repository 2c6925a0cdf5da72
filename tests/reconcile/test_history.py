"""What the record forgets of a service that stays up, and what it must not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from backends.sim import Script
from orchestrator.reconcile import Job, JobState, Retry
from orchestrator.reconcile.history import KEPT, KEPT_FAILURES, MOST_AT_ONCE, outlived
from tests.reconcile.world import PATIENT, World

T0 = datetime(2026, 1, 1, tzinfo=UTC)
RETRY = Retry(frozenset({"error"}), most_s=300.0)


def ended(attempt: int, *, state: JobState = JobState.STOPPED, lasted_s: float = 60.0) -> Job:
    """Return a launch that was ready for so long and ended."""
    began = T0 + timedelta(hours=attempt)
    over = began + timedelta(seconds=lasted_s)
    name = f"chat-0-0-{attempt}"
    return Job("1", name, 0, 0, attempt, "a", "near", state, began, ready_at=began, finished_at=over)


def forgotten(jobs: Sequence[Job], *, retry: Retry = RETRY, places: int = 1, there: str = "") -> list[int]:
    found = outlived(
        jobs, policy=retry, places=places, is_current=lambda _: True, is_gone=lambda job: job.name != there
    )
    return [each.job.attempt for each in found]


def test_of_what_was_stopped_the_last_stay() -> None:
    assert forgotten([ended(n) for n in range(KEPT + 3)]) == [0, 1, 2]
    assert forgotten([ended(n) for n in range(KEPT)]) == []


def test_a_commit_forgets_so_many_and_the_oldest_first() -> None:
    assert forgotten([ended(n) for n in range(1_000)]) == list(range(MOST_AT_ONCE))


def test_what_may_still_be_there_keeps_all_of_its_replica() -> None:
    jobs = [ended(n) for n in range(KEPT + 3)]
    assert forgotten(jobs, there="chat-0-0-1") == []
    live = replace(jobs[1], state=JobState.READY, finished_at=None)
    assert forgotten([jobs[0], live, *jobs[2:]]) == []


def test_failures_that_are_counted_stay_and_those_before_a_steady_one_go() -> None:
    failed = [ended(n, state=JobState.FAILED) for n in range(3)]
    quiet = [ended(n) for n in range(3, KEPT + 10)]
    steady = ended(KEPT + 10, lasted_s=3_600)
    assert forgotten([*failed, *quiet]) == list(range(3, 10))
    assert forgotten([*failed, *quiet, steady]) == list(range(11))


@pytest.mark.parametrize(
    ("retry", "places", "gone"),
    [(RETRY, 1, 50), (RETRY, 2, 0), (replace(RETRY, duration_s=86_400), 1, 0)],
    ids=["by their number", "round the places", "since the first"],
)
def test_of_endless_failures_as_many_stay_as_count(retry: Retry, places: int, gone: int) -> None:
    failed = [ended(n, state=JobState.FAILED) for n in range(KEPT_FAILURES + 50)]
    assert forgotten(failed, retry=retry, places=places) == list(range(gone))


def test_a_service_that_is_scaled_for_ever_has_a_record_that_ends() -> None:
    world = World()
    for _ in range(KEPT + 10):
        for replicas in (1, 0):
            world.apply(replicas=replicas)
            world.settle(quiet=1)
    (run,) = world.runs.values()
    world.apply(replicas=1)
    world.settle()
    assert len(world.jobs[run.id]) == KEPT
    assert [i.name for i in world.alive()] == [f"chat-0-0-{KEPT + 10}"]


def test_tasks_keep_every_attempt() -> None:
    world = World(scripts={"sft": Script(run_s=0.0, exit_code=1)})
    world.apply("sft", type="task", retry=replace(PATIENT, attempts=KEPT + 5))
    world.settle()
    (run,) = world.runs.values()
    assert len(world.jobs[run.id]) == KEPT + 5
