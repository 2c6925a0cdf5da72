from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa

from orchestrator.errors import ConfigError, ModelyardError, StoreBusy, StoreError
from orchestrator.reconcile.steps import Turn
from orchestrator.reconcile.values import Run, RunState
from orchestrator.store import current_runs, open_store
from orchestrator.store.peek import peek, sqlite_error
from orchestrator.store.records import Store
from orchestrator.store.urls import sqlite_url
from orchestrator.store.values import Volume
from tests.store.values import T0, a_job, a_run, an_event, made, recorded, turned

CHAT = a_run("chat")
CACHE = Volume("cache", "docker", "{}", "5pec", T0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A SQLite store with one run in it, closed."""
    path = tmp_path / "state.db"
    with open_store(sqlite_url(path)) as store:
        store.commit([made(CHAT)])
    return path


# Killed


def _die_at(store: Store, statement: int) -> None:
    """Let this process be killed before its ``statement``-th statement, or before its commit."""
    left = iter(range(statement, -1, -1))

    def tick(*_: object) -> None:
        if next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sa.event.listen(store.database.engine, "before_cursor_execute", tick)
    sa.event.listen(store.database.engine, "commit", tick)


def _in_child(work: Callable[[], None]) -> int:
    """Run ``work`` in a copy of this process; return the signal that ended it, or 0."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) <= 0, "the work itself failed"
    return -os.waitstatus_to_exitcode(status)


def everything(store: Store) -> tuple[list[object], ...]:
    """Return what a store holds of runs, and beside them."""
    return (
        [*store.runs()], [*store.jobs()], [*store.events()], [*store.volumes()], [*store.fleets()],
        [*store.secrets.list()],
    )  # fmt: skip


def check_a_kill_leaves_all_or_nothing(open_: Callable[[], Store]) -> None:
    """Kill a commit before each of its statements in turn; what is there then is what was there before."""
    with open_() as store:
        store.commit([made(CHAT)])
        before = everything(store)

    def work(statement: int) -> None:
        with open_() as store:
            _die_at(store, statement)
            store.commit([turned(CHAT, RunState.READY), recorded(a_job(CHAT), CHAT)], kept=[CACHE])

    kills = 0
    while _in_child(partial(work, kills)) == signal.SIGKILL:
        with open_() as store:
            assert everything(store) == before
        kills += 1

    with open_() as store:
        assert (store.run("chat").serial, len(store.jobs()), len(store.events())) == (2, 1, 3)
        assert store.volumes() == [CACHE]
    # BEGIN or the lock, two reads, a run, a job, the events, a volume, COMMIT
    assert kills == 8


def test_a_kill_at_any_statement_leaves_all_or_nothing(url: str) -> None:
    check_a_kill_leaves_all_or_nothing(lambda: open_store(url))


def test_what_was_acknowledged_survives_a_kill(path: Path) -> None:
    """Several threads write as fast as they can and say so; the kill comes in the midst of it."""
    for round_, acknowledgements in enumerate((1, 7, 25, 60)):
        reads, says = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reads)
            _write_for_ever(path, round_, says)
        os.close(says)
        with os.fdopen(reads, "rb") as lines:
            said = [lines.readline().decode().strip() for _ in range(acknowledgements)]
            os.kill(child, signal.SIGKILL)
            said += [line.decode().strip() for line in lines if line.endswith(b"\n")]
        os.waitpid(child, 0)

        with open_store(sqlite_url(path)) as store:
            names = {run.name for run in store.runs()}
            events = [event.run for _, event in store.events(limit=1_000_000)]
            jobs = [job.run_id for job in store.jobs()]
        assert set(said) <= names
        for name in names - {"chat"}:
            assert (events.count(name), jobs.count(f"id-{name}")) == (2, 1), name


def _write_for_ever(path: Path, round_: int, says: int) -> None:
    store = open_store(sqlite_url(path))

    def work(thread: int) -> None:
        for number in range(1_000_000):
            run = a_run(f"r{round_}-{thread}-{number}")
            store.commit([made(run), recorded(a_job(run), run)])
            os.write(says, f"{run.name}\n".encode())

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# Held by another


@pytest.fixture
def held(url: str, store: Store) -> Iterator[sa.Connection]:
    """The write lock, in another's hand until its transaction ends."""
    store.commit([made(CHAT)])
    with open_store(url) as other, other.database.writing() as connection:
        yield connection


