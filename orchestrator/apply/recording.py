"""Write down what should be: the desired state and its event, in one transaction."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, TypeGuard

from orchestrator.apply.asked import asked_of, caught_up
from orchestrator.apply.fleets import FleetPlan
from orchestrator.apply.notes import loses_work
from orchestrator.apply.plans import Plan, RunPlan, VolumePlan
from orchestrator.apply.sets import Deletion
from orchestrator.apply.unset import unset
from orchestrator.errors import Problem, SpecError, StateMoved
from orchestrator.reconcile import Run, RunEvent, RunState, Template, Wanted
from orchestrator.reconcile.adapters import refused_in
from orchestrator.reconcile.steps import Turn, asking
from orchestrator.reconcile.values import before_of
from orchestrator.spec.models import as_recorded
from orchestrator.store.values import MAIN, Fleet, Kept, Uncordoned, Volume, of_hosts

if TYPE_CHECKING:  # it imports SQLAlchemy, which a plan on a fresh machine does without
    from orchestrator.store.records import Store

_OfRun = RunPlan | FleetPlan | Deletion
"""The plans that turn a run."""


def record(
    plans: Sequence[Plan],
    store: Store,
    *,
    environ: Mapping[str, str],
    now: datetime,
    new_id: Callable[[], str],
    project: str = MAIN,
    message: str = "",
    prepare: Callable[[], None] = lambda: None,
) -> tuple[str, ...]:
    """Make the record say what the plans say, all or nothing; return the names of runs that changed.

    Args:
        plans: What ``plan_documents`` returned.
        store: The record.
        environ: Where the values of bare variables come from.
        now: The time.
        new_id: Makes ids for new runs.
        project: Whose new runs, volumes and fleets are.
        message: What the events say, such as the commit that is applied.
        prepare: Makes what has to be there before anybody reads of it; called once nothing but the
            record itself can still refuse the plans.

    Raises:
        SpecError: a variable or a secret is named, and neither the environment nor the secret
            store has a value; every one of them.
        StateMoved: something else is asked of a run than when it was planned; nothing was written.
    """
    runs = [p for p in plans if isinstance(p, RunPlan) and p.action != "unchanged"]
    secrets = store.secrets.of(project)
    fleets = [p for p in plans if isinstance(p, FleetPlan) and p.action != "unchanged"]
    captured = _captured([*runs, *fleets], {each.name for each in secrets.list()}, environ)
    beside: list[Kept] = [each for plan in plans for each in _kept(plan, now=now, project=project)]
    beside += [
        secrets.sealed(name, value, now=now, given_to=given_to)
        for (name, given_to), value in captured.items()
    ]
    prepare()
    _commit(
        store,
        [plan for plan in plans if _touches_run(plan)],
        lambda plan: _turn_of(plan, now=now, new_id=new_id, project=project, message=message),
        beside,
    )
    held = tuple(plan.name for plan in fleets if plan.template is not None)
    return (*held, *(plan.name for plan in runs))


def _kept(plan: Plan, *, now: datetime, project: str) -> Iterator[Kept]:
    """Yield what a plan writes down beside runs."""
    if isinstance(plan, VolumePlan | FleetPlan) and plan.action != "unchanged":
        spec, spec_hash = json.dumps(plan.spec.canonical(), sort_keys=True), plan.spec.hash()
        if isinstance(plan, VolumePlan):
            yield Volume(plan.name, plan.backend, spec, spec_hash, now, plan.set_name, project)
            return
        yield Fleet(plan.name, spec, spec_hash, now, plan.set_name, project)
        for host, _ in plan.leaving:
            yield Uncordoned(plan.name, host)


def _commit(
    store: Store, plans: Sequence[_OfRun], turn_of: Callable[[_OfRun], Turn], kept: Sequence[Kept]
) -> None:
    """Write the turns of plans and what is kept beside them; where a loop wrote in between, of what it wrote.

    Raises:
        StateMoved: something else is asked of a run than when it was planned; nothing was written.
    """
    while plans or kept:
        turns = [turn_of(plan) for plan in plans]
        try:
            store.commit(turns, expected={turn.run.id: turn.run.serial for turn in turns}, kept=kept)
            return
        except StateMoved:
            there = {run.name: run for run in store.runs()}
            found = [_caught_up(plan, there.get(plan.name)) for plan in plans]
            if None in found or found == list(plans):
                raise
            plans = [plan for plan in found if plan is not None]


def _caught_up(plan: _OfRun, run: Run | None) -> _OfRun | None:
    """Return a plan for its run as it is now, None where that is no longer what it was made for."""
    if run is None or plan.run is None:
        return plan if run is plan.run else None
    if asked_of(run) != asked_of(plan.run):
        return None
    if isinstance(plan, RunPlan):
        begun = loses_work(plan.action, run) and not loses_work(plan.action, plan.run)
        return None if begun else caught_up(plan, run)
    return replace(plan, run=run)


def _touches_run(plan: Plan) -> TypeGuard[_OfRun]:
    if isinstance(plan, VolumePlan) or plan.action == "unchanged":
        return False
    return plan.run is not None if isinstance(plan, Deletion) else plan.template is not None


def _turn_of(plan: _OfRun, *, now: datetime, new_id: Callable[[], str], project: str, message: str) -> Turn:
    if isinstance(plan, RunPlan):
        return _turn(plan, now=now, new_id=new_id, project=project, message=message)
    if isinstance(plan, FleetPlan):
        return _fleet_turn(plan, now=now, new_id=new_id, project=project, message=message)
    assert plan.run is not None  # asked for above
    return _ending(plan.run, plan.reason, now, message)


def _fleet_turn(
    plan: FleetPlan, *, now: datetime, new_id: Callable[[], str], project: str, message: str
) -> Turn:
    """Write down that the machines of a fleet shall be held."""
    assert plan.template is not None  # asked for above
    spec, spec_hash = json.dumps(plan.spec.canonical(), sort_keys=True), plan.spec.hash()
    old = plan.run
    fresh = old or Run(
        new_id(), plan.name, "fleet", spec, spec_hash, plan.template, now, created_at=now, project=project
    )
    run = replace(
        fresh, spec=spec, spec_hash=spec_hash, template=plan.template, set_name=plan.set_name,
        plan=plan.serving, wanted=Wanted.RUN,
    )  # fmt: skip
    if old is None or old.state.is_final or old.spec_hash != spec_hash:
        run = replace(run, since=now, state=RunState.QUEUED, reason="", was_ready=False)
    before = old.state.value if old else ""
    return Turn(
        run,
        RunEvent(
            run.id, run.name, now, run.name, before, run.state.value, f"apply: {plan.action}", message=message
        ),
    )


def _turn(plan: RunPlan, *, now: datetime, new_id: Callable[[], str], project: str, message: str) -> Turn:
    assert plan.template is not None  # every plan that changes something has one
    spec = json.dumps(as_recorded(plan.spec).canonical(), sort_keys=True)
    old = plan.run
    if old is None:
        run = Run(
            new_id(), plan.name, plan.spec.type, spec, plan.spec_hash, plan.template.begun(now), now,
            created_at=now, set_name=plan.set_name, plan=plan.serving, project=project,
        )  # fmt: skip
    elif plan.action == "update":
        # what an engine refused of the adapters before says nothing of those that are listed now
        is_new = plan.template.adapters != old.template.adapters and bool(refused_in(old.reason))
        moves = _moves(old.template, plan.template)
        reason = "" if is_new or moves else old.reason
        # who waits for it must not take the word of a pass that has not seen what is asked now
        state = RunState.RUNNING if moves and old.state is RunState.READY else old.state
        run = replace(
            old, spec=spec, template=plan.template, set_name=plan.set_name, state=state, reason=reason
        )
    else:
        before_it = before_of(old) if plan.action == "replace" else None
        template = replace(plan.template.begun(now), before=before_it)
        run = replace(
            old, spec=spec, spec_hash=plan.spec_hash, template=template, since=now,
            wanted=Wanted.RUN, state=RunState.QUEUED, reason="", was_ready=False,
            set_name=plan.set_name, plan=plan.serving,
        )  # fmt: skip
    before = old.state.value if old else ""
    event = RunEvent(
        run.id, run.name, now, run.name, before, run.state.value, f"apply: {plan.action}", message=message
    )
    return Turn(run, event)


def _moves(old: Template, new: Template) -> bool:
    """Return whether a change in place leaves something to start, to stop or to tell a cluster."""
    return (old.replicas, old.canary, old.scaling, old.said) != (
        new.replicas, new.canary, new.scaling, new.said
    )  # fmt: skip


def _ending(run: Run, reason: str, now: datetime, message: str) -> Turn:
    return asking(run, Wanted.DELETE, at=now, cause=f"prune: {reason}", message=message)


def _captured(
    plans: Sequence[RunPlan | FleetPlan], known: Collection[str], environ: Mapping[str, str]
) -> dict[tuple[str, str], str]:
    """Return the values of bare variables by the secret's name, and the run or fleet each is given to."""
    problems: list[Problem] = []
    for plan in plans:
        problems += unset(plan.document, plan.spec, environ=environ, secrets=lambda: known)
    if problems:
        raise SpecError(problems)
    return {
        (f"{plan.name}/{name}", given_to(plan)): environ[name]
        for plan in plans
        for name, value in plan.spec.env.items()
        if value is None and name in environ
    }


def given_to(plan: RunPlan | FleetPlan) -> str:
    """Return whom the values of a plan go with: its run, or a fleet that has none."""
    has_run = isinstance(plan, RunPlan) or plan.template is not None
    return plan.name if has_run else of_hosts(plan.name)
