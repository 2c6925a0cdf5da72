"""Tell all who wait that the record has moved, whichever server wrote it."""

from __future__ import annotations

import threading
from collections.abc import Callable

from orchestrator.errors import StoreError
from orchestrator.server.routine import Routine

LOOK_S = 0.2
"""How soon what another server wrote is seen; what this one writes is told at once."""
BEHIND_S = 2.0
"""How long a database that does not answer is left alone."""


class Feed(Routine):
    """Looks at the newest event's serial, and wakes those who wait for a newer one.

    Args:
        newest: Asks the record for its newest serial.
        moved: Called after each move, from the feed's own thread.
    """

    called = "feed"
    first_s = LOOK_S

    def __init__(self, newest: Callable[[], int], moved: Callable[[], None]) -> None:
        super().__init__()
        self._newest = newest
        self._moved = moved
        self._lock = threading.Lock()
        self._waiting: dict[int, Callable[[], None]] = {}
        self._next = 0
        self.serial = newest()

    def close(self) -> None:
        """Stop looking, and wake everybody a last time."""
        super().close()
        self._tell()

    def listen(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Have ``wake`` called on each move, from another thread; return how to be left alone again."""
        with self._lock:
            self._next += 1
            key = self._next
            self._waiting[key] = wake

        def leave() -> None:
            with self._lock:
                self._waiting.pop(key, None)

        return leave

    def wait(self, after: int, timeout_s: float) -> None:
        """Wait until the record is newer than ``after``, the feed is closed, or time is up."""
        woken = threading.Event()
        leave = self.listen(woken.set)
        try:
            if self.serial <= after and not self.is_closed:
                woken.wait(timeout_s)
        finally:
            leave()

    def turn(self) -> float:
        """Look, and wake those who wait where the record moved; return how long to wait, in seconds."""
        try:
            newest = self._newest()
        except StoreError:
            return BEHIND_S
        if newest != self.serial:
            self.serial = newest
            self._moved()
            self._tell()
        return LOOK_S

    def _run(self) -> None:
        super()._run()
        self._tell()

    def _tell(self) -> None:
        with self._lock:
            waiting = list(self._waiting.values())
        for wake in waiting:
            wake()
