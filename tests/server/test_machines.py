"""Rented machines that serve no run, asked for and ended from afar."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from backends.sim import Sim
from orchestrator.backend import Machine
from orchestrator.errors import Denied
from tests.server.conftest import Served

LEFT = Machine(
    "i-1", "lost-0-0-0", "lost", "g6.xlarge", "us-east-1", "running", since=datetime(2026, 1, 1, tzinfo=UTC)
)


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have the sim rent a machine that nobody owns, and say which were ended."""
    found: list[str] = []
    monkeypatch.setattr(Sim, "machines", lambda self: (LEFT,), raising=False)
    monkeypatch.setattr(Sim, "release", lambda self, name, keep_s: None, raising=False)
    monkeypatch.setattr(Sim, "terminate", lambda self, machine: found.append(machine), raising=False)
    return found


def test_a_machine_that_serves_no_run_is_listed_and_ended(
    serve: Callable[..., Served], ended: list[str]
) -> None:
    admin = serve().client()
    (stray,) = admin.strays().items
    assert stray.machine == LEFT
    assert stray.why == "no run 'lost' is on record"

    admin.terminate([stray, replace(stray, machine=replace(LEFT, id="i-2"))])

    assert ended == ["i-1"]


def test_an_admin_of_one_project_ends_no_machine(serve: Callable[..., Served], ended: list[str]) -> None:
    one = serve().client(of="main")
    with pytest.raises(Denied):
        one.strays()
    assert ended == []
