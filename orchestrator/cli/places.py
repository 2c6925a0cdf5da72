"""Commands about places and what they hold."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.shared import Config, Json, Yes, confirm, open_api, open_record
from orchestrator.errors import AuthFailed, BackendError, UsageError

if TYPE_CHECKING:
    from orchestrator.backend import Check

app = typer.Typer(rich_markup_mode=None)
backend = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Check the configured backends.")
volume = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="List and delete volumes.")
secret = typer.Typer(
    rich_markup_mode=None, no_args_is_help=True, help="Set, list, delete and reseal secrets."
)
app.add_typer(backend, name="backend")
app.add_typer(volume, name="volume")
app.add_typer(secret, name="secret")


@app.command()
def offers(json: Json = False, config: Config = None) -> None:
    """Show what can be had where, for how much."""
    with open_api(config) as api:
        found = api.offers()
    from orchestrator.render.runs import offers_json, offers_text

    typer.echo(offers_json(found) if json else offers_text(found))
    if refusal := found.refusal():
        raise typer.Exit(refusal.exit_code)


def _exit_where_unwell(checks: Sequence[tuple[str, Check]]) -> None:
    """End as what failed does: denied where nothing but credentials and permissions lack."""
    failed = [check for _, check in checks if not check.ok]
    if failed:
        raise typer.Exit((AuthFailed if all(check.denied for check in failed) else BackendError).exit_code)


@backend.command("check")
def check(json: Json = False, config: Config = None) -> None:
    """Look whether every configured backend is usable."""
    with open_api(config) as api:
        found = api.check()
    from orchestrator.render.runs import checks_json, checks_text

    typer.echo(checks_json(found) if json else checks_text(found))
    _exit_where_unwell(found)


@app.command()
def gc(
    remove: Annotated[
        bool, typer.Option("--remove", help="Remove them; without it they are listed.")
    ] = False,
    running: Annotated[
        bool, typer.Option("--running", help="With --remove: those too that still run.")
    ] = False,
    terminate: Annotated[
        bool, typer.Option("--terminate", help="End rented machines that serve no run.")
    ] = False,
    yes: Yes = False,
    json: Json = False,
    config: Config = None,
) -> None:
    """Find what nobody owns, and remove it."""
    from orchestrator.backend import Phase
    from orchestrator.render.runs import orphans_json, orphans_text

    if running and not remove:
        raise UsageError("--running says what --remove takes", fix="add --remove")
    with open_api(config) as api:
        orphans, machines = api.orphans(), api.strays()
        found, strays = orphans.items, machines.items
        silent = {**machines.silent, **orphans.silent}
        typer.echo(orphans_json(found, strays, silent) if json else orphans_text(found, strays, silent))
        if terminate and strays:
            confirm(f"terminate {len(strays)} machines?", yes=yes)
            api.terminate(strays)
            typer.echo(f"terminated {len(strays)}", err=True)
        doomed = [orphan for orphan in found if running or orphan.instance.phase is Phase.EXITED]
        if remove and found:
            if doomed:
                confirm(f"remove {len(doomed)} of them?", yes=yes)
            api.remove_orphans(doomed)
            left = len(found) - len(doomed)
            still = f"; {left} still running: --remove --running ends them" if left else ""
            typer.echo(f"removed {len(doomed)}{still}", err=True)
    if silent:  # what is there nobody knows
        raise typer.Exit(orphans.exit_code or machines.exit_code)


@app.command()
def doctor(json: Json = False, config: Config = None) -> None:
    """Look whether everything here is well."""
    with open_api(config) as api:
        found = api.diagnose()
    from orchestrator.render.runs import checks_json, checks_text

    typer.echo(checks_json(found) if json else checks_text(found))
    _exit_where_unwell(found)


@volume.command("list")
def list_volumes(json: Json = False, config: Config = None) -> None:
    """List volumes."""
    with open_api(config) as api:
        found = api.volumes()
    from orchestrator.render.runs import volumes_json, volumes_text

    typer.echo(volumes_json(found) if json else volumes_text(found))


@volume.command("delete")
def delete_volume(
    name: Annotated[str, typer.Argument(metavar="VOLUME", show_default=False)],
    yes: Yes = False,
    config: Config = None,
) -> None:
    """Delete a volume and what it holds."""
    with open_api(config) as api:
        confirm(f"delete volume {name} and what it holds?", yes=yes)
        api.delete_volume(name)
    typer.echo(f"volume {name}: deleted", err=True)


SecretName = Annotated[str, typer.Argument(metavar="NAME", show_default=False)]


@secret.command("set")
def set_secret(name: SecretName, config: Config = None) -> None:
    """Keep a secret, encrypted; its value is read from stdin, or asked for without showing it.

    A value on the command line would stand in the process list and the shell's history.
    """
    if sys.stdin.isatty():
        value = typer.prompt(f"value of {name}", hide_input=True, err=True)
    else:
        value = sys.stdin.read().removesuffix("\n")
    with open_api(config) as api:
        api.set_secret(name, value)
    typer.echo(f"secret {name}: set", err=True)


@secret.command("list")
def list_secrets(json: Json = False, config: Config = None) -> None:
    """List the names of secrets; values are shown nowhere."""
    with open_api(config) as api:
        found = api.secrets()
    from orchestrator.render.runs import secrets_json, secrets_text

    typer.echo(secrets_json(found) if json else secrets_text(found))


@secret.command("delete")
def delete_secret(name: SecretName, config: Config = None) -> None:
    """Forget a secret."""
    with open_api(config) as api:
        api.delete_secret(name)
    typer.echo(f"secret {name}: deleted", err=True)


@secret.command("rotate")
def rotate_secrets(config: Config = None) -> None:
    """Seal every secret anew, where the record is.

    A SQLite record makes a new key itself. A shared one takes the first of the keys in
    MODELYARD_SECRET_KEY, which are parted by commas; the others only open what they sealed.
    """
    if os.environ.get("MODELYARD_URL") and not os.environ.get("MODELYARD_DATABASE_URL"):
        raise UsageError(
            "secrets are sealed anew where the record is, and MODELYARD_URL names a server elsewhere",
            fix="on the server's machine, with its MODELYARD_DATABASE_URL and without MODELYARD_URL",
        )
    from orchestrator.server.desk import DeskHere

    with open_record(config) as api:
        many = api.store.secrets.rotate()
        DeskHere(api.store.access).note("rotate_secrets", "200", "")
        typer.echo(f"sealed anew: {many}", err=True)
