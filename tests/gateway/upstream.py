"""A small server that speaks an engine's API on loopback, scripted, and made to fail on demand."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Self

Serve = Callable[["Asked", asyncio.StreamWriter], Awaitable[bool | None]]


@dataclass
class Asked:
    """One request as the replica saw it."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        """Return a field's value; fails where it came twice."""
        found = [value for key, value in self.headers if key.lower() == name]
        assert len(found) <= 1, f"{name} came {len(found)} times"
        return found[0] if found else None


@dataclass
class Upstream:
    """One replica. ``serve`` answers each request; True from it ends the connection."""

    serve: Serve
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0
    open_writers: set[asyncio.StreamWriter] = field(default_factory=set)
    readers: list[asyncio.StreamReader] = field(default_factory=list)
    port: int = 0
    _listener: socket.socket | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _unheard: set[socket.socket] = field(default_factory=set)

    async def __aenter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=1024)
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        asyncio.get_running_loop().add_reader(self._listener, self._accept, self._listener)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Die: every connection is reset, and nobody listens any more."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        for writer in list(self.open_writers):
            writer.transport.abort()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        while self._unheard:  # their tasks were cancelled before the first step
            self._unheard.pop().close()

    @property
    def was_left(self) -> bool:
        """Whether the gateway has closed every connection."""
        return all(reader.at_eof() or reader.exception() for reader in self.readers)

    def _accept(self, listener: socket.socket) -> None:
        # Not asyncio.start_server: a server that closes while a connection comes in, or whose handler is
        # cancelled before its first step, leaves the connection open for the garbage collector to find.
        try:
            connection, _ = listener.accept()
        except OSError:
            return  # it left before it was taken
        connection.setblocking(False)
        self._unheard.add(connection)
        task = asyncio.get_running_loop().create_task(self._connection(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connection(self, connection: socket.socket) -> None:
        self._unheard.discard(connection)
        reader, writer = await asyncio.open_connection(sock=connection, limit=2**20)
        self.connections += 1
        self.open_writers.add(writer)
        self.readers.append(reader)
        try:
            while (asked := await read_request(reader)) is not None:
                self.asked.append(asked)
                if await self.serve(asked, writer):
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the gateway left in the middle
        finally:
            self.open_writers.discard(writer)
            writer.close()


async def read_request(reader: asyncio.StreamReader) -> Asked | None:
    """Read one request, body included; None at the end of the connection."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.rstrip("\r\n").split("\r\n")
    method, target, _ = first.split(" ")
    headers = [(k, v.strip()) for k, _, v in (line.partition(":") for line in lines)]
    asked = Asked(method, target, headers, b"")
    if asked.header("transfer-encoding") == "chunked":
        while size := int(await reader.readuntil(b"\r\n"), 16):  # where it ends, the client left
            asked.body += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readexactly(2)
    else:
        asked.body = await reader.readexactly(int(asked.header("content-length") or 0))
    return asked


def plain(body: bytes, *, status: str = "200 OK", more: str = "") -> bytes:
    """Return a whole response."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{more}\r\n"
    return head.encode() + body


USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
COMPLETION = json.dumps({"choices": [{"text": "hello"}], "usage": USAGE}).encode()
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def event(text: str) -> bytes:
    """Return one server-sent event as one chunk."""
    data = f"data: {text}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(data), data)


async def engine(asked: Asked, writer: asyncio.StreamWriter) -> None:
    """Answer as an engine would: completions, streamed where asked for."""
    if asked.body and json.loads(asked.body).get("stream"):
        writer.write(STREAM_HEAD)
        for token in ("one", "two", "three", "four"):
            writer.write(event(json.dumps({"choices": [{"text": token}]})))
            await writer.drain()
        writer.write(event(json.dumps({"choices": [], "usage": USAGE})) + event("[DONE]") + b"0\r\n\r\n")
    else:
        writer.write(plain(COMPLETION))
    await writer.drain()


def websocket_accept(key: str) -> str:
    """Return what RFC 6455 answers to a client's key."""
    digest = hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()
    return base64.b64encode(digest).decode()


def saying(*parts: bytes, end: bool = False) -> Serve:
    """Return what answers every request with these bytes, each written by itself."""

    async def serve(asked: Asked, writer: asyncio.StreamWriter) -> bool:
        for part in parts:
            writer.write(part)
            await writer.drain()
        return end

    return serve


def silent(release: asyncio.Event) -> Serve:
    """Return what answers as an engine once ``release`` is set."""

    async def serve(asked: Asked, writer: asyncio.StreamWriter) -> None:
        await release.wait()
        await engine(asked, writer)

    return serve
