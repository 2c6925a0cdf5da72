"""Read a store's URL: a local SQLite file, or a PostgreSQL server."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from orchestrator.errors import ConfigError

_SQLITE = "sqlite:///"
_POSTGRES = ("postgresql://", "postgres://", "postgresql+psycopg://")
_FIX = "use sqlite:///PATH or postgresql://USER@HOST/DATABASE"


def sqlite_url(path: Path) -> str:
    """Return the URL of a SQLite file.

    >>> sqlite_url(Path("/var/lib/modelyard/state.db"))
    'sqlite:////var/lib/modelyard/state.db'
    """
    return f"{_SQLITE}{path}"


def sqlite_path(url: str) -> Path | None:
    """Return the file that ``url`` names, or None when it names a PostgreSQL server.

    Raises:
        ConfigError: it names neither. The URL itself is not repeated: it may hold a password.

    >>> sqlite_path("sqlite:////tmp/state.db"), sqlite_path("postgresql://db/modelyard")
    (PosixPath('/tmp/state.db'), None)
    """
    if url.startswith(_POSTGRES):
        return None
    path = url.removeprefix(_SQLITE)
    if not url.startswith(_SQLITE) or path in ("", ":memory:") or "?" in path:
        scheme = url.partition(":")[0]
        raise ConfigError(f"no store can be opened at this {scheme!r} URL", fix=_FIX)
    return Path(path)


def postgres_url(url: str) -> str:
    """Return ``url`` with the driver that we use, psycopg 3.

    >>> postgres_url("postgres://me@db/modelyard")
    'postgresql+psycopg://me@db/modelyard'
    """
    return "postgresql+psycopg://" + url.partition("://")[2]


def shown_url(url: str) -> str:
    """Return where a store is, for anybody to read: without a password, wherever the URL holds it.

    >>> shown_url("postgresql://me:p@ss@db/modelyard?password=pass&sslpassword=pass&host=/run/pg")
    'postgresql://me@db/modelyard?host=/run/pg'
    >>> shown_url("sqlite:////tmp/state.db")
    'sqlite:////tmp/state.db'
    """
    if not url.startswith(_POSTGRES):
        return url
    parts = urlsplit(url)
    login, _, host = parts.netloc.rpartition("@")
    user = login.partition(":")[0]
    told = [f"{key}={value}" for key, value in parse_qsl(parts.query) if key in ("host", "port", "user")]
    where = f"{user}@{host}" if user else host
    return f"{parts.scheme}://{where}{parts.path}{'?' if told else ''}{'&'.join(told)}"
