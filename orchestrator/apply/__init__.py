"""From documents to the record: plan, compare with what is there, write down what should be.

Writing it down is ``recording``, and comparing with what lives is ``drift``: neither is for a plan,
and with them would come the record itself.
"""

from orchestrator.apply.consent import NOTHING_LOST, Consent, require_consent
from orchestrator.apply.fleets import FleetPlan, host_names, require_unused
from orchestrator.apply.planning import diff_documents, plan_documents
from orchestrator.apply.plans import Difference, Plan, RunPlan, VolumePlan, World
from orchestrator.apply.sets import NO_SET, Deletion, FleetRecord, Scope

__all__ = [
    "NOTHING_LOST",
    "NO_SET",
    "Consent",
    "Deletion",
    "Difference",
    "FleetPlan",
    "FleetRecord",
    "Plan",
    "RunPlan",
    "Scope",
    "VolumePlan",
    "World",
    "diff_documents",
    "host_names",
    "plan_documents",
    "require_consent",
    "require_unused",
]
