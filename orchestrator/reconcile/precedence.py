"""Who goes first where capacity is short: runs of a higher priority, then those that fit beside them.

A run that is to start yields to one of a higher priority that wants the same place and was not answered
yet. One that was refused for lack of capacity, and now waits before it asks again, is asked for first
whenever something else would start in its place or something ended there. What it cannot use, others may:
nobody waits for a place that a large run could not take a moment ago.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta

from orchestrator.frozen import frozen
from orchestrator.reconcile.values import Job, JobState, Run, RunState, Wanted

ASKED_S = 10.0
"""How long others yield to a run that is being started: a place answers within that, or pulls an image."""
REFUSED_S = 2.0
"""How long the answer that there is no capacity is taken to hold."""


def priority_of(run: Run) -> int:
    """Return the priority in a run's spec, 0 where it has none.

    >>> from orchestrator.backend import Launch
    >>> from orchestrator.reconcile.values import Template
    >>> run = Run(
    ...     "1", "a", "task", '{"priority": 7}', "", Template(Launch("a-0-0-0", "a"), ("sim",)), datetime.min
    ... )
    >>> priority_of(run)
    7
    """
    if '"priority"' not in run.spec:
        return 0
    return int(json.loads(run.spec).get("priority") or 0)


@frozen
class Claim:
    """A run that wants capacity: where, how urgently, and when it was told last that there is none."""

    run: str
    priority: int
    places: frozenset[str]
    refused_at: datetime | None
    is_ours: bool
    """Whether this process drives it, and may have it ask again."""

    def goes_before(self, priority: int, places: Collection[str], *, now: datetime) -> bool:
        """Return whether a run of this priority is to wait for it at one of these places."""
        if self.priority <= priority or self.places.isdisjoint(places):
            return False
        if self.refused_at is None:
            return True
        return self.is_ours and now - self.refused_at >= timedelta(seconds=REFUSED_S)


def claims(
    active: Iterable[Run], jobs: Mapping[str, Sequence[Job]], *, priorities: Mapping[str, int], now: datetime
) -> list[Claim]:
    """Return what runs of a priority above 0 want and do not have, the most urgent first.

    Args:
        active: Runs that have not ended.
        jobs: The jobs of those that this process drives, by run id.
        priorities: By run id, for those above 0.
        now: The time.
    """
    found = []
    for run in active:
        priority = priorities.get(run.id, 0)
        if priority and run.wanted is Wanted.RUN and (claim := _claim(run, jobs.get(run.id), priority, now)):
            found.append(claim)
    return sorted(found, key=lambda claim: (-claim.priority, claim.run))


def _claim(run: Run, jobs: Sequence[Job] | None, priority: int, now: datetime) -> Claim | None:
    places = frozenset(run.template.backends)
    if jobs is None:  # another process drives it: all that is known is that it has just begun
        fresh = run.state in (RunState.QUEUED, RunState.PROVISIONING) and _is_fresh(run.since, now)
        return Claim(run.name, priority, places, None, False) if fresh and not run.reason else None
    current = [job for job in jobs if job.spec_hash == run.spec_hash and job.created_at >= run.since]
    if not current:
        return Claim(run.name, priority, places, None, True) if _is_fresh(run.since, now) else None
    last = {job.replica: job for job in sorted(current, key=lambda job: job.attempt)}.values()
    if any(job.state is JobState.PROVISIONING and _is_fresh(job.created_at, now) for job in last):
        return Claim(run.name, priority, places, None, True)
    refused = [job.finished_at for job in last if job.reason == "no-capacity" and job.finished_at]
    if refused and run.template.retry.attempts is None:  # else asking more often would use them up
        return Claim(run.name, priority, places, max(refused), True)
    return None


def _is_fresh(at: datetime, now: datetime) -> bool:
    return now - at < timedelta(seconds=ASKED_S)
