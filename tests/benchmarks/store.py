"""Print how many durable transitions a second the store writes, beside plainer ways.

A transition is the UPDATE of a run or a job and the INSERT of its event; rows are of 1.5 KB and
every way commits with ``synchronous = FULL`` to a file in the same folder, in the same run.

Run it with ``python -m tests.benchmarks.store``.
"""

from __future__ import annotations

import argparse
import shutil
import sqlite3
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import orm

from orchestrator.reconcile.steps import Record, Turn
from orchestrator.reconcile.values import JobState, Run, RunState
from orchestrator.store import open_store
from orchestrator.store.records import Store
from orchestrator.store.tables import events, runs
from orchestrator.store.urls import sqlite_url
from tests.store.values import a_job, a_run, an_event, made

RUNS = 1_000
GOAL_PER_S = 5_000


@dataclass(frozen=True)
class Measured:
    """Medians over the rounds."""

    way: str
    per_s: float
    cpu_us: float


def of_1500_bytes(name: str) -> Run:
    """A run whose row takes 1.5 KB."""
    run = a_run(name)
    launch = replace(run.template.launch, files=())
    return replace(run, template=replace(run.template, launch=launch), spec='{"padding":"' + "x" * 100 + '"}')


@contextmanager
def filled(folder: Path, name: str) -> Iterator[tuple[Store, list[Run]]]:
    """A store on disk with a thousand runs in it."""
    with open_store(sqlite_url(folder / f"{name}.db")) as store:
        made_runs = [of_1500_bytes(f"run-{n}") for n in range(RUNS)]
        store.commit([made(run) for run in made_runs])
        yield store, made_runs


