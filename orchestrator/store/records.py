"""The store: what should be, read and changed by typed writes, safe from any thread."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy.sql import ClauseElement

from orchestrator.errors import ModelyardError, NotFound
from orchestrator.reconcile.steps import Write
from orchestrator.reconcile.values import Job, Run, RunEvent, RunState, Wanted
from orchestrator.store import leases
from orchestrator.store.access import Access
from orchestrator.store.codec import from_micros, legible, to_micros
from orchestrator.store.database import Database
from orchestrator.store.glance import Glance
from orchestrator.store.group import Group
from orchestrator.store.kept import statement_of
from orchestrator.store.prepared import Prepared, among, insert_for
from orchestrator.store.rows import (
    artifact_of,
    artifact_row,
    cordon_of,
    event_of,
    fleet_of,
    job_of,
    run_of,
)
from orchestrator.store.secrets import Secrets
from orchestrator.store.settle import Batch, batch_of, settle
from orchestrator.store.tables import artifacts, cordons, events, fleets, jobs, runs, secrets, volumes
from orchestrator.store.values import MAIN, Artifact, Cordon, Fleet, Kept, Uncordoned, Volume, of_hosts

_IN_LIST = 10_000
"""Values in one IN list; SQLite takes 32,766 in a statement, PostgreSQL 65,535."""


class Store:
    """Runs, jobs, events, volumes and secrets of one deployment.

    Every method may raise ``StoreBusy`` (another process holds the database too long, or its
    server does not answer) and ``StoreError``; what raised was not done, not even in part.
    """

    def __init__(self, database: Database, *, deployment: str, secret_key: str | None) -> None:
        self.database = database
        self.deployment = deployment
        """Tells what this store owns from what another one does on the same backend."""
        self.secrets = Secrets(database, key=secret_key)
        self.access = Access(database)
        self._sql = _Statements(database.engine.dialect)
        self._group: Group[Batch, Mapping[str, int]] = Group(self._write)
        self._glances: list[Glance] = []

    @classmethod
    def open(cls, url: str, *, secret_key: str | None, busy_s: float) -> Store:
        """Open the database at ``url`` and bring its schema up to date."""
        database = Database(url, busy_s=busy_s)
        try:
            return cls(database, deployment=database.prepare(), secret_key=secret_key)
        except BaseException:
            database.close()
            raise

    def close(self) -> None:
        """Close every connection; the store is of no use after that."""
        for glance in self._glances:
            glance.close()
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def runs(self) -> list[Run]:
        """Return every run, by name."""
        # Sorted here: databases order text by the language they were made for.
        return sorted(map(run_of, self._rows(sa.select(runs))), key=lambda run: run.name)

    def active_runs(self) -> list[Run]:
        """Return the runs for which something may still be to do, by name."""
        ended = [state.value for state in RunState if state.is_final]
        active = runs.c.state.not_in(ended) | (runs.c.wanted == Wanted.DELETE.value)
        return sorted(map(run_of, self._rows(sa.select(runs).where(active))), key=lambda run: run.name)

    def run(self, name: str) -> Run:
        """Return the run called ``name``.

        Raises:
            NotFound: there is none.
        """
        for row in self._rows(sa.select(runs).where(runs.c.name == name)):
            return run_of(row)
        raise NotFound(f"no run {name!r}", fix="modelyard ps lists the runs")

    def jobs(self, run_id: str | None = None) -> list[Job]:
        """Return a run's jobs, or those of all runs, by run, replica, node and attempt."""
        found = sa.select(jobs)
        if run_id is not None:
            found = found.where(jobs.c.run_id == run_id)
        return sorted(
            map(job_of, self._rows(found)), key=lambda job: (job.run_id, job.replica, job.node, job.attempt)
        )

    def jobs_of(self, run_ids: Collection[str]) -> dict[str, list[Job]]:
        """Return the jobs of these runs by run id, each run's by replica, node and attempt."""
        found: dict[str, list[Job]] = {id: [] for id in run_ids}
        wanted = sorted(found)
        order = (jobs.c.replica, jobs.c.node, jobs.c.attempt)
        for start in range(0, len(wanted), _IN_LIST):
            part = wanted[start : start + _IN_LIST]
            for row in self._rows(sa.select(jobs).where(jobs.c.run_id.in_(part)).order_by(*order)):
                found[row["run_id"]].append(job_of(row))
        return found

    def events(
        self, run: str | None = None, *, after: int = 0, limit: int = 1_000, project: str | None = None
    ) -> list[tuple[int, RunEvent]]:
        """Return events and their serials, oldest first: of the run of that name, or of all.

        With ``project`` only those of its runs, deleted ones too.

        Serials go up and become visible in order, so that a reader who goes on ``after`` the
        last one it saw misses nothing.
        """
        found = sa.select(events).where(events.c.serial > after).order_by(events.c.serial).limit(limit)
        if run is not None:
            found = found.where(events.c.run == run)
        if project is not None:
            found = found.where(events.c.project == project)
        return [(row["serial"], event_of(row)) for row in self._rows(found)]

    def last_serial(self) -> int:
        """Return the serial of the newest event, 0 when nothing happened yet."""
        with self.database.reading() as connection:
            return int(self._sql.last_event.run(connection).scalar_one())

    def glance(self) -> Callable[[], int]:
        """Return what tells the newest serial at little cost, for one thread that asks all the time."""
        if self.database.path is not None:
            return self.last_serial  # a file: no round trips
        self._glances.append(Glance(self.database.engine, self._sql.last_event, self.last_serial))
        return self._glances[-1]

    def commit(
        self,
        writes: Sequence[Write],
        *,
        expected: Mapping[str, int] | None = None,
        kept: Sequence[Kept] = (),
    ) -> Mapping[str, int]:
        """Make ``writes`` and ``kept`` durable, all or none; return the new serials of the runs they turned.

        A ``Turn`` raises its run's serial by one and inserts a run that is not there yet. Jobs
        have no serial of their own and leave their run's alone. Threads that commit at the
        same time share one transaction.

        Args:
            writes: What ``reconcile`` or a command wants written, in order.
            expected: The serials at which runs were read, by run id, 0 for one that was not
                there.
            kept: What is written down with them, after them and in order.

        Raises:
            StateMoved: a run is not at the serial expected, is gone, or its name is taken.
            ValueError: a time has no zone.
        """
        return self._group.submit(batch_of(writes, expected or {}, kept))

    def lease(
        self,
        run_ids: Collection[str],
        *,
        owner: str,
        until: datetime,
        now: datetime,
        is_gone: Callable[[str], bool] = leases.is_gone,
        most: int | None = None,
    ) -> set[str]:
        """Take or renew the right to drive runs; return the ids of those that ``owner`` now has.

        Held by another and not run out means not taken, unless ``is_gone`` says that the other
        has ended. Of those that ``owner`` did not have, ``most`` are taken, in the order given.
        """
        gone = functools.cache(is_gone)
        with self.database.writing() as connection:
            held = self._sql.leases.run(connection, ids=json.dumps(list(run_ids)))
            free = {
                row.id: row.lease_owner == owner
                for row in held
                if leases.is_free(
                    row.lease_owner,
                    row.lease_until and from_micros(row.lease_until),
                    owner=owner,
                    now=now,
                    gone=row.lease_owner not in (None, owner) and gone(row.lease_owner),
                )
            }
            new = [id for id in run_ids if id in free and not free[id]]
            taken = {id for id, ours in free.items() if ours}.union(new if most is None else new[:most])
            self._sql.take_leases.run(
                connection, ids=json.dumps(list(taken)), owner=owner, until=to_micros(until)
            )
        return taken

    def renew(self, owner: str, *, until: datetime) -> None:
        """Let every lease of ``owner`` end at ``until`` instead."""
        with self.database.writing() as connection:
            connection.execute(
                runs.update().where(runs.c.lease_owner == owner).values(lease_until=to_micros(until))
            )

    def release(self, owner: str, run_ids: Collection[str]) -> None:
        """Give leases back; those that ``owner`` does not have are left alone."""
        with self.database.writing() as connection:
            self._sql.drop_leases.run(connection, ids=json.dumps(list(run_ids)), owner=owner)

    def volumes(self) -> list[Volume]:
        """Return the volumes that specs asked for, by name."""
        return sorted(map(_volume_of, self._rows(sa.select(volumes))), key=lambda volume: volume.name)

    def forget_volume(self, name: str) -> None:
        """Strike out a volume; one that is not there is no error."""
        with self.database.writing() as connection:
            connection.execute(volumes.delete().where(volumes.c.name == name))

    def fleets(self) -> list[Fleet]:
        """Return the fleets that specs asked for, by name."""
        return sorted(map(fleet_of, self._rows(sa.select(fleets))), key=lambda fleet: fleet.name)

    def forget_fleet(self, name: str) -> None:
        """Strike out a fleet, the cordons of its hosts and the values it was given.

        One that is not there is no error.
        """
        with self.database.writing() as connection:
            connection.execute(secrets.delete().where(secrets.c.given_to == of_hosts(name)))
            connection.execute(fleets.delete().where(fleets.c.name == name))
            connection.execute(cordons.delete().where(cordons.c.place == name))

    def cordons(self) -> list[Cordon]:
        """Return the hosts on which nothing new starts, by place and name."""
        found = map(cordon_of, self._rows(sa.select(cordons)))
        return sorted(found, key=lambda each: (each.place, each.host))

    def put_cordon(self, cordon: Cordon) -> None:
        """Let nothing new start on a host, in place of what was said of it before."""
        row = {"since": to_micros(cordon.since), "reason": legible(cordon.reason), "leave": cordon.leave}
        put = insert_for(self.database.engine.dialect, cordons)
        put = put.values(place=cordon.place, host=cordon.host, **row)
        with self.database.writing() as connection:
            connection.execute(put.on_conflict_do_update(index_elements=["place", "host"], set_=row))

    def forget_cordon(self, place: str, host: str) -> None:
        """Let launches start on a host again; one that is not held back is no error."""
        with self.database.writing() as connection:
            connection.execute(statement_of(Uncordoned(place, host), self.database.engine.dialect))

    def artifacts(self, run_id: str) -> list[Artifact]:
        """Return what a run left, by kind."""
        found = sa.select(artifacts).where(artifacts.c.run_id == run_id)
        return sorted(map(artifact_of, self._rows(found)), key=lambda each: each.kind)

    def put_artifacts(self, run_id: str, found: Sequence[Artifact]) -> None:
        """Write down what a run left, in place of what it left before.

        Nothing is written for a run that is gone.
        """
        with self.database.writing() as connection:
            if not connection.execute(sa.select(runs.c.id).where(runs.c.id == run_id)).first():
                return
            connection.execute(artifacts.delete().where(artifacts.c.run_id == run_id))
            if found:
                connection.execute(artifacts.insert(), [artifact_row(each) for each in found])

    def _rows(self, statement: sa.Select[Any]) -> list[Mapping[str, Any]]:
        with self.database.reading() as connection:
            found = connection.execute(statement)
            keys = tuple(found.keys())
            return [dict(zip(keys, row, strict=True)) for row in found]  # half of what mappings() takes

    def _write(self, group: Sequence[Batch]) -> list[Mapping[str, int] | ModelyardError]:
        sql = self._sql
        ids = {id for batch in group for id in batch.run_ids()}
        names = {name for batch in group for name in batch.run_names()}
        with self.database.writing() as connection:
            there = sql.there.run(connection, ids=json.dumps(list(ids)), names=json.dumps(list(names))).all()
            settled = settle(
                group,
                serials={row.id: row.serial for row in there},
                names={row.name: row.id for row in there},
                last_event=sql.last_event.run(connection).scalar_one(),
            )
            # Deletes first: a name that one batch frees, the next may take.
            dropped = [{"id": id} for id in settled.dropped]
            # a fleet goes with its run, and so do the values that either was given
            for drop in (sql.drop_secrets, sql.drop_cordons, sql.drop_fleets, sql.drop_runs):
                drop.run_many(connection, dropped)
            sql.put_runs.run_many(connection, list(settled.runs.values()))
            sql.put_jobs.run_many(connection, [row for of in settled.jobs.values() for row in of.values()])
            forgotten = [{"run_id": id, "name": each} for id, of in settled.forgotten.items() for each in of]
            sql.drop_jobs.run_many(connection, forgotten)
            sql.put_events.run_many(connection, settled.events)
            for kept in settled.kept:
                connection.execute(statement_of(kept, self.database.engine.dialect))
        return [settled.refused.get(place) or settled.serials[place] for place in range(len(group))]


