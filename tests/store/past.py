"""Records as earlier versions left them: the schema of any revision, filled with what it could hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from orchestrator.store import migrate
from orchestrator.store.rows import event_row, job_row, run_row
from orchestrator.store.urls import postgres_url
from tests.store.values import T0, a_job, a_run, recorded


def left_by(url: str, revision: str, *, runs: int, events: int = 1) -> None:
    """Make a record as a program of that revision would have: so many runs, each with a job and events."""
    engine = sa.create_engine(postgres_url(url) if url.startswith("postgresql") else url)
    try:
        with engine.begin() as connection:
            config = Config()
            config.set_main_option("script_location", str(migrate.MIGRATIONS))
            config.set_main_option("path_separator", "os")
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
            serial = 0
            rows: dict[str, list[Mapping[str, Any]]] = {"runs": [], "jobs": [], "events": []}
            for n in range(runs):
                run = a_run(f"run-{n}x")
                job = a_job(run)
                event = recorded(job, run).event
                assert event is not None
                rows["runs"].append({**run_row(run, changed_at=T0), "serial": 1})
                rows["jobs"].append(job_row(job))
                for _ in range(events):
                    serial += 1
                    rows["events"].append({**event_row(event), "serial": serial, "project": "main"})
            for name, of in rows.items():
                _insert(connection, name, of)
    finally:
        engine.dispose()


def _insert(connection: sa.Connection, name: str, rows: list[Mapping[str, Any]]) -> None:
    """Insert what the table has columns for at its revision."""
    table = sa.Table(name, sa.MetaData(), autoload_with=connection)
    had = {column.name for column in table.columns}
    connection.execute(table.insert(), [{k: v for k, v in row.items() if k in had} for row in rows])
