"""Connections that ask nothing, and more of them than there are files."""

from __future__ import annotations

import asyncio
import errno
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import uvicorn

from orchestrator.server import connections
from orchestrator.server.connections import Connection, said_seldom
from orchestrator.server.run import listener


async def _slowly(scope: object, receive: object, send: object) -> None:
    await asyncio.sleep(0.5)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})  # type: ignore[operator]  # ASGI
    await send({"type": "http.response.body", "body": b"ok"})  # type: ignore[operator]  # ASGI


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A server that waits 0.2 s for a head."""
    monkeypatch.setattr(connections, "HEAD_S", 0.2)
    opened = listener("127.0.0.1", 0)
    config = uvicorn.Config(_slowly, log_level="critical", lifespan="off", http=Connection)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[opened])))
    thread.start()
    yield opened.getsockname()[1]
    server.should_exit = True
    thread.join()


def _answer(opened: socket.socket) -> bytes:
    said = b""
    while not said.endswith(b"\r\n\r\nok") and (more := opened.recv(10_000)):
        said += more
    return said


@pytest.mark.parametrize(
    "sent", [b"", b"GET / HTTP/1.1\r\nHost: x\r\n", b"GE"], ids=["nothing", "half", "a word"]
)
def test_who_asks_nothing_is_not_waited_for(port: int, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as opened:
        opened.sendall(sent)
        assert opened.recv(100) == b""


def test_half_a_head_behind_an_answer_is_not_waited_for(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as opened:
        opened.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert _answer(opened).endswith(b"ok")
        opened.sendall(b"GET / HT")
        assert opened.recv(100) == b""


def test_who_waits_for_an_answer_or_sends_a_body_has_time(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as opened:
        opened.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf")
        assert _answer(opened).endswith(b"ok")


def test_a_server_may_open_as_many_files_as_the_system_lets_it() -> None:
    code = (
        "import resource as r; from orchestrator.server.connections import allow_files;"
        "r.setrlimit(r.RLIMIT_NOFILE, (64, 4096)); allow_files(); print(r.getrlimit(r.RLIMIT_NOFILE))"
    )
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] >= 4096
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert said == "(4096, 4096)\n"


def test_too_many_connections_are_told_of_once_and_other_troubles_each_time() -> None:
    complaints: list[str] = []
    others: list[object] = []
    tell = said_seldom(complaints.append)
    loop = asyncio.new_event_loop()
    try:
        loop.default_exception_handler = others.append  # type: ignore[method-assign]  # to see what it is told
        for _ in range(1_000):
            tell(loop, {"message": "accept", "exception": OSError(errno.EMFILE, "Too many open files")})
        tell(loop, {"message": "broke", "exception": ValueError("x")})
    finally:
        loop.close()

    assert complaints == ["no connection can be taken: too many files are open, or connections"]
    assert len(others) == 1
