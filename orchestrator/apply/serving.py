"""All that can be said against serving a model before anything is started, each at its line."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.catalog import ModelFacts
from orchestrator.errors import ModelyardError, Problem
from orchestrator.facts import resolve
from orchestrator.planner.question import Question, flag_of, question_of
from orchestrator.planner.sizing.formats import is_known, known_formats
from orchestrator.spec.forms import nearest
from orchestrator.spec.load import Document
from orchestrator.spec.models import Service
from orchestrator.spec.rules import Finding


def against(document: Document, question: Question) -> Iterator[Problem]:
    """Yield what no engine can be given of a service's model, whatever the model is."""
    spec, made = document.spec, question.model.quantization
    if made and not is_known(made):
        what = f"no engine here serves weights made by {made!r}"
        fix = nearest(made.lower(), {each: each for each in known_formats()})
        yield document.found(Finding("model.quantization", what, fix or "for example awq or gptq"))
    if unread := question.unread_args():
        what, _, near = unread.removeprefix("args: ").partition(", did you mean ")
        args = spec.args if isinstance(spec, Service) else {}
        key = next((key for key in args if flag_of(key) in what.split()), None)
        path, fix = f"args.{key}" if key else "args", f"did you mean {near}?" if near else None
        yield document.found(Finding(path, what, fix, of_key=key is not None))


def unservable(document: Document) -> Iterator[Problem]:
    """Yield what is wrong with a document that serves a model, as far as that shows without a hub.

    What a model that is neither in the catalog nor in a folder would object to is not known.
    """
    spec = document.spec
    if isinstance(spec, Service) and spec.model and not spec.commands:
        try:
            facts = resolve(spec.model.id, revision=spec.model.revision, offline=True)
        except ModelyardError:
            facts = ModelFacts(spec.model.id, "", 1, 1, 1, 1, 1, 1, 1)
        yield from against(document, question_of(spec, facts))
