"""What hosts last said, and where launches were sent: kept on disk for when a host is silent.

Labels on the hosts are the record of truth. This is what is left of it while a host cannot be
asked: without it, one silent host of fifty would make all fifty unknown, or its launches would
seem gone and be started a second time elsewhere.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from orchestrator.backend import Instance, Phase

TIMES = ("started_at", "finished_at", "silent_since")


class Claim:
    """Where one launch or gang goes, under a lock that is held while it is decided and started."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> tuple[str, ...]:
        """Return the hosts that were written, none before the first time."""
        return tuple(self._path.read_text().split("\n")) if self._path.stat().st_size else ()

    def write(self, *hosts: str) -> None:
        """Write down where it goes, before it goes there."""
        self._path.write_text("\n".join(hosts))

    def forget(self) -> None:
        """Delete the claim."""
        self._path.unlink(missing_ok=True)


class Memory:
    """The memory of one backend's namespace, in a folder of its own.

    Args:
        folder: Where; made when first written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, host: str, instances: Sequence[Instance]) -> None:
        """Write down what ``host`` says now, unless that is what it said before."""
        text = json.dumps([plain_of(one) for one in instances], indent=0)
        path = self._path(host)
        if text_of(path) == text:
            os.utime(path)  # it was heard: whoever asks since when it is silent wants to know
            return
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
        draft.write_text(text)
        draft.replace(path)

    def last(self, host: str) -> tuple[Instance, ...] | None:
        """Return what ``host`` said last, or None when it never said anything."""
        text = text_of(self._path(host))
        return None if text is None else tuple(instance_of(one) for one in json.loads(text))

    def heard_at(self, host: str) -> datetime | None:
        """Return when ``host`` was last heard, to the second, or None when it never was."""
        try:
            return datetime.fromtimestamp(int(self._path(host).stat().st_mtime), UTC)
        except FileNotFoundError:
            return None

    def may_hold(self, host: str, launch: str) -> bool:
        """Say whether a silent ``host`` may hold ``launch``: it did at its last word, or was sent it.

        Of one that never answered the loop knows what the record has on it, and leaves that alone.
        """
        sent = (text_of(self._claim_path(launch)) or "").split("\n")
        return host in sent or any(one.name == launch for one in self.last(host) or ())

    @contextlib.contextmanager
    def claim(self, name: str) -> Iterator[Claim]:
        """Lend the claim of ``name``, to one thread of one process at a time."""
        path = self._claim_path(name)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        while True:
            with path.open("a") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if _is_same(path, file.fileno()):  # else it was forgotten while we waited
                    yield Claim(path)
                    return

    def is_claimed(self, name: str) -> bool:
        """Say whether somebody has the claim of ``name`` at this moment."""
        try:
            with self._claim_path(name).open("r") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return False
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True

    def _path(self, host: str) -> Path:
        return self._folder / "hosts" / f"{quote(host, safe='')}.json"

    def _claim_path(self, name: str) -> Path:
        return self._folder / "claims" / quote(name, safe="")


def text_of(path: Path) -> str | None:
    """Return what a file holds, None where there is none."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return None


def _is_same(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def plain_of(instance: Instance) -> dict[str, Any]:
    """Return an instance as JSON has it; what it holds of secrets is nothing, as everywhere."""
    values = dataclasses.asdict(instance)
    values["phase"] = instance.phase.value
    values["ports"] = [[port, *address] for port, address in instance.ports.items()]
    for name in TIMES:
        values[name] = values[name] and values[name].isoformat()
    return values


def instance_of(values: Mapping[str, Any]) -> Instance:
    """Return the instance that ``plain_of`` wrote."""
    read = dict(values)
    read["phase"] = Phase(read["phase"])
    read["ports"] = {port: (address, number) for port, address, number in read["ports"]}
    read["devices"] = tuple(read["devices"])
    for name in TIMES:
        read[name] = read.get(name) and datetime.fromisoformat(read[name])
    return Instance(**read)
