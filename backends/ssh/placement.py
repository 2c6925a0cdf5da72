"""Which hosts a launch goes to; pure.

The same rooms and the same launch give the same hosts in the same order. A launch goes where it
leaves the least over, so that whole machines stay free for those who need them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import field

from backends.devices import choose, of_kind
from backends.machine import Device
from orchestrator.backend import Launch, Resources
from orchestrator.frozen import frozen


@frozen
class Room:
    """What a host has, and what of it is free.

    ``cpu`` and ``memory_bytes`` are the whole machine's; the ``free`` ones are what launches of
    any namespace leave. ``held`` are keys of accelerators. With ``blocks`` a launch takes whole
    parts of the machine, of which ``blocks_held`` are taken.
    """

    host: str
    cpu: float
    memory_bytes: int
    free_cpu: float
    free_memory_bytes: int
    devices: tuple[Device, ...] = ()
    held: frozenset[str] = frozenset()
    blocks: int | None = None
    blocks_held: int = 0

    def could(self, wanted: Resources) -> bool:
        """Say whether the machine could hold ``wanted`` if nothing else were there."""
        return (
            (wanted.cpu or 0) <= self.cpu
            and (wanted.memory_bytes or 0) <= self.memory_bytes
            and self._has(wanted, frozenset())
        )

    def fits(self, wanted: Resources) -> bool:
        """Say whether ``wanted`` fits into what is free."""
        return (
            (wanted.cpu or 0) <= self.free_cpu
            and (wanted.memory_bytes or 0) <= self.free_memory_bytes
            and self._has(wanted, self.held)
            and (self.blocks is None or self.blocks_for(wanted) <= self.blocks - self.blocks_held)
        )

    def _has(self, wanted: Resources, held: frozenset[str]) -> bool:
        return not wanted.accelerators or choose(self.devices, wanted, held) is not None

    def blocks_for(self, wanted: Resources) -> int:
        """Return how many blocks ``wanted`` takes: at least one, and as many as its largest part.

        >>> half = Room("a", cpu=8, memory_bytes=80, free_cpu=8, free_memory_bytes=80, blocks=4)
        >>> half.blocks_for(Resources(cpu=3)), half.blocks_for(Resources(memory_bytes=80))
        (2, 4)
        """
        alike = len(of_kind(self.devices, wanted))
        return blocks_taken(
            self.blocks or 1,
            (wanted.cpu or 0, self.cpu),
            (wanted.memory_bytes or 0, self.memory_bytes),
            (wanted.accelerators, alike),
        )

    def free_of(self, kind: Sequence[Device]) -> int:
        """Return how many accelerators of a kind a launch could be given now."""
        free = sum(device.key not in self.held for device in kind)
        return free if self.blocks is None else min(free, math.floor(len(kind) * self.share))

    @property
    def share(self) -> float:
        """Return what part of the machine is in blocks that nobody holds; 1 without blocks."""
        return 1.0 if self.blocks is None else max(0, self.blocks - self.blocks_held) / self.blocks


def blocks_taken(blocks: int, *parts: tuple[float, float]) -> int:
    """Return how many of ``blocks`` equal parts cover each ``(part, whole)``; at least one.

    >>> blocks_taken(4, (2, 8), (0, 0)), blocks_taken(4, (3, 8))
    (1, 2)
    """
    return max(1, *(math.ceil(blocks * part / whole - 1e-9) for part, whole in parts if whole), 1)


def candidates(rooms: Sequence[Room], wanted: Resources) -> list[str]:
    """Return the hosts with room for ``wanted``, best first.

    >>> def room(host, free): return Room(host, 8, 64, free, 64)
    >>> candidates([room("a", 8), room("b", 2), room("c", 1)], Resources(cpu=2))
    ['b', 'a']
    """
    fitting = [(position, room) for position, room in enumerate(rooms) if room.fits(wanted)]
    return [room.host for _, room in sorted(fitting, key=lambda pair: (*_left_over(pair[1]), pair[0]))]


def _left_over(room: Room) -> tuple[int, float, float]:
    """Return what is free there; the least comes first, accelerators before all else."""
    free = sum(device.key not in room.held for device in room.devices)
    return free, room.free_cpu / (room.cpu or 1), room.free_memory_bytes / (room.memory_bytes or 1)


def spread(name: str, hosts: Sequence[str]) -> list[str]:
    """Return ``hosts`` in an order that depends on ``name`` only, and changes little with the hosts.

    Rendezvous hashing (Thaler and Ravishankar, 1998): two who choose for the same volume choose
    the same host, without asking each other.

    >>> spread("data", ["a", "b", "c"]) == [h for h in spread("data", ["d", "c", "b", "a"]) if h != "d"]
    True
    """
    return sorted(hosts, key=lambda host: hashlib.sha256(f"{host}\0{name}".encode()).digest())


@frozen
class Gang:
    """The nodes of one attempt at one replica, and the hosts they go to, by rank."""

    run: str
    replica: int
    attempt: int
    hosts: tuple[str, ...] = field(default=())

    @property
    def name(self) -> str:
        """Return what the gang is called on record."""
        return f"{self.run}-{self.replica}-gang-{self.attempt}"


def gang_of(launch: Launch) -> tuple[Gang, int] | None:
    """Return the gang a launch belongs to and its number of nodes, or None for one node."""
    nodes = int(dict(launch.env).get("MODELYARD_NODES_NUM", "1"))
    return (Gang(launch.run, launch.replica, launch.attempt), nodes) if nodes > 1 else None


def gang_name(launch: str) -> str | None:
    """Return what the gang of a launch would be called, from ``<run>-<replica>-<node>-<attempt>``.

    >>> gang_name("tune-0-3-1")
    'tune-0-gang-1'
    """
    parts = launch.rsplit("-", 3)
    return f"{parts[0]}-{parts[1]}-gang-{parts[3]}" if len(parts) == 4 else None


def node_environment(addresses: Sequence[str]) -> Mapping[str, str]:
    """Return the variables that tell a node where the others are, by rank.

    >>> node_environment(["10.0.0.1", "10.0.0.2"])["MODELYARD_MASTER_NODE_IP"]
    '10.0.0.1'
    """
    return {"MODELYARD_NODES_IPS": "\n".join(addresses), "MODELYARD_MASTER_NODE_IP": addresses[0]}
