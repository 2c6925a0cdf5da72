"""A command in a pod of a whole cluster, as whoever types it meets it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import pty
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
import urllib.request
from collections.abc import Iterator, Sequence

import pytest

from backends.kubernetes import Kubernetes
from backends.kubernetes.attach import _exit_code
from backends.kubernetes.client import path_of
from orchestrator.backend import Group, Launch, Port
from orchestrator.errors import Rejected, Unreachable
from tests.backends.kubernetes.cluster import admin, namespace, watched, whole_cluster

BOX = Group(
    "box",
    Launch(
        "box-0-0-0",
        "box",
        image="localhost/busybox:1",
        ports=(Port(8080),),
        stop_grace_s=1,
        command=("sh", "-c", "cd /tmp; echo hello > index.html; exec httpd -f -p 8080"),
    ),
    "dev-environment",
)
WAIT_S = 60.0


@pytest.fixture(scope="module")
def space() -> Iterator[str]:
    config = whole_cluster()
    with namespace(config) as name:
        place = Kubernetes("lab", kubeconfig=config, namespace=name)
        place.apply_group(BOX, secrets={})
        pods = path_of("v1", "Pod", name)
        watched(admin(config), pods, lambda: any(one.ready for one in place.instances()), wait_s=WAIT_S)
        yield name


def program(space: str, command: Sequence[str], *, tty: bool = False) -> list[str]:
    """Return a program of its own that executes ``command``: it takes over a terminal."""
    return [
        sys.executable, "-c",
        "import sys\n"
        "from backends.kubernetes import Kubernetes\n"
        f"place = Kubernetes('lab', kubeconfig={whole_cluster()!r}, namespace={space!r})\n"
        f"sys.exit(place.execute('box-0-0-0', {list(command)!r}, tty={tty}))",
    ]  # fmt: skip


def run(space: str, *command: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        program(space, command), input=given, capture_output=True, timeout=WAIT_S, check=False
    )


def test_code_and_both_streams_come_back_apart(space: str) -> None:
    done = run(space, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")


def test_end_of_stdin_is_told(space: str) -> None:
    done = run(space, "cat", given=b"a\nb\n")
    assert (done.returncode, done.stdout) == (0, b"a\nb\n")


def test_much_goes_both_ways_at_once_and_arrives_whole(space: str) -> None:
    given = random.Random(1).randbytes(8_000_000)
    done = run(space, "cat", given=given)
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(given).digest()


def test_many_lines_of_both_streams_arrive_whole(space: str) -> None:
    done = run(space, "sh", "-c", "i=0; while [ $i -lt 5000 ]; do echo o$i; echo e$i >&2; i=$((i+1)); done")
    assert done.stdout.split() == [b"o%d" % i for i in range(5000)]
    assert done.stderr.split() == [b"e%d" % i for i in range(5000)]


def test_program_without_stdin_is_executed(space: str) -> None:
    child = ["sh", "-c", 'exec "$@" <&-', "sh", *program(space, ["sh", "-c", "echo x"])]
    done = subprocess.run(child, capture_output=True, timeout=WAIT_S, check=False)
    assert (done.returncode, done.stdout) == (0, b"x\n")


def test_program_that_is_not_there_is_rejected_by_name(space: str) -> None:
    done = run(space, "nothere")
    assert b'Rejected: the command did not start: "nothere"' in done.stderr


def test_terminal_has_its_size_follows_it_and_passes_keys_on(space: str) -> None:
    child, terminal = pty.fork()
    if child == 0:  # pragma: no cover
        arguments = program(space, ["sh"], tty=True)
        os.execv(arguments[0], arguments)
    _resize(terminal, 33, 101)
    shown = b""
    try:
        shown += _until(terminal, b"$ ")
        os.write(terminal, b"busybox stty size\n")
        shown += _until(terminal, b"33 101")
        _resize(terminal, 44, 120)
        os.kill(child, signal.SIGWINCH)
        # quotes, so that the echo of a command is not taken for what it prints; and by a program of its
        # own, which is in the foreground by then
        os.write(terminal, b"sh -c \"echo be''gun; exec sleep 600\"\n")
        shown += _until(terminal, b"begun")
        os.write(terminal, b"\x03")  # for the program there, and not for the one here
        size = (
            b"until [ \"$(busybox stty size)\" = '44 120' ]; do busybox usleep 20000; done; echo fol''lowed\n"
        )
        os.write(terminal, size)
        shown += _until(terminal, b"followed")
        os.write(terminal, b"exit 5\n")
        _, status = os.waitpid(child, 0)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 5


def test_port_of_a_pod_is_reached_on_this_machine_until_left(space: str) -> None:
    place = Kubernetes("lab", kubeconfig=whole_cluster(), namespace=space)
    with place.forwarded("box-0-0-0", 8080) as (host, port):
        for _ in range(2):
            with urllib.request.urlopen(f"http://{host}:{port}/", timeout=WAIT_S) as answer:
                assert answer.read() == b"hello\n"
    with pytest.raises(OSError), socket.create_connection((host, port), timeout=1) as late:
        late.recv(1)


def test_port_that_nobody_listens_on_hangs_up(space: str) -> None:
    place = Kubernetes("lab", kubeconfig=whole_cluster(), namespace=space)
    with place.forwarded("box-0-0-0", 9) as address, socket.create_connection(address) as client:
        assert client.recv(1) == b""


def _resize(terminal: int, rows: int, columns: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def _until(terminal: int, wanted: bytes) -> bytes:
    shown = b""
    deadline = time.monotonic() + WAIT_S
    while wanted not in shown:
        assert select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))[0], shown
        shown += os.read(terminal, 65_536)
    return shown


def test_last_word_of_the_server_is_the_code() -> None:
    assert _exit_code(b'{"status": "Success"}', "lab") == 0


def test_connection_without_a_last_word_tells_nothing() -> None:
    with pytest.raises(Unreachable):
        _exit_code(b"", "lab")


def test_failure_without_a_code_never_began() -> None:
    with pytest.raises(Rejected, match='did not start: "x": not found'):
        _exit_code(b'{"status": "Failure", "message": "exec failed: exec: \\"x\\": not found"}', "lab")
