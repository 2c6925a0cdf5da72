"""Tell all who wait that the record has moved, whichever server wrote it."""

from __future__ import annotations

import threading
from collections.abc import Callable

from orchestrator.errors import StoreError

LOOK_S = 0.2
"""How soon what another server wrote is seen; what this one writes is told at once."""
BEHIND_S = 2.0
"""How long a database that does not answer is left alone."""


class Feed:
    """Looks at the newest event's serial, and wakes those who wait for a newer one.

    Args:
        newest: Asks the record for its newest serial.
        moved: Called after each move, from the feed's own thread.
    """

    def __init__(self, newest: Callable[[], int], moved: Callable[[], None]) -> None:
        self._newest = newest
        self._moved = moved
        self._poked = threading.Event()
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._waiting: dict[int, Callable[[], None]] = {}
        self._next = 0
        self.serial = newest()
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def poke(self) -> None:
        """Look at once: something was written here."""
        self._poked.set()

    def end(self) -> None:
        """Stop looking, and have those who wait leave; may be called where nothing may block."""
        self._closed.set()
        self._poked.set()

    def close(self) -> None:
        """Stop looking, and wake everybody a last time."""
        self.end()
        if self._thread.is_alive():
            self._thread.join()
        self._tell()

    @property
    def is_closed(self) -> bool:
        """Whether nothing more will come."""
        return self._closed.is_set()

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

    def _run(self) -> None:
        while not self._closed.is_set():
            self._poked.wait(LOOK_S)
            self._poked.clear()
            try:
                newest = self._newest()
            except StoreError:
                self._closed.wait(BEHIND_S)
                continue
            if newest != self.serial:
                self.serial = newest
                self._moved()
                self._tell()
        self._tell()

    def _tell(self) -> None:
        with self._lock:
            waiting = list(self._waiting.values())
        for wake in waiting:
            wake()
