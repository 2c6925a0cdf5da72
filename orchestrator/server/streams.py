"""Server-sent events: events as the record gets them, and output as it is written."""

from __future__ import annotations

import asyncio
import json
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Any

from fastapi.responses import StreamingResponse
from pydantic import TypeAdapter
from starlette.concurrency import run_in_threadpool

from orchestrator.backend import LogLine
from orchestrator.errors import ModelyardError
from orchestrator.reconcile import RunEvent
from orchestrator.server.feed import Feed
from orchestrator.wire import QUIET, Told, problem_of

QUIET_S = 15.0
"""After how long without news a comment is sent: proxies close what is silent."""
_LINE: TypeAdapter[LogLine] = TypeAdapter(LogLine)
AT_ONCE = 100
"""Events that a stream holds for a reader who does not read."""
_AHEAD = 1_000
"""Lines of output that wait for a slow reader before their source has to."""


class EventStream(StreamingResponse):
    """A stream of server-sent events, which nobody may keep."""

    media_type = "text/event-stream"

    def __init__(self, content: AsyncIterator[str]) -> None:
        super().__init__(content, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})


def frame(data: str, *, id: int | None = None, event: str = "") -> str:
    """Return one event as the stream has it.

    >>> frame("{}", id=3)
    'id: 3\\ndata: {}\\n\\n'
    """
    head = (f"event: {event}\n" if event else "") + (f"id: {id}\n" if id is not None else "")
    return head + "".join(f"data: {line}\n" for line in data.split("\n")) + "\n"


async def events(
    feed: Feed, read: Callable[[int], list[tuple[int, RunEvent]]], *, after: int
) -> AsyncIterator[str]:
    """Yield events behind ``after`` as they come, until the server ends or the reader goes."""
    loop = asyncio.get_running_loop()
    moved = asyncio.Event()

    def wake() -> None:
        with suppress(RuntimeError):  # the loop has ended: so has the stream
            loop.call_soon_threadsafe(moved.set)

    leave = feed.listen(wake)
    try:
        yield ": here\n\n"
        while not feed.is_closed:
            moved.clear()
            while page := await run_in_threadpool(read, after):
                after = page[-1][0]
                # in one piece: between two of them nobody would see that the reader has gone
                yield "".join(frame(Told(serial=n, event=e).model_dump_json(), id=n) for n, e in page)
            try:
                await asyncio.wait_for(moved.wait(), QUIET_S)
            except TimeoutError:
                yield f": {QUIET}\n\n"
    finally:
        leave()


async def lines(source: Callable[[], Iterator[LogLine]], feed: Feed) -> AsyncIterator[str]:
    """Yield lines of output, then ``end``; what goes wrong on the way is the last event."""
    pipe = _Pipe(source)
    try:
        yield ": here\n\n"
        while not feed.is_closed:
            found = await pipe.next()
            if found is None:
                yield f": {QUIET}\n\n"
            elif isinstance(found, LogLine):
                yield frame(_LINE.dump_json(found).decode())
                await asyncio.sleep(0)  # or nobody sees that the reader has gone
            elif isinstance(found, ModelyardError):
                yield frame(json.dumps(problem_of(found)), event="problem")
                return
            else:
                yield frame("{}", event="end")
                return
    finally:
        pipe.close()


class _Pipe:
    """Output read by a thread of its own: backends block, and calls share few threads."""

    def __init__(self, source: Callable[[], Iterator[LogLine]]) -> None:
        self._source = source
        self._lines: queue.Queue[Any] = queue.Queue(_AHEAD)
        self._closed = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._there = asyncio.Event()
        threading.Thread(target=self._read, name="output", daemon=True).start()

    async def next(self) -> object:
        """Return the next line, an error, "" at the end; None when it is quiet."""
        while True:
            self._there.clear()
            try:
                return self._lines.get_nowait()
            except queue.Empty:
                try:
                    await asyncio.wait_for(self._there.wait(), QUIET_S)
                except TimeoutError:
                    return None

    def close(self) -> None:
        """Have the thread end with its next line."""
        self._closed.set()

    def _read(self) -> None:
        try:
            for line in self._source():
                if not self._put(line):
                    return
            self._put("")
        except ModelyardError as error:
            self._put(error)

    def _put(self, what: object) -> bool:
        while not self._closed.is_set():
            try:
                self._lines.put(what, timeout=1.0)
            except queue.Full:
                continue
            with suppress(RuntimeError):  # the loop has ended: nobody reads
                self._loop.call_soon_threadsafe(self._there.set)
            return True
        return False
