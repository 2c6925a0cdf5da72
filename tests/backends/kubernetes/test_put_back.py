"""What others changed in our objects: told by a plan, put back by an apply, or refused with the holder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backends.kubernetes import Kubernetes
from backends.kubernetes.client import Cluster, path_of
from tests.backends.kubernetes.cluster import admin, api_server, namespace, watched
from tests.backends.kubernetes.samples import SCALED
from tests.backends.kubernetes.test_holds import WEB, Program, _create_node
from tests.backends.kubernetes.test_inventory import SITES

HPA = ("autoscaling/v2", "HorizontalPodAutoscaler")
MERGE = "application/merge-patch+json"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with api_server(tmp_path_factory.mktemp("apiserver")) as found:
        root = admin(found)
        _create_node(root, "modelyard-put-back", *SITES["gfd-h100"][:2])
        root.send("PATCH", "/api/v1/nodes/modelyard-put-back", {"spec": {"taints": []}}, MERGE)
        try:
            yield found
        finally:
            root.delete("/api/v1/nodes/modelyard-put-back")


class Site:
    """A namespace with ``web`` applied to it, and who may change it by hand."""

    def __init__(self, program: Program, root: Cluster, space: str) -> None:
        self.program = program
        self.root = root
        self.space = space
        self.spec = program.write("web.yaml", WEB)
        program("apply", "-y", "-d", "-f", self.spec)

    def get(self, version: str, kind: str) -> Any:
        return self.root.get(path_of(version, kind, self.space, "web"))

    def deployment(self) -> Any:
        return self.get("apps/v1", "Deployment")

    def edit(self, body: Any, *, manager: str) -> None:
        path = path_of("apps/v1", "Deployment", self.space, "web")
        self.root.send("PATCH", path, body, MERGE, fieldManager=manager)


@pytest.fixture
def site(config: str, tmp_path: Path) -> Iterator[Site]:
    with namespace(config) as space:
        yield Site(Program(tmp_path, config, space), admin(config), space)


def test_what_nobody_else_holds_is_put_back(site: Site) -> None:
    site.edit({"metadata": {"labels": {"app.kubernetes.io/component": None}}}, manager="kubectl-label")
    site.root.delete(path_of("v1", "Service", site.space, "web"))
    told = site.program("plan", "--detailed-exitcode", "-f", site.spec, code=2)
    assert "web  service  update" in told
    assert 'drift    lab: Deployment web: metadata.labels.app.kubernetes.io/component nothing -> "s' in told
    assert "drift    lab: Service web: is made" in told
    before = site.deployment()["spec"]["template"]
    site.program("apply", "-y", "-d", "-f", site.spec)
    assert site.get("v1", "Service") is not None
    assert site.deployment()["metadata"]["labels"]["app.kubernetes.io/component"] == "service"
    assert site.deployment()["spec"]["template"] == before  # no pod is started anew for it
    assert "web  service  unchanged" in site.program("plan", "--detailed-exitcode", "-f", site.spec)


def test_what_is_as_it_was_told_is_left_as_it_is(site: Site) -> None:
    before = site.deployment()["metadata"]["resourceVersion"]
    assert "web  service  unchanged" in site.program("apply", "-y", "-d", "-f", site.spec)
    assert site.deployment()["metadata"]["resourceVersion"] == before


def test_what_somebody_holds_is_refused_with_field_holder_and_values(site: Site) -> None:
    site.edit({"spec": {"replicas": 7}}, manager="kubectl-edit")
    told = site.program("plan", "--detailed-exitcode", "-f", site.spec, code=2)
    refusal = ".spec.replicas by kubectl-edit (Deployment web: spec.replicas 7 -> 2)"
    assert f"drift    lab: refuses it: fields are held by others: {refusal}" in told
    refused = site.program("apply", "-y", "-d", "-f", site.spec, code=65)
    assert f"web.yaml:1:1: backend 'lab' refuses it: fields are held by others: {refusal}" in refused
    assert "apply --force-conflicts" in refused
    assert site.deployment()["spec"]["replicas"] == 7
    taken = site.program("apply", "-y", "-d", "--force-conflicts", "-f", site.spec)
    assert "drift    lab: Deployment web: spec.replicas 7 -> 2" in taken
    assert site.deployment()["spec"]["replicas"] == 2


def test_every_object_that_is_held_is_told_at_once(site: Site) -> None:
    site.edit({"spec": {"progressDeadlineSeconds": 60}}, manager="operator")
    service = path_of("v1", "Service", site.space, "web")
    labels = {"metadata": {"labels": {"app.kubernetes.io/name": "theirs"}}}
    site.root.send("PATCH", service, labels, MERGE, fieldManager="mesh")
    refused = site.program("apply", "-y", "-d", "-f", site.spec, code=65)
    assert ".spec.progressDeadlineSeconds by operator" in refused
    assert ".metadata.labels.app.kubernetes.io/name by mesh" in refused


def test_fields_that_we_never_said_are_their_owners(site: Site) -> None:
    """An operator's annotation and a default of the server are no drift."""
    site.edit({"metadata": {"annotations": {"theirs": "1"}}, "spec": {"paused": True}}, manager="operator")
    assert "web  service  unchanged" in site.program("plan", "--detailed-exitcode", "-f", site.spec)


