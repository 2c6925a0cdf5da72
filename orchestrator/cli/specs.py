"""Commands about files: plan, diff, validate, drift, schema."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from orchestrator.cli.locking import Locked, Locking, WriteLock, locked_models, save_locks, write_text
from orchestrator.cli.shared import (
    Config,
    Files,
    Json,
    database_url,
    default_config,
    load_files,
    open_api,
    problems_of,
    seconds,
)
from orchestrator.errors import ModelyardError, NothingFits, Problem, SpecError, UsageError

if TYPE_CHECKING:
    from orchestrator.api import Plans
    from orchestrator.spec.load import Document

app = typer.Typer(rich_markup_mode=None)

CHANGES = 2
"""The exit code that means "there are changes", with --detailed-exitcode."""

Detailed = Annotated[
    bool,
    typer.Option("--detailed-exitcode", help="End with 2 when there are changes, 0 when there are none."),
]
Rerun = Annotated[bool, typer.Option("--rerun", help="Start finished tasks again.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with training that ended, from its last checkpoint.")
]
Arguments = Annotated[
    list[str] | None, typer.Argument(metavar="[-- ARGS]", help="What ${{ run.args }} stands for.")
]


SetName = Annotated[
    str, typer.Option("--set", metavar="NAME", help="The set the files are, and what --prune looks at.")
]
Prune = Annotated[
    bool, typer.Option("--prune", help="Delete what was applied under the set and is no longer in it.")
]
Take = Annotated[bool, typer.Option("--take", help="Take over into the set what another set has.")]
AllowDestroy = Annotated[
    bool, typer.Option("--allow-destroy", help="Let a prune delete volumes, with what they hold.")
]
AllowReplace = Annotated[
    bool, typer.Option("--allow-replace", help="Let a running task be stopped and started anew.")
]
Format = Literal["text", "json", "md", "github"]
FormatOption = Annotated[
    Format,
    typer.Option("--format", help="md is for a comment on a pull request, github for its annotations."),
]


@app.command()
def plan(
    file: Files,
    arguments: Arguments = None,
    json: Json = False,
    form: FormatOption = "text",
    detailed_exitcode: Detailed = False,
    rerun: Rerun = False,
    resume: Resume = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show the arithmetic, and what would admit other machines.")
    ] = False,
    sort: Annotated[
        Literal["price", "throughput", "latency"], typer.Option(help="What the chosen offer is best in.")
    ] = "price",
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse specs that contradict their model, and unset variables.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Save the plan; apply FILE then does exactly that.", show_default=False),
    ] = None,
    expires: Annotated[
        str,
        typer.Option(
            "--expires", metavar="DURATION",
            help="How long a saved plan may be applied; unset: to the end of tomorrow, UTC.",
        ),
    ] = "",
    set_name: SetName = "",
    prune: Prune = False,
    take: Take = False,
    allow_destroy: AllowDestroy = False,
    allow_replace: AllowReplace = False,
    lock: WriteLock = False,
    locked: Locked = False,
    config: Config = None,
) -> None:  # fmt: skip
    """Show what apply would do, and why."""
    from orchestrator.apply import Consent, Scope

    form = "json" if json else form
    scope, consent = Scope(set_name, prune, take), Consent(allow_destroy, allow_replace)
    lasts_s = seconds("--expires", expires) if expires else None
    with _annotating(form), _explaining(explain), open_api(config) as api:
        documents = load_files(file, arguments or ())
        locking = Locking(tuple(file), lock, locked)
        plans, locks = locking.plan(
            api, documents, rerun=rerun, resume=resume, sort=sort, strict=strict, scope=scope
        )
        save_locks(locks)
        if out is not None:
            from orchestrator.apply.lock import by_lock

            beside = tuple(by_lock(file, documents))
            _save(out, api.save(plans, scope=scope, consent=consent, lasts_s=lasts_s, locks=beside))
    typer.echo(_shown(plans, form, explain=explain))
    problems = problems_of(plans)
    for problem in problems:
        typer.echo(str(problem), err=True)
    if problems and strict:
        raise typer.Exit(SpecError(problems).exit_code)
    if detailed_exitcode and any(plan.action != "unchanged" or getattr(plan, "drift", ()) for plan in plans):
        raise typer.Exit(CHANGES)


@contextmanager
def _annotating(form: Format) -> Iterator[None]:
    """Print what goes wrong as annotations or as a comment too, where that is what the output is for."""
    try:
        yield
    except ModelyardError as error:
        if form == "md":
            from orchestrator.render.markdown import error_markdown

            typer.echo(error_markdown(error))
        if form == "github":
            from orchestrator.render.github import error_github

            typer.echo(error_github(error))
        raise


@contextmanager
def _explaining(explain: bool) -> Iterator[None]:
    try:
        yield
    except NothingFits as error:
        for each in (error, *error.also):
            if explain and each.why_not:
                from orchestrator.render.explained import why_not_text

                typer.echo(why_not_text(each.why_not), err=True)
        raise


def _save(out: Path, text: str) -> None:
    write_text(out, text)
    typer.echo(f"saved: modelyard apply {out}", err=True)


def _shown(plans: Plans, form: Format, *, explain: bool) -> str:
    if form == "md":
        from orchestrator.render.markdown import plan_markdown

        return plan_markdown(plans)
    if form == "github":
        from orchestrator.render.github import plan_github

        return plan_github(plans)
    from orchestrator.render.plans import plan_json, plan_text

    return plan_json(plans, explain=explain) if form == "json" else plan_text(plans, explain=explain)


@app.command()
def diff(file: Files, json: Json = False, detailed_exitcode: Detailed = False, config: Config = None) -> None:
    """Show field by field how the files differ from what is on record."""
    documents = load_files(file)
    with open_api(config) as api:
        found = api.diff(documents, models=locked_models(file, documents))
    from orchestrator.render.plans import diff_json, diff_text

    typer.echo(diff_json(found) if json else diff_text(found))
    if detailed_exitcode and any(difference.is_change for difference in found):
        raise typer.Exit(CHANGES)


@app.command()
def drift(json: Json = False, detailed_exitcode: Detailed = False, config: Config = None) -> None:
    """Show where the places differ from the record; changes neither."""
    with open_api(config) as api:
        found = api.drift()
    from orchestrator.render.drift import drift_json, drift_text

    typer.echo(drift_json(found) if json else drift_text(found))
    if found.silent:  # what is there nobody knows
        raise typer.Exit(found.exit_code)
    if detailed_exitcode and found.items:
        raise typer.Exit(CHANGES)


@app.command()
def fmt(
    file: Files,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; end with 1 where a file is in another form.")
    ] = False,
) -> None:
    """Bring files into one form; what they say stays as it is.

    Comments, order and quotes stay too.
    """
    if not file:
        raise UsageError("no files given", fix="name them with -f, for example -f configs/")
    if file == ["-"]:
        from orchestrator.spec.format import formatted

        text = typer.get_text_stream("stdin").read()
        made = formatted(text, file="<stdin>")
        typer.echo(made, nl=False)
        raise typer.Exit(int(check and made != text))
    from orchestrator.spec.format import format_files

    changed, many = format_files(file, write=not check)
    for each in changed:
        typer.echo(each)
    done = "in another form" if check else "formatted"
    typer.echo(f"{len(changed)} of {many} files {done}", err=True)
    raise typer.Exit(int(check and bool(changed)))


@app.command()
def validate(
    file: Files,
    json: Json = False,
    form: Annotated[
        Literal["text", "json", "github"],
        typer.Option("--format", help="github is for the annotations of a pull request."),
    ] = "text",
    config: Config = None,
) -> None:
    """Check files and report every problem; needs no backend."""
    from orchestrator.render.problems import problems_json
    from orchestrator.spec.notices import notices

    json = json or form == "json"
    places = _place_names(config or default_config())
    try:
        with _annotating(form):
            documents = load_files(
                file,
                also=lambda each, every: (
                    *unknown_places(each, places and places | fleets_of(every)),
                    *unfit(each),
                ),
            )
    except SpecError as error:
        if json:
            typer.echo(problems_json(error.problems))
            raise typer.Exit(error.exit_code) from None
        raise
    found = notices(documents)
    if json:
        typer.echo(problems_json((), notices=found))
        return
    if form == "github":
        from orchestrator.render.github import notices_github

        if found:
            typer.echo(notices_github(found))
    else:
        for notice in found:
            typer.echo(str(notice), err=True)
    for document in documents:
        typer.echo(f"{document.position.file}: {document.spec.type} {document.spec.name}: ok")


def _place_names(config: Path | None) -> frozenset[str] | None:
    """Return what the configuration calls its places, None where there is none to say so."""
    if config is None:
        return None
    from orchestrator.places import read_places

    return frozenset(place.name for place in read_places(config))


def _applied_fleets() -> frozenset[str]:
    """Return the fleets on this machine's record; a server's, and one that cannot be read, tell none."""
    if os.environ.get("MODELYARD_URL"):
        return frozenset()
    from orchestrator.store import current_fleets

    try:
        return frozenset(fleet.name for fleet in current_fleets(database_url())[0])
    except ModelyardError:
        return frozenset()


def fleets_of(documents: Iterable[Document]) -> frozenset[str]:
    """Return the names of the fleets among documents: each will be a place."""
    return frozenset(document.spec.name for document in documents if document.spec.type == "fleet")


def unknown_places(document: Document, places: Collection[str] | None) -> Iterator[Problem]:
    """Yield a problem for each backend that a document names and that is none."""
    from orchestrator.spec.forms import nearest
    from orchestrator.spec.models import Volume

    named = [(f"backends[{at}]", name) for at, name in enumerate(getattr(document.spec, "backends", ()))]
    if isinstance(document.spec, Volume) and document.spec.backend:
        named.append(("backend", document.spec.backend))
    for path, name in named:
        if places is not None and name not in places and name not in _applied_fleets():
            fix = nearest(name, {each: each for each in places}) or f"there is {', '.join(sorted(places))}"
            yield document.problem(path, f"no backend {name!r} is configured", fix)


def unfit(document: Document) -> Iterator[Problem]:
    """Yield what is wrong with a document that trains, or that serves a model."""
    if getattr(document.spec, "model", None):
        from orchestrator.apply.serving import unservable  # as below

        yield from unservable(document)
    if getattr(document.spec, "train", None):
        from orchestrator.apply.training import untrainable  # brings catalog and engines in

        yield from untrainable(document)


@app.command()
def schema() -> None:
    """Print the JSON Schema of the documents, for editors."""
    import json as json_module

    from orchestrator.spec.schema import json_schema

    typer.echo(json_module.dumps(json_schema(), indent=2))
