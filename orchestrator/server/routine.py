"""Threads of a server that do something again and again, until it ends."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import ClassVar


class Routine(ABC):
    """Takes its turn at once or after a while, and again after each; ends between two.

    ``called`` is the name of its thread.
    """

    called: ClassVar[str]
    first_s: ClassVar[float] = 0.0
    """How long the first turn is waited for, in seconds."""

    def __init__(self) -> None:
        self._poked = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name=self.called, daemon=True)

    @abstractmethod
    def turn(self) -> float:
        """Do what there is to do now; return how long to wait for the next turn, in seconds."""

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def poke(self) -> None:
        """Take the next turn now, whatever the clock says."""
        self._poked.set()

    def end(self) -> None:
        """Take no further turn; may be called where nothing may block."""
        self._closed.set()
        self._poked.set()

    def close(self) -> None:
        """End after the turn under way."""
        self.end()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def is_closed(self) -> bool:
        """Whether no further turn comes."""
        return self._closed.is_set()

    def _run(self) -> None:
        wait = self.first_s
        while not self._closed.is_set():
            self._poked.wait(wait)
            self._poked.clear()
            if not self._closed.is_set():
                wait = self.turn()
