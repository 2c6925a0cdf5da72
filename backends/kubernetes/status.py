"""From what a cluster says to instances and groups, with reasons."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field, replace
from datetime import datetime, timedelta
from typing import Any

from backends.kubernetes.client import parse_time
from backends.kubernetes.names import ATTEMPT, DIGEST, HASH, KIND, LAUNCH, NODES, RUN
from backends.kubernetes.queue import QUEUE, of_pod
from orchestrator.backend import LABEL, GroupStatus, Instance, Phase, Reason
from orchestrator.frozen import frozen

Json = dict[str, Any]

GITOPS = {
    "argocd.argoproj.io/tracking-id": "Argo CD",
    "kustomize.toolkit.fluxcd.io/name": "Flux",
    "helm.toolkit.fluxcd.io/name": "Flux",
    "meta.helm.sh/release-name": "Helm",
}
"""Marks of those who would write the same object again."""

STOPPED = LABEL + "stopped"
"""The annotation that says when we asked a launch to end, and after that with which code it did."""

SCALABLE = frozenset({"Deployment", "LeaderWorkerSet"})
"""The objects whose ``spec.replicas`` is the number of a service's replicas."""

_INDEX = "batch.kubernetes.io/job-completion-index"
_RESTARTED = "jobset.sigs.k8s.io/restart-attempt"
"""The label of pods that says how often their whole set was started again before."""
_LATE = {
    "DeadlineExceeded": "",
    # the one rule of ours that fails a set (:mod:`backends.kubernetes.render`), whose words name a Job
    "FailJobSetFailurePolicyAction": "JobSet was active longer than specified deadline",
}
_LWS = "leaderworkerset.sigs.k8s.io/"
_NEVER = frozenset({"InvalidImageName", "ErrImageNeverPull"})
_BACK_OFF = re.compile(r'^Back-off pulling image "[^"]*": ')
"""Stands before why a pull failed between two tries: without it one that goes on failing says one thing."""
_UNMADE = re.compile(r'^(\(combined from similar events\): )?(Error creating: )?pods "[^"]+" is forbidden: ')
_IMAGE = frozenset({"ErrImagePull", "ImagePullBackOff", "RegistryUnavailable", *_NEVER})
_NO_START = frozenset({"StartError", "ContainerCannotRun", "CreateContainerError", "RunContainerError"})
_TAKEN = frozenset({"Evicted", "Preempting", "Preempted", "NodeShutdown", "Terminated"})
_LOST = frozenset({"NodeLost", "ContainerStatusUnknown"})


