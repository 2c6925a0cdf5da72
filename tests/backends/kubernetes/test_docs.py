"""The manifests of the operators' page: they are what they say, and Argo CD's checks run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.places import Place, build

PAGE = (Path(__file__).parents[3] / "docs" / "kubernetes.md").read_text()
MANIFESTS = [yaml.safe_load(text) for text in re.findall(r"```yaml manifest\n(.*?)```", PAGE, re.DOTALL)]
CONFIGS = [yaml.safe_load(text) for text in re.findall(r"```yaml config\n(.*?)```", PAGE, re.DOTALL)]
(CHECKS,) = (one["data"] for one in MANIFESTS if "data" in one)


def test_every_configuration_is_one_that_the_backend_knows() -> None:
    for config in CONFIGS:
        for entry in config["backends"]:
            options = {key: value for key, value in entry.items() if key != "type"}
            assert build(Place("lab", entry["type"], options)).name == "lab"


@pytest.mark.parametrize("kind", ["LocalQueue", "Application", "Kustomization", "PersistentVolumeClaim"])
def test_every_example_is_an_object(kind: str) -> None:
    (one,) = (each for each in MANIFESTS if each.get("kind") == kind)
    assert {"apiVersion", "kind", "metadata", "spec"} <= one.keys()


def health(kind: str, *conditions: tuple[str, str], reason: str = "") -> str:
    """Return what Argo CD would show of an object with these conditions."""
    lua = pytest.importorskip("lupa").LuaRuntime()
    script = CHECKS[f"resource.customizations.health.{kind}"]
    told = [{"type": t, "status": s, "message": "m", "reason": reason} for t, s in conditions]
    check = lua.eval(f"function(obj) {script} end")
    found: Any = check(lua.table_from({"status": {"conditions": told}}, recursive=True))
    assert found["message"]
    return str(found["status"])


HEALTH: list[tuple[str, list[tuple[str, str]], str, str]] = [
    ("leaderworkerset.x-k8s.io_LeaderWorkerSet", [], "", "Progressing"),
    ("leaderworkerset.x-k8s.io_LeaderWorkerSet", [("Progressing", "True")], "", "Progressing"),
    ("leaderworkerset.x-k8s.io_LeaderWorkerSet", [("Available", "True")], "", "Healthy"),
    ("jobset.x-k8s.io_JobSet", [], "", "Progressing"),
    ("jobset.x-k8s.io_JobSet", [("Suspended", "True")], "", "Suspended"),
    ("jobset.x-k8s.io_JobSet", [("Suspended", "False"), ("Completed", "True")], "", "Healthy"),
    ("jobset.x-k8s.io_JobSet", [("Failed", "True")], "", "Degraded"),
    ("kueue.x-k8s.io_LocalQueue", [], "", "Progressing"),
    ("kueue.x-k8s.io_LocalQueue", [("Active", "True")], "", "Healthy"),
    ("kueue.x-k8s.io_LocalQueue", [("Active", "False")], "", "Degraded"),
    ("kueue.x-k8s.io_Workload", [("QuotaReserved", "False")], "", "Suspended"),
    ("kueue.x-k8s.io_Workload", [("QuotaReserved", "True"), ("Admitted", "True")], "", "Healthy"),
    ("kueue.x-k8s.io_Workload", [("Admitted", "True"), ("Finished", "True")], "Succeeded", "Healthy"),
    ("kueue.x-k8s.io_Workload", [("Admitted", "True"), ("Finished", "True")], "Failed", "Degraded"),
]


@pytest.mark.parametrize(("kind", "conditions", "reason", "wanted"), HEALTH)
def test_argo_shows_what_the_conditions_say(kind: str, conditions: Any, reason: str, wanted: str) -> None:
    assert health(kind, *conditions, reason=reason) == wanted


RECORDED = {
    ("lws-ready", "owners"): ("leaderworkerset.x-k8s.io_LeaderWorkerSet", "Healthy"),
    ("lws-worker-restarted", "owners"): ("leaderworkerset.x-k8s.io_LeaderWorkerSet", "Progressing"),
    ("jobset-done", "owners"): ("jobset.x-k8s.io_JobSet", "Healthy"),
    ("jobset-failed", "owners"): ("jobset.x-k8s.io_JobSet", "Degraded"),
    ("kueue-waits", "workloads"): ("kueue.x-k8s.io_Workload", "Suspended"),
}


@pytest.mark.parametrize(("record", "part"), RECORDED)
def test_argo_shows_what_real_controllers_said(record: str, part: str) -> None:
    (one,) = json.loads((Path(__file__).parent / "recorded" / f"{record}.json").read_text())[part]
    kind, wanted = RECORDED[record, part]
    conditions = [(each["type"], each["status"]) for each in one["status"]["conditions"]]
    assert health(kind, *conditions) == wanted


def test_every_check_is_held_against_conditions() -> None:
    assert {f"resource.customizations.health.{kind}" for kind, *_ in HEALTH} == CHECKS.keys()
