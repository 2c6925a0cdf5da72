"""What ``render --to kubernetes`` does: a cluster's own objects, without asking the cluster."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from orchestrator.cli.shared import default_config, facts_by
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.spec.load import Document


def write_kubernetes(
    documents: Sequence[Document], folder: Path | None, *, config: Path | None, access: bool
) -> None:
    """Write the documents' objects to stdout, or one file each into ``folder``.

    The first configured place of type kubernetes says how; without one, nothing is said. With
    ``access`` the roles that Modelyard takes there are written as well.

    Raises:
        UsageError: the folder cannot be written.
    """
    from orchestrator.apply.rendering import render_documents, renderer_of
    from orchestrator.places import Place, build, read_mirrors, read_places

    config = config or default_config()
    configured = [p for p in read_places(config) if p.type == "kubernetes"]
    place = build(configured[0] if configured else Place("kubernetes", "kubernetes"))
    texts = {"rbac": renderer_of(place).access_manifest().text} if access else {}
    mirrors = read_mirrors(config)
    facts = facts_by(mirrors.environment(os.environ))
    for made in render_documents(documents, place, facts=facts, mirrors=mirrors):
        texts[made.name] = made.rendering.text
        for note in made.rendering.notes:
            typer.echo(f"{made.name}: {note}", err=True)
    if folder is None:
        typer.echo("".join(texts.values()), nl=False)
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / f"{name}.yaml").write_text(text, "utf-8")
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {os.strerror(error.errno or 0).lower()}") from None