@frozen
class World:
    """The objects of ours in a namespace: owners of every kind, and pods.

    ``obstacles`` says why a controller makes no pods, or makes them anew, by the uid of their owner,
    and what a queue waits for, by that or by a pod's uid or by the name that pods which start
    together have in it.
    """

    owners: Sequence[Json]
    pods: Sequence[Json]
    obstacles: Mapping[str, str] = field(default_factory=dict)

    def bare(self) -> list[Json]:
        """Return the owners that ask for pods and have none; a queue that holds one back is no reason."""
        runs = {labels_of(pod).get(RUN) for pod in self.pods}
        return [
            owner
            for owner in self.owners
            if owner["kind"] != "Deployment"  # which says it itself, as a condition
            and labels_of(owner)[RUN] not in runs
            and not owner["spec"].get("suspend")
            and not any(condition(owner, end) for end in ("Complete", "Completed", "Failed"))
        ]

    def unsettled(self) -> list[Json]:
        """Return the owners whose controller starts whole replicas again, and that lack some."""
        return [
            owner
            for owner in self.owners
            if owner["kind"] == "LeaderWorkerSet" and not condition(owner, "Available")
        ]

    def groups(self) -> list[GroupStatus]:
        """Return the groups, ordered by name."""
        runs: dict[str, list[Json]] = {}
        for owner in self.owners:
            if LAUNCH not in labels_of(owner):
                runs.setdefault(labels_of(owner)[RUN], []).append(owner)
        return [self._group(run, owners) for run, owners in sorted(runs.items())]

    def instances(self) -> list[Instance]:
        """Return every pod of a group and every single launch, ordered by name."""
        found = [one for group in self.groups() for one in group.instances]
        found += [self._launch(owner) for owner in self.owners if LAUNCH in labels_of(owner)]
        return sorted(found, key=lambda one: one.name)

    def _group(self, run: str, owners: Sequence[Json]) -> GroupStatus:
        newest = max(
            owners, key=lambda o: (o["metadata"].get("creationTimestamp", ""), o["metadata"]["name"])
        )
        spec_hash = hash_of(newest)
        pods = [p for p in self.pods if labels_of(p).get(RUN) == run]
        instances = tuple(self._taken(newest, i) for i in self._explained(numbered(run, pods), pods))
        status = _of_job(run, newest, instances) if newest["kind"] in {"Job", "JobSet"} else None
        if status is None:
            status = _kept_up(run, newest, instances)
        if status.phase is not Phase.EXITED:
            status = replace(status, message=status.message or self._obstacle(newest))
        digest = (newest["metadata"].get("annotations") or {}).get(DIGEST, "")
        return replace(status, spec_hash=spec_hash, digest=digest)

    def _obstacle(self, owner: Json) -> str:
        """Return what keeps a group back that has no word of its own for it."""
        known = self.obstacles.get(owner["metadata"].get("uid", ""), "")
        if known or not owner["spec"].get("suspend"):
            return known
        by_hand = f"is suspended: {owner['kind']} {owner['metadata']['name']} has spec.suspend set"
        return "waits in its queue" if QUEUE in labels_of(owner) else by_hand

    def _explained(self, instances: Sequence[Instance], pods: Sequence[Json]) -> Iterator[Instance]:
        """Yield instances, those that a queue holds back with its words."""
        told = {p["metadata"]["name"]: of_pod(self.obstacles, p) for p in pods}
        for one in instances:
            why = told.get(one.container, "") if one.phase is Phase.PENDING else ""
            yield replace(one, message=why) if why else one

    @staticmethod
    def _taken(owner: Json, one: Instance) -> Instance:
        """Return an instance that ended because a queue took the place of all of its run as just that."""
        taken = owner["spec"].get("suspend") and one.reason == "stopped"
        return replace(one, reason="preempted") if taken else one

    def _launch(self, job: Json) -> Instance:
        """Return the instance of a single launch: a Job with at most one pod."""
        labels = labels_of(job)
        pods = [p for p in self.pods if labels_of(p).get(LAUNCH) == labels[LAUNCH]]
        base = Instance(
            name=job["metadata"]["annotations"][LAUNCH],
            run=labels[RUN],
            replica=int(labels[LABEL + "replica"]),
            node=int(labels[LABEL + "node"]),
            attempt=int(labels[ATTEMPT]),
            spec_hash=hash_of(job),
            phase=Phase.PENDING,
        )
        if pods:
            newest = max(pods, key=_age)
            seen = instance(newest, run=base.run, replica=base.replica, node=base.node, attempt=base.attempt)
            base = replace(seen, name=base.name, spec_hash=base.spec_hash)
        return _ended_job(base, job)


def _ended_job(seen: Instance, job: Json) -> Instance:
    stopped = job["metadata"].get("annotations", {}).get(STOPPED)
    if stopped:
        code = int(stopped) if stopped.lstrip("-").isdigit() else seen.exit_code
        return replace(seen, phase=Phase.EXITED, reason="stopped", exit_code=code, ready=None)
    failed = condition(job, "Failed")
    if failed and seen.phase is not Phase.EXITED:
        return replace(seen, phase=Phase.EXITED, reason="lost", message=failed.get("message", ""))
    return seen


def labels_of(one: Json) -> Mapping[str, str]:
    """Return an object's labels."""
    labels: Mapping[str, str] = one["metadata"].get("labels") or {}
    return labels


def hash_of(one: Json) -> str:
    """Return the hash of the spec that an object was made for."""
    whole = (one["metadata"].get("annotations") or {}).get(HASH)
    return str(whole or labels_of(one).get(HASH, ""))


def condition(one: Json, kind: str, status: str = "True") -> Json | None:
    """Return a condition of an object when it is true, or what else is asked for."""
    for found in one.get("status", {}).get("conditions") or ():
        if found["type"] == kind and found["status"] == status:
            return dict(found)
    return None


