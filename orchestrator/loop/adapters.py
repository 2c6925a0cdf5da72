"""Have engines that run load and drop adapters, until each serves what its run is to serve."""

from __future__ import annotations

import http.client
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from orchestrator.backend import Instance
from orchestrator.engines.job import Adapters
from orchestrator.loop.rounds import Patient, Rounds
from orchestrator.reconcile.adapters import differences, refused
from orchestrator.reconcile.values import Adapter, Loaded

EVERY_S = 30.0
"""How often an engine is asked what it serves, while nothing is to change."""
FIRST_S, MOST_S = 1.0, 60.0
"""Between two tries of what an engine refused: it may be there the next time, as weights on a hub are."""
ASK_S = 10.0
LOAD_S = 600.0
"""How long loading one may take: its weights may have to be fetched first."""
MOST_BYTES = 4 * 2**20


def tend(
    takes: Adapters, wanted: Sequence[Adapter], told: Collection[str], address: tuple[str, int]
) -> Loaded | None:
    """Return what the engine at ``address`` serves after it was told what to; None where it does not say.

    ``told`` is what the record says that it serves.
    """
    loaded = _listed(takes, address)
    if loaded is None:
        return None
    drop, load = differences(wanted, loaded, told)
    asked = [(name, takes.unload, {"lora_name": name}) for name in drop]
    asked += [(a.name, takes.load, {"lora_name": a.name, "lora_path": a.path}) for a in load]
    troubles = {name: why for name, path, body in asked if (why := _tell(path, body, name, address))}
    if drop or load:
        loaded = _listed(takes, address)
    if loaded is None:
        return None
    right = [a.told for a in wanted if loaded.get(a.name) == a.path and a.name not in troubles]
    return Loaded(tuple(right), "; ".join(troubles.values()))


def _listed(takes: Adapters, address: tuple[str, int]) -> dict[str, str] | None:
    """Return the adapters that an engine serves, each with its path."""
    status, content = _ask("GET", takes.listed, None, address, timeout_s=ASK_S)
    try:
        models = json.loads(content)["data"] if status == 200 else None
        return None if models is None else {m["id"]: m["root"] for m in models if m.get("parent")}
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _tell(path: str, body: Mapping[str, str], name: str, address: tuple[str, int]) -> str:
    """Have an engine load or drop an adapter; return why it did not, "" where it did."""
    status, content = _ask("POST", path, json.dumps(body), address, timeout_s=LOAD_S)
    if status == 200:
        return ""
    why = _said(status, content)
    return refused(name, why) if "lora_path" in body else f"adapter {name} is not dropped: {why}"


def _said(status: int, content: str) -> str:
    """Return an engine's words about a failure: vLLM's error, or SGLang's.

    >>> _said(400, '{"error": {"message": "no adapter in /x"}}')
    'no adapter in /x'
    >>> _said(400, '{"success": false, "error_message": "no room"}'), _said(500, "oops"), _said(0, "")
    ('no room', 'HTTP 500', 'no answer')
    """
    try:
        said = json.loads(content)
        told = said.get("error_message") or said.get("message") or said["error"]["message"]
        return " ".join(str(told).split())[:300]
    except (ValueError, TypeError, KeyError, AttributeError):
        return f"HTTP {status}" if status else "no answer"


def _ask(
    method: str, path: str, body: str | None, address: tuple[str, int], *, timeout_s: float
) -> tuple[int, str]:
    """Return the status and what was said, 0 and nothing where nobody answers."""
    request = http.client.HTTPConnection(*address, timeout=timeout_s)
    try:
        request.request(method, path, body=body, headers={"content-type": "application/json"})
        with request.getresponse() as answer:
            return answer.status, answer.read(MOST_BYTES).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        return 0, ""
    finally:
        request.close()


@dataclass(slots=True)
class _Patient(Patient[Loaded | None]):
    """What is known of one engine, and what it was last told to serve."""

    told: tuple[Adapter, ...] = ()
    loaded: Loaded | None = None
    answered: tuple[Adapter, ...] = ()
    """What it had been told when it said what is in ``loaded``."""
    failures: int = 0


@dataclass(slots=True)
class Tender(Rounds[_Patient]):
    """Keeps engines at the adapters they are to serve, one request at a time to each."""

    def look(
        self,
        instance: Instance,
        takes: Adapters,
        wanted: tuple[Adapter, ...],
        told: Collection[str],
        port: int,
    ) -> Loaded | None:
        """Return what an engine serves, None where it has not said; see to the next question.

        ``told`` is what the record says that it serves.
        """
        patient = self._patients.setdefault(instance.name, _Patient())
        if patient.asked is not None and patient.asked.done():
            self._take(patient, patient.asked.result(), instance.name)
        address = instance.ports.get(port)
        is_due = self.monotonic() >= patient.next_at or patient.told != wanted
        if patient.asked is None and is_due and address is not None:
            patient.told = wanted
            patient.asked = self.pool.submit(tend, takes, wanted, tuple(told), address)
            patient.asked.add_done_callback(lambda _: self.wake())
        if patient.loaded is not None and patient.answered != wanted:
            return replace(patient.loaded, trouble="")  # it was with another list
        return patient.loaded

    def last(self, name: str) -> Loaded | None:
        """Return what an engine said last, None where it has not."""
        patient = self._patients.get(name)
        return None if patient is None else patient.loaded

    def _take(self, patient: _Patient, loaded: Loaded | None, name: str) -> None:
        patient.asked = None
        if loaded is None and patient.loaded is None:  # else what it said last stands
            loaded = Loaded((), f"{name} does not say which adapters it serves")
        if loaded is None or loaded.trouble:
            pause_s = min(MOST_S, FIRST_S * 2**patient.failures)
            patient.failures = min(patient.failures + 1, 10)
        else:
            pause_s, patient.failures = EVERY_S, 0
        patient.next_at = self.monotonic() + pause_s
        patient.answered = patient.told
        patient.loaded = loaded if loaded is not None else patient.loaded
