"""What is written to a real API server, and what its refusals become."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends.kubernetes import Kubernetes
from backends.kubernetes.client import Cluster, path_of
from backends.kubernetes.rbac import render_rbac
from backends.kubernetes.render import INSTALL, JOB_SET, LEADER_WORKER_SET, SCALED_OBJECT
from orchestrator.backend import Group, GroupStatus, Scaling
from orchestrator.errors import AuthFailed, ConfigError, Quota, Rejected, Unreachable
from tests.backends.kubernetes.cluster import account, admin, api_server, namespace, rbac_path, with_token
from tests.backends.kubernetes.samples import INDEXED, JOB, SCALED, SERVICE, SPANNING


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with api_server(tmp_path_factory.mktemp("apiserver")) as found:
        yield found


@pytest.fixture
def place(config: str) -> Iterator[Kubernetes]:
    with namespace(config) as name:
        yield Kubernetes("lab", kubeconfig=config, namespace=name)


@pytest.fixture
def root(config: str) -> Cluster:
    return admin(config)


def get(root: Cluster, place: Kubernetes, version: str, kind: str, name: str) -> Any:
    return root.get(path_of(version, kind, place.settings.namespace, name))


def names(root: Cluster, place: Kubernetes, version: str, kind: str) -> list[str]:
    items, _ = root.list(path_of(version, kind, place.settings.namespace))
    return [
        one["metadata"]["name"] for one in items if "modelyard.dev/run" in one["metadata"].get("labels", {})
    ]


def apply(place: Kubernetes, group: Group, **secrets: str) -> GroupStatus:
    return place.apply_group(group, secrets=secrets)


CONTROLLED = bool(os.environ.get("MODELYARD_TEST_CLUSTER"))
KINDS = (
    ("apps/v1", "Deployment"),
    ("v1", "Service"),
    ("v1", "Secret"),
    ("policy/v1", "PodDisruptionBudget"),
)


def test_second_apply_leaves_every_version_as_it_was(place: Kubernetes, root: Cluster) -> None:
    def versions() -> dict[str, str]:
        kinds = (
            ("apps/v1", "Deployment"),
            ("v1", "Service"),
            ("v1", "Secret"),
            ("policy/v1", "PodDisruptionBudget"),
        )
        found = {}
        for version, kind in kinds:
            for name in names(root, place, version, kind):
                one = get(root, place, version, kind, name)
                # controllers write the status of these whenever they like
                kept = kind in ("Deployment", "PodDisruptionBudget") and CONTROLLED
                told = "generation" if kept else "resourceVersion"
                found[f"{kind}/{name}"] = one["metadata"][told]
        return found

    apply(place, SERVICE, HF_TOKEN="x")
    before = versions()
    apply(place, SERVICE, HF_TOKEN="x")
    assert versions() == before
    assert len(before) == len(KINDS)


@pytest.mark.parametrize("group", [SERVICE, JOB], ids=["service", "task"])
def test_apply_looks_at_the_pods_of_its_run_once(place: Kubernetes, monkeypatch: Any, group: Group) -> None:
    asked: list[str] = []
    listed = place._cluster.list

    def noted(path: str, **query: str) -> Any:
        asked.append(f"{path} {query.get('labelSelector')}")
        return listed(path, **query)

    monkeypatch.setattr(place._cluster, "list", noted)
    apply(place, group)
    pods = path_of("v1", "Pod", place.settings.namespace)
    assert asked.count(f"{pods} modelyard.dev/run={group.name}") == 1


def test_status_carries_the_groups_digest_and_the_whole_hash(place: Kubernetes) -> None:
    long = replace(SERVICE, template=replace(SERVICE.template, spec_hash="f" * 64))
    status = apply(place, long)
    assert (status.digest, status.spec_hash) == (long.digest(), "f" * 64)


def test_everything_is_owned_by_the_first_object(place: Kubernetes, root: Cluster) -> None:
    apply(place, SERVICE, HF_TOKEN="x")
    owner = get(root, place, "apps/v1", "Deployment", "llama-70b")["metadata"]["uid"]
    for kind, name in (("Service", "llama-70b"), ("Secret", "llama-70b-secrets")):
        (reference,) = get(root, place, "v1", kind, name)["metadata"]["ownerReferences"]
        assert reference["uid"] == owner


def test_secret_is_in_its_secret_and_nowhere_else(place: Kubernetes, root: Cluster) -> None:
    apply(place, SERVICE, HF_TOKEN="hunter2")
    assert "hunter2" not in json.dumps(get(root, place, "apps/v1", "Deployment", "llama-70b"))


def test_secret_that_a_spec_drops_stays_while_a_pod_is_started_with_it(
    place: Kubernetes, root: Cluster
) -> None:
    def taking(*variables: str) -> Group:
        secrets = tuple((name, f"${{{{ secrets.{name} }}}}") for name in variables)
        return replace(SERVICE, replicas=0, template=replace(SERVICE.template, secrets=secrets))

    def keys() -> set[str]:
        found = get(root, place, "v1", "Secret", "llama-70b-secrets")
        return set(found["data"]) if found else set()

    pods = path_of("v1", "Pod", place.settings.namespace)
    apply(place, taking("OLD", "BOTH", "UNUSED"), OLD="x", BOTH="x", UNUSED="x")
    template = get(root, place, "apps/v1", "Deployment", "llama-70b")["spec"]["template"]
    variables = [one for one in template["spec"]["containers"][0]["env"] if one["name"] != "UNUSED"]
    container = {**template["spec"]["containers"][0], "env": variables}
    pod = {"metadata": {**template["metadata"], "name": "old"}, "spec": {**template["spec"]}}
    root.send("POST", pods, {**pod, "spec": {**pod["spec"], "containers": [container]}})

    apply(place, taking("BOTH", "NEW"), BOTH="y", NEW="y")
    assert keys() == {"OLD", "BOTH", "NEW"}
    apply(place, taking())
    assert keys() == {"OLD", "BOTH", "NEW"}
    root.delete(f"{pods}/old", grace_s=0)
    apply(place, taking("NEW"), NEW="y")
    assert keys() == {"NEW"}
    apply(place, taking())
    assert keys() == set()


def test_changed_count_is_patched_in_place(place: Kubernetes, root: Cluster) -> None:
    apply(place, SERVICE)
    before = get(root, place, "apps/v1", "Deployment", "llama-70b")
    apply(place, replace(SERVICE, replicas=3))
    after = get(root, place, "apps/v1", "Deployment", "llama-70b")
    assert (after["metadata"]["uid"], after["spec"]["replicas"]) == (before["metadata"]["uid"], 3)
    assert after["spec"]["template"] == before["spec"]["template"]


def test_service_that_cannot_become_another_is_made_anew(
    config: str, place: Kubernetes, root: Cluster
) -> None:
    paired = Kubernetes("lab", kubeconfig=config, namespace=place.settings.namespace, multinode="statefulset")
    has_address = []
    for nodes in (1, 2, 1):
        group = replace(SPANNING, nodes=nodes)
        told = paired.rehearse(group)
        apply(paired, group, HF_TOKEN="x")
        service = get(root, place, "v1", "Service", "llama-405b")
        has_address.append(
            (service["spec"]["clusterIP"] != "None", "Service llama-405b: is made anew" in told)
        )
    assert has_address == [(True, False), (False, True), (True, True)]


def test_changed_image_rolls_in_place(place: Kubernetes, root: Cluster) -> None:
    apply(place, SERVICE)
    before = get(root, place, "apps/v1", "Deployment", "llama-70b")["metadata"]
    newer = replace(SERVICE.template, image="vllm/vllm-openai:v0.34.0", spec_hash="ffff")
    apply(place, replace(SERVICE, template=newer))
    after = get(root, place, "apps/v1", "Deployment", "llama-70b")
    assert (after["metadata"]["uid"], after["metadata"]["generation"]) == (before["uid"], 2)
    (container,) = after["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "vllm/vllm-openai:v0.34.0"
    assert after["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}


def test_what_a_run_no_longer_takes_is_deleted(place: Kubernetes, root: Cluster) -> None:
    apply(place, SERVICE)
    assert names(root, place, "policy/v1", "PodDisruptionBudget") == ["llama-70b"]
    apply(place, replace(SERVICE, replicas=1))
    assert names(root, place, "policy/v1", "PodDisruptionBudget") == []


def test_autoscaler_is_made_beside_a_service_whose_number_is_its_own(
    place: Kubernetes, root: Cluster, config: str
) -> None:
    scaling = Kubernetes("s", kubeconfig=config, namespace=place.settings.namespace, autoscaler="hpa")
    apply(scaling, SCALED)
    deployment = path_of("apps/v1", "Deployment", place.settings.namespace, "llama-70b")
    root.send("PATCH", deployment, {"spec": {"replicas": 3}}, "application/merge-patch+json")
    apply(scaling, replace(SCALED, scaling=Scaling(2, 8, "vllm:num_requests_waiting", 4.0)))
    hpa = get(root, place, "autoscaling/v2", "HorizontalPodAutoscaler", "llama-70b")
    assert (hpa["spec"]["minReplicas"], hpa["spec"]["maxReplicas"]) == (2, 8)
    assert get(root, place, "apps/v1", "Deployment", "llama-70b")["spec"]["replicas"] == 3
    place.delete_group("llama-70b", grace_s=0)
    assert names(root, place, "autoscaling/v2", "HorizontalPodAutoscaler") == []


def test_number_is_told_and_stays_where_an_autoscaler_takes_over(
    place: Kubernetes, root: Cluster, config: str
) -> None:
    """The server makes it one when nobody says any."""
    scaling = Kubernetes("s", kubeconfig=config, namespace=place.settings.namespace, autoscaler="hpa")
    assert apply(place, replace(SCALED, replicas=3)).replicas == 3
    assert scaling.rehearse(SCALED) == ["HorizontalPodAutoscaler llama-70b: is made"]
    assert apply(scaling, SCALED).replicas == 3


def test_changed_task_is_another_job_and_the_old_one_goes(place: Kubernetes, root: Cluster) -> None:
    apply(place, INDEXED)
    apply(place, replace(INDEXED, template=replace(INDEXED.template, spec_hash="ffff")))
    assert names(root, place, "batch/v1", "Job") == ["sft-ffff"]


def test_rehearsal_tells_every_change_and_writes_nothing(place: Kubernetes, root: Cluster) -> None:
    kinds = ("Deployment", "Service", "PodDisruptionBudget")
    assert place.rehearse(SERVICE) == [f"{kind} llama-70b: is made" for kind in kinds]
    assert names(root, place, "apps/v1", "Deployment") == []
    apply(place, SERVICE)
    assert place.rehearse(SERVICE) == []
    assert place.rehearse(replace(SERVICE, replicas=3)) == ["Deployment llama-70b: spec.replicas 2 -> 3"]
    image = replace(SERVICE, template=replace(SERVICE.template, image="vllm/vllm-openai:v0.34.0"))
    (change,) = place.rehearse(image)
    path = "spec.template.spec.containers[main].image"
    assert change == (
        f'Deployment llama-70b: {path} "vllm/vllm-openai:v0.33.0" -> "vllm/vllm-openai:v0.34.0"'
    )


def test_rehearsal_is_refused_as_the_apply_would_be(place: Kubernetes, root: Cluster) -> None:
    _put_service(root, place)
    with pytest.raises(Rejected, match="is not ours"):
        place.rehearse(SERVICE)


def test_conflict_names_field_and_manager(place: Kubernetes, root: Cluster, config: str) -> None:
    apply(place, SERVICE)
    path = path_of("apps/v1", "Deployment", place.settings.namespace, "llama-70b")
    other = {"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"replicas": 7}}
    kind = "application/apply-patch+yaml"
    root.send("PATCH", path, other, kind, fieldManager="hand", force="true")
    with pytest.raises(Rejected, match=r"\.spec\.replicas by hand"):
        apply(place, replace(SERVICE, replicas=3))
    with pytest.raises(Rejected, match=r"by hand \(Deployment llama-70b: spec\.replicas 7 -> 3\)"):
        place.rehearse(replace(SERVICE, replicas=3))
    forced = Kubernetes("f", kubeconfig=config, namespace=place.settings.namespace, force_conflicts=True)
    apply(forced, replace(SERVICE, replicas=3))
    assert get(root, place, "apps/v1", "Deployment", "llama-70b")["spec"]["replicas"] == 3


def _put_service(root: Cluster, place: Kubernetes, **metadata: Any) -> None:
    body = {
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "llama-70b", **metadata},
        "spec": {"ports": [{"port": 80}]},
    }  # fmt: skip
    root.send("POST", path_of("v1", "Service", place.settings.namespace), body)


def test_object_of_somebody_else_is_left_alone(place: Kubernetes, root: Cluster) -> None:
    _put_service(root, place)
    with pytest.raises(Rejected, match="is not ours"):
        apply(place, SERVICE)
    assert names(root, place, "apps/v1", "Deployment") == []
    place.delete_group("llama-70b", grace_s=0)
    assert get(root, place, "v1", "Service", "llama-70b")


def test_object_that_argo_keeps_is_left_alone(place: Kubernetes, root: Cluster) -> None:
    mark = {"argocd.argoproj.io/tracking-id": "app:/Service:ml/llama-70b"}
    _put_service(root, place, annotations=mark, labels={"modelyard.dev/run": "llama-70b"})
    with pytest.raises(Rejected, match="kept by Argo CD"):
        apply(place, SERVICE)


def test_what_argo_keeps_is_no_run_of_ours_and_is_not_deleted(place: Kubernetes, root: Cluster) -> None:
    apply(place, SERVICE, HF_TOKEN="x")
    place.create_volume("data", size_bytes=None)
    space = place.settings.namespace
    mark = {
        "metadata": {"annotations": {"argocd.argoproj.io/tracking-id": "app:apps/Deployment:ml/llama-70b"}}
    }
    for version, kind, name in (
        ("apps/v1", "Deployment", "llama-70b"),
        ("v1", "PersistentVolumeClaim", "data"),
    ):
        root.send("PATCH", path_of(version, kind, space, name), mark, "application/merge-patch+json")

    assert list(place.groups()) == []
    place.delete_group("llama-70b", grace_s=0)
    assert get(root, place, "apps/v1", "Deployment", "llama-70b")
    with pytest.raises(Rejected, match="kept by Argo CD"):
        place.delete_volume("data")


def test_missing_custom_resource_says_where_to_get_it(place: Kubernetes) -> None:
    if place._view.has(LEADER_WORKER_SET):
        pytest.skip("the cluster has LeaderWorkerSets")
    with pytest.raises(Rejected, match="leaderworkersets") as refused:
        apply(place, SPANNING)
    assert refused.value.fix
    assert "lws.sigs.k8s.io" in refused.value.fix


@pytest.mark.parametrize(
    ("kind", "options"), [(JOB_SET, {"tasks": "jobset"}), (SCALED_OBJECT, {"autoscaler": "keda"})]
)
def test_check_looks_for_the_resources_that_settings_ask_for(
    config: str, place: Kubernetes, kind: str, options: Any
) -> None:
    asking = Kubernetes("lab", kubeconfig=config, namespace=place.settings.namespace, **options)
    (told,) = [check for check in asking.check() if check.what == kind]
    there = place._view.has(kind)
    assert (told.ok, told.fix) == (there, "" if there else INSTALL[kind])
    assert kind not in {check.what for check in place.check()}


def test_missing_namespace_is_said(config: str) -> None:
    with pytest.raises(Rejected, match="not found") as refused:
        apply(Kubernetes("lab", kubeconfig=config, namespace="nowhere"), JOB)
    assert "create it" in (refused.value.fix or "")


def test_namespace_that_is_being_deleted_is_said(config: str, place: Kubernetes, root: Cluster) -> None:
    space = place.settings.namespace
    stays = {"metadata": {"name": "stays", "finalizers": ["modelyard.dev/tests"]}}
    root.send("POST", path_of("v1", "ConfigMap", space), stays)
    root.delete(f"/api/v1/namespaces/{space}")
    try:
        with pytest.raises(Rejected, match="because it is being terminated"):
            apply(place, SERVICE)
        (check,) = [one for one in place.check() if one.what == "namespace"]
        assert (check.ok, check.detail) == (False, f"namespace {space!r} is being deleted")
    finally:
        gone = {"metadata": {"finalizers": None}}
        root.send("PATCH", path_of("v1", "ConfigMap", space, "stays"), gone, "application/merge-patch+json")


def test_quota_is_told_from_lack_of_room(place: Kubernetes, root: Cluster) -> None:
    space = place.settings.namespace
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"}}
    quota |= {"spec": {"hard": {"count/deployments.apps": "0"}}}
    root.send("POST", f"/api/v1/namespaces/{space}/resourcequotas", quota)
    # the quota counts once it has been seen: by its controller, or by the server's own cache
    status = {"status": {"hard": quota["spec"]["hard"], "used": {"count/deployments.apps": "0"}}}
    merge = "application/merge-patch+json"
    root.send("PATCH", f"/api/v1/namespaces/{space}/resourcequotas/q/status", status, merge)
    with pytest.raises(Quota, match="exceeded quota"):
        apply(place, SERVICE)


def test_rendered_roles_are_enough_and_without_them_the_rule_is_named(
    place: Kubernetes, root: Cluster, tmp_path: Path
) -> None:
    (owner, *roles) = render_rbac(place.settings)
    limited = Kubernetes(
        "own", kubeconfig=account(root, [owner], tmp_path), namespace=place.settings.namespace
    )
    with pytest.raises(AuthFailed, match="verb get on deployments of apps"):
        apply(limited, SERVICE)
    (permissions,) = [check for check in limited.check() if check.what == "permissions"]
    assert not permissions.ok
    assert "get, list, create, patch, delete on configmaps, secrets" in permissions.detail
    assert "deployments.apps" in permissions.detail
    for one in roles:
        root.send("POST", rbac_path(one), one)
    apply(limited, SERVICE, HF_TOKEN="x")
    apply(limited, JOB, registry="u:p")
    limited.create_volume("v", size_bytes=None)
    limited.offers()
    assert [status.name for status in limited.groups()] == ["answer", "llama-70b"]
    assert [check.what for check in limited.check() if not check.ok] == []
    limited.delete_group("llama-70b", grace_s=0)
    limited.delete_volume("v")
    assert [status.name for status in limited.groups()] == ["answer"]


def test_wrong_token_is_a_matter_of_credentials(root: Cluster, tmp_path: Path) -> None:
    expired = Kubernetes("lab", kubeconfig=with_token(root, tmp_path, "expired"))
    with pytest.raises(AuthFailed, match="expired or wrong"):
        expired.groups()
    assert [check.ok for check in expired.check()] == [False]


def test_no_kubeconfig_is_a_matter_of_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        Kubernetes("lab", kubeconfig=str(tmp_path / "none")).groups()
    assert "KUBECONFIG" in (refused.value.fix or "")


def test_silent_server_is_unreachable(tmp_path: Path) -> None:
    path = tmp_path / "silent"
    path.write_text(
        "apiVersion: v1\nkind: Config\ncurrent-context: x\n"
        "clusters: [{name: x, cluster: {server: 'http://127.0.0.1:9'}}]\n"
        "contexts: [{name: x, context: {cluster: x, user: x}}]\nusers: [{name: x, user: {}}]\n"
    )
    with pytest.raises(Unreachable):
        Kubernetes("lab", kubeconfig=str(path), timeout_s=2.0).groups()


def test_watch_goes_on_after_a_version_that_is_too_old(place: Kubernetes, monkeypatch: Any) -> None:
    asked: list[str] = []

    @contextmanager
    def too_old(path: str, query: Any, *, closed: Any = None) -> Iterator[Iterator[bytes]]:
        asked.append(query["resourceVersion"])
        yield iter([b'{"type": "ERROR", "object": {"kind": "Status", "code": 410}}'])

    monkeypatch.setattr(place._cluster, "lines", too_old)
    wakes = place.watch(threading.Event())
    assert [next(wakes), next(wakes)] == ["", ""]  # listed, was told that this is too old, listed again
    assert len(asked) == 1


def test_claim_of_somebody_else_is_no_volume_of_ours(place: Kubernetes, root: Cluster) -> None:
    claim = {
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }  # fmt: skip
    root.send("POST", path_of("v1", "PersistentVolumeClaim", place.settings.namespace), claim)
    assert place.volumes() == []
    for refused in (
        lambda: place.create_volume("data", size_bytes=None),
        lambda: place.delete_volume("data"),
    ):
        with pytest.raises(Rejected, match="is not ours"):
            refused()
