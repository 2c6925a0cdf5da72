"""Every spec in configs/ loads, and each kind of document is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.catalog.hardware import known_names
from orchestrator.spec.load import load
from orchestrator.spec.models import TYPES

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted(CONFIGS.glob("**/*.y*ml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_each_loads(path: Path) -> None:
    assert load([str(path)], known_accelerators=known_names())


def test_all_load_together_and_every_kind_is_there() -> None:
    documents = load([str(CONFIGS)], known_accelerators=known_names())

    assert {document.spec.type for document in documents} == set(TYPES)
