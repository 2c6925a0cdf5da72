"""What a cluster says of pods and Jobs, and what is made of it."""

from __future__ import annotations

from typing import Any

import pytest

from backends.kubernetes.queue import QUEUE
from backends.kubernetes.refusals import Refused, explained
from backends.kubernetes.status import World, instance, numbered, scheduler_says
from orchestrator.backend import Instance, Phase
from orchestrator.errors import AuthFailed, BackendError, Busy, Quota, Rejected

WEB = {"modelyard.dev/run": "web", "modelyard.dev/spec-hash": "h1", "modelyard.dev/kind": "service"}


def pod(name: str = "web-a", *, made: str = "2026-01-01T00:00:00Z", **status: Any) -> dict[str, Any]:
    meta = {"name": name, "creationTimestamp": made, "labels": dict(WEB), "annotations": {}}
    return {"metadata": meta, "spec": {"containers": [{}], "nodeName": "n1"}, "status": status}


def terminated(code: int, reason: str = "Error", message: str = "", **status: Any) -> dict[str, Any]:
    state = {"terminated": {"exitCode": code, "reason": reason, "message": message}}
    return pod(phase="Failed" if code else "Succeeded", containerStatuses=[{"state": state}], **status)


def waiting(reason: str, message: str = "", **more: Any) -> dict[str, Any]:
    state = {"waiting": {"reason": reason, "message": message}}
    return pod(phase="Pending", containerStatuses=[{"state": state, **more}])


def seen(one: dict[str, Any]) -> Instance:
    return instance(one, run="web", replica=0, node=0, attempt=0)


TARGET = {
    "type": "DisruptionTarget",
    "status": "True",
    "reason": "PreemptionByScheduler",
    "message": "preempted",
}


@pytest.mark.parametrize(
    ("one", "reason", "code"),
    [
        (terminated(0, "Completed"), "", 0),
        (terminated(7), "error", 7),
        (terminated(137, "OOMKilled"), "oom", 137),
        (terminated(143, conditions=[TARGET]), "preempted", 143),
        (pod(phase="Failed", reason="Evicted", message="The node was low on memory"), "preempted", None),
        (terminated(137, "ContainerStatusUnknown"), "lost", None),
        (terminated(128, "StartError"), "no-start", 128),
        (pod(phase="Failed", reason="DeadlineExceeded"), "stopped", None),
    ],
)
def test_end_is_told_with_its_reason(one: dict[str, Any], reason: str, code: int | None) -> None:
    found = seen(one)
    assert (found.phase, found.reason, found.exit_code) == (Phase.EXITED, reason, code)


def test_last_words_of_what_failed_are_its_message() -> None:
    assert seen(terminated(1, message="ValueError: no such model\n")).message == "ValueError: no such model"


