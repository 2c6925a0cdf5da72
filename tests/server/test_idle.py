"""What nobody uses is ended when its time has come, and what is not known to be idle is not."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from orchestrator.api.activity import last_active
from orchestrator.reconcile import Job
from orchestrator.server import idle
from orchestrator.server.asking import answer_of
from orchestrator.server.idle import Busy, Reaper
from orchestrator.server.site import Site
from orchestrator.spec.load import read
from tests.cli.conftest import Cli
from tests.images import busybox, require_engine
from tests.server.conftest import Served

DEV = "type: dev-environment\nname: dev\nimage: a\ninactivity_duration: 2h\n"
TASK = """\
type: task
name: sft
image: a
commands: [train]
resources: {gpu: H100:2}
utilization_policy: {min_gpu_utilization: 10, time_window: 5m}
"""
VOLUME = "type: volume\nname: cache\nauto_cleanup_duration: 1d\n"


class Minutes:
    """A reaper with a clock of its own, and somebody inside or not."""

    def __init__(self, served: Served, text: str, name: str) -> None:
        client = served.client()
        client.apply(client.plan(read(text)))
        if name:
            assert client.follow([name], "started", timeout_s=30)
        self.served, self.began = served, served.site.clock()
        self.says: str | None = "0"
        self.reaper = Reaper(served.site, self._ask)

    def _ask(self, site: Site, job: Job, command: list[str]) -> str | None:
        return self.says

    def at(self, minutes: float) -> list[str]:
        """Look once, so many minutes after the beginning."""
        self.served.site.clock = lambda: self.began + timedelta(minutes=minutes)
        return self.reaper.once()


def test_an_environment_that_nobody_is_in_is_ended(served: Served) -> None:
    dev = Minutes(served, DEV, "dev")
    assert [dev.at(m) for m in (1, 60, 119)] == [[]] * 3
    assert dev.at(121) == ["dev"]
    event = next(e for _, e in served.site.store.events("dev") if e.cause.startswith("idle"))
    assert (event.after, event.cause) == ("stopping", "idle: nobody was inside for 2h")
    assert dev.at(122) == []


@pytest.mark.parametrize("says", ["1", None])
def test_who_is_inside_or_cannot_be_asked_for_keeps_it_up(served: Served, says: str | None) -> None:
    dev = Minutes(served, DEV, "dev")
    dev.says = says
    assert [dev.at(m) for m in (60, 121, 200)] == [[]] * 3
    dev.says = "0"
    assert dev.at(319) == []
    assert dev.at(321) == ["dev"]


def test_a_terminal_through_a_server_keeps_it_up(served: Served) -> None:
    dev = Minutes(served, DEV, "dev")
    with served.site.inside("dev"):
        dev.at(100)
        served.site.note_sockets()
        assert dev.at(219) == []
    assert last_active(served.site.store, "dev") == dev.began + timedelta(minutes=219)


def test_a_command_at_the_prompt_is_noted(cli: Cli, served: Served) -> None:
    assert cli("apply", "-y", "-f", cli.write("dev.yaml", DEV)).code == 0
    before = last_active(served.site.store, "dev")
    assert cli("exec", "dev", "--", "exit", "3").code == 3
    assert last_active(served.site.store, "dev") > before


def test_accelerators_that_idle_end_their_run(served: Served) -> None:
    sft = Minutes(served, TASK, "sft")
    sft.says = "95\n0\n"  # any of them, as dstack has it
    assert [sft.at(m) for m in range(5)] == [[]] * 5
    assert sft.at(5) == ["sft"]
    event = next(e for _, e in served.site.store.events("sft") if e.cause.startswith("idle"))
    assert event.cause == "idle: accelerator 1 was below 10 % for 5m"


@pytest.mark.parametrize(
    ("said", "idles"),
    [
        (["0"] * 6, True),
        (["9"] * 6, True),
        (["10"] * 6, False),
        (["0", "0", "0", "90", "0", "0"], False),
        (["", "", "", "", "", "0"], False),
        (["0", "", "", "", "0", "0"], False),
        (["0", "0", "", "0", "0", "0"], True),
        (["0", "0", "0", "0", "0", ""], False),
    ],
)
def test_idle_is_what_was_seen_idle_all_the_time(said: list[str], idles: bool) -> None:
    busy, at = Busy(), datetime(2026, 1, 1)
    for minute, text in enumerate(said):
        now = at + timedelta(minutes=minute)
        busy.take(idle._percents(text), least=10, now=now)
    assert list(busy.idle(timedelta(minutes=5), now=now)) == ([0] if idles else [])


@pytest.mark.parametrize(
    ("tool", "prints", "found"),
    [
        ("nvidia-smi", "0\n97\n", [0, 97]),
        ("nvidia-smi", "[N/A]\n", []),
        ("rocm-smi", "device,GPU use (%)\ncard0,3\ncard1,88\n", [3, 88]),
        ("none", "", []),
    ],
)
def test_both_vendors_tools_are_read(tmp_path: Path, tool: str, prints: str, found: list[int]) -> None:
    (tmp_path / "said").write_text(prints)
    path = tmp_path / tool
    path.write_text(f"#!/bin/sh\nexec /bin/cat {tmp_path}/said\n")
    path.chmod(0o755)
    (tmp_path / "sed").symlink_to("/bin/sed")
    said = subprocess.run(
        ["/bin/sh", "-c", idle._DEVICES], env={"PATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert idle._percents(said.stdout) == found


def test_a_volume_that_nothing_used_for_long_is_deleted(served: Served) -> None:
    task = "---\ntype: service\nname: web\nport: 80\ncommands: [a]\nimage: a\nvolumes: ['cache:/cache']\n"
    both = Minutes(served, VOLUME + task, "web")
    assert both.at(24 * 60 + 1) == []
    client = served.client()
    client.ask(["web"], client.run("web").run.wanted.DELETE)
    assert client.follow(["web"], "deleted", timeout_s=30)
    assert both.at(48 * 60) == []
    assert both.at(48 * 60 + 2) == ["cache"]
    assert (client.kept_volumes(), client.volumes()) == ({}, [])
    deed = [deed for _, deed in served.site.store.access.deeds("main")][-1]
    assert (deed.who, deed.action, deed.subject) == ("the server", "auto_cleanup_duration", "cache")


@pytest.mark.docker
def test_who_came_into_a_container_is_counted(serve: Callable[..., Served], tmp_path: Path) -> None:
    require_engine()
    config = tmp_path / "docker.yaml"
    config.write_text(f"backends: [{{type: docker, namespace: modelyard-test-{os.getpid()}}}]\n")
    served = serve(config=config)
    client = served.client()
    spec = f"type: dev-environment\nname: dev\nimage: {busybox()}\nstop_duration: 1s\ninit: [sleep 600 &]\n"
    client.apply(client.plan(read(spec)))
    try:
        assert client.follow(["dev"], "ready", timeout_s=60)
        (job,) = client.run("dev").jobs

        def inside() -> str | None:
            return answer_of(served.site, job, ["sh", "-c", idle._PEOPLE])

        assert inside() == "0\n"
        leave = ["sh", "-c", "while [ ! -e /tmp/leave ]; do sleep 0.1; done"]
        visit = threading.Thread(target=lambda: client.execute("dev", leave, tty=False))
        visit.start()
        while inside() == "0\n":
            pass
        assert inside() == "1\n"
        assert answer_of(served.site, job, ["touch", "/tmp/leave"]) == ""
        visit.join()
        assert inside() == "0\n"
    finally:
        client.ask(["dev"], client.run("dev").run.wanted.DELETE)
        assert client.follow(["dev"], "deleted", timeout_s=60)
