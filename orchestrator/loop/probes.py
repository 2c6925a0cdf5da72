"""Ask launches whether they are ready, where their backend does not."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field

from orchestrator.backend import Instance, Probe

FIRST_S = 0.05
"""Until the first success a launch is asked this often at first, then ever less often."""

PATIENCE = 0.02
"""Of the time it has taken so far, how long until it is asked again: what it takes longer by at most."""

HANGS_UP_S = 0.1
"""How soon a proxy without a program behind it closes a connection."""


NO_ANSWER = "no answer"
"""What a question came to that nobody answered in time."""


def ask(probe: Probe, address: tuple[str, int]) -> str:
    """Return why the launch at ``address`` does not answer ``probe`` well, "" where it does.

    HTTP succeeds on a status from 200 to 399. TCP succeeds on a connection that the other side
    keeps open: a container engine's own proxy accepts for a program that does not listen yet,
    and closes at once when it finds that out.
    """
    host, port = address
    try:
        if probe.kind == "tcp":
            with socket.create_connection((host, port), timeout=probe.timeout_s) as connection:
                return "" if _stays_open(connection) else NO_ANSWER
        # http.client, not httpx: one request to one address, and it is imported already
        request = http.client.HTTPConnection(host, port, timeout=probe.timeout_s)
        try:
            request.request(probe.method, probe.path, body=probe.body, headers=dict(probe.headers))
            with request.getresponse() as answer:  # which keeps the socket where the server closes
                return "" if 200 <= answer.status < 400 else _says(probe, answer.status)
        finally:
            request.close()
    except (OSError, http.client.HTTPException):
        return NO_ANSWER


def _says(probe: Probe, status: int) -> str:
    """Return what a launch says to a question; what follows the path may be a secret.

    >>> _says(Probe("http", 80, path="/health?key=1"), 503)
    'GET /health on port 80 says 503'
    """
    return f"{probe.method} {probe.path.partition('?')[0]} on port {probe.port} says {status}"


def _stays_open(connection: socket.socket) -> bool:
    """Return whether the peer speaks, or waits for us to; not whether it hangs up."""
    connection.settimeout(HANGS_UP_S)
    try:
        return connection.recv(1) != b""
    except TimeoutError:
        return True


@dataclass(slots=True)
class _Patient:
    """What is known of one launch and one of its probes."""

    ready: bool = False
    hits: int = 0
    misses: int = 0
    since: float = 0.0
    """When it was first asked."""
    was_ready: bool = False
    silent_since: float | None = None
    next_at: float = 0.0
    asked: Future[str] | None = None
    trouble: str = ""
    """What it said last, where that was no good answer."""
    is_over: bool = False
    silent_s: float | None = None
    """How long it may be silent once it was ready; None is for ever."""


@dataclass(slots=True)
class Prober:
    """Keeps asking every launch that has probes, each at its own interval.

    Args:
        pool: Where the requests run.
        monotonic: Seconds that only grow.
        wake: Called from a pool thread when an answer is there.
    """

    pool: Executor
    monotonic: Callable[[], float]
    wake: Callable[[], None]
    _patients: dict[tuple[str, int], _Patient] = field(default_factory=dict)

    def is_ready(self, instance: Instance, probes: Sequence[Probe], *, before: bool) -> bool:
        """Return whether a running launch answers all its probes, and see to the next questions.

        ``before`` is what the record says of a launch that was not asked here yet: another
        process asked it.
        """
        answers = [self._answers(instance, at, probe, before) for at, probe in enumerate(probes)]
        return all(answers)  # not before the last: each has to be asked

    def _answers(self, instance: Instance, at: int, probe: Probe, before: bool) -> bool:
        patient = self._patients.setdefault(
            (instance.name, at), _Patient(ready=before, since=self.monotonic(), was_ready=before)
        )
        patient.silent_s = probe.silent_s
        if patient.asked is not None and patient.asked.done():
            self._take(patient, probe, patient.asked.result())
        patient.is_over = patient.ready and probe.until_ready
        address = instance.ports.get(probe.port)
        is_due = patient.asked is None and not patient.is_over and self.monotonic() >= patient.next_at
        if is_due and address is not None:
            patient.asked = self.pool.submit(ask, probe, address)
            patient.asked.add_done_callback(lambda _: self.wake())
        return patient.ready

    def silence(self, name: str) -> str | None:
        """Return how long a launch that was ready has not answered, None where that is no reason to act."""
        now = self.monotonic()
        for (asked, _), patient in self._patients.items():
            if asked != name or not patient.was_ready or patient.silent_since is None:
                continue
            lasted_s = now - patient.silent_since
            if patient.silent_s is not None and lasted_s >= patient.silent_s:
                return f"{patient.trouble or NO_ANSWER} for {lasted_s:.0f} s"
        return None

    def trouble(self, name: str) -> str:
        """Return what a launch said last where that was no good answer, "" where it said nothing."""
        found = (patient.trouble for (asked, _), patient in self._patients.items() if asked == name)
        return next((trouble for trouble in found if trouble not in ("", NO_ANSWER)), "")

    def excuse(self, name: str) -> None:
        """Hold a launch's silence against it no longer: its machine cannot be reached."""
        for (launch, _), patient in self._patients.items():
            if launch == name:
                patient.silent_since = None

    def forget(self, alive: Collection[str]) -> None:
        """Drop all but these launches."""
        for key in [key for key in self._patients if key[0] not in alive]:
            del self._patients[key]

    def next_s(self) -> float | None:
        """Return the seconds until the next question, None when there is none to ask."""
        waiting = [p.next_at for p in self._patients.values() if p.asked is None and not p.is_over]
        return max(0.0, min(waiting) - self.monotonic()) if waiting else None

    def _take(self, patient: _Patient, probe: Probe, trouble: str) -> None:
        patient.asked, patient.trouble = None, trouble
        now = self.monotonic()
        if not trouble:
            patient.hits, patient.misses = patient.hits + 1, 0
            patient.ready = patient.ready or patient.hits >= probe.ready_after
            patient.silent_since = None
        else:
            patient.hits, patient.misses = 0, patient.misses + 1
            patient.silent_since = now if patient.silent_since is None else patient.silent_since
            patient.ready = patient.ready and patient.misses < probe.failures
        patient.was_ready = patient.was_ready or patient.ready
        soon_s = max(FIRST_S, PATIENCE * (now - patient.since))
        patient.next_at = now + (probe.interval_s if patient.ready else min(probe.interval_s, soon_s))
