"""The command that makes it so."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.locking import Locked, Locking, WriteLock, save_locks
from orchestrator.cli.shared import Config, Json, RunName, Yes, confirm, load_files, open_api, problems_of
from orchestrator.cli.specs import AllowDestroy, AllowReplace, Prune, Rerun, Resume, SetName, Take
from orchestrator.errors import SpecError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.api import Api, Plans, RunView
    from orchestrator.apply import Consent
    from orchestrator.spec.load import Document

app = typer.Typer(rich_markup_mode=None)

ForceConflicts = Annotated[
    bool,
    typer.Option(
        "--force-conflicts", help="Take fields of a cluster's objects that somebody else set and holds."
    ),
]
Detach = Annotated[bool, typer.Option("-d", "--detach", help="Return once everything was accepted.")]


Files = Annotated[
    list[str] | None,
    typer.Option(
        "-f", "--file", help="A file, a folder, or - for stdin; may be given often.", show_default=False
    ),
]
PlanOrArguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[PLAN | -- ARGS]",
        help="A plan that was saved; or, with -f, what ${{ run.args }} stands for.",
    ),
]


@app.command()
def apply(
    file: Files = None,
    arguments: PlanOrArguments = None,
    yes: Yes = False,
    detach: Detach = False,
    json: Json = False,
    rerun: Rerun = False,
    resume: Resume = False,
    set_name: SetName = "",
    prune: Prune = False,
    take: Take = False,
    allow_destroy: AllowDestroy = False,
    allow_replace: AllowReplace = False,
    lock: WriteLock = False,
    locked: Locked = False,
    force_conflicts: ForceConflicts = False,
    config: Config = None,
) -> None:
    """Make it so: start, update or replace what the files say."""
    from orchestrator.apply import Consent, Scope

    consent, scope = Consent(allow_destroy, allow_replace), Scope(set_name, prune, take)
    wishes = {"force_conflicts": True} if force_conflicts else {}
    with open_api(config, wishes) as api:
        if file:
            documents = load_files(file, arguments or ())
            locking = Locking(tuple(file), lock, locked)
            plans, locks = locking.plan(api, documents, rerun=rerun, resume=resume, scope=scope)
            save_locks(locks)
        else:
            settled = rerun or resume or scope.name or lock or locked
            plans, agreed = api.resume(_saved_plan(arguments or [], settled=bool(settled)))
            consent |= agreed
            yes = True  # whoever saved the plan has seen it
        failed = _carry_out(api, plans, consent, yes=yes, detach=detach, json=json)
    if failed:
        from orchestrator.errors import RunFailed

        raise RunFailed("\n".join(failed))


def _saved_plan(arguments: list[str], *, settled: bool) -> str:
    """Return the path of the plan that is meant; ``settled``: options were given that it has settled."""
    if len(arguments) != 1:
        raise UsageError(
            "nothing to apply" if not arguments else "one saved plan at a time",
            fix="name files with --file, for example -f configs/, or a plan that plan --out wrote",
        )
    if settled:
        fix = "give --set, --prune, --take, --rerun, --resume, --lock and --locked to plan"
        raise UsageError("a saved plan says itself what to do", fix=fix)
    return arguments[0]


def _carry_out(api: Api, plans: Plans, consent: Consent, *, yes: bool, detach: bool, json: bool) -> list[str]:
    """Show plans, ask, write them down and follow them; return what failed."""
    from orchestrator.apply import require_consent
    from orchestrator.render.plans import plan_json, plan_text

    changed = any(plan.action != "unchanged" for plan in plans)
    typer.echo(plan_json(plans) if json and not changed else plan_text(plans), err=changed)
    require_consent(plans, consent)
    if problems := problems_of(plans):
        raise SpecError(problems)
    if changed:
        confirm("apply?", yes=yes)
    if any(getattr(plan, "trained", None) for plan in plans):
        from orchestrator.apply.datasets import make_outputs

        make_outputs(plans)
    names = api.apply(plans, consent=consent)
    kept = ("volume", "fleet")
    watched = [plan.name for plan in plans if plan.type not in kept and plan.action != "delete"]
    rented = [name for name in names if name not in watched]
    silent = _show_fleets(api, plans, rented, json=json and not names)
    failed = _follow(api, [*rented, *watched], fresh=names, detach=detach, json=json) if names else []
    failed += silent
    _see_off(api, plans)
    if names and json:
        from orchestrator.render.runs import runs_json

        typer.echo(runs_json([api.run(name) for name in watched]))
    return failed


def _show_fleets(api: Api, plans: Plans, rented: Sequence[str], *, json: bool) -> list[str]:
    """Look at the hosts of fleets that changed and say how they are; return the fleets that cannot be used.

    A fleet with hosts that do not answer is applied all the same, and its others are used. Machines that
    are rented are followed as runs are.
    """
    fleets = [plan for plan in plans if plan.type == "fleet" and plan.action in ("create", "update")]
    changed = [plan.name for plan in fleets if plan.name not in rented]
    if not changed:
        return []
    from orchestrator.render.fleets import fleets_json, hosts_text

    found = [view for name in changed for view in api.fleets(name)]
    typer.echo(fleets_json(found) if json else "\n".join(map(hosts_text, found)), err=not json)
    return [
        f"fleet {view.name}: no host answers"
        for view in found
        if view.hosts and all(host.state == "silent" for host in view.hosts)
    ]


def _see_off(api: Api, plans: Plans) -> None:
    """Wait until what is deleted is gone: a volume cannot go before the runs that use it."""
    if not any(plan.action == "delete" for plan in plans):
        return
    from orchestrator.cli.progress import Reporter

    with Reporter(api, [], prefix=True, terminal=sys.stderr.isatty()) as reporter:
        api.finish_deletions(plans, hooks=reporter.hooks)


def _follow(api: Api, watched: list[str], *, fresh: tuple[str, ...], detach: bool, json: bool) -> list[str]:
    """Drive what was applied to where its user wants it, and say how it goes; return what failed."""
    from orchestrator.cli.progress import Reporter
    from orchestrator.reconcile.values import CANARY

    shown = [] if detach or json else [name for name in fresh if _is_task(api, name)]
    with Reporter(api, shown, prefix=len(watched) > 1, terminal=sys.stderr.isatty()) as reporter:
        if detach:
            api.follow(fresh, "accepted", hooks=reporter.hooks)
        else:
            api.follow(fresh, "settled", hooks=reporter.hooks)
    if detach:
        return []
    failures = []
    left = {view.run.name: view for view in api.on_record()}
    for name in fresh:
        if name not in left:
            failures.append(f"{name}: deleted meanwhile")
            continue
        run = left[name].run
        if run.state.value in ("failed", "stopped") or (run.reason and not run.reason.startswith(CANARY)):
            failures.append(f"{name}: {run.state.value}" + (f": {run.reason}" if run.reason else ""))
    _say_addresses([left[name] for name in fresh if name in left])
    return failures


def _is_task(api: Api, name: str) -> bool:
    return api.recorded(name).run.type == "task"


def _say_addresses(views: Sequence[RunView]) -> None:
    from orchestrator.render.runs import addresses

    for view in views:
        found = list(addresses(view))
        if found and not view.run.state.is_final:
            typer.echo(f"{view.run.name} answers at {', '.join(found)}", err=True)


@app.command()
def merge(
    run: RunName, yes: Yes = False, detach: Detach = False, json: Json = False, config: Config = None
) -> None:
    """Fold the adapter that a run left into its base."""
    from orchestrator.apply import Consent

    with open_api(config) as api:
        documents = _merging(api, run)
        plans = api.plan(documents, resume=True)
        failed = _carry_out(api, plans, Consent(), yes=yes, detach=detach, json=json)
    if failed:
        from orchestrator.errors import RunFailed

        raise RunFailed("\n".join(failed))


def _merging(api: Api, name: str) -> tuple[Document, ...]:
    """Return a run's spec as one that also merges: what it has trained is not trained again."""
    from json import dumps, loads

    from orchestrator.spec.load import read

    recorded = api.run(name).run
    spec = loads(recorded.spec)
    if not isinstance(spec.get("train"), dict) or spec["train"].get("adapter", "none") == "none":
        raise UsageError(f"run {name!r} trains no adapter", fix=f"modelyard show {name}")
    if not recorded.state.is_final:
        raise UsageError(f"run {name!r} has not ended", fix=f"modelyard wait {name} --for ended")
    spec["train"]["merge"] = True
    return read(dumps(spec), file=f"<record of {name}>")
