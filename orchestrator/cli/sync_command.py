"""Commands about the repository that a server applies continuously."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import typer

from orchestrator.cli.shared import Json
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.client import Remote

app = typer.Typer(rich_markup_mode=None)
sync = typer.Typer(
    rich_markup_mode=None, no_args_is_help=True, help="Show and hasten what a server applies from git."
)
app.add_typer(sync, name="sync")


@contextmanager
def _server() -> Iterator[Remote]:
    from orchestrator.client import from_environment

    remote = from_environment(os.environ)
    if remote is None:
        raise UsageError("a server syncs, and none is named", fix="set MODELYARD_URL and MODELYARD_TOKEN")
    with closing(remote):
        yield remote


@sync.command("status")
def status(json: Json = False) -> None:
    """Show what became of the last commits, newest first."""
    with _server() as remote:
        found = remote.sync_status()
    from orchestrator.render.users import sync_json, sync_text

    typer.echo(sync_json(found) if json else sync_text(found))


@sync.command("now")
def now() -> None:
    """Have the server look at the repository at once, and start again what ended by itself."""
    with _server() as remote:
        remote.sync_now()
