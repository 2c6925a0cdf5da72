"""Read the last words of launches that ended by themselves, once each, before their end is written down."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field

from orchestrator.backend import Backend, Instance, Phase
from orchestrator.engines.failures import LINES, Failure, failure_of
from orchestrator.errors import BackendError

PATIENCE_S = 10.0
"""How long their reading may hold up what follows from the end."""


@dataclass(slots=True)
class Words:
    """Reads output in the background; what was not read in time is not waited for.

    Args:
        backends: Every configured place by name.
        pool: Where output is read.
        monotonic: Seconds that only grow.
        wake: Called from a pool thread when something was read.
    """

    backends: Mapping[str, Backend]
    pool: Executor
    monotonic: Callable[[], float]
    wake: Callable[[], None]
    _readings: dict[str, tuple[Future[Failure | None], float]] = field(default_factory=dict)

    def read(
        self, found: Mapping[str, Sequence[Instance] | None], names: Collection[str]
    ) -> tuple[dict[str, Failure], frozenset[str]]:
        """Return what launches ended of, by name, and the names of those still being read.

        Only ``names`` are read: launches whose end nobody asked for and that is not on record.
        """
        ended: dict[str, Failure] = {}
        unread: set[str] = set()
        for place, seen in found.items():
            for instance in seen or ():
                if instance.name not in names or not _failed(instance):
                    continue
                future, since = self._reading(place, instance.name)
                if future.done():
                    if failure := future.result():
                        ended[instance.name] = failure
                elif self.monotonic() - since < PATIENCE_S:
                    unread.add(instance.name)
        return ended, frozenset(unread)

    def _reading(self, place: str, name: str) -> tuple[Future[Failure | None], float]:
        if name not in self._readings:
            future = self.pool.submit(self._ask, place, name)
            self._readings[name] = future, self.monotonic()
            future.add_done_callback(lambda _: self.wake())
        return self._readings[name]

    def _ask(self, place: str, name: str) -> Failure | None:
        try:
            return failure_of([line.text for line in self.backends[place].logs(name, tail=LINES)])
        except BackendError:
            return None

    def forget(self, alive: Collection[str]) -> None:
        """Drop all but these launches."""
        for name in self._readings.keys() - set(alive):
            del self._readings[name]


def _failed(instance: Instance) -> bool:
    """Return whether a launch ended in a way that its output may explain."""
    return instance.phase is Phase.EXITED and instance.reason in ("", "error") and bool(instance.exit_code)
