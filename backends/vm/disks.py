"""Named volumes of rented machines: disks of a cloud, each in one zone and at one machine at a time."""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from backends.ssh.host import HostDocker
from backends.vm.port import Vm
from orchestrator.backend import LABEL, Launch, Rent, Volume
from orchestrator.errors import Busy, NoCapacity, Rejected
from orchestrator.frozen import frozen
from orchestrator.units import GIB

VOLUME = LABEL + "volume"
"""Tag of a disk: what its volume is called."""

FORMATTED = LABEL + "formatted"
"""Tag of a disk that has been given a file system: nothing gives it another one."""

DEFAULT_BYTES = 100 * GIB

MOVED_S = 60.0
"""How long a disk may take from one machine to the next before the start is put off."""


@frozen
class Disk:
    """A disk as its cloud sees it; ``machine`` is where it is attached, ``device`` its path there."""

    id: str
    name: str
    zone: str
    region: str
    size_bytes: int
    machine: str = ""
    is_attached: bool = False
    is_formatted: bool = False
    device: str = ""


@runtime_checkable
class DiskProvider(Protocol):
    """A cloud that keeps disks; each call is one attempt, as for machines."""

    def make_disk(self, *, size_bytes: int, zone: str | None, tags: Mapping[str, str]) -> Disk:
        """Make a disk in a zone, None for the first one."""

    def disks(self, tags: Mapping[str, str]) -> Sequence[Disk]:
        """Return all disks with these tags, ordered by id."""

    def attach_disk(self, disk: Disk, vm: Vm, *, number: int) -> None:
        """Begin to attach a disk to a machine, as the one with this number there."""

    def detach_disk(self, disk: Disk) -> None:
        """Begin to take a disk from its machine; one that has none is no error."""

    def tag_disk(self, disk: Disk, tags: Mapping[str, str]) -> None:
        """Set tags of a disk."""

    def delete_disk(self, disk: Disk) -> None:
        """Delete a disk; gone is no error."""


