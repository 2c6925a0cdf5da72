"""The command that writes native manifests instead of starting anything."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from orchestrator.cli.shared import Files, load_files
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.catalog import ModelFacts
    from orchestrator.spec.load import Document
    from orchestrator.spec.models import Model

app = typer.Typer(rich_markup_mode=None)


@app.command()
def render(
    file: Files,
    to: Annotated[Literal["compose"], typer.Option("--to", help="What to write.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write it there.", show_default=False)
    ] = None,
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[-- ARGS]", help="What ${{ run.args }} stands for.")
    ] = None,
) -> None:
    """Write what files say as native manifests; asks no place and no record.

    It is planned for the cheapest machine of the catalog that holds it: resources name another.
    """
    documents = load_files(file, arguments or ())
    text = {"compose": _compose}[to](documents)
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        output.write_text(text, "utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {output}: {os.strerror(error.errno or 0).lower()}") from None


def _compose(documents: Sequence[Document]) -> str:
    from orchestrator.apply import plan_documents
    from orchestrator.apply.imagined import anywhere, imagined_world, vendor_of
    from orchestrator.render.compose import COMPOSE_CAN, COMPOSE_VENDORS, compose_notes, compose_text

    worlds = {
        vendor: imagined_world("docker", COMPOSE_CAN, vendor=vendor, facts=_facts)
        for vendor in COMPOSE_VENDORS
    }
    plans = [
        plan
        for document in documents
        for plan in plan_documents([anywhere(document)], worlds.get(vendor_of(document), worlds["nvidia"]))
    ]
    text = compose_text(plans)
    for problem in compose_notes(plans):
        typer.echo(f"warning: {problem}", err=True)
    return text


def _facts(model: Model) -> ModelFacts:
    """Return what a model is: from the catalog, its folder, or the hub."""
    from orchestrator.facts import Hub, resolve

    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    return resolve(model.id, revision=model.revision, hub=Hub.from_environment(os.environ), offline=offline)
