"""Tasks that start by the clock: once for each time, not while they run, not when nobody wants them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.reconcile import RunState, Wanted
from orchestrator.reconcile.steps import Turn
from orchestrator.server.schedule import Clock, due
from orchestrator.spec.load import read
from tests.server.conftest import Served

NIGHTLY = 'type: task\nname: hello\ncommands: [echo hi]\nschedule: {cron: ["0 3 * * *", "30 4 1 * *"]}\n'
# behind every job that the tests' own clock could have made
T0 = (datetime.now(UTC) + timedelta(days=2)).replace(hour=2, minute=59, second=0, microsecond=0)


@pytest.fixture
def applied(served: Served) -> Served:
    """A server with a task that ended at two to three."""
    client = served.client()
    client.apply(client.plan(read(NIGHTLY)))
    client.follow(["hello"], "ended")
    served.site.clock = lambda: T0
    _since(served, T0)
    return served


def _since(served: Served, at: datetime, **changes: object) -> None:
    run = served.site.store.run("hello")
    served.site.store.commit([Turn(replace(run, since=at, **changes), None)])  # type: ignore[arg-type]


def _at(served: Served, at: datetime) -> list[str]:
    served.site.clock = lambda: at
    return Clock(served.site).once()


def test_a_task_starts_once_when_its_time_has_come(applied: Served) -> None:
    assert _at(applied, T0 + timedelta(seconds=59)) == []
    assert _at(applied, T0 + timedelta(seconds=61)) == ["hello"]
    assert _at(applied, T0 + timedelta(seconds=62)) == []
    events = [event for _, event in applied.site.store.events("hello")]
    (started,) = [event for event in events if event.cause == "schedule: 0 3 * * *"]
    assert (started.before, started.after) == ("succeeded", "queued")


def test_training_is_told_that_a_new_life_begins(applied: Served) -> None:
    run = applied.site.store.run("hello")
    _since(applied, T0, template=replace(run.template, resumes=True).begun(run.since))
    at = T0 + timedelta(minutes=2)
    assert _at(applied, at) == ["hello"]
    env = dict(applied.site.store.run("hello").template.launch.env)
    assert env["MODELYARD_RUN_SINCE"] == at.isoformat()  # else it finds its output finished, and does nothing


def test_times_that_passed_unseen_count_once(applied: Served) -> None:
    assert _at(applied, T0 + timedelta(days=9)) == ["hello"]
    assert _at(applied, T0 + timedelta(days=9)) == []


def test_a_clock_that_jumps_back_starts_nothing(applied: Served) -> None:
    assert _at(applied, T0 - timedelta(days=9)) == []


@pytest.mark.parametrize(
    "changes", [{"state": RunState.RUNNING}, {"wanted": Wanted.STOP}, {"wanted": Wanted.DELETE}]
)
def test_what_runs_or_is_not_wanted_is_left_alone(applied: Served, changes: dict[str, object]) -> None:
    run = replace(applied.site.store.run("hello"), **changes)  # type: ignore[arg-type]

    assert due([run], now=T0 + timedelta(days=1)) == []
    assert due([applied.site.store.run("hello")], now=T0 + timedelta(days=1)) != []
