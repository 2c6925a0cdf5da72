"""What ``render --to kubernetes`` does: a cluster's own objects, without asking the cluster."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from orchestrator.cli.shared import default_config, facts_by
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.spec.load import Document


def write_kubernetes(
    documents: Sequence[Document],
    folder: Path | None,
    *,
    config: Path | None,
    backend: str | None,
    access: bool,
) -> None:
    """Write the documents' objects to stdout, or into ``folder``, one file for each name.

    The place called ``backend`` says how; without it the first of type kubernetes that a document
    names, else the first that is configured, and where none is, nothing is said. With ``access`` the
    roles that Modelyard takes there are written as well.

    Raises:
        UsageError: there is no such place, or the folder cannot be written.
    """
    from orchestrator.apply.rendering import render_documents, renderer_of
    from orchestrator.places import Place, build, read_mirrors, read_places

    config = config or default_config()
    configured = [p for p in read_places(config) if p.type == "kubernetes"]
    places = {p.name: p for p in configured or [Place("kubernetes", "kubernetes")]}
    if backend is not None and backend not in places:
        raise UsageError(f"no backend {backend!r} of type kubernetes", fix=f"one of {', '.join(places)}")
    first = backend or next(iter(places))
    place = cache(lambda name: build(places[name]))
    texts: dict[str, str] = {}
    if access:
        texts["rbac"] = renderer_of(place(first)).access_manifest().text
        if backend is None and len(places) > 1:
            typer.echo(f"rbac: for backend {first!r}, --backend names another", err=True)
    mirrors = read_mirrors(config)
    facts = facts_by(mirrors.environment(os.environ))
    for document in documents:
        name = backend or next((name for name in _wishes(document) if name in places), first)
        for made in render_documents([document], place(name), facts=facts, mirrors=mirrors):
            # a volume may be called as a run is
            texts[made.name] = texts.get(made.name, "") + made.rendering.text
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


def _wishes(document: Document) -> Sequence[str]:
    """Return the places that a document names, best first; a volume has one at most."""
    spec = document.spec
    return getattr(spec, "backends", None) or [getattr(spec, "backend", None) or ""]
