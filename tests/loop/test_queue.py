"""Runs with priorities on a place that is too small for all of them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from backends.sim import Script, Sim
from orchestrator.loop import Loop
from orchestrator.reconcile import Retry, RunState
from orchestrator.reconcile.precedence import ASKED_S, REFUSED_S, claims
from orchestrator.reconcile.steps import Turn
from orchestrator.store.records import Store
from tests.loop.conftest import RETRY, put, state

SLOW = Retry(frozenset({"no-capacity"}), first_s=600, most_s=600)
"""Whoever waits by this alone does not come back within a test."""


def apply(store: Store, name: str, priority: int, retry: Retry = SLOW) -> None:
    run = put(store, name, retry=retry)
    store.commit([Turn(replace(store.run(name), spec=f'{{"priority": {priority}}}'), None)], expected={})
    assert store.run(name).id == run.id


def later() -> datetime:
    """Return the time once an answer of now is an old one."""
    return datetime.now(UTC) + timedelta(seconds=REFUSED_S)


def begun(sim: Sim) -> list[str]:
    """Return the runs in the order in which they were started."""
    return [instance.run for instance in sorted(sim.instances(), key=lambda i: i.started_at or 0)]  # type: ignore[arg-type,return-value]  # all have started


def ended(store: Store, *names: str) -> bool:
    return all(state(store, name).is_final for name in names)


def test_the_higher_one_starts_first(store: Store) -> None:
    sim = Sim(script={"*": Script(run_s=0.05)}, capacity=1)
    apply(store, "a-low", 1, RETRY)
    apply(store, "b-high", 90, RETRY)
    apply(store, "c-none", 0, RETRY)
    with Loop(store, {"sim": sim}, owner="me:1:1") as loop:
        assert loop.drive(lambda: ended(store, "a-low", "b-high", "c-none"), timeout_s=20)

    assert begun(sim)[0] == "b-high"
    assert set(begun(sim)) == {"a-low", "b-high", "c-none"}


def test_what_ends_makes_room_for_the_highest_that_waits(store: Store) -> None:
    sim = Sim(capacity=1, script={"last-*": Script(run_s=0.05), "high-*": Script(run_s=0.05)})
    put(store, "first")
    with Loop(store, {"sim": sim}, owner="me:1:1") as loop:
        assert loop.drive(lambda: state(store, "first") is RunState.RUNNING, timeout_s=20)
        apply(store, "high", 90)
        assert loop.drive(lambda: "no-capacity" in {j.reason for j in store.jobs("id-high")}, timeout_s=20)
        loop._clock = later  # the answer is an old one by now
        apply(store, "last", 0, RETRY)
        sim.end("first-0-0-0")
        assert loop.drive(lambda: ended(store, "high", "last"), timeout_s=20)

    assert begun(sim) == ["first", "high", "last"]


def test_nobody_waits_for_room_that_a_larger_run_cannot_use(store: Store) -> None:
    sim = Sim(script={"big-*": Script(refuse="no-capacity"), "small-*": Script(run_s=0.01)})
    apply(store, "big", 90)
    with Loop(store, {"sim": sim}, owner="me:1:1") as loop:
        assert loop.drive(lambda: "no-capacity" in {j.reason for j in store.jobs("id-big")}, timeout_s=20)
        loop._clock = later
        put(store, "small")
        assert loop.drive(lambda: ended(store, "small"), timeout_s=20)

    assert state(store, "big") is RunState.QUEUED
    assert len(store.jobs("id-big")) == 2  # it was asked for once more, before the small one


def test_who_waits_is_told_for_whom(store: Store, tmp_path: Path) -> None:
    sim = Sim(script={"high-*": Script(boot_s=600)}, capacity=9)
    apply(store, "high", 90)
    put(store, "low")
    told = []
    with Loop(store, {"sim": sim}, owner="me:1:1") as loop:
        loop.step()
        told.append(store.run("low").reason)
        assert loop.drive(lambda: state(store, "low") is RunState.RUNNING, timeout_s=20)

    assert told == ["high goes first: it has a higher priority"]


@pytest.mark.parametrize("attempts", [None, 3])
def test_a_claim_ends_by_itself(store: Store, attempts: int | None) -> None:
    sim = Sim(script={"high-*": Script(refuse="no-capacity")})
    apply(store, "high", 90, replace(SLOW, attempts=attempts))
    with Loop(store, {"sim": sim}, owner="me:1:1") as loop:
        assert loop.drive(lambda: "no-capacity" in {j.reason for j in store.jobs("id-high")}, timeout_s=20)
    run, jobs = store.run("high"), store.jobs("id-high")
    refused = jobs[0].finished_at
    assert refused is not None

    def waits(seconds: float, *, ours: bool = True, priority: int = 0) -> bool:
        now = refused + timedelta(seconds=seconds)
        found = claims([run], {run.id: jobs} if ours else {}, priorities={run.id: 90}, now=now)
        return any(claim.goes_before(priority, ["sim"], now=now) for claim in found)

    assert not waits(REFUSED_S - 0.1)  # it was told a moment ago
    assert waits(REFUSED_S) == (attempts is None)  # asking more often would use its attempts up
    assert not waits(REFUSED_S, priority=90)
    assert not waits(ASKED_S + 1, ours=False)  # another server drives it
