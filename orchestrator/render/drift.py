"""Drift, for people and machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from orchestrator.apply.drift import Drift
from orchestrator.render.table import table, to_json


def drift_text(found: Sequence[Drift]) -> str:
    """Return what differs as a table, or that nothing does."""
    if not found:
        return "no drift"
    rows = [(d.run or "-", d.subject, d.backend, d.kind, d.detail) for d in found]
    return table(["RUN", "WHAT", "BACKEND", "DRIFT", "DETAIL"], rows)


def drift_json(found: Sequence[Drift]) -> str:
    """Return what differs as ``modelyard/drift/v1``."""
    return to_json("modelyard/drift/v1", {"drift": [asdict(d) for d in found]})
