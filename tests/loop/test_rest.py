"""Runs at rest are not decided anew, and are when anything about them changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from backends.sim import Sim
from orchestrator.loop import Loop, driver
from orchestrator.loop.rest import Rest
from orchestrator.reconcile import RunState, Wanted
from orchestrator.reconcile.steps import Turn
from orchestrator.store.records import Store
from tests.loop.conftest import put, state


@pytest.fixture
def decided(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the runs that were decided about, in order."""
    names: list[str] = []

    def reconcile(run: Any, *rest: Any, right: Any = driver.reconcile, **when: Any) -> Any:
        names.append(run.name)
        return right(run, *rest, **when)

    monkeypatch.setattr(driver, "reconcile", reconcile)
    return names


def check(store: Store, decided: list[str], change: Callable[[Loop, Sim], None]) -> None:
    """Bring a run up, see it rest, change something, and see it decided about."""
    put(store, "chat", max_duration_s=3_600)
    sim = Sim()
    with Loop(store, {"sim": sim}, owner="me:1:1") as loop:
        assert loop.drive(lambda: state(store, "chat") is RunState.RUNNING, timeout_s=20)
        loop.settle()
        decided.clear()
        loop.step()
        loop.step()
        assert decided == []
        change(loop, sim)
        loop.step()
        assert decided == ["chat"]


def time_passes(loop: Loop, sim: Sim) -> None:
    loop._clock = lambda: datetime.now(UTC) + timedelta(seconds=3_601)


def ends(loop: Loop, sim: Sim) -> None:
    sim.end("chat-0-0-0")
    loop._observer.changed("sim")


def goes(loop: Loop, sim: Sim) -> None:
    sim.remove("chat-0-0-0")
    loop._observer.changed("sim")


def is_silent(loop: Loop, sim: Sim) -> None:
    sim.unreachable = True
    loop._observer.changed("sim")


def is_asked_to_stop(loop: Loop, sim: Sim) -> None:
    run = loop._store.run("chat")
    loop._store.commit([Turn(run.asked(Wanted.STOP), None)])


def is_scaled(loop: Loop, sim: Sim) -> None:
    run = loop._store.run("chat")
    loop._store.commit([Turn(replace(run, template=replace(run.template, replicas=2)), None)])


CHANGES = [time_passes, ends, goes, is_silent, is_asked_to_stop, is_scaled]


@pytest.mark.parametrize("change", CHANGES, ids=lambda each: each.__name__)
def test_what_changes_is_decided_about(
    store: Store, decided: list[str], change: Callable[[Loop, Sim], None]
) -> None:
    check(store, decided, change)


@pytest.mark.parametrize("change", [time_passes, is_scaled], ids=lambda each: each.__name__)
def test_a_rest_that_nothing_ends_is_caught(
    store: Store, decided: list[str], change: Callable[[Loop, Sim], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Rest, "holds", lambda *_: True)
    with pytest.raises(AssertionError):
        check(store, decided, change)
