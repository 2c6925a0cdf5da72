"""Whatever happened before, the world becomes what was asked for: nothing doubled, nothing left."""

from __future__ import annotations

import pytest

from orchestrator.reconcile.decide import reconcile
from tests.reconcile.histories import play, play_all

HISTORIES, STEPS = 300, 60


@pytest.mark.parametrize("part", range(10))
def test_world_becomes_desired(part: int) -> None:
    """18,000 random steps in ten parts, the same in every run."""
    play_all(range(part * HISTORIES // 10, (part + 1) * HISTORIES // 10), STEPS, reconcile)


def test_a_history_is_the_same_each_time() -> None:
    once, twice = (play(7, STEPS, reconcile) for _ in range(2))
    assert once.events == twice.events
