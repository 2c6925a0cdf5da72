"""Completion scripts, as typer writes them."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

app = typer.Typer(rich_markup_mode=None)


@app.command()
def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"], typer.Argument(help="Whose.", show_default=False)],
) -> None:
    """Print a completion script for a shell.

    For bash: modelyard completion bash > ~/.local/share/bash-completion/completions/modelyard
    """
    import typer.completion as scripts

    found = scripts.get_completion_script(  # type: ignore[attr-defined]  # typer's own --show-completion
        prog_name="modelyard", complete_var="_MODELYARD_COMPLETE", shell=shell
    )
    typer.echo(found)