def test_task_that_ran_out_of_memory_says_so_with_its_limit() -> None:
    """Its controller says only that it was tried often enough."""
    killed = terminated(137, "OOMKilled")
    killed["spec"]["containers"] = [{"resources": {"limits": {"memory": "64Mi"}}}]
    killed["metadata"]["ownerReferences"] = [{"kind": "Job", "name": "web-1"}]
    over = {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": "tried enough"}
    (status,) = World([task(status={"conditions": [over]})], [killed]).groups()
    assert (status.reason, status.message) == ("oom", "out of memory: its limit is 64Mi")


@pytest.mark.parametrize(
    ("one", "phase", "says"),
    [
        (waiting("ImagePullBackOff", "no such image"), Phase.PENDING, "ImagePullBackOff: no such image"),
        (waiting("InvalidImageName", "bad"), Phase.EXITED, "bad"),
        (waiting("ContainerCreating"), Phase.PENDING, ""),
        (waiting("CreateContainerConfigError", "secret not found"), Phase.PENDING, "secret not found"),
    ],
)
def test_what_it_waits_for_is_told(one: dict[str, Any], phase: Phase, says: str) -> None:
    found = seen(one)
    assert found.phase is phase
    assert says in found.message


def test_a_pull_that_goes_on_failing_says_one_thing() -> None:
    tried = seen(waiting("ErrImagePull", "no such image"))
    waits = seen(waiting("ImagePullBackOff", 'Back-off pulling image "a:1": ErrImagePull: no such image'))
    assert waits.message == tried.message == "ErrImagePull: no such image"


def test_scheduler_is_quoted_without_what_follows() -> None:
    why = "0/8 nodes are available: 8 Insufficient nvidia.com/gpu"
    message = f"{why}. no new claims to deallocate, preemption: 0/8"
    one = pod(phase="Pending", conditions=[{"type": "PodScheduled", "status": "False", "message": message}])
    assert seen(one).message == why
    assert scheduler_says("8 node(s) had untolerated taint(s)") == "8 node(s) had untolerated taint(s)"


def ended_twice(*, ready: str, message: str = "no such model") -> dict[str, Any]:
    last = {"terminated": {"exitCode": 2, "reason": "Error", "message": message}}
    running = {"state": {"running": {}}, "lastState": last, "restartCount": 2}
    conditions = [{"type": "Ready", "status": ready}]
    return pod(phase="Running", containerStatuses=[running], conditions=conditions)


@pytest.mark.parametrize(
    ("one", "says"),
    [
        (ended_twice(ready="False"), "no such model"),
        (ended_twice(ready="False", message=""), "Error: exit code 2"),
        (ended_twice(ready="True"), ""),
    ],
)
def test_container_that_runs_again_says_how_it_ended_until_it_is_ready(one: Any, says: str) -> None:
    assert seen(one).message == says


@pytest.mark.parametrize(("finished", "reason"), [("00:00:09", "error"), ("00:00:10", "stopped")])
def test_end_of_a_pod_that_was_told_to_end_is_no_failure(finished: str, reason: str) -> None:
    one = terminated(137, message="half a line")
    one["metadata"] |= {"deletionTimestamp": "2026-01-01T00:00:40Z", "deletionGracePeriodSeconds": 30}
    one["status"]["containerStatuses"][0]["state"]["terminated"]["finishedAt"] = f"2026-01-01T{finished}Z"
    assert (seen(one).reason, seen(one).exit_code) == (reason, 137)


def test_pod_on_a_machine_that_went_away_is_not_ready() -> None:
    state = [{"state": {"running": {"startedAt": "2026-01-01T00:00:01Z"}}}]
    gone = pod(phase="Running", containerStatuses=state, conditions=[{"type": "Ready", "status": "False"}])
    assert (seen(gone).phase, seen(gone).ready) == (Phase.RUNNING, False)


def test_replicas_of_a_deployment_are_numbered_by_age() -> None:
    young = pod("web-b", made="2026-01-02T00:00:00Z", phase="Running")
    leaving = pod("web-c", phase="Running")
    leaving["metadata"]["deletionTimestamp"] = "2026-01-02T00:00:00Z"
    found = numbered("web", [young, leaving, pod("web-a", phase="Running")])
    assert [(i.replica, i.container) for i in found] == [(0, "web-a"), (1, "web-b")]


def test_retried_index_of_a_job_is_its_newest_pod() -> None:
    pods = [pod(f"t-{n}", made=f"2026-01-0{n}T00:00:00Z", phase="Running") for n in (1, 2)]
    for one in pods:
        one["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"] = "3"
    (found,) = numbered("web", pods)
    assert (found.name, found.container) == ("web-0-3-1", "t-2")


def job(**status: Any) -> dict[str, Any]:
    meta = {"name": "web", "labels": dict(WEB), "annotations": {}}
    return {"kind": "Job", "metadata": meta, "spec": {"template": {}}, "status": status}


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ({QUEUE: "team-a"}, "waits in its queue"),
        ({}, "is suspended: Job web has spec.suspend set"),
    ],
    ids=["queue", "by hand"],
)
def test_suspended_job_says_what_holds_it(labels: dict[str, str], says: str) -> None:
    one = job()
    one["spec"]["suspend"] = True
    one["metadata"]["labels"] |= labels
    (status,) = World([one], []).groups()
    assert (status.phase, status.message) == (Phase.PENDING, says)


def test_job_that_had_its_time_was_stopped() -> None:
    failed = {"type": "Failed", "status": "True", "reason": "DeadlineExceeded", "message": "too long"}
    (status,) = World([job(conditions=[failed])], []).groups()
    assert (status.phase, status.reason, status.message) == (Phase.EXITED, "stopped", "too long")