def _scale(root: Cluster, space: str, name: str, number: int) -> None:
    """Set a Deployment's number as the controller of HorizontalPodAutoscalers does."""
    scale = path_of("apps/v1", "Deployment", space, name) + "/scale"
    root.send("PATCH", scale, {"spec": {"replicas": number}}, MERGE, fieldManager="kube-controller-manager")


def test_number_that_an_autoscaler_moves_is_no_drift(config: str, tmp_path: Path) -> None:
    root = admin(config)
    with namespace(config) as space:
        place = Kubernetes("lab", kubeconfig=config, namespace=space, autoscaler="hpa")
        place.apply_group(SCALED, secrets={})
        _scale(root, space, "llama-70b", 4)
        assert place.rehearse(SCALED) == []


def test_number_that_somebody_scales_names_the_way_to_leave_it(site: Site) -> None:
    theirs = {"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}}
    theirs |= {"minReplicas": 4, "maxReplicas": 4}
    site.root.send("POST", path_of(*HPA, site.space), {"metadata": {"name": "theirs"}, "spec": theirs})
    _scale(site.root, site.space, "web", 4)
    refused = site.program("apply", "-y", "-d", "-f", site.spec, code=65)
    assert ".spec.replicas by kube-controller-manager" in refused
    assert "set autoscaler for this backend where one scales it" in refused


def test_number_that_an_autoscaler_left_behind_is_ours_to_move(site: Site) -> None:
    """It was refused for a holder that is not there, for ever."""
    _scale(site.root, site.space, "web", 4)
    assert "spec.replicas 4 -> 2" in site.program("plan", "-f", site.spec)
    site.program("apply", "-y", "-d", "-f", site.spec)
    assert site.deployment()["spec"]["replicas"] == 2


LLM = """\
type: service
name: llm
model: Qwen/Qwen2.5-0.5B-Instruct
replicas: 1..4
scaling: {metric: queue, target: 4}
resources: {gpu: "H100:1"}
"""


class Scaled:
    def __init__(self, program: Program, root: Cluster, space: str) -> None:
        self.program = program
        self.root = root
        self.space = space
        program.write("llm.yaml", LLM)

    def apply(self, autoscaler: str, *arguments: str) -> str:
        """Switch the autoscaler, and apply or plan the same spec."""
        path = self.program.folder / "config.yaml"
        (place,) = json.loads(path.read_text())["backends"]
        path.write_text(json.dumps({"backends": [{**place, "autoscaler": autoscaler}]}))
        return self.program(*(arguments or ("apply", "-y", "-d", "-f", "llm.yaml")))

    @property
    def replicas(self) -> int:
        path = path_of("apps/v1", "Deployment", self.space, "llm")
        number: int = (self.root.get(path) or {})["spec"]["replicas"]
        return number

    @property
    def hpas(self) -> list[str]:
        found, _ = self.root.list(path_of(*HPA, self.space))
        return [one["metadata"]["name"] for one in found]


@pytest.fixture
def scaled(config: str, tmp_path: Path) -> Iterator[Scaled]:
    """Have a service on a cluster whose autoscaler may be switched off and on."""
    with namespace(config) as space:
        yield Scaled(Program(tmp_path, config, space), admin(config), space)


def test_replicas_stay_when_the_autoscaler_is_switched_off_and_on(scaled: Scaled) -> None:
    """All but the least were ended at once, while requests were answered by them."""
    scaled.apply("hpa")
    _scale(scaled.root, scaled.space, "llm", 3)
    assert "~ scaling: by lab -> by the gateway" in scaled.apply("none", "plan", "-f", "llm.yaml")
    scaled.apply("none")
    assert (scaled.replicas, scaled.hpas, scaled.program.runs()["llm"]["replicas"]) == (3, [], 3)
    assert "unchanged" in scaled.apply("none", "plan", "-f", "llm.yaml")
    scaled.apply("hpa")
    assert (scaled.replicas, scaled.hpas) == (3, ["llm"])


def test_a_saved_plan_that_switches_the_autoscaler_keeps_the_replicas_of_its_apply(scaled: Scaled) -> None:
    scaled.apply("hpa")
    scaled.apply("none", "plan", "-f", "llm.yaml", "--out", "plan.json")
    _scale(scaled.root, scaled.space, "llm", 9)
    scaled.apply("none", "apply", "-y", "-d", "plan.json")
    assert (scaled.replicas, scaled.hpas) == (4, [])  # the most of its range
    assert scaled.program.runs()["llm"]["replicas"] == 4


def test_a_run_that_was_stopped_is_not_put_back(site: Site) -> None:
    site.program("stop", "-y", "web")
    assert site.deployment() is None
    told = site.program("plan", "-f", site.spec)
    assert "web  service  rerun" in told
    assert "drift" not in told


def test_a_run_that_no_record_knows_is_removed_with_all_it_owns(site: Site) -> None:
    shutil.rmtree(site.program.folder / "state")
    template = site.deployment()["spec"]["template"]
    if not site.root.list(path_of("v1", "Pod", site.space))[0]:  # no controller makes any
        meta = {**template["metadata"], "name": "web-a"}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": template["spec"]}
        site.root.send("POST", path_of("v1", "Pod", site.space), pod)

    assert "web-0-0-0" in site.program("gc")
    assert "still running" in site.program("gc", "--remove", "-y")
    assert site.deployment()
    site.program("gc", "--remove", "--running", "-y")

    assert site.deployment() is None


def test_a_run_that_no_record_knows_and_has_no_pods_is_removed(site: Site) -> None:
    shutil.rmtree(site.program.folder / "state")
    site.edit({"spec": {"replicas": 0}}, manager="kubectl-scale")
    pods = path_of("v1", "Pod", site.space)

    def are_gone() -> bool:
        site.root.delete(pods, grace_s=0)  # no kubelet would end them
        return not site.root.list(pods)[0]

    watched(site.root, pods, are_gone)
    (found,) = json.loads(site.program("gc", "--json"))["orphans"]
    assert (found["name"], found["phase"]) == ("web", "pending")
    site.program("gc", "--remove", "--running", "-y")
    assert site.deployment() is None


def test_a_saved_plan_puts_back_what_was_reviewed(site: Site) -> None:
    site.root.delete(path_of("v1", "Service", site.space, "web"))
    saved = site.program("plan", "-f", site.spec, "--out", "plan.json", "--json")
    assert '"lab: Service web: is made"' in saved
    site.program("apply", "-d", "plan.json")
    assert site.get("v1", "Service") is not None
