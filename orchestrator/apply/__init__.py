"""From documents to the record: plan, compare with what is there, write down what should be."""

from orchestrator.apply.planning import RunPlan, VolumePlan, World, plan_documents
from orchestrator.apply.recording import record

__all__ = ["RunPlan", "VolumePlan", "World", "plan_documents", "record"]
