"""What the loop has done, in Prometheus' text form."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from typing import Literal

Outcome = Literal["done", "postponed", "refused"]


class Figures:
    """Counts passes, and what was asked of places; from any thread.

    Labels are words of ours and names of places in the configuration.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._passes = 0
        self._pass_s = 0.0
        self._driven = 0
        self._actions: Counter[tuple[str, str, Outcome]] = Counter()

    def passed(self, seconds: float, *, driven: int) -> None:
        """Count a pass that took so long, over so many runs."""
        with self._lock:
            self._passes += 1
            self._pass_s += seconds
            self._driven = driven

    def acted(self, verb: str, backend: str, outcome: Outcome) -> None:
        """Count one action, and what its place made of it."""
        with self._lock:
            self._actions[verb, backend, outcome] += 1

    def text(self) -> str:
        """Return all of them.

        >>> figures = Figures()
        >>> figures.acted("start", "docker", "done")
        >>> print(figures.text().splitlines()[-1])
        modelyard_loop_actions_total{action="start",backend="docker",outcome="done"} 1
        """
        with self._lock:
            return "".join(f"{line}\n" for line in self._lines())

    def _lines(self) -> Iterator[str]:
        yield "# HELP modelyard_loop_pass_seconds What a pass over all runs takes."
        yield "# TYPE modelyard_loop_pass_seconds summary"
        yield f"modelyard_loop_pass_seconds_sum {self._pass_s:.9g}"
        yield f"modelyard_loop_pass_seconds_count {self._passes}"
        yield "# HELP modelyard_loop_runs Runs that this loop drives."
        yield "# TYPE modelyard_loop_runs gauge"
        yield f"modelyard_loop_runs {self._driven}"
        yield "# HELP modelyard_loop_actions_total What was asked of places, and what came of it."
        yield "# TYPE modelyard_loop_actions_total counter"
        for (verb, backend, outcome), count in sorted(self._actions.items()):
            labels = f'action="{verb}",backend="{backend}",outcome="{outcome}"'
            yield f"modelyard_loop_actions_total{{{labels}}} {count}"
