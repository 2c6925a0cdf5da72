"""Drift, for people and machines."""

from __future__ import annotations

from dataclasses import asdict

from orchestrator.api.protocol import Found
from orchestrator.apply.drift import Drift
from orchestrator.render.runs import silent_lines
from orchestrator.render.table import table, to_json


def drift_text(found: Found[Drift]) -> str:
    """Return what differs as a table, or that nothing does, and the places that could not be looked at."""
    rows = [(d.run or "-", d.subject, d.backend, d.kind, d.detail) for d in found.items]
    seen = table(["RUN", "WHAT", "BACKEND", "DRIFT", "DETAIL"], rows) if rows else "no drift"
    return "\n".join([seen, *silent_lines(found.silent)])


def drift_json(found: Found[Drift]) -> str:
    """Return what differs as ``modelyard/drift/v1``."""
    differs = [asdict(drift) for drift in found.items]
    return to_json("modelyard/drift/v1", {"drift": differs, "silent": dict(found.silent)})
