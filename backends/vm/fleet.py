"""The machines that fleets hold, as a place: Docker over SSH, shared by launches in blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from backends.ssh import Ssh
from backends.ssh.host import HostDocker, Trouble
from backends.ssh.placement import Room
from backends.vm import boot
from orchestrator.backend import Can, Check, HeldMachine, Host, Instance, Offer, Phase
from orchestrator.errors import BackendError, Rejected

KEYS = 4
"""How many keys a machine's may be looked for under: a launch that is asked for again after its machine
ended takes the next one, and each attempt has a name of its own."""


class HeldHost(HostDocker):
    """Runs launches on a machine that is rented for a fleet.

    Args:
        machine: What the record has of it.
        keys: Those that it may have been ordered under.
        options: As for every host.
    """

    def __init__(self, *arguments: Any, machine: HeldMachine, keys: Sequence[str], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.machine = machine
        self._keys = keys

    def unfit(self) -> Trouble | None:
        """Say why nothing may start here: as for every host, or because it is about to be taken away."""
        if self._taken_at() is not None:
            return Trouble("its provider takes it away", "its fleet rents another one")
        return super().unfit()

    def described(self) -> Host:
        """Return what the machine is, how it is, and what it is rented as."""
        return replace(super().described(), rent=self.machine.rent)

    def instances(self) -> Sequence[Instance]:
        """Return every launch here; what ended with a machine that is taken away counts as interrupted."""
        found = super().instances()
        if not any(one.phase is Phase.EXITED and one.reason != "stopped" for one in found):
            return found
        at = self._taken_at()
        if at is None:
            return found
        told = f"machine {self.machine.id}: its provider takes it away, and it was asked to end"
        return [replace(one, reason="preempted", message=told) if _fell(one, at) else one for one in found]

    def _taken_at(self) -> int | None:
        """Return the second since 1970 at which the machine learned that it is taken away."""
        if not self.machine.rent.spot:
            return None
        try:
            said = self.connection.run("".join(map(boot.taken, self._keys))).split()
        except BackendError:
            return None
        return int(said[0]) if said and said[0].isdigit() else None


class RentedFleet(Ssh):
    """Runs launches on the machines that a fleet holds.

    What is on them goes with them: they keep no volumes.

    Args:
        name: The fleet's.
        hosts: Its machines that are up, by id.
        namespace: Begins the names of containers.
        env: Variables of everything that runs there.
    """

    def __init__(
        self, name: str, hosts: Mapping[str, HeldHost], *, namespace: str, env: Mapping[str, str]
    ) -> None:
        can = {Can.IMAGES, Can.PORTS, Can.EXEC, Can.LIMITS, Can.PRIVILEGED, Can.RESTART}
        self._take(name, hosts, namespace=namespace, can=can, env=env)

    def offers(self) -> Sequence[Offer]:
        """Return what its machines have free; none while none is up."""
        return super().offers() if self._hosts else ()

    def _offers_of(self, host: HostDocker, room: Room) -> list[Offer]:
        """Return what one machine has free; it costs nothing more, since its fleet pays for it."""
        assert isinstance(host, HeldHost)
        rent = host.machine.rent
        return [
            replace(one, instance_type=rent.instance_type, region=rent.region, zone=rent.zone, spot=rent.spot)
            for one in super()._offers_of(host, room)
        ]

    def check(self) -> Sequence[Check]:
        """Look at every machine that is up; that none is up may well be as it should."""
        if self._hosts:
            return super().check()
        what = "none now: the fleet rents what its nodes say and runs need"
        return [
            Check("machines are up", True, f"{what} (modelyard fleet show {self.name} tells what it does)")
        ]

    def create_volume(self, name: str, *, size_bytes: int | None) -> None:  # noqa: ARG002  # the port's
        """Refuse: what is on a rented machine goes with it."""
        raise Rejected("rented machines keep no volumes", backend=self.name, fix="use a bucket")


def _fell(ended: Instance, at: int) -> bool:
    """Say whether a launch ended once its machine knew that it is taken away."""
    return (
        ended.phase is Phase.EXITED
        and ended.reason != "stopped"
        and ended.finished_at is not None
        and ended.finished_at.timestamp() >= at - 1
    )
