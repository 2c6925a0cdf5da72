"""A terminal and ports of a job through a server: real processes, the command line as a program."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from orchestrator.catalog.overlay import use
from orchestrator.client import Remote
from orchestrator.errors import Busy, Denied, NotFound
from orchestrator.server import sockets
from orchestrator.spec.load import read
from tests.cli.conftest import Cli
from tests.server.conftest import Served
from tests.signals import ignoring

ROOT = Path(__file__).parents[2]
BOX = """\
type: dev-environment
name: box
backends: [process]
stop_duration: 1s
env: [COLOUR=blue]
"""
WEB = """\
type: service
name: web
backends: [process]
stop_duration: 1s
port: 8000
commands: ['exec python -m http.server "$MODELYARD_PORT" --bind 127.0.0.1']
"""


@pytest.fixture
def box(serve: Callable[..., Served], cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """A server with processes as its place, and a dev environment that runs."""
    config = cli.folder / "processes.yaml"
    config.write_text(f"backends: [{{type: process, state_dir: {cli.folder / 'process'}}}]\n")
    served = serve(config=config)
    client = served.client()
    client.apply(client.plan(read(BOX)))
    assert client.follow(["box"], "ready", timeout_s=30)
    monkeypatch.delenv("MODELYARD_CONFIG")
    monkeypatch.setenv("MODELYARD_DATABASE_URL", f"sqlite:///{os.devnull}/none")  # nobody looks there
    monkeypatch.setenv("MODELYARD_URL", served.url)
    monkeypatch.setenv("MODELYARD_TOKEN", served.token("operator", "main"))
    yield served
    client.ask([view.run.name for view in client.runs()], client.run("box").run.wanted.DELETE)
    assert client.follow(["box"], "deleted", timeout_s=30)


def deeds(served: Served) -> list[tuple[str, str, str]]:
    found = [deed for _, deed in served.site.store.access.deeds("main")]
    return [(each.action, each.subject, each.outcome) for each in found if each.action != "apply"]


def until(claim: Callable[[], bool]) -> bool:
    """Wait for what another process does."""
    deadline = time.monotonic() + 30
    while not claim() and time.monotonic() < deadline:
        time.sleep(0.02)
    return claim()


def test_a_command_reads_writes_and_ends_as_it_does_here(box: Served, cli: Cli) -> None:
    script = "cat; echo $COLOUR >&2; exit 7"
    told = cli.program("exec", "box", "--", "sh", "-c", script, stdin="some text\n" * 20_000)

    assert (told.code, told.out, told.err) == (7, "some text\n" * 20_000, "blue\n")
    job = "box-0-0-0"
    assert until(lambda: deeds(box) == [("exec", job, "101"), ("exec", job, "exit 7")])
    with contextlib.redirect_stderr(io.TextIOWrapper(io.BytesIO())) as said:
        assert box.client().execute("box", ["no-such-program"], tty=False) == 127
    assert said.buffer.getvalue() == b"no-such-program: not found\n"  # type: ignore[attr-defined]  # as made above


def test_a_command_heeds_the_keys_though_the_server_was_begun_in_background(box: Served, cli: Cli) -> None:
    keys = (signal.SIGINT, signal.SIGQUIT)
    with ignoring(*keys):
        told = cli.program("exec", "box", "--", "grep", "SigIgn", "/proc/self/status")
    ignored = int(told.out.split()[1], 16)  # of these tests themselves, begun by nohup, SIGHUP
    assert (told.code, [key for key in keys if ignored >> key - 1 & 1]) == (0, [])


def test_a_shell_has_a_terminal_of_its_own_with_the_windows_size(box: Served, cli: Cli) -> None:
    ours, theirs = pty.openpty()
    subprocess.run(["stty", "rows", "40", "columns", "100"], stdin=theirs, check=True)
    program = subprocess.Popen(
        ["setsid", "--ctty", "--wait", sys.executable, "-m", "orchestrator.cli", "exec", "box",
         "--", "env", "PS1=typed> ", "sh"], cwd=cli.folder,
        stdin=theirs, stdout=theirs, stderr=theirs, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    os.close(theirs)
    try:
        said = talk(ours, b"", "typed> ")
        said = talk(ours, b"test -t 0 && stty size\n", "40 100")
        subprocess.run(["stty", "rows", "50", "columns", "120"], stdin=ours, check=True)
        said = talk(ours, b"until test \"$(stty size)\" = '50 120'; do :; done; echo gr''own\n", "grown")
        said = talk(ours, b"sh -c 'echo sl''eeps; exec sleep 100'\n", "sleeps")
        said = talk(ours, b"\x03", "^C")  # the key, and not the end of our program
        said = talk(ours, b"echo al''ive; exit 3\n", "alive")
        assert program.wait(timeout=30) == 3, said
    finally:
        program.kill()
        program.wait()
        os.close(ours)


def talk(terminal: int, keys: bytes, answer: str) -> str:
    """Type, and return what is shown up to ``answer``."""
    os.write(terminal, keys)
    said, deadline = b"", time.monotonic() + 30
    while answer not in said.decode(errors="replace"):
        ready, _, _ = select.select([terminal], [], [], deadline - time.monotonic())
        assert ready, said
        said += os.read(terminal, 4096)
    return said.decode(errors="replace")


def test_what_somebody_left_is_ended(box: Served, cli: Cli) -> None:
    script = "echo $$; exec sleep 300"
    with subprocess.Popen(
        [sys.executable, "-m", "orchestrator.cli", "exec", "box", "--", "sh", "-c", script],
        cwd=cli.folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ) as program:  # fmt: skip
        assert program.stdout is not None
        pid = int(program.stdout.readline())
        program.kill()

    assert until(lambda: not Path(f"/proc/{pid}").exists())
    assert until(lambda: deeds(box)[-1:] == [("exec", "box-0-0-0", "left")])


def test_a_command_runs_where_prices_name_what_only_the_users_own_catalog_has(box: Served, cli: Cli) -> None:
    (cli.folder / "accelerators.yaml").write_text(
        "CELLAR-10GB: {vendor: nvidia, architecture: Turing, nominal_gb: 10, visible_bytes: 10000000000,"
        " source: measured here}\n"
    )
    config = cli.folder / "processes.yaml"
    config.write_text(config.read_text().replace("type: process", "type: process, prices: {CELLAR-10GB: 1}"))
    use(cli.folder)
    try:
        assert box.client().execute("box", ["true"], tty=False) == 0
    finally:
        use(None)


def test_a_server_that_ends_says_so_to_who_is_inside(box: Served) -> None:
    url = f"{box.url.replace('http', 'ws')}/v1/projects/main/runs/box/exec"
    headers = {"Authorization": f"Bearer {box.token()}"}
    with connect(url, additional_headers=headers) as opened:
        opened.send(json.dumps({"command": ["sh", "-c", "echo in; exec sleep 300"]}))
        assert opened.recv(timeout=30) == b"\x01in\n"
        box.site.feed.end()
        with pytest.raises(ConnectionClosed, match="1012"):
            opened.recv(timeout=30)


def test_who_does_not_say_what_to_run_is_sent_away(box: Served) -> None:
    url = f"{box.url.replace('http', 'ws')}/v1/projects/main/runs/box/exec"
    for first in ("{}", "no json", '{"command": []}', b"\x00"):
        with connect(url, additional_headers={"Authorization": f"Bearer {box.token()}"}) as opened:
            opened.send(first)
            with pytest.raises(ConnectionClosed, match="says what to run"):
                opened.recv(timeout=30)
    assert until(lambda: sorted(outcome for *_, outcome in deeds(box)) == ["101"] * 4 + ["400"] * 4)


def test_who_may_only_look_may_not_come_in(box: Served) -> None:
    viewer = box.client("viewer", of="main")
    with pytest.raises(Denied, match="may not do this in project 'main'"):
        viewer.execute("box", ["true"], tty=False)
    with pytest.raises(NotFound, match="no run 'none'"):
        box.client().execute("none", ["true"], tty=False)
    with pytest.raises(NotFound, match="no running job at replica 3"):
        box.client().execute("box", ["true"], replica=3, tty=False)
    with (
        pytest.raises(NotFound, match="box-0-0-0 has no port 22"),
        box.client()._channels().forwarded("runs/box/ports/22", {}),
    ):
        pass
    assert deeds(box) == [("exec", "box", "403 Denied")]


def test_a_server_carries_so_many_and_no_more(box: Served) -> None:
    taken = 0
    while box.site.sockets.acquire(blocking=False):
        taken += 1
    assert taken == 64
    with pytest.raises(Busy, match="as many terminals and ports as it can"):
        box.client().execute("box", ["true"], tty=False)
    for _ in range(taken):
        box.site.sockets.release()


def test_a_port_leads_to_this_machine_while_attached(box: Served, cli: Cli) -> None:
    client: Remote = box.client()
    client.apply(client.plan(read(WEB)))
    assert client.follow(["web"], "ready", timeout_s=30)

    with client.forwarded("web") as led:
        ((host, port),) = led.values()
        with urllib.request.urlopen(f"http://{host}:{port}/") as answer:
            assert b"Directory listing" in answer.read()
        theirs = client.run("web").jobs[-1].ports[8000]
        assert (host, port) != theirs
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{host}:{port}/"):
        raise AssertionError("it leads there still")

    attached = cli.program("attach", "web", stdin="exit 4\n")
    assert attached.code == 4
    assert re.search(r"port 8000 answers at 127.0.0.1:\d+ until you leave", attached.err)
    assert until(lambda: ("port", "web-0-0-0 8000", "closed") in deeds(box))


def test_a_terminal_ends_when_its_token_is_revoked(box: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "LOOK_AGAIN_S", 0.1)
    token = box.token("operator", "main")
    url = box.url.replace("http", "ws") + "/v1/projects/main/runs/box/exec"
    with connect(url, additional_headers={"Authorization": f"Bearer {token}"}) as opened:
        opened.send('{"command": ["cat"]}')
        opened.send(b"typed")
        assert opened.recv(timeout=30) == b"\x01typed"
        box.site.store.access.revoke(token.split("-")[1], now=box.site.clock())
        with pytest.raises(ConnectionClosed) as closed:
            opened.recv(timeout=30)

    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1008, "the token was revoked")
    assert until(lambda: deeds(box)[-1:] == [("exec", "box-0-0-0", "revoked")])
