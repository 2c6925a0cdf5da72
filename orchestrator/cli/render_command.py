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
    what: Annotated[
        Literal["rbac"] | None,
        typer.Argument(
            help="What lets Modelyard work in a cluster, and no more; beside the files, or instead.",
            show_default=False,
        ),
    ] = None,
    to: Annotated[
        Literal["compose", "kubernetes"] | None,
        typer.Option("--to", help="What to write.", show_default=False),
    ] = None,
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
    backend: Annotated[
        str | None,
        typer.Option("--backend", help="The place of type kubernetes to write for.", show_default=False),
    ] = None,
    config: Config = None,
) -> None:
    """Write what files say as native manifests; asks no place and no record."""
    if what and to == "compose":
        raise UsageError("compose knows no roles", fix="modelyard render rbac")
    if backend and to == "compose":
        raise UsageError("compose is written for no place", fix="leave --backend out")
    if not file and not what:
        raise UsageError("render takes files", fix="-f PATH")
    if not to and not what:
        raise UsageError("render takes a language", fix="--to kubernetes or --to compose")
    documents = load_files(file) if file else ()
    if to == "compose":
        write_compose(documents, out, config=config)
    else:
        write_kubernetes(documents, out, config=config, backend=backend, access=what == "rbac")
