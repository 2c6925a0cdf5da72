"""Secrets, encrypted at rest: Fernet (AES-128-CBC and HMAC-SHA256), the key apart from the data.

A value leaves this room only as the answer of ``get``: never in an error, a repr or an event.
cryptography is imported where a value is sealed or opened: most commands touch none.
"""

from __future__ import annotations

import json
import os
import stat
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from orchestrator.errors import ConfigError, NotFound, StoreError, UsageError
from orchestrator.store.codec import from_micros
from orchestrator.store.database import Database
from orchestrator.store.kept import statement_of
from orchestrator.store.tables import secrets
from orchestrator.store.values import MAIN, Sealed, SecretName

if TYPE_CHECKING:
    from cryptography.fernet import MultiFernet

_NEW_KEY = "python -c 'from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())'"


class Secrets:
    """The secrets of one store; made without reading the key, which only values need."""

    def __init__(self, database: Database, *, key: str | None, prefix: str = "") -> None:
        self._database = database
        self._key = key
        self._prefix = prefix

    def of(self, project: str | None) -> Secrets:
        """Return the secrets of one project: ``main``'s, and nobody's, are those without a prefix.

        A colon stands in no reference, so that no project can name what another one keeps.
        """
        prefix = "" if project in (None, MAIN) else f"{project}:"
        return Secrets(self._database, key=self._key, prefix=prefix)

    def set(self, name: str, value: str, *, now: datetime, given_to: str = "") -> None:
        """Keep ``value`` under ``name``, in place of what was there.

        Given to a run or a fleet, it covers what was set by hand for as long as that is there; set
        by hand, it also takes the place of what was given.

        Raises:
            ConfigError, StoreError, UsageError: as in ``sealed``, or the database failed.
        """
        sealed = self.sealed(name, value, now=now, given_to=given_to)
        covered = secrets.c.name == sealed.name, secrets.c.given_to != ""
        with self._database.writing() as connection:
            if not given_to:
                connection.execute(secrets.delete().where(*covered))
            connection.execute(statement_of(sealed, self._database.engine.dialect))

    def sealed(self, name: str, value: str, *, now: datetime, given_to: str = "") -> Sealed:
        """Return ``value`` under ``name``, to be sealed by ``Store.commit``; writes nothing down.

        ``given_to`` is the run or the fleet that it goes with, "" for what is set by hand.

        Raises:
            ConfigError: there is no key for a shared store, or it is no key.
            StoreError: others can read the key file.
            UsageError: it is no name for a secret.
        """
        if ":" in name:
            raise UsageError(f"{name!r} is no name for a secret", fix="letters, digits and ./_-")
        name = self._prefix + name
        self._fernet(make=True)  # what is wrong with the key is said before anything is written

        def seal() -> bytes:
            # The name is sealed in with the value: a row copied over another is noticed.
            return self._fernet(make=False).encrypt(json.dumps([name, value]).encode())

        return Sealed(name, seal, now, given_to)

    def get(self, name: str) -> str:
        """Return the value under ``name``, of two the one that was given to a run or a fleet.

        Raises:
            NotFound: there is none.
            StoreError: it was written with another key, or altered.
        """
        kept = self._prefix + name
        with self._database.reading() as connection:
            there = sa.select(secrets.c.ciphertext).where(secrets.c.name == kept)
            found = connection.execute(there.order_by(secrets.c.given_to.desc())).first()
        if found is None:
            raise NotFound(f"no secret {name!r}", fix=f"modelyard secret set {name}")
        return self._open(kept, bytes(found[0]))

    def list(self) -> list[SecretName]:
        """Return the names, in order: one that was set by hand and given to a run, too, twice."""
        columns = secrets.c.name, secrets.c.updated_at, secrets.c.given_to
        with self._database.reading() as connection:
            rows = connection.execute(sa.select(*columns)).all()
        found = [
            SecretName(row.name[len(self._prefix) :], from_micros(row.updated_at), row.given_to)
            for row in rows
            if self._has(row.name)
        ]
        return sorted(found, key=lambda each: (each.name, each.given_to))

    def _has(self, name: str) -> bool:
        return name.startswith(self._prefix) if self._prefix else ":" not in name

    def delete(self, name: str) -> None:
        """Forget ``name``, set by hand and given to a run alike.

        Raises:
            NotFound: there is no such secret.
        """
        with self._database.writing() as connection:
            kept = self._prefix + name
            gone = connection.execute(secrets.delete().where(secrets.c.name == kept)).rowcount
        if not gone:
            raise NotFound(f"no secret {name!r}")

    def _open(self, name: str, sealed: bytes) -> str:
        from cryptography.fernet import InvalidToken

        try:
            sealed_name, value = json.loads(self._fernet(make=False).decrypt(sealed))
        except InvalidToken:
            sealed_name = None
        if sealed_name != name:
            raise StoreError(
                f"secret {name!r} cannot be opened: it was written with another key, or altered",
                fix=f"bring back the key, or set it anew: modelyard secret set {name}",
            ) from None
        return str(value)

    def rotate(self) -> int:
        """Seal every secret of every project anew with the first key; return how many there are.

        A SQLite store makes that key itself. Its file holds both keys until the last secret is
        sealed, so that a process killed halfway leaves nothing that cannot be opened.

        Raises:
            StoreError: one was written with a key that is gone; none was changed.
        """
        own = key_file(self._database.path) if self._key is None and self._database.path else None
        if own is not None:
            _put_keys(own, [_new_key(), *_split(key_of(own, make=self._is_empty()))])
        with self._database.writing() as connection:
            columns = secrets.c.name, secrets.c.given_to, secrets.c.ciphertext
            rows = connection.execute(sa.select(*columns)).all()
            for name, given_to, sealed in rows:
                value = json.dumps([name, self._open(name, bytes(sealed))]).encode()
                again = self._fernet(make=False).encrypt(value)
                this = secrets.c.name == name, secrets.c.given_to == given_to
                connection.execute(secrets.update().where(*this).values(ciphertext=again))
        if own is not None:
            _put_keys(own, _split(key_of(own, make=False))[:1])
        return len(rows)

    def _is_empty(self) -> bool:
        """Whether nothing is kept, so that a key that is not there was never made, and is not lost."""
        with self._database.reading() as connection:
            return connection.execute(sa.select(secrets.c.name).limit(1)).first() is None

    def _fernet(self, *, make: bool) -> MultiFernet:
        from cryptography.fernet import Fernet, MultiFernet

        key = self._key
        if key is None:
            if self._database.path is None:
                raise ConfigError(
                    "a shared store needs MODELYARD_SECRET_KEY for its secrets", fix=f"make one: {_NEW_KEY}"
                )
            key = key_of(key_file(self._database.path), make=make and self._is_empty())
        try:
            return MultiFernet([Fernet(each) for each in _split(key)])
        except ValueError:
            raise ConfigError(
                "the secret key is not 32 bytes in URL-safe base64", fix=f"make one: {_NEW_KEY}"
            ) from None


