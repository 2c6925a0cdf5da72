"""Engines of the tests' own, as far as creating, listing and starting containers goes.

Each call is atomic, as dockerd's are. What is started is held against what runs already, by the world
and not by a control plane's own view.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from backends.docker.engine import Endpoint, EngineError
from backends.machine import Device, Machine
from backends.ssh import Ssh
from backends.ssh.survey import Survey
from orchestrator.backend import LABEL

HOSTS, GPUS, CPUS, BLOCKS = 4, 8, 16, 8
GIB = 2**30


class Books:
    """What one host runs; ``twice`` is what was ever given to two at once."""

    def __init__(self) -> None:
        self.endpoint = Endpoint("unix:///nowhere")
        self._lock = threading.Lock()
        self.containers: dict[str, dict[str, Any]] = {}
        self.twice: list[str] = []
        self._numbers = iter(range(10**9))

    def get(self, path: str, **_: object) -> Any:
        """Answer as the engine's API does."""
        with self._lock:
            if path == "/info":
                return {"NCPU": CPUS, "MemTotal": 64 * GIB}
            if path == "/containers/json":
                return [_listed(one) for one in self.containers.values()]
            name = path.removeprefix("/containers/").removesuffix("/json")
            return next((dict(c) for c in self.containers.values() if name in (c["Id"], c["Name"][1:])), None)

    def get_all(self, paths: Sequence[str]) -> list[Any]:
        """Answer several."""
        return [self.get(path) for path in paths]

    @contextmanager
    def client(self) -> Iterator[Books]:
        """Lend itself: its methods are docker-py's."""
        yield self

    def create_container_from_config(self, body: dict[str, Any], name: str) -> None:
        """Create a container, or refuse a name that is taken."""
        with self._lock:
            if any(one["Name"] == f"/{name}" for one in self.containers.values()):
                raise EngineError(409, "name in use", backend="rack")
            identity = f"{next(self._numbers):064x}"
            state = {"Status": "created", "ExitCode": 0, "StartedAt": "", "FinishedAt": ""}
            self.containers[identity] = {
                "Id": identity, "Name": f"/{name}", "Config": {**body, "WorkingDir": ""}, "State": state,
                "HostConfig": body["HostConfig"], "NetworkSettings": {"Ports": {}, "Networks": {}},
            }  # fmt: skip

    def start(self, identity: str) -> None:
        """Start a container, and write down what it has that another one runs with."""
        with self._lock:
            if identity not in self.containers:
                raise EngineError(404, "No such container", backend="rack")
            running = [one for one in self.containers.values() if one["State"]["Status"] == "running"]
            mine = self.containers[identity]
            self.containers[identity] = {**mine, "State": {**mine["State"], "Status": "running"}}
            devices = [
                d for one in [*running, mine] for d in _labels(one).get(LABEL + "devices", "").split(",")
            ]
            taken = [device for device in devices if device]
            cpu = sum(float(_labels(one)[LABEL + "cpu"]) for one in [*running, mine])
            if len(taken) != len(set(taken)) or cpu > CPUS:
                self.twice.append(f"{mine['Name']}: {cpu} cpu, {sorted(taken)}")

    def remove_container(self, identity: str, **_: object) -> None:
        """Delete a container; one that runs only by force."""
        with self._lock:
            self.containers.pop(identity, None)


def _labels(container: dict[str, Any]) -> dict[str, str]:
    found: dict[str, str] = container["Config"]["Labels"]
    return found


def _listed(container: dict[str, Any]) -> dict[str, Any]:
    return {
        "Id": container["Id"], "Names": [container["Name"]], "Labels": _labels(container),
        "State": container["State"]["Status"], "Ports": [], "Mounts": [],
    }  # fmt: skip


def fleet(books: Sequence[Books], plane: int = 0, **options: Any) -> Ssh:
    """Return one control plane's backend of the fleet."""
    backend = Ssh(
        "rack",
        hosts=[f"host-{n}" for n in range(len(books))],
        blocks=BLOCKS,
        namespace=f"plane-{plane}",
        pull="never",
        **options,
    )
    for number, host in enumerate(backend._hosts.values()):
        devices = tuple(
            Device(n, f"gpu-{number}-{n}", "Test One", GIB, "test", paths=("/dev/null",)) for n in range(GPUS)
        )
        machine = Machine(CPUS, 64 * GIB, 2**40, "x86", devices)
        host._survey, host._read_machine = Survey(machine), lambda machine=machine: machine  # type: ignore[misc]
        host._engine = books[number]  # type: ignore[assignment]  # as much of it as is asked for
    return backend
