"""What launches as processes of this machine must hold: the contract, and what /proc can show."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import random
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends import process
from backends.machine import Device, Machine
from backends.process import Process, supervise
from backends.process.output import Tail, parse_line
from backends.process.shelf import MARK, Record, Shelf
from backends.process.supervise import Log
from orchestrator.backend import Backend, File, Instance, Launch, Phase, Port, Resources
from orchestrator.errors import BackendError, ConfigError, NoCapacity, NotFound, Rejected, Unreachable
from orchestrator.testing import BackendContract
from tests.signals import ignoring

GPUS = tuple(Device(n, f"GPU-{n}", "NVIDIA L4", 2**34, "nvidia") for n in range(2))
WAIT_S = 20.0
MACHINE = Machine(cpu=4.0, memory_bytes=2**33, disk_bytes=2**33, arch="x86")


class TestProcess(BackendContract):
    """The clauses, with /bin/sh."""

    port = 20_000 + os.getpid() % 20_000  # two test runs on one machine do not meet

    @pytest.fixture
    def backend(self, tmp_path: Path) -> Iterator[Backend]:
        backend = make(tmp_path / "state")
        yield backend
        self.clear(backend)

    def source(self, backend: Backend) -> str | None:
        assert isinstance(backend, Process)
        return (
            f"from backends.process import Process\nbackend = Process(state_dir={str(backend.state_dir)!r})"
        )

    def stranger(self, backend: Backend) -> Backend | None:
        assert isinstance(backend, Process)
        return make(backend.state_dir, namespace="stranger")

    def broken(self, backend: Backend) -> Backend | None:
        assert isinstance(backend, Process)
        file = backend.state_dir.parent / "file"
        file.touch()
        return make(file)

    def traces(self, backend: Backend) -> Iterable[bytes]:
        assert isinstance(backend, Process)
        return [p.read_bytes() for p in backend.state_dir.rglob("*") if p.is_file()]


def make(folder: Path, *, namespace: str = "modelyard", devices: tuple[Device, ...] = ()) -> Process:
    """Return a backend on a machine that is the same on every machine."""
    machine = Machine(MACHINE.cpu, MACHINE.memory_bytes, MACHINE.disk_bytes, MACHINE.arch, devices)
    return Process(namespace=namespace, state_dir=folder, machine=lambda: machine)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Process]:
    place = make(tmp_path / "state")
    yield place
    for instance in place.instances():
        place.remove(instance.name)


def shell(script: str, **fields: Any) -> Launch:
    return Launch("run-0-0-1", "run", attempt=1, command=("sh", "-c", script), **fields)


def start(place: Process, launch: Launch, **secrets: str) -> Instance:
    return place.start(launch, secrets=secrets, progress=lambda _: None)


def eventually(claim: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    pause = threading.Event()
    while not claim():
        assert time.monotonic() < deadline
        pause.wait(0.02)


def run(place: Process, launch: Launch, **secrets: str) -> list[str]:
    """Return what ``launch`` prints until its end."""
    start(place, launch, **secrets)
    return [line.text for line in place.logs(launch.name, follow=True)]


def up(place: Process, script: str, **fields: Any) -> None:
    """Start a script that says ``up``, and wait until it has."""
    start(place, shell(script, **fields))
    eventually(lambda: any(line.text == "up" for line in place.logs("run-0-0-1")))


def only(place: Process) -> Instance:
    (instance,) = place.instances()
    return instance


def status(place: Process) -> dict[str, Any]:
    return Shelf(place.state_dir / "modelyard").status("run-0-0-1")


def marked(place: Process) -> list[int]:
    """Return the processes of the launch, whoever their parent is."""
    mark = f"{MARK}={place.state_dir}/modelyard/launches/run-0-0-1".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


class Killed(BaseException):
    """The starter dies here."""


# --- supervisors that die


def test_killed_supervisor_takes_its_command_along(place: Process) -> None:
    up(place, "setsid sleep 600 & sleep 600 & echo up; wait")
    eventually(lambda: len(marked(place)) == 3)  # one that begins its program has no environment to read
    os.kill(status(place)["supervisor"][0], signal.SIGKILL)
    eventually(lambda: only(place).phase is Phase.EXITED)
    lost = only(place)
    assert (lost.reason, lost.exit_code) == ("lost", None)
    assert lost.message == "its supervisor was killed"
    assert lost.finished_at is not None
    assert only(place) == lost
    assert marked(place) == []


def test_supervisor_that_is_told_to_end_ends_its_launch(place: Process) -> None:
    up(place, "trap 'echo bye; exit 4' TERM; echo up; while :; do sleep 1 & wait $!; done")
    os.kill(status(place)["supervisor"][0], signal.SIGTERM)
    eventually(lambda: only(place).phase is Phase.EXITED)
    assert (only(place).reason, only(place).exit_code) == ("lost", 4)
    said = [line.text for line in place.logs("run-0-0-1")]  # some shells say "Terminated" as well
    assert (said[0], said[-1]) == ("up", "bye")


def test_supervisor_that_hangs_is_killed_by_stop(place: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "SLACK_S", 0.1)
    up(place, "echo up; exec sleep 600")
    os.kill(status(place)["supervisor"][0], signal.SIGSTOP)
    place.stop("run-0-0-1", grace_s=0.1)
    assert (only(place).phase, only(place).reason, only(place).exit_code) == (Phase.EXITED, "stopped", 137)
    assert marked(place) == []


def test_number_of_another_program_is_not_signalled(place: Process) -> None:
    up(place, "echo up; exec sleep 600")
    own = Shelf(place.state_dir / "modelyard")
    file = own.folder("run-0-0-1") / "status.json"
    real = own.status("run-0-0-1")
    with subprocess.Popen(["sleep", "600"]) as bystander:
        try:
            file.write_text(json.dumps(real | {"supervisor": [bystander.pid, 1], "pid": [bystander.pid, 1]}))
            own.kill_supervisor("run-0-0-1")
            assert bystander.poll() is None
            with pytest.raises(Rejected):
                place.execute("run-0-0-1", ["true"], tty=False)
        finally:
            bystander.kill()
    file.write_text(json.dumps(real))


def test_restart_of_the_machine_ends_what_ran(place: Process) -> None:
    up(place, "echo up; exec sleep 600")
    before = status(place)
    os.kill(before["supervisor"][0], signal.SIGKILL)
    eventually(lambda: not Shelf(place.state_dir / "modelyard").is_kept("run-0-0-1"))
    file = place.state_dir / "modelyard/launches/run-0-0-1/status.json"
    file.write_text(json.dumps(before | {"boot": "another"}))
    assert (only(place).reason, only(place).message) == ("lost", "the machine was restarted")


def test_state_that_a_power_cut_emptied_is_lost(place: Process) -> None:
    run(place, shell("true"))
    eventually(lambda: not Shelf(place.state_dir / "modelyard").is_kept("run-0-0-1"))
    (place.state_dir / "modelyard/launches/run-0-0-1/status.json").write_text("")
    assert (only(place).reason, only(place).message) == ("lost", "the machine was restarted")


def test_what_is_not_a_launch_is_passed_over(place: Process) -> None:
    run(place, shell("true"))
    launches = place.state_dir / "modelyard" / "launches"
    (launches / "notes").touch()
    (launches / "lost+found").mkdir()
    (launches / "empty").mkdir()
    (launches / "empty" / "launch.json").touch()
    assert [i.name for i in place.instances()] == ["run-0-0-1"]
    assert len(place.offers()) == 1


def test_watch_sees_a_killed_supervisor(place: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "STALE_S", 0.1)
    up(place, "echo up; exec sleep 600")
    closed = threading.Event()
    seen = place.watch(closed)
    os.kill(status(place)["supervisor"][0], signal.SIGSTOP)  # it can say nothing any more
    timer = threading.Timer(0.3, os.kill, (status(place)["supervisor"][0], signal.SIGKILL))
    timer.start()
    assert next(seen) == "run-0-0-1"
    closed.set()
    assert list(seen) == []


def test_watch_and_stop_do_without_inotify(place: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    class Exhausted:
        def inotify_init1(self, _: int) -> int:
            return -1

    monkeypatch.setattr(ctypes, "CDLL", lambda _: Exhausted())
    up(place, "echo up; exec sleep 600")
    assert next(place.watch(threading.Event())) == ""
    place.stop("run-0-0-1", grace_s=5)
    assert only(place).reason == "stopped"


# --- starters that die


def test_starter_that_dies_before_the_supervisor_leaves_nothing(
    place: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(process, "_supervise", die)
        with pytest.raises(Killed):
            start(place, shell("echo once"))
    assert place.instances() == ()
    with pytest.raises(NotFound):
        place.logs("run-0-0-1")
    assert run(place, shell("echo once")) == ["once"]


@pytest.mark.parametrize("after_ms", [0, 20, 40, 60, 80, 120, 200])
def test_starter_killed_at_any_time_starts_once_in_the_end(place: Process, after_ms: int) -> None:
    program = (
        "from orchestrator.backend import *; from backends.process import Process; "
        "from backends.machine import Machine; "
        "machine = Machine(4.0, 2**33, 2**33, 'x86'); "
        f"place = Process(state_dir={str(place.state_dir)!r}, machine=lambda: machine); "
        f"print('go', flush=True); place.start({shell('echo up; exec sleep 600')!r}, "
        "secrets={}, progress=lambda _: None)"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=env) as starter:
        assert starter.stdout is not None
        starter.stdout.readline()
        threading.Event().wait(after_ms / 1000)
        starter.kill()
    up(place, "echo up; exec sleep 600")
    assert [line.text for line in place.logs("run-0-0-1")] == ["up"]
    assert len(marked(place)) == 1


def test_supervisor_that_does_not_come_up_is_an_error(
    place: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        process, "_supervise", lambda folder, _: (folder / "supervisor.log").write_text("no\n")
    )
    with pytest.raises(BackendError, match="did not come up: no"):
        start(place, shell("echo once"))
    assert place.instances() == ()


# --- what is left behind


def test_background_processes_end_with_the_launch(place: Process) -> None:
    assert run(place, shell("sleep 600 & setsid sleep 600 & echo done")) == ["done"]
    eventually(lambda: only(place).phase is Phase.EXITED)
    assert only(place).exit_code == 0
    assert marked(place) == []


def test_stop_while_it_waits_to_restart_ends_it(place: Process) -> None:
    start(place, shell("exit 3", restart=True))
    eventually(lambda: only(place).restarts >= 2)
    eventually(lambda: only(place).phase is Phase.PENDING)
    place.stop("run-0-0-1", grace_s=5)
    assert (only(place).phase, only(place).reason, only(place).exit_code) == (Phase.EXITED, "stopped", 3)


def test_launch_that_fails_is_started_again_five_times(
    place: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "__file__", _quick_supervisor(place))
    said = run(place, shell("echo again; exit 3", restart=True))
    assert said == ["again"] * 6
    assert (only(place).restarts, only(place).exit_code, only(place).reason) == (5, 3, "error")


def _quick_supervisor(place: Process) -> str:
    """Return a copy of the supervisor that does not wait between restarts."""
    text = Path(supervise.__file__).read_text()
    assert "BACKOFF_S, STEADY_S = 0.2," in text
    copy = place.state_dir.parent / "supervise.py"
    copy.write_text(text.replace("BACKOFF_S, STEADY_S = 0.2,", "BACKOFF_S, STEADY_S = 0.0,"))
    return str(copy)


def test_end_is_told_once_there_is_room_for_it(place: Process) -> None:
    up(place, "echo up; while [ ! -e go ]; do sleep 0.02; done; exit 3")
    folder = place.state_dir / "modelyard" / "launches" / "run-0-0-1"
    in_the_way = folder / ".status.json"
    in_the_way.mkdir()  # fails to be written, as on a full disk
    (folder / "work" / "go").touch()
    eventually(lambda: marked(place) == [])
    assert only(place).phase is Phase.RUNNING
    in_the_way.rmdir()
    eventually(lambda: only(place).phase is Phase.EXITED)
    assert only(place).exit_code == 3


# --- what is refused


@pytest.mark.parametrize(
    ("launch", "said"),
    [
        (shell("true", image="python:3.12"), "run container images"),
        (shell("true", files=(File("/etc/passwd", b""),)), "/etc/passwd"),
        (shell("true", files=(File("../x", b""),)), "../x"),
        (shell("true", files=(File(".", b""),)), "."),
        (shell("true", files=(File("x", b""),), working_dir="/tmp"), "x"),
        (shell("true", user="nobody-of-here"), "nobody-of-here"),
        (shell("true", working_dir="../../x"), "../../x"),
        (shell("true", working_dir="/no/such/folder"), "/no/such/folder"),
        (shell("true", secrets=(("TOKEN", "secrets.TOKEN"),)), "TOKEN"),
        (Launch("run-0-0-1", "run"), "no command"),
        (Launch("run-0-0-1", "run", command=("no-such-program",)), "no-such-program"),
        (Launch("../x", "run", command=("true",)), "../x"),
        (shell("true", resources=Resources(accelerators=1)), "this machine has 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "launch",
)
def test_refusal_says_why_and_leaves_nothing(place: Process, launch: Launch, said: str) -> None:
    with pytest.raises(Rejected) as refused:
        start(place, launch)
    assert said in refused.value.what
    assert refused.value.fix
    assert refused.value.backend == "process"
    launches = place.state_dir / "modelyard" / "launches"
    assert not launches.exists() or list(launches.iterdir()) == []


def test_more_than_is_free_is_no_capacity(place: Process) -> None:
    up(place, "echo up; exec sleep 600", resources=Resources(cpu=3))
    other = replace(shell("true", resources=Resources(cpu=2)), name="other-0-0-1")
    with pytest.raises(NoCapacity):
        start(place, other)


def test_namespace_that_is_a_path_is_a_wrong_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        Process(namespace="../x", state_dir=tmp_path)


def test_folder_that_cannot_be_made_is_unreachable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Unreachable):
        start(make(tmp_path / "file"), shell("true"))


def test_full_disk_is_no_capacity(place: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Record, "write", fill)
    with pytest.raises(NoCapacity, match="No space left"):
        start(place, shell("true"))
    assert place.instances() == ()


def test_names_that_are_paths_are_unknown(place: Process) -> None:
    place.stop("../x", grace_s=0)
    place.remove("../x")
    with pytest.raises(NotFound):
        place.logs("../x")


# --- what a launch gets


def test_environment_of_the_starter_stays_behind(place: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "leaked")
    monkeypatch.setenv("HF_HOME", "/models")
    said = run(place, shell("env", env=(("GREETING", "hello"),)))
    assert not any(line.startswith("AWS_") for line in said)
    assert {"HF_HOME=/models", "GREETING=hello"} <= set(said)


def test_files_lie_where_the_command_runs(place: Process) -> None:
    said = run(place, shell("cat in.txt", files=(File("in.txt", b"here\n"),), working_dir="sub"))
    assert said == ["here"]


def test_folder_is_private_and_files_keep_their_mode(place: Process) -> None:
    said = run(place, shell("umask; stat -c %a run.sh", files=(File("run.sh", b"", 0o755),)))
    assert said[1] == "755"
    folder = place.state_dir / "modelyard" / "launches"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    own = os.umask(0o022)
    os.umask(own)
    assert int(said[0], 8) == own


def test_relative_working_dir_is_made(place: Process) -> None:
    (said,) = run(place, shell("pwd", working_dir="sub/folder"))
    assert said.endswith("/run-0-0-1/work/sub/folder")


def test_no_signal_is_ignored_at_the_start_though_we_were_begun_with_some(place: Process) -> None:
    with ignoring(signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1):
        (ignored,) = run(place, shell("grep SigIgn /proc/self/status"))
    assert int(ignored.split()[1], 16) == 0


def test_memory_is_a_limit_of_each_process(place: Process) -> None:
    launch = Launch(
        "run-0-0-1",
        "run",
        command=(sys.executable, "-c", "x = bytearray(512 * 2**20)"),
        resources=Resources(memory_bytes=256 * 2**20),
    )
    assert "MemoryError" in run(place, launch)


def test_port_in_use_is_replaced_by_a_free_one(place: Process) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        taken = other.getsockname()[1]
        (said,) = run(place, shell('echo "$PORT $MODELYARD_PORT"', ports=(Port(taken),)))
    given = only(place).ports[taken][1]
    assert given != taken
    assert said == f"{given} {given}"


@pytest.mark.parametrize("words", ["OSError: [Errno 98] Address already in use", "Error: listen EADDRINUSE"])
def test_program_that_opens_a_taken_port_is_told_which_to_open(place: Process, words: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        run(place, shell(f"echo '{words}' >&2; exit 1", ports=(Port(port),)))
    assert (
        only(place).message
        == f"exit code 1: port {port} is held by another program: listen on $MODELYARD_PORT"
    )


def test_program_that_fails_for_itself_is_told_nothing_of_ports(place: Process) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        run(place, shell("exit 1", ports=(Port(other.getsockname()[1]),)))
    assert only(place).message == "exit code 1"


def test_fixed_port_that_is_taken_names_its_holder(place: Process) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        with pytest.raises(Rejected, match="another program"):
            start(place, shell("true", ports=(Port(80, port),)))
    up(place, "echo up; exec sleep 600", ports=(Port(80, port),))
    with pytest.raises(Rejected, match="run-0-0-1"):
        start(place, replace(shell("true", ports=(Port(80, port),)), name="other-0-0-1"))


def test_command_that_cannot_be_run_ends_without_a_start(place: Process) -> None:
    start(place, shell("true", env=(("BROKEN", "a\0b"),)))
    eventually(lambda: only(place).phase is Phase.EXITED)
    ended = only(place)
    assert (ended.reason, ended.exit_code, ended.started_at) == ("no-start", 126, None)
    assert "null byte" in ended.message


def test_own_user_may_be_named(place: Process) -> None:
    assert run(place, shell("id -u", user=str(os.getuid()))) == [str(os.getuid())]


# --- accelerators


def test_launch_sees_the_devices_it_holds_and_no_others(tmp_path: Path) -> None:
    place = make(tmp_path, devices=GPUS)
    one = Resources(accelerators=1)
    up(place, "echo up; exec sleep 600", resources=one)
    second = replace(shell('echo "$CUDA_VISIBLE_DEVICES"', resources=one), name="other-0-0-1")
    assert run(place, second) == ["GPU-1"]
    assert [(o.accelerator, o.count) for o in place.offers()] == [("NVIDIA L4", 1)]
    none = replace(shell('echo "$CUDA_VISIBLE_DEVICES"'), name="plain-0-0-1")
    assert run(place, none) == ["-1"]
    two = replace(shell("true", resources=Resources(accelerators=2)), name="two-0-0-1")
    with pytest.raises(NoCapacity):
        start(place, two)
    for instance in place.instances():
        place.remove(instance.name)


def test_amd_devices_are_numbered_anew_for_hip(tmp_path: Path) -> None:
    amd = tuple(Device(n, f"amd-{n}", "MI300X", 2**37, "amd") for n in range(4))
    place = make(tmp_path, devices=amd)
    up(place, "echo up; exec sleep 600", resources=Resources(accelerators=2))
    show = shell('echo "$ROCR_VISIBLE_DEVICES $HIP_VISIBLE_DEVICES"', resources=Resources(accelerators=2))
    assert run(place, replace(show, name="other-0-0-1")) == ["2,3 0,1"]
    for instance in place.instances():
        place.remove(instance.name)


def test_fault_of_a_tool_is_told_by_check(tmp_path: Path) -> None:
    machine = Machine(1.0, 2**30, 2**30, "x86", (), ("nvidia-smi did not answer within 20 s",))
    checks = Process(state_dir=tmp_path, machine=lambda: machine).check()
    assert [(c.ok, c.detail) for c in checks if not c.ok] == [
        (False, "nvidia-smi did not answer within 20 s")
    ]


# --- exec


def test_execute_runs_where_the_launch_runs(place: Process, capfd: pytest.CaptureFixture[str]) -> None:
    up(place, "echo up; exec sleep 600", env=(("COLOUR", "blue"),), secrets=())
    assert place.execute("run-0-0-1", ["sh", "-c", "echo $COLOUR; pwd"], tty=False) == 0
    colour, folder = capfd.readouterr().out.split()
    assert colour == "blue"
    assert folder.endswith("/run-0-0-1/work")


def test_execute_gives_a_terminal_where_there_is_none(
    place: Process, capfd: pytest.CaptureFixture[str]
) -> None:
    up(place, "echo up; exec sleep 600")
    assert (
        place.execute("run-0-0-1", ["sh", "-c", "test -t 0 && test -t 1 && echo yes; exit 5"], tty=True) == 5
    )
    assert capfd.readouterr().out.strip() == "yes"


def test_execute_of_a_missing_program_is_127(place: Process) -> None:
    up(place, "echo up; exec sleep 600")
    assert place.execute("run-0-0-1", ["no-such-program"], tty=False) == 127


# --- output


def test_large_output_is_whole(place: Process) -> None:
    said = run(place, shell("i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done"))
    assert said == [f"line {n}" for n in range(20_000)]


def test_streams_are_told_apart_and_a_last_half_line_is_kept(place: Process) -> None:
    start(place, shell("echo out; echo err >&2; printf half"))
    lines = {(line.text, line.stream) for line in place.logs("run-0-0-1", follow=True)}
    assert lines == {("out", "stdout"), ("err", "stderr"), ("half", "stdout")}


def test_log_changes_its_file_and_is_read_across(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise, "LOG_BYTES", 400)
    log = Log(tmp_path / "log")
    for n in range(8):
        log.take("o", b"line %d\n" % n)
    with Tail(tmp_path) as tail:
        assert [line.text for line in tail.read()] == [f"line {n}" for n in range(8)]
        for n in range(8, 16):
            log.take("o", b"line %d\n" % n)
        log.close()
        assert [line.text for line in tail.read()] == [f"line {n}" for n in range(8, 16)]
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) < 1000


def test_line_without_end_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise, "LINE_BYTES", 10)
    log = Log(tmp_path / "log")
    log.take("o", b"x" * 25)
    log.close()
    with Tail(tmp_path) as tail:
        assert [len(line.text) for line in tail.read()] == [10, 10, 5]


def test_times_of_lines_only_grow(tmp_path: Path) -> None:
    log = Log(tmp_path / "log")
    log.take("o", b"a\nb\nc\n")
    log.close()
    with Tail(tmp_path) as tail:
        times = [line.at for line in tail.read() if line.at]
    assert times == sorted(set(times))


def test_half_written_line_waits_for_its_rest(tmp_path: Path) -> None:
    file = tmp_path / "log"
    whole = b"2026-01-01T00:00:00.000000+00:00 o one\n"
    file.write_bytes(whole + whole[:20])
    with Tail(tmp_path) as tail:
        assert len(list(tail.read())) == 1
        with file.open("ab") as more:
            more.write(whole[20:])
        assert [line.text for line in tail.read()] == ["one"]


def test_bytes_that_are_no_text_are_shown_as_such() -> None:
    assert parse_line(b"2026-01-01T00:00:00.000000+00:00 o \xff\n").text == "\ufffd"


def test_full_disk_costs_output_and_no_launch(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to("/dev/full")
    log = Log(tmp_path / "log")
    log.take("o", b"lost\n")
    log.close()


# --- all at once


def test_many_who_start_stop_remove_and_kill_run_it_once_at_most(place: Process) -> None:
    launch = shell("exec sleep 600")
    shelf = Shelf(place.state_dir / "modelyard")

    def kill() -> None:
        pid, _ = shelf.status(launch.name).get("supervisor", (0, 0))
        if pid and shelf.is_kept(launch.name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    acts: list[Callable[[Process], object]] = [
        lambda own: start(own, launch),
        lambda own: own.stop(launch.name, grace_s=1),
        lambda own: own.remove(launch.name),
        lambda own: own.offers(),
        lambda own: kill(),
    ]

    def act(seed: int) -> None:
        chance, own = random.Random(seed), make(place.state_dir)
        for _ in range(25):
            chance.choice(acts)(own)
            assert len(marked(place)) <= 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(act, range(4)))
    place.remove(launch.name)
    assert marked(place) == []
    assert list(shelf.launches.iterdir()) == []
