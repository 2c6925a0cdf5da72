"""Commands about files: plan, diff, validate, schema."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from orchestrator.cli.shared import Config, Files, Json, load_files, open_api
from orchestrator.errors import NothingFits

app = typer.Typer(rich_markup_mode=None)

CHANGES = 2
"""The exit code that means "there are changes", with --detailed-exitcode."""

Detailed = Annotated[
    bool,
    typer.Option("--detailed-exitcode", help="End with 2 when there are changes, 0 when there are none."),
]
Rerun = Annotated[bool, typer.Option("--rerun", help="Start finished tasks again.")]
Arguments = Annotated[
    list[str] | None, typer.Argument(metavar="[-- ARGS]", help="What ${{ run.args }} stands for.")
]


@app.command()
def plan(
    file: Files,
    arguments: Arguments = None,
    json: Json = False,
    detailed_exitcode: Detailed = False,
    rerun: Rerun = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show the arithmetic, and what would admit other machines.")
    ] = False,
    sort: Annotated[
        Literal["price", "throughput", "latency"], typer.Option(help="What the chosen offer is best in.")
    ] = "price",
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse specs that contradict their model.")
    ] = False,
    config: Config = None,
) -> None:
    """Show what apply would do, and why."""
    documents = load_files(file, arguments or ())
    try:
        with open_api(config) as api:
            plans = api.plan(documents, rerun=rerun, sort=sort, strict=strict)
    except NothingFits as error:
        if explain and error.why_not:
            from orchestrator.render.explained import why_not_text

            typer.echo(why_not_text(error.why_not), err=True)
        raise
    from orchestrator.render.plans import plan_json, plan_text

    typer.echo(plan_json(plans, explain=explain) if json else plan_text(plans, explain=explain))
    if detailed_exitcode and any(plan.action != "unchanged" for plan in plans):
        raise typer.Exit(CHANGES)


@app.command()
def diff(file: Files, json: Json = False, detailed_exitcode: Detailed = False, config: Config = None) -> None:
    """Show field by field how the files differ from what is on record."""
    documents = load_files(file)
    with open_api(config) as api:
        found = api.diff(documents)
    from orchestrator.render.plans import diff_json, diff_text

    typer.echo(diff_json(found) if json else diff_text(found))
    if detailed_exitcode and any(difference.is_change for difference in found):
        raise typer.Exit(CHANGES)


@app.command()
def validate(file: Files, json: Json = False) -> None:
    """Check files and report every problem; needs no backend."""
    from orchestrator.errors import SpecError
    from orchestrator.render.problems import problems_json

    try:
        documents = load_files(file)
    except SpecError as error:
        if json:
            typer.echo(problems_json(error.problems))
            raise typer.Exit(error.exit_code) from None
        raise
    if json:
        typer.echo(problems_json(()))
        return
    for document in documents:
        typer.echo(f"{document.position.file}: {document.spec.type} {document.spec.name}: ok")


@app.command()
def schema() -> None:
    """Print the JSON Schema of the documents, for editors."""
    import json as json_module

    from orchestrator.spec.schema import json_schema

    typer.echo(json_module.dumps(json_schema(), indent=2))
