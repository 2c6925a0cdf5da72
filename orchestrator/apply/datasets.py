"""Look at training's data and output on this machine, before anything is started."""

from __future__ import annotations

import contextlib
import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from orchestrator.engines import trainer
from orchestrator.engines.buckets import is_bucket
from orchestrator.engines.tuning_entry import CLAIM, read_json
from orchestrator.errors import Problem, SpecError
from orchestrator.frozen import frozen
from orchestrator.planner.tune import TuningQuestion
from orchestrator.spec.load import Document
from orchestrator.spec.models import Train

MOST_BYTES = 4 * 2**30
"""Rows of larger files are neither read nor counted: their trainer will, in its own time."""
_READ = (".jsonl", ".json", ".csv")


@frozen
class _Row:
    """One row's columns, and where it stands."""

    columns: frozenset[str]
    file: Path
    line: int

    @property
    def place(self) -> str:
        return f"{self.file.name}:{self.line}"


def read_dataset(document: Document, question: TuningQuestion) -> int | None:
    """Return how many rows the data set has, None where it is not here or cannot be read from here.

    Raises:
        SpecError: it has no rows, or a row lacks what the method needs; with the row's place.
    """
    train = question.train
    path = Path(train.dataset)
    if not train.dataset.startswith("/"):
        return None
    if not path.exists():
        if question.bare:
            raise SpecError([_problem(document, f"there is no {path}", "check the path")])
        return None  # of a machine that is not this one
    files = [path] if path.is_file() else _files(path)
    if not files or any(f.suffix not in _READ or f.stat().st_size > MOST_BYTES for f in files):
        return None
    count = 0
    try:
        for file in files:
            for row in _rows(file):
                count += 1
                if why := lacking(row.columns, train, question.engine):
                    raise SpecError([_problem(document, f"{row.place}: {why}", _known(row))])
    except (OSError, ValueError) as error:
        raise SpecError(
            [_problem(document, f"cannot read {path}: {error}", "one JSON object a line")]
        ) from None
    if count == 0:
        raise SpecError([_problem(document, f"{path.name} holds no rows", "put examples into it")])
    return count


def require_output(document: Document, question: TuningQuestion) -> None:
    """Refuse an output that cannot be this run's, as far as that shows on this machine.

    Raises:
        SpecError: a place without volumes is given no folder, this user cannot write it, or it
            holds what another run left.
    """
    output = question.train.output
    if output is None or not output.startswith("/"):
        if question.bare and not is_bucket(output or ""):
            what = "a place without volumes writes to a folder or a bucket"
            raise SpecError([document.problem("train.output", what, "for example ./adapters")])
        return
    held = read_json(Path(output) / CLAIM).get("run", question.run)
    if held != question.run:
        what, fix = f"{output} holds what run {held} left", "give this run a folder of its own"
        raise SpecError([document.problem("train.output", what, fix)])
    place = Path(output)
    while not place.exists():
        place = place.parent
    if question.bare and not (place.is_dir() and os.access(place, os.W_OK)):
        what = f"{output} cannot be written: {place} is {'not yours' if place.is_dir() else 'no folder'}"
        raise SpecError([document.problem("train.output", what, "name another folder")])


def make_outputs(plans: Iterable[object]) -> None:
    """Make the folders of this machine that training is to write to, where that can be done.

    A place of this machine mounts them; another machine's are its own affair.
    """
    for plan in plans:
        train = getattr(getattr(plan, "spec", None), "train", None)
        if getattr(plan, "trained", None) and train and (train.output or "").startswith("/"):
            with contextlib.suppress(OSError):
                Path(train.output).mkdir(parents=True, exist_ok=True)


def _problem(document: Document, what: str, fix: str) -> Problem:
    return document.problem("train.dataset", what, fix)


def _files(folder: Path) -> list[Path]:
    """Return the files that a trainer reads of a folder: those named for training, else all."""
    found = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix in (*_READ, ".parquet"))
    return [p for p in found if "train" in p.name] or found


def _rows(file: Path) -> Iterator[_Row]:
    if file.suffix == ".csv":
        with file.open(newline="", encoding="utf-8") as text:
            reader = csv.DictReader(text)
            for _ in reader:
                yield _Row(frozenset(reader.fieldnames or ()), file, reader.line_num)
        return
    with file.open(encoding="utf-8") as text:
        if file.suffix == ".json" and text.read(1) == "[":
            text.seek(0)
            for number, row in enumerate(json.load(text), 1):
                yield _Row(_columns(row, f"{file.name}, row {number}"), file, number)
            return
        text.seek(0)
        for number, line in enumerate(text, 1):
            if line.strip():
                yield _Row(
                    _columns(_object(line, f"{file.name}:{number}"), f"{file.name}:{number}"), file, number
                )


def _object(line: str, place: str) -> object:
    try:
        found: object = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    return found


def _columns(row: object, place: str) -> frozenset[str]:
    if not isinstance(row, Mapping):
        raise ValueError(f"{place}: no JSON object")
    return frozenset(name for name, value in row.items() if value is not None)


def lacking(columns: frozenset[str], train: Train, engine: str) -> str | None:
    """Say which columns a method needs and does not find, None where it finds them."""
    ways = trainer(engine).columns(train.method, train.args)
    if not ways or any(way <= columns for way in ways):
        return None
    near = max(ways, key=lambda way: (len(way & columns), -len(way)))
    return f"{train.method} needs {_ways(ways)}, {_named(sorted(near - columns))} is missing"


def _known(row: _Row) -> str:
    return f"columns there: {', '.join(sorted(row.columns)) or 'none'}"


def _ways(ways: Sequence[frozenset[str]]) -> str:
    return ", or ".join(_named(sorted(way)) for way in ways)


def _named(names: Sequence[str]) -> str:
    return " and ".join(repr(name) for name in names)
