"""The question that a server asks five times a second, on a connection of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from orchestrator.errors import StoreError
from orchestrator.store import open_store
from orchestrator.store.glance import Glance
from orchestrator.store.records import Store
from orchestrator.store.urls import sqlite_url
from tests.store.values import a_run, made

OTHERS = "FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()"


@pytest.fixture
def store(postgres_store_url: str) -> Iterator[Store]:
    with open_store(postgres_store_url) as opened:
        yield opened


@pytest.fixture
def beside(postgres_store_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(postgres_store_url, autocommit=True) as connection:
        yield connection


@pytest.mark.postgres
def test_a_glance_sees_what_anybody_wrote_and_holds_no_transaction(
    store: Store, beside: psycopg.Connection
) -> None:
    glance = store.glance()
    seen = [glance(), glance()]
    with open_store(store.database.engine.url.render_as_string(hide_password=False)) as other:
        other.commit([made(a_run("chat"))])
        seen.append(glance())
    assert seen == [0, 0, store.last_serial()]
    assert seen[2] > 0
    asked = "SELECT state FROM pg_stat_activity WHERE pid = %s"
    assert isinstance(glance, Glance)
    assert beside.execute(asked, [glance._connection.info.backend_pid]).fetchone() == ("idle",)


@pytest.mark.postgres
def test_a_glance_asks_again_where_the_server_cut_its_connection(
    store: Store, beside: psycopg.Connection
) -> None:
    store.commit([made(a_run("chat"))])
    glance = store.glance()
    newest = [glance(), glance()]
    for _ in range(2):
        beside.execute(f"SELECT pg_terminate_backend(pid) {OTHERS}")
        newest += [glance(), glance()]
    assert newest == [store.last_serial()] * 6


@pytest.mark.postgres
def test_a_glance_costs_one_statement_and_ends_with_its_store(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    glance = store.glance()
    assert isinstance(glance, Glance)
    glance()
    ordinary: list[int] = []
    monkeypatch.setattr(glance, "_ordinary", lambda: ordinary.append(1) or 0)
    assert [glance() for _ in range(5)] == [0] * 5
    assert ordinary == []
    own = glance._connection
    assert not own.closed
    store.close()
    assert own.closed  # the server may still count it for a moment


@pytest.mark.postgres
def test_a_glance_tells_of_a_database_that_is_gone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    glance = store.glance()
    glance()

    def gone() -> int:
        raise StoreError("gone")

    monkeypatch.setattr(glance, "_ordinary", gone)
    glance._connection.close()  # type: ignore[attr-defined]
    for _ in range(2):
        with pytest.raises(StoreError, match="gone"):
            glance()


def test_a_file_is_asked_as_ever(tmp_path: Path) -> None:
    with open_store(sqlite_url(tmp_path / "state.db")) as store:
        store.commit([made(a_run("chat"))])
        assert store.glance()() == store.last_serial() > 0
