"""Rented machines: a cloud's machine, then SSH, then Docker, for any provider of the VM port."""

from __future__ import annotations

import contextlib
import hashlib
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event as Flag
from typing import ClassVar, TypeVar

from backends.ssh.connection import Connection
from backends.ssh.host import HostDocker, listen
from backends.ssh.memory import Memory
from backends.ssh.options import Hold, Host, Login, Reader
from backends.ssh.placement import Gang, gang_name, gang_of
from backends.vm import boot
from backends.vm.cooling import Cooled
from backends.vm.disks import DiskProvider, Disks
from backends.vm.fleet import KEYS, HeldHost, RentedFleet
from backends.vm.gang import Seat, gather, nodes_of, refuse
from backends.vm.options import duration_s, state_folder
from backends.vm.port import (
    DEPLOYMENT,
    DISK,
    EXPIRES,
    GANG,
    KEY,
    LAUNCH,
    NAMESPACE,
    TAGS,
    Belonging,
    KeySpent,
    Order,
    Provider,
    Vm,
)
from backends.vm.shelf import Shelf
from orchestrator.backend import (
    FLEET,
    LABEL,
    Can,
    Check,
    HeldMachine,
    HostKeeper,
    Instance,
    Launch,
    LogLine,
    Machine,
    Offer,
    Phase,
    Progress,
    Rent,
    Volume,
)
from orchestrator.errors import (
    AuthFailed,
    BackendError,
    NoCapacity,
    NotFound,
    Rejected,
    Temporary,
    Unreachable,
)

AT_ONCE = 32
"""Machines that are asked at the same time."""

FOR_EVER_S = 10 * 365 * 86_400

LISTED_S = 15.0
"""How long a machine that was just made may be missing from lists (docs.aws.amazon.com/ec2/latest/devguide,
"Eventual consistency")."""

BOOT_POLL_S = 1.0
"""Between two looks at a machine that boots."""

Answer = TypeVar("Answer")


