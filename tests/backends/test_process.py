"""What launches as processes of this machine must hold: the contract, and what /proc can show."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from backends.machine import Device, Machine
from backends.process import Process
from orchestrator.backend import Backend
from orchestrator.testing import BackendContract

MACHINE = Machine(cpu=4.0, memory_bytes=2**33, disk_bytes=2**33, arch="x86")


class TestProcess(BackendContract):
    """The clauses, with /bin/sh."""

    @pytest.fixture
    def backend(self, tmp_path: Path) -> Iterator[Backend]:
        backend = make(tmp_path / "state")
        yield backend
        self.clear(backend)

    def source(self, backend: Backend) -> str | None:
        assert isinstance(backend, Process)
        return (
            f"from backends.process import Process\nbackend = Process(state_dir={str(backend.state_dir)!r})"
        )

    def stranger(self, backend: Backend) -> Backend | None:
        assert isinstance(backend, Process)
        return make(backend.state_dir, namespace="stranger")

    def broken(self, backend: Backend) -> Backend | None:
        assert isinstance(backend, Process)
        file = backend.state_dir.parent / "file"
        file.touch()
        return make(file)

    def traces(self, backend: Backend) -> Iterable[bytes]:
        assert isinstance(backend, Process)
        return [p.read_bytes() for p in backend.state_dir.rglob("*") if p.is_file()]


def make(folder: Path, *, namespace: str = "modelyard", devices: tuple[Device, ...] = ()) -> Process:
    """Return a backend on a machine that is the same on every machine."""
    machine = Machine(MACHINE.cpu, MACHINE.memory_bytes, MACHINE.disk_bytes, MACHINE.arch, devices)
    return Process(namespace=namespace, state_dir=folder, machine=lambda: machine)
