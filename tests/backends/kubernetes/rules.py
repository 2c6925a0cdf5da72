"""Pod Security and custom resources, checked as a cluster would."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Json = Mapping[str, Any]

BUILT_IN = frozenset("apps batch policy autoscaling".split()) | {"v1"}  # noqa: SIM905


def pod_templates(value: Any) -> Iterator[Json]:
    """Yield every pod template inside an object."""
    if isinstance(value, dict):
        if "containers" in value.get("spec", {}) and "metadata" in value:
            yield value
        for inner in value.values():
            yield from pod_templates(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from pod_templates(inner)


def restricted_violations(template: Json) -> list[str]:
    """Return what the profile ``restricted`` refuses (Kubernetes docs, "Pod Security Standards")."""
    spec = template["spec"]
    own = spec.get("securityContext", {})
    found: list[str] = []
    if spec.get("hostNetwork") or spec.get("hostPID") or spec.get("hostIPC"):
        found.append("host namespaces")
    allowed = {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
    }
    allowed |= {"secret", "name"}
    found += [f"volume {v['name']}" for v in spec.get("volumes", ()) if set(v) - allowed]
    if own.get("runAsNonRoot") is not True:
        found.append("runAsNonRoot")
    if own.get("runAsUser", 1) == 0:
        found.append("runAsUser")
    if own.get("seccompProfile", {}).get("type") not in {"RuntimeDefault", "Localhost"}:
        found.append("seccompProfile")
    for container in spec["containers"]:
        inner = container.get("securityContext", {})
        if inner.get("privileged"):
            found.append("privileged")
        if inner.get("allowPrivilegeEscalation") is not False:
            found.append("allowPrivilegeEscalation")
        if "ALL" not in inner.get("capabilities", {}).get("drop", ()):
            found.append("capabilities")
        if set(inner.get("capabilities", {}).get("add", ())) - {"NET_BIND_SERVICE"}:
            found.append("added capabilities")
        found += ["hostPort" for port in container.get("ports", ()) if port.get("hostPort")]
    return found


def is_built_in(one: Json) -> bool:
    """Return whether the schemas of Kubernetes itself know the object."""
    return str(one["apiVersion"]).partition("/")[0] in BUILT_IN


CUSTOM: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    # required and other known keys of spec, from each project's CRD of the version named
    "LeaderWorkerSet": (  # lws 0.10.0
        frozenset({"leaderWorkerTemplate"}),
        frozenset({"replicas", "rolloutStrategy", "startupPolicy", "networkConfig"}),
    ),
    "JobSet": (  # jobset 0.12.0
        frozenset({"replicatedJobs"}),
        frozenset({"network", "successPolicy", "failurePolicy", "suspend", "coordinator", "managedBy"}),
    ),
    "HTTPRoute": (  # gateway-api 1.2
        frozenset(),
        frozenset({"parentRefs", "hostnames", "rules"}),
    ),
    "InferencePool": (  # gateway-api-inference-extension 1.0
        frozenset({"selector", "targetPorts", "endpointPickerRef"}),
        frozenset({"appProtocol"}),
    ),
    "ScaledObject": (  # keda 2.17
        frozenset({"scaleTargetRef", "triggers"}),
        frozenset({"minReplicaCount", "maxReplicaCount", "pollingInterval", "cooldownPeriod", "advanced"}),
    ),
}


def custom_violations(one: Json) -> list[str]:
    """Return what the custom resource's own schema would refuse at the top of its spec."""
    required, known = CUSTOM[one["kind"]]
    keys = set(one["spec"])
    return [f"lacks {k}" for k in sorted(required - keys)] + [
        f"unknown {k}" for k in sorted(keys - required - known)
    ]


def admits(where: Any, labels: Mapping[str, str]) -> bool:
    """Return whether a placement lets a pod onto a node, as the scheduler matches labels."""
    if not dict(where.node_selector).items() <= labels.items():
        return False
    if not where.affinity:
        return True
    required = where.affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    return term_admits(required, labels)


def term_admits(required: Any, labels: Mapping[str, str]) -> bool:
    """Return whether any term of a required node affinity holds, with every expression of it."""
    return any(
        all(_holds(expression, labels) for expression in term["matchExpressions"])
        for term in required["nodeSelectorTerms"]
    )


def _holds(expression: Any, labels: Mapping[str, str]) -> bool:
    value = labels.get(expression["key"])
    operator = expression["operator"]
    if operator == "DoesNotExist":
        return value is None
    if operator == "NotIn":
        return value not in expression["values"]
    if value is None:
        return False
    if operator == "Exists":
        return True
    if operator == "In":
        return value in expression["values"]
    if not value.lstrip("-").isdigit():
        return False
    (bound,) = expression["values"]
    return int(value) > int(bound) if operator == "Gt" else int(value) < int(bound)
