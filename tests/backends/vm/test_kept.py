"""What an account answered is asked for again when it is old, damaged or not to be kept."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.vm.kept import kept


@pytest.fixture
def answers() -> Iterator[int]:
    """Numbers, so that each time somebody asks is told from the others."""
    return iter(range(9))


def test_an_answer_is_asked_for_once(tmp_path: Path, answers: Iterator[int]) -> None:
    path = tmp_path / "cache" / "types.json"
    assert [kept(path, 60, lambda: next(answers)) for _ in range(3)] == [0, 0, 0]


def test_an_old_answer_is_asked_for_again(tmp_path: Path, answers: Iterator[int]) -> None:
    path = tmp_path / "types.json"
    kept(path, 60, lambda: next(answers))
    os.utime(path, (0, 0))
    assert kept(path, 60, lambda: next(answers)) == 1


def test_a_damaged_answer_is_asked_for_again(tmp_path: Path, answers: Iterator[int]) -> None:
    path = tmp_path / "types.json"
    path.write_text("[1, ")
    assert [kept(path, 60, lambda: next(answers)) for _ in range(2)] == [0, 0]


def test_an_answer_that_does_not_hold_is_not_kept(tmp_path: Path, answers: Iterator[int]) -> None:
    path = tmp_path / "types.json"
    assert [kept(path, 60, lambda: next(answers), holds=bool) for _ in range(3)] == [0, 1, 1]


def test_an_answer_that_cannot_be_written_is_returned(tmp_path: Path, answers: Iterator[int]) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert [kept(tmp_path / "cache" / "types.json", 60, lambda: next(answers)) for _ in range(2)] == [0, 1]