def test_refused_pods_of_a_deployment_are_told() -> None:
    failure = {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: gpus"}
    one = job(conditions=[failure]) | {"kind": "Deployment"}
    (status,) = World([one], []).groups()
    assert status.message == "exceeded quota: gpus"


@pytest.mark.parametrize(
    ("reason", "is_true", "stalled"),
    [
        ("ProgressDeadlineExceeded", "False", True),
        ("ReplicaSetUpdated", "True", False),
        ("DeploymentPaused", "Unknown", False),
    ],
)
def test_a_deployment_that_does_not_get_on_is_told(reason: str, is_true: str, stalled: bool) -> None:
    said = {"type": "Progressing", "status": is_true, "reason": reason}
    (status,) = World([job(conditions=[said]) | {"kind": "Deployment"}], []).groups()
    assert status.stalled is stalled


@pytest.mark.parametrize(
    ("status", "says", "kind"),
    [
        (401, "Unauthorized", AuthFailed),
        (403, 'pods is forbidden: User "u" cannot list resource "pods" in API group ""', AuthFailed),
        (403, "pods \"x\" is forbidden: exceeded quota: gpus", Quota),
        (403, 'pods "x" is forbidden: violates PodSecurity "restricted:latest"', Rejected),
        (403, 'unable to create new content in namespace ml because it is being terminated', Rejected),
        (403, "error looking up service account ml/default", Busy),
        (403, 'admission webhook "vjob.kb.io" denied the request: too large', Rejected),
        (404, 'namespaces "ml" not found', Rejected),
        (409, "the object has been modified", Busy),
        (422, "Deployment is invalid", Rejected),
        (429, "too many requests", Busy),
        (503, "apiserver not ready", Busy),
        (418, "teapot", BackendError),
    ],
)  # fmt: skip
def test_refusal_is_an_error_of_ours(status: int, says: str, kind: type[BackendError]) -> None:
    error = explained(Refused(status, "", says), "lab")
    assert type(error) is kind
    assert error.backend == "lab"
    assert error.fix or kind in (Busy, BackendError)


@pytest.mark.parametrize(
    ("said", "fix"),
    [
        (
            "spec.template.resources: Invalid value: {}: field is immutable",
            "stop the run, and apply it again",
        ),
        ("images come from registry.lan", "ask who runs the cluster what v.kb.io takes"),
    ],
)
def test_denial_of_a_webhook_has_its_remedy(said: str, fix: str) -> None:
    error = explained(Refused(403, "", f'admission webhook "v.kb.io" denied the request: {said}'), "lab")
    assert error.fix == fix


def test_denial_of_a_policy_has_its_remedy() -> None:
    said = (
        "deployments.apps \"web\" is forbidden: ValidatingAdmissionPolicy 'need-team' with binding 'b' "
        "denied request: every Deployment needs the label team"
    )
    error = explained(Refused(422, "Invalid", said), "lab")
    assert (type(error), error.fix) == (Rejected, "ask who runs the cluster what need-team takes")


def task(name: str = "web-1", **changes: Any) -> dict[str, Any]:
    meta = {"name": name, "uid": f"uid-{name}", "labels": dict(WEB), "annotations": {}}
    return {"kind": "Job", "metadata": meta, "spec": {}, "status": {}} | changes


def test_task_without_pods_says_what_keeps_it_back() -> None:
    world = World([task()], [], {"uid-web-1": "exceeded quota: q"})
    (status,) = world.groups()
    assert (status.phase, status.message) == (Phase.PENDING, "exceeded quota: q")


@pytest.mark.parametrize(
    ("owner", "pods", "bare"),
    [
        (task(), [], True),
        (task(), [pod(phase="Pending")], False),
        (task(spec={"suspend": True}), [], False),
        (task(status={"conditions": [{"type": "Failed", "status": "True"}]}), [], False),
        (task(kind="JobSet", status={"conditions": [{"type": "Completed", "status": "True"}]}), [], False),
        (task(kind="Deployment"), [], False),
    ],
)
def test_only_who_asks_for_pods_and_has_none_is_asked_about(owner: Any, pods: Any, bare: bool) -> None:
    assert bool(World([owner], pods).bare()) == bare


@pytest.mark.parametrize(
    ("said", "digest"),
    [("docker.io/library/trl@sha256:0a1b", "sha256:0a1b"), ("sha256:0a1b", "sha256:0a1b"), ("", "")],
)
def test_image_is_the_one_that_ran(said: str, digest: str) -> None:
    running = {"state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}, "imageID": said}
    assert seen(pod(phase="Running", containerStatuses=[running])).image == digest
