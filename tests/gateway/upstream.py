"""A small server that speaks an engine's API on loopback, scripted, and made to fail on demand."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
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
    _server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", self.port, limit=2**20)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Die: every connection is reset, and nobody listens any more."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self.open_writers):
            writer.transport.abort()
        await asyncio.sleep(0)

    @property
    def was_left(self) -> bool:
        """Whether the gateway has closed every connection."""
        return all(reader.at_eof() or reader.exception() for reader in self.readers)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
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
        while size := int(await reader.readline(), 16):
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
