"""What a launch of the sim does, and what it looks like at a time: a function of the two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from orchestrator.backend import Instance, Phase, Reason, Resources
from orchestrator.frozen import frozen

Refuse = Literal["no-capacity", "quota", "auth", "image", "rejected", "busy", "unreachable"]


@frozen
class Script:
    """What one launch does, from its start to its end; times are in seconds.

    ``boot_s`` it is pending, then it runs for ``run_s`` (None: until it is stopped) and ends with
    ``exit_code``; ``reason`` follows from the code unless given. ``ready_s`` after it began to
    run its probe succeeds (None: this place does not probe). ``refuse`` makes ``start`` fail;
    ``lost_answer`` makes it work and say that it did not. ``prints`` are its lines, one every
    ``every_s``; of the variables in ``digests`` it prints the SHA-256, which shows that a secret
    arrived without showing it. Asked to stop it ends
    with ``stop_code``, unless it is ``stubborn`` and has to be killed. ``ports`` says where a port
    of the container answers, for tests that put a real server there.
    """

    boot_s: float = 0.0
    run_s: float | None = None
    exit_code: int = 0
    reason: Reason = ""
    message: str = ""
    ready_s: float | None = None
    refuse: Refuse | None = None
    lost_answer: bool = False
    prints: tuple[str, ...] = ()
    every_s: float = 0.0
    digests: tuple[str, ...] = ()
    stubborn: bool = False
    stop_code: int = 143
    ports: Mapping[int, tuple[str, int]] = field(default_factory=dict)


class Hand:
    """A clock that is moved by hand.

    >>> clock = Hand()
    >>> clock.advance(90)
    >>> clock().isoformat()
    '2026-01-01T00:01:30+00:00'
    """

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._now = start

    def __call__(self) -> datetime:
        """Return the time it shows."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Move the clock forward by ``seconds``."""
        self._now += timedelta(seconds=seconds)


@dataclass(slots=True)
class Slot:
    """One launch as accepted, and how it will go; ``lives`` is how often it may run, None: for ever."""

    instance: Instance
    script: Script
    since: datetime
    resources: Resources = field(default_factory=Resources)
    lives: int | None = 1
    lines: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    group: str = ""
    held: bool = False
    ended: Instance | None = None
    ready: bool | None = None


def later(at: datetime, seconds: float) -> datetime:
    """Return the time ``seconds`` after ``at``."""
    return at + timedelta(seconds=seconds)


def see(slot: Slot, now: datetime) -> tuple[Instance, datetime | None]:
    """Return what ``slot`` looks like at ``now``, and until when it stays so (None: for ever)."""
    if slot.ended is not None:
        return slot.ended, None
    script = slot.script
    booted = later(slot.since, script.boot_s)
    if now < booted:
        return slot.instance, booted
    life_s = script.run_s
    if life_s is None:
        return _alive(slot, booted, 0, now, None)
    if slot.lives != 1:
        life_s = max(life_s, 1.0)  # a place that restarts backs off: no endless lives in no time
    # ``round`` keeps a sum of many advances from falling a microsecond short of a whole life
    past = int(round((now - booted).total_seconds(), 6) // life_s) if life_s else slot.lives or 1
    if slot.lives is not None and past >= slot.lives:
        ended_at = later(booted, life_s * slot.lives)
        return ended_view(slot, script.exit_code, script.reason, script.message, booted, ended_at), None
    began = later(booted, life_s * past)
    return _alive(slot, began, past, now, later(began, life_s))


def ends_at(slot: Slot) -> datetime | None:
    """Return when ``slot`` ends by itself."""
    if slot.script.run_s is None or slot.lives is None:
        return None
    life_s = slot.script.run_s if slot.lives == 1 else max(slot.script.run_s, 1.0)
    return later(slot.since, slot.script.boot_s + life_s * slot.lives)


def _alive(
    slot: Slot, began: datetime, restarts: int, now: datetime, until: datetime | None
) -> tuple[Instance, datetime | None]:
    ready = slot.ready
    if ready is None and slot.script.ready_s is not None:
        ready_at = later(began, slot.script.ready_s)
        ready = now >= ready_at
        if not ready:
            until = ready_at if until is None else min(until, ready_at)
    seen = replace(slot.instance, phase=Phase.RUNNING, started_at=began, ready=ready, restarts=restarts)
    return seen, until


def ended_view(
    slot: Slot, exit_code: int | None, reason: Reason, message: str, began: datetime | None, at: datetime
) -> Instance:
    """Return what ``slot`` looks like after its end."""
    if not reason and exit_code:
        reason = "error"
    if reason in ("no-start", "image"):
        exit_code, began = None, None
    restarts = max(0, (slot.lives or 1) - 1)
    return replace(
        slot.instance,
        phase=Phase.EXITED,
        exit_code=exit_code,
        reason=reason,
        message=message,
        started_at=began,
        finished_at=at,
        ready=None if slot.script.ready_s is None else False,
        restarts=restarts,
    )


def script_from_json(value: Mapping[str, Any]) -> Script:
    """Return the script that JSON or YAML holds.

    Raises:
        TypeError: it has a key that no script has.
    """
    ports = {int(port): (address, number) for port, (address, number) in value.get("ports", {}).items()}
    lists = {key: tuple(value.get(key, ())) for key in ("prints", "digests")}
    return Script(**{**value, **lists, "ports": ports})
