"""Fixtures of RunPod: an account, and folders of the test's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.backends.runpod.api import API_KEY, FakeRunpod
from tests.backends.vm.fake import serving


@pytest.fixture(autouse=True)
def folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Keep state, cache and configuration in a folder of the test's."""
    for each in ("CACHE_HOME", "STATE_HOME", "CONFIG_HOME", "DATA_HOME", "RUNTIME_DIR"):
        monkeypatch.setenv(f"XDG_{each}", str(tmp_path / each))
    return tmp_path


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeRunpod]:
    """Lend an account with nothing there."""
    monkeypatch.setenv("RUNPOD_API_KEY", API_KEY)
    with serving(FakeRunpod(tmp_path / "pods")) as made:
        assert isinstance(made, FakeRunpod)
        yield made
        made.reset()


@pytest.fixture
def options(cloud: FakeRunpod) -> dict[str, Any]:
    """Return the options of a backend that rents there."""
    return {"endpoint_url": cloud.url, "deployment": "d1", "quiet_s": 0.3}