def test_a_held_store_gives_up_in_time_and_has_done_nothing(
    url: str, held: sa.Connection, store: Store
) -> None:
    with open_store(url, busy_s=0.05) as impatient:
        with pytest.raises(StoreBusy, match="holds"):
            impatient.commit([turned(CHAT, RunState.READY)])

        held.rollback()
        assert store.run("chat").serial == 1
        impatient.commit([turned(CHAT, RunState.READY)])
        assert store.run("chat").serial == 2


def test_a_held_store_can_be_read(url: str, held: sa.Connection) -> None:
    with open_store(url, busy_s=0.05) as reader:
        assert [run.name for run in reader.runs()] == ["chat"]
    assert [run.name for run in current_runs(url)] == ["chat"]


def test_a_held_store_is_waited_for(url: str) -> None:
    done = threading.Event()

    def write() -> None:
        with open_store(url) as waiter:
            waiter.commit([made(CHAT)])
            done.set()

    with open_store(url) as other:
        with other.database.writing():
            thread = threading.Thread(target=write)
            thread.start()
            was_done = done.is_set()
        thread.join()

        assert (was_done, done.is_set()) == (False, True)
        assert [run.name for run in other.runs()] == ["chat"]


# Not ours to read


def test_a_newer_schema_is_refused_with_what_to_do(url: str) -> None:
    with open_store(url) as store, store.database.writing() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))

    for read in (open_store, current_runs):
        with pytest.raises(StoreError, match=r"newer modelyard \(schema 9999") as caught:
            read(url)
        assert caught.value.fix is not None
        assert "upgrade modelyard" in caught.value.fix


@pytest.mark.parametrize("where", ["head", "middle"])
def test_a_damaged_file_is_named_and_left_alone(path: Path, where: str) -> None:
    content = bytearray(path.read_bytes())
    start = 0 if where == "head" else 4096
    content[start:] = b"\xa5" * (len(content) - start)
    path.write_bytes(content)

    for read in (lambda: open_store(sqlite_url(path)).runs(), lambda: peek(path)):
        with pytest.raises(StoreError, match="damaged or no database") as caught:
            read()
        assert str(path) in caught.value.what
    assert path.read_bytes() == content


def test_a_file_of_another_kind_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("buy milk\n" * 1000)

    with pytest.raises(StoreError, match="no database"):
        open_store(sqlite_url(path))

    assert path.read_text() == "buy milk\n" * 1000
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


# No room


def test_a_full_disk_is_an_error_and_nothing_is_half_done(path: Path) -> None:
    with open_store(sqlite_url(path)) as store:
        before = (store.runs(), store.jobs(), store.events())
        sa.event.listen(store.database.engine, "checkout", _no_more_pages)
        runs = [a_run(f"run-{n}", spec="x" * 10_000) for n in range(50)]

        with pytest.raises(StoreError, match="no space left"):
            store.commit([turned(CHAT, RunState.READY), *(made(run) for run in runs)])

        assert (store.runs(), store.jobs(), store.events()) == before
        sa.event.remove(store.database.engine, "checkout", _no_more_pages)
        sa.event.listen(store.database.engine, "checkout", _pages_again)
        store.commit([turned(CHAT, RunState.READY), *(made(run) for run in runs)])
        assert len(store.runs()) == 51


def _no_more_pages(connection: sqlite3.Connection, *_: object) -> None:
    connection.execute("PRAGMA max_page_count = 1")  # SQLite raises it to what is there


def _pages_again(connection: sqlite3.Connection, *_: object) -> None:
    connection.execute("PRAGMA max_page_count = 100000")


def test_a_batch_that_cannot_be_written_costs_its_neighbours_nothing(store: Store) -> None:
    good, bad = a_run("good"), a_run("bad", spec="\ud800")  # half of a UTF-16 pair is no text
    failed: list[ModelyardError] = []

    def write(run: Run) -> None:
        try:
            store.commit([made(run)])
        except ModelyardError as error:
            failed.append(error)

    with store.database.writing():
        threads = [threading.Thread(target=write, args=(run,)) for run in (good, bad)]
        for thread in threads:
            thread.start()
    for thread in threads:
        thread.join()

    assert [run.name for run in store.runs()] == ["good"]
    assert [type(error) for error in failed] == [StoreError]


# Not ours to write


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can reach, unlike pytest's."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder
        folder.chmod(0o700)


def _as_nobody(work: Callable[[], None]) -> None:
    """Run ``work`` as a user without rights where this one is root, whom no mode stops."""

    def run() -> None:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        work()

    assert _in_child(run) == 0


