"""Commands about fleets: their hosts, and taking a host out of use."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from orchestrator.cli.shared import Config, Json, Yes, confirm, open_api, seconds
from orchestrator.errors import RunFailed

app = typer.Typer(rich_markup_mode=None)
fleet = typer.Typer(
    rich_markup_mode=None, no_args_is_help=True, help="Show machines of one's own, and empty them."
)
app.add_typer(fleet, name="fleet")

Name = Annotated[str, typer.Argument(metavar="FLEET", help="A fleet's name.", show_default=False)]
HostName = Annotated[str, typer.Argument(metavar="HOST", help="One of its hosts.", show_default=False)]
Reason = Annotated[str, typer.Option("--reason", help="Why, for whoever looks at it later.")]


@fleet.command("list")
def list_fleets(json: Json = False, config: Config = None) -> None:
    """List fleets."""
    with open_api(config) as api:
        found = api.fleets()
    from orchestrator.render.fleets import fleets_json, fleets_text

    typer.echo(fleets_json(found) if json else fleets_text(found))


@fleet.command("show")
def show(name: Name, json: Json = False, config: Config = None) -> None:
    """Show the hosts of a fleet: their state, what is free, who is there, and what is wrong."""
    with open_api(config) as api:
        found = api.fleets(name)
    from orchestrator.render.fleets import fleets_json, hosts_text

    typer.echo(fleets_json(found) if json else "\n".join(map(hosts_text, found)))


@fleet.command("delete")
def delete(name: Name, yes: Yes = False, config: Config = None) -> None:
    """Let go of a fleet's hosts; what ended there goes with its output."""
    with open_api(config) as api:
        confirm(f"delete fleet {name}, with the output of what ended there?", yes=yes)
        api.delete_fleet(name)
    typer.echo(f"fleet {name}: deleted", err=True)


@fleet.command("cordon")
def cordon(name: Name, host: HostName, reason: Reason = "", config: Config = None) -> None:
    """Let nothing new start on a host; what runs there goes on."""
    with open_api(config) as api:
        api.cordon(name, host, reason=reason)
    typer.echo(f"{host}: cordoned", err=True)


@fleet.command("uncordon")
def uncordon(name: Name, host: HostName, config: Config = None) -> None:
    """Let launches start on a host again."""
    with open_api(config) as api:
        api.uncordon(name, host)
    typer.echo(f"{host}: takes launches again", err=True)


@fleet.command("drain")
def drain(
    name: Name,
    host: HostName,
    reason: Reason = "",
    evict: Annotated[
        bool, typer.Option("--evict", help="End tasks too: their retry decides what follows.")
    ] = False,
    timeout: Annotated[
        str, typer.Option("--timeout", metavar="DURATION", help="How long to wait; unset: until it is empty.")
    ] = "",
    config: Config = None,
) -> None:
    """Empty a host: services move elsewhere, tasks finish, and nothing new starts there."""
    from orchestrator.cli.progress import Reporter

    limit_s = seconds("--timeout", timeout) if timeout else None
    with open_api(config) as api:
        api.cordon(name, host, reason=reason, leave="evict" if evict else "drain")
        with Reporter(api, [], prefix=True, terminal=sys.stderr.isatty()) as reporter:
            is_empty = api.emptied(name, host, hooks=reporter.hooks, timeout_s=limit_s)
        there = [] if is_empty else [run for each in api.fleets(name) for run in each.on.get(host, ())]
    if not is_empty:
        fix = "wait longer, or --evict to end tasks too" if not evict else "wait longer"
        raise RunFailed(f"{host} is not empty: {', '.join(there)}", fix=fix)
    typer.echo(f"{host}: empty", err=True)
