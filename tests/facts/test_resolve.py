"""Where facts come from, in order: a path, the catalog, a config put there by hand, the hub."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.errors import ModelError
from orchestrator.facts import Hub, resolve
from tests.facts.hub_server import FakeHub, serving
from tests.facts.making import CONFIG

NOWHERE = Hub("http://127.0.0.1:9")


def test_the_catalog_answers_without_asking_anyone(tmp_path: Path) -> None:
    facts = resolve("qwen/qwen3-8b", hub=NOWHERE, cache_dir=tmp_path)
    assert facts.id == "Qwen/Qwen3-8B"
    assert list(tmp_path.iterdir()) == []


def test_a_pinned_revision_of_a_known_model_is_asked_for(tmp_path: Path) -> None:
    with serving(FakeHub({"config.json": json.dumps(CONFIG).encode()}, id="Qwen/Qwen3-8B", card={})) as hub:
        facts = resolve("Qwen/Qwen3-8B", revision="v1", hub=Hub(hub.url), cache_dir=tmp_path)
    assert facts.layers == 2
    assert facts.licence == "apache-2.0"


def test_main_is_what_the_catalog_knows(tmp_path: Path) -> None:
    assert resolve("Qwen/Qwen3-8B", revision="main", hub=NOWHERE, cache_dir=tmp_path).layers == 36


def test_offline_an_unknown_model_says_where_to_put_its_config(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        resolve("acme/secret", hub=NOWHERE, cache_dir=tmp_path, offline=True)
    path = tmp_path / "placed" / "acme" / "secret" / "config.json"
    assert str(path) in (caught.value.fix or "")

    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(CONFIG))
    facts = resolve("acme/secret", hub=NOWHERE, cache_dir=tmp_path, offline=True)
    assert (facts.id, facts.layers) == ("acme/secret", 2)


@pytest.mark.parametrize("offline", [True, False])
@pytest.mark.parametrize("typed", ["meta-llama/Llama-3.1-70B-Instuct", "llama-3.1-70b-instruct"])
def test_an_id_that_nobody_knows_is_answered_with_the_nearest(
    tmp_path: Path, typed: str, offline: bool
) -> None:
    with pytest.raises(ModelError) as caught:
        resolve(typed, hub=NOWHERE, cache_dir=tmp_path, offline=offline)
    assert (caught.value.fix or "").startswith("did you mean 'meta-llama/Llama-3.1-70B-Instruct'? If not, ")


def test_an_unfetched_revision_is_refused_offline(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        resolve("Qwen/Qwen3-8B", revision="v1", hub=NOWHERE, cache_dir=tmp_path, offline=True)
    assert "v1" in caught.value.what


@pytest.mark.parametrize("model", ["s3://bucket/model", "pvc://claim/model", "oci://registry/model"])
def test_a_bucket_cannot_be_read_from_here(model: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        resolve(model, cache_dir=tmp_path, offline=True)
    assert "config.json" in (caught.value.fix or "")


@pytest.mark.parametrize("model", ["../no/such/place", "a/b/c", "./missing", "", "a b"])
def test_what_is_neither_path_nor_id_is_refused(model: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        resolve(model, cache_dir=tmp_path, offline=True)
    assert "hub id" in caught.value.what


@pytest.mark.parametrize(
    "model", ["~no-such-user-here/model", "x" * 5000, "a\0b"], ids=["user", "long", "zero"]
)
def test_a_name_no_file_system_takes_is_refused(model: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        resolve(model, cache_dir=tmp_path, offline=True)


def test_a_cache_that_is_no_folder_is_said(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.write_text("a file")
    with (
        serving(FakeHub({"config.json": json.dumps(CONFIG).encode()})) as hub,
        pytest.raises(ModelError) as caught,
    ):
        resolve("acme/tiny", hub=Hub(hub.url), cache_dir=cache)
    assert str(cache) in caught.value.what


def test_the_users_own_catalog_comes_first(tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text("acme/eight: {same: Qwen/Qwen3-8B, source: ours}\n")
    assert resolve("acme/eight", overlay=tmp_path, cache_dir=tmp_path, offline=True).layers == 36


def test_a_known_model_costs_no_http_library() -> None:
    program = (
        "import sys; from orchestrator.facts import resolve; resolve('Qwen/Qwen3-8B');"
        "print('httpx' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert run.stdout.strip() == "False"
