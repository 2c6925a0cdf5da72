"""Start tasks by the clock: when their cron lines say so, and they do not run already."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta

from orchestrator.errors import StateMoved
from orchestrator.reconcile import Run, RunEvent, RunState, Wanted
from orchestrator.reconcile.steps import Turn
from orchestrator.server.duty import Duty

LOOK_S = 15.0
"""How late a task may start: cron counts in minutes."""


class Clock(Duty):
    """Starts what is due, from a thread of its own; of several servers the first does it."""

    called = "schedules"
    first_s = look_s = LOOK_S

    def once(self) -> list[str]:
        """Start what is due; return the names.

        Times that passed while no server ran count once. A run that another call changed meanwhile
        is left to the next look.
        """
        started: list[str] = []
        now = self._site.clock()
        for run, line in due(self._site.store.runs(), now=now):
            event = RunEvent(
                run.id, run.name, now, run.name, run.state.value, RunState.QUEUED.value, f"schedule: {line}"
            )
            again = replace(
                run, since=now, wanted=Wanted.RUN, state=RunState.QUEUED, reason="", was_ready=False, ready=0,
                template=run.template.begun(now),
            )  # fmt: skip
            try:
                self._site.store.commit([Turn(again, event)], expected={run.id: run.serial})
            except StateMoved:
                continue
            started.append(run.name)
        if started:
            self._site.wrote()
        return started

    def duty(self) -> float:
        """Start what is due; return how long to wait for the next look, in seconds."""
        self.once()
        return LOOK_S


def due(runs: Iterable[Run], *, now: datetime) -> list[tuple[Run, str]]:
    """Return the tasks whose time has come since they last began, each with its cron line.

    One that still runs is not due: the time passes. One that was stopped or is to be deleted
    stays as it is.
    """
    found = []
    for run in runs:
        if run.type != "task" or run.wanted is not Wanted.RUN or not run.state.is_final:
            continue
        times = [(at, line) for line in _lines(run.spec) if (at := _next(line, run.since)) and at <= now]
        if times:
            found.append((run, min(times)[1]))
    return found


@functools.lru_cache(maxsize=16_384)
def _lines(spec: str) -> tuple[str, ...]:
    """Return the cron lines of a spec as it is on record."""
    if '"schedule"' not in spec:
        return ()
    schedule = json.loads(spec).get("schedule") or {}
    cron = schedule.get("cron", ())
    return (cron,) if isinstance(cron, str) else tuple(cron)


def _next(line: str, after: datetime) -> datetime | None:
    """Return the first minute behind ``after`` that a cron line names, None where there is none.

    >>> from datetime import UTC
    >>> _next("0 3 * * *", datetime(2026, 1, 1, 3, 0, tzinfo=UTC)).isoformat()
    '2026-01-02T03:00:00+00:00'
    """
    from cronsim import CronSim  # with the server alone

    # the one of the minute it began in has been kept
    return next(CronSim(line, after.replace(second=0, microsecond=0) + timedelta(seconds=1)), None)
