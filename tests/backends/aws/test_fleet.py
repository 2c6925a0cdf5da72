"""Fleets of rented machines from the command line: rented, shared, grown, replaced and given back."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import backends.vm
from backends.docker.engine import Json
from backends.vm import RentedMachines
from backends.vm.fleet import HeldHost
from orchestrator.backend import FLEET, Launch
from orchestrator.cli.shared import open_record
from tests import images
from tests.backends.aws.cloud import Cloud
from tests.backends.aws.test_story import Prompt, prompt

__all__ = ["prompt"]

pytestmark = pytest.mark.docker

FLEET_SPEC = """\
type: fleet
name: pool
nodes: {nodes}
backends: [aws]
instance_types: [t3.micro]
resources: {{cpu: 2.., memory: 512MB.., disk: null}}
blocks: {blocks}
idle_duration: {idle}
spot_policy: {spot}
"""
TASK = """\
type: task
name: {name}
image: {image}
commands: ["{script}"]
fleets: [pool]
resources: {{cpu: "0.5..", memory: 64MB.., disk: null}}
"""
IDLE = "trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done"
MACHINE = "test.machine"


class Apart(HeldHost):
    """One machine's part of the engine that all machines of these tests share."""

    def _body(self, launch: Launch, image: str, secrets: Any) -> dict[str, Any]:
        body = super()._body(launch, image, secrets)
        body["Labels"][MACHINE] = self.machine.id
        return body

    def _listing(self, *, everyone: bool = False) -> Sequence[Json]:
        found = super()._listing(everyone=everyone)
        return [one for one in found if one["Labels"].get(MACHINE) == self.machine.id]

    def _find(self, launch: str) -> Json | None:
        one = super()._find(launch)
        return one if one and one["Config"]["Labels"].get(MACHINE) == self.machine.id else None


