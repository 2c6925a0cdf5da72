"""A database, opened: SQLite or PostgreSQL behind one door, and its errors made ours.

Every write takes the one write lock of the database before it reads anything (``BEGIN
IMMEDIATE`` on SQLite, an advisory lock on PostgreSQL), so that what it read still holds when
it commits, and nobody has to retry on a serialization failure.
"""

from __future__ import annotations

import os
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc

from orchestrator.errors import ConfigError, StoreBusy, StoreError
from orchestrator.store.peek import sqlite_error
from orchestrator.store.revisions import is_current
from orchestrator.store.tables import meta
from orchestrator.store.urls import postgres_url, sqlite_path

_WRITE_LOCK = 0x6D6F64656C79617264 % 2**63
"""The advisory lock's number: "modelyard" in ASCII, cut to the signed 64 bits PostgreSQL takes."""


class Database:
    """A database at this program's schema; its connections may be used from any thread."""

    def __init__(self, url: str, *, busy_s: float) -> None:
        self.path = sqlite_path(url)
        self.where = "the store's database" if self.path is None else str(self.path)
        if self.path is None:
            self.engine = _postgres(url, busy_s)
        else:
            _make_file(self.path)
            self.engine = _sqlite(self.path, busy_s)

    def close(self) -> None:
        """Close every connection; the last one to a SQLite file folds its log into the file."""
        self.engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """Open a transaction that sees one state of the database and changes nothing."""
        with _ours(self.where), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """Open the only transaction that writes; committed at the end, rolled back by an error.

        Raises:
            StoreBusy: another process writes, and did not end in time.
        """
        with self._writing(foreign_keys=True) as connection:
            yield connection

    @contextmanager
    def _writing(self, *, foreign_keys: bool) -> Iterator[sa.Connection]:
        options = {"modelyard_write": True, "modelyard_foreign_keys": foreign_keys}
        with _ours(self.where), self.engine.connect() as connection:
            connection.execution_options(**options)
            with connection.begin():
                yield connection
            if not foreign_keys:
                connection.detach()  # not for the next one

    def prepare(self) -> str:
        """Bring the schema up to date and return the deployment's id, made at the first opening.

        Raises:
            StoreError: a newer program wrote this database.
        """
        with self.reading() as connection:
            revision = _revision(connection)
            if is_current(revision, where=self.where):
                return _deployment(connection)
        with self._writing(foreign_keys=False) as connection:
            # Asked again under the lock: another process may have been faster.
            if not is_current(_revision(connection), where=self.where):
                from orchestrator.store.migrate import upgrade  # Alembic: a tenth of a CPU second

                upgrade(connection)
            if not connection.execute(sa.select(meta.c.value).where(meta.c.key == "deployment")).first():
                connection.execute(meta.insert().values(key="deployment", value=uuid.uuid4().hex))
            return _deployment(connection)


def _revision(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    found = connection.execute(sa.text("SELECT version_num FROM alembic_version")).first()
    return str(found[0]) if found else None


def _deployment(connection: sa.Connection) -> str:
    found = connection.execute(sa.select(meta.c.value).where(meta.c.key == "deployment")).scalar_one()
    return str(found)


def _make_file(path: Path) -> None:
    """Make the file before SQLite does: specs may name hosts and people, so only its owner reads it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise ConfigError(
            f"the store {path} cannot be written: {error.strerror}",
            fix="give this user the right to write there, or choose another place for the store",
        ) from error


WAL_PAUSE_S = 0.02


def _use_wal(connection: sqlite3.Connection, busy_s: float) -> None:
    """Switch the file to a write-ahead log, once in its life.

    The switch does not wait for others, whatever the time-out (sqlite.org/wal.html): of several
    that open a new file together, all but one are told at once that it is locked.
    """
    deadline = time.monotonic() + busy_s
    while connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(WAL_PAUSE_S)


def _sqlite(path: Path, busy_s: float) -> sa.Engine:
    engine = sa.create_engine(
        sa.URL.create("sqlite", database=str(path)),
        hide_parameters=True,
        max_overflow=-1,  # threads wait for the write lock, never for a connection
        connect_args={"timeout": busy_s, "isolation_level": None},
    )

    @sa.event.listens_for(engine, "connect")
    def set_up(connection: sqlite3.Connection, _record: object) -> None:
        _use_wal(connection, busy_s)
        connection.execute("PRAGMA synchronous = FULL")  # a commit survives a loss of power
        connection.execute("PRAGMA foreign_keys = ON")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        options = connection.get_execution_options()
        if not options.get("modelyard_foreign_keys", True):
            # SQLite alters a table by copying and dropping it, and a drop deletes the rows that
            # point to it. The switch has no effect inside a transaction.
            connection.exec_driver_sql("PRAGMA foreign_keys = OFF")
        # The driver's own BEGIN is off (isolation_level None): it comes late and takes no lock.
        connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get("modelyard_write") else "BEGIN")

    return engine


def _postgres(url: str, busy_s: float) -> sa.Engine:
    try:
        engine = sa.create_engine(
            postgres_url(url),
            hide_parameters=True,
            max_overflow=-1,
            pool_pre_ping=True,  # a server that was restarted in between costs nobody a write
            connect_args={"connect_timeout": max(1, round(busy_s))},
        )
    except (exc.ArgumentError, ValueError):
        raise ConfigError(
            "the store's URL cannot be read", fix="use postgresql://USER@HOST/DATABASE"
        ) from None  # the cause quotes the URL, password and all

    @sa.event.listens_for(engine, "connect")
    def set_up(connection: Any, _record: object) -> None:
        connection.execute(f"SET lock_timeout = {round(busy_s * 1000)}")
        connection.commit()

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        if connection.get_execution_options().get("modelyard_write"):
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITE_LOCK})")

    return engine


@contextmanager
def _ours(where: str) -> Iterator[None]:
    """Turn the database's errors into ours."""
    try:
        yield
    except exc.DBAPIError as error:
        original = error.orig
        if isinstance(original, sqlite3.Error):
            raise sqlite_error(original, where) from error
        raise _postgres_error(original, where, lost=isinstance(error, exc.OperationalError)) from error
    except (OverflowError, UnicodeEncodeError) as error:  # the drivers raise these as they are
        raise StoreError(f"{where} cannot hold a value: {error}") from error


_POSTGRES_KINDS = {
    "08": "it does not answer",
    "53": "it has no resources left",
    "55": "another process holds it",
    "57": "it is shutting down or starting",
}
"""Classes of SQLSTATE that pass by themselves, and what they mean (PostgreSQL docs, appendix A)."""


def _postgres_error(error: BaseException | None, where: str, *, lost: bool) -> StoreError:
    """Return what an error of PostgreSQL means for a user; ``lost`` when the connection may be gone."""
    state = getattr(error, "sqlstate", None)
    said = str(error).partition("\n")[0]
    if state is None and lost:
        # No connection was made, or it broke; libpq tells why in words alone.
        return StoreBusy(
            f"{where} cannot be reached: {said}", fix="check the server and MODELYARD_DATABASE_URL"
        )
    if state == "53100":
        return StoreError(f"no space left for {where}", fix="make room on the server's disk")
    if state is not None and state[:2] in _POSTGRES_KINDS:
        return StoreBusy(f"{where}: {_POSTGRES_KINDS[state[:2]]}", fix="try again")
    return StoreError(f"{where}: {said}")
