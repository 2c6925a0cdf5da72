"""Decide what a group of batches does to the tables, in order; touches nothing.

Several threads' batches share one transaction. Each is judged against what the ones before it
leave behind: a batch whose run has moved is refused alone, and the others go on. What is left
is at most one row per run and job, and every event.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.errors import StateMoved
from orchestrator.frozen import frozen
from orchestrator.reconcile.steps import Forget, ForgetJob, Record, Told, Turn, Write
from orchestrator.store.rows import event_row, job_row, run_row
from orchestrator.store.values import Kept

_FIX = "run the command again: it decides on what is there now"


@frozen
class PutRun:
    """Insert or update a run; ``was`` is the serial its value was read at, 0 for a new one."""

    id: str
    name: str
    was: int
    row: Mapping[str, Any]


@frozen
class PutJob:
    """Insert or update a job of a run that is there."""

    run_id: str
    name: str
    row: Mapping[str, Any]


@frozen
class DropJob:
    """Delete a job of a run that is there; one that is gone is no error."""

    run_id: str
    name: str


@frozen
class DropRun:
    """Delete a run and its jobs."""

    id: str
    name: str


@frozen
class Batch:
    """The writes of one caller, all or none, ready for the database.

    ``expected`` holds the serials at which runs were read, where the caller minds.
    """

    puts: tuple[PutRun | PutJob | DropJob | DropRun, ...]
    events: tuple[Mapping[str, Any], ...]
    expected: Mapping[str, int]
    kept: tuple[Kept, ...] = ()

    def run_ids(self) -> set[str]:
        """Return the ids of every run this batch speaks of."""
        return {p.run_id if isinstance(p, PutJob | DropJob) else p.id for p in self.puts} | set(self.expected)

    def run_names(self) -> set[str]:
        """Return the names that new runs would take."""
        return {p.name for p in self.puts if isinstance(p, PutRun) and p.was == 0}


def batch_of(writes: Iterable[Write], expected: Mapping[str, int], kept: Iterable[Kept] = ()) -> Batch:
    """Return writes as rows.

    Raises:
        ValueError: a time has no zone.
    """
    puts: list[PutRun | PutJob | DropJob | DropRun] = []
    events = []
    for write in writes:
        if not isinstance(write, Told):
            puts.append(_put(write))
        if write.event is not None:
            project = None if isinstance(write, Record | ForgetJob | Told) else write.run.project
            events.append({**event_row(write.event), "project": project})
    return Batch(tuple(puts), tuple(events), expected, tuple(kept))


def _put(write: Turn | Record | Forget | ForgetJob) -> PutRun | PutJob | DropJob | DropRun:
    match write:
        case Turn(run, event):
            changed_at = event.at if event else run.updated_at or run.since
            return PutRun(run.id, run.name, run.serial, run_row(run, changed_at=changed_at))
        case Record(job, _):
            return PutJob(job.run_id, job.name, job_row(job))
        case Forget(run, _):
            return DropRun(run.id, run.name)
        case ForgetJob(job):
            return DropJob(job.run_id, job.name)


@dataclass(slots=True)
class Settled:
    """What one transaction writes, and which batches it refuses (by their place in the group)."""

    dropped: list[str] = field(default_factory=list)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    jobs: dict[str, dict[str, Mapping[str, Any]]] = field(default_factory=dict)
    """By run, then by launch."""
    forgotten: dict[str, set[str]] = field(default_factory=dict)
    """Jobs that are deleted, by run."""
    events: list[dict[str, Any]] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    refused: dict[int, StateMoved] = field(default_factory=dict)
    serials: dict[int, dict[str, int]] = field(default_factory=dict)
    """By batch: the serials its runs have now."""


def settle(
    group: Sequence[Batch], *, serials: Mapping[str, int], names: Mapping[str, str], last_event: int
) -> Settled:
    """Return what the group does, given the runs that are there.

    Args:
        group: Batches in the order they came.
        serials: By id, for every run the group speaks of that is in the database.
        names: Which id has a name, for every name the group speaks of that is taken.
        last_event: The serial of the newest event.
    """
    settled = Settled()
    world = _World(dict(serials), dict(names))
    for place, batch in enumerate(group):
        after = _World({}, {}, below=world)
        moved = _moved(batch, after)
        if moved is not None:
            settled.refused[place] = moved
            continue
        world.take(after)
        settled.serials[place] = {id: serial for id, serial in after.serials.items() if serial}
        _write(batch, settled, world)
    for serial, event in enumerate(settled.events, last_event + 1):
        event["serial"] = serial
    return settled


@dataclass(slots=True)
class _World:
    """The runs as they would be: id to serial (0: not there) and name to id ("": free).

    A batch is tried in a world of its own above the one it may yet change.
    """

    serials: dict[str, int]
    names: dict[str, str]
    below: _World | None = None

    def serial(self, id: str) -> int:
        if id in self.serials or self.below is None:
            return self.serials.get(id, 0)
        return self.below.serial(id)

    def holder(self, name: str) -> str:
        if name in self.names or self.below is None:
            return self.names.get(name, "")
        return self.below.holder(name)

    def take(self, after: _World) -> None:
        self.serials.update(after.serials)
        self.names.update(after.names)


def _moved(batch: Batch, world: _World) -> StateMoved | None:
    """Put the batch into ``world``, or say why it cannot be."""
    for id, serial in batch.expected.items():
        if world.serial(id) != serial:
            name = next((put.name for put in batch.puts if isinstance(put, PutRun) and put.id == id), id)
            return StateMoved(f"run {name!r} changed since it was read", fix=_FIX)
    for put in batch.puts:
        match put:
            case PutRun(id, name, was, _):
                serial = world.serial(id)
                if not serial and was:
                    return StateMoved(f"run {name!r} was deleted since it was read", fix=_FIX)
                if not serial and world.holder(name):
                    return StateMoved(f"another run called {name!r} was made meanwhile", fix=_FIX)
                world.serials[id], world.names[name] = serial + 1, id
            case PutJob(run_id, name) | DropJob(run_id, name):
                if not world.serial(run_id):
                    return StateMoved(f"the run of {name!r} was deleted since it was read", fix=_FIX)
            case DropRun(id, name):
                if not world.serial(id):
                    return StateMoved(f"run {name!r} was deleted since it was read", fix=_FIX)
                world.serials[id], world.names[name] = 0, ""
    return None


def _write(batch: Batch, settled: Settled, world: _World) -> None:
    """Add a batch that was taken to what the transaction writes; the last word on a row counts."""
    for put in batch.puts:
        match put:
            case PutRun(id, _, _, row):
                settled.runs[id] = {**row, "serial": world.serial(id)}
            case PutJob(run_id, name, row):
                settled.jobs.setdefault(run_id, {})[name] = row
                settled.forgotten.get(run_id, set()).discard(name)
            case DropJob(run_id, name):
                settled.jobs.get(run_id, {}).pop(name, None)
                settled.forgotten.setdefault(run_id, set()).add(name)
            case DropRun(id, _):
                settled.runs.pop(id, None)
                settled.jobs.pop(id, None)
                settled.forgotten.pop(id, None)
                settled.dropped.append(id)
    settled.events.extend({**event} for event in batch.events)
    settled.kept.extend(batch.kept)
