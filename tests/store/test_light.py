"""What must not be imported where time is short."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from orchestrator.store import open_store
from orchestrator.store.urls import sqlite_url
from tests.store.values import T0, a_run, made


def _imported(program: str, *arguments: str) -> set[str]:
    """The top-level packages that a program has imported at its end."""
    shown = subprocess.run(
        [sys.executable, "-c", f"import sys\n{program}\nprint(*sys.modules)", *arguments],
        check=True,
        capture_output=True,
        text=True,
    )
    return {name.partition(".")[0] for name in shown.stdout.split()}


def test_peeking_imports_neither_sqlalchemy_nor_cryptography(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "state.db")
    with open_store(url) as store:
        store.commit([made(a_run("chat"))])

    imported = _imported(
        "from orchestrator.store import current_runs; assert len(current_runs(sys.argv[1])) == 1", url
    )

    assert not {"sqlalchemy", "alembic", "cryptography", "pydantic"} & imported
    assert "sqlite3" in imported


def test_the_names_of_secrets_are_read_without_their_key(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "state.db")
    with open_store(url) as store:
        store.secrets.set("HF_TOKEN", "canary", now=T0)
    (tmp_path / "state.db.key").unlink()

    imported = _imported(
        "from orchestrator.store import current_secrets; assert current_secrets(sys.argv[1]) == {'HF_TOKEN'}",
        url,
    )

    assert not {"sqlalchemy", "cryptography"} & imported


def test_a_missing_file_holds_no_runs_and_is_not_made(tmp_path: Path) -> None:
    imported = _imported(
        "from orchestrator.store import current_runs; assert current_runs(sys.argv[1]) == []",
        sqlite_url(tmp_path / "none" / "state.db"),
    )

    assert "sqlalchemy" not in imported
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_is_up_to_date_opens_without_alembic_or_cryptography(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "state.db")
    open_store(url).close()

    imported = _imported("from orchestrator.store import open_store; open_store(sys.argv[1]).close()", url)

    assert "sqlalchemy" in imported
    assert not {"alembic", "cryptography", "psycopg"} & imported
