"""The world of a sim on disk: a journal that a killed process leaves whole."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from backends.sim.script import Slot, script_from_json
from orchestrator.backend import Instance, Phase, Resources, Volume


class Journal:
    """The changes of a world, one JSON line each, that several processes read and write.

    ``path`` None keeps nothing: what is written is gone with the object that wrote it.
    """

    def __init__(self, path: Path | None, namespace: str) -> None:
        self.path = path
        self._namespace = namespace
        self._read_to = 0

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold it against other processes."""
        if self.path is None:
            yield
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_name(self.path.name + ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def append(self, kind: str, value: Any) -> None:
        """Write one change; for one who holds the journal and has read all of it."""
        if self.path is None:
            return
        record = {"in": self._namespace, kind: _ENCODE.get(kind, _same)(value)}
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        with self.path.open("ab") as file:
            if file.tell() > self._read_to:
                file.truncate(self._read_to)  # half a line, left by a process that was killed
            file.write(line)
        self._read_to += len(line)

    def fresh(self) -> list[tuple[str, str, Any]]:
        """Return what was written since: namespace, kind and value of each change."""
        try:
            whole = self._unread()
        except FileNotFoundError:
            return []
        self._read_to += len(whole)
        return [_read(line) for line in whole.splitlines()]

    def _unread(self) -> bytes:
        if self.path is None:
            return b""
        with self.path.open("rb") as file:
            file.seek(self._read_to)
            text = file.read()
        return text[: text.rfind(b"\n") + 1]


def _read(line: bytes) -> tuple[str, str, Any]:
    record = json.loads(line)
    namespace = record.pop("in")
    ((kind, value),) = record.items()
    return namespace, kind, _DECODE.get(kind, _same)(value)


def _instance_as_json(instance: Instance) -> dict[str, Any]:
    value = asdict(instance)
    value["phase"] = instance.phase.value
    for key in ("started_at", "finished_at"):
        value[key] = value[key] and value[key].isoformat()
    return value


def _instance_from_json(value: Mapping[str, Any]) -> Instance:
    times = {k: value[k] and datetime.fromisoformat(value[k]) for k in ("started_at", "finished_at")}
    ports = {int(port): (address, number) for port, (address, number) in value["ports"].items()}
    changed = {"phase": Phase(value["phase"]), "ports": ports, "devices": tuple(value["devices"])}
    return Instance(**{**value, **times, **changed})


def _slot_as_json(slot: Slot) -> dict[str, Any]:
    return {
        "instance": _instance_as_json(slot.instance),
        "script": asdict(slot.script),
        "since": slot.since.isoformat(),
        "resources": asdict(slot.resources),
        "lives": slot.lives,
        "lines": slot.lines,
        "volumes": slot.volumes,
        "group": slot.group,
        "held": slot.held,
        "ended": slot.ended and _instance_as_json(slot.ended),
        "ready": slot.ready,
    }


def _slot_from_json(value: Mapping[str, Any]) -> Slot:
    return Slot(
        instance=_instance_from_json(value["instance"]),
        script=script_from_json(value["script"]),
        since=datetime.fromisoformat(value["since"]),
        resources=Resources(**value["resources"]),
        lives=value["lives"],
        lines=tuple(value["lines"]),
        volumes=tuple(value["volumes"]),
        group=value["group"],
        held=value["held"],
        ended=value["ended"] and _instance_from_json(value["ended"]),
        ready=value["ready"],
    )


def _same(value: Any) -> Any:
    return value


_ENCODE: Mapping[str, Callable[[Any], Any]] = {
    "start": _slot_as_json,
    "end": _instance_as_json,
    "volume": lambda volume: [volume.name, volume.size_bytes],
}
_DECODE: Mapping[str, Callable[[Any], Any]] = {
    "start": _slot_from_json,
    "end": _instance_from_json,
    "volume": lambda value: Volume(*value),
}
