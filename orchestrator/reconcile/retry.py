"""Decide whether and when a failed attempt is followed by another."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from datetime import datetime, timedelta

from orchestrator.backend import Rent
from orchestrator.frozen import frozen
from orchestrator.reconcile.values import Job, JobState, Retry, RetryEvent

Place = tuple[str, Rent | None]
"""A backend, and the kind of machine it rents out for the launch, if it does."""

_NEVER = frozenset({"rejected", "image", "denied", "max-duration", "config"})
"""Reasons that another attempt cannot change."""

_REFUSED = frozenset({"no-capacity", "quota"})
"""Reasons for which the next place is asked at once."""

_EVENT: dict[str, RetryEvent] = {
    "preempted": "interruption",
    "lost": "interruption",
    "stopped": "interruption",
}


@frozen
class Again:
    """Try again at ``at``, on the backend with this index in the plan's order."""

    at: datetime
    backend: int


@frozen
class GiveUp:
    """Do not try again, and why."""

    why: str


def next_attempt(
    failures: Sequence[Job], *, policy: Retry, places: Sequence[Place], limit: int | None
) -> Again | GiveUp:
    """Decide what follows a row of failed attempts.

    A place without capacity sends the launch to the next one at once; after a whole round
    there is a pause, as after any other failure. A rented machine that was taken away is followed
    by the next kind in the plan's order: its own has just become scarce. A limit of the account
    holds for a whole region: its other kinds of machine are passed over, and a round of nothing but
    limits is the end. Pauses double, and differ by up to a quarter from launch to launch so that
    many do not return together.

    Args:
        failures: One job per failed attempt in a row, oldest first, at least one.
        policy: The run's own.
        places: The places that the plan chose, best first, with what each rents out.
        limit: The most attempts in a row, or None.
    """
    last = failures[-1]
    ended = last.finished_at or last.created_at
    if last.reason in _NEVER:
        return GiveUp("")
    rounds = _rounds(failures, places)
    if rounds:
        if (onward := _next_place(rounds[-1], places)) is not None:
            return Again(ended, onward)
        if all(job.reason == "quota" for job in rounds[-1]):
            return GiveUp("")
    kind = "no-capacity" if rounds else _EVENT.get(last.reason, "error")
    if kind not in policy.on:
        return GiveUp(f"retry does not name {kind}" if policy.on else "")
    if limit is not None and len(failures) >= limit:
        return GiveUp(f"{len(failures)} attempts failed")
    due = ended + timedelta(seconds=_pause_s(last.name, len(rounds) or len(failures), policy))
    first = failures[0].finished_at or failures[0].created_at
    if policy.duration_s is not None and due > first + timedelta(seconds=policy.duration_s):
        return GiveUp("retry.duration is over")
    return Again(due, _after_taken(last, places) if kind == "interruption" else 0)


def _after_taken(job: Job, places: Sequence[Place]) -> int:
    """Return the place after that of a rented machine that was taken away; the first for all others."""
    return (_position(job, places) + 1) % len(places) if job.rent and places else 0


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


def _rounds(failures: Sequence[Job], places: Sequence[Place]) -> list[list[Job]]:
    """Return the refused attempts at the end of a row, split where a place was asked once more."""
    rounds: list[list[Job]] = []
    asked: set[int] = set()
    for job in failures:
        if job.reason not in _REFUSED:
            rounds.clear()
            continue
        at = _position(job, places)
        if not rounds or at in asked:
            rounds.append([])
            asked.clear()
        rounds[-1].append(job)
        asked.add(at)
    return rounds


def _next_place(refused: Sequence[Job], places: Sequence[Place]) -> int | None:
    """Return the next place of a round that no limit stands in front of, None where it is over.

    A round goes once through all places, from the one it began with.
    """
    limited = {_reach(job.backend, job.rent) for job in refused if job.reason == "quota"}
    began, last = _position(refused[0], places), _position(refused[-1], places)
    gone = (last - began) % len(places) if places else 0
    onward = ((began + step) % len(places) for step in range(gone + 1, len(places)))
    return next((at for at in onward if _reach(*places[at]) not in limited), None)


def _position(job: Job, places: Sequence[Place]) -> int:
    """Return where in the plan's order a job was; the end, where the plan has changed since."""
    place = (job.backend, job.rent)
    return places.index(place) if place in places else len(places) - 1


def _reach(backend: str, rent: Rent | None) -> tuple[str, str]:
    """Return how far a limit of an account reaches."""
    return backend, rent.region if rent else ""


def _pause_s(name: str, failures: int, policy: Retry) -> float:
    """Return the pause before the next attempt: exponential, with a jitter that is the name's own."""
    doubled = policy.first_s * 2.0 ** min(failures - 1, 32)
    jitter = 0.75 + 0.5 * (zlib.crc32(name.encode()) / 2**32)
    return min(policy.most_s, doubled) * jitter
