"""Plans for clusters, said to them before anything is done: what they would change, or refuse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from orchestrator.api.protocol import Plans
from orchestrator.apply.planning import RunPlan
from orchestrator.backend import Backend, Rehearser
from orchestrator.errors import BackendError, Temporary
from orchestrator.reconcile import group_from


def rehearsed(plans: Plans, places: Mapping[str, Backend]) -> Plans:
    """Return plans with what their clusters say of them; a cluster that is silent says nothing.

    What a cluster would change in objects that are there is noted, whoever changed them since; what
    it would refuse is a problem of the document.
    """
    return tuple(_rehearsed(plan, places) if isinstance(plan, RunPlan) else plan for plan in plans)


def _rehearsed(plan: RunPlan, places: Mapping[str, Backend]) -> RunPlan:
    template = plan.template
    if template is None or plan.action in {"unchanged", "delete"} or not template.backends:
        return plan
    place = places[template.backends[0]]
    if not isinstance(place, Rehearser):
        return plan
    group = group_from(template, name=plan.name, kind=plan.spec.type)
    try:
        phrases = place.rehearse(group)
    except BackendError as error:
        if isinstance(error, Temporary):
            return plan  # not now is no refusal
        what = f"backend {place.name!r} refuses it: {error.what}"
        problem = plan.document.problem("", what, error.fix)
        return replace(plan, problems=(*plan.problems, problem))
    told = [f"{place.name}: {phrase}" for phrase in phrases if not phrase.endswith(": is made")]
    return replace(plan, notes=(*plan.notes, *told))
