"""Killed at any boundary, the next process finishes: nothing started twice, nothing left over."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.backend import Launch, Phase
from tests.images import require_engine
from tests.loop import crash


@pytest.mark.parametrize("kind", ["sim", pytest.param("docker", marks=pytest.mark.docker)])
@pytest.mark.timeout(600)
def test_every_kill_is_recovered_from(kind: str) -> None:
    if kind == "docker":
        require_engine()
    found = list(crash.outcomes(kind))
    assert len(found) >= (30 if kind == "sim" else 20)
    assert [o for o in found if not o.recovered or o.doubled or o.orphaned] == []


def test_a_launch_that_nobody_owns_is_seen(tmp_path: Path) -> None:
    crash.child("sim", tmp_path, die_at=10)
    ghost = Launch("ghost-0-0-0", "ghost")
    crash.make_backend("sim", tmp_path).start(ghost, secrets={}, progress=lambda _: None)
    assert crash.recover("sim", tmp_path).orphaned == ("ghost-0-0-0",)


def test_a_world_that_does_not_come_to_rest_is_seen(tmp_path: Path) -> None:
    crash.child("sim", tmp_path, die_at=10)
    crash.make_backend("sim", tmp_path).start(
        Launch("ghost-0-0-0", "ghost"), secrets={}, progress=lambda _: None
    )
    assert not crash.recover("sim", tmp_path).recovered


@pytest.mark.docker
def test_a_container_that_was_made_and_never_started_is_started_by_the_next_loop(tmp_path: Path) -> None:
    """The kill falls inside the backend's own start, where no boundary of the loop is."""
    require_engine()
    try:
        assert not crash.child("docker", tmp_path, die_at=0, inside=True)
        (left,) = crash.make_backend("docker", tmp_path).instances()
        assert left.phase is Phase.PENDING
        outcome = crash.recover("docker", tmp_path)
        assert (outcome.recovered, outcome.doubled, outcome.orphaned) == (True, (), ())
    finally:
        crash.clean("docker", tmp_path)
