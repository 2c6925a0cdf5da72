"""The launches of one namespace on disk: what was accepted, what became of it, and who keeps it.

A launch is a folder ``launches/<name>`` with its record, its state, its log, the lock ``alive``
that its supervisor holds, the FIFO ``control`` by which it is told to stop, and ``work``, where the
command runs. A folder is put together under another name and then renamed, so that one with a
plain name is whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import select
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

from backends.process import supervise
from backends.process.output import Changes
from orchestrator.backend import Instance, Phase
from orchestrator.frozen import frozen

MARK = "MODELYARD_LAUNCH_FOLDER"
"""Environment variable by which processes of a launch are known when their supervisor is gone."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")
KILL_S = 10.0  # how long a killed process may take to go


@frozen
class Record:
    """What is written down of a launch before it starts: all that is asked for later, no secrets."""

    name: str
    run: str
    replica: int
    node: int
    attempt: int
    spec_hash: str
    cpu: float
    memory_bytes: int
    devices: tuple[str, ...]
    ports: dict[int, int]

    @classmethod
    def read(cls, folder: Path) -> Record:
        """Return the record in ``folder``."""
        value = json.loads((folder / "launch.json").read_text())
        ports = {int(container): host for container, host in value["ports"].items()}
        return cls(**{**value, "devices": tuple(value["devices"]), "ports": ports})

    def write(self, folder: Path) -> None:
        """Write the record into ``folder``."""
        (folder / "launch.json").write_text(json.dumps(asdict(self)))


