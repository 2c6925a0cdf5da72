from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import ConfigError
from orchestrator.store import open_store
from orchestrator.store.urls import sqlite_path, sqlite_url


@pytest.mark.parametrize("path", ["/var/lib/state.db", "state.db", "/tmp/with space/ü%20#.db"])
def test_a_path_survives_its_url(path: str) -> None:
    assert sqlite_path(sqlite_url(Path(path))) == Path(path)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite:///a?mode=ro",
        "mysql://u:hunter2@h/d",
        "state.db",
    ],
)
def test_another_url_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        sqlite_path(url)

    assert "hunter2" not in str(caught.value)


def test_a_server_url_that_cannot_be_read_is_refused_without_repeating_it() -> None:
    with pytest.raises(ConfigError) as caught:
        open_store("postgresql://me:hunter2@host:port/store")

    assert "hunter2" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_a_file_with_an_odd_name_is_opened_under_it(tmp_path: Path) -> None:
    path = tmp_path / "with space" / "ü%20#.db"

    open_store(sqlite_url(path)).close()

    assert path.is_file()
