"""Options and steps that several commands share."""

from __future__ import annotations

import gc
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.errors import ConfigError, ModelyardError, UsageError
from orchestrator.units import parse_duration

if TYPE_CHECKING:
    from orchestrator.api import Api, Local, Plans
    from orchestrator.catalog import ModelFacts
    from orchestrator.errors import Problem
    from orchestrator.spec.load import Document
    from orchestrator.spec.models import Model

Files = Annotated[
    list[str],
    typer.Option(
        "-f", "--file", help="A file, a folder, or - for stdin; may be given often.", show_default=False
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON; its 'schema' key names its form.")]
Yes = Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config", help="The configuration of places.", envvar="MODELYARD_CONFIG", show_default=False
    ),
]


def seconds(option: str, text: str) -> int:
    """Return the seconds of an option's duration, as everywhere: ``90s``, ``5m``, or a bare ``90``.

    Raises:
        UsageError: the text is no duration.
    """
    try:
        return parse_duration(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}", fix="write it as 30s or 10m, for example") from None


def tell_silent(api: Api) -> None:
    """Say of which places nothing is known: what is planned is planned without, what is shown is old."""
    if api.silent:
        from orchestrator.render.runs import silent_lines

        typer.echo("\n".join(silent_lines(api.silent)), err=True)


def _on_record(begun: str) -> list[str]:
    """Return the names of runs that begin so, for a shell to complete; none where they cannot be had."""
    named = os.environ.get("MODELYARD_CONFIG")
    try:
        with open_api(Path(named) if named else None) as api:
            return [view.run.name for view in api.runs() if view.run.name.startswith(begun)]
    except ModelyardError:
        return []


RunName = Annotated[
    str,
    typer.Argument(metavar="RUN", help="A run's name.", show_default=False, autocompletion=_on_record),
]
RunNames = Annotated[
    list[str],
    typer.Argument(metavar="RUN...", help="Names of runs.", show_default=False, autocompletion=_on_record),
]

_ADDRESS = re.compile(r"(?:\[(?P<six>[0-9a-fA-F:.]+)\]|(?P<host>[^:\[\]]*)):(?P<port>[0-9]{1,5})")


@contextmanager
def open_api(config: Path | None, wishes: Mapping[str, object] = MappingProxyType({})) -> Iterator[Api]:
    """Give the api: that of the server in MODELYARD_URL, or of this process.

    Raises:
        UsageError: there are ``wishes`` for backends, and they are the server's.
    """
    if not os.environ.get("MODELYARD_URL"):
        with open_record(config, wishes) as here:
            yield here
        return
    if wishes:
        option = next(iter(wishes))
        raise UsageError(
            f"the backends are the server's, and so is {option}", fix=f"set {option} in its configuration"
        )
    from orchestrator.client import from_environment  # httpx: only where there is a server

    use_catalog()
    api = from_environment(os.environ)
    assert api is not None  # it names one: asked above
    with closing(api):
        yield api


@contextmanager
def open_record(config: Path | None, wishes: Mapping[str, object] = MappingProxyType({})) -> Iterator[Local]:
    """Give the api of this process, on the record that the environment names."""
    from orchestrator.api import Local

    use_catalog()
    api = Local(database_url(), config=config or default_config(), wishes=wishes)
    try:
        yield api
    except KeyboardInterrupt:
        if api.has_asked:
            typer.echo("interrupted: what was applied goes on, and 'modelyard ps' lists it", err=True)
        raise
    finally:
        api.close()


def database_url() -> str:
    """Return where the record is: ``MODELYARD_DATABASE_URL``, or a file of the user's."""
    if url := os.environ.get("MODELYARD_DATABASE_URL"):
        return url
    from platformdirs import user_state_path

    from orchestrator.store.urls import sqlite_url

    try:
        return sqlite_url(user_state_path("modelyard", ensure_exists=True) / "state.db")
    except OSError as error:
        raise ConfigError(
            f"the folder for the record cannot be made: {error.filename}: {error.strerror}",
            fix="set XDG_STATE_HOME to a folder that can be written, or MODELYARD_DATABASE_URL",
        ) from None


