"""Fixtures of the clouds: machines that a real sshd answers for, and folders of the test's own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.backends.vm.contract")  # before its import, or asserts say nothing

from tests.backends.ssh.farm import disconnect, farm  # noqa: E402 - after the line above
from tests.backends.vm.machines import Machines, machines  # noqa: E402


@pytest.fixture(scope="session")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """Lend a place where the machines of all clouds boot."""
    with farm() as lent, machines(lent, tmp_path_factory.mktemp("yard") / "machines") as made:
        yield made


@pytest.fixture(autouse=True)
def folders(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Keep state, cache and connections in a folder of the test's, and end the connections."""
    with tempfile.TemporaryDirectory(prefix="my-vm-", dir="/tmp") as name:
        for each in ("CACHE_HOME", "STATE_HOME", "CONFIG_HOME", "DATA_HOME"):
            monkeypatch.setenv(f"XDG_{each}", f"{name}/{each}")
        monkeypatch.setenv("XDG_RUNTIME_DIR", name)
        yield Path(name)
        disconnect(Path(name))
