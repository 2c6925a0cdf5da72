"""The command that writes native manifests, for a repository or a reviewer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from orchestrator.cli.render_compose import write_compose
from orchestrator.cli.render_kubernetes import write_kubernetes
from orchestrator.cli.shared import Config, load_files
from orchestrator.errors import UsageError

app = typer.Typer(rich_markup_mode=None)


@app.command()
def render(
    to: Annotated[
        Literal["compose", "kubernetes"], typer.Option("--to", help="What to write.", show_default=False)
    ],
    file: Annotated[
        list[str] | None,
        typer.Option(
            "-f", "--file", help="A file, a folder, or - for stdin; may be given often.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", help="Write it there: a file, or for kubernetes a folder.", show_default=False
        ),
    ] = None,
    access: Annotated[
        bool, typer.Option("--access", help="Write what lets Modelyard work in the cluster, and no more.")
    ] = False,
    config: Config = None,
) -> None:
    """Write what files say as native manifests; asks no place and no record."""
    if to != "kubernetes" and access:
        raise UsageError("--access is about clusters", fix="--to kubernetes --access")
    if not file and not access:
        raise UsageError("render takes files", fix="-f PATH")
    documents = load_files(file) if file else ()
    if to == "compose":
        write_compose(documents, out)
    else:
        write_kubernetes(documents, out, config=config, access=access)
