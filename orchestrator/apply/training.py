"""All that can be said against training before anything is started, each at its line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from orchestrator.apply.datasets import lacking, read_dataset, require_output
from orchestrator.catalog import ModelFacts
from orchestrator.engines.buckets import is_bucket, scheme_of
from orchestrator.errors import ModelyardError, Problem, SpecError
from orchestrator.facts import resolve
from orchestrator.facts.datasets import DatasetFacts, Unknown
from orchestrator.planner.tune import TuningQuestion, tuning_question_of
from orchestrator.spec.load import Document
from orchestrator.spec.models import Task

Ask = Callable[[str, str, str | None], DatasetFacts | Unknown]
"""From a hub's data set, by id, split and configuration, to what it holds."""


@dataclass
class _Look:
    """What was found: problems, what could not be checked, and how many rows there are."""

    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rows: int | None = None


def looked_at(
    document: Document, question: TuningQuestion, ask: Ask | None
) -> tuple[TuningQuestion, tuple[str, ...]]:
    """Return the question with the rows of its data set counted, where they can be, and notes.

    Raises:
        SpecError: something is wrong with the spec, its data or its output; all of it at once.
    """
    look = _look(document, question)
    if ask is not None and _is_of_hub(question.train.dataset):
        _look_up(document, question, ask, look)
    if look.problems:
        raise SpecError(sorted(look.problems, key=lambda each: each.at))
    return replace(question, rows=look.rows), tuple(look.notes)


def untrainable(document: Document) -> Iterator[Problem]:
    """Yield what is wrong with a document that trains, as far as that shows here and without a hub.

    Of a model that is neither in the catalog nor in a folder nothing is said.
    """
    spec = document.spec
    if isinstance(spec, Task) and spec.train:
        model = spec.train.model
        try:
            facts = resolve(model.id, revision=model.revision, offline=True)
        except ModelyardError:
            facts = ModelFacts(model.id, "", 1, 1, 1, 1, 1, 1, 1)
        yield from _look(document, tuning_question_of(spec, facts)).problems


def _look(document: Document, question: TuningQuestion) -> _Look:
    look = _Look([document.found(finding) for finding in question.findings()])
    try:
        require_output(document, question)
    except SpecError as error:
        look.problems += error.problems
    try:
        look.rows = read_dataset(document, question)
    except SpecError as error:
        look.problems += error.problems
    dataset = question.train.dataset
    if dataset.startswith("/") and not question.bare and not Path(dataset).exists():
        look.notes.append(f"there is no {dataset} on this machine: it has to be where the run trains")
    if is_bucket(question.train.dataset):
        look.notes.append(f"columns of {question.train.dataset} are not checked: it is read where it trains")
    return look


def _is_of_hub(dataset: str) -> bool:
    return not dataset.startswith("/") and not scheme_of(dataset)


def _look_up(document: Document, question: TuningQuestion, ask: Ask, look: _Look) -> None:
    train = question.train
    split, config = train.args.get("dataset_train_split"), train.args.get("dataset_config")
    try:
        found = ask(
            train.dataset,
            split if isinstance(split, str) else "train",
            config if isinstance(config, str) else None,
        )
    except ModelyardError as error:
        look.problems.append(document.problem("train.dataset", error.what, error.fix))
        return
    if isinstance(found, Unknown):
        look.notes.append(f"columns of {train.dataset} are not checked: {found.why}")
        return
    look.rows = found.rows
    if found.gated and "HF_TOKEN" not in {name for name, _ in (*question.env, *question.secrets)}:
        what = f"{train.dataset} is gated and needs HF_TOKEN in env"
        look.problems.append(document.problem("train.dataset", what, "add env: [HF_TOKEN]"))
    if found.columns is None:
        look.notes.append(f"columns of {train.dataset} are not checked: its card does not name them")
    elif why := lacking(found.columns, train, question.engine):
        known = f"columns there: {', '.join(sorted(found.columns))}"
        look.problems.append(document.problem("train.dataset", f"{train.dataset}: {why}", known))
