"""Clients for the gateway's tests: raw bytes on a socket, and one that reads whole answers."""

from __future__ import annotations

import asyncio
import functools
import gc
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import uvloop

from orchestrator.gateway import Key, Keys, Replica, ServiceRoute
from orchestrator.gateway.keys import digest_of
from orchestrator.gateway.routes import make_routes
from orchestrator.gateway.server import Gateway, Limits

SECRET = "my-key-of-the-tests"
KEYS = Keys.of([Key("ann", digest_of(SECRET)), Key("bob", digest_of("my-bob"), frozenset({"other"}))])
PATIENCE_S = 30.0
PATHS = frozenset({"/v1/completions", "/v1/chat/completions", "/v1/audio/transcriptions"})


def in_a_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an async test on asyncio's own loop and on uvloop's; one that hangs fails."""

    @functools.wraps(test)
    def run(*arguments: object, **named: object) -> None:
        async def within() -> None:
            async with asyncio.timeout(PATIENCE_S):
                await test(*arguments, **named)

        for run_in_loop in (asyncio.run, uvloop.run):
            run_in_loop(within())
            gc.collect()  # a connection left open is the failure of the test that left it, not of a later one

    return run


async def until(holds: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    while not holds():
        await asyncio.sleep(0.005)


@dataclass
class Answer:
    """A whole response. ``whole`` is False where it broke off."""

    status: int
    headers: dict[str, str]
    body: bytes
    pieces: list[bytes] = field(default_factory=list)
    whole: bool = True

    def json(self) -> dict[str, object]:
        """Return the body's object."""
        found = json.loads(self.body)
        assert isinstance(found, dict)
        return found

    @property
    def code(self) -> object:
        """The code of the error that the gateway says, None where it says none."""
        if not self.body.startswith(b'{"error": {"message"'):
            return None
        found = self.json()["error"]
        assert isinstance(found, dict)
        return found["code"]


@dataclass
class Connection:
    """One connection to the gateway."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.writer.write(data)
        await self.writer.drain()

    async def ask(self, data: bytes, *, method: str = "POST") -> Answer:
        """Send a request and read its answer."""
        await self.send(data)
        return await self.answer(method=method)

    async def answer(self, *, method: str = "POST") -> Answer:
        """Read one answer; one that breaks off keeps what came."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.rstrip("\r\n").split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
        answer = Answer(int(first.split(" ")[1]), headers, b"")
        if method == "HEAD" or answer.status in (101, 204, 304):
            return answer
        try:
            await self._body(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            answer.whole = False
        answer.body = b"".join(answer.pieces)
        return answer

    async def _body(self, answer: Answer) -> None:
        if answer.headers.get("transfer-encoding") == "chunked":
            while True:
                size = int(await self.reader.readuntil(b"\r\n"), 16)
                data = await self.reader.readexactly(size + 2)
                if not size:
                    return
                answer.pieces.append(data[:-2])
        elif "content-length" in answer.headers:
            answer.pieces.append(await self.reader.readexactly(int(answer.headers["content-length"])))
        else:
            answer.pieces.append(await self.reader.read())

    async def is_closed(self) -> bool:
        """Return whether the gateway closes the connection, with nothing more to say."""
        try:
            return await self.reader.read(1) == b""
        except ConnectionError:
            return True


@asynccontextmanager
async def dial(
    port: int, *, limit: int = 2**16
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connect to a port of loopback; a test that fails leaves nothing open either."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=limit)
    try:
        yield reader, writer
    except BaseException:
        writer.transport.abort()  # what is still to be written would keep it open
        raise
    writer.close()


@dataclass
class Stage:
    """A gateway that listens, and ways to ask it."""

    gateway: Gateway
    port: int

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Give a connection to the gateway."""
        async with dial(self.port) as (reader, writer):
            yield Connection(reader, writer)

    async def ask(self, data: bytes, *, method: str = "POST") -> Answer:
        """Send one request on a connection of its own."""
        async with self.connection() as connection:
            return await connection.ask(data, method=method)

    def serve(self, *services: ServiceRoute) -> None:
        """Change the routes."""
        self.gateway.update(make_routes(services), KEYS)


@asynccontextmanager
async def stage(
    *services: ServiceRoute,
    limits: Limits = Limits(),  # noqa: B008  # frozen
    port: int = 0,
    shared: bool = False,
    **more: object,
) -> AsyncIterator[Stage]:
    """Run a gateway in front of ``services``."""
    gateway = Gateway(limits=limits, **more)  # type: ignore[arg-type]  # whatever a test passes
    _, port = await gateway.open("127.0.0.1", port, shared=shared)
    gateway.update(make_routes(services), KEYS)
    try:
        yield Stage(gateway, port)
    finally:
        await gateway.close(drain_s=0.0)


def chat(*ports: int, **fields: object) -> ServiceRoute:
    """Return a service ``chat`` that serves the model ``llama`` on these ports of loopback."""
    given: dict[str, object] = {"models": {"llama": "llama", "sql": "sql"}, "paths": PATHS, "auth": True}
    replicas = tuple(Replica(f"chat-{at}-0-0", "127.0.0.1", port) for at, port in enumerate(ports))
    return ServiceRoute("chat", replicas, **(given | fields))  # type: ignore[arg-type]  # a test's own


def web(*ports: int, **fields: object) -> ServiceRoute:
    """Return a service ``web`` that runs a program of the user's own, open to everybody."""
    replicas = tuple(Replica(f"web-{at}-0-0", "127.0.0.1", port) for at, port in enumerate(ports))
    return ServiceRoute("web", replicas, **({"auth": False} | fields))  # type: ignore[arg-type]  # as above


def request(
    target: str,
    body: bytes | None = None,
    *,
    method: str = "POST",
    headers: Sequence[str] = (),
    key: str | None = SECRET,
) -> bytes:
    """Return a request as bytes."""
    lines = [f"{method} {target} HTTP/1.1", "Host: gateway.test", *headers]
    if key is not None:
        lines.append(f"Authorization: Bearer {key}")
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + (body or b"")


def completion(
    model: str = "llama", *, stream: bool = False, key: str | None = SECRET, pad: int = 0
) -> bytes:
    """Return a request for a completion."""
    body = json.dumps({"prompt": "x" * pad, "model": model, "stream": stream}).encode()
    return request("/v1/completions", body, headers=["Content-Type: application/json"], key=key)
