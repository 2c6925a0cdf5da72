"""How things go, told while they go: events as lines, slow starts as a moving line on a terminal."""

from __future__ import annotations

import sys
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from orchestrator.errors import BackendError, NotFound
from orchestrator.loop import Hooks
from orchestrator.reconcile import RunEvent
from orchestrator.render.runs import event_text

if TYPE_CHECKING:
    from orchestrator.api import Api

_HAS_OUTPUT = frozenset({"running", "ready", "succeeded", "failed", "stopped"})


class Reporter:
    """Prints events to stderr, and the output of some runs to stdout.

    Args:
        api: Where output comes from.
        shown: Runs whose output is printed.
        prefix: Begin each line of output with its launch.
        terminal: Whether stderr is one: progress then moves in place.
    """

    def __init__(self, api: Api, shown: list[str], *, prefix: bool, terminal: bool) -> None:
        self._api = api
        self._shown = set(shown)
        self._prefix = prefix
        self._terminal = terminal
        self._status: Any = None
        self._console: Any = None
        self._lock = threading.Lock()
        self._readers: dict[str, threading.Thread] = {}
        self.hooks = Hooks(event=self._event, progress=self._progress, postponed=self._postponed)
        self._told: set[tuple[str, str]] = set()

    def __enter__(self) -> Self:
        if self._terminal:
            from rich.console import Console  # 40 ms of CPU: only where it is seen

            self._console = Console(stderr=True, highlight=False, markup=False, emoji=False)
            self._status = self._console.status("")
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status:
            self._status.stop()
        if kind is None:
            for reader in list(self._readers.values()):
                reader.join()

    def _event(self, event: RunEvent) -> None:
        self._say(event_text(event))
        if event.run in self._shown and event.subject != event.run and event.after in _HAS_OUTPUT:
            self._read(event.subject)

    def _progress(self, launch: str, phrase: str) -> None:
        if self._status:
            self._status.update(f"{launch}  {phrase}")

    def _postponed(self, launch: str, why: str) -> None:
        """Say once why a launch did not start yet."""
        if (launch, why) not in self._told:
            self._told.add((launch, why))
            self._say(f"{launch}  not started yet: {why}; trying again")

    def _say(self, text: str) -> None:
        with self._lock:
            if self._console:
                self._console.print(text, soft_wrap=True)
            else:
                print(text, file=sys.stderr, flush=True)

    def _read(self, launch: str) -> None:
        if launch not in self._readers:
            reader = threading.Thread(target=self._print_output, args=(launch,), daemon=True)
            self._readers[launch] = reader
            reader.start()

    def _print_output(self, launch: str) -> None:
        try:
            for line in self._api.output(launch, follow=True):
                text = f"{launch} | {line.text}" if self._prefix else line.text
                with self._lock:
                    print(text, flush=True)
        except (NotFound, BackendError):
            return  # removed or out of reach: the events say why, and the run goes on without us
