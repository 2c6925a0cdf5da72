"""What others changed in our objects: told by a plan, put back by an apply, or refused with the holder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backends.kubernetes import Kubernetes
from backends.kubernetes.client import Cluster, path_of
from tests.backends.kubernetes.cluster import admin, api_server, namespace
from tests.backends.kubernetes.samples import SCALED
from tests.backends.kubernetes.test_holds import WEB, Program, _create_node
from tests.backends.kubernetes.test_inventory import SITES

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


def test_number_that_an_autoscaler_moves_is_no_drift(config: str, tmp_path: Path) -> None:
    root = admin(config)
    with namespace(config) as space:
        place = Kubernetes("lab", kubeconfig=config, namespace=space, autoscaler="hpa")
        place.apply_group(SCALED, secrets={})
        scale = path_of("apps/v1", "Deployment", space, "llama-70b") + "/scale"
        root.send("PATCH", scale, {"spec": {"replicas": 4}}, MERGE, fieldManager="kube-controller-manager")
        assert place.rehearse(SCALED) == []


def test_number_that_somebody_scales_names_the_way_to_leave_it(site: Site) -> None:
    scale = path_of("apps/v1", "Deployment", site.space, "web") + "/scale"
    site.root.send("PATCH", scale, {"spec": {"replicas": 4}}, MERGE, fieldManager="kube-controller-manager")
    refused = site.program("apply", "-y", "-d", "-f", site.spec, code=65)
    assert ".spec.replicas by kube-controller-manager" in refused
    assert "set autoscaler for this backend where one scales it" in refused


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


def test_a_saved_plan_puts_back_what_was_reviewed(site: Site) -> None:
    site.root.delete(path_of("v1", "Service", site.space, "web"))
    saved = site.program("plan", "-f", site.spec, "--out", "plan.json", "--json")
    assert '"lab: Service web: is made"' in saved
    site.program("apply", "-d", "plan.json")
    assert site.get("v1", "Service") is not None
