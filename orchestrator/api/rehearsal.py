"""Plans for clusters, said to them before anything is done: what they would change, or refuse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from orchestrator.api.protocol import Plans, Rehearsal
from orchestrator.apply.planning import RunPlan
from orchestrator.backend import Backend, Can, Rehearser
from orchestrator.errors import BackendError, Temporary
from orchestrator.reconcile import Template, group_from


def to_rehearse(plans: Plans, abilities: Mapping[str, frozenset[Can]]) -> tuple[RunPlan, ...]:
    """Return those plans that are a cluster's to keep."""
    clusters = {name for name, can in abilities.items() if Can.GROUPS in can}
    return tuple(
        plan
        for plan in plans
        if isinstance(plan, RunPlan)
        and (template := template_of(plan)) is not None
        and not clusters.isdisjoint(template.backends[:1])
    )


def template_of(plan: RunPlan) -> Template | None:
    """Return what a cluster is to keep: the plan's, or that on record where it changes nothing."""
    return plan.template or (plan.run.template if plan.run and plan.action == "unchanged" else None)


def rehearse(plans: Plans, places: Mapping[str, Backend]) -> dict[str, Rehearsal]:
    """Return what clusters say of plans, by run; one that is silent says nothing."""
    found: dict[str, Rehearsal] = {}
    for plan in plans:
        if not isinstance(plan, RunPlan) or (template := template_of(plan)) is None:
            continue
        if template.backends[0] not in places:
            continue
        place = places[template.backends[0]]
        if not isinstance(place, Rehearser):
            continue
        try:
            phrases = place.rehearse(group_from(template, name=plan.name, kind=plan.spec.type))
        except BackendError as error:
            if not isinstance(error, Temporary):  # not now is no refusal
                found[plan.name] = Rehearsal(place.name, refusal=error.what, fix=error.fix)
        else:
            found[plan.name] = Rehearsal(place.name, tuple(phrases))
    return found


def rehearsed(plans: Plans, said: Mapping[str, Rehearsal]) -> Plans:
    """Return plans with what their clusters say of them.

    What a cluster would change in objects that are there is noted, whoever changed them since; what
    it would refuse is a problem of the document.
    """
    return tuple(
        _rehearsed(plan, said[plan.name]) if isinstance(plan, RunPlan) and plan.name in said else plan
        for plan in plans
    )


def _rehearsed(plan: RunPlan, said: Rehearsal) -> RunPlan:
    if said.refusal:
        what = f"backend {said.place!r} refuses it: {said.refusal}"
        return replace(plan, problems=(*plan.problems, plan.document.problem("", what, said.fix)))
    told = [f"{said.place}: {phrase}" for phrase in said.changes if not phrase.endswith(": is made")]
    return replace(plan, notes=(*plan.notes, *told))