def test_a_folder_that_cannot_be_written_is_said(open_folder: Path) -> None:
    folder = open_folder / "state"
    folder.mkdir()
    folder.chmod(0o555)

    def work() -> None:
        with pytest.raises(ConfigError, match="cannot be written: Permission denied"):
            open_store(sqlite_url(folder / "state.db"))

    _as_nobody(work)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(("free", "said"), [(0, "no space left for"), (2**30, "disk I/O error")])
def test_an_error_of_the_disk_is_told_from_a_full_one(
    path: Path, free: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(path)._replace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR | 19 << 8  # of the log's index: rescode.html
    found = sqlite_error(error, str(path))
    assert said in found.what
    assert found.fix


def test_a_store_that_cannot_be_written_can_be_peeked_at(open_folder: Path) -> None:
    path = open_folder / "state.db"
    with open_store(sqlite_url(path)) as store:
        store.commit([made(CHAT)])
    path.chmod(0o444)
    open_folder.chmod(0o555)

    def work() -> None:
        assert [run.name for run in peek(path) or ()] == ["chat"]
        with pytest.raises(ConfigError, match="cannot be written"):
            open_store(sqlite_url(path))

    _as_nobody(work)


def test_a_file_whose_folder_cannot_be_written_is_said(open_folder: Path) -> None:
    path = open_folder / "state.db"
    with open_store(sqlite_url(path)) as store:
        store.commit([made(CHAT)])
    path.chmod(0o666)
    open_folder.chmod(0o555)

    def work() -> None:
        with pytest.raises(StoreError, match="cannot be read or written"):
            open_store(sqlite_url(path)).commit([turned(CHAT, RunState.READY)])

    _as_nobody(work)


def test_a_folder_in_the_place_of_the_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Is a directory"):
        open_store(sqlite_url(tmp_path))


# PostgreSQL


@pytest.mark.postgres
def test_a_server_that_is_not_there_is_busy_and_its_password_is_not_shown() -> None:
    url = "postgresql://me:hunter2@127.0.0.1:1/store"

    with pytest.raises(StoreBusy, match="cannot be reached") as caught:
        open_store(url, busy_s=1)

    assert "hunter2" not in str(caught.value)


@pytest.mark.postgres
def test_a_database_that_is_not_there_is_said(postgres: str) -> None:
    with pytest.raises(StoreBusy, match="does not exist") as caught:
        open_store(postgres.format("nowhere"))

    assert caught.value.fix == "check the server and MODELYARD_DATABASE_URL"


@pytest.mark.postgres
def test_connections_that_the_server_closed_are_made_again(postgres_store_url: str) -> None:
    with open_store(postgres_store_url) as store:
        store.commit([made(CHAT)])
        with store.database.reading() as connection:
            others = (
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE pid <> pg_backend_pid() AND datname = 'store'"
            )
            with open_store(postgres_store_url) as killer, killer.database.reading() as knife:
                knife.execute(sa.text(others)).all()
            connection.invalidate()

        store.commit([turned(CHAT, RunState.READY)])

        assert store.run("chat").serial == 2


def test_values_written_while_peeking_are_whole(path: Path) -> None:
    with open_store(sqlite_url(path)) as store, closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN")
        other.execute("SELECT * FROM runs").fetchall()  # keeps the log from being folded in
        store.commit([turned(CHAT, RunState.READY, seconds=5)])

        assert peek(path) == store.runs()
        assert store.run("chat").since == T0


def test_a_message_that_no_database_holds_is_made_legible(store: Store) -> None:
    event = replace(an_event(CHAT), message="a\0b\ud800c", cause="ünder \U0001f600")
    store.commit([Turn(replace(CHAT, reason="\0"), event)])

    (_, read), *_ = store.events()
    assert (read.message, read.cause) == ("a\ufffdb\ufffdc", "ünder \U0001f600")
    assert store.run("chat").reason == "\ufffd"


def test_a_spec_that_no_database_holds_is_refused_for_good(store: Store) -> None:
    with pytest.raises(StoreError) as caught:
        store.commit([made(a_run("chat", spec="\ud800"))])

    assert not isinstance(caught.value, StoreBusy)
    assert store.runs() == []


@pytest.mark.postgres
def test_a_spec_that_postgresql_does_not_hold_is_refused_for_good(postgres_store_url: str) -> None:
    with open_store(postgres_store_url) as store, pytest.raises(StoreError, match="NUL") as caught:
        store.commit([made(a_run("chat", spec="\0"))])

    assert not isinstance(caught.value, StoreBusy)
