"""A run that is interrupted every few minutes ends, and loses an interval of checkpoints each time."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from backends.sim import Script
from orchestrator.backend import Launch
from orchestrator.engines.tuning_entry import last_checkpoint, progress_of
from orchestrator.reconcile import Retry
from tests.engines.fake_trainer import save
from tests.reconcile.world import World

NEEDED_S, EVERY_S, BETWEEN_S = 7200, 60, 240
"""Work there is to do, between two checkpoints, and on average between two interruptions."""


@dataclass
class Spot:
    """Machines that are taken away at random, under training that writes real checkpoints."""

    output: Path
    chance: random.Random
    every_s: int = EVERY_S
    lost_s: list[float] = field(default_factory=list)
    known: dict[str, Script] = field(default_factory=dict)

    def script(self, launch: Launch) -> Script:
        """Return what one attempt does: it goes on from the last whole checkpoint until it is taken away."""
        if launch.name not in self.known:
            self.known[launch.name] = self._attempt()
        return self.known[launch.name]

    def _attempt(self) -> Script:
        begun_s, _ = progress_of(last_checkpoint(self.output, lambda *_: None))
        reached_s = begun_s + self.chance.expovariate(1 / BETWEEN_S)
        if reached_s >= NEEDED_S:
            return Script(run_s=NEEDED_S - begun_s)
        saved_s = int(reached_s // self.every_s) * self.every_s
        if saved_s > begun_s:
            save(self.output, saved_s, NEEDED_S)
        self.lost_s.append(reached_s - max(saved_s, begun_s))
        return Script(run_s=reached_s - begun_s, exit_code=137, reason="preempted")


def trained(spot: Spot) -> World:
    """Drive a run on such machines to its end."""
    world = World()
    for place in world.places.values():
        place._script = spot.script
    retry = Retry(frozenset({"interruption"}), first_s=1.0, most_s=8.0)
    world.apply("sft", type="task", resumes=True, retry=retry)
    for _ in range(10_000):
        if world.state("sft") == "succeeded":
            return world
        if not world.step():
            world.clock.advance(1.0)
    raise AssertionError(f"it did not end: {len(spot.lost_s)} interruptions")


@pytest.mark.parametrize("seed", range(3))
def test_interruptions_cost_an_interval_each_at_most(tmp_path: Path, seed: int) -> None:
    spot = Spot(tmp_path, random.Random(seed))
    world = trained(spot)
    assert sum(world.started().values()) == len(spot.lost_s) + 1
    worst, whole = max(spot.lost_s), sum(spot.lost_s)
    print(
        f"{NEEDED_S} s of work, {len(spot.lost_s)} interruptions, one in {BETWEEN_S} s on average: "
        f"lost {whole:.0f} s in all, {worst:.1f} s at most, of {EVERY_S} s between checkpoints"
    )
    assert len(spot.lost_s) >= 10
    assert worst <= EVERY_S


def test_work_without_checkpoints_would_lose_more(tmp_path: Path) -> None:
    """The bound can be broken: nothing is saved but the end."""
    spot = Spot(tmp_path, random.Random(1), every_s=NEEDED_S // 8)
    for _ in range(10):
        spot._attempt()
    assert max(spot.lost_s) > EVERY_S
