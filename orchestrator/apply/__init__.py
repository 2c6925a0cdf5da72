"""From documents to the record: plan, compare with what is there, write down what should be."""

from orchestrator.apply.consent import NOTHING_LOST, Consent, require_consent
from orchestrator.apply.drift import Drift, drifts
from orchestrator.apply.fleets import FleetPlan, host_names, require_unused
from orchestrator.apply.planning import (
    Difference,
    Plan,
    RunPlan,
    VolumePlan,
    World,
    diff_documents,
    plan_documents,
)
from orchestrator.apply.recording import record
from orchestrator.apply.sets import NO_SET, Deletion, FleetRecord, Scope

__all__ = [
    "NOTHING_LOST",
    "NO_SET",
    "Consent",
    "Deletion",
    "Difference",
    "Drift",
    "FleetPlan",
    "FleetRecord",
    "Plan",
    "RunPlan",
    "Scope",
    "VolumePlan",
    "World",
    "diff_documents",
    "drifts",
    "host_names",
    "plan_documents",
    "record",
    "require_consent",
    "require_unused",
]