def is_over(job: Json) -> bool:
    """Return whether what runs to an end has come to it."""
    return any(condition(job, kind) for kind in ("Complete", "Completed", "Failed"))


def is_controlled(one: Json) -> bool:
    """Return whether a controller made the object: it is deleted with its owner."""
    return any(owner.get("controller") for owner in one["metadata"].get("ownerReferences") or ())


def keeper_of(one: Json) -> str:
    """Return who else writes an object again, "" where nobody does."""
    marks = {**(one["metadata"].get("annotations") or {}), **labels_of(one)}
    return next((who for mark, who in GITOPS.items() if mark in marks), "")


def numbered(run: str, pods: Sequence[Json]) -> list[Instance]:
    """Return the pods of a group as instances: one for each replica and node, the newest.

    Pods of a Deployment have no number of their own: the older one has the lower.
    """
    places: dict[tuple[int, int], list[Json]] = {}
    anonymous = [p for p in sorted(pods, key=_age) if _place(p) is None]
    living = [p for p in anonymous if not is_leaving(p)]
    for number, one in enumerate(living):
        places[number, 0] = [one]
    for one in pods:
        place = _place(one)
        if place is not None:
            places.setdefault(place, []).append(one)
    found: list[Instance] = []
    for (replica, node), holders in sorted(places.items()):
        newest = max(holders, key=lambda one: (_restarts_of_set(one), *_age(one)))
        restarts = _restarts_of_set(newest)
        first = int(labels_of(newest).get(ATTEMPT, "0")) + restarts
        attempt = first + sum(_restarts_of_set(one) == restarts for one in holders) - 1
        found.append(instance(newest, run=run, replica=replica, node=node, attempt=attempt))
    return sorted(found, key=lambda one: one.name)


def _restarts_of_set(pod: Json) -> int:
    return int(labels_of(pod).get(_RESTARTED, "0"))


def is_leaving(pod: Json) -> bool:
    """Return whether a pod was told to go, or has ended and been replaced."""
    return "deletionTimestamp" in pod["metadata"] or pod["status"].get("phase") in {"Failed", "Succeeded"}


def _age(pod: Json) -> tuple[str, str]:
    return pod["metadata"].get("creationTimestamp", ""), pod["metadata"]["name"]


def _place(pod: Json) -> tuple[int, int] | None:
    """Return replica and node of a pod whose controller numbers its pods."""
    labels = labels_of(pod)
    annotations = pod["metadata"].get("annotations") or {}
    if _LWS + "group-index" in labels:
        return int(labels[_LWS + "group-index"]), int(labels.get(_LWS + "worker-index", "0"))
    if _INDEX in annotations:
        return 0, int(annotations[_INDEX])
    owners = {o["kind"] for o in pod["metadata"].get("ownerReferences") or ()}
    if "StatefulSet" in owners:
        node = int(labels.get("apps.kubernetes.io/pod-index", "0"))
        return int(labels.get(LABEL + "replica", "0")), node if LABEL + "replica" in labels else 0
    return (0, 0) if "Job" in owners else None


def instance(pod: Json, *, run: str, replica: int, node: int, attempt: int) -> Instance:
    """Return a pod as an instance; ``machine`` is its node's name, ``container`` its own."""
    status = pod["status"]
    container: Json = next(iter(status.get("containerStatuses") or ()), {})
    state = container.get("state") or {}
    seen = Instance(
        name=f"{run}-{replica}-{node}-{attempt}",
        run=run,
        replica=replica,
        node=node,
        attempt=attempt,
        spec_hash=hash_of(pod),
        phase=Phase.PENDING,
        started_at=_started_at(state),
        address=status.get("podIP"),
        ports=_ports(pod),
        restarts=container.get("restartCount", 0),
        machine=pod["spec"].get("nodeName", ""),
        container=pod["metadata"]["name"],
        image=container.get("imageID", "").rpartition("@")[2],
    )
    phase = status.get("phase")
    if phase in {"Failed", "Succeeded"}:
        return _ended(seen, pod, state.get("terminated") or {})
    if phase == "Running" and not state.get("waiting"):
        # a machine that is gone leaves its pods "Running": only Ready tells
        ready = condition(pod, "Ready") is not None and not _takes_its_group_along(pod, seen)
        return replace(
            seen, phase=Phase.RUNNING, ready=ready, message="" if ready else _how_it_ended(container)
        )
    return _waiting(seen, pod, state.get("waiting") or {}, container)


