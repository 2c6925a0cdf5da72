"""Commands about the life of runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from orchestrator.cli.shared import (
    Config,
    Json,
    RunName,
    RunNames,
    Yes,
    confirm,
    open_api,
    seconds,
    tell_silent,
)
from orchestrator.errors import BackendError, NotFound, RunFailed, UsageError
from orchestrator.units import format_duration, parse_duration

if TYPE_CHECKING:
    from orchestrator.api import Api, FleetView, Goal, RunView
    from orchestrator.reconcile import Wanted

app = typer.Typer(rich_markup_mode=None)

TIMED_OUT = 124
"""The exit code of ``wait`` when time ran out, as timeout(1) has it."""

Replica = Annotated[int, typer.Option("--replica", min=0, help="Which replica.")]
Node = Annotated[int, typer.Option("--node", min=0, help="Which node of it.")]


@app.command()
def ps(all: Annotated[bool, typer.Option("-a", "--all", help="Ended runs too.")] = False,
       json: Json = False, config: Config = None) -> None:  # fmt: skip
    """List runs."""
    with open_api(config) as api:
        found = api.runs()
        tell_silent(api)
    views = [view for view in found if all or json or not view.run.state.is_final]
    from orchestrator.render.runs import runs_json, runs_text

    typer.echo(
        runs_json(views) if json else runs_text(views, now=datetime.now(UTC), ended=len(found) - len(views))
    )


@app.command()
def show(run: RunName, json: Json = False, config: Config = None) -> None:
    """Show one run in full, or the hosts of a fleet."""
    with open_api(config) as api:
        view = _run_or_fleet(api, run)
        tell_silent(api)
    if isinstance(view, list):
        from orchestrator.render.fleets import fleets_json, hosts_text

        typer.echo(fleets_json(view) if json else "\n".join(map(hosts_text, view)))
        return
    from orchestrator.render.runs import run_json, run_text

    typer.echo(run_json(view) if json else run_text(view))


def _run_or_fleet(api: Api, name: str) -> RunView | list[FleetView]:
    """Return the run of a name, else the fleet."""
    try:
        return api.run(name)
    except NotFound as missing:
        try:
            return api.fleets(name)
        except NotFound:
            raise missing from None


@app.command()
def events(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="Of this run only.")] = None,
    after: Annotated[int, typer.Option("--after", min=0, help="Only those behind this serial.")] = 0,
    json: Json = False,
    config: Config = None,
) -> None:
    """Show what happened, oldest first."""
    with open_api(config) as api:
        found = api.events(run, after=after)
    from orchestrator.render.runs import events_json, events_text

    typer.echo(events_json(found) if json else events_text(found))


@app.command()
def logs(
    run: RunName,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the run ends.")] = False,
    since: Annotated[
        str | None, typer.Option("--since", help="Only the last 5m, 2h, …, or from a time on.")
    ] = None,
    tail: Annotated[int | None, typer.Option("-n", "--tail", min=0, help="Only the last N lines.")] = None,
    timestamps: Annotated[bool, typer.Option("-t", "--timestamps", help="When each was written.")] = False,
    replica: Replica = 0,
    node: Node = 0,
    json: Annotated[bool, typer.Option("--json", help="Print a JSON object a line.")] = False,
    config: Config = None,
) -> None:
    """Print a run's output."""
    start = _since(since) if since else None
    live = follow and sys.stdout.isatty() and not json
    with open_api(config) as api, _printing(live=live, flush=follow) as say:
        for line in api.logs(run, replica=replica, node=node, follow=follow, since=start, tail=tail):
            if json:
                from orchestrator.render.runs import log_json

                print(log_json(line, run=run, replica=replica, node=node), flush=follow)
                continue
            at = f"{line.at.isoformat(timespec='milliseconds')} " if timestamps and line.at else ""
            say(line.text, at)


