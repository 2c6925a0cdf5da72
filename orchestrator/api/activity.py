"""Who is inside a run: noted on the record while somebody is, for what ends environments that nobody uses."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from orchestrator.errors import ModelyardError
from orchestrator.reconcile import Run

if TYPE_CHECKING:  # the store imports SQLAlchemy
    from orchestrator.store.records import Store

EVERY_S = 60.0
NEVER = datetime.min.replace(tzinfo=UTC)


def note_active(store: Store, run: str, *, now: datetime) -> None:
    """Note that somebody is inside a run."""
    store.access.remember(_key(run), now.isoformat(), now=now)


def last_active(store: Store, run: str) -> datetime:
    """Return when somebody was last noted inside a run, long ago where nobody was."""
    noted = store.access.note(_key(run))
    return datetime.fromisoformat(noted) if noted else NEVER


@contextmanager
def active(store: Store, run: Run, clock: Callable[[], datetime]) -> Iterator[None]:
    """Note each minute that somebody is inside a run which ends when nobody is."""
    if run.type != "dev-environment" or '"inactivity_duration"' not in run.spec:
        yield
        return
    over = threading.Event()

    def note() -> None:
        while True:
            with suppress(ModelyardError):  # the next minute notes it as well
                note_active(store, run.name, now=clock())
            if over.wait(EVERY_S):
                return

    noting = threading.Thread(target=note, name="activity", daemon=True)
    noting.start()
    try:
        yield
    finally:
        over.set()
        noting.join()
        with suppress(ModelyardError):
            note_active(store, run.name, now=clock())


def _key(run: str) -> str:
    return f"active/{run}"
