"""Find replicas that say they are well and do nothing: engines without progress, probes without answer."""

from __future__ import annotations

import http.client
from dataclasses import dataclass

from orchestrator.backend import Instance
from orchestrator.engines.exposition import EngineLoad, load_of
from orchestrator.engines.job import Metrics
from orchestrator.loop.rounds import Patient, Rounds

EVERY_S = 15.0
"""How often an engine is asked for its progress."""
HUNG_S = 300.0
"""How long requests run without a step before an engine hangs: as long as vLLM waits for a step of its
own workers (``VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS``) and SGLang's watchdog for one of its."""
MOST_BYTES = 4 * 2**20


def ask(metrics: Metrics, address: tuple[str, int]) -> EngineLoad | None:
    """Return what the engine at ``address`` tells, None where it does not."""
    request = http.client.HTTPConnection(*address, timeout=5.0)
    try:
        request.request("GET", metrics.path)
        with request.getresponse() as answer:  # which keeps the socket where the server closes
            if answer.status != 200:
                return None
            return load_of(answer.read(MOST_BYTES).decode("utf-8", "replace"), metrics)
    except (OSError, http.client.HTTPException):
        return None
    finally:
        request.close()


@dataclass(slots=True)
class _Patient(Patient[EngineLoad | None]):
    """What is known of one engine; ``still_since`` is when it last made a step, or had nothing to do."""

    steps: float | None = None
    running: float = 0.0
    still_since: float = 0.0
    seen_at: float = 0.0


@dataclass(slots=True)
class Pulse(Rounds[_Patient]):
    """Keeps asking engines for their progress.

    What is not told proves nothing: an engine is hung only while it answers, and says both that
    requests run and that it made no step.
    """

    def sick(self, instance: Instance, metrics: Metrics, port: int) -> str | None:
        """Return what shows that an engine hangs, None where nothing does; see to the next question."""
        now = self.monotonic()
        patient = self._patients.setdefault(instance.name, _Patient(still_since=now, seen_at=now))
        if patient.asked is not None and patient.asked.done():
            self._take(patient, patient.asked.result(), now)
        address = instance.ports.get(port)
        if patient.asked is None and now >= patient.next_at and address is not None:
            patient.asked = self.pool.submit(ask, metrics, address)
            patient.asked.add_done_callback(lambda _: self.wake())
        still_s = patient.seen_at - patient.still_since
        if patient.running and still_s >= HUNG_S:
            return f"{patient.running:g} requests run and no step was made for {still_s:.0f} s"
        return None

    def _take(self, patient: _Patient, load: EngineLoad | None, now: float) -> None:
        patient.asked = None
        patient.next_at = now + EVERY_S
        if load is None or load.running is None or load.steps is None:
            patient.running, patient.still_since = 0.0, now
        elif not load.running or load.steps != patient.steps:
            patient.still_since = now
        if load is not None:
            patient.running, patient.steps = load.running or 0.0, load.steps
        patient.seen_at = now