class Disks:
    """The volumes of one backend's namespace.

    Args:
        provider: The cloud.
        backend: The backend's name, for errors.
        ours: Returns the tags of this deployment's namespace.
        holder: Returns which launch has a running container on a machine, "" where none has.
    """

    def __init__(
        self,
        provider: DiskProvider,
        *,
        backend: str,
        ours: Callable[[], Mapping[str, str]],
        holder: Callable[[str], str],
    ) -> None:
        self._provider = provider
        self._backend = backend
        self._ours = ours
        self._holder = holder

    def create(self, name: str, *, size_bytes: int | None, zone: str | None) -> None:
        """Make a volume, or find it; of several that were made at once, one stays."""
        if self._find(name) is not None:
            return
        tags = {**self._ours(), VOLUME: name}
        self._provider.make_disk(size_bytes=size_bytes or DEFAULT_BYTES, zone=zone, tags=tags)
        for other in self._all(name)[1:]:
            if not other.machine and not other.is_formatted:  # nobody has written to it
                self._provider.delete_disk(other)

    def volumes(self, machines: Mapping[str, str]) -> Sequence[Volume]:
        """Return the volumes, ordered by name.

        Args:
            machines: The launch of every machine that is there, by its id.
        """
        found = {disk.name: disk for disk in reversed(self._provider.disks(self._ours())) if disk.name}
        return [
            Volume(name, disk.size_bytes, tuple(filter(None, [machines.get(disk.machine, "")])))
            for name, disk in sorted(found.items())
        ]

    def delete(self, name: str, machines: Mapping[str, str]) -> None:
        """Delete a volume with what it holds.

        Raises:
            Rejected: a launch has it.
        """
        disk = self._find(name)
        if disk is None:
            return
        if launch := machines.get(disk.machine):
            raise Rejected(
                f"volume '{name}' is in use by launch '{launch}'", backend=self._backend,
                fix="delete the runs that mount it first",
            )  # fmt: skip
        self._provider.delete_disk(self._freed(disk))

    def require(self, launch: Launch, rent: Rent, machine: str) -> None:
        """Say before anything is rented why a launch cannot have its volumes there now.

        Raises:
            Rejected: there is no such volume.
            NoCapacity: it is in another zone than the machine would be.
            Busy: another launch has it.
        """
        for name in _names(launch):
            disk = self._must_find(name)
            if rent.zone and disk.zone != rent.zone:
                raise NoCapacity(
                    f"volume '{name}' is in {disk.zone}", backend=self._backend,
                    fix=f"availability_zones: [{disk.zone}]",
                )  # fmt: skip
            if disk.machine and disk.machine != machine:
                self._require_free(disk)

    def put(self, launch: Launch, vm: Vm, host: HostDocker) -> None:
        """Bring the volumes of a launch to its machine, each with a file system from its first time on."""
        for number, name in enumerate(_names(launch)):
            disk = self._must_find(name)
            if disk.machine != vm.id:
                disk = self._freed(disk)
                self._provider.attach_disk(disk, vm, number=number)
            disk = self._awaited(name, lambda disk: disk.machine == vm.id and disk.is_attached)
            host.connection.run(_ready(disk.device, make=not disk.is_formatted))
            self._provider.tag_disk(disk, {FORMATTED: "ext4"})
            host.keep_on(name, disk.device)

    # -- small pieces ----------------------------------------------------------------------------

    def _all(self, name: str) -> list[Disk]:
        """Return the disks of a volume, the one that counts first: what was written to, then by id."""
        found = self._provider.disks({**self._ours(), VOLUME: name})
        return sorted(found, key=lambda disk: (not disk.is_formatted, disk.id))

    def _find(self, name: str) -> Disk | None:
        return next(iter(self._all(name)), None)

    def _must_find(self, name: str) -> Disk:
        found = self._find(name)
        if found is None:
            raise Rejected(
                f"no volume '{name}' on backend '{self._backend}'", backend=self._backend,
                fix=f"apply a spec with type: volume and name: {name} first",
            )  # fmt: skip
        return found

    def _require_free(self, disk: Disk) -> None:
        if launch := self._holder(disk.machine):
            raise Busy(f"volume '{disk.name}' is in use by launch '{launch}'", backend=self._backend)

    def _freed(self, disk: Disk) -> Disk:
        """Return a disk that is at no machine; one where something runs keeps it."""
        if not disk.machine:
            return disk
        self._require_free(disk)
        self._provider.detach_disk(disk)
        return self._awaited(disk.name, lambda disk: not disk.machine)

    def _awaited(self, name: str, is_so: Callable[[Disk], bool]) -> Disk:
        began, pause = time.monotonic(), threading.Event()
        while not is_so(disk := self._must_find(name)):
            if time.monotonic() - began > MOVED_S:
                raise Busy(f"volume '{name}' is on its way to its machine", backend=self._backend)
            pause.wait(1.0)
        return disk


def _names(launch: Launch) -> list[str]:
    return list(dict.fromkeys(mount.source for mount in launch.mounts if mount.kind == "volume"))


def _ready(device: str, *, make: bool) -> str:
    """Return the script that waits for a device and gives it a file system where it has none.

    A disk that has had one is left alone, whatever ``blkid`` says of it. Being root takes no
    password on the clouds' own images, whose user may become it.

    >>> "mkfs" in _ready("/dev/x", make=False), "mkfs" in _ready("/dev/x", make=True)
    (False, True)
    """
    at = shlex.quote(device)
    wait = f"n=0; until [ -b {at} ]; do n=$((n + 1)); [ $n -lt 60 ] || exit 1; sleep 0.5; done\n"
    root = 'PATH="$PATH:/usr/sbin:/sbin"; s=; [ "$(id -u)" = 0 ] || s="sudo -n"\n'
    return wait + (root + f"$s blkid -p {at} >/dev/null || $s mkfs.ext4 -q {at}\n" if make else "")
