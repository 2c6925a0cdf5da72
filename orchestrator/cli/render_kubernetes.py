"""What ``render --to kubernetes`` does: a cluster's own objects, without asking the cluster."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from orchestrator.cli.shared import default_config
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.catalog import ModelFacts
    from orchestrator.spec.load import Document
    from orchestrator.spec.models import Model


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
    from orchestrator.places import Place, build, read_places

    configured = [p for p in read_places(config or default_config()) if p.type == "kubernetes"]
    place = build(configured[0] if configured else Place("kubernetes", "kubernetes"))
    texts = {"rbac": renderer_of(place).access_manifest().text} if access else {}
    for made in render_documents(documents, place, facts=_facts):
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


def _facts(model: Model) -> ModelFacts:
    """Return what a model is: from the catalog, its folder, or the hub."""
    from orchestrator.facts import Hub, resolve

    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    return resolve(model.id, revision=model.revision, hub=Hub.from_environment(os.environ), offline=offline)
