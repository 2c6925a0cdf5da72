"""Imports go down the house only, and every module has its room."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter on the packages under ``root``."""
    program = Path(sys.executable).with_name("lint-imports")
    return subprocess.run(
        [program, "--no-cache"], cwd=root, capture_output=True, text=True, env={"PYTHONPATH": str(root)}
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the house to plant faults in."""
    for name in ("orchestrator", "backends"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_every_import_goes_down() -> None:
    result = lint(ROOT)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("orchestrator/stray.py", "", "stray"),
        ("orchestrator/units.py", "import orchestrator.store\n", "orchestrator.units -> orchestrator.store"),
        ("orchestrator/reconcile/decide.py", "import orchestrator.planner\n", "orchestrator.planner"),
        ("backends/sim/host.py", "import orchestrator.store\n", "orchestrator.store"),
        ("orchestrator/loop/driver.py", "import backends.sim\n", "backends.sim"),
    ],
    ids=["no room", "up", "across", "backend knows the store", "someone imports a backend"],
)
def test_a_planted_import_is_caught(copy: Path, file: str, text: str, said: str) -> None:
    target = copy / file
    target.write_text((target.read_text() if target.exists() else "") + "\n" + text)
    result = lint(copy)
    assert result.returncode != 0
    assert said in result.stdout
