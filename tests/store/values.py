"""Runs, jobs and events to put into a store."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from orchestrator.backend import File, Launch, Mount, Port, Probe, Resources
from orchestrator.reconcile.steps import Record, Turn
from orchestrator.reconcile.values import Job, JobState, Retry, Run, RunEvent, RunState, Template

T0 = datetime(2026, 11, 25, 12, 0, 0, 123456, tzinfo=UTC)
KEY = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="  # "01234567890123456789012345678901", for tests alone


def a_template(name: str) -> Template:
    """A template with something in every kind of field."""
    launch = Launch(
        name=f"{name}-0-0-0",
        run=name,
        spec_hash="5pec",
        image="python:3.12-slim",
        command=("python", "-c", "print('ä \\n 6')"),
        env=(("A", "1"), ("B", "")),
        secrets=(("HF_TOKEN", "hf"),),
        registry_secret=("user", "reference"),
        resources=Resources(cpu=0.5, memory_bytes=2**31, accelerator="H100-80GB", accelerators=2),
        ports=(Port(8000), Port(80, 8080)),
        mounts=(Mount("cache", "/root/.cache"), Mount("/srv", "/srv", "folder", read_only=True)),
        files=(File("/etc/binary", bytes(range(256))),),
        probe=Probe(port=8000, path="/health", headers=(("Accept", "*/*"),)),
    )
    return Template(
        launch, ("docker", "onprem"), replicas=2, retry=Retry(frozenset({"interruption", "no-capacity"}), 60)
    )


def a_run(name: str, *, spec: str = '{"name":"x"}') -> Run:
    return Run(
        id=f"id-{name}",
        name=name,
        type="service",
        spec=spec,
        spec_hash="5pec",
        template=a_template(name),
        since=T0,
        plan='{"offers":[]}',
    )


def a_job(run: Run, *, replica: int = 0, attempt: int = 0, state: JobState = JobState.PROVISIONING) -> Job:
    return Job(
        run_id=run.id,
        name=f"{run.name}-{replica}-0-{attempt}",
        replica=replica,
        node=0,
        attempt=attempt,
        spec_hash=run.spec_hash,
        backend="docker",
        state=state,
        created_at=T0,
    )


def an_event(run: Run, after: str = "running", *, seconds: float = 0, message: str = "") -> RunEvent:
    return RunEvent(
        run_id=run.id,
        run=run.name,
        at=T0 + timedelta(seconds=seconds),
        subject=run.name,
        before="queued",
        after=after,
        cause="applied",
        action="turn",
        message=message,
    )


def made(run: Run) -> Turn:
    """The write that makes a run."""
    return Turn(run, an_event(run, "queued"))


def turned(run: Run, state: RunState, *, seconds: float = 1) -> Turn:
    """The write that brings a run to a state."""
    return Turn(replace(run, state=state), an_event(run, state.value, seconds=seconds))


def recorded(job: Job, run: Run) -> Record:
    """The write that puts down a job."""
    return Record(job, an_event(run, job.state.value))
