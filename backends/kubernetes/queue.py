"""What a queue says of the work that it holds back: Kueue's Workloads as one phrase each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Json = Mapping[str, Any]

KUEUE = "kueue.x-k8s.io"
QUEUE = f"{KUEUE}/queue-name"
_OF_PODS = f"{KUEUE}/pod-group-name"
"""The label of pods that are admitted together: the name of their Workload."""


def held_back(workloads: Iterable[Json]) -> dict[str, str]:
    """Return why each Workload does not run, by its name and by the uid of all that it is for.

    >>> waits = {"metadata": {"name": "job-answer", "ownerReferences": [{"uid": "u1"}]},
    ...     "spec": {"queueName": "team-a"}, "status": {"conditions": [{"type": "QuotaReserved",
    ...     "status": "False", "reason": "Pending", "message": "insufficient unused quota"}]}}
    >>> held_back([waits])["u1"]
    "waits for quota in queue 'team-a': insufficient unused quota"
    """
    found: dict[str, str] = {}
    for one in workloads:
        if phrase := _phrase(one):
            found[one["metadata"]["name"]] = phrase
            found |= {owner["uid"]: phrase for owner in one["metadata"].get("ownerReferences") or ()}
    return found


def of_pod(obstacles: Mapping[str, str], pod: Json) -> str:
    """Return what keeps a pod from being scheduled, "" where nothing is known to."""
    meta = pod["metadata"]
    together = (meta.get("labels") or {}).get(_OF_PODS, "")
    return obstacles.get(meta.get("uid", "")) or obstacles.get(together, "")


def _phrase(workload: Json) -> str:
    spec, status = workload["spec"], workload.get("status") or {}
    said = {one["type"]: one for one in status.get("conditions") or ()}
    queue = f"queue {spec.get('queueName', '')!r}"
    if _is(said, "Finished"):
        return ""
    if _is(said, "Admitted"):  # one that is evicted is so until all of it has ended
        return _with(f"is stopped by {queue}", said["Evicted"]) if _is(said, "Evicted") else ""
    if spec.get("active") is False:
        return _with(f"{queue} gave it up", said.get("Evicted"))
    if _is(said, "QuotaReserved"):
        checks = [c for c in status.get("admissionChecks") or () if c.get("state") != "Ready"]
        told = ", ".join(_with(str(check["name"]), check) for check in checks)
        return f"waits for a check of {queue}" + (f": {told}" if told else "")
    reserved = said.get("QuotaReserved")
    if reserved and reserved.get("reason") == "Inadmissible":
        return _with(f"{queue} admits nothing", reserved)
    was = "was preempted, and " if _is(said, "Evicted", "Preempted") else ""
    return _with(f"{was}waits for quota in {queue}", reserved)


def _is(said: Mapping[str, Json], kind: str, reason: str = "") -> bool:
    found = said.get(kind)
    return bool(found and found["status"] == "True" and (not reason or found.get("reason") == reason))


def _with(phrase: str, said: Json | None) -> str:
    message = str((said or {}).get("message", "")).strip(" .")
    return f"{phrase}: {message}" if message else phrase