class Shelf:
    """The launches of one namespace."""

    def __init__(self, folder: Path) -> None:
        self.launches = folder / "launches"

    def folder(self, name: str) -> Path:
        """Return where the launch is, or would be."""
        return self.launches / name

    def names(self) -> list[str]:
        """Return the names of all folders that are whole, in order.

        Raises:
            OSError: the shelf cannot be read.
        """
        try:
            return sorted(e.name for e in self.launches.iterdir() if not e.name.startswith("."))
        except FileNotFoundError:
            return []

    def kept(self) -> frozenset[str]:
        """Return the names of those that have a supervisor."""
        return frozenset(name for name in self.names() if self.is_kept(name))

    def is_kept(self, name: str) -> bool:
        """Say whether a supervisor, or one who is about to start it, holds the launch."""
        return bool(NAME.fullmatch(name)) and _is_locked(self.folder(name) / "alive")

    def is_over(self, name: str) -> bool:
        """Say whether no more can come of the launch."""
        return not self.is_kept(name) or self.status(name).get("phase") == "exited"

    def status(self, name: str) -> dict[str, Any]:
        """Return what the supervisor wrote last; nothing when it never did.

        A power cut can leave the file empty: that is the state of a launch of an earlier boot.
        """
        try:
            status: dict[str, Any] = json.loads((self.folder(name) / "status.json").read_text())
        except FileNotFoundError:
            return {}
        except json.JSONDecodeError:
            return {"phase": "pending", "boot": "", "restarts": 0}
        return status

    def find(self, name: str) -> Instance | None:
        """Return what a launch looks like now; None when it was never accepted.

        One whose supervisor is gone is ended here, as lost.
        """
        if not NAME.fullmatch(name):
            return None
        try:
            record = Record.read(self.folder(name))
        except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
            return None  # not ours, or nothing is left of it but its name
        kept = self.is_kept(name)  # before the state: once nobody keeps it, what is read is final
        status = self.status(name)
        if not kept and not status:
            return None
        if not kept and status["phase"] != "exited":
            status = self.settle(name, "lost", _why_lost(status))
        return _to_instance(record, status)

    def find_begun(self, name: str) -> Instance | None:
        """Return what a launch looks like once it is known whether it began.

        For one who holds all starters off. A supervisor that has written nothing then was left by
        a starter that was killed, and either got its order or ends.
        """
        deadline = time.monotonic() + KILL_S
        with Changes(self.folder(name)) as changes:
            while self.is_kept(name) and not self.status(name) and time.monotonic() < deadline:
                changes.wait(0.02)
        return self.find(name)

    def running(self) -> list[Record]:
        """Return the records of launches that have not ended; changes nothing, unlike :meth:`find`."""
        return [Record.read(self.folder(name)) for name in self.names() if not self.is_over(name)]

    def settle(self, name: str, reason: Literal["lost", "stopped"], message: str) -> dict[str, Any]:
        """End a launch whose supervisor is gone: kill what is left of it, and write that down."""
        folder = self.folder(name)
        try:
            with locked(folder / "alive"):  # two who find it lost write one end
                status = self.status(name)
                if status.get("phase") == "exited":
                    return status
                kill_marked(folder)
                status |= {"phase": "exited", "reason": reason, "message": message}
                status["finished_at"] = datetime.now(UTC).isoformat()
                status["exit_code"] = 137 if reason == "stopped" else None
                supervise.write_whole(folder / "status.json", json.dumps(status))
        except FileNotFoundError:  # removed meanwhile
            return {"phase": "exited", "reason": reason, "message": message}
        return status

    def tell_to_stop(self, name: str, grace_s: float) -> None:
        """Hand the launch's supervisor the grace; one that is gone hears nothing."""
        with contextlib.suppress(OSError):
            control = os.open(self.folder(name) / "control", os.O_WRONLY | os.O_NONBLOCK)
            try:
                os.write(control, f"{grace_s}\n".encode())
            finally:
                os.close(control)

    def has_ended(self, name: str, *, within_s: float) -> bool:
        """Wait for the launch's end, and say whether it came."""
        deadline = time.monotonic() + within_s
        with Changes(self.folder(name)) as changes:
            while not self.is_over(name):
                if time.monotonic() > deadline:
                    return False
                changes.wait(0.2)
        return True

    def kill_supervisor(self, name: str) -> None:
        """Kill a supervisor that does not answer, and never a process that got its number."""
        pid, ticks = self.status(name).get("supervisor", (0, None))
        with contextlib.suppress(OSError):
            _kill(pid, lambda: supervise.start_ticks(pid) == ticks)

    def forget(self, name: str) -> None:
        """Delete a launch that nobody keeps."""
        folder = self.folder(name)
        if not folder.exists():
            return
        kill_marked(folder)
        gone = folder.with_name(f".gone-{name}")
        shutil.rmtree(gone, ignore_errors=True)
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[int]:
    """Hold the lock of a file, and give its descriptor; children who get that hold it too."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle
    finally:
        os.close(handle)  # and not unlocked: a supervisor may share it


def _is_locked(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        # shared, so that many may look at once without seeing each other
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def kill_marked(folder: Path) -> None:
    """Kill every process that carries the launch's mark, until there is none."""
    mark = f"\0{MARK}={folder}\0".encode()

    def carries(process: Path) -> bool:
        try:
            return mark in b"\0" + (process / "environ").read_bytes()
        except OSError:  # it ended, or is another user's
            return False

    deadline = time.monotonic() + KILL_S
    while marked := [path for path in Path("/proc").glob("[0-9]*") if carries(path)]:
        for path in marked:
            with contextlib.suppress(OSError):
                _kill(int(path.name), partial(carries, path))
        if time.monotonic() > deadline:
            return


def _kill(pid: int, is_ours: Callable[[], bool]) -> None:
    handle = os.pidfd_open(pid)
    try:
        # first the handle, then the look: the handle cannot come to mean another process
        if is_ours():
            signal.pidfd_send_signal(handle, signal.SIGKILL)
            select.select([handle], [], [], KILL_S)
    finally:
        os.close(handle)


def _why_lost(status: dict[str, Any]) -> str:
    return (
        "the machine was restarted" if status["boot"] != supervise.boot_id() else "its supervisor was killed"
    )


def _to_instance(record: Record, status: dict[str, Any]) -> Instance:
    return Instance(
        name=record.name,
        run=record.run,
        replica=record.replica,
        node=record.node,
        attempt=record.attempt,
        spec_hash=record.spec_hash,
        phase=Phase(status.get("phase", "pending")),
        exit_code=status.get("exit_code") if status.get("phase") == "exited" else None,
        reason=status.get("reason", ""),
        message=status.get("message", ""),
        started_at=_time(status.get("started_at")),
        finished_at=_time(status.get("finished_at")),
        address="127.0.0.1",
        ports={container: ("127.0.0.1", host) for container, host in record.ports.items()},
        devices=record.devices,
        restarts=status.get("restarts", 0),
        machine=os.uname().nodename,
    )


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
