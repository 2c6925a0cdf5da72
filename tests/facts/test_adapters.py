"""An adapter's rank is what its files say, wherever they are; nobody is asked and nothing is guessed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.errors import ModelError
from orchestrator.facts import adapter_rank


def written(folder: Path, **config: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def kept(hub: Path, commit: str, rank: int, branch: str = "") -> None:
    """Keep org/sql at ``commit`` as the hub's client does, as what ``branch`` is at."""
    repository = hub / "models--org--sql"
    written(repository / "snapshots" / commit, r=rank)
    if branch:
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / branch).write_text(commit)


def test_a_folder_tells_the_largest_rank_of_its_matrices(tmp_path: Path) -> None:
    plain = written(tmp_path / "plain", r=8, rank_pattern=None)
    mixed = written(tmp_path / "mixed", r=8, rank_pattern={"q_proj": 32, "v_proj": 4})
    assert [adapter_rank(str(folder), environ={}) for folder in (plain, mixed)] == [8, 32]


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HOME"])
def test_what_the_hub_s_client_keeps_is_found_by_branch_and_by_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    below = {
        "HF_HUB_CACHE": "",
        "HF_HOME": "hub",
        "XDG_CACHE_HOME": "huggingface/hub",
        "HOME": ".cache/huggingface/hub",
    }
    environ = {} if variable == "HOME" else {variable: str(tmp_path)}
    monkeypatch.setenv("HOME", str(tmp_path))
    finds_by_branch_and_commit(tmp_path / below[variable], environ)


def finds_by_branch_and_commit(hub: Path, environ: dict[str, str]) -> None:
    kept(hub, "a" * 40, 16, "main")
    kept(hub, "b" * 40, 64, "v2")
    found = [adapter_rank("org/sql", revision=r, environ=environ) for r in (None, "v2", "b" * 40, "a" * 40)]
    assert found == [16, 64, 64, 16]


@pytest.mark.parametrize("id", ["org/other", "s3://bucket/sql", "/nowhere/sql", "../up"])
@pytest.mark.parametrize("revision", [None, "v3", "../../../models--org--sql/snapshots/" + "a" * 40])
def test_what_no_file_here_tells_is_not_known(tmp_path: Path, id: str, revision: str | None) -> None:
    kept(tmp_path, "a" * 40, 16, "main")
    assert adapter_rank(id, revision=revision, environ={"HF_HUB_CACHE": str(tmp_path)}) is None
    assert adapter_rank("org/sql", revision=revision or "v4", environ={"HF_HUB_CACHE": str(tmp_path)}) is None


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"r": "8"}', '{"r": 0}', '{"r": true}', '{"r": 8, "rank_pattern": [8]}']
)
def test_a_file_that_says_no_rank_is_told_of(tmp_path: Path, text: str) -> None:
    folder = written(tmp_path / "sql")
    (folder / "adapter_config.json").write_text(text)
    with pytest.raises(ModelError) as refused:
        adapter_rank(str(folder), environ={})
    assert str(folder) in refused.value.what
    assert refused.value.fix
