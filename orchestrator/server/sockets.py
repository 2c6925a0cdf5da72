"""Terminals and ports of jobs over WebSockets: behind the same gate as every call, and written down."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from typing import Any

from fastapi import WebSocket
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from orchestrator.errors import Busy, ModelyardError, UsageError
from orchestrator.frozen import frozen
from orchestrator.reconcile import Job
from orchestrator.server.asking import environment, program, request
from orchestrator.server.gate import LOOK_AGAIN_S, Gate, authenticate, is_revoked, origin_of, problem
from orchestrator.server.site import Hosted, Site
from orchestrator.server.users import Caller, Role, Unknown
from orchestrator.wire import STDERR, STDOUT, Command, Keys, Said

gate = Gate("/v1/projects/{project}", ["runs"])

GOING_AWAY, SERVER_ENDS, WRONG = 1001, 1012, 1008
"""Why a WebSocket is closed (RFC 6455, section 7.4.1, and IANA's registry)."""
GRACE_S = 2.0
FIRST_S = 30.0
_READ = 32_768

Talk = Callable[[WebSocket, Site, Job], Coroutine[Any, Any, str]]


class GatedSocket:
    """A WebSocket with a role: who may not is refused before it opens, and who came is written down.

    Args:
        action: What it is called in the audit log.
        role: Who may.
        talk: Carries what crosses; returns how it ended, for the audit log.
    """

    def __init__(self, action: str, role: Role, talk: Talk) -> None:
        self.action = action
        self.role = role
        self._talk = talk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one that asks."""
        opened = WebSocket(scope, receive, send)
        site: Site = opened.app.state.site
        project = opened.path_params["project"]
        try:
            caller = await authenticate(site, opened, self.role, self.action)
            job = await run_in_threadpool(_job, site.api(project), opened)
            _require_room(site)
        except ModelyardError as error:
            status = 401 if isinstance(error, Unknown) else None
            await opened.send_denial_response(problem(error, status=status))
            return
        subject = " ".join([job.name, *(v for k, v in opened.path_params.items() if k == "port")])
        note = partial(site.audit.note, caller.shown, self.action, subject=subject, **origin_of(opened))
        outcome = "left"
        try:
            await run_in_threadpool(note, "101")  # now: a server may be killed before the end
            await opened.accept()
            async with _being_inside(site, job.name.rsplit("-", 3)[0]):
                outcome = await _until_revoked(site, caller, opened, self._talk(opened, site, job))
        except WebSocketDisconnect:
            pass  # it left before the end
        finally:
            site.sockets.release()
            await asyncio.shield(run_in_threadpool(note, outcome))


async def _until_revoked(
    site: Site, caller: Caller, opened: WebSocket, talk: Coroutine[Any, Any, str]
) -> str:
    """Let it carry what crosses until the token that opened it is revoked; return how it ended."""
    talking = asyncio.create_task(talk)
    try:
        while not (await asyncio.wait({talking}, timeout=LOOK_AGAIN_S))[0]:
            if await run_in_threadpool(is_revoked, site, caller):
                await opened.close(WRONG, "the token was revoked")
                return "revoked"
        return talking.result()
    finally:
        talking.cancel()
        await asyncio.gather(talking, return_exceptions=True)


@contextlib.asynccontextmanager
async def _being_inside(site: Site, run: str) -> AsyncIterator[None]:
    way = site.inside(run)
    await run_in_threadpool(way.__enter__)
    try:
        yield
    finally:
        await asyncio.shield(run_in_threadpool(way.__exit__, None, None, None))


def _require_room(site: Site) -> None:
    """Take one of the sockets that a server carries at a time.

    Raises:
        Busy: there is none left.
    """
    if not site.sockets.acquire(blocking=False):
        raise Busy("this server carries as many terminals and ports as it can", backend="server")


def _job(api: Hosted, opened: WebSocket) -> Job:
    """Return the job that is meant.

    Raises:
        NotFound: none runs there, or it has no such port.
        UsageError: no place is named so.
    """
    at = {}
    for name in ("replica", "node"):
        text = opened.query_params.get(name, "0")
        if not text.isdecimal() or len(text) > 6:
            raise UsageError(f"{name}: expected a whole number, got {text[:50]!r}", fix=f"{name}=0")
        at[name] = int(text)
    job = api.running_job(opened.path_params["name"], **at)
    if "port" in opened.path_params:
        api.require_port(job, _port(opened))
    return job


def _port(opened: WebSocket) -> int:
    text = opened.path_params["port"]
    return int(text) if text.isdecimal() and len(text) < 6 else 0


# A command ---------------------------------------------------------------------------------------


async def execute(opened: WebSocket, site: Site, job: Job) -> str:
    """Run a command inside a job, on pipes or on a terminal of its own; return how it ended."""
    try:
        first = await asyncio.wait_for(opened.receive_text(), FIRST_S)
        asked = Command.model_validate_json(first)
    except (ValidationError, KeyError, TimeoutError):
        await opened.close(WRONG, "the first message says what to run")
        return "400"
    async with _inside(site, job, asked) as child:
        said = await _first(child.ended(), child.typed(opened), child.shown(opened), _end_of(site))
    if said is None:
        await opened.close(SERVER_ENDS, "the server ends")
        return "cut"
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # it has gone meanwhile
        await opened.send_text(said.model_dump_json(exclude_none=True))
        await opened.close()
    return f"exit {said.code}" if said.problem is None else str(said.problem["type"]).rpartition(":")[2]


async def _first(
    ended: Coroutine[Any, Any, Said],
    typed: Coroutine[Any, Any, None],
    shown: Coroutine[Any, Any, None],
    over: Coroutine[Any, Any, None],
) -> Said | None:
    """Carry both ways until the command has ended and what it said was sent; None when the server ends.

    Raises:
        WebSocketDisconnect: whoever asked has left.
    """
    typing, showing = asyncio.create_task(typed), asyncio.create_task(shown)
    ending, stopping = asyncio.create_task(ended), asyncio.create_task(over)
    tasks = (typing, showing, ending, stopping)
    try:
        waiting = {typing, showing, ending, stopping}
        while not ending.done():
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if stopping in done:
                return None
            for task in done & {typing, showing}:
                task.result()  # raises where it left
            waiting -= {showing} & done
        await asyncio.wait({showing}, timeout=GRACE_S)  # what it left behind may hold its output open
        if showing.done():
            showing.result()
        return ending.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _end_of(site: Site) -> None:
    """Return when the server ends."""
    loop, over = asyncio.get_running_loop(), asyncio.Event()

    def look() -> None:
        if site.feed.is_closed:
            with contextlib.suppress(RuntimeError):  # the loop has ended: so has this
                loop.call_soon_threadsafe(over.set)

    leave = site.feed.listen(look)
    try:
        look()
        await over.wait()
    finally:
        leave()


class _Keys(asyncio.Protocol):
    """Where what is typed goes; says when there is room for more."""

    def __init__(self) -> None:
        self.has_room = asyncio.Event()
        self.has_room.set()

    def pause_writing(self) -> None:
        """Have whoever types wait."""
        self.has_room.clear()

    def resume_writing(self) -> None:
        """Let it go on."""
        self.has_room.set()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's name
        """Hold nobody up: the command reads no more."""
        self.has_room.set()


@frozen
class _Child:
    """A command that runs, and the ends of its pipes or its terminal."""

    process: asyncio.subprocess.Process
    control: asyncio.StreamReader
    keys: asyncio.WriteTransport
    flow: _Keys
    outputs: dict[bytes, asyncio.StreamReader]
    terminal: int | None
    """The server's end of the terminal, None where there are pipes."""

    async def ended(self) -> Said:
        """Return what became of it; a process that was killed says nothing itself."""
        with contextlib.suppress(ConnectionError, ValidationError):
            if line := await self.control.readline():
                return Said.model_validate_json(line)
        code = await self.process.wait()
        return Said(code=128 - code if code < 0 else code)

    async def typed(self, opened: WebSocket) -> None:
        """Pass on what is typed, until whoever types has left.

        Raises:
            WebSocketDisconnect: when that is.
        """
        while True:
            message = await opened.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", GOING_AWAY))
            if data := message.get("bytes"):
                self.keys.write(data)
                await self.flow.has_room.wait()
            elif text := message.get("text"):
                self._heed(text)

    def _heed(self, text: str) -> None:
        try:
            keys = Keys.model_validate_json(text)
        except ValidationError:
            raise WebSocketDisconnect(WRONG) from None
        if keys.end and self.terminal is not None:
            self.keys.write(b"\x04")  # what a keyboard says at the end
        elif keys.end:
            self.keys.close()
        elif self.terminal is not None and keys.rows and keys.columns:
            _resize(self.terminal, keys.rows, keys.columns)

    async def shown(self, opened: WebSocket) -> None:
        """Pass on what it writes, until it writes no more."""
        lock = asyncio.Lock()
        await asyncio.gather(*(self._show(opened, lock, of, read) for of, read in self.outputs.items()))

    async def _show(
        self, opened: WebSocket, lock: asyncio.Lock, of: bytes, output: asyncio.StreamReader
    ) -> None:
        while True:
            try:
                data = await output.read(_READ)
            except OSError:  # EIO: nobody has the terminal open any more
                return
            if not data:
                return
            async with lock:
                await opened.send_bytes(of + data)

    async def end(self) -> None:
        """See it gone: told by signals, then killed."""
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGKILL):
            if self.process.returncode is not None:
                return
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.process.wait(), GRACE_S)


