"""Drift: where the places differ from the record; only compares, and puts nothing right."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from orchestrator.backend import Instance, Phase
from orchestrator.reconcile import Job, JobState, Run, Wanted

Kind = Literal["missing", "ended", "changed", "unexpected"]
"""*missing*: on record as up and nowhere to be found; *ended*: kept up, and not running; *changed*:
made from another spec; *unexpected*: there, and not on record."""


@dataclass(frozen=True, slots=True, order=True)
class Drift:
    """One thing that differs: a launch or a volume, the run it belongs to, and how it differs."""

    run: str
    subject: str
    backend: str
    kind: Kind
    detail: str


def drifts(
    runs: Sequence[Run],
    jobs: Sequence[Job],
    *,
    instances: Mapping[str, Sequence[Instance]],
    volumes: Sequence[tuple[str, str]],
    held: Mapping[str, Collection[str]],
) -> tuple[Drift, ...]:
    """Return every difference, by run and name.

    A task that has come to its end is no drift, and neither is what is on its way: a launch that
    is still to be started or was asked to stop, a run that is being deleted.

    Args:
        runs: The runs on record.
        jobs: Their jobs.
        instances: What each place says it has, by backend; one that is left out was not asked.
        volumes: The volumes on record, as backend and name.
        held: The volumes each of their places has, by backend.
    """
    settled = {run.id: run for run in runs if run.wanted is not Wanted.DELETE}
    there = {(backend, i.name): i for backend, found in instances.items() for i in found}
    found = [
        drift
        for job in jobs
        if job.run_id in settled and job.backend in instances
        for drift in _job_drift(settled[job.run_id], job, there.get((job.backend, job.name)))
    ]
    known = {(job.backend, job.name) for job in jobs}
    leaving = {run.name for run in runs if run.wanted is Wanted.DELETE}
    for (backend, name), instance in there.items():
        if (backend, name) not in known and instance.run not in leaving:
            detail = "there, and not on record: modelyard gc lists it"
            found.append(Drift(instance.run, name, backend, "unexpected", detail))
    for backend, name in volumes:
        if name not in held[backend]:
            found.append(Drift("", name, backend, "missing", "the volume is not there"))
    return tuple(sorted(found))


_UP = frozenset({JobState.STARTING, JobState.RUNNING, JobState.READY})


def _job_drift(run: Run, job: Job, instance: Instance | None) -> Iterator[Drift]:
    if job.stop_asked_at:
        return
    if job.state in _UP and instance is None:
        yield _drift(run, job, "missing", f"{job.state.value} on record, and not there")
    elif job.state in _UP and instance and instance.phase is Phase.EXITED and run.type != "task":
        yield _drift(run, job, "ended", f"{job.state.value} on record, and ended")
    elif instance and instance.phase is not Phase.EXITED and job.state.is_final:
        yield _drift(run, job, "unexpected", f"{job.state.value} on record, and still there")
    elif instance and instance.spec_hash != job.spec_hash:
        yield _drift(run, job, "changed", "made from another spec than the one on record")


def _drift(run: Run, job: Job, kind: Kind, detail: str) -> Drift:
    return Drift(run.name, job.name, job.backend, kind, detail)
