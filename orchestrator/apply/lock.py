"""The lock: what specs were resolved to, kept beside them so that it moves only when somebody says so.

``modelyard.lock`` names, for every run, the commit of its model, its image, and the machine it was
sized for. Whoever plans with a lock there gets that commit, whatever its branch has become; with
``--locked`` a plan that comes out otherwise than the lock is refused.
"""

from __future__ import annotations

import json
import os.path
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, field, replace
from pathlib import Path

from orchestrator.apply.plans import Plan, RunPlan
from orchestrator.errors import PlanRefused
from orchestrator.frozen import frozen
from orchestrator.spec.load import STDIN, Document
from orchestrator.spec.models import Model, Service, Task
from orchestrator.store.codec import decode

NAME = "modelyard.lock"
SCHEMA = "modelyard/lock/v1"
_COMMIT = re.compile(r"[0-9a-f]{40}")


@frozen
class LockedModel:
    """A model and the commit that the revision a spec asks for was; None where there is no hub."""

    id: str
    asked: str | None = None
    commit: str | None = None


@frozen
class Locked:
    """What one run was resolved to; accelerators are those of one node."""

    model: LockedModel | None = None
    image: str | None = None
    accelerator: str | None = None
    accelerators: int = 0
    device_bytes: int = 0
    nodes: int = 1


@frozen
class Lock:
    """What the runs of one folder were resolved to, by name."""

    runs: Mapping[str, Locked] = field(default_factory=dict)

    def text(self) -> str:
        """Return the lock as its file has it: the same text for the same lock."""
        runs = {name: asdict(locked) for name, locked in sorted(self.runs.items())}
        return json.dumps({"schema": SCHEMA, "runs": runs}, indent=2) + "\n"


def model_of(document: Document) -> Model | None:
    """Return the model that a document serves or tunes, None where it brings its own commands."""
    spec = document.spec
    if isinstance(spec, Service) and not spec.commands:
        return spec.model
    return spec.train.model if isinstance(spec, Task) and spec.train else None


def is_commit(revision: str | None) -> bool:
    """Say whether a revision is a commit, which nobody can move.

    >>> is_commit("main"), is_commit("0" * 40)
    (False, True)
    """
    return revision is not None and _COMMIT.fullmatch(revision) is not None


def lock_path(path: str) -> Path:
    """Return where the lock of a ``--file`` is: in that folder, or beside that file.

    >>> lock_path("specs/chat.yaml").as_posix(), lock_path("-").as_posix()
    ('specs/modelyard.lock', 'modelyard.lock')
    """
    if path == "-":
        return Path(NAME)
    plain = Path(os.path.normpath(path))
    return (plain if plain.is_dir() else plain.parent) / NAME


def by_lock(paths: Sequence[str], documents: Sequence[Document]) -> dict[Path, tuple[Document, ...]]:
    """Return the documents of each lock: those that its folder, or a file beside it, gave."""
    found: dict[Path, list[Document]] = {}
    for document in documents:
        home = next(path for path in paths if _gave(path, document.position.file))
        found.setdefault(lock_path(home), []).append(document)
    return {path: tuple(of) for path, of in found.items()}


def _gave(path: str, file: str) -> bool:
    return (path == "-" and file == STDIN) or path == file or Path(file).is_relative_to(path)


def read_lock(path: Path) -> Lock | None:
    """Return the lock at ``path``, None where there is none.

    Raises:
        PlanRefused: it cannot be read, or is no lock of this version.
    """
    fix = "write it anew with plan --lock"
    try:
        body = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise PlanRefused(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from None
    except (ValueError, RecursionError):
        raise PlanRefused(f"{path} is no lock", fix=fix) from None
    if not isinstance(body, dict) or body.get("schema") != SCHEMA:
        raise PlanRefused(f"{path} is no lock of the form {SCHEMA}", fix=fix)
    try:
        return Lock({name: decode(Locked, json.dumps(entry)) for name, entry in body["runs"].items()})
    except (KeyError, TypeError, AttributeError):
        raise PlanRefused(f"{path} does not hold what a lock holds", fix=fix) from None


def pinned(document: Document, model: LockedModel | None) -> Document:
    """Return a document whose model is at the locked commit, if it still asks for what was locked."""
    asked = model_of(document)
    if asked is None or model is None or model.commit is None:
        return document
    if (asked.id, asked.revision) != (model.id, model.asked):
        return document
    at = {"model": asked.model_copy(update={"revision": model.commit})}
    spec = document.spec
    if isinstance(spec, Task) and spec.train:
        return replace(document, spec=spec.model_copy(update={"train": spec.train.model_copy(update=at)}))
    return replace(document, spec=spec.model_copy(update=at))


def models_of(documents: Sequence[Document], lock: Lock) -> dict[str, LockedModel]:
    """Return what a lock says of the documents' models; of one it does not have, that nothing is known."""
    found: dict[str, LockedModel] = {}
    for document in documents:
        if (model := model_of(document)) is not None:
            asked = LockedModel(model.id, model.revision)
            kept = lock.runs[document.spec.name].model if document.spec.name in lock.runs else None
            found[document.spec.name] = kept if kept and replace(kept, commit=None) == asked else asked
    return found


def lock_of(plans: Sequence[Plan], models: Mapping[str, LockedModel]) -> Lock:
    """Return what plans were resolved to; a run that stays is as its record says.

    Args:
        plans: What was planned from pinned documents.
        models: What the models were pinned to, by run.
    """
    return Lock({plan.name: _locked(plan, models) for plan in plans if isinstance(plan, RunPlan)})


def _locked(plan: RunPlan, models: Mapping[str, LockedModel]) -> Locked:
    template = plan.template or (plan.run.template if plan.run else None)
    assert template is not None  # a plan without one leaves a run as it is
    launch = template.launch
    return Locked(
        models.get(plan.name), launch.image, launch.resources.accelerator, launch.resources.accelerators,
        launch.resources.vram_bytes, template.nodes,
    )  # fmt: skip


def require_locked(path: Path, locked: Lock | None, found: Lock) -> None:
    """Refuse when a lock would change.

    Raises:
        PlanRefused: there is no lock, or it says something else; every difference is told.
    """
    if locked is None:
        raise PlanRefused(f"there is no {path}", fix="write it with plan --lock, and commit it")
    moved = list(_moved(locked, found))
    if moved:
        fix = "review it with plan --lock, and commit the lock"
        raise PlanRefused("\n  ".join([f"{path} would change", *moved]), fix=fix)


def _moved(locked: Lock, found: Lock) -> Iterator[str]:
    for name in sorted(locked.runs.keys() | found.runs.keys()):
        old, new = locked.runs.get(name), found.runs.get(name)
        if old is None or new is None:
            yield f"{name}: {'not in it' if old is None else 'no longer in the files'}"
            continue
        before, after = asdict(old), asdict(new)
        yield from (
            f"{name}: {key}: {before[key]} -> {after[key]}" for key in before if before[key] != after[key]
        )
