"""What becomes of an API server's refusals and of objects of others, without a cluster: its answers alone."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from backends.kubernetes import Kubernetes
from backends.kubernetes.client import path_of_object
from backends.kubernetes.gateway import HTTP_ROUTE, INFERENCE_POOL
from backends.kubernetes.render import INSTALL
from orchestrator.backend import Launch
from orchestrator.cli import run
from orchestrator.errors import Rejected
from tests.backends.kubernetes.samples import SERVE, SERVICE, TASK
from tests.backends.kubernetes.test_inventory import SITES, gpu_node

NODES = 'nodes is forbidden: User "u" cannot list resource "nodes" in API group "" at the cluster scope'


@dataclass
class Refuser:
    """A server on this machine that answers as an API server would that refuses most."""

    answers: dict[str, tuple[int, Any]] = field(default_factory=dict)
    status: int = 403
    message: str = NODES
    host: str = ""
    written: list[str] = field(default_factory=list)

    def said(self, path: str) -> tuple[int, Any]:
        """Return status and body of what is asked at ``path``."""
        known = self.answers.get(path.partition("?")[0])
        return known or (self.status, {"kind": "Status", "message": self.message})


@pytest.fixture
def refuser() -> Iterator[Refuser]:
    found = Refuser()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, body = found.said(self.path)
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_POST(self) -> None:
            self.do_GET()

        def do_PATCH(self) -> None:
            found.written.append(self.path)
            self.do_GET()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found.host = f"http://127.0.0.1:{server.server_port}"
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield found
        server.shutdown()
        serving.join()


KUBECONFIG = """\
apiVersion: v1
kind: Config
current-context: c
contexts: [{{name: c, context: {{cluster: c, user: u}}}}]
clusters: [{{name: c, cluster: {{server: "{host}"}}}}]
users: [{{name: u, user: {{token: t}}}}]
"""


@pytest.fixture
def lab(refuser: Refuser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have a configuration whose only place is that server; return its entry."""
    (tmp_path / "kube.conf").write_text(KUBECONFIG.format(host=refuser.host))
    entry = f"  - {{type: kubernetes, name: lab, kubeconfig: {tmp_path / 'kube.conf'}}}\n"
    (tmp_path / "config.yaml").write_text(f"backends:\n{entry}")
    monkeypatch.setenv("MODELYARD_CONFIG", str(tmp_path / "config.yaml"))
    monkeypatch.setenv("MODELYARD_DATABASE_URL", f"sqlite:///{tmp_path / 'record.db'}")
    return entry


@pytest.mark.usefixtures("lab")
@pytest.mark.parametrize("form", [(), ("--json",)], ids=["text", "json"])
@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (
            403,
            77,
            "not allowed: verb list on nodes at the cluster scope (modelyard render rbac --backend lab)",
        ),
        (401, 77, "the credentials are expired or wrong (log in again)"),
        (503, 69, "the API server asks to be asked later"),
    ],
)
def test_offers_of_places_that_all_refuse_end_as_a_plan_would(
    refuser: Refuser,
    capsys: pytest.CaptureFixture[str],
    form: tuple[str, ...],
    status: int,
    code: int,
    says: str,
) -> None:
    refuser.status = status
    assert run(["offers", *form]) == code
    assert says in capsys.readouterr().out


def test_offers_of_one_place_are_offers_though_another_refuses(
    lab: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sim = f"  - {{type: sim, state: {tmp_path / 'sim'}}}\n"
    (tmp_path / "config.yaml").write_text(f"backends:\n{sim}{lab}")
    assert run(["offers"]) == 0
    assert "nothing is known of lab: not allowed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("contexts: [b\n", "expected ',' or ']'"),
        ("hello there\n", "is no kubeconfig"),
        ("- a\n", "is no kubeconfig"),
        ("\xff", "can't decode byte 0xff"),
        (
            KUBECONFIG.format(host="https://127.0.0.1:9, proxy-url: nowhere").replace('"', ""),
            "Proxy URL had no scheme",
        ),
    ],
    ids=["yaml", "words", "list", "binary", "proxy"],
)
def test_file_that_is_no_kubeconfig_is_a_matter_of_configuration(
    lab: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, says: str
) -> None:
    assert lab
    (tmp_path / "kube.conf").write_bytes(text.encode("latin-1"))
    assert run(["offers"]) == 78
    said = capsys.readouterr().out
    assert f"nothing is known of lab: {tmp_path / 'kube.conf'}: " in said
    assert says in said
    assert run(["backend", "check"]) == 69
    assert says in capsys.readouterr().out