def _takes_its_group_along(pod: Json, seen: Instance) -> bool:
    """Return whether a pod was restarted whose whole group is started again for that."""
    return seen.restarts > 0 and _LWS + "group-index" in labels_of(pod)


def _how_it_ended(container: Json) -> str:
    """Return the last words of a container that runs again, "" where it never ended."""
    last = (container.get("lastState") or {}).get("terminated")
    if not last:
        return ""
    return _last_words(last) or f"{last.get('reason', 'Error')}: exit code {last.get('exitCode')}"


def _started_at(state: Json) -> datetime | None:
    """Return when a container began; for one that never did, containerd says 1970."""
    at = parse_time((state.get("running") or state.get("terminated") or {}).get("startedAt"))
    return at if at and at.year > 1970 else None


def _ports(pod: Json) -> dict[int, tuple[str, int]]:
    """Return where a running pod's ports answer, for whoever is on the pods' network."""
    address = pod["status"].get("podIP")
    if not address or pod["status"].get("phase") != "Running":
        return {}
    ports = pod["spec"]["containers"][0].get("ports") or ()
    return {one["containerPort"]: (address, one["containerPort"]) for one in ports}


def _waiting(seen: Instance, pod: Json, waiting: Json, container: Json) -> Instance:
    why = waiting.get("reason", "")
    message = waiting.get("message", "")
    if why in _NEVER:
        return replace(seen, phase=Phase.EXITED, reason="image", message=message)
    if why == "CrashLoopBackOff":
        return replace(seen, phase=Phase.RUNNING, ready=False, message=_how_it_ended(container) or message)
    if why == "ImagePullBackOff" and (cause := _BACK_OFF.sub("", message)) != message:
        return replace(seen, message=cause)
    if why in _IMAGE or why in _NO_START or why == "CreateContainerConfigError":
        return replace(seen, message=f"{why}: {message}" if message else why)
    for found in pod["status"].get("conditions") or ():
        if found["type"] == "PodScheduled" and found["status"] == "False":
            return replace(seen, message=scheduler_says(found.get("message", "")))
    return replace(seen, message="" if why in {"ContainerCreating", "PodInitializing"} else message)


def scheduler_says(message: str) -> str:
    """Return the part of the scheduler's message that tells why, without what follows from it.

    >>> scheduler_says("0/8 nodes are available: 8 Insufficient nvidia.com/gpu. no new claims to "
    ...     "deallocate, preemption: 0/8 nodes are available: 8 Preemption is not helpful.")
    '0/8 nodes are available: 8 Insufficient nvidia.com/gpu'
    """
    for fragment in (" no new claims to deallocate", " preemption: "):
        message = message.partition(fragment)[0]
    return message.rstrip(" .,")


def _ended(seen: Instance, pod: Json, terminated: Json) -> Instance:
    code = terminated.get("exitCode")
    target = condition(pod, "DisruptionTarget")
    reason: Reason = "error"
    message = _last_words(terminated) or pod["status"].get("message", "")
    why = terminated.get("reason", "")
    if why == "OOMKilled":
        reason, message = "oom", message or _out_of_memory(pod)
    elif target or pod["status"].get("reason") in _TAKEN:
        reason = "preempted"
        message = (target or {}).get("message", "") or message
    elif why in _LOST or pod["status"].get("reason") in _LOST:
        reason, code = "lost", None
    elif why in _NO_START:
        reason = "no-start"
    elif pod["status"]["phase"] == "Succeeded" or code == 0:
        reason, message = "", ""
    elif pod["status"].get("reason") == "DeadlineExceeded":
        reason = "stopped"
    elif _was_told_to_end(pod, terminated):
        reason, message = "stopped", ""
    return replace(
        seen, phase=Phase.EXITED, exit_code=code, reason=reason, message=message,
        finished_at=parse_time(terminated.get("finishedAt")),
    )  # fmt: skip


def _out_of_memory(pod: Json) -> str:
    limits = pod["spec"]["containers"][0].get("resources", {}).get("limits") or {}
    return f"out of memory: its limit is {limits['memory']}" if "memory" in limits else "out of memory"