@pytest.fixture(autouse=True)
def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each machine an engine of its own, as far as it can tell."""
    monkeypatch.setattr(backends.vm, "HeldHost", Apart)


@pytest.fixture
def pool(prompt: Prompt) -> Callable[..., str]:
    """Return a function that writes the fleet and returns its path."""

    def write(nodes: str = "1", *, blocks: int = 1, idle: str = "1h", spot: str = "on-demand") -> str:
        text = FLEET_SPEC.format(nodes=nodes, blocks=blocks, idle=idle, spot=spot)
        (prompt.folder / "pool.yaml").write_text(text)
        return "pool.yaml"

    return write


def task(prompt: Prompt, name: str, script: str = IDLE, more: str = "") -> str:
    """Write a task for the fleet and return its path."""
    text = TASK.format(name=name, image=images.busybox(), script=script) + more
    (prompt.folder / f"{name}.yaml").write_text(text)
    return f"{name}.yaml"


def ok(prompt: Prompt, *words: str) -> str:
    """Run a command that has to end well, and return what it says."""
    code, said = prompt(*words)
    assert code == 0, said
    return said


def fleet(prompt: Prompt) -> dict[str, Any]:
    """Return the fleet as ``fleet show`` tells it."""
    (found,) = prompt.json("fleet", "show", "pool")["fleets"]
    return dict(found)


def checks(prompt: Prompt) -> list[dict[str, Any]]:
    """Return what ``backend check`` looked at, well or not."""
    return list(json.loads(prompt("backend", "check", "--json")[1])["checks"])


def runs(prompt: Prompt) -> dict[str, dict[str, Any]]:
    """Return the runs by name."""
    return {run["name"]: run for run in prompt.json("ps", "--all")["runs"]}


def test_a_fleet_is_planned_rented_used_and_given_back(
    aws: Cloud, prompt: Prompt, pool: Callable[..., str]
) -> None:
    (planned,) = prompt.json("plan", "-f", pool("1..2"))["runs"]
    assert planned["nodes"] == {"least": 1, "most": 2}
    price = next(offer["price_usd_hour"] for offer in planned["offers"] if offer["chosen"])
    assert price > 0.0104  # the machine and its disk
    assert aws.instances() == []

    ok(prompt, "apply", "-y", "-f", "pool.yaml")
    (made,) = aws.instances()
    assert {tag["key"]: tag["value"] for tag in made.get_tags()}[FLEET] == "pool"
    shown = fleet(prompt)
    (host,) = shown["hosts"]
    assert (host["name"], host["state"], shown["nodes"]) == (made.id, "ready", "1..2")
    assert shown["price_usd_hour"] == pytest.approx(price, abs=1e-4)
    assert f"${price:.4g}/h" in ok(prompt, "fleet", "list")
    assert f"${price:.4g}/h" in ok(prompt, "ps")

    (offered,) = prompt.json("plan", "-f", task(prompt, "six", "echo $((6 * 7))"))["runs"]
    free, *rest = offered["offers"]  # what the fleet pays for anyway comes first, then what it may rent
    assert (free["backend"], free["price_usd_hour"], free["chosen"]) == ("pool", 0, True)
    assert {(one["backend"], one["price_usd_hour"]) for one in rest} == {("pool", price)}
    assert ok(prompt, "apply", "-y", "-f", "six.yaml").splitlines() == ["42"]
    assert len(aws.instances()) == 1

    unchanged = ok(prompt, "apply", "-y", "-f", "pool.yaml")
    assert unchanged.startswith("pool  fleet  unchanged")
    ok(prompt, "fleet", "delete", "pool", "-y")
    assert (aws.instances(), ok(prompt, "fleet", "list")) == ([], "no fleets\n")


def test_a_fleet_grows_for_runs_up_to_its_most_and_shrinks_when_they_are_over(
    aws: Cloud, prompt: Prompt, pool: Callable[..., str]
) -> None:
    ok(prompt, "apply", "-y", "-f", pool("0..2", idle="2s"))
    assert aws.instances() == []
    (check,) = [one for one in checks(prompt) if one["backend"] == "pool"]
    assert (check["what"], check["ok"], check["fix"]) == ("machines are up", True, "")
    assert check["detail"].startswith("none now: the fleet rents what its nodes say and runs need")
    for name in ("one", "two"):
        ok(prompt, "apply", "-y", "-d", "-f", task(prompt, name))
    assert len(aws.instances()) == 2
    assert "machines are up" not in {one["what"] for one in checks(prompt) if one["backend"] == "pool"}
    on = {host["name"]: host["runs"] for host in fleet(prompt)["hosts"]}
    assert sorted(on.values()) == [["one"], ["two"]]
    assert "used by one, two" in ok(prompt, "ps")

    code, said = prompt("plan", "-f", task(prompt, "three"))
    assert (code, "2 too few processors" in said) == (75, True), said
    code, said = prompt("fleet", "delete", "pool", "-y")
    assert (code, "fleet 'pool' is in use: one, two" in said) == (64, True)

    ok(prompt, "stop", "-y", "one", "two")
    with open_record(prompt.folder / "config.yaml") as api, api._loop() as loop:
        assert loop.drive(lambda: not aws.instances(), timeout_s=60)
    story = [event["cause"] for event in prompt.json("events", "pool")["events"]]
    assert "used by one" in story
    assert "idle, and above the least" in story


def test_two_launches_share_a_machine_in_blocks(aws: Cloud, prompt: Prompt, pool: Callable[..., str]) -> None:
    ok(prompt, "apply", "-y", "-f", pool("0..1", blocks=2))
    for name in ("one", "two"):
        ok(prompt, "apply", "-y", "-d", "-f", task(prompt, name))
    assert len(aws.instances()) == 1
    (host,) = fleet(prompt)["hosts"]
    assert (host["runs"], host["blocks_held"]) == (["one", "two"], 2)
    code, said = prompt("plan", "-f", task(prompt, "three"))
    assert (code, "1 too few processors" in said) == (75, True), said
    ok(prompt, "stop", "-y", "one", "two")


def test_a_machine_that_is_lost_is_replaced_and_its_run_goes_on(
    aws: Cloud, prompt: Prompt, pool: Callable[..., str]
) -> None:
    ok(prompt, "apply", "-y", "-f", pool("1"))
    again = "retry: {on_events: [interruption]}\n"
    ok(prompt, "apply", "-y", "-d", "-f", task(prompt, "kept", more=again))
    (first,) = aws.instances()
    aws.take_away(first)
    ok(prompt, "wait", "kept", "--for", "started", "--timeout", "30s")
    prompt("wait", "pool", "--for", "ready", "--timeout", "30s")
    ok(prompt, "wait", "kept", "--for", "started", "--timeout", "30s")
    (second,) = aws.instances()
    assert second.id != first.id
    causes = [event["cause"] for event in prompt.json("events", "kept")["events"]]
    assert "lost" in causes
    (host,) = fleet(prompt)["hosts"]
    assert (host["name"], host["runs"]) == (second.id, ["kept"])
    ok(prompt, "stop", "-y", "kept")


def test_a_run_goes_on_elsewhere_when_a_machine_learns_that_it_is_taken_away(
    aws: Cloud, prompt: Prompt, pool: Callable[..., str]
) -> None:
    """Two minutes lie between the notice and the machine's end: nothing is sent there meanwhile."""
    prices = prompt.folder / "config" / "modelyard" / "catalog" / "prices.yaml"
    prices.write_text(prices.read_text().replace('"source"', '"spot_usd_hour": 0.004, "source"'))
    ok(prompt, "apply", "-y", "-f", pool("1", spot="spot"))
    again = "spot_policy: auto\nretry: {on_events: [interruption]}\n"
    ok(prompt, "apply", "-y", "-d", "-f", task(prompt, "kept", more=again))
    ok(prompt, "wait", "kept", "--for", "started", "--timeout", "30s")
    (first,) = aws.instances()
    notify(aws, prompt.folder)
    with open_record(prompt.folder / "config.yaml") as api:

        def is_elsewhere() -> bool:
            (job,) = [job for job in api.recorded("kept").jobs if not job.state.is_final] or [None]
            return job is not None and job.machine not in ("", first.id) and job.started_at is not None

        with api._loop() as loop:
            assert loop.drive(is_elsewhere, timeout_s=60)
            assert loop.drive(lambda: len(aws.instances()) == 1, timeout_s=60)
    (second,) = aws.instances()
    assert second.id != first.id
    assert [host["name"] for host in fleet(prompt)["hosts"]] == [second.id]
    ended = {e["subject"]: e["cause"] for e in prompt.json("events")["events"] if e["after"] == "failed"}
    assert ended == {"kept-0-0-0": "preempted", "pool-0-0-0": "taken away"}
    ok(prompt, "stop", "-y", "kept")


