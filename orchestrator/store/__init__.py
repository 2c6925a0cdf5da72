"""Runs, jobs, events, volumes and secrets, kept in SQLite or PostgreSQL.

This page stays light for those who pass values on: SQLAlchemy costs a quarter of a CPU second to
import, and ``peek`` has sqlite3 and the rows, so each is imported by the function that needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from orchestrator.reconcile.values import Run
from orchestrator.store.urls import sqlite_path
from orchestrator.store.values import Cordon, Fleet

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from orchestrator.store.records import Store

_Found = TypeVar("_Found")

BUSY_S = 30.0
"""How long a statement waits for another process's transaction before it gives up."""


def open_store(url: str, *, secret_key: str | None = None, busy_s: float = BUSY_S) -> Store:
    """Open the store at ``url``, made or brought to this program's schema where needed.

    Args:
        url: ``sqlite:///PATH`` or ``postgresql://…``.
        secret_key: The Fernet key of the secrets; without one a SQLite store keeps its own
            in a file beside it, and a PostgreSQL store refuses to hold secrets.
        busy_s: Seconds to wait for other processes before ``StoreBusy``.

    Raises:
        ConfigError: the URL is none we know, or names a place that cannot be written.
        StoreBusy: another process holds the database, or its server does not answer.
        StoreError: the file is no database, is damaged, or was written by a newer program.
    """
    from orchestrator.store.records import Store  # SQLAlchemy: see above

    return Store.open(url, secret_key=secret_key, busy_s=busy_s)


def _current(url: str, peek: Callable[[Path], _Found | None], ask: Callable[[Store], _Found]) -> _Found:
    """Return what a local file says to who only looks, else what the store says once it is open."""
    path = sqlite_path(url)
    found = peek(path) if path is not None else None
    if found is not None:
        return found
    with open_store(url) as store:
        return ask(store)


def current_runs(url: str) -> list[Run]:
    """Return the runs of the store at ``url``, by name, in the cheapest way.

    A local SQLite file is read with the standard library alone, and nothing is made where
    there is none. Any other store is opened as ``open_store`` does.

    Raises:
        ConfigError, StoreBusy, StoreError: as in ``open_store``.
    """
    from orchestrator.store.peek import peek

    return _current(url, peek, lambda store: store.runs())


def current_secrets(url: str) -> set[str]:
    """Return the names of the secrets of the store at ``url``, in the cheapest way; no value is read.

    Raises:
        ConfigError, StoreBusy, StoreError: as in ``open_store``.
    """
    from orchestrator.store.peek import peek_secrets

    return _current(url, peek_secrets, lambda store: {each.name for each in store.secrets.list()})


def current_deployment(url: str) -> str:
    """Return the id of the store at ``url``, in the cheapest way; "" where a file is still to be made.

    Raises:
        ConfigError, StoreBusy, StoreError: as in ``open_store``.
    """
    from orchestrator.store.peek import peek_deployment

    return _current(url, peek_deployment, lambda store: store.deployment)


def current_fleets(url: str) -> tuple[list[Fleet], list[Cordon]]:
    """Return the fleets of the store at ``url`` and the hosts that are held back, in the cheapest way.

    Raises:
        ConfigError, StoreBusy, StoreError: as in ``open_store``.
    """
    from orchestrator.store.peek import peek_fleets

    return _current(url, peek_fleets, lambda store: (store.fleets(), store.cordons()))
