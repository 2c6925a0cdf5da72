"""The command that writes native manifests, for a repository or a reviewer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from orchestrator.cli.render_compose import write_compose
from orchestrator.cli.shared import Files, load_files

app = typer.Typer(rich_markup_mode=None)


@app.command()
def render(
    file: Files,
    to: Annotated[Literal["compose"], typer.Option("--to", help="What to write.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Write it there.", show_default=False)
    ] = None,
) -> None:
    """Write what files say as native manifests; asks no place and no record."""
    {"compose": write_compose}[to](load_files(file), out)
