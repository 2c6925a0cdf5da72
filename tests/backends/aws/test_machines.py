"""From create to terminate: a machine that boots, runs a container, is kept, taken over and given back."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends.aws import Aws
from orchestrator.backend import Instance, Launch, Phase, Rent
from orchestrator.errors import Rejected
from tests import images
from tests.backends.aws.cloud import Cloud
from tests.backends.ssh.conftest import sweep
from tests.backends.ssh.farm import MAIN_SOCKET, until

pytestmark = pytest.mark.docker

RENT = Rent("t3.micro", "us-east-1", "us-east-1a")


@pytest.fixture
def options(aws: Cloud) -> Iterator[dict[str, Any]]:
    images.require_engine()
    namespace = f"modelyard-test-{os.urandom(4).hex()}"
    yield aws.options(namespace=namespace)
    sweep(MAIN_SOCKET, namespace)


def launch(name: str = "sft-0-0-0", script: str = "echo done", **more: Any) -> Launch:
    fields: dict[str, Any] = {"image": images.busybox(), "command": ("sh", "-c", script), "rent": RENT}
    return Launch(name, "sft", spec_hash="a", attempt=int(name[-1]), **{**fields, **more})


def start(backend: Aws, wanted: Launch) -> Instance:
    return backend.start(wanted, secrets={}, progress=lambda _: None)


def ended(backend: Aws, name: str = "sft-0-0-0") -> Instance:
    def find() -> Instance | None:
        return next((i for i in backend.instances() if i.name == name and i.phase is Phase.EXITED), None)

    until(lambda: find() is not None, f"{name} ends")
    found = find()
    assert found is not None
    return found


def test_an_ended_launch_keeps_its_machine_until_it_is_released_and_its_output_after(
    aws: Cloud, options: dict[str, Any]
) -> None:
    backend = Aws(**options)
    machine = start(backend, launch(script="echo once; exit 3")).machine
    found = ended(backend)
    assert (found.rented, found.exit_code, found.machine) == (True, 3, machine)
    backend.release("sft-0-0-0", keep_s=0)
    assert aws.instances() == []
    backend.release("sft-0-0-0", keep_s=0)
    later = ended(Aws(**options))
    assert (later.rented, later.exit_code, later.reason) == (False, 3, "error")
    assert [line.text for line in Aws(**options).logs("sft-0-0-0")] == ["once"]


def test_a_machine_that_is_kept_is_taken_over_and_no_other_is_rented(
    aws: Cloud, options: dict[str, Any]
) -> None:
    backend = Aws(**options)
    machine = start(backend, launch()).machine
    ended(backend)
    backend.release("sft-0-0-0", keep_s=300)
    (idle,) = backend.machines()
    assert (idle.id, idle.launch) == (machine, "")
    assert start(Aws(**options), launch("sft-0-0-1")).machine == machine
    assert len(aws.instances()) == 1
    assert [line.text for line in backend.logs("sft-0-0-0")] == ["done"]
    ended(backend, "sft-0-0-1")


def test_another_kind_is_not_taken_for_it(aws: Cloud, options: dict[str, Any]) -> None:
    backend = Aws(**options)
    start(backend, launch())
    ended(backend)
    backend.release("sft-0-0-0", keep_s=300)
    start(backend, launch("sft-0-0-1", rent=replace(RENT, spot=True)))
    assert len(aws.instances()) == 2


def test_a_machine_goes_to_launches_of_the_same_tags_only(aws: Cloud, options: dict[str, Any]) -> None:
    backend = Aws(**options)
    mine = (("example.com/team", "a"),)
    start(backend, launch(tags=mine))
    ended(backend)
    backend.release("sft-0-0-0", keep_s=300)
    for other in ((), (("example.com/team", "b"),)):
        assert backend._take_idle(launch("sft-0-0-1", tags=other)) is None
    assert backend._take_idle(launch("sft-0-0-1", tags=mine)) is not None
    (made,) = aws.instances()
    assert [tag["value"] for tag in made.get_tags() if tag["key"] == "example.com/team"] == ["a"]


def test_a_machine_whose_disk_is_too_small_is_not_taken_for_it(aws: Cloud, options: dict[str, Any]) -> None:
    backend = Aws(**options)
    start(backend, launch(rent=replace(RENT, disk_bytes=200 * 2**30)))
    ended(backend)
    backend.release("sft-0-0-0", keep_s=300)
    found = backend._take_idle(launch("sft-0-0-1", rent=replace(RENT, disk_bytes=201 * 2**30)))
    assert found is None
    found = backend._take_idle(launch("sft-0-0-1", rent=replace(RENT, disk_bytes=100 * 2**30)))
    assert found is not None


def test_a_running_launch_is_not_released(options: dict[str, Any]) -> None:
    backend = Aws(**options)
    start(backend, launch(script="sleep 60"))
    with pytest.raises(Rejected, match="still runs"):
        backend.release("sft-0-0-0", keep_s=0)


def test_a_machine_that_its_provider_takes_away_was_preempted(aws: Cloud, options: dict[str, Any]) -> None:
    backend = Aws(**options)
    start(backend, launch(script="sleep 60", rent=replace(RENT, spot=True)))
    aws.take_away(aws.instances()[0])
    found = ended(backend)
    assert (found.reason, found.rented) == ("preempted", False)


def test_a_machine_that_learns_of_its_end_asks_its_program_to_end_and_is_not_kept(
    aws: Cloud, options: dict[str, Any], tmp_path: Path
) -> None:
    spot = replace(RENT, spot=True)
    script = "trap 'echo saved; exit 0' TERM; echo up; while :; do sleep 0.1; done"
    backend = Aws(**options)
    start(backend, launch(script=script, rent=spot))
    until(lambda: any(line.text == "up" for line in backend.logs("sft-0-0-0")), "it is up")
    (look,) = [line for line in aws.timer() if "modelyard-notice" in line and options["namespace"] in line]

    def run_timer(status: int) -> None:
        (tmp_path / "curl").write_text(f"#!/bin/sh\nexit {status}\n")
        (tmp_path / "curl").chmod(0o755)
        env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        subprocess.run(
            ["sh", "-c", look.partition("/bin/sh -c ")[2]], env=env, capture_output=True, check=False
        )

    run_timer(22)  # what curl ends with while there is no such page
    assert [one.phase for one in backend.instances()] == [Phase.RUNNING]
    run_timer(0)
    found = ended(Aws(**options))
    assert (found.reason, found.exit_code, found.rented) == ("preempted", 0, True)
    assert "takes it away" in found.message
    assert [line.text for line in backend.logs("sft-0-0-0")] == ["up", "saved"]
    backend.release("sft-0-0-0", keep_s=300)
    assert aws.instances() == []
    assert [one.reason for one in Aws(**options).instances()] == ["preempted"]


def test_what_ended_before_the_notice_has_ended_by_itself(aws: Cloud, options: dict[str, Any]) -> None:
    backend = Aws(**options)
    start(backend, launch(rent=replace(RENT, spot=True)))
    done = ended(backend)
    assert done.finished_at is not None
    (aws.book(aws.instances()[0]) / "taken").write_text(f"{int(done.finished_at.timestamp()) + 60}\n")
    assert ended(Aws(**options)).reason == ""


def test_a_machine_on_demand_looks_for_no_notice(aws: Cloud, options: dict[str, Any]) -> None:
    start(Aws(**options), launch(script="sleep 60"))
    assert not [line for line in aws.timer() if options["namespace"] in line]


def test_a_launch_that_was_stopped_on_its_way_never_runs(
    aws: Cloud, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Aws(**options)
    with monkeypatch.context() as patched:
        patched.setattr(backend, "_booted", _die)
        with pytest.raises(KeyboardInterrupt):
            start(backend, launch())
    other = Aws(**options)
    other.stop("sft-0-0-0", grace_s=1)
    found = ended(other)
    assert (found.reason, found.rented) == ("stopped", True)
    other.release("sft-0-0-0", keep_s=300)
    assert [one.launch for one in other.machines()] == [""]
    assert [(one.reason, one.rented) for one in other.instances()] == [("stopped", False)]


def test_a_name_that_comes_back_gets_another_machine(aws: Cloud, options: dict[str, Any]) -> None:
    backend = Aws(**options)
    first = start(backend, launch()).machine
    backend.remove("sft-0-0-0")
    assert backend.instances() == []
    second = start(backend, launch()).machine
    assert second != first
    assert [one.machine for one in backend.instances()] == [second]


# Killed halfway -----------------------------------------------------------------------------------


def _die(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("point", ["between intent and id", "between id and boot", "between boot and start"])
def test_a_start_that_was_killed_ends_with_one_machine_and_one_container(
    aws: Cloud, options: dict[str, Any], point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying = Aws(**options)
    with monkeypatch.context() as patched:
        if point == "between intent and id":
            made = type(dying._provider).create
            patched.setattr(type(dying._provider), "create", lambda self, order: (made(self, order), _die()))
        elif point == "between id and boot":
            patched.setattr(dying, "_booted", _die)
        else:
            patched.setattr("backends.ssh.host.HostDocker.start", _die)
        with pytest.raises(KeyboardInterrupt):
            start(dying, launch(script="sleep 60"))
    (left,) = aws.instances()
    backend = Aws(**options)
    (seen,) = backend.instances()
    assert (seen.name, seen.phase, seen.machine, seen.rented) == ("sft-0-0-0", Phase.PENDING, left.id, True)

    found = start(backend, launch(script="sleep 60"))

    assert found.machine == left.id
    assert [one.id for one in aws.instances()] == [left.id]
    assert [one.phase for one in backend.instances()] == [Phase.RUNNING]
