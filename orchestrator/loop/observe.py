"""What the backends hold, read when something may have changed and kept in between."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

from orchestrator.backend import Backend, Can, GroupStatus, Instance, keeper_of_groups
from orchestrator.errors import BackendError, ConfigError
from orchestrator.units import backoff_s

RESYNC_S = 15.0
"""How long a reading is trusted although nobody said that it changed."""
FIRST_PAUSE_S = 1.0
MOST_PAUSE_S = 60.0


@dataclass(slots=True)
class _Reading:
    """The last answer of one backend; ``by_run`` is None while nothing is known."""

    by_run: Mapping[str, Sequence[Instance]] | None = None
    groups: Mapping[str, GroupStatus] = field(default_factory=dict)
    stale: bool = True
    read_at: float = 0.0
    failures: int = 0
    error: BackendError | None = None


@dataclass(slots=True)
class Observer:
    """Reads backends on demand, in parallel, and listens for changes.

    Args:
        backends: Every configured place by name.
        pool: Where slow calls run.
        monotonic: Seconds that only grow.
        wake: Called from a watching thread when something may have changed.
        unknown: Told why nothing is known of a backend that was read.
    """

    backends: Mapping[str, Backend]
    pool: Executor
    monotonic: Callable[[], float]
    wake: Callable[[], None]
    unknown: Callable[[str, BackendError], None] = lambda _name, _error: None
    _readings: dict[str, _Reading] = field(default_factory=dict)
    _watched: dict[str, tuple[Backend, threading.Event]] = field(default_factory=dict)

    def read(self, names: Iterable[str]) -> None:
        """Bring the readings of these backends up to date, where they are stale; forget those of others."""
        asked = set(names) & set(self.backends)
        for gone in self._readings.keys() - asked:
            del self._readings[gone]
        due = [name for name in sorted(asked) if self._is_due(name)]
        answers = self.pool.map(self._ask, due) if len(due) > 1 else map(self._ask, due)
        for name, answer in zip(due, answers, strict=True):
            self._take(name, answer)
            if isinstance(answer, BackendError):
                self.unknown(name, answer)

    def of_run(self, run: str, names: Iterable[str]) -> dict[str, Sequence[Instance] | None]:
        """Return what the backends hold of one run; None where nothing is known."""
        found: dict[str, Sequence[Instance] | None] = {}
        for name in names:
            reading = self._readings.get(name)
            known = reading.by_run if reading else None
            found[name] = None if known is None else known.get(run, ())
        return found

    def keeps_groups(self, name: str) -> bool:
        """Return whether a backend keeps whole runs with its own controllers."""
        return name in self.backends and Can.GROUPS in self.backends[name].can

    def group(self, run: str, name: str) -> tuple[bool, GroupStatus | None]:
        """Return whether a backend that keeps groups answered, and what it says of a run's."""
        reading = self._readings.get(name)
        if reading is None or reading.by_run is None:
            return False, None
        return True, reading.groups.get(run)

    def error(self, name: str) -> BackendError | None:
        """Return why nothing is known of a backend, if so."""
        reading = self._readings.get(name)
        return reading.error if reading else None

    def changed(self, name: str) -> None:
        """Note that a backend may hold something else by now."""
        if reading := self._readings.get(name):
            reading.stale = True

    def failed(self, name: str, error: BackendError) -> None:
        """Note that a call to a backend went unanswered: what it holds is unknown now."""
        self._take(name, error)

    def next_read_s(self) -> float:
        """Return the seconds until a reading is due again by itself."""
        waits = [self._wait_s(reading) for reading in self._readings.values()]
        return max(0.0, min(waits, default=RESYNC_S))

    def watch(self, names: Iterable[str]) -> None:
        """Listen to these backends from now on, each in a thread of its own; to one that changed, anew."""
        for name in sorted(set(names)):
            if name not in self.backends:
                continue
            backend, watched = self.backends[name], self._watched.get(name)
            if watched is not None and watched[0] is backend:
                continue
            if watched is not None:
                watched[1].set()
                self.changed(name)
            closed = threading.Event()
            self._watched[name] = backend, closed
            arguments = (name, backend, closed)
            threading.Thread(target=self._listen, args=arguments, daemon=True, name=f"watch-{name}").start()

    def close(self) -> None:
        """Stop listening."""
        for _, closed in self._watched.values():
            closed.set()

    def _listen(self, name: str, backend: Backend, closed: threading.Event) -> None:
        pause = FIRST_PAUSE_S
        while not closed.is_set():
            try:
                for _ in backend.watch(closed):
                    pause = FIRST_PAUSE_S
                    self.changed(name)
                    self.wake()
            except (BackendError, ConfigError):
                # the next reading finds out what is wrong and says so
                self.changed(name)
                self.wake()
            if closed.wait(pause):
                return
            pause = min(MOST_PAUSE_S, pause * 2)

    def _ask(self, name: str) -> Sequence[Instance] | Sequence[GroupStatus] | BackendError:
        reading = self._readings.setdefault(name, _Reading())
        reading.stale = False  # before asking: what changes meanwhile makes it stale again
        backend = self.backends[name]
        try:
            if keeper := keeper_of_groups(backend):
                return keeper.groups()
            return backend.instances()
        except BackendError as error:
            return error
        except ConfigError as error:
            # what it is asked with, such as a kubeconfig, went away since we began: one place of many
            return BackendError(error.what, backend=name, fix=error.fix)

    def _take(self, name: str, answer: Sequence[Instance] | Sequence[GroupStatus] | BackendError) -> None:
        reading = self._readings.setdefault(name, _Reading())
        reading.read_at = self.monotonic()
        if isinstance(answer, BackendError):
            reading.by_run, reading.error = None, answer
            reading.failures += 1
            return
        grouped: dict[str, list[Instance]] = defaultdict(list)
        groups: dict[str, GroupStatus] = {}
        for one in answer:
            if isinstance(one, GroupStatus):
                groups[one.name] = one
                grouped[one.name] += one.instances
            else:
                grouped[one.run].append(one)
        reading.groups = groups
        reading.by_run, reading.error, reading.failures = grouped, None, 0

    def _is_due(self, name: str) -> bool:
        reading = self._readings.get(name)
        return reading is None or self._wait_s(reading) <= 0

    def _wait_s(self, reading: _Reading) -> float:
        if reading.failures:
            pause = backoff_s(reading.failures, first_s=FIRST_PAUSE_S, most_s=MOST_PAUSE_S)
        else:
            pause = 0.0 if reading.stale else RESYNC_S
        return reading.read_at + pause - self.monotonic()
