"""What a user reads, and what a pipeline sees, when a real API server says no: words and exit codes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from backends.kubernetes.client import Cluster, path_of
from backends.kubernetes.names import LONGEST
from backends.kubernetes.rbac import render_rbac
from backends.kubernetes.settings import Settings
from tests.backends.kubernetes.cluster import account, admin, api_server, namespace, with_token
from tests.backends.kubernetes.test_holds import TASK, WEB, Program, _create_node
from tests.backends.kubernetes.test_inventory import SITES

NODES = ("modelyard-bad-input-1", "modelyard-bad-input-2")
SPANNING = """\
type: service
name: large
model: {id: meta-llama/Llama-3.1-405B-Instruct, precision: bf16, context: 8192}
traffic: {concurrency: 4, input_tokens: 2000, output_tokens: 500}
resources: {gpu: "H100:8"}
env: [HF_TOKEN]
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with api_server(tmp_path_factory.mktemp("apiserver")) as found:
        root = admin(found)
        for node in NODES:
            _create_node(root, node, *SITES["gfd-h100"][:2])
            untainted = {"spec": {"taints": []}}
            root.send("PATCH", f"/api/v1/nodes/{node}", untainted, "application/merge-patch+json")
        try:
            yield found
        finally:
            for node in NODES:
                root.delete(f"/api/v1/nodes/{node}")


@dataclass
class Place:
    """A namespace of a real cluster, and whoever comes to it with what kubeconfig."""

    config: str
    root: Cluster
    space: str
    folder: Path

    def __call__(self, *arguments: str, code: int, kubeconfig: str = "", space: str = "") -> str:
        program = Program(self.folder, kubeconfig or self.config, space or self.space)
        return program(*arguments, code=code)

    def apply(self, text: str, *, code: int, **where: str) -> str:
        (self.folder / "spec.yaml").write_text(text)
        return self("apply", "-y", "-d", "-f", "spec.yaml", code=code, **where)

    def put(self, version: str, kind: str, name: str, spec: Any, **metadata: Any) -> None:
        body = {"apiVersion": version, "kind": kind, "metadata": {"name": name, **metadata}, "spec": spec}
        self.root.send("POST", path_of(version, kind, self.space), body)


@pytest.fixture
def place(config: str, tmp_path: Path) -> Iterator[Place]:
    with namespace(config) as space:
        yield Place(config, admin(config), space, tmp_path)


def test_no_kubeconfig_is_a_matter_of_configuration(place: Place) -> None:
    said = place.apply(WEB, code=78, kubeconfig=str(place.folder / "none"))
    assert f"backend 'lab': no kubeconfig at {place.folder / 'none'}" in said
    assert "(set kubeconfig for this backend, or KUBECONFIG)" in said


def test_run_whose_kubeconfig_is_gone_is_refused_for_that(place: Place) -> None:
    place.apply(WEB, code=0)
    said = place.apply(WEB, code=78, kubeconfig=str(place.folder / "none"))
    assert f"backend 'lab' refuses it: no kubeconfig at {place.folder / 'none'}" in said


@pytest.mark.parametrize(
    "command", ["apply -y -d -f spec.yaml", "plan -f spec.yaml", "drift", "gc", "offers", "backend check"]
)
def test_expired_token_is_denied(place: Place, command: str) -> None:
    (place.folder / "spec.yaml").write_text(WEB)
    expired = with_token(place.root, place.folder, "expired")
    said = place(*command.split(), code=77, kubeconfig=expired)
    assert "the credentials are expired or wrong" in said
    assert "log in again" in said


def test_forbidden_look_at_nodes_is_denied_and_names_the_rule(place: Place) -> None:
    (owner, *_) = render_rbac(Settings(namespace=place.space))
    said = place.apply(WEB, code=77, kubeconfig=account(place.root, [owner], place.folder))
    assert "backend 'lab': not allowed: verb list on nodes at the cluster scope" in said
    assert "modelyard render rbac" in said


def _without(role: Any, resource: str, verb: str) -> Any:
    """Return a role that lacks one verb on one resource."""
    rules = []
    for rule in role["rules"]:
        if resource not in rule["resources"] or verb not in rule["verbs"]:
            rules.append(rule)
            continue
        others = [one for one in rule["resources"] if one != resource]
        rules += [{**rule, "resources": others}] if others else []
        rules.append({**rule, "resources": [resource], "verbs": [v for v in rule["verbs"] if v != verb]})
    return {**role, "rules": rules}