def test_context_that_a_kubeconfig_has_not_is_named(
    lab: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(
        f"backends:\n{lab}".replace("name: lab", "name: lab, context: prod")
    )
    assert run(["offers"]) == 78
    said = f"{tmp_path / 'kube.conf'} has no context 'prod' (kubectl config get-contexts lists what there is)"
    assert said in capsys.readouterr().out


@pytest.mark.usefixtures("lab")
def test_what_answers_and_is_no_api_server_is_told(
    refuser: Refuser, capsys: pytest.CaptureFixture[str]
) -> None:
    refuser.answers["/api/v1/nodes"] = (200, b"<html><title>Sign in</title>")
    assert run(["offers"]) == 69
    said = capsys.readouterr().out
    assert f"{refuser.host} is no API server: it answered '<html><title>Sign in</title>'" in said


def listed(*items: Any) -> tuple[int, Any]:
    return 200, {"items": list(items), "metadata": {}}


def named(node: dict[str, Any], name: str, **spec: Any) -> dict[str, Any]:
    return {**node, "metadata": {**node["metadata"], "name": name}, "spec": spec}


GPU = """\
type: task
name: gpu
image: busybox:1
commands: ["true"]
resources: {gpu: 24GB..}
"""


@pytest.mark.usefixtures("lab")
def test_nodes_that_are_left_out_are_told_with_the_reason(
    refuser: Refuser, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They were dropped without a word: an operator saw fewer offers than nodes, and not why."""
    labels = SITES["gfd-h100"][0]
    tainted = named(gpu_node(labels), "n2", taints=[{"key": "team", "value": "b", "effect": "NoSchedule"}])
    others = [named(gpu_node({}), name) for name in ("n3", "n4", "n5", "n6", "n7")]
    refuser.status = 404
    nodes = (named(gpu_node(labels), "n1", unschedulable=True), tainted, *others)
    refuser.answers |= {"/api/v1/nodes": listed(*nodes), "/api/v1/pods": listed(), "/version": SEEN}
    assert run(["offers", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["offers"]
    no_label = "no label tells which accelerator nvidia.com/gpu is"
    assert {(one["instance_type"], one.get("unfit", "")) for one in found} == {
        ("n1", "cordoned"), ("n2", "taint team=b:NoSchedule"),
        *((name, why) for name in ("n3", "n4", "n5", "n6", "n7") for why in ("", no_label)),
    }  # fmt: skip
    (tmp_path / "gpu.yaml").write_text(GPU)
    assert run(["plan", "-f", str(tmp_path / "gpu.yaml")]) == 75
    said = capsys.readouterr().err
    assert f"5 {no_label}" in said
    assert "1 cordoned" in said
    assert "1 taint team=b:NoSchedule" in said
    run(["backend", "check"])
    said = capsys.readouterr().out
    assert f"left out: n1: cordoned; n3, n4, n5 and 2 more: {no_label}; n2: taint team=b:NoSchedule" in said


@pytest.mark.usefixtures("lab")
def test_nothing_without_accelerators_is_planned_for_nodes_that_are_kept_for_them(
    refuser: Refuser, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
    nodes = named(gpu_node(SITES["gfd-h100"][0]), "n1", taints=[own])
    refuser.status = 404
    refuser.answers |= {"/api/v1/nodes": listed(nodes), "/api/v1/pods": listed()}
    (tmp_path / "cpu.yaml").write_text(GPU.replace("resources: {gpu: 24GB..}\n", ""))
    assert run(["plan", "-f", str(tmp_path / "cpu.yaml")]) == 75
    assert "1 kept for what asks for its accelerators" in capsys.readouterr().err
    (tmp_path / "gpu.yaml").write_text(GPU)
    assert run(["plan", "-f", str(tmp_path / "gpu.yaml")]) == 0


@pytest.mark.parametrize(
    ("gateway", "lacks"),
    [
        ({"name": "g"}, {HTTP_ROUTE, INFERENCE_POOL}),
        ({"name": "g", "pools": False}, {HTTP_ROUTE}),
        (None, set()),
    ],
    ids=["pools", "routes", "none"],
)
def test_check_looks_for_what_a_gateway_takes(
    cluster: Kubernetes, refuser: Refuser, tmp_path: Path, gateway: Any, lacks: set[str]
) -> None:
    assert cluster
    refuser.answers["/version"] = SEEN
    place = Kubernetes("lab", kubeconfig=str(tmp_path / "kube.conf"), gateway=gateway)
    failed = {one.what: one.fix for one in place.check() if not one.ok}
    assert {kind for kind in failed if kind in INSTALL} == lacks
    assert all(failed[kind] == INSTALL[kind] for kind in lacks)


SEEN = (200, {"gitVersion": "v1.36.2"})


def namespace(enforces: str) -> tuple[int, Any]:
    label = {"pod-security.kubernetes.io/enforce": enforces}
    return 200, {"metadata": {"name": "default", "labels": label}}


@pytest.mark.usefixtures("lab")
@pytest.mark.parametrize("command", ["backend check", "doctor"])
@pytest.mark.parametrize(
    ("answers", "code"),
    [
        ({}, 77),  # nothing may be seen
        ({"rules": []}, 77),  # all that fails are permissions
        ({"rules": [], "space": "restricted"}, 77),
        ({"rules": [], "space": None}, 69),  # no such namespace: more than a permission lacks
    ],
    ids=["all", "rules", "rules-only", "namespace-too"],
)
def test_a_check_that_fails_for_permissions_alone_is_denied(
    refuser: Refuser, capsys: pytest.CaptureFixture[str], command: str, answers: dict[str, Any], code: int
) -> None:
    if answers:
        refuser.answers["/version"] = SEEN
        reviews = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
        refuser.answers[reviews] = (201, {"status": {"resourceRules": answers["rules"]}})
    if "space" in answers:
        space = answers["space"]
        gone = (404, {"kind": "Status", "message": "gone"})
        refuser.answers["/api/v1/namespaces/default"] = namespace(space) if space else gone
        refuser.answers["/apis/leaderworkerset.x-k8s.io"] = gone
    assert run([*command.split(), "--json"]) == code
    failed = [one for one in json.loads(capsys.readouterr().out)["checks"] if not one["ok"]]
    assert {one["denied"] for one in failed} == ({True} if code == 77 else {True, False})


@pytest.fixture
def cluster(lab: str, refuser: Refuser, tmp_path: Path) -> Kubernetes:
    """Have a cluster in which there is nothing but what the test puts there."""
    assert lab
    refuser.status = 404
    return Kubernetes("lab", kubeconfig=str(tmp_path / "kube.conf"))


THEIRS = {"metadata": {"name": "llama-70b-secrets", "labels": {"app": "theirs"}}}


@pytest.mark.parametrize(
    ("name", "launch"),
    [
        ("llama-70b-secrets", SERVE),
        ("llama-70b-registry", replace(SERVE, registry_secret=("registry", "user:${{ secrets.P }}"))),
    ],
    ids=["variables", "registry"],
)
def test_secret_of_the_same_name_that_is_not_ours_is_left_alone(
    cluster: Kubernetes, refuser: Refuser, name: str, launch: Launch
) -> None:
    """It would be merged with ours, owned by the run, and deleted with it."""
    refuser.answers[f"/api/v1/namespaces/default/secrets/{name}"] = (200, THEIRS)
    group = replace(SERVICE, template=launch)
    with pytest.raises(Rejected, match=f"Secret '{name}' exists in 'default' and is not ours"):
        cluster.apply_group(group, secrets={"HF_TOKEN": "x", "registry": "user:y"})
    assert refuser.written == []


def test_secret_that_is_not_ours_is_told_in_the_plan(cluster: Kubernetes, refuser: Refuser) -> None:
    refuser.answers["/api/v1/namespaces/default/secrets/llama-70b-secrets"] = (200, THEIRS)
    for one in cluster.render(SERVICE).objects:
        refuser.answers[path_of_object(one)] = (200, {**one, "metadata": {**one["metadata"]}})
    with pytest.raises(Rejected, match="Secret 'llama-70b-secrets' exists"):
        cluster.rehearse(SERVICE)


def test_single_launch_leaves_a_secret_that_is_not_ours_alone(cluster: Kubernetes, refuser: Refuser) -> None:
    refuser.answers["/api/v1/namespaces/default/secrets/alone-0-0-0-secrets"] = (200, THEIRS)
    alone = replace(TASK, name="alone-0-0-0", run="alone", secrets=(("TOKEN", "${{ secrets.T }}"),))
    with pytest.raises(Rejected, match="Secret 'alone-0-0-0-secrets' exists"):
        cluster.start(alone, secrets={"TOKEN": "x"}, progress=lambda _: None)
    assert refuser.written == []


def test_what_nobody_owns_is_listed_though_it_has_no_pods(
    cluster: Kubernetes, refuser: Refuser, capsys: pytest.CaptureFixture[str]
) -> None:
    deployment, *_ = cluster.render(SERVICE).objects
    refuser.answers["/apis/apps/v1/namespaces/default/deployments"] = listed(deployment)
    assert run(["gc", "--json"]) == 0
    (orphan,) = json.loads(capsys.readouterr().out)["orphans"]
    assert (orphan["name"], orphan["run"], orphan["phase"]) == ("llama-70b", "llama-70b", "pending")
