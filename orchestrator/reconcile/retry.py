"""Decide whether and when a failed attempt is followed by another."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from orchestrator.reconcile.values import Job, JobState, Retry, RetryEvent

_NEVER = frozenset({"rejected", "image", "quota", "denied", "max-duration"})
"""Reasons that another attempt cannot change."""

_EVENT: dict[str, RetryEvent] = {
    "no-capacity": "no-capacity",
    "preempted": "interruption",
    "lost": "interruption",
    "stopped": "interruption",
}


@dataclass(frozen=True, slots=True)
class Again:
    """Try again at ``at``, on the backend with this index in the plan's order."""

    at: datetime
    backend: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Do not try again, and why."""

    why: str


def next_attempt(
    failures: Sequence[Job], *, policy: Retry, backends: int, limit: int | None
) -> Again | GiveUp:
    """Decide what follows a row of failed attempts.

    A backend without capacity sends the launch to the next one at once; after a whole round
    there is a pause, as after any other failure. Pauses double, and differ by up to a quarter
    from launch to launch so that many do not return together.

    Args:
        failures: One job per failed attempt in a row, oldest first, at least one.
        policy: The run's own.
        backends: How many places the plan chose.
        limit: The most attempts in a row, or None.
    """
    last = failures[-1]
    ended = last.finished_at or last.created_at
    if last.reason in _NEVER:
        return GiveUp("")
    full = _no_capacity_in_a_row(failures)
    if full % backends:
        return Again(ended, full % backends)
    kind = _EVENT.get(last.reason, "error")
    if kind not in policy.on:
        return GiveUp(f"retry does not name {kind}" if policy.on else "")
    if limit is not None and len(failures) >= limit:
        return GiveUp(f"{len(failures)} attempts failed")
    rounds = full // backends if full else len(failures)
    due = ended + timedelta(seconds=_pause_s(last.name, rounds, policy))
    first = failures[0].finished_at or failures[0].created_at
    if policy.duration_s is not None and due > first + timedelta(seconds=policy.duration_s):
        return GiveUp("retry.duration is over")
    return Again(due, 0)


def told(failures: Sequence[Job]) -> str:
    """Return the reason of every failed attempt, those that failed alike in a row together.

    >>> from datetime import UTC
    >>> t = datetime(2026, 1, 1, tzinfo=UTC)
    >>> two = [
    ...     Job("1", f"chat-0-0-{n}", 0, 0, n, "", "sim", JobState.FAILED, t, message="exit code 1")
    ...     for n in (3, 4)
    ... ]
    >>> told(two)
    'chat-0-0-3 to chat-0-0-4: exit code 1'
    """
    rows: list[tuple[str, list[str]]] = []
    for job in failures:
        why = (job.message or job.reason).removeprefix(f"{job.name}: ")
        if rows and rows[-1][0] == why:
            rows[-1][1].append(job.name)
        else:
            rows.append((why, [job.name]))
    return "; ".join(f"{' to '.join(dict.fromkeys((names[0], names[-1])))}: {why}" for why, names in rows)


def failures_in_a_row(attempts: Sequence[Job], *, steady_s: float) -> list[Job]:
    """Return the failed attempts since the last that stayed ready for ``steady_s`` seconds."""
    row: list[Job] = []
    for job in attempts:
        if _was_steady(job, steady_s):
            row.clear()
        if job.state is JobState.FAILED:
            row.append(job)
    return row


def _was_steady(job: Job, steady_s: float) -> bool:
    if job.ready_at is None or job.finished_at is None:
        return False
    return (job.finished_at - job.ready_at).total_seconds() >= steady_s


def _no_capacity_in_a_row(failures: Sequence[Job]) -> int:
    count = 0
    for job in reversed(failures):
        if job.reason != "no-capacity":
            break
        count += 1
    return count


def _pause_s(name: str, failures: int, policy: Retry) -> float:
    """Return the pause before the next attempt: exponential, with a jitter that is the name's own."""
    doubled = policy.first_s * 2.0 ** min(failures - 1, 32)
    jitter = 0.75 + 0.5 * (zlib.crc32(name.encode()) / 2**32)
    return min(policy.most_s, doubled) * jitter