class RentedMachines:
    """Runs each launch on the Docker engine of a machine that is rented for it.

    Args:
        name: The backend's name in the configuration.
        provider: The cloud.
        user: Who logs in; the image decides.
        port: The machines' SSH port.
        identity_file: The private key; default: one is made.
        deployment: Tells our machines from others' of the account; default: one is made.
        namespace: Begins the names of containers.
        abandoned_after: How long a machine stays up after it last heard of us.
        boot_timeout: How long a machine may take until its engine answers.
        timeout_s: How long one answer of an engine may take.
        prepare: Commands of a machine's first boot that make its image ready.
        notice: How a spot machine learns that it is about to be taken away.

    Raises:
        ConfigError: a duration is none.
    """

    can: ClassVar[frozenset[Can]] = frozenset(
        {
            Can.IMAGES,
            Can.PORTS,
            Can.EXEC,
            Can.LIMITS,
            Can.PRIVILEGED,
            Can.RESTART,
            Can.RENT,
            Can.KEEP,
            Can.HOLD,
        }
    )

    def __init__(
        self,
        name: str,
        provider: Provider,
        *,
        user: str,
        port: int,
        identity_file: str | None,
        deployment: str | None,
        namespace: str,
        abandoned_after: str,
        boot_timeout: str,
        timeout_s: float,
        prepare: Sequence[Sequence[str]] = (),
        notice: boot.Notice | None = None,
    ) -> None:
        state = state_folder(name)
        self.name = name
        self._provider = Cooled(provider, backend=name, path=state / "sold-out.json")
        self._disks = (
            Disks(provider, backend=name, ours=self._ours, holder=self._running_on)
            if isinstance(provider, DiskProvider)
            else None
        )
        self._prepare = prepare
        self._notice = notice
        self._user, self._port = user, port
        self._shelf = Shelf(state, namespace, backend=name)
        self._memory = Memory(state / namespace / "seen")
        self._identity = identity_file
        self._given_deployment = deployment
        self._namespace = namespace
        self._abandoned_s = duration_s(name, "abandoned_after", abandoned_after)
        self._boot_s = duration_s(name, "boot_timeout", boot_timeout)
        self._timeout_s = timeout_s
        self._hosts: dict[str, HostDocker] = {}
        self._renewed: dict[str, float] = {}

    # -- offers ----------------------------------------------------------------------------------

    def offers(self) -> Sequence[Offer]:
        """Return every kind of machine that can be rented, zone by zone."""
        return self._provider.offers()

    # -- the life of a launch --------------------------------------------------------------------

    def start(self, launch: Launch, *, secrets: Mapping[str, str], progress: Progress) -> Instance:
        """Start ``launch`` on its machine: the one it has, one that is idle, or a new one."""
        kept = self._kept(launch.name)
        if kept is not None:
            return kept
        if launch.rent is None:
            raise Rejected(
                f"launch '{launch.name}' names no machine to rent", backend=self.name, fix="plan it again"
            )
        self._require_able(launch)
        if (gang := gang_of(launch)) is not None:
            return self._start_node(launch, *gang, secrets=secrets, progress=progress)
        held = self._machine_of(launch.name)
        if self._disks is not None:
            self._disks.require(launch, launch.rent, held.id if held else "")
        vm = held or self._take_idle(launch) or self._rent(launch, launch.rent)
        try:
            host = self._booted(vm, launch, progress)
            if launch.fleet:
                return self._holding(vm, host, self._memory.last(vm.id))
            if self._disks is not None:
                self._disks.put(launch, vm, host)
            found = host.start(launch, secrets=secrets, progress=progress)
        except (NoCapacity, Rejected, AuthFailed):
            self._end(vm)  # it is nowhere, and the next attempt has a name of its own
            raise
        return replace(found, machine=vm.id, rented=True)

    def _start_node(
        self, launch: Launch, gang: Gang, nodes: int, *, secrets: Mapping[str, str], progress: Progress
    ) -> Instance:
        """Start one node of several, once all of them have a machine; one refused is all refused."""
        with self._memory.claim(gang.name) as claim:
            seats = gather(
                claim, list(nodes_of(launch, nodes)), find=self._machine_of,
                make=lambda node: self._made(node, gang.name, progress), end=self._end,
            )  # fmt: skip
        vm = self._seated(launch.name, seats[launch.node][0])
        try:
            if vm is None:
                raise NoCapacity(
                    f"machine {seats[launch.node][0]} of node {launch.node} ended before all had started",
                    backend=self.name,
                )
            host = self._booted(vm, launch, progress)
            found = host.start(_as_node(host, launch, seats), secrets=secrets, progress=progress)
        except (NoCapacity, Rejected, AuthFailed) as error:
            if vm is not None:
                self._end(vm)
            with self._memory.claim(gang.name) as claim:
                refuse(claim, error)  # nobody makes its machine a second time
            raise
        return replace(found, machine=vm.id, rented=True)

    def _seated(self, launch: str, machine: str) -> Vm | None:
        """Return the machine of a node, None where it has ended; a new one may not be listed at once."""
        began, pause = time.monotonic(), threading.Event()
        while True:
            vms = self._vms()
            if found := next((vm for vm in vms if vm.tags.get(LAUNCH) == launch and vm.is_alive), None):
                return found
            is_over = any(vm.id == machine and not vm.is_alive for vm in vms)
            if is_over or time.monotonic() - began > LISTED_S:
                return None
            pause.wait(BOOT_POLL_S)

    def instances(self) -> Sequence[Instance]:
        """Return every launch of our namespace: on its machine, on its way there, or ended and kept.

        A machine that does not answer is taken at its last word. Each machine that answers is told
        to stay up. One that ended, serves nobody and is still held is terminated.
        """
        vms = self._vms()
        self._shelf.forget_buried({vm.id for vm in vms})
        self._tidy(vms)
        buried = self._shelf.buried()
        found = {one.name: one for one in self._shelf.ended()}
        for vm in vms:
            if vm.lingers and (not vm.tags.get(LAUNCH) or vm.tags[LAUNCH] in found or vm.id in buried):
                self._provider.terminate(vm)
        ours = [vm for vm in vms if vm.tags.get(LAUNCH) and vm.id not in buried]
        for vm in ours:
            kept = found.get(vm.tags[LAUNCH])
            if kept is not None and kept.machine == vm.id and vm.is_alive:
                found[kept.name] = replace(kept, rented=True)
        asked = [vm for vm in ours if vm.tags[LAUNCH] not in found]
        asked.sort(key=lambda vm: vm.is_alive)  # of two that had one launch, the living one decides
        found |= {seen.name: seen for seen in self._at_once(self._seen, asked)}
        return sorted(found.values(), key=lambda one: one.name)

    def stop(self, name: str, *, grace_s: float) -> None:
        """Ask the launch to end, and kill it after ``grace_s``; its machine stays until it is released."""
        if self._kept(name) is not None or (vm := self._machine_of(name)) is None:
            return
        host = None if vm.tags.get(FLEET) else self._host(vm)
        if host is not None and _answers(host):
            if host.holds(name):
                host.stop(name, grace_s=grace_s)
                return
        elif host is not None and vm.state == "running" and self._memory.last(vm.id) is not None:
            raise Unreachable(f"machine {vm.id} does not answer", backend=self.name)
        now = datetime.now(UTC)
        never_ran = replace(self._pending(vm), phase=Phase.EXITED, reason="stopped", finished_at=now)
        self._shelf.put(replace(never_ran, message="", rented=False), ())

    def release(self, name: str, *, keep_s: float | None) -> None:
        """Keep the ended launch and its output here, and its machine for another or for nobody."""
        vm = self._machine_of(name) or self._left_of(name)
        if vm is None:
            return
        if not vm.is_alive:
            if self._kept(name) is None:
                self._shelf.put(replace(self._seen(vm), rented=False), ())
            self._provider.terminate(vm)
            return
        host = self._host(vm)
        if self._kept(name) is None:
            ended = self._seen(vm)
            if ended.phase is not Phase.EXITED:
                raise Rejected(f"launch '{name}' still runs", backend=self.name, fix="stop it first")
            assert host is not None  # nothing ends on a machine without an address
            output = () if vm.tags.get(FLEET) else host.logs(name)
            self._shelf.put(replace(ended, rented=False, ports={}), output)
        if (
            keep_s == 0
            or vm.tags.get(FLEET)
            or host is None
            or not _answers(host)
            or self._taken_at(vm, host) is not None
        ):
            self._provider.terminate(vm)
            return
        lasts_s = FOR_EVER_S if keep_s is None else int(keep_s)
        host.connection.run(boot.lay_down(vm.tags[KEY], lasts_s=lasts_s))
        host.remove(name)
        until = (datetime.now(UTC) + timedelta(seconds=lasts_s)).isoformat(timespec="seconds")
        self._provider.tag(vm, {LAUNCH: "", EXPIRES: until})

    def remove(self, name: str) -> None:
        """Forget the launch and its output, and end the machine that it still has."""
        for vm in self._vms():
            if vm.tags.get(LAUNCH) == name:
                self._shelf.bury(vm.id)
                self._provider.terminate(vm)
                self._hosts.pop(vm.id, None)
        self._shelf.forget(name)
        if (gang := gang_name(name)) is not None:
            with self._memory.claim(gang) as claim:
                claim.forget()

    def logs(
        self, name: str, *, follow: bool = False, since: datetime | None = None, tail: int | None = None
    ) -> Iterator[LogLine]:
        """Yield the launch's output: from its machine, or what was kept of it."""
        if self._kept(name) is not None:
            return self._shelf.output(name, since=since, tail=tail)
        return self._must_find(name).logs(name, follow=follow, since=since, tail=tail)

    def execute(self, name: str, command: Sequence[str], *, tty: bool) -> int:
        """Run ``command`` in the container on this process's terminal; return its exit code."""
        if self._kept(name) is not None:
            raise Rejected(f"launch '{name}' is not running", backend=self.name, fix=f"see: logs {name}")
        return self._must_find(name).execute(name, command, tty=tty)

    def watch(self, closed: Flag) -> Iterator[str]:
        """Yield the names of launches that machines report on; machines are known once they were seen."""
        heard: queue.Queue[str] = queue.Queue()
        listening: dict[str, threading.Thread] = {}
        while not closed.is_set():
            for machine, host in list(self._hosts.items()):
                if machine not in listening:
                    thread = threading.Thread(target=listen, args=(host, closed, heard.put), daemon=True)
                    listening[machine] = thread
                    thread.start()
            with contextlib.suppress(queue.Empty):
                yield heard.get(timeout=0.2)
        for thread in listening.values():
            thread.join()

    # -- machines --------------------------------------------------------------------------------

    def machines(self) -> Sequence[Machine]:
        """Return every machine that carries our deployment's tag, in any namespace, ordered by id."""
        found = [vm for vm in self._provider.list({DEPLOYMENT: self._deployment()}) if vm.state != "ended"]
        left = [_left(each) for each in self._left_over(found)]
        return sorted([*map(_machine, found), *left], key=lambda one: one.id)

    def terminate(self, machine: str) -> None:
        """End a machine that carries our deployment's tag, or remove what was left over of one."""
        found = self._provider.list({DEPLOYMENT: self._deployment()})
        for vm in found:
            if vm.id == machine:
                self._provider.terminate(vm)
                return
        for each in self._left_over(found):
            if each.id == machine:
                self._provider.discard(each)
                return
        raise Rejected(
            f"machine {machine} does not carry the tag of our deployment", backend=self.name,
            fix="end it where it was made",
        )  # fmt: skip

    def check(self) -> Sequence[Check]:
        """Look whether the cloud answers and the key is there."""
        try:
            key = [Check("has a key", True, str(self._identity_file()))]
        except BackendError as error:
            key = [Check.failed("has a key", error)]
        return [*self._provider.check(), *key]

    def _tidy(self, vms: Sequence[Vm]) -> None:
        """Remove what was made for gangs of which no machine is left."""
        gangs = self._shelf.furnished() - {vm.tags.get(GANG, "") for vm in vms if vm.state != "ended"}
        for gang in sorted(gangs):
            if self._memory.is_claimed(gang):
                continue  # its machines are being rented
            with contextlib.suppress(BackendError):  # the next look tries again, and gc lists what is left
                held = [each for each in self._belongings({GANG: gang}) if not self._provider.discard(each)]
                if not held:
                    self._shelf.unfurnish(gang)

    def _belongings(self, tags: Mapping[str, str]) -> Sequence[Belonging]:
        return self._provider.belongings({DEPLOYMENT: self._deployment(), **tags})

    def _left_over(self, vms: Sequence[Vm]) -> list[Belonging]:
        """Return what was made for machines that are there no more."""
        alive = [vm for vm in vms if vm.state != "ended"]
        gangs, keys = {vm.tags.get(GANG, "") for vm in alive}, {vm.tags.get(KEY, "") for vm in alive}
        unused = [
            each for each in self._belongings({})
            if not (each.key in keys if each.key else each.gang in gangs)
        ]  # fmt: skip
        return [each for each in unused if not self._memory.is_claimed(each.gang)]

    # -- fleets ----------------------------------------------------------------------------------

    def fleet(
        self,
        name: str,
        *,
        machines: Sequence[HeldMachine],
        peers: Mapping[str, object],
        blocks: int,
        held: Mapping[str, Mapping[str, str]],
        env: Mapping[str, str],
    ) -> HostKeeper:
        """Return the place that machines are which fleets hold, whichever of ``peers`` rents each."""
        holds = Reader(name).held(held)
        hosts: dict[str, HeldHost] = {}
        for machine in machines:
            peer = peers.get(machine.backend)
            if isinstance(peer, RentedMachines):
                hosts[machine.id] = peer.lend(machine, fleet=name, blocks=blocks, hold=holds.get(machine.id))
        return RentedFleet(name, hosts, namespace=self._namespace, env=env)

    def lend(self, machine: HeldMachine, *, fleet: str, blocks: int, hold: Hold | None) -> HeldHost:
        """Return the engine of a machine that a fleet holds, for launches to share."""
        identity = str(self._identity_file())
        host = Host(
            machine.id, Login(machine.id, self._port, self._user, identity), internal_ip=machine.address,
            blocks=blocks,
        )  # fmt: skip
        way = str(self._shelf.ssh_config(machine.id, machine.address))
        leaving = Hold("it is given back") if machine.leaving else None
        return HeldHost(
            Connection(host, backend=fleet, host_keys="accept-new", ssh_config=way),
            machine=machine,
            keys=[self._key(machine.launch, spent) for spent in range(KEYS)],
            backend=fleet,
            network=None,
            namespace=self._namespace,
            default_image=None,
            pull="missing",
            timeout_s=self._timeout_s,
            hold=hold or leaving,
            shares=True,
        )

    # -- volumes: disks of the cloud, where it keeps some ------------------------------------------

    def create_volume(self, name: str, *, size_bytes: int | None) -> None:
        """Make a named volume in the first zone, or find it."""
        self.create_volume_in(name, size_bytes=size_bytes, zone=None)

    def create_volume_in(self, name: str, *, size_bytes: int | None, zone: str | None) -> None:
        """Make a named volume in a zone, or find it; where the cloud keeps none it is refused."""
        if self._disks is None:
            raise Rejected("rented machines keep no volumes", backend=self.name, fix="use a bucket")
        self._disks.create(name, size_bytes=size_bytes, zone=zone)

    def volumes(self) -> Sequence[Volume]:
        """Return the volumes of our namespace, ordered by name."""
        return () if self._disks is None else self._disks.volumes(self._launches())

    def delete_volume(self, name: str) -> None:
        """Delete a volume; one that a launch has is refused."""
        if self._disks is not None:
            self._disks.delete(name, self._launches())

    def _launches(self) -> dict[str, str]:
        """Return the launch of every machine that is there, by its id; that of an idle one is ""."""
        return {vm.id: vm.tags.get(LAUNCH, "") for vm in self._vms() if vm.is_alive}

    def _running_on(self, machine: str) -> str:
        """Return the launch that runs on a machine, or may do so for all we know; "" where none does."""
        vm = next((vm for vm in self._vms() if vm.id == machine and vm.is_alive), None)
        if vm is None or not vm.tags.get(LAUNCH) or self._kept(vm.tags[LAUNCH]) is not None:
            return ""
        return "" if self._seen(vm).phase is Phase.EXITED else vm.tags[LAUNCH]

    def _require_able(self, launch: Launch) -> None:
        """Refuse before anything is rented what no rented machine can do."""
        can_keep = () if self._disks is None else ("volume",)
        kept = next((mount for mount in launch.mounts if mount.kind not in ("cache", *can_keep)), None)
        if kept is not None:
            raise Rejected(
                f"{kept.kind} '{kept.source}': what is on a rented machine goes with it", backend=self.name,
                fix="use a bucket, or another backend",
            )  # fmt: skip
        volume = next((mount for mount in launch.mounts if mount.kind == "volume"), None)
        if volume is not None and gang_of(launch) is not None:
            raise Rejected(
                f"volume '{volume.source}' is at one machine at a time, and there are several nodes",
                backend=self.name, fix="use a bucket",
            )  # fmt: skip
        if launch.image is None and not launch.fleet:
            raise Rejected("a rented machine runs images", backend=self.name, fix="add image: to the spec")

    # -- renting ---------------------------------------------------------------------------------

    def _made(self, node: Launch, gang: str, progress: Progress) -> Vm:
        """Return a machine for a node, beside those of its gang, with its address among them."""
        assert node.rent is not None  # it was looked for before
        near = self._nearest(node, node.rent) or gang
        self._shelf.furnish(near)
        progress(f"rents the machine of node {node.node}")
        vm = self._machine_of(node.name) or self._take_idle(node, gang=near)
        vm = vm or self._rent(node, node.rent, gang=near)
        began, pause = time.monotonic(), threading.Event()
        while vm.internal_ip is None and (waited_s := time.monotonic() - began) < self._boot_s:
            pause.wait(BOOT_POLL_S)
            now = self._as_now(vm, waited_s)
            if now is None:
                break
            vm = now
        if vm.internal_ip is None:
            self._end(vm)
            raise NoCapacity(f"machine {vm.id} got no address among the others", backend=self.name)
        return vm

    def _nearest(self, node: Launch, rent: Rent) -> str:
        """Return the gang next to which a node goes: that of its siblings, or of idle machines."""
        vms = [vm for vm in self._vms() if vm.is_alive and vm.tags.get(GANG) and _is_such(vm, rent)]
        vms = [vm for vm in vms if vm.zone == (rent.zone or vm.zone)]
        theirs = node.labels()
        same = [LABEL + word for word in ("run", "replica", "attempt")]
        siblings = [
            vm for vm in vms if vm.tags.get(LAUNCH) and all(vm.tags.get(k) == theirs[k] for k in same)
        ]
        idle = [vm for vm in vms if not vm.tags.get(LAUNCH)]
        return min((vm.tags[GANG] for vm in siblings or idle), default="")

    def _end(self, vm: Vm) -> None:
        """End a machine whose launch is nowhere."""
        self._provider.terminate(vm)
        self._shelf.bury(vm.id)

    def _rent(self, launch: Launch, rent: Rent, *, gang: str = "") -> Vm:
        """Create the machine of a launch, under a key that only a machine that has ended makes new.

        Raises:
            NoCapacity: as many as are looked for later have ended, one after the other.
        """
        public = self._shelf.public_key(self._identity_file())
        expires = datetime.now(UTC) + timedelta(seconds=self._abandoned_s)
        tags = launch.labels() | self._ours() | {EXPIRES: expires.isoformat(timespec="seconds")}
        tags |= {GANG: gang} if gang else {}
        tags |= {FLEET: launch.fleet} if launch.fleet else {}
        tags |= {TAGS: _digest(launch)} if launch.tags else {}
        tags |= {DISK: str(rent.disk_bytes)} if rent.disk_bytes else {}
        for spent in range(KEYS):
            key = self._key(launch.name, spent)
            user_data = boot.cloud_config(
                key=key, public_key=public, user=self._user, lasts_s=self._abandoned_s,
                namespace=self._namespace, prepare=self._prepare, notice=self._notice if rent.spot else None,
            )  # fmt: skip
            try:
                vm = self._provider.create(Order(key, rent, tags | {KEY: key}, user_data, public, gang))
            except KeySpent:
                continue
            if vm.is_alive and vm.tags.get(LAUNCH) == launch.name:
                return vm  # any other ended, or went on to another launch
        raise NoCapacity(
            f"{KEYS} machines that were rented for launch '{launch.name}' ended before it ran",
            backend=self.name, fix="look at their console output, and at what their image does at boot",
        )  # fmt: skip

    def _key(self, launch: str, spent: int) -> str:
        """Return the key of a launch's machine; ``spent`` counts those of it that have ended."""
        text = f"{self._deployment()}\0{self._namespace}\0{launch}\0{spent}"
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def _take_idle(self, launch: Launch, *, gang: str = "") -> Vm | None:
        """Take over a machine of the kind that is rented anyway, where one is kept; a gang's of it only.

        What a fleet holds is for many, and what it gives back is for nobody. One that bears tags of the
        user's own goes to launches with the same: nobody pays for another's cost centre.
        """
        if launch.fleet:
            return None
        for vm in self._vms():
            if gang and vm.tags.get(GANG) != gang:
                continue
            free = not vm.tags.get(LAUNCH) or self._kept(vm.tags[LAUNCH]) is not None
            if (
                not free
                or vm.tags.get(FLEET)
                or vm.tags.get(TAGS, "") != _digest(launch)
                or vm.state != "running"
                or launch.rent is None
                or not _is_such(vm, launch.rent)
            ):
                continue
            host = self._host(vm)
            if host is None or not _answers(host):
                continue
            script = boot.take_up(vm.tags[KEY], launch.name, lasts_s=self._abandoned_s)
            if "taken" in host.connection.run(script).split():
                self._provider.tag(vm, launch.labels())
                return replace(vm, tags={**vm.tags, **launch.labels()})
        return None

    def _booted(self, vm: Vm, launch: Launch, progress: Progress) -> HostDocker:
        """Return the machine's engine once it answers.

        Raises:
            NoCapacity: it ended before, or takes too long: another machine may do better.
        """
        began = time.monotonic()
        pause = threading.Event()
        said = "it has no address"
        while (waited_s := time.monotonic() - began) < self._boot_s:
            now = self._as_now(vm, waited_s)
            if now is None:
                raise NoCapacity(f"machine {vm.id} ended while it booted", backend=self.name)
            host = self._host(now)
            try:
                if host is not None and _is_open(now.address or "", self._port):
                    host.holds(launch.name)
                    return host
            except AuthFailed as error:  # cloud-init has not come to our key yet, or to the group
                said = error.what
                if host is not None:
                    host.connection.close()
            except Unreachable as error:
                said = error.what
            progress(f"machine {vm.id} boots ({waited_s:.0f} s)")
            pause.wait(BOOT_POLL_S)
        raise NoCapacity(
            f"machine {vm.id} did not answer within {self._boot_s} s: {said}", backend=self.name,
            fix="look whether its image has Docker, and its network lets SSH in",
        )  # fmt: skip

    def _as_now(self, vm: Vm, waited_s: float) -> Vm | None:
        """Return a machine as it is now, None where it has ended; one just made may not be known yet."""
        now = self._provider.get(vm)
        if now is None:
            return vm if waited_s <= LISTED_S else None
        return now if now.is_alive else None

    # -- where things are ------------------------------------------------------------------------

    def _deployment(self) -> str:
        return self._given_deployment or self._shelf.deployment()

    def _identity_file(self) -> Path:
        return Path(self._identity).expanduser() if self._identity else self._shelf.identity_file()

    def _ours(self) -> dict[str, str]:
        return {DEPLOYMENT: self._deployment(), NAMESPACE: self._namespace}

    def _vms(self) -> Sequence[Vm]:
        return self._provider.list(self._ours())

    def _machine_of(self, launch: str) -> Vm | None:
        """Return the machine that a launch has, dead or alive only as its provider says."""
        return next((vm for vm in self._vms() if vm.tags.get(LAUNCH) == launch and vm.is_alive), None)

    def _left_of(self, launch: str) -> Vm | None:
        """Return the machine of a launch that has ended and is still held."""
        return next((vm for vm in self._vms() if vm.tags.get(LAUNCH) == launch and vm.lingers), None)

    def _kept(self, launch: str) -> Instance | None:
        return next((one for one in self._shelf.ended() if one.name == launch), None)

    def _must_find(self, launch: str) -> HostDocker:
        vm = self._machine_of(launch)
        host = self._host(vm) if vm else None
        if host is None:
            raise NotFound(f"no launch '{launch}' on backend '{self.name}'")
        return host

    def _host(self, vm: Vm) -> HostDocker | None:
        """Return the engine of a machine, None while it has no address."""
        if vm.id in self._hosts or vm.address is None:
            return self._hosts.get(vm.id)
        login = Login(vm.id, self._port, self._user, str(self._identity_file()))
        host = Host(vm.id, login, internal_ip=vm.internal_ip or vm.address)
        way = str(self._shelf.ssh_config(vm.id, vm.address))
        self._hosts[vm.id] = HostDocker(
            Connection(host, backend=self.name, host_keys="accept-new", ssh_config=way),
            backend=self.name,
            network=None,
            namespace=self._namespace,
            default_image=None,
            pull="missing",
            timeout_s=self._timeout_s,
        )
        return self._hosts[vm.id]

    def _seen(self, vm: Vm) -> Instance:
        """Return the launch of a machine as its engine has it, or as far as is known without it."""
        name = vm.tags[LAUNCH]
        if not vm.is_alive:
            told = "its provider took it away" if vm.preempted else "it ended"
            return replace(
                self._pending(vm), phase=Phase.EXITED, reason="preempted" if vm.preempted else "lost",
                message=f"machine {vm.id}: {told}", rented=vm.lingers,
            )  # fmt: skip
        host = self._host(vm)
        last = self._memory.last(vm.id)
        if host is None or (last is None and not _is_open(vm.address or "", self._port)):
            return self._pending(vm)
        if vm.tags.get(FLEET):
            return self._holding(vm, host, last)
        try:
            found = [one for one in host.instances() if one.name == name]
            self._renew(vm, host)
        except BackendError as error:
            told, since = f"{error.what}: as last seen", self._memory.heard_at(vm.id)
            found = [
                one if one.phase is Phase.EXITED else replace(one, message=told, silent_since=since)
                for one in last or ()
                if one.name == name
            ]
        else:
            found = [self._interrupted(one, vm, host) for one in found]
            self._memory.keep(vm.id, found)
        return replace(found[0], machine=vm.id, rented=True) if found else self._pending(vm)

    def _holding(self, vm: Vm, host: HostDocker, last: Sequence[Instance] | None) -> Instance:
        """Return the launch that holds a machine for a fleet: it runs while the engine there answers.

        It is to leave once the machine learned that it is taken away.
        """
        found = self._pending(vm)
        try:
            host.holds(found.name)
            self._renew(vm, host)
        except BackendError as error:
            if not last:
                return found
            told, since = f"{error.what}: as last seen", self._memory.heard_at(vm.id)
            return replace(last[0], message=told, silent_since=since)
        is_taken = self._taken_at(vm, host) is not None
        up = replace(
            found, phase=Phase.RUNNING, address=vm.address, leave="drain" if is_taken else "",
            message=f"machine {vm.id}: its provider takes it away" if is_taken else "",
            started_at=last[0].started_at if last else datetime.now(UTC),
        )  # fmt: skip
        self._memory.keep(vm.id, [up])
        return up

    def _interrupted(self, ended: Instance, vm: Vm, host: HostDocker) -> Instance:
        """Return a launch as preempted where its machine asked it to end before it is taken away."""
        if not vm.spot or ended.phase is not Phase.EXITED or ended.reason == "stopped":
            return ended
        at = self._taken_at(vm, host)
        if at is None or ended.finished_at is None or ended.finished_at.timestamp() < at - 1:
            return ended
        told = f"machine {vm.id}: its provider takes it away, and it was asked to end"
        return replace(ended, reason="preempted", message=told)

    def _taken_at(self, vm: Vm, host: HostDocker) -> int | None:
        """Return the second since 1970 at which a machine learned that it is taken away."""
        if not vm.spot:
            return None
        try:
            said = host.connection.run(boot.taken(vm.tags[KEY])).split()
        except BackendError:
            return None
        return int(said[0]) if said and said[0].isdigit() else None

    def _pending(self, vm: Vm) -> Instance:
        tags = {key.removeprefix(LABEL): value for key, value in vm.tags.items() if key.startswith(LABEL)}
        return Instance(
            tags["launch"], tags["run"], int(tags["replica"]), int(tags["node"]), int(tags["attempt"]),
            tags.get("spec-hash", ""), Phase.PENDING, message=f"machine {vm.id} boots", machine=vm.id,
            rented=True,
        )  # fmt: skip

    def _renew(self, vm: Vm, host: HostDocker) -> None:
        """Tell a machine to stay up, now and then."""
        last = self._renewed.get(vm.id)
        if last is None or time.monotonic() - last > self._abandoned_s / 16:
            host.connection.run(boot.renew(vm.tags[KEY], lasts_s=self._abandoned_s))
            self._renewed[vm.id] = time.monotonic()

    def _at_once(self, question: Callable[[Vm], Answer], vms: Sequence[Vm]) -> list[Answer]:
        if len(vms) < 2:
            return [question(vm) for vm in vms]
        with ThreadPoolExecutor(min(AT_ONCE, len(vms))) as pool:
            return list(pool.map(question, vms))


