"""What a plan was made against: what is asked of a run, apart from what becomes of it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

from orchestrator.apply.plans import RunPlan
from orchestrator.apply.templates import in_place, replicas_kept
from orchestrator.reconcile import Run
from orchestrator.spec.models import Service


def asked_of(run: Run) -> str:
    """Return a digest of what was asked of a run, and of when; it moves when somebody asks anew, or it ends.

    Replicas come and go, and the load has its say in how many there are: none of that is in it.
    """
    told = [
        run.id, run.wanted.value, run.spec, run.spec_hash, run.set_name, run.since.isoformat(),
        run.template.said, run.state.is_final,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def caught_up(plan: RunPlan, run: Run) -> RunPlan:
    """Return a plan for a run of which the same is asked as when it was made: whatever follows is taken anew.

    A service that scaled since keeps the replicas that it has now.
    """
    template = plan.template
    if plan.drift:
        template = run.template.again()
    elif plan.action == "update" and not (template and template.base):
        template = in_place(run, plan.spec, scales=template.scales if template else run.template.scales)
    elif plan.action == "replace" and template and isinstance(plan.spec, Service) and not template.base:
        template = replace(template, replicas=replicas_kept(plan.spec, run.template.replicas))
    return replace(plan, run=run, template=template)
