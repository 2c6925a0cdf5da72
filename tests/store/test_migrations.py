from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from orchestrator.store import current_runs, migrate, open_store, revisions
from orchestrator.store.codec import to_micros
from orchestrator.store.records import Store
from orchestrator.store.rows import run_row
from orchestrator.store.tables import metadata
from orchestrator.store.urls import postgres_url
from orchestrator.store.values import SecretName
from tests.store.past import left_by
from tests.store.values import T0, a_job, a_run, made, recorded

NEXT = f"{int(revisions.HEAD) + 1:04}"
LATER = f"""
import sqlalchemy as sa
from alembic import op

revision = "{NEXT}"
down_revision = "{revisions.HEAD}"

def upgrade():
    with op.batch_alter_table("runs") as runs:
        runs.alter_column("reason", existing_type=sa.Text, nullable=True)
"""


def test_the_migrations_make_the_tables_the_code_speaks_of(store: Store) -> None:
    with store.database.reading() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})

        assert compare_metadata(context, metadata) == []


def test_the_revisions_are_those_of_the_migrations() -> None:
    config = Config()
    config.set_main_option("script_location", str(migrate.MIGRATIONS))
    config.set_main_option("path_separator", "os")

    found = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]

    assert tuple(reversed(found)) == revisions.REVISIONS


def test_a_later_migration_keeps_what_is_there(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_run("chat")
    with open_store(url, secret_key=None) as store:
        store.commit([made(run), recorded(a_job(run), run)])
        before = (store.deployment, store.runs(), store.jobs(), store.events())
    later = tmp_path / "later"
    shutil.copytree(migrate.MIGRATIONS, later)
    (later / "versions" / f"r{NEXT}_later.py").write_text(LATER)
    monkeypatch.setattr(migrate, "MIGRATIONS", later)
    monkeypatch.setattr(revisions, "REVISIONS", (*revisions.REVISIONS, NEXT))
    monkeypatch.setattr(revisions, "HEAD", NEXT)

    assert current_runs(url) == before[1]
    with open_store(url) as store:
        assert (store.deployment, store.runs(), store.jobs(), store.events()) == before
        with store.database.writing() as connection:
            if store.database.path:
                assert connection.execute(sa.text("PRAGMA foreign_keys")).scalar() == 1
            revision = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
        assert revision == NEXT


def test_a_migration_that_fails_leaves_the_old_schema(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = tmp_path / "later"
    shutil.copytree(migrate.MIGRATIONS, later)
    (later / "versions" / f"r{NEXT}_later.py").write_text(LATER + '    raise RuntimeError("power cut")\n')
    with open_store(url) as store:
        store.commit([made(a_run("chat"))])
    with monkeypatch.context() as patched:
        patched.setattr(migrate, "MIGRATIONS", later)
        patched.setattr(revisions, "REVISIONS", (*revisions.REVISIONS, NEXT))
        patched.setattr(revisions, "HEAD", NEXT)

        with pytest.raises(RuntimeError, match="power cut"):
            open_store(url)

    with open_store(url) as store:
        assert [run.since for run in store.runs()] == [T0]


@pytest.mark.parametrize("revision", revisions.REVISIONS[:-1])
def test_a_record_of_every_revision_is_brought_forward_whole(url: str, revision: str) -> None:
    left_by(url, revision, runs=3, events=2)

    with open_store(url, secret_key=None) as store:
        assert [run.name for run in store.runs()] == ["run-0x", "run-1x", "run-2x"]
        assert [(job.name, job.machine) for job in store.jobs()] == [
            (f"run-{n}x-0-0-0", "") for n in range(3)
        ]
        assert [serial for serial, _ in store.events(project="main")] == [1, 2, 3, 4, 5, 6]
        assert {(run.set_name, run.project) for run in store.runs()} == {("", "main")}
        store.commit([made(a_run("new"))])


def test_values_that_an_apply_brought_are_told_from_those_set_by_hand(url: str) -> None:
    left_by(url, "0007", runs=1)
    applied, later = T0, T0 + timedelta(microseconds=1)
    with sealing(url) as connection:
        rows = [
            ("run-0x/HF", applied), ("run-0x/HAND", later), ("gone/HF", applied), ("gone/HAND", later),
            ("lab:run-0x/HF", applied), ("HF", applied),
        ]  # fmt: skip
        for name, at in rows:
            row = {"name": name, "at": to_micros(at), "sealed": b"x"}
            put = "INSERT INTO secrets (name, ciphertext, updated_at) VALUES (:name, :sealed, :at)"
            connection.execute(sa.text(put), row)
        told = "UPDATE events SET cause = 'apply: create'"
        connection.execute(sa.text(told))
        gone = "INSERT INTO events (serial, run_id, run, at, subject, before, after, cause, action, message)"
        values = " SELECT 2, 'old', 'gone', at, 'gone', before, after, cause, action, message FROM events"
        connection.execute(sa.text(gone + values))

    with open_store(url, secret_key=None) as store:
        assert store.secrets.list() == [
            SecretName("HF", applied), SecretName("gone/HAND", later), SecretName("run-0x/HAND", later),
            SecretName("run-0x/HF", applied, "run-0x"),
        ]  # fmt: skip
        assert store.secrets.of("lab").list() == [SecretName("run-0x/HF", applied)]


@contextmanager
def sealing(url: str) -> Iterator[sa.Connection]:
    """Write to a record as it is, whatever its revision."""
    engine = sa.create_engine(postgres_url(url) if url.startswith("postgresql") else url)
    try:
        with engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()


def test_a_file_that_was_made_and_not_filled_is_filled(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    path.touch()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")

    assert current_runs(f"sqlite:///{path}") == []
    with open_store(f"sqlite:///{path}") as store:
        assert store.runs() == []


def test_what_was_written_before_sets_belongs_to_none(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tmp_path / "first"
    shutil.copytree(migrate.MIGRATIONS, first)
    for later in (first / "versions").glob("r*.py"):
        if not later.name.startswith("r0001"):
            later.unlink()
    run = a_run("chat")
    with monkeypatch.context() as patched:
        patched.setattr(migrate, "MIGRATIONS", first)
        patched.setattr(revisions, "REVISIONS", ("0001",))
        patched.setattr(revisions, "HEAD", "0001")
        with open_store(url, secret_key=None) as store, store.database.writing() as connection:
            row = {**run_row(run, changed_at=T0), "serial": 1}
            row.pop("set_name")
            row.pop("project")
            columns = ", ".join(row)
            values = ", ".join(f":{name}" for name in row)
            connection.execute(sa.text(f"INSERT INTO runs ({columns}) VALUES ({values})"), row)

    with open_store(url) as store:
        assert [(found.name, found.set_name) for found in store.runs()] == [("chat", "")]
