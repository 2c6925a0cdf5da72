"""What a reader sees of a file with every kind of problem; ``UPDATE_GOLDEN=1`` writes it anew."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.errors import SpecError
from orchestrator.spec.load import read
from tests.spec.texts import KNOWN

BROKEN = Path(__file__).with_name("broken.yaml")
GOLDEN = Path(__file__).with_name("broken.txt")


def test_problems_read_as_they_did() -> None:
    with pytest.raises(SpecError) as caught:
        read(BROKEN.read_text(), file="broken.yaml", known_accelerators=KNOWN)

    text = f"{caught.value}\n"
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def test_no_secret_is_repeated() -> None:
    with pytest.raises(SpecError) as caught:
        read(BROKEN.read_text())

    assert "hunter2" not in str(caught.value)
