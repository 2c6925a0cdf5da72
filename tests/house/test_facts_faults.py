"""Broken twins of what holds a model's files against each other, which the tests of facts must catch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.facts import adapters, files, safetensors
from tests.facts import test_adapters, test_local, test_safetensors

read_header = safetensors.read_header


def _sizes_never_compared(read: Any, name: str, *, file_bytes: int | None = None) -> Any:
    return read_header(read, name)


def _headers_left_alone(files: Any, named: Any) -> list[Any]:
    return []


def _any_weights_do(facts: Any, named: Any) -> None:
    return None


def _rank_of_most_matrices(text: str, file: str) -> int:
    return int(json.loads(text)["r"])


def _whatever_is_kept(id: str, revision: str, environ: Any) -> Path | None:
    return next((adapters._cache(environ) / "models--org--sql" / "snapshots").iterdir(), None)


def _sum_of_the_sizes(tensors: Any, name: str) -> int:
    return sum(tensor.size_bytes for tensor in tensors)


@pytest.mark.parametrize(
    ("module", "name", "twin", "test"),
    [
        (
            files,
            "read_header",
            _sizes_never_compared,
            lambda _: test_local.test_no_cut_weight_file_of_a_known_architecture_is_read(),
        ),
        (
            files,
            "_tensors",
            _headers_left_alone,
            lambda _: test_local.test_no_cut_weight_file_of_a_known_architecture_is_read(),
        ),
        (
            files,
            "refuse_too_few",
            _any_weights_do,
            test_local.test_one_file_of_a_set_without_its_index_is_refused,
        ),
        (
            safetensors,
            "_end",
            _sum_of_the_sizes,
            lambda _: test_safetensors.test_tensors_that_overlap_or_leave_gaps_are_refused(([0, 4], [2, 6])),
        ),
        (
            adapters,
            "_rank",
            _rank_of_most_matrices,
            test_adapters.test_a_folder_tells_the_largest_rank_of_its_matrices,
        ),
        (
            adapters,
            "_kept",
            _whatever_is_kept,
            lambda folder: test_adapters.finds_by_branch_and_commit(folder, {"HF_HUB_CACHE": str(folder)}),
        ),
    ],
    ids=[
        "sizes not compared",
        "headers not read",
        "too few not refused",
        "overlaps not seen",
        "ranks of few matrices not seen",
        "any commit taken",
    ],
)
def test_a_broken_twin_is_caught(
    module: Any,
    name: str,
    twin: Callable[..., Any],
    test: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    sound, broken = tmp_path / "sound", tmp_path / "broken"
    sound.mkdir()
    broken.mkdir()
    test(sound)
    monkeypatch.setattr(module, name, twin)
    with pytest.raises((pytest.fail.Exception, AssertionError)):
        test(broken)