def _split(keys: str) -> list[str]:
    """Return the keys of a text: the first seals, each opens."""
    return [key.strip() for key in keys.split(",") if key.strip()]


def _new_key() -> str:
    from cryptography.fernet import Fernet

    return Fernet.generate_key().decode()


def _put_keys(path: Path, keys: Sequence[str]) -> None:
    """Write keys in place of those in the file, all or nothing."""
    try:
        handle, draft = tempfile.mkstemp(dir=path.parent, prefix=path.name)  # mode 0600
        with os.fdopen(handle, "w") as file:
            file.write(",".join(keys))
            file.flush()
            os.fsync(file.fileno())
        Path(draft).replace(path)
    except OSError as error:
        raise StoreError(f"the key {path} cannot be written: {error.strerror}") from error


def key_file(database: Path) -> Path:
    """Return where the key of a SQLite store lies.

    >>> key_file(Path("/var/lib/modelyard/state.db"))
    PosixPath('/var/lib/modelyard/state.db.key')
    """
    return database.with_name(database.name + ".key")


def key_of(path: Path, *, make: bool) -> str:
    """Return the key in ``path``; with ``make``, one that is not there is made first.

    Raises:
        StoreError: there is none, it cannot be read, or others than its owner can.
    """
    if make and not path.exists():
        _make_key(path)
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            key = file.read().decode("ascii", errors="replace").strip()
    except FileNotFoundError:
        raise StoreError(
            f"the key of the secrets is gone: {path}", fix="bring it back, or set the secrets anew"
        ) from None
    except OSError as error:
        raise StoreError(
            f"the key {path} cannot be read: {error.strerror}", fix=f"chmod 600 {path}"
        ) from error
    if mode & 0o077:
        raise StoreError(f"others can read the key {path} (mode {mode:04o})", fix=f"chmod 600 {path}")
    return key


def _make_key(path: Path) -> None:
    """Write a new key so that there is never half a file, nor two keys from two processes at once."""
    from cryptography.fernet import Fernet

    try:
        handle, draft = tempfile.mkstemp(dir=path.parent, prefix=path.name)  # mode 0600
        with os.fdopen(handle, "wb") as file:
            file.write(Fernet.generate_key())
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)  # fails where the other process was first: its key counts
        except FileExistsError:
            pass
        finally:
            Path(draft).unlink()
    except OSError as error:
        raise StoreError(f"the key {path} cannot be written: {error.strerror}") from error
