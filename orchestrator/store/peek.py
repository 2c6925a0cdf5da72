"""Read the runs of a local SQLite store with the standard library alone.

``plan`` only asks what runs now; importing SQLAlchemy for that would cost it most of its time.
Nothing is written: no file is made, no schema is touched.
"""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

from orchestrator.errors import StoreBusy, StoreError
from orchestrator.reconcile.values import Run
from orchestrator.store.revisions import is_current
from orchestrator.store.rows import cordon_of, fleet_of, run_of
from orchestrator.store.values import Cordon, Fleet

BUSY_S = 30.0
LOG_INDEX_BYTES = 32 * 2**10
"""What SQLite makes beside a log at once: https://sqlite.org/walformat.html, section 2."""


def peek(path: Path) -> list[Run] | None:
    """Return the runs in the SQLite file at ``path``, by name; a missing file holds none.

    None says that an older program wrote the file: its schema has to be brought up to date
    before this one can read it.

    Raises:
        StoreBusy: another process holds the file.
        StoreError: it is no store, is damaged, cannot be read, or a newer program wrote it.
    """
    rows = _rows(path, "SELECT * FROM runs ORDER BY name")
    return None if rows is None else [run_of(row) for row in rows]


def peek_secrets(path: Path) -> set[str] | None:
    """Return the names of the secrets in the SQLite file at ``path``, None as in :func:`peek`.

    Raises:
        StoreBusy, StoreError: as in :func:`peek`.
    """
    rows = _rows(path, "SELECT name FROM secrets")
    return None if rows is None else {str(row["name"]) for row in rows}


def peek_deployment(path: Path) -> str | None:
    """Return the id of the SQLite file at ``path``, "" where there is no record yet, None as in :func:`peek`.

    Raises:
        StoreBusy, StoreError: as in :func:`peek`.
    """
    rows = _rows(path, "SELECT value FROM meta WHERE key = 'deployment'")
    return None if rows is None else next((str(row["value"]) for row in rows), "")


def peek_fleets(path: Path) -> tuple[list[Fleet], list[Cordon]] | None:
    """Return the fleets and cordons in the SQLite file at ``path``, None as in :func:`peek`.

    Raises:
        StoreBusy, StoreError: as in :func:`peek`.
    """
    fleets = _rows(path, "SELECT * FROM fleets ORDER BY name")
    cordons = None if fleets is None else _rows(path, "SELECT * FROM cordons ORDER BY place, host")
    if fleets is None or cordons is None:
        return None
    return [fleet_of(row) for row in fleets], [cordon_of(row) for row in cordons]


def _rows(path: Path, query: str) -> list[dict[str, Any]] | None:
    if not path.exists():
        return []
    try:
        return _read(path, "mode=ro", query)
    except sqlite3.OperationalError as error:
        if not _needs_log_index(error, path):
            raise sqlite_error(error, str(path)) from error
    except sqlite3.Error as error:
        raise sqlite_error(error, str(path)) from error
    return _read_still(path, query)


def _read(path: Path, options: str, query: str) -> list[dict[str, Any]] | None:
    uri = f"file:{quote(str(path))}?{options}"
    with closing(sqlite3.connect(uri, uri=True, timeout=BUSY_S)) as connection:
        connection.row_factory = sqlite3.Row
        revision = _revision(connection)
        if revision is None:  # made, and not filled yet
            return []
        if not is_current(revision, where=str(path)):
            return None
        return [dict(row) for row in connection.execute(query)]


def _needs_log_index(error: sqlite3.OperationalError, path: Path) -> bool:
    """Return whether SQLite wanted to make the log's index and may not write the folder.

    Then nobody has the store open, and without a log the file is all there is.
    """
    made = error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)
    return made and not path.with_name(path.name + "-wal").exists()


def _read_still(path: Path, query: str) -> list[dict[str, Any]] | None:
    try:
        return _read(path, "mode=ro&immutable=1", query)
    except sqlite3.Error as error:
        raise sqlite_error(error, str(path)) from error


def _revision(connection: sqlite3.Connection) -> str | None:
    tables = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'")
    if tables.fetchone() is None:
        return None
    found = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return str(found[0]) if found else None


def sqlite_error(error: sqlite3.Error, where: str) -> StoreError:
    """Return what an error of SQLite means for a user; ``where`` is the file."""
    # The low byte is the kind, the rest a detail: https://sqlite.org/rescode.html
    kind = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if kind in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreBusy(f"another process holds {where}", fix="wait for it to end, then try again")
    if kind in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return StoreError(
            f"{where} is damaged or no database",
            fix="put back a copy of it, or move it away: what runs is found again by its labels",
        )
    if kind == sqlite3.SQLITE_FULL or (kind == sqlite3.SQLITE_IOERR and _is_full(where)):
        return StoreError(f"no space left for {where}", fix="make room on that disk, then try again")
    if kind in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return StoreError(
            f"{where} cannot be read or written",
            fix="give this user the right to read and write the file and its folder",
        )
    return StoreError(f"{where}: {error}", fix="look whether that disk is well")


def _is_full(where: str) -> bool:
    """Return whether there is no room for the log's index, which SQLite calls an I/O error."""
    try:
        return shutil.disk_usage(Path(where).parent).free < LOG_INDEX_BYTES
    except OSError:
        return False
