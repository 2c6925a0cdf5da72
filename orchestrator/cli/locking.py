"""The lock beside the files of a command: kept to, held, or written anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.shared import tell_silent
from orchestrator.errors import NothingFits, UsageError
from orchestrator.frozen import frozen

if TYPE_CHECKING:
    from orchestrator.api import Api, Plans
    from orchestrator.apply import Scope
    from orchestrator.apply.lock import Lock, LockedModel
    from orchestrator.planner.plan import Sort
    from orchestrator.spec.load import Document

WriteLock = Annotated[
    bool, typer.Option("--lock", help="Resolve anew, and write modelyard.lock beside the files.")
]
Locked = Annotated[
    bool, typer.Option("--locked", help="Refuse when modelyard.lock is missing or would change.")
]


@frozen
class Locking:
    """What a command does about the locks beside its files."""

    files: tuple[str, ...]
    write: bool
    hold: bool

    def __post_init__(self) -> None:
        if self.write and self.hold:
            raise UsageError("--lock writes what --locked refuses to change", fix="give one of them")

    def plan(
        self,
        api: Api,
        documents: Sequence[Document],
        *,
        rerun: bool,
        resume: bool = False,
        scope: Scope,
        sort: Sort = "price",
        strict: bool = False,
    ) -> tuple[Plans, dict[Path, Lock]]:
        """Return the plans at the locked commits, and the locks to write."""
        from orchestrator.apply.lock import by_lock, lock_of, read_lock, require_locked

        models = api.resolve_models(documents) if self.write else locked_models(self.files, documents)
        try:
            plans = api.plan(
                documents, rerun=rerun, resume=resume, sort=sort, strict=strict, scope=scope, models=models
            )
        except NothingFits:
            tell_silent(api)  # there it might have fitted
            raise
        tell_silent(api)
        if not self.write and not self.hold:
            return plans, {}
        found: dict[Path, Lock] = {}
        for path, of in by_lock(self.files, documents).items():
            names = {document.spec.name for document in of}
            found[path] = lock_of([plan for plan in plans if plan.name in names], models)
            if self.hold:
                require_locked(path, read_lock(path), found[path])
        return plans, found if self.write else {}


def locked_models(files: Sequence[str], documents: Sequence[Document]) -> dict[str, LockedModel]:
    """Return the models of documents as the locks beside their files have them, by run."""
    from orchestrator.apply.lock import Lock, by_lock, models_of, read_lock

    return {
        name: model
        for path, of in by_lock(files, documents).items()
        for name, model in models_of(of, read_lock(path) or Lock()).items()
    }


def save_locks(locks: Mapping[Path, Lock]) -> None:
    """Write locks beside the files they are of."""
    for path, lock in locks.items():
        write_text(path, lock.text())
        typer.echo(f"locked: {path}", err=True)


def write_text(path: Path, text: str) -> None:
    """Write a file the user named, or beside which they named one.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {(error.strerror or str(error)).lower()}") from None
