"""The program that a pod's container starts with, in the shells that images have."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backends.runpod import wrapper
from backends.runpod.wrapper import Told, start_command
from orchestrator.backend import File, Launch

SHELLS = {"dash": ["dash"], "bash": ["bash", "--posix"], "busybox": ["busybox", "sh"]}


class Started:
    """The program of a launch, started as a container's engine would."""

    patience_s = 60.0

    def __init__(self, shell: list[str], launch: Launch, folder: Path) -> None:
        said = json.loads(start_command(launch, "k"))
        assert said["entrypoint"] == ["/bin/sh", "-c"]
        self.process = subprocess.Popen(
            [*shell, "-c", *said["cmd"]], cwd=folder, env={"PATH": os.environ["PATH"]},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            start_new_session=True, text=True, errors="replace",
        )  # fmt: skip
        self.told = Told()

    def read(self, until: str) -> list[str]:
        """Read the output up to a word of it; return the program's lines."""
        assert self.process.stdout is not None
        timer = threading.Timer(self.patience_s, self.kill)
        timer.start()
        try:
            for line in self.process.stdout:
                list(self.told.hear(line.rstrip("\n"), None, "k"))
                if until in line:
                    return [each.text for each in self.told.lines]
        finally:
            timer.cancel()
        raise AssertionError(f"it ended before {until!r}")

    @property
    def is_held(self) -> bool:
        """Say whether the container goes on for a while after its program."""
        try:
            self.process.wait(0.5)
        except subprocess.TimeoutExpired:
            return True
        return False

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def end(self) -> None:
        self.kill()
        self.process.communicate()


@pytest.fixture(params=sorted(SHELLS))
def run(request: Any, tmp_path: Path) -> Iterator[Any]:
    """Return what starts a launch in one of the shells."""
    shell = SHELLS[request.param]
    if shutil.which(shell[0]) is None:
        pytest.skip(f"needs {shell[0]}")
    made: list[Started] = []

    def start(*command: str, **fields: Any) -> Started:
        made.append(Started(shell, Launch("a-0-0-1", "a", command=command, **fields), tmp_path))
        return made[-1]

    yield start
    for one in made:
        one.end()


@pytest.mark.parametrize("code", [0, 7, 126, 255])
def test_the_code_of_a_program_is_written_down_and_its_container_held(run: Any, code: int) -> None:
    started = run("sh", "-c", f"echo once; exit {code}")
    assert started.read("::ended") == ["once"]
    assert (started.told.code, len(started.told.began)) == (code, 1)
    assert started.is_held


def test_one_that_is_killed_or_missing_has_a_code_too(run: Any) -> None:
    killed = run("sh", "-c", "kill -9 $$")
    killed.read("::ended")
    assert killed.told.code == 137
    missing = run("/no/such/program")
    missing.read("::ended")
    assert missing.told.code == 127


def test_a_stop_is_handed_on_and_waited_for(run: Any) -> None:
    started = run("sh", "-c", "trap 'echo asked; exit 5' TERM; echo up; while :; do sleep 0.1; done")
    started.read("up")
    started.process.terminate()
    assert started.read("::ended") == ["up", "asked"]
    assert started.told.code == 5
    assert started.process.wait(10) == 0  # nothing holds a container that was asked to end


def test_one_that_does_not_listen_goes_on(run: Any) -> None:
    started = run("sh", "-c", "trap '' TERM; echo up; sleep 0.5; echo still; exit 3")
    started.read("up")
    started.process.terminate()
    assert started.read("::ended") == ["up", "still"]
    assert started.told.code == 3


def test_what_ends_without_a_new_line_is_told_whole(run: Any) -> None:
    started = run("printf", "half")
    assert started.read("::ended") == ["half"]


def test_arguments_arrive_as_they_are(run: Any) -> None:
    started = run("printf", "%s\n", "$HOME; exit 9", "'", '"', "two\nlines")
    assert started.read("::ended") == ["$HOME; exit 9", "'", '"', "two", "lines"]


def test_files_are_there_byte_for_byte_where_the_program_works(run: Any, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    content = bytes(range(256)) + b"%s '\\n"
    files = (File("in/x.bin", content, 0o600), File("y", b""))
    started = run("sh", "-c", "pwd", working_dir=str(tmp_path / "work"), files=files)
    assert started.read("::ended") == [str(tmp_path / "work")]
    made = tmp_path / "work" / "in" / "x.bin"
    assert (made.read_bytes(), made.stat().st_mode & 0o777) == (content, 0o600)
    assert (tmp_path / "work" / "y").read_bytes() == b""


def test_a_folder_that_is_not_there_runs_nothing(run: Any) -> None:
    started = run("echo", "no", working_dir="/none")
    assert started.read("::ended") == []
    assert started.told.code == 126
    assert started.is_held


FAULTS = {
    "not held": ("wait $!; done", "wait $!; exit; done &", test_a_folder_that_is_not_there_runs_nothing),
    "not handed on": ("kill -TERM", "kill -0", test_a_stop_is_handed_on_and_waited_for),
    "not waited for": ('while [ -n "$again" ]', 'while [ -n "" ]', test_a_stop_is_handed_on_and_waited_for),
    "no code": ('mark ended "$code"', "mark ended 0", test_one_that_is_killed_or_missing_has_a_code_too),
    "expanded": ('"$@" <&3', "$@ <&3", test_arguments_arrive_as_they_are),
}  # fmt: skip


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_a_faulty_program_is_caught(run: Any, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sound, broken, clause = FAULTS[fault]
    assert sound in wrapper.HOLD
    monkeypatch.setattr(wrapper, "HOLD", wrapper.HOLD.replace(sound, broken))
    monkeypatch.setattr(Started, "patience_s", 3.0)
    with pytest.raises(AssertionError):
        clause(run)