def default_config() -> Path | None:
    """Return the user's configuration file, None where there is none."""
    from platformdirs import user_config_path

    path = user_config_path("modelyard") / "config.yaml"
    return path if path.exists() else None


def catalog_folder() -> Path:
    """Return the folder of the user's own catalog, whether it is there or not."""
    from platformdirs import user_config_path

    return user_config_path("modelyard") / "catalog"


def use_catalog() -> None:
    """Have the tables of the user's own catalog read over the shipped ones, in every command."""
    from orchestrator.catalog.overlay import use

    folder = catalog_folder()
    use(folder if folder.is_dir() else None)


def settle() -> None:
    """Collect again as a program that stays must, now that it is loaded; what is there is left alone."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def facts_by(environ: Mapping[str, str]) -> Callable[[Model], ModelFacts]:
    """Return what tells what a model is: from the catalog, its folder, or the hub that variables name."""
    from orchestrator.facts import Hub, resolve

    def facts(model: Model) -> ModelFacts:
        offline = environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
        return resolve(model.id, revision=model.revision, hub=Hub.from_environment(environ), offline=offline)

    return facts


def load_files(
    paths: Sequence[str],
    arguments: Sequence[str] = (),
    *,
    also: Callable[[Document, Sequence[Document]], Iterable[Problem]] = lambda _document, _all: (),
) -> tuple[Document, ...]:
    """Return the documents of files, folders and stdin; every problem at once.

    ``also`` yields what else is wrong with a document among all of them.
    """
    from orchestrator.catalog.hardware import known_names
    from orchestrator.spec.load import load

    use_catalog()
    if not paths:
        raise UsageError("no files given", fix="name them with -f, for example -f configs/")
    return load(
        paths, stdin=sys.stdin.buffer, known_accelerators=known_names(), env=os.environ, args=arguments,
        also=lambda documents: [p for d in documents for p in (*_unfit(d), *also(d, documents))],
    )  # fmt: skip


def _unfit(document: Document) -> Iterable[Problem]:
    spec = document.spec
    if not getattr(spec, "files", ()) and not getattr(spec, "repos", ()):
        return ()
    from orchestrator.apply.inputs import unfit  # brings the planner in
    from orchestrator.spec.models import Fleet, Volume

    assert not isinstance(spec, Fleet | Volume)  # those have no files
    return unfit(document, spec)


def problems_of(plans: Plans) -> list[Problem]:
    """Return what has to be put right before plans can be applied, of all of them."""
    return [problem for plan in plans for problem in getattr(plan, "problems", ())]


DECLINED = 130
"""The exit code of a command whose question was answered with no, as if it had been interrupted there."""


def confirm(question: str, *, yes: bool) -> None:
    """End the command where the user says no; without a terminal nobody is asked, and that is an error.

    Raises:
        UsageError: ``--yes`` is missing and stdin is no terminal.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"{question.rstrip('?')}: there is no terminal to ask on", fix="add --yes")
    if not typer.confirm(question, err=True):
        typer.echo("nothing was done", err=True)
        raise typer.Exit(DECLINED)


def parse_address(text: str) -> tuple[str, int]:
    """Return the host and port that ``text`` names.

    Raises:
        UsageError: it names none.

    >>> parse_address("127.0.0.1:8080"), parse_address("[::1]:0"), parse_address(":80")
    (('127.0.0.1', 8080), ('::1', 0), ('', 80))
    """
    found = _ADDRESS.fullmatch(text)
    if found is None or int(found["port"]) > 65535:
        raise UsageError(f"{text!r} is no address and port", fix="for example --listen 127.0.0.1:8080")
    return found["six"] or found["host"] or "", int(found["port"])
