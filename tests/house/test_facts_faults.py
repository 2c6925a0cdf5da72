"""Broken twins of what holds a model's files against each other, which the tests of facts must catch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.facts import files, safetensors
from tests.facts import test_local, test_safetensors

read_header = safetensors.read_header


def _sizes_never_compared(read: Any, name: str, *, file_bytes: int | None = None) -> Any:
    return read_header(read, name)


def _headers_left_alone(files: Any, named: Any) -> list[Any]:
    return []


def _any_weights_do(facts: Any, named: Any) -> None:
    return None


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
    ],
    ids=["sizes not compared", "headers not read", "too few not refused", "overlaps not seen"],
)
def test_a_broken_twin_is_caught(
    module: Any,
    name: str,
    twin: Callable[..., Any],
    test: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    test(tmp_path)
    monkeypatch.setattr(module, name, twin)
    with pytest.raises((pytest.fail.Exception, AssertionError)):
        test(tmp_path)
