"""Commands about who may ask a server for what: tokens, projects and the audit log."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from orchestrator.cli.shared import Config, Json, Yes, confirm, open_record, seconds
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.server.desk import Office

app = typer.Typer(rich_markup_mode=None)
token = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Make, list and revoke tokens.")
project = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Make projects and limit them.")
app.add_typer(token, name="token")
app.add_typer(project, name="project")

ProjectName = Annotated[str, typer.Argument(metavar="PROJECT", show_default=False)]


@contextmanager
def open_office(config: Config) -> Iterator[Office]:
    """Give the desk for users: a server's, or that of this machine's record."""
    if os.environ.get("MODELYARD_URL"):
        from contextlib import closing

        from orchestrator.client import from_environment

        remote = from_environment(os.environ)
        assert remote is not None  # it names one: asked above
        with closing(remote):
            yield remote
        return
    from orchestrator.server.desk import DeskHere

    with open_record(config) as api:
        yield DeskHere(api.store.access)


@token.command("create")
def create_token(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose it is.", show_default=False)],
    role: Annotated[
        Literal["viewer", "operator", "admin"], typer.Option("--role", help="What it may do.")
    ] = "operator",
    of: Annotated[str, typer.Option("--project", help="The project it opens; '*' is every one.")] = "main",
    lasts: Annotated[
        str,
        typer.Option("--expires", metavar="DURATION", help="For how long, for example 30d; unset: no end."),
    ] = "",
    config: Config = None,
) -> None:
    """Make a token and print it: it is shown this once."""
    from orchestrator.wire import TokenRequest

    lasts_s = seconds("--expires", lasts) if lasts else None
    asked = TokenRequest(name=name, role=role, project=of, lasts_s=lasts_s)
    with open_office(config) as office:
        typer.echo(office.new_token(asked).token)


@token.command("list")
def list_tokens(json: Json = False, config: Config = None) -> None:
    """List tokens: what each opens, and no part of what opens."""
    with open_office(config) as office:
        found = office.tokens()
    from orchestrator.render.users import tokens_json, tokens_text

    typer.echo(tokens_json(found) if json else tokens_text(found))


@token.command("revoke")
def revoke_token(
    id: Annotated[str, typer.Argument(metavar="ID", help="As token list shows it.", show_default=False)],
    config: Config = None,
) -> None:
    """Let a token open nothing from now on."""
    with open_office(config) as office:
        office.revoke(id)


@project.command("list")
def list_projects(json: Json = False, config: Config = None) -> None:
    """List projects and their limits."""
    with open_office(config) as office:
        found = office.projects()
    from orchestrator.render.users import projects_json, projects_text

    typer.echo(projects_json(found) if json else projects_text(found))


@project.command("set")
def set_project(
    name: ProjectName,
    gpus: Annotated[int | None, typer.Option("--gpus", min=0, help="Most GPUs at once.")] = None,
    usd_hour: Annotated[float | None, typer.Option("--usd-hour", min=0, help="Most dollars an hour.")] = None,
    backend: Annotated[
        list[str] | None, typer.Option("--backend", help="One it may use; unset: all. May be given often.")
    ] = None,
    config: Config = None,
) -> None:
    """Make a project, or give it these limits in place of those it has."""
    from orchestrator.spec.values import NAME_RULE
    from orchestrator.store.values import Limits
    from orchestrator.wire import ProjectBody

    limits = Limits(gpus, usd_hour, None if backend is None else tuple(backend))
    try:
        body = ProjectBody(name=name, limits=limits)
    except ValueError as error:
        if "limits" in str(error):  # the others are options that hold themselves
            raise UsageError(f"--usd-hour: {usd_hour} holds nobody", fix="for example 12.50") from None
        raise UsageError(f"{name!r} is no name for a project", fix=NAME_RULE) from None
    with open_office(config) as office:
        office.put_project(body)


@project.command("delete")
def delete_project(name: ProjectName, yes: Yes = False, config: Config = None) -> None:
    """Forget a project that holds nothing, its tokens and its secrets."""
    with open_office(config) as office:
        confirm(f"delete project {name}, its tokens and its secrets?", yes=yes)
        office.delete_project(name)


@app.command()
def audit(
    after: Annotated[int, typer.Option("--after", min=0, help="Only lines behind this serial.")] = 0,
    json: Json = False,
    config: Config = None,
) -> None:
    """Show who changed what, oldest first."""
    with open_office(config) as office:
        found = office.audit(after=after)
    from orchestrator.render.users import audit_json, audit_text

    typer.echo(audit_json(found) if json else audit_text(found))
