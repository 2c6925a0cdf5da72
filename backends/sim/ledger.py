"""What launches of the sim hold of its offers and ports."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from datetime import datetime
from heapq import heappop, heappush
from itertools import chain, islice

from backends.sim.script import Slot, ends_at, see
from orchestrator.backend import Offer, Phase, Resources

FIRST_PORT, LAST_PORT = 20_000, 65_535


class Ledger:
    """What launches that have not ended hold, kept as they come and go: no start reads them all."""

    def __init__(self) -> None:
        self.ports: dict[int, str] = {}
        self._slots: dict[str, Slot] = {}
        self._machines: dict[str, dict[str, Slot]] = {}
        self._sums: dict[str, tuple[int, int, int]] = {}
        self._ends: list[tuple[datetime, str]] = []
        self._port = FIRST_PORT

    def __len__(self) -> int:
        return len(self._slots)

    def take(self, key: str, slot: Slot) -> None:
        """Write down what ``slot`` holds, until it ends by itself or :meth:`give` is called."""
        self.give(key)
        if slot.ended is not None:
            return
        self._slots[key] = slot
        self._machines.setdefault(slot.instance.machine, {})[key] = slot
        self._add(slot, 1)
        for _, port in slot.instance.ports.values():
            self.ports[port] = slot.instance.name
            self._port = max(self._port, port + 1) if port < LAST_PORT else FIRST_PORT
        if (end := ends_at(slot)) is not None:
            heappush(self._ends, (end, key))

    def give(self, key: str) -> None:
        """Let go of what the launch held; it may have been let go of before."""
        slot = self._slots.pop(key, None)
        if slot is None:
            return
        del self._machines[slot.instance.machine][key]
        self._add(slot, -1)
        for _, port in slot.instance.ports.values():
            self.ports.pop(port, None)

    def pass_to(self, now: datetime) -> None:
        """Let go of what has ended by itself at ``now``."""
        while self._ends and self._ends[0][0] <= now:
            _, key = heappop(self._ends)
            slot = self._slots.get(key)
            if slot is not None and ends_at(slot) is not None and see(slot, now)[0].phase is Phase.EXITED:
                self.give(key)

    def less(self, offer: Offer) -> Offer:
        """Return ``offer`` without what is held of it."""
        held = self._machines.get(offer.instance_type)
        if not held:
            return offer
        if not offer.divisible:
            left = None if offer.available is None else max(0, offer.available - len(held))
            return replace(offer, available=left)
        cpu, memory, disk = self._sums[offer.instance_type]
        return replace(
            offer,
            cpu=max(0.0, offer.cpu - cpu / 1000),
            memory_bytes=max(0, offer.memory_bytes - memory),
            disk_bytes=None if offer.disk_bytes is None else max(0, offer.disk_bytes - disk),
            count=max(0, offer.count - len(self._devices(offer))),
        )

    def free_devices(self, offer: Offer, count: int) -> tuple[str, ...]:
        """Return the first ``count`` devices of ``offer`` that nobody holds."""
        if not offer.divisible:
            return tuple(str(n) for n in range(count))
        held = self._devices(offer) if count else frozenset()
        return tuple(islice((d for n in range(offer.count) if (d := str(n)) not in held), count))

    def free_port(self, given: Collection[int]) -> int:
        """Return a port that nobody holds and that is not in ``given``."""
        after = range(self._port, LAST_PORT + 1)
        before = range(FIRST_PORT, self._port)
        return next(p for p in chain(after, before) if p not in self.ports and p not in given)

    def _devices(self, offer: Offer) -> frozenset[str]:
        held = self._machines.get(offer.instance_type, {})
        return frozenset(d for s in held.values() for d in s.instance.devices)

    def _add(self, slot: Slot, sign: int) -> None:
        cpu, memory, disk = self._sums.get(slot.instance.machine, (0, 0, 0))
        want = slot.resources
        self._sums[slot.instance.machine] = (
            cpu + sign * round(1000 * (want.cpu or 0)),  # whole thousandths: sums come back to zero
            memory + sign * (want.memory_bytes or 0),
            disk + sign * (want.disk_bytes or 0),
        )


def holds(offer: Offer, want: Resources) -> bool:
    """Say whether ``offer``, as it is free now, has room for ``want``."""
    if offer.available is not None and offer.available < 1:
        return False
    if want.accelerator is not None and want.accelerator != offer.accelerator:
        return False
    if want.vendor is not None and want.accelerators and want.vendor != offer.vendor:
        return False
    return (
        (want.cpu or 0) <= offer.cpu
        and (want.memory_bytes or 0) <= offer.memory_bytes
        and (offer.disk_bytes is None or (want.disk_bytes or 0) <= offer.disk_bytes)
        and want.accelerators <= offer.count
    )
