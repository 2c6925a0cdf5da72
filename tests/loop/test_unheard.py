"""Machines of which nothing is known: what may be on them is left alone, and the rest goes on."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from backends.sim import Script, Sim
from orchestrator.backend import Host, Launch, Progress
from orchestrator.loop import Loop
from orchestrator.reconcile import Job, JobState, RunState
from orchestrator.reconcile.steps import Record
from orchestrator.store.records import Store
from tests.loop.conftest import RETRY, put, state

TASK = Script(run_s=0.01)


class Rack(Sim):
    """Machines of one's own, of which one has never answered."""

    def __init__(self, *unheard: str, env: dict[str, str] | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.silent = frozenset(unheard)
        self.env = env or {}
        self.given: list[Launch] = []

    def host_names(self) -> Sequence[str]:
        return ["good", *self.silent]

    def hosts(self) -> Sequence[Host]:
        return [Host("good", "ready"), *(Host(name, "silent") for name in self.silent)]

    def unheard(self) -> Collection[str]:
        return self.silent

    def start(self, launch: Launch, *, secrets: Any, progress: Progress) -> Any:
        self.given.append(replace(launch, env=(*launch.env, *secrets.items())))
        return super().start(launch, secrets=secrets, progress=progress)


class Forgetful(Rack):
    """A planted fault: it says nothing of the machines that it does not know."""

    def unheard(self) -> Collection[str]:
        return frozenset()


def on_record(store: Store, name: str, *, machine: str, job_state: JobState) -> None:
    """Write down a run whose launch another process sent somewhere."""
    run = put(store, name, retry=RETRY)
    job = Job(
        run.id, f"{name}-0-0-0", 0, 0, 0, "h", "sim", job_state, datetime.now(UTC), machine=machine
    )  # fmt: skip
    store.commit([Record(job, None)], expected={})


def drive(store: Store, rack: Rack, *names: str) -> None:
    """Drive until these runs have ended."""
    with Loop(store, {"sim": rack}, owner="me:1:1") as loop:
        assert loop.drive(lambda: all(state(store, n).is_final for n in names), timeout_s=20)


@pytest.mark.parametrize(("machine", "job_state"), [("dead", JobState.RUNNING), ("", JobState.PROVISIONING)])
def test_what_may_be_on_a_machine_that_nobody_heard_is_not_started_again(
    store: Store, machine: str, job_state: JobState
) -> None:
    on_record(store, "lost", machine=machine, job_state=job_state)
    put(store, "new")
    rack = Rack("dead", script={"*": TASK})
    drive(store, rack, "new")
    assert [launch.run for launch in rack.given] == ["new"]
    assert [(job.attempt, job.state) for job in store.jobs("id-lost")] == [(0, job_state)]
    rack.silent = frozenset()  # it answers, or was taken out, and has nothing of ours
    drive(store, rack, "lost")
    assert state(store, "lost") is RunState.SUCCEEDED


def test_a_place_that_tells_nothing_of_its_silent_machines_is_caught(store: Store) -> None:
    on_record(store, "lost", machine="dead", job_state=JobState.RUNNING)
    put(store, "new")
    rack = Forgetful("dead", script={"*": TASK})
    drive(store, rack, "new", "lost")
    assert {launch.run for launch in rack.given} == {"new", "lost"}


def test_variables_of_a_place_reach_its_launches_below_their_own(store: Store) -> None:
    store.secrets.set("rack/TOKEN", "hidden", now=datetime.now(UTC))
    put(store, "sft", secrets=(("OWN", "${{ secrets.own }}"),))
    store.secrets.set("own", "mine", now=datetime.now(UTC))
    env = {"REGION": "eu", "OWN": "theirs", "TOKEN": "${{ secrets.rack/TOKEN }}"}
    rack = Rack(env=env, script={"*": TASK})
    drive(store, rack, "sft")
    (given,) = rack.given
    found = dict(given.env)
    assert (found["REGION"], found["OWN"], found["TOKEN"]) == ("eu", "mine", "hidden")
    assert "hidden" not in repr(store.jobs("id-sft"))
