"""Questions to many launches, one at a time to each, asked again whenever the next is due."""

from __future__ import annotations

from collections.abc import Callable, Collection
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

Answer = TypeVar("Answer")


@dataclass(slots=True, kw_only=True)
class Patient(Generic[Answer]):
    """When one launch is asked next, and what it was asked and has not answered yet."""

    next_at: float = 0.0
    asked: Future[Answer] | None = None


Known = TypeVar("Known", bound=Patient[Any])


@dataclass(slots=True)
class Rounds(Generic[Known]):
    """What is known of every launch that is asked.

    Args:
        pool: Where the requests run.
        monotonic: Seconds that only grow.
        wake: Called from a pool thread when an answer is there.
    """

    pool: Executor
    monotonic: Callable[[], float]
    wake: Callable[[], None]
    _patients: dict[str, Known] = field(default_factory=dict)

    def forget(self, alive: Collection[str]) -> None:
        """Drop all but these launches."""
        for name in self._patients.keys() - set(alive):
            del self._patients[name]

    def next_s(self) -> float | None:
        """Return the seconds until the next question, None when there is none to ask."""
        waiting = [p.next_at for p in self._patients.values() if p.asked is None]
        return max(0.0, min(waiting) - self.monotonic()) if waiting else None
