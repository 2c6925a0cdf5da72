"""Types are strict, lint is clean, the format is ruff's, and doctests hold."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import backends
import orchestrator

ROOT = Path(__file__).parents[2]


def tool(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a development tool that is installed beside this interpreter."""
    program = Path(sys.executable).with_name(name)
    return subprocess.run([program, *arguments], cwd=ROOT, capture_output=True, text=True)


def test_types_are_strict() -> None:
    result = tool("mypy")
    assert result.returncode == 0, result.stdout


def test_lint_is_clean() -> None:
    result = tool("ruff", "check", ".")
    assert result.returncode == 0, result.stdout


def test_format_is_ruffs() -> None:
    result = tool("ruff", "format", "--check", ".")
    assert result.returncode == 0, result.stdout


def modules() -> Iterator[str]:
    """Yield every module of ours, but for those that run when they are imported."""
    for package in (orchestrator, backends):
        for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if not found.name.endswith(".__main__") and ".migrations" not in found.name:
                yield found.name


@pytest.mark.parametrize("name", sorted(modules()))
def test_doctests_hold(name: str) -> None:
    failures, _ = doctest.testmod(importlib.import_module(name))
    assert failures == 0


@pytest.mark.parametrize("name", sorted(modules()))
def test_a_module_says_its_role_in_one_line(name: str) -> None:
    text = importlib.import_module(name).__doc__ or ""
    assert text.strip(), f"{name} has no docstring"
    assert len(text.strip().splitlines()[0]) <= 110
