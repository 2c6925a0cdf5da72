"""How things go, told while they go: events as lines, slow starts as a moving line on a terminal."""

from __future__ import annotations

import sys
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Self

from orchestrator.errors import BackendError, NotFound
from orchestrator.loop import Hooks
from orchestrator.reconcile import RunEvent
from orchestrator.render.runs import event_text

if TYPE_CHECKING:
    from orchestrator.api import Api

_HAS_OUTPUT = frozenset({"running", "ready", "succeeded", "failed", "stopped"})


class MovingLine:
    """A line at the foot of a terminal, told anew as things move on; what is printed goes above it.

    ``sys.stdout`` is left alone. rich would put its own in place and take it back, and a ``print``
    in another thread that holds what was taken back crashes the interpreter (python/cpython#130163,
    in every Python before 3.12.10 and 3.13.3).
    """

    def __init__(self) -> None:
        from rich.console import Console  # 40 ms of CPU: only where it is seen
        from rich.live import Live
        from rich.spinner import Spinner

        self._console = Console(stderr=True, highlight=False, markup=False, emoji=False)
        self._spinner = Spinner("dots")
        self._live = Live(
            self._spinner, console=self._console, refresh_per_second=12.5, transient=True,
            redirect_stdout=False, redirect_stderr=False,
        )  # fmt: skip

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def tell(self, phrase: str) -> None:
        """Show another phrase in the line."""
        self._spinner.update(text=phrase)

    def print(self, text: str) -> None:
        """Print a line above it, colours and all."""
        from rich.text import Text

        self._console.print(Text.from_ansi(text), soft_wrap=True)


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
        self._line = MovingLine() if terminal else None
        self._lock = threading.Lock()
        self._readers: dict[str, threading.Thread] = {}
        self.hooks = Hooks(
            event=self._event, progress=self._progress, postponed=self._postponed, unknown=self._unknown
        )
        self._told: set[tuple[str, str]] = set()

    def __enter__(self) -> Self:
        if self._line:
            self._line.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._line:
            self._line.__exit__(kind, error, trace)
        if kind is None:
            for reader in list(self._readers.values()):
                reader.join()

    def _event(self, event: RunEvent) -> None:
        self._say(event_text(event))
        if event.run in self._shown and event.subject != event.run and event.after in _HAS_OUTPUT:
            self._read(event.subject)

    def _progress(self, launch: str, phrase: str) -> None:
        if self._line:
            self._line.tell(f"{launch}  {phrase}")

    def _postponed(self, launch: str, why: str) -> None:
        """Say once why a launch did not start yet."""
        if (launch, why) not in self._told:
            self._told.add((launch, why))
            self._say(f"{launch}  not started yet: {why}; trying again")

    def _unknown(self, backend: str, error: BackendError) -> None:
        """Say once why nothing is known of a backend, and so nothing is done there."""
        if (backend, error.what) not in self._told:
            self._told.add((backend, error.what))
            self._say(f"backend {backend}  does not tell what it holds: {error.line}; trying again")

    def _say(self, text: str) -> None:
        with self._lock:
            if self._line:
                self._line.print(text)
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
                    if self._line and sys.stdout.isatty():
                        self._line.print(text)
                    else:
                        print(text, flush=True)
        except (NotFound, BackendError):
            return  # removed or out of reach: the events say why, and the run goes on without us
