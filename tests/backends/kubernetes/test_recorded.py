"""What real controllers said, and what is made of it.

``recorded/`` holds objects of a Kubernetes 1.36 with LeaderWorkerSet 0.8, JobSet 0.11 and Kueue 0.13, cut
down to what is read; ``said`` are the words of events, by the object they are about.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from backends.kubernetes.queue import held_back
from backends.kubernetes.status import World
from orchestrator.backend import GroupStatus, Phase

RECORDED = Path(__file__).parent / "recorded"


def status_of(name: str, **changes: Any) -> GroupStatus:
    seen = {**json.loads((RECORDED / f"{name}.json").read_text()), **changes}
    world = World(seen["owners"], seen["pods"], {**seen["said"], **held_back(seen["workloads"])})
    (status,) = world.groups()
    return status


SHORT = "insufficient unused quota for nvidia.com/gpu in flavor h100"
QUOTA = f"quota in queue 'team-a': couldn't assign flavors to pod set main: {SHORT}, 2 more needed"
QUOTA_OF_A_GROUP = (
    f"quota in queue 'team-a': couldn't assign flavors to pod set leader: {SHORT}, 1 more needed; "
    f"couldn't assign flavors to pod set worker: {SHORT}, 2 more needed"
)

SAID: dict[str, tuple[Phase, int, str, str]] = {
    "lws-ready": (Phase.RUNNING, 1, "", ""),
    "lws-worker-restarted": (Phase.RUNNING, 0, "", "no NCCL device"),
    "lws-group-starts-again": (
        Phase.RUNNING, 0, "", "Worker pod boom-0-1 failed, deleted leader pod boom-0 to recreate group 0",
    ),
    "jobset-done": (Phase.EXITED, 0, "", ""),
    "jobset-starts-again": (Phase.PENDING, 0, "", ""),
    "jobset-failed": (Phase.EXITED, 0, "error", "no such data set"),
    "kueue-waits": (Phase.PENDING, 0, "", f"waits for {QUOTA}"),
    "kueue-preempted": (Phase.PENDING, 0, "", f"was preempted, and waits for {QUOTA}"),
    "kueue-no-queue": (
        Phase.PENDING, 0, "", "queue 'nowhere' admits nothing: LocalQueue nowhere doesn't exist",
    ),
    "kueue-service-in-part": (Phase.RUNNING, 1, "", f"waits for {QUOTA}"),
    "kueue-lws-in-part": (Phase.RUNNING, 2, "", f"waits for {QUOTA_OF_A_GROUP}"),
    "jobset-deadline": (Phase.EXITED, 0, "stopped", "JobSet was active longer than specified deadline"),
}  # fmt: skip


@pytest.mark.parametrize("name", SAID)
def test_group_is_told_as_its_controllers_have_it(name: str) -> None:
    status = status_of(name)
    assert (status.phase, status.ready_replicas, status.reason, status.message) == SAID[name]


def test_every_record_is_read() -> None:
    assert {path.stem for path in RECORDED.glob("*.json")} == SAID.keys()


def test_nodes_of_a_replica_have_their_rank() -> None:
    assert [(i.name, i.ready) for i in status_of("lws-ready").instances] == [
        ("wide-0-0-0", True), ("wide-0-1-0", True),
    ]  # fmt: skip


def test_worker_that_takes_its_replica_along_is_not_ready() -> None:
    assert [(i.name, i.ready, i.restarts) for i in status_of("lws-worker-restarted").instances] == [
        ("boom-0-0-0", False, 0), ("boom-0-1-0", False, 1),
    ]  # fmt: skip


def test_set_that_starts_again_has_other_attempts() -> None:
    assert {i.attempt for i in status_of("jobset-starts-again").instances} == {1}
    (failed,) = status_of("jobset-failed").instances
    assert (failed.name, failed.exit_code) == ("fail-0-1-1", 3)


def test_only_what_a_queue_holds_back_says_so() -> None:
    assert [bool(i.message) for i in status_of("kueue-service-in-part").instances] == [False, True]
    assert [bool(i.message) for i in status_of("kueue-lws-in-part").instances] == [False] * 4 + [True] * 2