def _resize(terminal: int, rows: int, columns: int) -> None:
    import fcntl
    import termios

    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


@contextlib.asynccontextmanager
async def _inside(site: Site, job: Job, asked: Command) -> AsyncIterator[_Child]:
    """Start a command inside a job; it is ended when this is left."""
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:
        ours, theirs = socket.socketpair()
        keys, outputs, ends = _terminal(asked) if asked.tty else _pipes()
        flow = _Keys()
        typed, _ = await loop.connect_write_pipe(lambda: flow, os.fdopen(keys, "wb", buffering=0))
        stack.callback(typed.close)
        reads = {}
        for of, descriptor in outputs.items():
            reads[of] = asyncio.StreamReader()
            pipe = os.fdopen(descriptor, "rb", buffering=0)
            read, _ = await loop.connect_read_pipe(partial(asyncio.StreamReaderProtocol, reads[of]), pipe)
            stack.callback(read.close)
        control, answering = await asyncio.open_connection(sock=ours, limit=2**20)
        stack.callback(answering.close)
        try:
            process = await asyncio.create_subprocess_exec(
                *program(theirs.fileno()), stdin=ends[0], stdout=ends[1], stderr=ends[2],
                pass_fds=[theirs.fileno()], start_new_session=True, env=environment(),
            )  # fmt: skip
        finally:
            theirs.close()
            for end in set(ends):
                os.close(end)
        answering.write(request(site, job, asked.command, tty=asked.tty))
        child = _Child(process, control, typed, flow, reads, outputs[STDOUT] if asked.tty else None)
        try:
            yield child
        finally:
            await asyncio.shield(child.end())


