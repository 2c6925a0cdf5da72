"""What Kueue says of the work that it holds back, and what a user is told of it."""

from __future__ import annotations

from typing import Any

import pytest

from backends.kubernetes.queue import QUEUE, held_back
from backends.kubernetes.status import World
from orchestrator.backend import Phase

SHORT = "couldn't assign flavors to pod set main: insufficient unused quota for nvidia.com/gpu in flavor h100"


def workload(*conditions: tuple[str, str, str, str], name: str = "job-web-1", **spec: Any) -> dict[str, Any]:
    told = [dict(zip(("type", "status", "reason", "message"), one, strict=True)) for one in conditions]
    meta = {"name": name, "ownerReferences": [{"kind": "Job", "name": "web-1", "uid": "uid-job"}]}
    return {"metadata": meta, "spec": {"queueName": "team-a", **spec}, "status": {"conditions": told}}


RESERVED = ("QuotaReserved", "True", "QuotaReserved", "Quota reserved in ClusterQueue gpus")
ADMITTED = ("Admitted", "True", "Admitted", "The workload is admitted")
WAITS = ("QuotaReserved", "False", "Pending", SHORT)
PREEMPTED = ("Evicted", "True", "Preempted", "Preempted to accommodate a workload (UID: a, JobUID: b)")


@pytest.mark.parametrize(
    ("one", "says"),
    [
        (workload(), "waits for quota in queue 'team-a'"),
        (workload(WAITS), f"waits for quota in queue 'team-a': {SHORT}"),
        (workload(WAITS, PREEMPTED), f"was preempted, and waits for quota in queue 'team-a': {SHORT}"),
        (
            workload(("QuotaReserved", "False", "Inadmissible", "LocalQueue team-a doesn't exist")),
            "queue 'team-a' admits nothing: LocalQueue team-a doesn't exist",
        ),
        (workload(RESERVED), "waits for a check of queue 'team-a'"),
        (workload(RESERVED, ADMITTED, PREEMPTED), f"is stopped by queue 'team-a': {PREEMPTED[3]}"),
        (
            workload(WAITS, ("Evicted", "True", "Deactivated", "The workload is deactivated"), active=False),
            "queue 'team-a' gave it up: The workload is deactivated",
        ),
    ],
)
def test_work_that_waits_is_told_with_the_queues_words(one: Any, says: str) -> None:
    assert held_back([one]) == {"job-web-1": says, "uid-job": says}


def test_check_that_is_waited_for_is_named() -> None:
    one = workload(RESERVED)
    ready = {"name": "budget", "state": "Ready", "message": ""}
    one["status"]["admissionChecks"] = [ready, {"name": "machines", "state": "Pending", "message": "asked"}]
    assert held_back([one])["uid-job"] == "waits for a check of queue 'team-a': machines: asked"


@pytest.mark.parametrize("over", [ADMITTED, ("Finished", "True", "Succeeded", "Job finished successfully")])
def test_work_that_was_let_go_is_not_held_back(over: Any) -> None:
    again = ("Evicted", "False", "QuotaReserved", f"Previously: {PREEMPTED[3]}")
    assert held_back([workload(RESERVED, again, over)]) == {}


WEB = {"modelyard.dev/run": "web", "modelyard.dev/kind": "service", QUEUE: "team-a"}


def owner(kind: str, **spec: Any) -> dict[str, Any]:
    meta = {"name": "web-1", "uid": "uid-job", "labels": dict(WEB), "annotations": {}}
    return {"kind": kind, "metadata": meta, "spec": spec, "status": {}}


def gated(uid: str, **labels: str) -> dict[str, Any]:
    why = "Scheduling is blocked due to non-empty scheduling gates"
    gate = {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated", "message": why}
    meta = {"name": f"web-{uid}", "uid": uid, "labels": {**WEB, **labels}, "creationTimestamp": uid}
    return {
        "metadata": meta,
        "spec": {"containers": [{}]},
        "status": {"phase": "Pending", "conditions": [gate]},
    }


def test_suspended_job_says_what_its_queue_waits_for() -> None:
    world = World([owner("Job", suspend=True)], [], held_back([workload(WAITS)]))
    (status,) = world.groups()
    assert (status.phase, status.message) == (Phase.PENDING, f"waits for quota in queue 'team-a': {SHORT}")


def test_pod_that_a_queue_admits_alone_says_what_it_waits_for() -> None:
    one = workload(WAITS, name="pod-web-b")
    one["metadata"]["ownerReferences"] = [{"kind": "Pod", "uid": "b"}]
    running = gated("a") | {
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    }
    (status,) = World([owner("Deployment")], [running, gated("b")], held_back([one])).groups()
    assert [i.message for i in status.instances] == ["", f"waits for quota in queue 'team-a': {SHORT}"]
    assert (status.ready_replicas, status.message) == (1, status.instances[1].message)


def test_pods_that_start_together_say_what_their_group_waits_for() -> None:
    pods = [gated(uid, **{"kueue.x-k8s.io/pod-group-name": "lws-web-0"}) for uid in "ab"]
    (status,) = World([owner("Deployment")], pods, held_back([workload(WAITS, name="lws-web-0")])).groups()
    assert {i.message for i in status.instances} == {f"waits for quota in queue 'team-a': {SHORT}"}