@contextmanager
def _printing(*, live: bool, flush: bool) -> Iterator[Callable[[str, str], None]]:
    """Yield what prints a line after its time; live, the figures that training tells move in one line."""
    if not live:
        yield lambda text, at: print(at + text, flush=flush)
        return
    from orchestrator.cli.progress import MovingLine
    from orchestrator.engines.tuning_entry import lines
    from orchestrator.loop.training import phrase

    with MovingLine() as moving:

        def say(text: str, at: str) -> None:
            told = next(lines(iter([text])), None)
            if told is not None:
                moving.tell(phrase(told))
            if told is None or "step" not in told:
                moving.print(at + text)

        yield say


def _since(text: str) -> datetime:
    """Return the time that ``--since`` means: so long ago, or that moment.

    Raises:
        UsageError: it is neither a duration nor a time.
    """
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        pass
    else:
        return at if at.tzinfo else at.replace(tzinfo=UTC)
    try:
        return datetime.now(UTC) - timedelta(seconds=parse_duration(text))
    except ValueError:
        raise UsageError(
            f"--since: {text!r} is neither a duration nor a time",
            fix="for example 5m or 2026-01-31T12:00:00Z",
        ) from None


def _on_terminal() -> bool:
    """Return whether somebody types: a program may be started without any stdin."""
    return sys.stdin is not None and sys.stdin.isatty()


class _Exec(TyperCommand):
    """Takes options on both sides of the run's name where ``--`` says where the command begins."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Leave what follows the run alone, unless there is a ``--``."""
        ctx.allow_interspersed_args = "--" in args
        return super().parse_args(ctx, args)


@app.command("exec", cls=_Exec)
def execute(
    run: RunName,
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND [ARG]...", show_default=False)],
    replica: Replica = 0,
    node: Node = 0,
    config: Config = None,
) -> None:
    """Run a command inside a running job."""
    words = command[1:] if command[:1] == ["--"] else command
    if not words:
        raise UsageError("no command given", fix=f"modelyard exec {run} -- ls")
    with open_api(config) as api:
        code = api.execute(run, words, replica=replica, node=node, tty=_on_terminal())
    raise typer.Exit(code)


@app.command()
def attach(run: RunName, replica: Replica = 0, node: Node = 0, config: Config = None) -> None:
    """Open a shell in a running job, and say where its ports answer."""
    from orchestrator.api import Local
    from orchestrator.render.runs import editor_link, ports_text

    with open_api(config) as api, ExitStack() as open_ports:
        view = api.run(run)
        container = api.container(run, replica=replica, node=node)
        # a server's addresses are those of its own machine: its ports are led here instead
        ports = ports_text(view) if isinstance(api, Local) else ()
        for line in (*ports, *editor_link(view, container)):
            typer.echo(line, err=True)
        led = open_ports.enter_context(api.forwarded(run, replica=replica, node=node))
        for port, (host, local) in led.items():
            typer.echo(f"port {port} answers at {host}:{local} until you leave", err=True)
        shell = ["/bin/sh", "-c", "command -v bash >/dev/null && exec bash -l || exec sh -l"]
        code = api.execute(run, shell, replica=replica, node=node, tty=_on_terminal())
    raise typer.Exit(code)


@app.command()
def stop(run: RunNames, yes: Yes = False, detach: Annotated[
    bool, typer.Option("-d", "--detach", help="Return once it was asked for.")] = False,
    json: Json = False, config: Config = None) -> None:  # fmt: skip
    """End runs: drain, then terminate, then kill."""
    from orchestrator.reconcile import Wanted

    _end(run, Wanted.STOP, yes=yes, detach=detach, json=json, config=config)


@app.command()
def delete(run: RunNames, yes: Yes = False, detach: Annotated[
    bool, typer.Option("-d", "--detach", help="Return once it was asked for.")] = False,
    json: Json = False, config: Config = None) -> None:  # fmt: skip
    """End runs and forget them."""
    from orchestrator.reconcile import Wanted

    _end(run, Wanted.DELETE, yes=yes, detach=detach, json=json, config=config)