def notify(aws: Cloud, folder: Path) -> None:
    """Have the one machine look for its provider's notice, and find it."""
    *_, look = (line for line in aws.timer() if "modelyard-notice" in line)
    (folder / "curl").write_text("#!/bin/sh\nexit 0\n")
    (folder / "curl").chmod(0o755)
    env = {"PATH": f"{folder}:{os.environ['PATH']}"}
    subprocess.run(["sh", "-c", look.partition("/bin/sh -c ")[2]], env=env, capture_output=True, check=True)


def test_what_is_sold_out_is_followed_by_the_next_and_told_when_nothing_is_left(
    aws: Cloud, prompt: Prompt, pool: Callable[..., str]
) -> None:
    (planned,) = prompt.json("plan", "-f", pool("0..1"))["runs"]
    zones = [offer["zone"] for offer in planned["offers"]]
    aws.sold_out |= {("t3.micro", zone) for zone in zones[:3]}
    ok(prompt, "plan", "-f", "pool.yaml", "--out", "pool.json")
    ok(prompt, "apply", "-y", "pool.json")
    ok(prompt, "apply", "-y", "-f", task(prompt, "six", "echo 42"))
    assert [(zone, how) for _, zone, how in aws.asked] == [
        *((zone, "sold out") for zone in zones[:3]), (zones[3], "made"),
    ]  # fmt: skip


def test_a_run_is_refused_once_its_fleet_found_no_machine_anywhere(
    aws: Cloud, prompt: Prompt, pool: Callable[..., str]
) -> None:
    ok(prompt, "apply", "-y", "-f", pool("0..1"))
    aws.limited |= {"us-east-1", "us-west-2"}
    code, said = prompt("apply", "-y", "-f", task(prompt, "six", "echo 42"))
    assert code == 1
    assert "fleet pool gets no machine" in said
    assert "us-east-1" in said
    assert aws.instances() == []
    aws.limited.clear()
    assert "42" in ok(prompt, "apply", "-y", "--rerun", "-f", "six.yaml")


def test_a_fleets_machine_is_nobodys_only_once_the_fleet_is_gone(
    aws: Cloud, prompt: Prompt, pool: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.api.holdings.GRACE", timedelta(0))
    ok(prompt, "apply", "-y", "-f", pool("1"))
    assert ok(prompt, "gc") == "no orphans\n"
    Path("state.db").unlink()  # the record is lost, and the fleet with it
    listed = ok(prompt, "gc")
    assert "pool-0-0-0" in listed
    assert "no run 'pool' is on record" in listed
    assert len(aws.instances()) == 1
    ok(prompt, "gc", "--terminate", "-y")
    assert aws.instances() == []


class Killed(BaseException):
    """The process is killed here."""


def _killed(*_: object, **__: object) -> None:
    raise Killed


@pytest.mark.parametrize("step", ["_rent", "_booted", "_holding"])
def test_a_fleet_whose_process_was_killed_has_its_machine_once(
    aws: Cloud, prompt: Prompt, pool: Callable[..., str], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Killed between intent and id, between id and boot, between boot and start."""
    path = pool("1")
    with monkeypatch.context() as patch:
        rent = RentedMachines._rent

        def then_killed(self: Any, launch: Any, wanted: Any) -> None:
            rent(self, launch, wanted)
            raise Killed

        patch.setattr(RentedMachines, step, then_killed if step == "_rent" else _killed)
        with pytest.raises(Killed):
            prompt("apply", "-y", "-f", path)
    assert len(aws.instances()) == 1
    ok(prompt, "wait", "pool", "--for", "ready", "--timeout", "30s")
    (made,) = aws.instances()
    assert [host["name"] for host in fleet(prompt)["hosts"]] == [made.id]
    assert json.loads(ok(prompt, "gc", "--json"))["orphans"] == []