def _was_told_to_end(pod: Json, terminated: Json) -> bool:
    """Return whether a container ended because its pod was deleted, and not before."""
    by = parse_time(pod["metadata"].get("deletionTimestamp"))
    ended = parse_time(terminated.get("finishedAt"))
    if by is None or ended is None:
        return False
    grace = timedelta(seconds=pod["metadata"].get("deletionGracePeriodSeconds") or 0)
    return ended >= by - grace  # the time of a deletion is when its grace is over


def _last_words(terminated: Json) -> str:
    """Return the end of the output that the kubelet kept (``FallbackToLogsOnError``)."""
    return str(terminated.get("message", "")).strip()[-2000:]


def _of_job(run: str, job: Json, instances: tuple[Instance, ...]) -> GroupStatus:
    done = condition(job, "Complete") or condition(job, "Completed")
    failed = condition(job, "Failed")
    if done:
        return GroupStatus(run, "", Phase.EXITED, instances=instances, exit_code=0)
    if failed:
        return _failed(run, failed, instances)
    return _going_on(run, instances, "")


def _failed(run: str, failed: Json, instances: tuple[Instance, ...]) -> GroupStatus:
    ended = [i for i in instances if i.phase is Phase.EXITED and i.reason]
    first = min(ended, key=lambda i: (i.finished_at is None, i.finished_at or 0, i.name), default=None)
    reason: Reason = first.reason if first else "error"
    message = (first.message if first else "") or failed.get("message", "")
    if failed.get("reason") in _LATE:
        reason, message = "stopped", _LATE[failed["reason"]] or message
    code = first.exit_code if first else None
    return GroupStatus(run, "", Phase.EXITED, 0, instances, code, reason, message)


def _kept_up(run: str, owner: Json, instances: tuple[Instance, ...]) -> GroupStatus:
    said = condition(owner, "ReplicaFailure")  # quota, or Pod Security
    status = _going_on(run, instances, without_name((said or {}).get("message", "")))
    nodes = max(1, int(labels_of_template(owner).get(NODES, "1")))
    replicas: dict[int, list[Instance]] = {}
    for one in instances:
        replicas.setdefault(one.replica, []).append(one)
    ready = sum(
        len(members) >= nodes and all(m.phase is Phase.RUNNING and m.ready is not False for m in members)
        for members in replicas.values()
    )
    number = owner["spec"].get("replicas") if owner["kind"] in SCALABLE else None
    return replace(status, ready_replicas=ready, stalled=_is_stalled(owner), replicas=number)


def without_name(said: str) -> str:
    """Return what a controller says of a pod that it could not make without a name that is another each time.

    >>> without_name('Error creating: pods "web-5d774c67df-28nkc" is forbidden: exceeded quota: q')
    'no pod may be made: exceeded quota: q'
    >>> without_name('(combined from similar events): Error creating: pods "a-b" is forbidden: too large')
    'no pod may be made: too large'
    """
    return _UNMADE.sub("no pod may be made: ", said)


def _is_stalled(owner: Json) -> bool:
    """Return whether a Deployment has seen no progress for its ``progressDeadlineSeconds``."""
    stands = condition(owner, "Progressing", "False")
    return stands is not None and stands.get("reason") == "ProgressDeadlineExceeded"


def labels_of_template(owner: Json) -> Mapping[str, str]:
    """Return the labels of the pods that an object makes."""
    spec = owner["spec"]
    template = spec.get("template") or spec.get("leaderWorkerTemplate", {}).get("leaderTemplate") or {}
    labels: Mapping[str, str] = template.get("metadata", {}).get("labels") or {}
    return labels


def _going_on(run: str, instances: tuple[Instance, ...], said: str) -> GroupStatus:
    running = any(i.phase is not Phase.PENDING for i in instances)  # one that ended is tried again
    message = said or next((i.message for i in instances if i.message), "")
    return GroupStatus(run, "", Phase.RUNNING if running else Phase.PENDING, 0, instances, message=message)


def kind_of(owner: Json) -> str:
    """Return what kind of group an object keeps."""
    return labels_of(owner).get(KIND, "")