@pytest.mark.parametrize(
    ("resource", "verb", "rule"),
    [
        ("deployments", "get", "verb get on deployments of apps"),
        ("deployments", "patch", "verb patch on deployments of apps"),
        ("services", "patch", "verb patch on services"),
    ],
)
def test_forbidden_verb_is_denied_and_names_the_rule(
    place: Place, resource: str, verb: str, rule: str
) -> None:
    roles = [
        _without(one, resource, verb) if one["kind"] == "Role" else one
        for one in render_rbac(Settings(namespace=place.space))
    ]
    said = place.apply(WEB, code=77, kubeconfig=account(place.root, roles, place.folder))
    assert f"spec.yaml:1:1: backend 'lab' refuses it: not allowed: {rule} in the namespace" in said
    assert "modelyard render rbac" in said
    assert place.root.get(path_of("apps/v1", "Deployment", place.space, "web")) is None


def test_a_wrong_spec_beside_a_forbidden_verb_is_a_wrong_spec(place: Place) -> None:
    roles = [
        _without(one, "deployments", "patch") if one["kind"] == "Role" else one
        for one in render_rbac(Settings(namespace=place.space))
    ]
    lacks = WEB.replace("name: web", "name: other") + "env: [NOBODY_HAS_GIVEN_IT]\n"
    limited = account(place.root, roles, place.folder)
    said = place.apply(f"{WEB}---\n{lacks}", code=65, kubeconfig=limited)
    assert "not allowed: verb patch on deployments of apps" in said
    assert "NOBODY_HAS_GIVEN_IT" in said


def test_missing_namespace_is_named_at_the_document(place: Place) -> None:
    said = place.apply(WEB, code=65, space="nowhere")
    assert "spec.yaml:1:1: backend 'lab' refuses it: namespaces \"nowhere\" not found" in said
    assert "create it, or set another namespace for this backend" in said


def test_missing_custom_resource_says_where_to_get_it(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hunter2hunter2")
    if place.root.get("/apis/leaderworkerset.x-k8s.io"):
        pytest.skip("the cluster has LeaderWorkerSets")
    said = place.apply(SPANNING, code=65)
    assert "large  service  create" in said
    assert "spec.yaml:1:1: backend 'lab' refuses it: the cluster has no leaderworkersets" in said
    assert "leaderworkersets.leaderworkerset.x-k8s.io" in said
    assert "https://lws.sigs.k8s.io/docs/installation/" in said


def test_long_name_is_refused_where_it_stands_and_the_longest_fits(place: Place) -> None:
    said = place.apply(WEB.replace("name: web", f"name: {'x' * 64}"), code=65)
    assert "spec.yaml:2:7: name: a name has at most 41 characters, this has 64" in said
    for text, version, kind in ((WEB, "apps/v1", "Deployment"), (TASK, "batch/v1", "Job")):
        name = ("n" + "x" * 40)[: 41 - len(kind)] + kind.lower()
        place.apply(re.sub("name: .*", f"name: {name}", text, count=1), code=0)
        (one,), _ = place.root.list(path_of(version, kind, place.space))
        assert one["metadata"]["name"].startswith(name)
        assert len(one["metadata"]["name"]) <= LONGEST


def test_object_of_the_same_name_that_is_not_ours_is_left_alone(place: Place) -> None:
    place.put("v1", "Service", "web", {"ports": [{"port": 80}]}, labels={"app": "theirs"})
    said = place.apply(WEB, code=65)
    assert f"Service 'web' exists in '{place.space}' and is not ours" in said
    assert "choose another name, or another namespace for this backend" in said
    assert place.root.get(path_of("apps/v1", "Deployment", place.space, "web")) is None


@pytest.mark.parametrize(
    ("mark", "who"),
    [
        ("argocd.argoproj.io/tracking-id", "Argo CD"),
        ("meta.helm.sh/release-name", "Helm"),
    ],
)
def test_object_that_another_tool_keeps_is_left_alone(place: Place, mark: str, who: str) -> None:
    ours = {"modelyard.dev/run": "web"}
    place.put("v1", "Service", "web", {"ports": [{"port": 80}]}, labels=ours, annotations={mark: "theirs"})
    said = place.apply(WEB, code=65)
    assert f"Service 'web' is kept by {who}" in said
    assert "change it there, or choose another name" in said


def test_object_that_flux_keeps_is_left_alone(place: Place) -> None:
    labels = {"modelyard.dev/run": "web", "kustomize.toolkit.fluxcd.io/name": "models"}
    place.put("v1", "Service", "web", {"ports": [{"port": 80}]}, labels=labels)
    assert "Service 'web' is kept by Flux" in place.apply(WEB, code=65)


def test_silent_server_is_unreachable(place: Place, tmp_path: Path) -> None:
    settings = place.root.configuration()
    text = Path(place.config).read_text().replace(settings.host, "https://127.0.0.1:9")
    (tmp_path / "silent.conf").write_text(text)
    said = place.apply(WEB, code=69, kubeconfig=str(tmp_path / "silent.conf"))
    assert "the API server https://127.0.0.1:9 does not answer" in said
