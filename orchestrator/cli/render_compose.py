"""``render --to compose``: planned against an imagined machine, so that it is the same everywhere."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from orchestrator.cli.shared import default_config, facts_by
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.spec.load import Document


def write_compose(documents: Sequence[Document], out: Path | None, *, config: Path | None) -> None:
    """Write the documents as one compose file to ``out``, or to stdout; what it lacks goes to stderr.

    A model is planned for the cheapest machine of the catalog that holds it: resources name another.

    Raises:
        NothingFits: a document needs what one machine with Docker cannot give.
        SpecError: it says what a compose file cannot.
        UsageError: there are no documents, or ``out`` cannot be written.
    """
    from orchestrator.apply import plan_documents
    from orchestrator.apply.imagined import anywhere, imagined_world, vendor_of
    from orchestrator.places import read_mirrors
    from orchestrator.render.compose import COMPOSE_CAN, COMPOSE_VENDORS, compose_notes, compose_text

    if not documents:
        raise UsageError("compose is written from files", fix="modelyard render -f PATH --to compose")
    mirrors = read_mirrors(config or default_config())
    facts = facts_by(mirrors.environment(os.environ))
    worlds = {
        vendor: imagined_world("docker", COMPOSE_CAN, vendor=vendor, facts=facts, mirrors=mirrors)
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
    _write(text, out)


def _write(text: str, out: Path | None) -> None:
    if out is None:
        typer.echo(text, nl=False)
        return
    try:
        out.write_text(text, "utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {out}: {os.strerror(error.errno or 0).lower()}") from None
