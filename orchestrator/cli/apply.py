"""The command that makes it so."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.shared import Config, Files, Json, Yes, confirm, load_files, open_api
from orchestrator.cli.specs import Arguments, Rerun

if TYPE_CHECKING:
    from orchestrator.api import Local

app = typer.Typer(rich_markup_mode=None)

Detach = Annotated[bool, typer.Option("-d", "--detach", help="Return once everything was accepted.")]


@app.command()
def apply(
    file: Files,
    arguments: Arguments = None,
    yes: Yes = False,
    detach: Detach = False,
    json: Json = False,
    rerun: Rerun = False,
    config: Config = None,
) -> None:
    """Make it so: start, update or replace what the files say."""
    documents = load_files(file, arguments or ())
    from orchestrator.render.plans import plan_json, plan_text

    with open_api(config) as api:
        plans = api.plan(documents, rerun=rerun)
        changed = any(plan.action != "unchanged" for plan in plans)
        typer.echo(plan_json(plans) if json and not changed else plan_text(plans), err=changed)
        if changed and not confirm("apply?", yes=yes):
            raise typer.Abort
        names = api.apply(plans)
        watched = [plan.name for plan in plans if plan.spec.type != "volume"]
        failed = _follow(api, watched, fresh=names, detach=detach, json=json) if names else []
        if names and json:
            from orchestrator.render.runs import runs_json

            typer.echo(runs_json([api.run(name) for name in watched]))
    if failed:
        from orchestrator.errors import RunFailed

        raise RunFailed("\n".join(failed))


def _follow(api: Local, watched: list[str], *, fresh: tuple[str, ...], detach: bool, json: bool) -> list[str]:
    """Drive what was applied to where its user wants it, and say how it goes; return what failed."""
    from orchestrator.cli.progress import Reporter

    shown = [] if detach or json else [name for name in fresh if _is_task(api, name)]
    with Reporter(api, shown, prefix=len(watched) > 1, terminal=sys.stderr.isatty()) as reporter:
        if detach:
            api.follow(fresh, "accepted", hooks=reporter.hooks)
        else:
            api.follow(fresh, "settled", hooks=reporter.hooks)
    if detach:
        return []
    failures = []
    for name in fresh:
        run = api.recorded(name).run
        if run.state.value in ("failed", "stopped") or run.reason:
            failures.append(f"{name}: {run.state.value}: {run.reason or 'stopped'}")
    _say_addresses(api, fresh)
    return failures


def _is_task(api: Local, name: str) -> bool:
    return api.recorded(name).run.type == "task"


def _say_addresses(api: Local, names: tuple[str, ...]) -> None:
    from orchestrator.render.runs import addresses

    for name in names:
        view = api.recorded(name)
        found = list(addresses(view))
        if found and not view.run.state.is_final:
            typer.echo(f"{name} answers at {', '.join(found)}", err=True)
