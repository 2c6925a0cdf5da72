"""From documents to the record: plan, compare with what is there, write down what should be."""

from orchestrator.apply.planning import (
    Difference,
    RunPlan,
    VolumePlan,
    World,
    diff_documents,
    plan_documents,
)
from orchestrator.apply.recording import record

__all__ = ["Difference", "RunPlan", "VolumePlan", "World", "diff_documents", "plan_documents", "record"]
