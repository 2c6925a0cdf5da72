from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator.store import open_store
from orchestrator.store.records import Store
from orchestrator.store.urls import sqlite_url
from tests.store.values import KEY

_ENGLISH = ("--locale=C", "--locale-provider=icu", "--icu-locale=en")
"""Text ordered as people order it, so that a test sees where we count on another order."""


def programs_of_postgres() -> Path | None:
    """Debian keeps the server's programs off the PATH, one folder per version."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[4]))
    if found:
        return found[-1].parent
    initdb = shutil.which("initdb")
    return Path(initdb).parent if initdb else None


def _unprivileged() -> dict[str, object]:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    account = next((a for a in ("postgres", "nobody") if a in {p.pw_name for p in pwd.getpwall()}), "nobody")
    entry = pwd.getpwnam(account)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A PostgreSQL server of our own; its URL without a database."""
    programs = programs_of_postgres()
    if programs is None:
        reason = "PostgreSQL's server programs are not installed (Debian: postgresql)"
        if "postgres" in os.environ.get("MODELYARD_REQUIRE", "").split(","):
            pytest.fail(reason)
        pytest.skip(reason)
    with cluster(programs) as url:
        yield url


@contextmanager
def cluster(programs: Path) -> Iterator[str]:
    """Run a server on a Unix socket in a folder of its own; gives its URL without a database."""
    as_user = _unprivileged()
    # Not under pytest's own temporary folder: a socket's path must be short, and that folder
    # is closed to other users.
    with tempfile.TemporaryDirectory(prefix="pg", dir="/tmp", ignore_cleanup_errors=True) as name:
        home = Path(name)
        if "user" in as_user:
            shutil.chown(home, user=as_user["user"], group=as_user["group"])  # type: ignore[call-overload]  # ids
        cluster = home / "data"

        def call(program: str, *arguments: str) -> None:
            subprocess.run(  # type: ignore[call-overload]  # the account's ids as keywords
                [programs / program, *arguments],
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=home,
                **as_user,
            )

        call("initdb", "-D", str(cluster), "-U", "modelyard", "-A", "trust", "-N", "-E", "UTF8", *_ENGLISH)
        # Tests need no durability; a killed server's data folder is thrown away.
        options = (
            f"-c listen_addresses= -c unix_socket_directories={home} -c fsync=off -c max_connections=200"
        )
        call("pg_ctl", "-D", str(cluster), "-l", str(home / "log"), "-o", options, "-w", "start")
        try:
            yield f"postgresql://modelyard@/{{}}?host={home}"
        finally:
            call("pg_ctl", "-D", str(cluster), "-m", "immediate", "-w", "stop")


def restart(url: str) -> None:
    """End the server of a URL in the middle of whatever it does, and start it again."""
    programs = programs_of_postgres()
    assert programs is not None  # it runs
    home = Path(url.partition("host=")[2])
    control = [programs / "pg_ctl", "-D", home / "data", "-m", "immediate", "-w", "-l", home / "log"]
    subprocess.run(  # type: ignore[call-overload]  # the account's ids as keywords
        [*control, "restart"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=home,
        **_unprivileged(),
    )  # fmt: skip


@pytest.fixture
def postgres_store_url(postgres: str) -> str:
    import psycopg

    with psycopg.connect(postgres.format("postgres"), autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS store WITH (FORCE)")
        connection.execute("CREATE DATABASE store")
    return postgres.format("store")


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database, once of each kind."""
    if request.param == "sqlite":
        return sqlite_url(tmp_path / "state.db")
    return str(request.getfixturevalue("postgres_store_url"))


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with open_store(url, secret_key=KEY, busy_s=5) as store:
        yield store
