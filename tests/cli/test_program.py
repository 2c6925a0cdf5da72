"""The program as a process: signals, pipes, terminals, what it imports, and real places."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from orchestrator.cli.progress import MovingLine
from tests.cli.conftest import Cli
from tests.images import busybox, require_engine

ROOT = Path(__file__).parents[2]
ENVIRON = {"PYTHONPATH": str(ROOT)}
LONG = "type: task\nname: long\nbackends: [process]\ncommands: [echo up, sleep 300]\nstop_duration: 1s\n"


@pytest.fixture
def real(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """A prompt whose places are processes and Docker, each under a name of the test's own."""
    space = f"modelyard-test-{os.getpid()}"
    state = cli.folder / "process"
    config = f"backends: [{{type: docker, namespace: {space}}}, {{type: process, state_dir: {state}}}]\n"
    monkeypatch.setenv("MODELYARD_CONFIG", cli.write("real.yaml", config))
    return cli


def test_an_interrupt_ends_with_130_and_the_run_goes_on(real: Cli) -> None:
    file = real.write("long.yaml", LONG)
    command = [sys.executable, "-m", "orchestrator.cli", "apply", "-y", "-f", file]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | ENVIRON,
    ) as program:
        assert program.stdout
        assert program.stdout.readline() == "up\n"
        program.send_signal(signal.SIGINT)
        assert program.wait(timeout=30) == 130
        assert program.stderr
        assert "\ninterrupted: what was applied goes on" in program.stderr.read()
    assert json.loads(real("ps", "--json").out)["runs"][0]["state"] == "running"
    assert real("delete", "-y", "long").code == 0


