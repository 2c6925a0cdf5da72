"""The command that reads other tools' YAML."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from orchestrator.cli.shared import use_catalog
from orchestrator.errors import SpecError, UsageError

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
) -> None:
    """Turn other tools' YAML into ours, and name what cannot be carried over.

    Relative paths stay as they are: keep the result beside the original.
    """
    from orchestrator.importers import import_text

    use_catalog()
    found = import_text(_read(file), tool=tool, file="<stdin>" if file == "-" else file)
    if found.left_out and strict:
        raise SpecError(found.left_out)
    for problem in found.left_out:
        typer.echo(f"warning: {problem}", err=True)
    if output is None:
        typer.echo(found.text, nl=False)
    else:
        _write(output, found.text)


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
