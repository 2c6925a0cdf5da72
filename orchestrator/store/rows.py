"""Values to rows and back, by column name; the standard library alone, so that ``peek`` stays light."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import fields
from datetime import datetime
from typing import Any

from orchestrator.backend import Rent
from orchestrator.reconcile.values import Job, JobState, Run, RunEvent, RunState, Template, Wanted
from orchestrator.store.codec import decode, encode, from_micros, legible, to_micros
from orchestrator.store.values import Artifact, Cordon, Fleet

Row = Mapping[str, Any]


def run_row(run: Run, *, changed_at: datetime) -> dict[str, Any]:
    """Return the row of a run but for its serial, which only the writer knows."""
    return {
        "id": run.id,
        "name": run.name,
        "type": run.type,
        "wanted": run.wanted.value,
        "state": run.state.value,
        "reason": legible(run.reason),
        "was_ready": run.was_ready,
        "ready": run.ready,
        "spec_hash": run.spec_hash,
        "since": to_micros(run.since),
        "created_at": to_micros(run.created_at or run.since),
        "updated_at": to_micros(changed_at),
        "template": _template_text(run.template),
        "spec": run.spec,
        "plan": run.plan,
        "set_name": run.set_name,
        "project": run.project,
    }


# A run's template outlives many transitions of the run and passes over it: most of a row's
# cost, paid once. Templates cannot change, so that one may stand in many runs.
@functools.lru_cache(maxsize=16_384)
def _template_text(template: Template) -> str:
    return encode(template)


@functools.lru_cache(maxsize=16_384)
def _template_of(text: str) -> Template:
    template: Template = decode(Template, text)
    return template


def run_of(row: Row) -> Run:
    """Return the run that a row holds."""
    return Run(
        id=row["id"],
        name=row["name"],
        type=row["type"],
        spec=row["spec"],
        spec_hash=row["spec_hash"],
        template=_template_of(row["template"]),
        since=from_micros(row["since"]),
        wanted=Wanted(row["wanted"]),
        state=RunState(row["state"]),
        reason=row["reason"],
        was_ready=bool(row["was_ready"]),  # SQLite keeps 0 and 1
        ready=row["ready"],
        plan=row["plan"],
        serial=row["serial"],
        created_at=from_micros(row["created_at"]),
        updated_at=from_micros(row["updated_at"]),
        set_name=row["set_name"],
        project=row["project"],
    )


def job_row(job: Job) -> dict[str, Any]:
    """Return the row of a job."""
    return {
        "run_id": job.run_id,
        "name": job.name,
        "replica": job.replica,
        "node": job.node,
        "attempt": job.attempt,
        "spec_hash": job.spec_hash,
        "backend": job.backend,
        "state": job.state.value,
        "exit_code": job.exit_code,
        "reason": legible(job.reason),
        "message": legible(job.message),
        "stop_cause": legible(job.stop_cause),
        "created_at": to_micros(job.created_at),
        "stop_asked_at": _micros(job.stop_asked_at),
        "started_at": _micros(job.started_at),
        "ready_at": _micros(job.ready_at),
        "finished_at": _micros(job.finished_at),
        "address": job.address,
        "ports": encode(job.ports),
        "devices": encode(job.devices),
        "rent": encode(job.rent) if job.rent else None,
        "machine": job.machine,
        "adapters": encode(job.adapters),
    }


# Most jobs of a pass have the ports and devices they had in the last one.
@functools.lru_cache(maxsize=16_384)
def _ports_of(text: str) -> Mapping[int, tuple[str, int]]:
    ports: Mapping[int, tuple[str, int]] = decode(Mapping[int, tuple[str, int]], text)
    return ports


@functools.lru_cache(maxsize=16_384)
def _words_of(text: str) -> tuple[str, ...]:
    words: tuple[str, ...] = decode(tuple[str, ...], text)
    return words


def job_of(row: Row) -> Job:
    """Return the job that a row holds."""
    return Job(
        run_id=row["run_id"],
        name=row["name"],
        replica=row["replica"],
        node=row["node"],
        attempt=row["attempt"],
        spec_hash=row["spec_hash"],
        backend=row["backend"],
        state=JobState(row["state"]),
        created_at=from_micros(row["created_at"]),
        exit_code=row["exit_code"],
        reason=row["reason"],
        message=row["message"],
        stop_asked_at=_time(row["stop_asked_at"]),
        stop_cause=row["stop_cause"],
        started_at=_time(row["started_at"]),
        ready_at=_time(row["ready_at"]),
        finished_at=_time(row["finished_at"]),
        address=row["address"],
        ports=_ports_of(row["ports"]),
        devices=_words_of(row["devices"]),
        rent=decode(Rent, row["rent"]) if row["rent"] else None,
        machine=row["machine"],
        adapters=_words_of(row["adapters"]),
    )


def event_row(event: RunEvent) -> dict[str, Any]:
    """Return the row of an event but for its serial, which only the writer knows."""
    return {
        "run_id": event.run_id,
        "run": event.run,
        "at": to_micros(event.at),
        "subject": event.subject,
        "before": event.before,
        "after": event.after,
        "cause": legible(event.cause),
        "action": event.action,
        "message": legible(event.message),
    }


def event_of(row: Row) -> RunEvent:
    """Return the event that a row holds."""
    return RunEvent(
        run_id=row["run_id"],
        run=row["run"],
        at=from_micros(row["at"]),
        subject=row["subject"],
        before=row["before"],
        after=row["after"],
        cause=row["cause"],
        action=row["action"],
        message=row["message"],
    )


def artifact_row(artifact: Artifact) -> dict[str, Any]:
    """Return the row of an artifact."""
    row = {field.name: getattr(artifact, field.name) for field in fields(artifact)}
    return row | {"metrics": encode(artifact.metrics), "recorded_at": to_micros(artifact.recorded_at)}


def artifact_of(row: Row) -> Artifact:
    """Return the artifact that a row holds."""
    metrics = decode(tuple[tuple[str, float], ...], row["metrics"])
    return Artifact(**{**row, "metrics": metrics, "recorded_at": from_micros(row["recorded_at"])})


def fleet_of(row: Row) -> Fleet:
    """Return the fleet that a row holds."""
    return Fleet(**{**row, "created_at": from_micros(row["created_at"])})


def cordon_of(row: Row) -> Cordon:
    """Return the cordon that a row holds."""
    return Cordon(**{**row, "since": from_micros(row["since"])})


def _micros(at: datetime | None) -> int | None:
    return None if at is None else to_micros(at)


def _time(micros: int | None) -> datetime | None:
    return None if micros is None else from_micros(micros)
