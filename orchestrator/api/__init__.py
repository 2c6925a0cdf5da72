"""What can be asked of Modelyard, as one protocol, and the answer of this very process."""

from __future__ import annotations

from orchestrator.api.goals import has_arrived, has_missed, has_reached
from orchestrator.api.local import Local
from orchestrator.api.planning import Planner, origin
from orchestrator.api.protocol import (
    Api,
    FleetView,
    Found,
    Goal,
    Offers,
    Orphan,
    Plans,
    Rehearsal,
    RunView,
    Stray,
)
from orchestrator.api.runs import spec_of_run

__all__ = [
    "Api",
    "FleetView",
    "Found",
    "Goal",
    "Local",
    "Offers",
    "Orphan",
    "Planner",
    "Plans",
    "Rehearsal",
    "RunView",
    "Stray",
    "has_arrived",
    "has_missed",
    "has_reached",
    "origin",
    "spec_of_run",
]
