"""Write down what should be: the desired state and its event, in one transaction."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from orchestrator.apply.fleets import FleetPlan
from orchestrator.apply.planning import Plan, RunPlan, VolumePlan
from orchestrator.apply.sets import Deletion
from orchestrator.apply.unset import unset
from orchestrator.errors import Problem, SpecError
from orchestrator.reconcile import Run, RunEvent, RunState, Turn, Wanted
from orchestrator.reconcile.adapters import refused_in
from orchestrator.reconcile.values import before_of
from orchestrator.store.values import MAIN, Fleet, Volume

if TYPE_CHECKING:  # it imports SQLAlchemy, which a plan on a fresh machine does without
    from orchestrator.store.records import Store


def record(
    plans: Sequence[Plan],
    store: Store,
    *,
    environ: Mapping[str, str],
    now: datetime,
    new_id: Callable[[], str],
    project: str = MAIN,
    message: str = "",
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

    Raises:
        SpecError: a variable or a secret is named, and neither the environment nor the secret
            store has a value; every one of them.
        StateMoved: a run changed since it was planned; nothing was written.
    """
    runs = [p for p in plans if isinstance(p, RunPlan) and p.action != "unchanged"]
    kept = store.secrets.of(project)
    fleets = [p for p in plans if isinstance(p, FleetPlan) and p.action != "unchanged"]
    captured = _captured([*runs, *fleets], {name for name, _ in kept.list()}, environ)
    for plan in plans:
        if isinstance(plan, VolumePlan) and plan.action != "unchanged":
            spec = json.dumps(plan.spec.canonical(), sort_keys=True)
            sha256 = plan.spec.hash()
            store.put_volume(Volume(plan.name, plan.backend, spec, sha256, now, plan.set_name, project))
        if isinstance(plan, FleetPlan) and plan.action != "unchanged":
            spec = json.dumps(plan.spec.canonical(), sort_keys=True)
            store.put_fleet(Fleet(plan.name, spec, plan.spec.hash(), now, plan.set_name, project))
            for host, _ in plan.leaving:
                store.forget_cordon(plan.name, host)
    for name, value in captured.items():
        kept.set(name, value, now=now)
    turns = [_turn(plan, now=now, new_id=new_id, project=project, message=message) for plan in runs]
    turns += [
        _fleet_turn(plan, now=now, new_id=new_id, project=project, message=message)
        for plan in fleets
        if plan.template is not None
    ]
    turns += [
        _ending(plan.run, plan.reason, now, message)
        for plan in plans
        if isinstance(plan, Deletion) and plan.run
    ]
    if turns:
        store.commit(turns, expected={turn.run.id: turn.run.serial for turn in turns})
    held = tuple(plan.name for plan in fleets if plan.template is not None)
    return (*held, *(plan.name for plan in runs))


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
    spec = json.dumps(plan.spec.canonical(), sort_keys=True)
    old = plan.run
    if old is None:
        run = Run(
            new_id(), plan.name, plan.spec.type, spec, plan.spec_hash, plan.template.begun(now), now,
            created_at=now, set_name=plan.set_name, plan=plan.serving, project=project,
        )  # fmt: skip
    elif plan.action == "update":
        # what an engine refused of the adapters before says nothing of those that are listed now
        is_new = plan.template.adapters != old.template.adapters and bool(refused_in(old.reason))
        reason = "" if is_new else old.reason
        run = replace(old, spec=spec, template=plan.template, set_name=plan.set_name, reason=reason)
    else:
        template = replace(
            plan.template.begun(now),
            before=before_of(old) if plan.action == "replace" and plan.template.rollback else None,
        )
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


def _ending(run: Run, reason: str, now: datetime, message: str) -> Turn:
    asked = run.asked(Wanted.DELETE)
    before, after = run.state.value, asked.state.value
    return Turn(
        asked, RunEvent(run.id, run.name, now, run.name, before, after, f"prune: {reason}", message=message)
    )


def _captured(
    plans: Sequence[RunPlan | FleetPlan], known: Collection[str], environ: Mapping[str, str]
) -> dict[str, str]:
    """Return the values of bare variables by the secret's name, one name space per run or fleet."""
    problems: list[Problem] = []
    for plan in plans:
        problems += unset(plan.document, plan.spec, environ=environ, secrets=lambda: known)
    if problems:
        raise SpecError(problems)
    return {
        f"{plan.name}/{name}": environ[name]
        for plan in plans
        for name, value in plan.spec.env.items()
        if value is None and name in environ
    }
