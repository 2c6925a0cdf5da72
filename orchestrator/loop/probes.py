"""Ask launches whether they are ready, where their backend does not."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field

from orchestrator.backend import Instance, Probe

FIRST_S = 0.1
"""Until the first success a launch is asked this often at first, then half as often each time."""


def ask(probe: Probe, address: tuple[str, int]) -> bool:
    """Return whether the launch at ``address`` answers ``probe``.

    HTTP succeeds on a status from 200 to 399, TCP on a connection.
    """
    host, port = address
    try:
        if probe.kind == "tcp":
            with socket.create_connection((host, port), timeout=probe.timeout_s):
                return True
        # http.client, not httpx: one request to one address, and it is imported already
        connection = http.client.HTTPConnection(host, port, timeout=probe.timeout_s)
        try:
            connection.request(probe.method, probe.path, body=probe.body, headers=dict(probe.headers))
            return 200 <= connection.getresponse().status < 400
        finally:
            connection.close()
    except (OSError, http.client.HTTPException):
        return False


@dataclass(slots=True)
class _Patient:
    """What is known of one launch."""

    ready: bool = False
    misses: int = 0
    pause_s: float = FIRST_S
    next_at: float = 0.0
    asked: Future[bool] | None = None


@dataclass(slots=True)
class Prober:
    """Keeps asking every launch that has a probe, each at its own interval.

    Args:
        pool: Where the requests run.
        monotonic: Seconds that only grow.
        wake: Called from a pool thread when an answer is there.
    """

    pool: Executor
    monotonic: Callable[[], float]
    wake: Callable[[], None]
    _patients: dict[str, _Patient] = field(default_factory=dict)

    def is_ready(self, instance: Instance, probe: Probe, *, before: bool) -> bool:
        """Return what the last answers of a running launch say, and see to the next.

        ``before`` is what the record says of a launch that was not asked here yet: another
        process asked it.
        """
        patient = self._patients.setdefault(instance.name, _Patient(ready=before))
        if patient.asked is not None and patient.asked.done():
            self._take(patient, probe, patient.asked.result())
        address = instance.ports.get(probe.port)
        if patient.asked is None and address is not None and self.monotonic() >= patient.next_at:
            patient.asked = self.pool.submit(ask, probe, address)
            patient.asked.add_done_callback(lambda _: self.wake())
        return patient.ready

    def forget(self, alive: set[str]) -> None:
        """Drop all but these launches."""
        for name in self._patients.keys() - alive:
            del self._patients[name]

    def next_s(self) -> float | None:
        """Return the seconds until the next question, None when there is none to ask."""
        waiting = [p.next_at for p in self._patients.values() if p.asked is None]
        return max(0.0, min(waiting) - self.monotonic()) if waiting else None

    def _take(self, patient: _Patient, probe: Probe, answered: bool) -> None:
        patient.asked = None
        if answered:
            patient.ready, patient.misses, patient.pause_s = True, 0, probe.interval_s
        else:
            patient.misses += 1
            patient.pause_s = min(probe.interval_s, patient.pause_s * 1.5)
            if patient.misses >= probe.failures:
                patient.ready = False
        patient.next_at = self.monotonic() + patient.pause_s