def _end(names: list[str], wanted: Wanted, *, yes: bool, detach: bool, json: bool, config: Config) -> None:
    from orchestrator.cli.progress import Reporter
    from orchestrator.reconcile import Wanted
    from orchestrator.render.runs import ended_json

    names = list(dict.fromkeys(names))
    with open_api(config) as api:
        before = [api.recorded(name) for name in names]  # an unknown name is an error before anyone is asked
        confirm(f"{wanted.value} {', '.join(names)}?", yes=yes)
        api.ask(names, wanted)
        if not detach:
            with Reporter(api, [], prefix=False, terminal=sys.stderr.isatty()) as reporter:
                goal: Literal["deleted", "ended"] = "deleted" if wanted is Wanted.DELETE else "ended"
                try:
                    api.follow(names, goal, hooks=reporter.hooks)
                except BackendError:
                    asked = [view.run for view in api.on_record() if view.run.name in names]
                    for run in (each for each in asked if not each.state.is_final):
                        waits = "not ended yet: a later command, or a server, sees to it"
                        typer.echo(f"{run.name}: asked to {wanted.value}, and {waits}", err=True)
                    raise
        for view in before:
            if wanted is Wanted.STOP and view.run.state.is_final:
                typer.echo(f"{view.run.name}: {view.run.state.value} before, nothing to stop", err=True)
            elif detach:
                typer.echo(f"{view.run.name}: asked to {wanted.value}", err=True)
        if wanted is Wanted.DELETE:
            for name in [each.name for each in api.secrets() if not each.given_to]:
                if name.partition("/")[0] in names and "/" in name:
                    stays = f"secret {name} was set by hand and stays: modelyard secret delete {name}"
                    typer.echo(stays, err=True)
        if json:
            left = {view.run.name: view for view in api.on_record()}
            typer.echo(ended_json([(name, left.get(name)) for name in names]))


@app.command()
def wait(
    run: RunNames,
    goal: Annotated[
        Literal["ready", "started", "ended", "deleted"], typer.Option("--for", help="What to wait for.")
    ] = "ready",
    timeout: Annotated[str | None, typer.Option("--timeout", help="Give up after 30s, 10m, ….")] = None,
    json: Json = False,
    config: Config = None,
) -> None:
    """Wait until runs are ready, started, ended or deleted."""
    from orchestrator.api import has_missed  # with the record: not for --help

    limit = seconds("--timeout", timeout) if timeout else None
    with open_api(config) as api:
        if goal != "deleted":
            for name in run:
                api.recorded(name)
        in_time = _awaited(api, run, goal, limit)
        left = {view.run.name: view.run for view in api.on_record() if view.run.name in run}
    missed = [each for each in left.values() if goal != "deleted" and has_missed(each, goal)]
    if json:
        from orchestrator.api import has_reached
        from orchestrator.render.runs import wait_json

        there = {name for name, each in left.items() if has_reached(each, goal) and each not in missed}
        gone = set(run) - set(left) if goal == "deleted" else set()
        typer.echo(wait_json(run, left, goal=goal, reached=there | gone))
    if not in_time:
        typer.echo(f"not {goal} within {format_duration(limit or 0)}", err=True)
        raise typer.Exit(TIMED_OUT)
    if missed:
        raise RunFailed(
            "\n".join(f"{r.name}: {r.state.value}" + (f": {r.reason}" if r.reason else "") for r in missed)
        )


def _awaited(api: Api, names: list[str], goal: Goal, limit: float | None) -> bool:
    """Follow runs to a goal, with their progress where somebody watches."""
    if not sys.stderr.isatty():
        return api.follow(names, goal, timeout_s=limit)
    from orchestrator.cli.progress import Reporter

    with Reporter(api, [], prefix=True, terminal=True) as reporter:
        return api.follow(names, goal, hooks=reporter.hooks, timeout_s=limit)
