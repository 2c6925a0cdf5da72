"""What a launch's folder tells as it changes: lines of its log, and names of files that moved."""

from __future__ import annotations

import ctypes
import os
import select
import struct
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import IO

from orchestrator.backend import LogLine

IN_MODIFY, IN_MOVED_FROM, IN_MOVED_TO, IN_DELETE = 0x2, 0x40, 0x80, 0x200  # inotify(7)
BLIND_S = 0.2
_EVENT = struct.Struct("iIII")


class Changes:
    """Waits for files to change, without looking at them again and again.

    With ``deep`` the folders in ``folder`` are watched as well, those to come included; a change
    inside one is told by the folder's name.
    """

    def __init__(self, folder: Path, *, deep: bool = False) -> None:
        self._folder = folder
        self._deep = deep
        self._names: dict[int, str] = {}

    def __enter__(self) -> Changes:
        self._libc = ctypes.CDLL(None)
        self._queue: int = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._queue < 0:
            return self
        self._top = self._watch(self._folder)
        if self._deep:
            for entry in os.scandir(self._folder):
                self._go_into(entry.name)
        return self

    def __exit__(self, *_: object) -> None:
        if self._queue >= 0:
            os.close(self._queue)

    def wait(self, within_s: float) -> list[str]:
        """Return the names that changed, in order, after at most ``within_s``; none when none did.

        Where the kernel gives no more queues (``max_user_instances``) it looks five times a second,
        and ``""`` says that anything may have changed.
        """
        if self._queue < 0:
            time.sleep(min(within_s, BLIND_S))
            return [""]
        if not select.select([self._queue], [], [], within_s)[0]:
            return []
        events, at, names = os.read(self._queue, 2**16), 0, set()
        while at < len(events):
            watch, _, _, length = _EVENT.unpack_from(events, at)
            at += _EVENT.size + length
            own = events[at - length : at].rstrip(b"\0").decode(errors="replace")
            if watch == self._top:
                self._go_into(own)
            names.add(own if watch == self._top else self._names.get(watch, ""))
        return sorted(name for name in names if not name.startswith("."))

    def _go_into(self, name: str) -> None:
        if self._deep and not name.startswith("."):
            watch = self._watch(self._folder / name)
            if watch >= 0:  # else it is gone again, and its end was told above
                self._names[watch] = name

    def _watch(self, folder: Path) -> int:
        mask = IN_MODIFY | IN_MOVED_FROM | IN_MOVED_TO | IN_DELETE
        if self._deep:
            mask &= ~IN_MODIFY  # output is no change of state
        watch: int = self._libc.inotify_add_watch(self._queue, os.fsencode(folder), mask)
        return watch


class Tail:
    """Reads a log as it grows, from its oldest line and across its change of file."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "log"
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Tail:
        self._open(self._path.with_name("log.1")) or self._open(self._path)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def read(self) -> Iterator[LogLine]:
        """Yield the lines that are new since the last call."""
        while True:
            yield from self._lines()
            if not self._has_moved() or not self._open(self._path):
                return

    def _lines(self) -> Iterator[LogLine]:
        while self._file is not None:
            line = self._file.readline()
            if not line.endswith(b"\n"):
                self._file.seek(-len(line), os.SEEK_CUR)  # half a line: the rest is being written
                return
            yield parse_line(line)

    def _has_moved(self) -> bool:
        if self._file is None:
            return True
        try:
            return os.fstat(self._file.fileno()).st_ino != self._path.stat().st_ino
        except FileNotFoundError:
            return False

    def _open(self, path: Path) -> bool:
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return False
        if self._file is not None:
            self._file.close()
        self._file = file
        return True


def parse_line(line: bytes) -> LogLine:
    """Return a line of the log as the supervisor wrote it.

    >>> parse_line(b"2026-01-01T00:00:00.000000+00:00 e no such model\\n").stream
    'stderr'
    """
    time, letter, text = line.rstrip(b"\n").split(b" ", 2)
    stream = "stdout" if letter == b"o" else "stderr"
    return LogLine(
        text.decode(errors="replace"),
        at=datetime.fromisoformat(time.decode()),
        stream="stdout" if stream == "stdout" else "stderr",
    )
