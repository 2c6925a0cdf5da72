"""What a namespace of a cluster holds of ours, asked of its API server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from backends.kubernetes.client import Cluster, path_of
from backends.kubernetes.names import MANAGER, RUN
from backends.kubernetes.queue import KUEUE, QUEUE, held_back
from backends.kubernetes.settings import Settings
from backends.kubernetes.status import World, is_controlled, is_over, keeper_of, labels_of, without_name
from orchestrator.errors import AuthFailed

Json = dict[str, Any]

MANAGED = f"app.kubernetes.io/managed-by={MANAGER},{RUN}"
"""Selects what runs belong to; other installations may manage by the same name without runs."""

OWNERS = (
    ("apps/v1", "Deployment"),
    ("apps/v1", "StatefulSet"),
    ("batch/v1", "Job"),
    ("jobset.x-k8s.io/v1alpha2", "JobSet"),
    ("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet"),
)


class View:
    """Reads one namespace of a cluster.

    Args:
        cluster: Its API server.
        settings: Which namespace, and how it is used.
    """

    def __init__(self, cluster: Cluster, settings: Settings) -> None:
        self.cluster = cluster
        self.settings = settings

    def path(self, version: str, kind: str, name: str = "") -> str:
        """Return the path of a kind of objects in the namespace, or of one of them."""
        return path_of(version, kind, self.settings.namespace, name)

    def listed(self, version: str, kind: str, chosen: str) -> list[Json]:
        """Return the objects of a kind whose labels a selector chooses, each with what lists leave out."""
        items, _ = self.cluster.list(self.path(version, kind), labelSelector=chosen)
        return [whole(one, version, kind) for one in items]

    def world(self, *, explained: bool = False) -> World:
        """Return what is there; ``explained``: also what keeps controllers from making pods."""
        owners = [one for version, kind in OWNERS for one in self.listed(version, kind, MANAGED)]
        owners = [o for o in owners if not is_controlled(o) and "deletionTimestamp" not in o["metadata"]]
        owners = [o for o in owners if not keeper_of(o)]  # rendered, and another's to write and to delete
        world = World(owners, self.listed("v1", "Pod", MANAGED))
        if not explained:
            return world
        held = {one["metadata"]["uid"]: self._obstacle(one, "FailedCreate") for one in world.bare()}
        held |= {one["metadata"]["uid"]: self._obstacle(one, "RecreateGroup") for one in world.unsettled()}
        return replace(world, obstacles={**held, **self._held_back(owners)})

    def _obstacle(self, owner: Json, reason: str) -> str:
        """Return what a controller last said of pods that it could not make, or had to make anew."""
        meta = owner["metadata"]
        chosen = f"reason={reason},involvedObject.uid={meta['uid']}"
        try:
            events, _ = self.cluster.list(self.path("v1", "Event"), fieldSelector=chosen)
        except AuthFailed:
            return ""  # an older role: the pods are waited for without a word
        newest = max(events, key=lambda e: e.get("lastTimestamp") or e.get("eventTime") or "", default=None)
        return without_name(newest["message"]) if newest else ""

    def _held_back(self, owners: Sequence[Json]) -> dict[str, str]:
        """Return what a queue says of the work that it holds back; asked where something is in one."""
        if not any(QUEUE in labels_of(one) and not is_over(one) for one in owners):
            return {}
        try:
            return held_back(self.queued("workloads"))
        except AuthFailed:
            return {}  # an older role: it is waited for without a word

    def queued(self, plural: str, name: str = "") -> list[Json]:
        """Return the objects of the queue's own kind, of the version that its server prefers."""
        served = self.cluster.get(f"/apis/{KUEUE}")
        if served is None:
            return []
        version = served["preferredVersion"]["groupVersion"]
        path = f"/apis/{version}/namespaces/{self.settings.namespace}/{plural}"
        if name:
            found = self.cluster.get(f"{path}/{name}")
            return [found] if found else []
        return self.cluster.list(path)[0]

    def has(self, kind: str) -> bool:
        """Return whether the cluster serves a custom resource; discovery is open to everybody."""
        plural, _, group = kind.partition(".")
        found = self.cluster.get(f"/apis/{group}")
        if found is None:
            return False
        version = found["preferredVersion"]["groupVersion"]
        served = self.cluster.get(f"/apis/{version}") or {"resources": []}
        return any(one["name"] == plural for one in served["resources"])


def whole(one: Json, version: str, kind: str) -> Json:
    """Return an item of a list with what lists leave out."""
    return {**one, "apiVersion": version, "kind": kind}
