"""The engine's byte streams: log frames, and a terminal on a command inside a container."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Literal

from backends.docker.container import parse_time
from orchestrator import terminal
from orchestrator.backend import LogLine

Stream = Literal["stdout", "stderr"]
HEADER_BYTES = 8
LONGEST_LINE = 2**20
"""A progress bar without a newline must not fill our memory: longer lines are cut here."""


def frames(chunks: Iterable[bytes]) -> Iterator[tuple[Stream, bytes]]:
    """Yield ``(stream, payload)`` from the multiplexed bytes of a container without a terminal.

    Each frame has a header of eight bytes: the stream's number, three zeros and the length,
    big-endian (Engine API, "Stream format"). Chunks may end anywhere; a frame cut off at the
    end of the stream is dropped.
    """
    waiting = bytearray()
    for chunk in chunks:
        waiting += chunk
        while len(waiting) >= HEADER_BYTES:
            number, length = struct.unpack_from(">BxxxL", waiting)
            end = HEADER_BYTES + length
            if len(waiting) < end:
                break
            payload = bytes(waiting[HEADER_BYTES:end])
            del waiting[:end]
            yield ("stderr" if number == 2 else "stdout"), payload


def log_lines(stream: Iterable[tuple[Stream, bytes]]) -> Iterator[tuple[LogLine, str]]:
    """Yield lines, each with the engine's own time stamp, from frames with time stamps.

    The engine cuts lines at 16 KiB and stamps every piece; pieces are joined up to the newline.
    The stamp has nanoseconds, more than a ``datetime`` holds, and continues a broken stream.
    """
    partial: dict[Stream, tuple[bytearray, str]] = {}
    for name, payload in stream:
        stamp, _, text = payload.partition(b" ")
        collected, first = partial.setdefault(name, (bytearray(), stamp.decode("ascii", "replace")))
        collected += text
        if text.endswith(b"\n") or len(collected) >= LONGEST_LINE:
            del partial[name]
            yield _line(collected, first, name), stamp.decode("ascii", "replace")
    for name, (collected, first) in partial.items():
        yield _line(collected, first, name), first


def _line(text: bytes | bytearray, stamp: str, stream: Stream) -> LogLine:
    shown = text.decode("utf-8", "replace").removesuffix("\n").removesuffix("\r")
    return LogLine(shown, parse_time(stamp), stream)


def engine_time(moment: datetime | None) -> str | None:
    """Return a time in the engine's spelling: seconds since 1970 with their fraction."""
    return None if moment is None else f"{moment.timestamp():.6f}"


def forward(connection: socket.socket, early: bytes, *, demultiplex: bool) -> None:
    """Carry bytes between this process's terminal and ``connection`` until the other side ends.

    ``early`` are bytes of the other side that were read already.
    """
    keyboard = terminal.keyboard()
    sources: list[int] = [connection.fileno()] + ([keyboard] if keyboard is not None else [])
    arrived = _demultiplexed() if demultiplex else _raw()
    arrived(early)
    while True:
        readable, _, _ = select.select(sources, [], [])
        if connection.fileno() in readable:
            chunk = connection.recv(65_536)
            if not chunk:
                return
            arrived(chunk)
        if keyboard in readable:
            assert keyboard is not None
            typed = os.read(keyboard, 65_536)
            if typed:
                connection.sendall(typed)
            else:
                sources.remove(keyboard)
                with contextlib.suppress(OSError):  # the command may have ended already
                    connection.shutdown(socket.SHUT_WR)


def _raw() -> Callable[[bytes], None]:
    return lambda chunk: terminal.write(sys.stdout.buffer, chunk)


def _demultiplexed() -> Callable[[bytes], None]:
    waiting = bytearray()

    def arrived(chunk: bytes) -> None:
        waiting.extend(chunk)
        used = 0
        for name, payload in frames([bytes(waiting)]):
            terminal.write((sys.stderr if name == "stderr" else sys.stdout).buffer, payload)
            used += HEADER_BYTES + len(payload)
        del waiting[:used]

    return arrived