def test_an_interrupt_while_modules_load_leaves_no_traceback_and_later_ones_are_caught() -> None:
    """The handler is the system's as long as nobody could catch an interrupt, and Python's after."""
    program = """
import signal, sys
sys.argv = ["/usr/bin/modelyard"]
import orchestrator.cli
assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
try:
    orchestrator.cli.main(["--version"])
except SystemExit:
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_interrupted_plan_promises_nothing(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("orchestrator.api.planning.plan_documents", interrupted)
    result = cli("plan", "-f", cli.write("long.yaml", LONG))
    assert (result.code, result.err) == (130, "")


def test_a_killed_apply_is_picked_up_by_the_next_command(real: Cli) -> None:
    file = real.write("long.yaml", LONG.replace("sleep 300", "echo down"))
    command = [sys.executable, "-m", "orchestrator.cli", "apply", "-y", "-f", file]
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | ENVIRON,
    ) as program:
        assert program.stderr
        while "provisioning" not in program.stderr.readline():
            pass
        program.kill()
    assert real("wait", "long", "--for", "ended", "--timeout", "60s").code == 0
    assert real("logs", "long").out == "up\ndown\n"
    jobs = json.loads(real("show", "long", "--json").out)["run"]["jobs"]
    assert [job["name"] for job in jobs] == ["long-0-0-0"]
    real("delete", "-y", "long")


def test_commands_at_the_same_time_each_tell_their_own(real: Cli) -> None:
    """Whoever drives a run, the command that applied it shows how it goes and what it prints."""
    names = ["one", "two", "three"]
    programs = []
    for name in names:
        spec = f"type: task\nname: {name}\nbackends: [process]\ncommands: [sleep 1, echo done {name}]\n"
        command = [
            sys.executable,
            "-m",
            "orchestrator.cli",
            "apply",
            "-y",
            "-f",
            real.write(f"{name}.yaml", spec),
        ]
        programs.append(
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | ENVIRON
            )
        )
    for name, program in zip(names, programs, strict=True):
        out, err = program.communicate(timeout=60)
        assert (program.returncode, out) == (0, f"done {name}\n"), err
        assert err.splitlines()[-1] == f"{name}  succeeded  every node ended with exit code 0"
    assert real("delete", "-y", *names).code == 0


def test_the_quickstart_answers_on_the_printed_address(real: Cli) -> None:
    applied = real("apply", "-y", "-f", str(ROOT / "configs/quickstart"))
    assert applied.code == 0, applied.err
    assert "hello-0-0-0 | 6 × 7 = 42" in applied.out
    address = re.search(r"web answers at (\S+)", applied.err)
    assert address
    with urllib.request.urlopen(address[1]) as answer:
        assert answer.read() == b"hello from modelyard\n"
    assert real("delete", "-y", "web", "hello").code == 0


def test_a_service_that_opens_its_own_port_is_replaced_with_a_gap_that_the_plan_tells(real: Cli) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spec = (
        f"type: service\nname: own\nbackends: [process]\nport: {port}\nstop_duration: 2s\n"
        f"commands: [exec python3 -m http.server {port}]\n"
    )
    note = f"its commands open port {port}: to be replaced without a gap, listen on $MODELYARD_PORT"
    file = real.write("own.yaml", spec)
    assert note in real("plan", "-f", file).out
    assert real("apply", "-y", "-f", file).code == 0
    real.write("own.yaml", spec.replace(f"{port}]", f"{port} --directory .]"))
    planned = real("plan", "-f", file).out
    assert [line.split("note     ")[1] for line in planned.splitlines() if " note " in line] == [
        "the old one is stopped first", note,
    ]  # fmt: skip
    applied = real("apply", "-y", "-f", file)
    assert applied.code == 0, applied.err
    assert f"own answers at http://127.0.0.1:{port}\n" in applied.err
    real("delete", "-y", "own")


def test_a_program_that_may_open_its_own_port_is_told_of_before_it_is_replaced(real: Cli) -> None:
    spec = "type: service\nname: hid\nbackends: [process]\nport: 8080\ncommands: [sleep 300]\n"
    file = real.write("hid.yaml", spec + "stop_duration: 1s\n")
    note = "the new replica has to listen on $MODELYARD_PORT: the old one has port 8080"
    assert note not in real("plan", "-f", file).out
    real("apply", "-y", "-d", "-f", file)
    real.write("hid.yaml", spec.replace("300", "301"))
    assert note in real("plan", "-f", file).out
    real.write("hid.yaml", spec.replace("sleep 300", "'sleep 300 $MODELYARD_PORT'"))
    assert note not in real("plan", "-f", file).out
    real("delete", "-y", "hid")


@pytest.mark.docker
def test_a_service_in_docker_is_replaced_without_a_gap(real: Cli) -> None:
    require_engine()
    spec = (
        f"type: service\nname: page\nimage: {busybox()}\nport: 8080\ncommands:\n"
        "  - mkdir -p /www && echo one > /www/index.html\n  - exec httpd -f -p 8080 -h /www\n"
    )
    file = real.write("page.yaml", spec)
    try:
        assert real("apply", "-y", "-f", file).code == 0
        real.write("page.yaml", spec.replace("one", "two"))
        applied = real("apply", "-y", "-f", file)
        lines = applied.err.splitlines()
        assert lines.index("page-0-0-1  ready  answers its probe") < lines.index(
            "page-0-0-0  stopping  replaced"
        )
        address = re.search(r"page answers at (\S+)", applied.err)
        assert address
        with urllib.request.urlopen(address[1]) as answer:
            assert answer.read() == b"two\n"
    finally:
        assert real("delete", "-y", "page").code == 0


@pytest.mark.docker
def test_a_dev_environment_is_a_container_with_a_shell_and_an_editors_link(real: Cli) -> None:
    require_engine()
    spec = (
        f"type: dev-environment\nname: dev\nimage: {busybox()}\nide: vscode\ninit: [echo made > /tmp/made]\n"
    )
    try:
        assert real("apply", "-y", "-f", real.write("dev.yaml", spec)).code == 0
        attached = real.program("attach", "dev", stdin="cat /tmp/made; exit 4\n")
        assert (attached.code, attached.out) == (4, "made\n")
        link = re.search(r"attached-container\+([0-9a-f]+)/", attached.err)
        assert link
        assert bytes.fromhex(link[1]).decode().endswith('-dev-0-0-0"}')
    finally:
        assert real("delete", "-y", "dev").code == 0


def test_a_reader_that_goes_away_is_no_error(cli: Cli) -> None:
    piped = f"{sys.executable} -m orchestrator.cli schema | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", piped],
        capture_output=True,
        text=True,
        cwd=cli.folder,
        env=os.environ | ENVIRON,
    )
    assert (done.stdout, done.stderr) == ("{\n0\n", "")


def test_output_that_cannot_be_written_is_told_in_a_line(cli: Cli) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator.cli", "ps", "--json"],
            stdout=full, stderr=subprocess.PIPE, text=True, cwd=cli.folder, env=os.environ | ENVIRON,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (74, "the output: No space left on device\n")


def test_a_caller_that_closed_the_output_gets_the_exit_code_alone(cli: Cli) -> None:
    closed = f'exec "{sys.executable}" -m orchestrator.cli ps >&-'
    done = subprocess.run(
        ["sh", "-c", closed], stderr=subprocess.PIPE, text=True, cwd=cli.folder, env=os.environ | ENVIRON
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_record_that_can_be_nowhere_is_told_with_its_folder(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "flat").write_text("")
    environ = {k: v for k, v in os.environ.items() if k != "MODELYARD_DATABASE_URL"}
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", "ps"], capture_output=True, text=True, cwd=cli.folder,
        env=environ | ENVIRON | {"XDG_STATE_HOME": str(tmp_path / "flat")},
    )  # fmt: skip
    assert done.returncode == 78
    assert done.stderr.startswith(f"the folder for the record cannot be made: {tmp_path / 'flat'}")
    assert "XDG_STATE_HOME" in done.stderr


def test_progress_on_a_terminal_is_drawn_and_without_one_is_plain(cli: Cli) -> None:
    file = cli.write("hello.yaml", "type: task\nname: hello\ncommands: [echo hi]\n")
    ours, theirs = pty.openpty()
    program = subprocess.Popen(
        [sys.executable, "-m", "orchestrator.cli", "apply", "-f", file],
        stdin=theirs, stdout=theirs, stderr=theirs, cwd=cli.folder, env=os.environ | ENVIRON,
    )  # fmt: skip
    os.close(theirs)
    os.write(ours, b"y\n")
    shown = b""
    try:
        while chunk := os.read(ours, 4096):
            shown += chunk
    except OSError:
        pass  # the terminal is gone once its last user is
    os.close(ours)
    assert program.wait() == 0
    assert b"apply? [y/N]" in shown
    assert b"\x1b[" in shown
    cli.write("hello.yaml", "type: task\nname: hello\ncommands: [echo hi again]\n")
    assert "\x1b" not in cli.program("apply", "-y", "-f", file).err


def test_a_moving_line_leaves_the_streams_to_those_who_print(capsys: pytest.CaptureFixture[str]) -> None:
    streams = sys.stdout, sys.stderr
    with MovingLine() as moving:
        assert (sys.stdout, sys.stderr) == streams
        moving.tell("pulling")
        moving.print("\x1b[1mdone\x1b[0m [not markup]")
    assert (sys.stdout, sys.stderr) == streams
    said = capsys.readouterr()
    assert (said.out, said.err.strip()) == ("", "done [not markup]")


LIGHT = ("pydantic", "sqlalchemy", "rich", "docker", "httpx", "asyncio", "kubernetes", "cryptography", "yaml")


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        (["--help"], ()),
        (["--version"], ()),
        (["plan", "-f", "hello.yaml"], ("pydantic", "yaml", "asyncio")),
        (["validate", "-f", "hello.yaml"], ("pydantic", "yaml", "asyncio")),
    ],
)
def test_a_command_imports_no_more_than_it_uses(
    cli: Cli, arguments: list[str], allowed: tuple[str, ...]
) -> None:
    cli.write("hello.yaml", "type: task\nname: hello\ncommands: [echo hi]\n")
    show = "print(*sys.modules, file=sys.stderr)"
    code = f"import sys; from orchestrator.cli import run; run({arguments!r}); {show}"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=cli.folder,
        env=os.environ | ENVIRON,
    )  # fmt: skip
    loaded = set(done.stderr.split())
    assert [name for name in LIGHT if name in loaded and name not in allowed] == []


UNASKED = (
    "orchestrator.store.rows", "orchestrator.apply.recording", "orchestrator.facts.local",
    "orchestrator.facts.datasets", "backends.kubernetes.attach", "kubernetes", "sqlite3",
)  # fmt: skip


def test_rendering_a_service_brings_neither_the_record_nor_a_cluster(cli: Cli) -> None:
    cli.write("chat.yaml", "type: service\nname: chat\nmodel: Qwen/Qwen3-8B\n")
    show = "print(*sys.modules, file=sys.stderr)"
    asked = ["render", "--to", "kubernetes", "-f", "chat.yaml"]
    code = f"import sys; from orchestrator.cli import run; run({asked!r}); {show}"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=cli.folder,
        env=os.environ | ENVIRON,
    )  # fmt: skip
    assert "kind: Deployment" in done.stdout
    loaded = set(done.stderr.split())
    assert [name for name in UNASKED if name in loaded] == []


def test_a_shell_completes_commands_options_values_and_names_of_runs(cli: Cli) -> None:
    """By the script that is printed for it, in a real bash."""
    file = cli.write("web.yaml", "type: service\nname: web\ncommands: [serve]\nport: 80\n")
    assert cli("apply", "-y", "-d", "-f", file).code == 0
    program = cli.folder / "modelyard"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m orchestrator.cli "$@"\n')
    program.chmod(0o755)
    script = cli.program("completion", "bash").out

    def completed(*words: str) -> list[str]:
        asked = " ".join(f"'{word}'" for word in ("modelyard", *words))
        ask = f"COMP_WORDS=({asked}); COMP_CWORD={len(words)}; _modelyard_completion modelyard"
        done = subprocess.run(
            ["bash", "-c", f'{script}\n{ask}\nprintf "%s\\n" "${{COMPREPLY[@]}}"'],
            capture_output=True,
            text=True,
            env=os.environ | ENVIRON | {"PATH": f"{cli.folder}:{os.environ['PATH']}"},
        )
        assert done.stderr == ""
        return done.stdout.split()

    assert completed("lo") == ["logs", "login"]
    assert completed("plan", "--so") == ["--sort"]
    assert completed("plan", "--sort", "") == ["price", "throughput", "latency"]
    assert completed("stop", "w") == ["web"]
    assert completed("plna", "")[0] == "plan", "no complaint either: it would stand in the prompt"


def test_a_docker_that_nobody_asked_for_and_does_not_answer_is_told_with_its_reason(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MODELYARD_CONFIG")
    monkeypatch.setenv("DOCKER_HOST", "unix:///nobody/listens.sock")
    told = next(line for line in cli("doctor").out.splitlines() if line.startswith("docker"))
    assert told.split(maxsplit=2)[1] == "ok"
    assert "no, and no configuration asks for it: the Docker engine at unix:///nobody/listens.sock" in told
