"""Commands about facts: what the catalog knows, and prices of the user's own over it."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from orchestrator.cli.shared import Json, catalog_folder, use_catalog
from orchestrator.errors import NotFound, SpecError, UsageError

if TYPE_CHECKING:
    from orchestrator.render.catalog import Fact, Kind

app = typer.Typer(rich_markup_mode=None)
catalog = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Show the facts that plans rest on, and add prices to them.",
)
app.add_typer(catalog, name="catalog")


@catalog.command("list")
def list_facts(
    kind: Annotated[
        Literal["accelerators", "models", "images", "prices"],
        typer.Argument(metavar="accelerators|models|images|prices", show_default=False),
    ],
    json: Json = False,
) -> None:
    """List what the catalog knows of a kind."""
    from orchestrator.render.catalog import facts_json, facts_text

    use_catalog()
    facts = _facts(kind)
    typer.echo(facts_json({kind: facts}) if json else facts_text(kind, facts))


@catalog.command("show")
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False)], json: Json = False
) -> None:
    """Show all that is known of an accelerator, a model, an image or a price, with its source."""
    from orchestrator.render.catalog import fact_text, facts_json

    use_catalog()
    found: dict[Kind, list[Fact]] = {}
    for kind, fact in _named(name):
        found.setdefault(kind, []).append(fact)
    if not found:
        near = difflib.get_close_matches(name.casefold(), _names(), 1)
        raise NotFound(
            f"nothing in the catalog is called {name!r}",
            fix=f"did you mean {_names()[near[0]]!r}?"
            if near
            else "modelyard catalog list accelerators, or models, images, prices",
        )
    facts = [fact for several in found.values() for fact in several]
    typer.echo(facts_json(found) if json else "\n\n".join(map(fact_text, facts)))


@catalog.command("import")
def import_prices(
    file: Annotated[Path, typer.Argument(metavar="FILE", show_default=False)],
    provider: Annotated[str, typer.Option(help="Whose prices they are.", show_default=False)],
    as_of: Annotated[
        str, typer.Option(metavar="YYYY-MM-DD", help="The day of the list.", show_default=False)
    ],
) -> None:
    """Put a price list of gpuhunt's or SkyPilot's into your own catalog, in place of that provider's.

    Lines that are no price (0, NaN, none) or name an unknown accelerator are named and left out.
    """
    from orchestrator.catalog.pricelists import read_price_list, replace_prices

    use_catalog()
    listed = read_price_list(_read(file), provider=provider, as_of=_day(as_of), file=str(file))
    for problem in listed.refused:
        typer.echo(f"warning: {problem}", err=True)
    if not listed.rows:
        if listed.refused:
            raise SpecError(listed.refused)
        raise UsageError(f"{file} has no prices of machines with accelerators")
    path = replace_prices(catalog_folder(), listed.rows)
    whose = ", ".join(sorted({row.provider for row in listed.rows}))
    typer.echo(f"{path}: {len(listed.rows)} prices of {whose}, {len(listed.refused)} lines refused")


def _facts(kind: Kind) -> list[Fact]:
    from orchestrator.catalog import accelerators, images, models, prices

    tables: dict[Kind, Iterator[Fact]] = {
        "accelerators": iter(accelerators().values()),
        "models": iter(models().values()),
        "images": iter(images()),
        "prices": iter(prices()),
    }
    return list(tables[kind])


def _named(name: str) -> Iterator[tuple[Kind, Fact]]:
    """Yield whatever goes by ``name``: one of its own, or the images of an engine."""
    from orchestrator.catalog import accelerator, images, model, prices
    from orchestrator.render.catalog import name_of

    if (device := accelerator(name)) is not None:
        yield "accelerators", device
    if (facts := model(name)) is not None:
        yield "models", facts
    for image in images():
        if name in (name_of(image), image.engine, image.reference, image.repository):
            yield "images", image
    for price in prices():
        if name == price.name:
            yield "prices", price


def _names() -> dict[str, str]:
    """Return every name by its lower case, to suggest from."""
    from orchestrator.catalog import known_names, models, prices

    names = (*known_names(), *models(), *(price.name for price in prices()))
    return {name.casefold(): name for name in sorted(names, reverse=True)}  # capitals win


def _read(file: Path) -> str:
    try:
        return file.read_text("utf-8-sig")
    except OSError as error:
        raise UsageError(f"cannot read {file}: {os.strerror(error.errno or 0).lower()}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{file} is not UTF-8", fix="save the file as UTF-8") from None


def _day(text: str) -> date:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise UsageError(f"--as-of {text}: no day", fix="write it as 2026-11-25") from None
    if day > datetime.now(UTC).date():
        raise UsageError(f"--as-of {text}: that day is yet to come")
    return day
