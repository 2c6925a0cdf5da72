"""The server as its user starts it: a program on loopback, and the command line against it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from orchestrator.client import Remote
from orchestrator.errors import UsageError
from orchestrator.reconcile import RunEvent
from orchestrator.server.feed import Feed
from orchestrator.server.run import Door
from orchestrator.server.streams import events
from orchestrator.spec.load import read
from tests.cli.conftest import Cli
from tests.server.conftest import Served

ROOT = Path(__file__).parents[2]
HELLO = "type: task\nname: hello\ncommands: [echo hi]\nenv: [HF_TOKEN]\n"
Start = Callable[..., tuple[subprocess.Popen[str], list[str]]]


@pytest.fixture
def start(cli: Cli) -> Iterator[Start]:
    """Start the program, and return it with the lines it began with."""
    running: list[subprocess.Popen[str]] = []

    def run(*arguments: str, lines: int = 2, **environ: str) -> tuple[subprocess.Popen[str], list[str]]:
        process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.cli", "server", "--listen", "127.0.0.1:0", *arguments],
            cwd=cli.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), **environ},
        )  # fmt: skip
        running.append(process)
        assert process.stdout is not None
        return process, [process.stdout.readline().strip() for _ in range(lines)]

    yield run
    for process in running:
        process.kill()
        process.communicate()


def test_a_first_start_prints_a_token_once_and_ends_when_told(start: Start, cli: Cli) -> None:
    process, (listening, token, gateway) = start("--gateway", "127.0.0.1:0", lines=3)
    assert re.fullmatch(r"server listening on http://127.0.0.1:\d+", listening)
    assert re.fullmatch(r"token my-[0-9a-f]{12}-\S{43}", token)
    assert re.fullmatch(r"gateway listening on http://127.0.0.1:\d+", gateway)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 0
    again, (only,) = start(lines=1)
    url = only.removeprefix("server listening on ").replace("http", "ws") + "/v1/projects/main/runs/none/exec"
    with pytest.raises(InvalidStatus, match="401"):
        connect(url)
    again.send_signal(signal.SIGTERM)
    out, err = again.communicate(timeout=20)
    assert (only.startswith("server listening on"), out, err) == (True, "", "")


def test_a_planted_secret_is_nowhere(start: Start, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    process, (listening, token) = start()
    monkeypatch.setenv("MODELYARD_URL", listening.removeprefix("server listening on "))
    monkeypatch.setenv("MODELYARD_TOKEN", token.removeprefix("token "))
    monkeypatch.setenv("HF_TOKEN", "hf_canary_12345")
    file = cli.write("hello.yaml", HELLO)

    said = [cli("plan", "--lock", "--json", "--out", "plan.json", "-f", file), cli("apply", "-y", "-f", file)]
    said += [cli(*c.split()) for c in ("show hello --json", "events --json", "secret list", "doctor")]
    said.append(cli("show", "hf_canary"))
    cmdline = Path(f"/proc/{process.pid}/cmdline").read_text()
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=20)

    assert [result.code for result in said[:6]] == [0] * 6
    assert all("canary_12345" not in text for result in said for text in (result.out, result.err))
    secret = token.split("-", 2)[2][:20]  # which may have a "-" itself
    for text in (out, err, cmdline):
        assert "hf_canary_12345" not in text
        assert secret not in text
    for path in (p for p in cli.folder.rglob("*") if p.is_file()):
        content = path.read_bytes()
        assert b"hf_canary_12345" not in content, path
        assert secret.encode() not in content, path


def test_tokens_do_not_cross_a_network_in_the_clear(cli: Cli) -> None:
    result = cli("server", "--listen", "0.0.0.0:0")
    assert result.code == 64
    assert "--insecure where a proxy in front has TLS" in result.err
    with pytest.raises(UsageError, match="in the clear"):
        Door("", 0)
    assert Door("0.0.0.0", 0, insecure=True).port == 0


def test_a_server_that_is_not_there_is_named(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_URL", "http://127.0.0.1:1")
    assert "MODELYARD_URL without MODELYARD_TOKEN" in cli("ps").err
    monkeypatch.setenv("MODELYARD_TOKEN", "my-x")
    monkeypatch.setattr("orchestrator.client.connection.AGAIN_S", 0.0)
    result = cli("ps")
    assert (result.code, "check MODELYARD_URL" in result.err) == (69, True)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1\n", "http://[::1", "http://host:port", "host:8470"])
def test_what_is_no_address_of_a_server_is_told_as_that(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("MODELYARD_URL", url)
    monkeypatch.setenv("MODELYARD_TOKEN", "my-x")
    result = cli("ps")
    assert (result.code, f"MODELYARD_URL is no address of a server: {url!r}" in result.err) == (64, True)


def test_events_are_streamed_from_where_a_reader_was(served: Served) -> None:
    client: Remote = served.client()
    client.set_secret("HF_TOKEN", "x")
    client.apply(client.plan(read(HELLO)))
    client.follow(["hello"], "ended")
    told = client.events(None)
    url = f"{served.url}/v1/projects/main/events/stream"
    headers = {"Authorization": f"Bearer {served.token()}", "Last-Event-ID": str(told[-2][0])}

    with served.http.stream("GET", url, headers=headers) as answer:
        lines = answer.iter_lines()
        data = next(line for line in lines if line.startswith("data: "))

    assert json.loads(data[6:])["serial"] == told[-1][0]


def test_a_page_of_events_is_one_piece() -> None:
    told = RunEvent("id", "chat", datetime(2026, 1, 1, tzinfo=UTC), "chat", "", "queued", "apply: create")
    pages = [[(n, told) for n in (1, 2, 3)], []]
    feed = Feed(lambda: 0, lambda: None)

    async def first_two() -> list[str]:
        stream = events(feed, lambda after: pages.pop(0), after=0)
        return [await anext(stream), await anext(stream)]

    here, page = asyncio.run(first_two())

    assert here == ": here\n\n"
    assert re.findall(r"^id: (\d)$", page, re.MULTILINE) == ["1", "2", "3"]


def test_a_stream_ends_with_the_server(served: Served) -> None:
    url = f"{served.url}/v1/projects/main/events/stream"
    seen: list[str] = []
    here = threading.Event()

    def listen() -> None:
        headers = {"Authorization": f"Bearer {served.token()}"}
        with httpx.Client() as http, http.stream("GET", url, headers=headers) as answer:
            for line in answer.iter_lines():
                seen.append(line)
                here.set()

    thread = threading.Thread(target=listen)
    thread.start()
    assert here.wait(10)
    served.site.feed.end()
    thread.join(timeout=10)
    assert (thread.is_alive(), seen[0]) == (False, ": here")


def test_figures_are_told_in_prometheus_form(served: Served) -> None:
    client = served.client()
    client.set_secret("HF_TOKEN", "x")
    client.apply(client.plan(read(HELLO)))
    client.follow(["hello"], "ended")
    answer = served.http.get(
        f"{served.url}/v1/metrics", headers={"Authorization": f"Bearer {served.token()}"}
    )

    assert 'modelyard_runs{project="main",type="task",state="succeeded"} 1' in answer.text
    assert "modelyard_servers 1" in answer.text
    assert all(
        re.fullmatch(r"#.*|\w+(\{.*\})? \d+(\.\d+)?(e-\d+)?", line) for line in answer.text.splitlines()
    )


@pytest.mark.parametrize(
    ("options", "told"),
    [((), "127.0.0.1"), (("--proxy", "10.0.0.0/8"), "127.0.0.1"), (("--proxy", "127.0.0.1"), "192.0.2.7")],
    ids=["no proxy", "another", "the proxy"],
)
def test_who_asks_through_a_proxy_is_told_where_it_is_believed(
    start: Start, options: tuple[str, ...], told: str
) -> None:
    _, (listening, token) = start(*options)
    url = listening.removeprefix("server listening on ") + "/v1/projects/main"
    headers = {"X-Forwarded-For": "6.6.6.6, 192.0.2.7"}  # the last is what the proxy saw, the first anybody's
    assert httpx.get(f"{url}/runs", headers=headers).status_code == 401

    audit = httpx.get(f"{url}/audit", headers={"Authorization": f"Bearer {token.removeprefix('token ')}"})

    found = [(deed["deed"]["action"], deed["deed"]["address"]) for deed in audit.json()["items"]]
    assert found == [("create_token", ""), ("runs", told)]  # the first token was the server's own doing


def test_a_proxy_is_named_by_its_address() -> None:
    with pytest.raises(UsageError, match="'\\*' is no address"):
        Door("127.0.0.1", 0, proxies=("*",))
