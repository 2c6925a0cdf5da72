"""The runs of one pass in the order of their priority: who waits for whom, and who is asked for again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from orchestrator.reconcile import Job, Run
from orchestrator.reconcile.precedence import ASKED_S, Claim, claims, priority_of

AGAIN_S = 0.1
"""How soon the next pass follows one in which somebody waited for a run that is to be asked for again."""


class Queue:
    """What one loop knows of priorities; costs next to nothing where nobody states one."""

    def __init__(self) -> None:
        self._claims: Sequence[Claim] = ()
        self._priorities: Mapping[str, int] = {}
        self._now = datetime.min
        self._ask: frozenset[str] = frozenset()
        self._next: set[str] = set()
        """Places where capacity may be, for the next pass."""
        self._held: dict[str, datetime] = {}
        """Runs that wait for others, by id, and since when."""

    def begin(self, active: Sequence[Run], jobs: Mapping[str, Sequence[Job]], now: datetime) -> None:
        """Look at the runs of a pass."""
        self._now = now
        self._priorities = {run.id: found for run in active if (found := priority_of(run))}
        self._claims = claims(active, jobs, priorities=self._priorities, now=now) if self._priorities else ()
        self._ask, self._next = frozenset(self._next), set()
        there = {run.id for run in active} if self._held else set()
        self._held = {id: since for id, since in self._held.items() if id in there}

    def ahead_of(self, run: Run) -> Claim | None:
        """Return who is to start before this run; nobody where it has waited for long."""
        priority = self._priorities.get(run.id, 0)
        found = (c for c in self._claims if c.goes_before(priority, run.template.backends, now=self._now))
        claim = next(found, None)
        since = self._held.get(run.id, self._now)
        return claim if self._now - since < timedelta(seconds=ASKED_S) else None

    def asks_again(self, run: Run) -> bool:
        """Return whether a place that refused this run may have capacity by now."""
        return run.id in self._priorities and not self._ask.isdisjoint(run.template.backends)

    def yielded(self, run: Run, ahead: Claim) -> datetime:
        """Note that a run waits; return when to look again."""
        self._held.setdefault(run.id, self._now)
        if ahead.refused_at is None:
            return self._now + timedelta(seconds=1)  # the answer to its start wakes us before
        self._next |= ahead.places
        return self._now + timedelta(seconds=AGAIN_S)

    def went_on(self, run: Run) -> None:
        """Note that a run waits no longer."""
        self._held.pop(run.id, None)

    def ended(self, place: str) -> None:
        """Note that something ended at a place."""
        if self._priorities:
            self._next.add(place)
