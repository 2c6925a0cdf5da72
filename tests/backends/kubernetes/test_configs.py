"""The files of ``configs/`` on a cluster: valid in every version, and admitted by ``restricted``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.backends.kubernetes import rules
from tests.backends.kubernetes.configs import TAKEN, objects_of
from tests.backends.kubernetes.test_render import VERSIONS


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("configs")
    return {name: objects_of(name, folder) for name in TAKEN}


@pytest.mark.parametrize("version", VERSIONS)
def test_every_config_is_valid_in_every_version(made: Any, version: str) -> None:
    validate = pytest.importorskip("kubernetes_validate").validate
    for objects in made.values():
        for one in objects:
            if rules.is_built_in(one):
                validate(one, version, strict=True)
                continue
            assert rules.custom_violations(one) == []
            for template in rules.pod_templates(one):
                named = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}}
                validate({**named, "template": template}, version, strict=True)


@pytest.mark.parametrize("name", TAKEN)
def test_every_config_is_admitted_by_restricted(made: Any, name: str) -> None:
    templates = list(rules.pod_templates(made[name]))
    assert bool(templates) == (made[name][0]["kind"] != "PersistentVolumeClaim")
    assert [rules.restricted_violations(t) for t in templates] == [[] for _ in templates]


@pytest.mark.parametrize("name", TAKEN)
def test_no_config_writes_where_only_root_may(made: Any, name: str) -> None:
    for template in rules.pod_templates(made[name]):
        (container,) = template["spec"]["containers"]
        values = [variable.get("value", "") for variable in container["env"]]
        paths = [mount["mountPath"] for mount in container["volumeMounts"]]
        assert [text for text in values + paths if text.startswith("/root")] == []


@pytest.mark.parametrize("fault", ["startupProb", "securityContexts"])
def test_misspelt_key_is_seen(made: Any, fault: str) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    owner = made["services/llama-8b.yaml"][0]
    template = owner["spec"]["template"]["spec"]
    broken = {**template, "containers": [{**template["containers"][0], fault: {}}]}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(
            {**owner, "spec": {**owner["spec"], "template": {**owner["spec"]["template"], "spec": broken}}},
            "1.36", strict=True,
        )  # fmt: skip


def test_same_bytes_every_time(made: Any, tmp_path: Path) -> None:
    assert objects_of("services/llama-70b.yaml", tmp_path) == made["services/llama-70b.yaml"]
