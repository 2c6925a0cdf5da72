"""The hub's road: one commit pinned, few files fetched and kept, every refusal told apart."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.errors import Denied, HubUnreachable, ModelError
from orchestrator.facts import Hub, resolve
from tests.facts.hub_server import SHA, FakeHub, serving
from tests.facts.making import CONFIG, index, llama_shapes, novel_shapes, safetensors

WEIGHTS = safetensors(llama_shapes())


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    files = {
        "config.json": json.dumps(CONFIG).encode(),
        "model.safetensors": WEIGHTS,
        "original/consolidated.safetensors": WEIGHTS * 2,
    }
    with serving(FakeHub(files)) as running:
        yield running


def test_a_published_model_is_pinned_to_its_commit(hub: FakeHub, tmp_path: Path) -> None:
    facts = resolve("acme/tiny", hub=Hub(hub.url), cache_dir=tmp_path)
    assert facts.revision == SHA
    assert (facts.layers, facts.licence, facts.gated_access) == (2, "mit", False)
    assert facts.languages == ("en", "de")


def test_a_second_copy_in_a_folder_does_not_count(hub: FakeHub, tmp_path: Path) -> None:
    assert resolve("acme/tiny", hub=Hub(hub.url), cache_dir=tmp_path).weights_bytes == len(WEIGHTS)


def test_weights_are_not_fetched(hub: FakeHub, tmp_path: Path) -> None:
    resolve("acme/tiny", hub=Hub(hub.url), cache_dir=tmp_path)
    assert not any("safetensors" in path for path in hub.paths())


def test_weights_of_another_model_are_refused_without_fetching_any(hub: FakeHub, tmp_path: Path) -> None:
    hub.files["model.safetensors"] = WEIGHTS[: len(WEIGHTS) // 3]
    with pytest.raises(ModelError) as caught:
        resolve("acme/tiny", hub=Hub(hub.url), cache_dir=tmp_path)
    assert "model.safetensors" in caught.value.what
    assert not any("safetensors" in path for path in hub.paths())


def test_asked_again_only_the_branch_is_looked_up(hub: FakeHub, tmp_path: Path) -> None:
    first = resolve("acme/tiny", hub=Hub(hub.url), cache_dir=tmp_path)
    before = len(hub.asked)
    second = resolve("acme/tiny", hub=Hub(hub.url), cache_dir=tmp_path)
    assert second == first
    ((path, headers),) = hub.asked[before:]
    assert path == "/api/models/acme/tiny/revision/main"
    assert headers["if-none-match"] == '"etag-1"'


def test_a_commit_that_is_kept_asks_nobody(hub: FakeHub, tmp_path: Path) -> None:
    first = resolve("acme/tiny", revision=SHA, hub=Hub(hub.url), cache_dir=tmp_path)
    before = len(hub.asked)
    assert resolve("acme/tiny", revision=SHA, hub=Hub(hub.url), cache_dir=tmp_path) == first
    assert len(hub.asked) == before


def test_what_is_kept_serves_offline(hub: FakeHub, tmp_path: Path) -> None:
    online = resolve("acme/tiny", hub=Hub(hub.url), cache_dir=tmp_path)
    before = len(hub.asked)
    assert resolve("acme/tiny", hub=Hub(hub.url), cache_dir=tmp_path, offline=True) == online
    assert len(hub.asked) == before


def test_an_unknown_architecture_fetches_headers_only(hub: FakeHub, tmp_path: Path) -> None:
    hub.files["config.json"] = json.dumps(
        {**CONFIG, "architectures": ["NovelForCausalLM"], "num_experts": 4}
    ).encode()
    hub.files["model.safetensors"] = safetensors(novel_shapes())
    facts = resolve("acme/tiny", hub=Hub(hub.url), cache_dir=tmp_path)
    assert facts.kinds() == ("full", "linear", "full")
    ranges = [headers.get("range") for path, headers in hub.asked if path == "/stored/model.safetensors"]
    assert ranges[0] == "bytes=0-7"
    assert None not in ranges
    assert resolve("acme/tiny", hub=Hub(hub.url), cache_dir=tmp_path, offline=True) == facts


def test_a_mirror_without_ranges_gives_the_same(hub: FakeHub, tmp_path: Path) -> None:
    hub.ignores_ranges = True
    hub.files["config.json"] = json.dumps(
        {**CONFIG, "architectures": ["NovelForCausalLM"], "num_experts": 4}
    ).encode()
    hub.files["model.safetensors"] = safetensors(novel_shapes())
    assert resolve("acme/tiny", hub=Hub(hub.url), cache_dir=tmp_path).layers == 3


def test_an_index_that_names_a_missing_file_is_refused(hub: FakeHub, tmp_path: Path) -> None:
    hub.files["model.safetensors.index.json"] = index({"a": "lost.safetensors"})
    with pytest.raises(ModelError) as caught:
        resolve("acme/tiny", hub=Hub(hub.url), cache_dir=tmp_path)
    assert "lost.safetensors" in caught.value.what


def test_the_token_is_sent_and_never_shown(hub: FakeHub, tmp_path: Path) -> None:
    hub.token = "hf_secret"
    asked = Hub(hub.url, "hf_secret")
    assert resolve("acme/tiny", hub=asked, cache_dir=tmp_path).layers == 2
    assert "hf_secret" not in repr(asked)
    assert not any(
        "hf_secret" in path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file()
    )


def test_the_token_does_not_follow_a_redirect_to_another_host(hub: FakeHub, tmp_path: Path) -> None:
    hub.token = "hf_secret"
    with serving(FakeHub(hub.files)) as store:
        hub.store_url = store.url
        assert resolve("acme/tiny", hub=Hub(hub.url, "hf_secret"), cache_dir=tmp_path).layers == 2
    ((path, headers),) = store.asked
    assert path == "/stored/config.json"
    assert "authorization" not in headers


def test_a_gated_model_says_what_to_do(hub: FakeHub, tmp_path: Path) -> None:
    hub.token = "hf_secret"
    with pytest.raises(Denied) as caught:
        resolve("acme/tiny", hub=Hub(hub.url, "hf_wrong"), cache_dir=tmp_path)
    assert "HF_TOKEN" in (caught.value.fix or "")
    assert f"{hub.url}/acme/tiny" in (caught.value.fix or "")
    assert "hf_wrong" not in str(caught.value)


def test_an_unknown_model_is_told_from_an_unknown_revision(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as no_model:
        resolve("acme/other", hub=Hub(hub.url), cache_dir=tmp_path)
    with pytest.raises(ModelError) as no_revision:
        resolve("acme/tiny", revision="v9", hub=Hub(hub.url), cache_dir=tmp_path)
    assert "no model 'acme/other'" in no_model.value.what
    assert "no revision 'v9'" in no_revision.value.what


def test_a_repository_without_config_is_refused(hub: FakeHub, tmp_path: Path) -> None:
    del hub.files["config.json"]
    with pytest.raises(ModelError) as caught:
        resolve("acme/tiny", hub=Hub(hub.url), cache_dir=tmp_path)
    assert "config.json" in caught.value.what


def test_a_limit_says_when_to_come_back(hub: FakeHub, tmp_path: Path) -> None:
    hub.status, hub.retry_after = 429, "37"
    with pytest.raises(HubUnreachable) as caught:
        resolve("acme/tiny", hub=Hub(hub.url), cache_dir=tmp_path)
    assert caught.value.retry_after_s == 37


@pytest.mark.parametrize("status", [500, 503])
def test_a_broken_hub_may_heal(hub: FakeHub, tmp_path: Path, status: int) -> None:
    hub.status = status
    with pytest.raises(HubUnreachable):
        resolve("acme/tiny", hub=Hub(hub.url), cache_dir=tmp_path)


@pytest.mark.parametrize("status", [200, 400, 418])
def test_what_is_no_hub_is_said(hub: FakeHub, tmp_path: Path, status: int) -> None:
    hub.status = status
    with pytest.raises(ModelError) as caught:
        resolve("acme/tiny", hub=Hub(hub.url), cache_dir=tmp_path)
    assert "HF_ENDPOINT" in (caught.value.fix or "")


def test_an_answer_that_is_cut_off_is_not_kept(hub: FakeHub, tmp_path: Path) -> None:
    hub.cut_off = "config.json"
    with pytest.raises(HubUnreachable):
        resolve("acme/tiny", hub=Hub(hub.url), cache_dir=tmp_path)
    assert not list(tmp_path.rglob("config.json"))
    hub.cut_off = None
    assert resolve("acme/tiny", hub=Hub(hub.url), cache_dir=tmp_path).layers == 2


def test_nobody_listening_is_unreachable(tmp_path: Path) -> None:
    with serving(FakeHub()) as gone:
        pass
    with pytest.raises(HubUnreachable) as caught:
        resolve("acme/tiny", hub=Hub(gone.url), cache_dir=tmp_path)
    assert gone.url in caught.value.what


def test_the_environment_names_hub_and_token() -> None:
    asked = Hub.from_environment({"HF_ENDPOINT": "https://mirror.example/", "HF_TOKEN": "t"})
    assert (asked.endpoint, asked.token) == ("https://mirror.example", "t")
    assert Hub.from_environment({}).endpoint == "https://huggingface.co"
