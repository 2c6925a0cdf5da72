"""Drift: what the places have against what the record says, found and left as it is."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from backends.process import Process
from backends.sim import Sim
from orchestrator.apply.drift import drifts
from orchestrator.backend import Instance, Launch, Phase
from orchestrator.reconcile import Job, JobState, Run, RunState, Template, Wanted
from tests.apply.scenes import CACHE, HELLO, WEB
from tests.cli.conftest import Cli

T0 = datetime(2026, 11, 25, tzinfo=UTC)
RUN = Run(
    "id", "web", "service", "{}", "5pec", Template(Launch("web-0-0-0", "web"), ("sim",)), T0,
    state=RunState.READY,
)  # fmt: skip
JOB = Job("id", "web-0-0-0", 0, 0, 0, "5pec", "sim", JobState.READY, T0)
INSTANCE = Instance("web-0-0-0", "web", 0, 0, 0, "5pec", Phase.RUNNING)


def found(run: Run, job: Job, *instances: Instance) -> list[str]:
    """Return the kinds of drift between a record of one job and a place."""
    return [d.kind for d in drifts([run], [job], instances={"sim": instances}, volumes=[], held={})]


@pytest.mark.parametrize(
    ("run", "job", "instance", "kinds"),
    [
        (RUN, JOB, INSTANCE, []),
        (RUN, JOB, None, ["missing"]),
        (RUN, JOB, replace(INSTANCE, phase=Phase.EXITED), ["ended"]),
        (RUN, JOB, replace(INSTANCE, spec_hash="other"), ["changed"]),
        (RUN, replace(JOB, state=JobState.STOPPED), INSTANCE, ["unexpected"]),
        (RUN, JOB, replace(INSTANCE, name="web-9-0-0"), ["missing", "unexpected"]),
        (replace(RUN, type="task"), JOB, replace(INSTANCE, phase=Phase.EXITED), []),
        (RUN, replace(JOB, state=JobState.PROVISIONING), None, []),
        (RUN, replace(JOB, stop_asked_at=T0), None, []),
        (replace(RUN, wanted=Wanted.DELETE), JOB, None, []),
        (replace(RUN, wanted=Wanted.DELETE), JOB, replace(INSTANCE, name="web-9-0-0"), []),
    ],
    ids=[
        "the same", "gone", "ended", "of another spec", "outlived", "another", "a task's end",
        "to be started",
        "asked to stop", "being deleted", "of a run being deleted",
    ],
)  # fmt: skip
def test_what_differs_is_told_and_what_is_on_its_way_is_not(
    run: Run, job: Job, instance: Instance | None, kinds: list[str]
) -> None:
    assert found(run, job, *filter(None, [instance])) == kinds


def test_a_place_that_was_not_asked_tells_nothing() -> None:
    assert drifts([RUN], [JOB], instances={}, volumes=[], held={}) == ()


def test_drift_is_seen_and_left_alone_at_the_prompt(cli: Cli) -> None:
    cli("apply", "-y", "-f", cli.write("all.yaml", "\n---\n".join((WEB, CACHE, HELLO))))
    assert (cli("drift", "--detailed-exitcode").code, cli("drift").out) == (0, "no drift\n")
    place = Sim(state=cli.folder / "sim.jsonl")
    place.remove("web-0-0-0")
    place.delete_volume("cache")
    for _ in range(2):  # looking changes nothing
        result = cli("drift", "--json", "--detailed-exitcode")
        seen = [(d["subject"], d["kind"]) for d in json.loads(result.out)["drift"]]
        assert (result.code, seen) == (2, [("cache", "missing"), ("web-0-0-0", "missing")])
    assert "ready on record, and not there" in cli("drift").out
    assert cli("drift").code == 0


def test_what_nobody_has_on_record_is_drift(cli: Cli) -> None:
    cli("apply", "-y", "-f", cli.write("web.yaml", WEB))
    for path in cli.folder.glob("state.db*"):
        path.unlink()
    assert "modelyard gc lists it" in cli("drift").out


def test_a_process_that_was_taken_away_is_drift(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    state = cli.folder / "process"
    config = f"backends: [{{type: process, state_dir: {state}}}]\n"
    monkeypatch.setenv("MODELYARD_CONFIG", cli.write("real.yaml", config))
    text = "type: task\nname: long\nbackends: [process]\ncommands: [sleep 300]\nstop_duration: 1s\n"
    assert cli("apply", "-y", "-d", "-f", cli.write("long.yaml", text)).code == 0
    assert cli("drift", "--detailed-exitcode").code == 0
    Process(state_dir=state).remove("long-0-0-0")
    result = cli("drift", "--detailed-exitcode")
    assert (result.code, "missing" in result.out) == (2, True)
    cli("delete", "-y", "long")
    assert cli("drift", "--detailed-exitcode").code == 0
