"""Machines that are emptied: services move, tasks finish unless they are evicted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from backends.sim import Script
from orchestrator.reconcile import JobState, Retry
from orchestrator.reconcile.decide import reconcile
from orchestrator.reconcile.steps import Observed, Step
from tests.reconcile.world import PATIENT, World

INTERRUPTED = Retry(frozenset({"interruption"}), first_s=1)


def up(**changes: object) -> World:
    """Return a world whose service answers from two replicas."""
    world = World(scripts={"chat": Script(ready_s=1)})
    world.apply(replicas=2, retry=PATIENT, **{"surge": True, **changes})
    world.settle()
    assert world.state() == "ready"
    return world


def alive(world: World, run: str = "chat") -> list[str]:
    """Return the launches that run."""
    return sorted(i.name for i in world.alive(run))


def moves(world: World) -> None:
    """Hold a service to moving without a gap."""
    world.leave["chat-0-0-0"] = "drain"
    seen = []
    for _ in range(12):
        world.step()
        world.clock.advance(1)
        ready = {
            job.name for job in world.jobs[world.runs["chat"].id].values() if job.state is JobState.READY
        }
        seen.append(len({name.split("-")[1] for name in ready}))
    assert alive(world) == ["chat-0-0-1", "chat-1-0-0"]
    assert min(seen) == 2  # no replica was without an answer meanwhile
    assert world.state() == "ready"
    told = [event.cause for event in world.events if event.subject == "chat-0-0-1"]
    assert told[0] == "replaces chat-0-0-0, whose host is being emptied"


def test_a_service_moves_and_its_successor_answers_first() -> None:
    moves(up())


def test_a_service_that_stayed_where_it_is_would_be_caught() -> None:
    def deaf(run: Any, jobs: Any, observed: Observed, **now: Any) -> Step:
        stripped = {
            place: None if found is None else tuple(replace(i, leave="") for i in found)
            for place, found in observed.instances.items()
        }
        return reconcile(run, jobs, replace(observed, instances=stripped), **now)

    world = up()
    world.reconcile = deaf
    with pytest.raises(AssertionError):
        moves(world)


def test_a_service_that_cannot_stand_beside_itself_is_stopped_first() -> None:
    world = up(surge=False)
    world.leave["chat-1-0-0"] = "drain"
    world.settle()
    assert alive(world) == ["chat-0-0-0", "chat-1-0-1"]
    assert world.state() == "ready"


def test_one_replica_moves_at_a_time() -> None:
    world = up()
    world.leave |= {"chat-0-0-0": "drain", "chat-1-0-0": "drain"}
    world.step()
    world.step()
    assert len(alive(world)) == 3
    world.settle()
    assert alive(world) == ["chat-0-0-1", "chat-1-0-1"]


def test_a_service_goes_on_where_it_is_while_no_other_host_has_room() -> None:
    world = up()
    full = Script(refuse="no-capacity")
    world.scripts |= {f"chat-0-0-{n}": full for n in range(1, 9)}
    world.leave["chat-0-0-0"] = "drain"
    for _ in range(6):
        world.step()
        world.clock.advance(1)
    assert "chat-0-0-0" in alive(world)
    assert world.job("chat-0-0-0").stop_asked_at is None


def test_a_task_finishes_on_a_host_that_is_drained() -> None:
    world = World(scripts={"sft": Script(run_s=30)})
    world.apply("sft", type="task")
    world.step()
    world.leave["sft-0-0-0"] = "drain"
    world.settle()
    assert world.state("sft") == "succeeded"
    assert world.started() == {"sft-0-0-0": 1}


def test_a_task_that_is_evicted_follows_its_retry() -> None:
    for retry, state, starts in ((INTERRUPTED, "succeeded", 2), (Retry(), "failed", 1)):
        world = World(scripts={"sft": Script(run_s=30)})
        world.apply("sft", type="task", retry=retry)
        world.step()
        world.step()
        world.leave["sft-0-0-0"] = "evict"
        world.settle()
        assert world.state("sft") == state
        assert len(world.started()) == starts
        assert (world.job("sft-0-0-0").reason, world.job("sft-0-0-0").message) == (
            "preempted",
            "its host is being emptied",
        )