def _pipes() -> tuple[int, dict[bytes, int], list[int]]:
    """Return where to type, where to read, and the command's own three ends."""
    (read_in, keys), (out, write_out), (err, write_err) = os.pipe(), os.pipe(), os.pipe()
    return keys, {STDOUT: out, STDERR: err}, [read_in, write_out, write_err]


def _terminal(asked: Command) -> tuple[int, dict[bytes, int], list[int]]:
    ours, theirs = os.openpty()
    _resize(ours, asked.rows or 24, asked.columns or 80)
    return os.dup(ours), {STDOUT: ours}, [theirs, theirs, theirs]


# A port ------------------------------------------------------------------------------------------


async def tunnel(opened: WebSocket, site: Site, job: Job) -> str:
    """Carry one connection to a port of a job; return how it ended."""
    port = _port(opened)
    try:
        async with _reached(site.api(None), job, port) as (reader, writer):
            return await _both_ways(opened, reader, writer, site)
    except (OSError, ModelyardError) as error:
        said = error.what if isinstance(error, ModelyardError) else f"port {port} does not answer"
        await opened.close(WRONG, said[:100])
        return "refused"


@contextlib.asynccontextmanager
async def _reached(
    api: Hosted, job: Job, port: int
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connect to a port, by the way that its place leads there."""
    way = api.reached(job, port)
    host, at = await run_in_threadpool(way.__enter__)
    try:
        reader, writer = await asyncio.open_connection(host, at)
        try:
            yield reader, writer
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
    finally:
        await run_in_threadpool(way.__exit__, None, None, None)


async def _both_ways(
    opened: WebSocket, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, site: Site
) -> str:
    async def up() -> None:
        while True:
            message = await opened.receive()
            if message["type"] == "websocket.disconnect":
                return
            if data := message.get("bytes"):
                writer.write(data)
                await writer.drain()
            elif writer.can_write_eof():
                writer.write_eof()

    async def down() -> None:
        while data := await reader.read(_READ):
            await opened.send_bytes(data)

    sending, receiving = asyncio.create_task(up()), asyncio.create_task(down())
    stopping = asyncio.create_task(_end_of(site))
    tasks = (sending, receiving, stopping)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not sending.done():
            await opened.close(SERVER_ENDS if stopping.done() else 1000)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return "closed"


gate.socket_for("/runs/{name}/exec", GatedSocket("exec", Role.OPERATOR, execute))
gate.socket_for("/runs/{name}/ports/{port}", GatedSocket("port", Role.OPERATOR, tunnel))