def transitions(runs_: Sequence[Run], number: int) -> Turn | Record:
    """The ``number``-th transition: of a run, then of a job, in turns."""
    run = runs_[number // 2 % len(runs_)]
    if number % 2:
        return Record(a_job(run, state=JobState.RUNNING), an_event(run))
    return Turn(replace(run, state=RunState.RUNNING), an_event(run))


def in_batches(size: int) -> Callable[[Path, float], int]:
    """One thread that commits ``size`` transitions at a time."""

    def work(folder: Path, seconds: float) -> int:
        with filled(folder, f"batches-{size}") as (store, of):
            return _until(seconds, lambda n: _batch(store, of, n, size))

    return work


def _batch(store: Store, of: Sequence[Run], number: int, size: int) -> int:
    store.commit([transitions(of, n) for n in range(number, number + size)])
    return size


def in_threads(count: int) -> Callable[[Path, float], int]:
    """``count`` threads that commit one transition at a time."""

    def work(folder: Path, seconds: float) -> int:
        with filled(folder, f"threads-{count}") as (store, of):
            done = [0] * count

            def one(thread: int) -> None:
                own = of[thread::count]
                done[thread] = _until(seconds, lambda n: _batch(store, own, n, 1))

            threads = [threading.Thread(target=one, args=(n,)) for n in range(count)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return sum(done)

    return work


def sqlite_one_by_one(folder: Path, seconds: float) -> int:
    """The standard library's sqlite3, one transaction per transition: the floor of what a commit costs."""
    with filled(folder, "plain") as (store, of):
        connection = sqlite3.connect(folder / "plain.db", isolation_level=None)
        connection.execute("PRAGMA synchronous = FULL")
        last = store.last_serial()

        def one(number: int) -> int:
            run = of[number % len(of)]
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(
                "UPDATE runs SET state = ?, serial = serial + 1 WHERE id = ?", ("running", run.id)
            )
            connection.execute(
                "INSERT INTO events (serial, run_id, run, at, subject, before, after, cause, action, message)"
                " VALUES (?, ?, ?, 0, ?, 'queued', 'running', 'applied', 'turn', '')",
                (last + 1 + number, run.id, run.name, run.name),
            )
            connection.execute("COMMIT")
            return 1

        try:
            return _until(seconds, one)
        finally:
            connection.close()


class _Base(orm.DeclarativeBase):
    pass


class _OrmRun(_Base):
    __table__ = runs.to_metadata(_Base.metadata)


class _OrmEvent(_Base):
    __table__ = events.to_metadata(_Base.metadata)


def orm_one_by_one(folder: Path, seconds: float) -> int:
    """SQLAlchemy's ORM, a session per transition: the way most control planes write."""
    with filled(folder, "orm") as (store, of):
        make = orm.sessionmaker(store.database.engine.execution_options(modelyard_write=True))
        last = store.last_serial()

        def one(number: int) -> int:
            with make.begin() as session:
                run = session.scalars(
                    sa.select(_OrmRun).where(_OrmRun.__table__.c.id == of[number % len(of)].id)
                ).one()
                run.state, run.serial = "running", run.serial + 1  # type: ignore[attr-defined]  # from the table
                session.add(_orm_event(last + 1 + number, of[number % len(of)]))
            return 1

        return _until(seconds, one)


def _orm_event(serial: int, run: Run) -> _OrmEvent:
    return _OrmEvent(
        serial=serial,
        run_id=run.id,
        run=run.name,
        at=0,
        subject=run.name,
        before="queued",
        after="running",
        cause="applied",
        action="turn",
        message="",
    )


def _until(seconds: float, step: Callable[[int], int]) -> int:
    """Call ``step`` with the number of transitions so far until the time is over; return that number."""
    end, done = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        done += step(done)
    return done


WAYS: dict[str, Callable[[Path, float], int]] = {
    "store, batches of 200": in_batches(200),
    "store, batches of 50": in_batches(50),
    "store, 64 threads": in_threads(64),
    "store, 8 threads": in_threads(8),
    "store, one by one": in_threads(1),
    "sqlite3, one by one": sqlite_one_by_one,
    "SQLAlchemy ORM, one by one": orm_one_by_one,
}


def measure(way: str, *, folder: Path, seconds: float, rounds: int) -> Measured:
    """Return the medians of one way over ``rounds``; the CPU of filling the store is taken off."""
    per_s, cpu_us = [], []
    for number in range(rounds):
        _, filling_s = _timed(WAYS[way], folder / f"{number}-empty", 0)
        done, cpu_s = _timed(WAYS[way], folder / f"{number}", seconds)
        per_s.append(done / seconds)
        cpu_us.append((cpu_s - filling_s) / done * 1e6)
    return Measured(way, statistics.median(per_s), statistics.median(cpu_us))


def _timed(way: Callable[[Path, float], int], folder: Path, seconds: float) -> tuple[int, float]:
    folder.mkdir()
    before = time.process_time()
    done = way(folder, seconds)
    cpu_s = time.process_time() - before
    shutil.rmtree(folder)
    return done, cpu_s


def main() -> None:
    """Measure every way and print the table."""
    arguments = argparse.ArgumentParser(description="How many durable transitions a second the store writes.")
    arguments.add_argument("--seconds", type=float, default=2.0, help="for each way and round")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--folder", type=Path, help="where the files go; the system's temporary folder")
    chosen = arguments.parse_args()
    found = []
    print(f"{'way':<28}{'transitions/s':>14}{'CPU us each':>14}")
    for way in WAYS:
        with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
            found.append(measure(way, folder=Path(folder), seconds=chosen.seconds, rounds=chosen.rounds))
        print(f"{way:<28}{found[-1].per_s:>14,.0f}{found[-1].cpu_us:>14,.0f}", flush=True)
    best = max(each.per_s for each in found if each.way.startswith("store"))
    print(f"goal {GOAL_PER_S:,}/s: {'reached' if best >= GOAL_PER_S else 'missed'}")
    print(f"{best / found[-1].per_s:.0f} times the ORM's rate")


if __name__ == "__main__":
    main()
