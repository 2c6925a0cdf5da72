"""Keep runs going beside something else: the loop in a thread of its own, whatever a pass comes to."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Self

from orchestrator.errors import ModelyardError
from orchestrator.loop.driver import Loop

PAUSE_S = 1.0
"""How long it waits after a pass that failed."""


class Keeper:
    """Drives ``loop`` from entering until leaving, and closes it.

    Args:
        loop: What drives the runs.
        complain: Told of each trouble once in a row.
    """

    def __init__(self, loop: Loop, *, complain: Callable[[str], None]) -> None:
        self._loop = loop
        self._complain = complain
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._drive, name="keeper", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._loop.wake()
        self._thread.join()
        self._loop.close()

    def _drive(self) -> None:
        failing = ""
        while not self._over.is_set():
            try:
                self._loop.drive(self._over.is_set)
            except ModelyardError as error:
                if str(error) != failing:
                    failing = str(error)
                    self._complain(f"runs are not looked after: {failing}")
                self._over.wait(PAUSE_S)