def _as_node(host: HostDocker, launch: Launch, seats: Sequence[Seat]) -> Launch:
    return host.as_node(launch, [id for id, _ in seats], [address for _, address in seats])


def _answers(host: HostDocker) -> bool:
    try:
        host.connection.ensure()
    except (Temporary, AuthFailed):
        return False
    return True


def _digest(launch: Launch) -> str:
    """Return what tells a launch's tags from others, "" where it has none."""
    return hashlib.sha256(repr(launch.tags).encode()).hexdigest()[:16] if launch.tags else ""


def _is_such(vm: Vm, rent: Rent) -> bool:
    """Say whether a machine is of the kind that is to be rented, with its disk; any zone does."""
    alike = (vm.instance_type, vm.region, vm.spot) == (rent.instance_type, rent.region, rent.spot)
    return alike and int(vm.tags.get(DISK, "0")) >= rent.disk_bytes


def _is_open(address: str, port: int) -> bool:
    """Say whether a machine listens: a connection that was refused is not tried again for a while."""
    try:
        with socket.create_connection((address, port), timeout=3.0):
            return True
    except OSError:
        return False


def _left(belonging: Belonging) -> Machine:
    """Return what is left over of machines as one that serves nobody: its gang is no launch on record."""
    return Machine(
        belonging.id, belonging.gang, belonging.run, belonging.kind, belonging.region, "unused"
    )  # fmt: skip


def _machine(vm: Vm) -> Machine:
    expires = vm.tags.get(EXPIRES)
    return Machine(
        vm.id, vm.tags.get(LAUNCH, ""), vm.tags.get(LABEL + "run", ""), vm.instance_type, vm.region, vm.state,
        vm.since, datetime.fromisoformat(expires) if expires else None,
    )  # fmt: skip
