"""Looking whether a cluster has, and lets us do, what its settings take."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from backends.kubernetes.gateway import HTTP_ROUTE, INFERENCE_POOL
from backends.kubernetes.inventory import Inventory
from backends.kubernetes.rbac import missing_rules
from backends.kubernetes.refusals import GOING, grant
from backends.kubernetes.render import INSTALL, JOB_SET, LEADER_WORKER_SET, SCALED_OBJECT
from backends.kubernetes.status import condition, labels_of
from backends.kubernetes.view import View
from orchestrator.backend import Check
from orchestrator.errors import ModelyardError


class Checks:
    """The looks at one cluster.

    Args:
        view: The namespace.
        name: The backend's name, for advice.
        inventory: What reads the nodes.
    """

    def __init__(self, view: View, name: str, inventory: Callable[[], Inventory]) -> None:
        self._view = view
        self._name = name
        self._inventory = inventory

    def run(self) -> Sequence[Check]:
        """Look at the server, the namespace, our permissions and what the settings take."""
        try:
            version = self._view.cluster.get("/version") or {}
        except ModelyardError as error:
            return [Check.failed("API server answers", error, fix="check the kubeconfig")]
        checks = [Check("API server answers", True, f"Kubernetes {version.get('gitVersion', '')}")]
        looks = [
            ("permissions", self._rules),
            ("namespace", self._namespace),
            ("nodes", self._nodes),
            ("LeaderWorkerSet", self._kinds),
            *self._named(),
            *([("queue", self._queue)] if self._view.settings.queue else []),
        ]
        for what, look in looks:
            try:
                checks.append(look())
            except ModelyardError as error:
                checks.append(Check.failed(what, error, fix="see the reference"))
        return checks

    def _namespace(self) -> Check:
        namespace = self._view.settings.namespace
        found = self._view.cluster.get(f"/api/v1/namespaces/{namespace}")
        if found is None:
            return Check(
                "namespace", False, f"no namespace {namespace!r}", f"kubectl create namespace {namespace}"
            )
        if found.get("status", {}).get("phase") == "Terminating":
            return Check("namespace", False, f"namespace {namespace!r} is being deleted", GOING)
        enforced = labels_of(found).get("pod-security.kubernetes.io/enforce", "privileged")
        order = ("restricted", "baseline", "image-default")
        admits = order.index("image-default" if enforced == "privileged" else enforced)
        ok = order.index(self._view.settings.security) <= admits
        fix = f"set security: {enforced} for this backend"
        return Check("Pod Security", ok, f"the namespace enforces {enforced}", "" if ok else fix)

    def _rules(self) -> Check:
        body = {"spec": {"namespace": self._view.settings.namespace}}
        answer = self._view.cluster.send(
            "POST", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", body
        )
        missing = missing_rules(answer["status"]["resourceRules"])
        if not missing:
            return Check("permissions", True, "all")
        return Check("permissions", False, "; ".join(missing), grant(self._name), denied=True)

    def _nodes(self) -> Check:
        """What is left out is no fault, and is told: nothing is planned for it."""
        names: dict[str, list[str]] = {}
        for one in self._inventory().left_out:
            if one.offers:
                names.setdefault(one.why, []).append(one.node)
        told = [f"{_some(nodes)}: {why}" for why, nodes in sorted(names.items())]
        return Check("nodes", True, f"left out: {'; '.join(told)}" if told else "all are offered")

    def _kinds(self) -> Check:
        """Only services that span nodes take it, so that its absence is no fault."""
        there = self._view.settings.multinode != "leader-worker-set" or self._view.has(LEADER_WORKER_SET)
        found = "there, or not needed" if there else f"not here: {INSTALL[LEADER_WORKER_SET]}"
        return Check("LeaderWorkerSet", True, found)

    def _named(self) -> Iterator[tuple[str, Callable[[], Check]]]:
        """Yield the looks at custom resources that the settings ask for by name."""
        gateway = self._view.settings.gateway
        asked = {
            JOB_SET: self._view.settings.tasks == "jobset",
            SCALED_OBJECT: self._view.settings.autoscaler == "keda",
            HTTP_ROUTE: gateway is not None,
            INFERENCE_POOL: gateway is not None and gateway.pools,
        }
        for kind in (kind for kind, is_asked in asked.items() if is_asked):
            yield kind, partial(self._kind, kind)

    def _kind(self, kind: str) -> Check:
        there = self._view.has(kind)
        return Check(kind, there, "there" if there else "not here", "" if there else INSTALL[kind])

    def _queue(self) -> Check:
        """What is put in a queue that is not there, or is stopped, waits for ever."""
        name = self._view.settings.queue or ""
        found = next(iter(self._view.queued("localqueues", name)), None)
        if found is None:
            what = f"no LocalQueue {name!r} in namespace {self._view.settings.namespace!r}"
            return Check("queue", False, what, "make it, or set another queue for this backend")
        if active := condition(found, "Active"):
            return Check("queue", True, active.get("message") or name)
        told = [c.get("message") for c in found.get("status", {}).get("conditions") or ()]
        why = next(filter(None, told), "is not active")
        return Check("queue", False, f"LocalQueue {name!r}: {why}", "look at its ClusterQueue")


def _some(names: Sequence[str]) -> str:
    """Return a few names, and how many there are beside them.

    >>> _some(["n1", "n2"]), _some(["n1", "n2", "n3", "n4", "n5"])
    ('n1, n2', 'n1, n2, n3 and 2 more')
    """
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
