"""``run://NAME``: what a run of training left, in place of a model's id."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from orchestrator.engines.buckets import is_bucket
from orchestrator.errors import SpecError
from orchestrator.spec.load import Document
from orchestrator.spec.models import Adapter, Model, Service, Task
from orchestrator.store.values import Artifact

SCHEME = "run://"

Left = Callable[[str], Sequence[Artifact]]
"""From a run's name to what it left, by kind; empty where it left nothing yet or is not there."""


def names_runs(document: Document) -> bool:
    """Say whether a document uses what a run left."""
    spec = document.spec
    model = (
        spec.model
        if isinstance(spec, Service)
        else spec.train.model
        if isinstance(spec, Task) and spec.train
        else None
    )
    adapters = spec.adapters if isinstance(spec, Service) else ()
    named = [adapter.id for adapter in (*adapters, *(model.adapters if model else ()))]
    return any(each.startswith(SCHEME) for each in (*named, *([model.id] if model else [])))


def resolved(document: Document, left: Left) -> Document:
    """Return a document that names folders, volumes and hub ids where it named runs.

    The digest of what is used becomes its revision, so that tuning again is a change.

    Raises:
        SpecError: a run is not there, or left nothing that will do; at the field.
    """
    spec = document.spec
    if not names_runs(document):
        return document
    if isinstance(spec, Task) and spec.train:
        model = _model(document, "train.model", spec.train.model, left, takes_adapter=False)
        return replace(
            document, spec=spec.model_copy(update={"train": spec.train.model_copy(update={"model": model})})
        )
    assert isinstance(spec, Service)
    if spec.model is None:
        shared = tuple(
            _adapter(document, f"adapters[{index}]", each, left) for index, each in enumerate(spec.adapters)
        )
        return replace(document, spec=spec.model_copy(update={"adapters": shared}))
    model = _model(document, "model", spec.model, left, takes_adapter=spec.engine != "transformers")
    return replace(document, spec=spec.model_copy(update={"model": model}))


def _model(document: Document, at: str, model: Model, left: Left, *, takes_adapter: bool) -> Model:
    adapters = tuple(
        _adapter(document, f"{at}.adapters[{index}]", each, left) for index, each in enumerate(model.adapters)
    )
    model = model.model_copy(update={"adapters": adapters})
    if not model.id.startswith(SCHEME):
        return model
    name = model.id.removeprefix(SCHEME)
    found = {each.kind: each for each in _found(document, at, name, left)}
    if whole := found.get("merged") or found.get("model"):
        return model.model_copy(update={"id": place(whole), "revision": _revision(whole)})
    adapter = found["adapter"]
    if not takes_adapter or is_bucket(place(adapter)):
        where = " in a bucket" if takes_adapter else ""
        what = f"run {name!r} left an adapter{where}, and a whole model is needed here"
        raise SpecError([document.problem(at, what, f"modelyard merge {name}, or merge: true in its spec")])
    served = Adapter(name=name, id=place(adapter), revision=_revision(adapter))
    update = {
        "id": adapter.base_id,
        "revision": adapter.base_revision or None,
        "adapters": (*adapters, served),
    }
    return model.model_copy(update=update)


def _adapter(document: Document, at: str, adapter: Adapter, left: Left) -> Adapter:
    if not adapter.id.startswith(SCHEME):
        return adapter
    name = adapter.id.removeprefix(SCHEME)
    found = {each.kind: each for each in _found(document, at, name, left)}
    if "adapter" not in found:
        raise SpecError([document.problem(at, f"run {name!r} left no adapter", f"modelyard show {name}")])
    if is_bucket(place(found["adapter"])):
        what = f"run {name!r} left its adapter in a bucket, and engines load them from folders"
        raise SpecError(
            [document.problem(at, what, f"bring it here, or serve what modelyard merge {name} makes")]
        )
    return adapter.model_copy(update={"id": place(found["adapter"]), "revision": _revision(found["adapter"])})


def _found(document: Document, at: str, name: str, left: Left) -> Sequence[Artifact]:
    found = [each for each in left(name) if each.kind != "state"]
    if not found:
        what = f"no run {name!r} on record has left a model"
        fix = f"apply the task {name!r} and let it end well first: modelyard ps --all"
        raise SpecError([document.problem(at, what, fix)])
    return found


def _revision(artifact: Artifact) -> str:
    return f"sha256:{artifact.sha256}"


def place(artifact: Artifact) -> str:
    """Return where an artifact is, as a model's id: a folder, or a folder of a volume or a bucket.

    >>> from datetime import UTC, datetime
    >>> at = datetime(2026, 1, 1, tzinfo=UTC)
    >>> a = Artifact("1", "merged", "merged", 0, "", "sft-output", "m", "", "d", "", "", "", "", at)
    >>> place(a)
    'volume://sft-output/merged'
    """
    is_place = artifact.location.startswith("/") or is_bucket(artifact.location)
    where = artifact.location.rstrip("/") if is_place else f"volume://{artifact.location}"
    return where if artifact.path == "." else f"{where}/{artifact.path}"
