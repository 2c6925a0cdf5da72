"""Plans for clusters, said to them before anything is done: what they would change, or refuse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from orchestrator.api.protocol import Plans, Rehearsal
from orchestrator.apply.plans import Plan, RunPlan
from orchestrator.apply.templates import replicas_kept
from orchestrator.backend import Backend, Can, Rehearser, keeper_of_groups
from orchestrator.errors import AuthFailed, BackendError, Misconfigured, Quota, SpecError, Temporary
from orchestrator.reconcile import Template
from orchestrator.reconcile.values import group_from
from orchestrator.spec.models import Service


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


def is_kept(plan: Plan) -> bool:
    """Return whether a plan changes nothing of a run that is kept up.

    A task's objects never change, and those of a run that has ended may be gone.
    """
    run = plan.run if isinstance(plan, RunPlan) else None
    return run is not None and plan.action == "unchanged" and run.type != "task" and not run.state.is_final


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
            template = template_of(as_scaled(plan, places)) or template
            phrases = place.rehearse(group_from(template, name=plan.name, kind=plan.spec.type))
        except BackendError as error:
            if not isinstance(error, Temporary):  # not now is no refusal
                what = error.what.removeprefix(f"backend {place.name!r}: ")
                found[plan.name] = Rehearsal(
                    place.name, refusal=what, fix=error.fix, exit_code=_exit_code(error)
                )
        else:
            found[plan.name] = Rehearsal(place.name, tuple(phrases))
    return found


def as_scaled(plan: RunPlan, places: Mapping[str, Backend]) -> RunPlan:
    """Return a plan by which a service's place scales it no longer, with as many replicas as it has now.

    The record does not say how many; the spec's range holds.

    Raises:
        BackendError: the place does not answer.
    """
    run, template = plan.run, plan.template
    if run is None or run.template.scaling is None or template is None or template.scaling is not None:
        return plan
    place = places.get(run.template.backends[0])
    keeper = keeper_of_groups(place) if place else None
    groups = keeper.groups() if keeper else ()
    live = next((status.replicas for status in groups if status.name == plan.name), None)
    if live is None or not isinstance(plan.spec, Service):
        return plan
    return replace(plan, template=replace(template, replicas=replicas_kept(plan.spec, live)))


def rehearsed(plans: Plans, said: Mapping[str, Rehearsal]) -> Plans:
    """Return plans with what their clusters say of them.

    What a cluster would change in objects that are there is noted, whoever changed them since; what
    it would refuse is a problem of the document. A run whose spec changes nothing is updated where its
    cluster has something otherwise, and stays as it is where that would be refused.
    """
    return tuple(
        _rehearsed(plan, said[plan.name]) if isinstance(plan, RunPlan) and plan.name in said else plan
        for plan in plans
    )


def _rehearsed(plan: RunPlan, said: Rehearsal) -> RunPlan:
    if said.refusal:
        what = f"backend {said.place!r} refuses it: {said.refusal}"
        problem = replace(plan.document.problem("", what, said.fix), exit_code=said.exit_code)
        drift = said.phrases() if plan.action == "unchanged" else ()
        return replace(plan, problems=(*plan.problems, problem), drift=drift)
    if plan.action == "unchanged":
        if not said.changes or plan.run is None:
            return plan
        return replace(plan, action="update", template=plan.run.template.again(), drift=said.phrases())
    told = [f"{said.place}: {phrase}" for phrase in said.changes if not phrase.endswith(": is made")]
    return replace(plan, notes=(*plan.notes, *told))


def _exit_code(error: BackendError) -> int:
    """Return what a command ends with: what an account or the configuration lacks is no fault of the spec."""
    kinds = AuthFailed | Misconfigured | Quota
    return error.exit_code if isinstance(error, kinds) else SpecError.exit_code
