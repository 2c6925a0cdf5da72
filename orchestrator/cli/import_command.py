"""The command that reads other tools' YAML."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from orchestrator.cli.shared import facts_by, use_catalog
from orchestrator.errors import SpecError, UsageError

if TYPE_CHECKING:
    from orchestrator.importers import Imported, Profiles

app = typer.Typer(rich_markup_mode=None)


@app.command("import")
def import_(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="The file, or - for stdin.", show_default=False)
    ],
    tool: Annotated[
        Literal["dstack", "skypilot", "compose"],
        typer.Option("--from", help="Whose file it is.", show_default=False),
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Write it there.", show_default=False),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse a file that cannot be carried over whole.")
    ] = False,
    profiles: Annotated[
        Path | None,
        typer.Option("--profiles", help="dstack's profiles.yml, to fill in from.", show_default=False),
    ] = None,
    profile: Annotated[
        str, typer.Option("--profile", metavar="NAME", help="The profile that is meant; unset: the default.")
    ] = "",
    suggest: Annotated[
        bool,
        typer.Option(
            "--suggest",
            help="Where commands run a known engine, add the model form it could be, and what it needs.",
        ),
    ] = False,
) -> None:
    """Turn other tools' YAML into ours, and name what cannot be carried over.

    Relative paths stay as they are: keep the result beside the original. Suggestions are comments in it, or
    with -o documents in a file of their own, such as serve.suggested.yaml.
    """
    from orchestrator.importers import import_text

    use_catalog()
    defaults = _profiles(profiles, profile, tool)
    found = import_text(_read(file), tool=tool, file="<stdin>" if file == "-" else file, profiles=defaults)
    if found.left_out and strict:
        raise SpecError(found.left_out)
    for problem in found.left_out:
        typer.echo(f"warning: {problem}", err=True)
    if suggest:
        _write_suggested(found, file, output)
    elif output is None:
        typer.echo(found.text, nl=False)
    else:
        _write(output, found.text)


def _write_suggested(found: Imported, file: str, output: Path | None) -> None:
    """Write what was imported, and beside it what its commands could be."""
    from orchestrator.apply.suggesting import suggest_all
    from orchestrator.render.suggestions import suggestion_text

    folder = None if file == "-" else Path(file).parent
    facts = facts_by({**os.environ, "HF_HUB_OFFLINE": "1"})
    suggested = suggest_all(found, folder=folder, facts=facts)
    if not suggested:
        typer.echo("nothing to suggest: no command starts an engine that is known here", err=True)
    if output is None:
        parts = [found.text, *(suggestion_text(each, commented=True) for each in suggested)]
        typer.echo("\n".join(parts), nl=False)
        return
    _write(output, found.text)
    if made := [each for each in suggested if each.text]:
        beside = output.with_name(f"{output.stem}.suggested{output.suffix}")
        _write(beside, "---\n".join(suggestion_text(each, commented=False) for each in made))
        typer.echo(f"suggested: {beside}", err=True)
    for each in suggested:
        if not each.text:
            typer.echo(suggestion_text(each, commented=True), nl=False, err=True)


def _profiles(file: Path | None, name: str, tool: str) -> Profiles | None:
    """Return the profiles that a document is filled in from, None for none.

    Raises:
        UsageError: the tool has no profiles, or a name is given without a file.
    """
    if file is None and not name:
        return None
    if tool != "dstack":
        raise UsageError(f"{tool} has no profiles", fix="--profiles goes with --from dstack")
    if file is None:
        raise UsageError("--profile without --profiles", fix="--profiles .dstack/profiles.yml")
    from orchestrator.importers import Profiles

    return Profiles(_read(str(file)), str(file), name)


def _read(file: str) -> str:
    try:
        content = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        return content.decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"cannot read {file}: {os.strerror(error.errno or 0).lower()}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{file} is not UTF-8", fix="save the file as UTF-8") from None


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {os.strerror(error.errno or 0).lower()}") from None
