"""What Modelyard may do in a cluster: the least that its work takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from backends.kubernetes.names import MANAGER
from backends.kubernetes.settings import Settings

Json = dict[str, Any]

_KEPT = ("get", "list", "create", "patch", "delete")
_SEEN = ("get", "list")


def render_rbac(settings: Settings) -> tuple[Json, ...]:
    """Return a service account with a role in the namespace, and one that reads nodes and pods."""
    account = {"kind": "ServiceAccount", "name": MANAGER, "namespace": settings.namespace}
    named = {"name": MANAGER, "namespace": settings.namespace}
    reader = f"{MANAGER}-{settings.namespace}-inventory"
    group = "rbac.authorization.k8s.io"
    return (
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": named},
        {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": named, "rules": namespaced()},
        {
            "apiVersion": f"{group}/v1", "kind": "RoleBinding", "metadata": named, "subjects": [account],
            "roleRef": {"apiGroup": group, "kind": "Role", "name": MANAGER},
        },
        {"apiVersion": f"{group}/v1", "kind": "ClusterRole", "metadata": {"name": reader}, "rules": _wide()},
        {
            "apiVersion": f"{group}/v1", "kind": "ClusterRoleBinding", "metadata": {"name": reader},
            "subjects": [account], "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": reader},
        },
    )  # fmt: skip


def namespaced() -> list[Json]:
    """Return the rules in the namespace of the runs."""
    return [
        _rule("", ("configmaps", "secrets", "services", "persistentvolumeclaims"), _KEPT),
        _rule("", ("pods",), ("get", "list", "watch", "delete", "deletecollection")),
        _rule("", ("pods/log",), ("get",)),
        _rule("", ("pods/exec", "pods/portforward"), ("create", "get")),
        _rule("", ("events",), ("list",)),
        _rule("apps", ("deployments", "statefulsets"), _KEPT),
        _rule("apps", ("controllerrevisions", "replicasets"), ("list",)),
        _rule("batch", ("jobs",), _KEPT),
        # what another setting wrote before is still to be seen, and cleared away
        _rule("jobset.x-k8s.io", ("jobsets",), _KEPT),
        _rule("leaderworkerset.x-k8s.io", ("leaderworkersets",), _KEPT),
        _rule("policy", ("poddisruptionbudgets",), _KEPT),
        _rule("autoscaling", ("horizontalpodautoscalers",), _KEPT),
        _rule("keda.sh", ("scaledobjects",), _KEPT),
        _rule("kueue.x-k8s.io", ("workloads",), ("list",)),
        _rule("kueue.x-k8s.io", ("localqueues",), ("get",)),
        _rule("gateway.networking.k8s.io", ("httproutes",), _KEPT),
        _rule("inference.networking.k8s.io", ("inferencepools",), _KEPT),
    ]


def _wide() -> list[Json]:
    return [
        _rule("", ("nodes", "pods"), _SEEN),
        _rule("", ("namespaces",), ("get",)),
        _rule("resource.k8s.io", ("resourceslices", "deviceclasses", "resourceclaims"), _SEEN),
    ]


def _rule(group: str, resources: Sequence[str], verbs: Sequence[str]) -> Json:
    return {"apiGroups": [group], "resources": list(resources), "verbs": list(verbs)}


def missing_rules(granted: Sequence[Json]) -> list[str]:
    """Return what is not granted of the rules in the namespace, the resources that lack the same together.

    ``granted`` are the ``resourceRules`` of a SelfSubjectRulesReview.

    >>> everything = {"apiGroups": ["*"], "resources": ["*"], "verbs": ["get", "list", "create", "patch"]}
    >>> missing_rules([{**everything, "verbs": ["get", "list", "create", "patch", "delete"]}])
    ['watch, deletecollection on pods']
    """
    verbs: dict[str, list[str]] = {}
    for group, resource, verb in _needed(namespaced()):
        if not any(_grants(rule, group, resource, verb) for rule in granted):
            verbs.setdefault(f"{resource}.{group}" if group else resource, []).append(verb)
    alike: dict[tuple[str, ...], list[str]] = {}
    for resource, lacking in verbs.items():
        alike.setdefault(tuple(lacking), []).append(resource)
    return [f"{', '.join(lacking)} on {', '.join(resources)}" for lacking, resources in alike.items()]


def _needed(rules: Iterable[Json]) -> Iterable[tuple[str, str, str]]:
    for rule in rules:
        for resource in rule["resources"]:
            for verb in rule["verbs"]:
                yield rule["apiGroups"][0], resource, verb


def _grants(rule: Json, group: str, resource: str, verb: str) -> bool:
    return (
        bool({"*", verb} & set(rule["verbs"]))
        and bool({"*", group} & set(rule.get("apiGroups") or ()))
        and bool({"*", resource} & set(rule.get("resources") or ()))
        and not rule.get("resourceNames")
    )