class _Statements:
    """What is executed often, for one dialect."""

    def __init__(self, dialect: sa.Dialect) -> None:
        def prepared(statement: ClauseElement) -> Prepared:
            return Prepared(statement, dialect)

        mine = sa.and_(among(runs.c.id, "ids", dialect), runs.c.lease_owner == sa.bindparam("owner"))
        given = among(runs.c.id, "ids", dialect)
        newest = sa.func.coalesce(sa.func.max(events.c.serial), 0)
        self.there = prepared(
            sa.select(runs.c.id, runs.c.name, runs.c.serial).where(
                given | among(runs.c.name, "names", dialect)
            )
        )
        self.last_event = prepared(sa.select(newest))
        self.drop_runs = prepared(runs.delete().where(runs.c.id == sa.bindparam("id")))
        held = sa.select(runs.c.name).where(runs.c.id == sa.bindparam("id"), runs.c.type == "fleet")
        named = sa.select(runs.c.name).where(runs.c.id == sa.bindparam("id")).scalar_subquery()
        self.drop_secrets = prepared(secrets.delete().where(secrets.c.given_to == named))
        self.drop_fleets = prepared(fleets.delete().where(fleets.c.name == held.scalar_subquery()))
        self.drop_cordons = prepared(cordons.delete().where(cordons.c.place == held.scalar_subquery()))
        mine_by_name = (jobs.c.run_id == sa.bindparam("run_id")) & (jobs.c.name == sa.bindparam("name"))
        self.drop_jobs = prepared(jobs.delete().where(mine_by_name))
        kept = ("id", "name", "created_at")
        self.put_runs = prepared(_upsert(dialect, runs, keep=kept))
        self.put_jobs = prepared(_upsert(dialect, jobs, keep=("run_id", "name")))
        # A job's event does not say whose run it is of: the run does, and it is there.
        owner = sa.select(runs.c.project).where(runs.c.id == sa.bindparam("run_id")).scalar_subquery()
        of = sa.func.coalesce(sa.bindparam("project", type_=sa.Text), owner, MAIN)
        columns: dict[str, Any] = {name: sa.bindparam(name) for name in events.c.keys() if name != "project"}  # noqa: SIM118  # columns are no dict
        self.put_events = prepared(events.insert().values({**columns, "project": of}))
        self.leases = prepared(sa.select(runs.c.id, runs.c.lease_owner, runs.c.lease_until).where(given))
        self.take_leases = prepared(
            runs.update()
            .where(given)
            .values(lease_owner=sa.bindparam("owner"), lease_until=sa.bindparam("until"))
        )
        self.drop_leases = prepared(
            runs.update().where(mine).values(lease_owner=sa.null(), lease_until=sa.null())
        )


def _upsert(dialect: sa.Dialect, table: sa.Table, *, keep: Collection[str]) -> sa.Insert:
    """Return an insert that updates all columns but ``keep`` where the row is there."""
    columns = [column.name for column in table.columns if not column.name.startswith("lease_")]
    put = insert_for(dialect, table).values({name: sa.bindparam(name) for name in columns})
    changes = {name: put.excluded[name] for name in columns if name not in keep}
    return put.on_conflict_do_update(index_elements=list(table.primary_key), set_=changes)


def _volume_of(row: Mapping[str, Any]) -> Volume:
    return Volume(
        name=row["name"],
        backend=row["backend"],
        spec=row["spec"],
        spec_hash=row["spec_hash"],
        created_at=from_micros(row["created_at"]),
        set_name=row["set_name"],
        project=row["project"],
    )
