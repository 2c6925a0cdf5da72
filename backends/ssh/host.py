"""One host: the Docker backend over a forwarded socket, and what only this host can tell."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Network, IPv6Network
from threading import Event as Flag
from typing import Any, Literal

from backends.docker import Docker
from backends.docker import container as containers
from backends.docker.container import CPU, DEVICES, MEMLOCK, MEMORY
from backends.docker.engine import Endpoint, Engine, Json
from backends.machine import Machine
from backends.ssh.connection import Connection
from backends.ssh.options import Hold
from backends.ssh.placement import Gang, Room, blocks_taken, node_environment
from backends.ssh.survey import Survey, parse, script
from orchestrator.backend import LABEL, Check, Host, HostDevice, Instance, Launch, Phase, Progress
from orchestrator.errors import BackendError, NoCapacity, Rejected, Unreachable
from orchestrator.frozen import frozen
from orchestrator.units import format_bytes

NODES = LABEL + "nodes"
"""Label on each node of a gang: the hosts of all its nodes, by rank, separated by spaces."""

FABRIC = LABEL + "fabric"
"""Label on a node that was given the machine's network cards for RDMA: their folder of device files."""

FABRIC_FOLDER = "/dev/infiniband"
"""Where InfiniBand's, RoCE's and EFA's cards are (rdma-core, Documentation/udev.md)."""

CLOCK_S = 60
"""Clocks further apart than this make times in logs and events mislead, and TLS certificates fail."""


CLOCK_FIX = "set up NTP on both (timedatectl)"
ILL_FIX = "take its runs elsewhere and restart the machine; replace the GPU if it comes again"

GOING_DOWN = timedelta(minutes=3)
"""How long before its engine comes up again a launch may have ended for a restart to be the reason:
systemd gives a service 90 s to stop, and a server's firmware takes its time."""

FOUND_DEAD = 255
"""The exit code that an engine gives to containers that it finds dead when it comes up."""

FULL_BYTES = 2**30
"""Less free disk than this, and an engine fails in the middle of what it does: images, layers and logs."""


class TunnelledEngine(Engine):
    """A Docker engine behind a connection, which is opened when it is needed.

    Args:
        connection: The way there.
        backend: The backend's name, for errors.
        timeout_s: How long one answer may take.
    """

    def __init__(self, connection: Connection, *, backend: str, timeout_s: float) -> None:
        super().__init__(Endpoint(f"unix://{connection.socket}"), backend=backend, timeout_s=timeout_s)
        self._connection = connection

    def _require_spoken(self) -> None:
        self._connection.ensure()

    def _not_reached(self, error: BaseException) -> BackendError:
        return self._connection.why_silent(super()._not_reached(error).what)


class HostDocker(Docker):
    """Runs launches on the Docker engine of one host.

    Args:
        connection: The way to the host.
        backend: The backend's name in the configuration.
        network: The network between the hosts, where it is stated.
        namespace: As for Docker.
        default_image: As for Docker.
        pull: As for Docker.
        timeout_s: As for Docker.
        hold: Why nothing new starts there, None where something may.
        shares: Whether launches of several runs, or control planes, are there side by side.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        backend: str,
        network: IPv4Network | IPv6Network | None,
        namespace: str,
        default_image: str | None,
        pull: Literal["missing", "always", "never"],
        timeout_s: float,
        hold: Hold | None = None,
        shares: bool = False,
    ) -> None:
        super().__init__(
            backend,
            namespace=namespace,
            host=f"unix://{connection.socket}",
            default_image=default_image,
            pull=pull,
            timeout_s=timeout_s,
            machine=self._look_at_machine,
        )
        self._engine = TunnelledEngine(connection, backend=backend, timeout_s=timeout_s)
        self.connection = connection
        self._network = network
        self._hold = hold
        self._shares = shares
        self._survey: Survey | None = None
        self._fell: dict[str, bool] = {}
        self.host = connection.host

    # -- what there is ---------------------------------------------------------------------------

    def open_room(self) -> Room:
        """Return what the host has and what of it is free, where something may start there.

        Raises:
            NoCapacity: it is held back, or not well.
        """
        room = self.room()
        if (unfit := self.unfit()) is not None:
            what = f"host '{self.host.name}' takes no launches: {unfit.why}"
            raise NoCapacity(what, backend=self.name, fix=unfit.fix)
        return room

    def unfit(self) -> Trouble | None:
        """Say why nothing may start here, as far as is known without asking; None where something may."""
        if self._hold is not None:
            host = self.host.name
            return Trouble(str(self._hold), f"modelyard fleet uncordon {self.name} {host}")
        survey = self.survey()
        if survey.machine.disk_bytes < FULL_BYTES:
            free = format_bytes(survey.machine.disk_bytes)
            return Trouble(f"its disk is full: {free} free", "make room there: docker system prune")
        return None

    def described(self) -> Host:
        """Return what the host is and how it is."""
        room, survey, unfit = self.room(), self.survey(), self.unfit()
        trouble = unfit or next(iter(troubles(survey)), None)
        state: Literal["ready", "cordoned", "draining", "unwell"] = "ready"
        if self._hold is not None:
            state = "draining" if self._hold.leave else "cordoned"
        elif unfit is not None:
            state = "unwell"
        taken = room.held - {device.key for device in survey.ill_devices()}
        return Host(
            self.host.name,
            state,
            why=trouble.why if trouble else "",
            fix=trouble.fix if trouble else "",
            cpu=room.cpu,
            free_cpu=room.free_cpu,
            memory_bytes=room.memory_bytes,
            free_memory_bytes=room.free_memory_bytes,
            disk_bytes=survey.machine.disk_bytes,
            devices=tuple(
                HostDevice(one.key, one.name, one.key in taken, survey.ills_of(one)) for one in room.devices
            ),
            blocks=room.blocks,
            blocks_held=room.blocks_held,
        )

    def room(self) -> Room:
        """Return what the host has and what of it is free; what is not well is not."""
        info, listing = self._engine.get("/info"), self._listing(everyone=True)
        cpu, memory_bytes, held = containers.held(listing)
        machine = self._inventory()
        devices = machine.accelerators if machine else ()
        held = held | {device.key for device in self.survey().ill_devices()}
        whole = Room(
            host=self.host.name,
            cpu=info["NCPU"],
            memory_bytes=info["MemTotal"],
            free_cpu=max(0.0, info["NCPU"] - cpu),
            free_memory_bytes=max(0, info["MemTotal"] - memory_bytes),
            devices=devices,
            held=held,
            blocks=self.host.blocks,
        )
        if whole.blocks is None:
            return whole
        return replace(
            whole, blocks_held=sum(_blocks_of(one, whole) for one in containers.active_labels(listing))
        )

    def survey(self) -> Survey:
        """Return what the host says of itself, as it was read at most a minute ago."""
        self._inventory()
        assert self._survey is not None  # made together with the inventory
        return self._survey

    def address(self) -> str:
        """Return the host's address among the others.

        Raises:
            Rejected: it has none in the stated network.
        """
        found = self.host.internal_ip or self.survey().address_in(self._network)
        if found is None:
            raise Rejected(
                f"host '{self.host.name}' has no address in {self._network}",
                backend=self.name,
                fix="correct network, or give the host its internal_ip",
            )
        return found

    def holds(self, launch: str) -> bool:
        """Say whether the launch is here, running or ended."""
        return self._find(launch) is not None

    def has_volume(self, name: str) -> bool:
        """Say whether a named volume of our namespace is here."""
        return self._engine.get(f"/volumes/{self._volume_name(name)}") is not None

    def keep_on(self, name: str, device: str) -> None:
        """Keep a named volume on a disk of the machine, which the engine mounts while something uses it."""
        options = {"type": "ext4", "device": device}
        full = self._volume_name(name)
        found = self._engine.get(f"/volumes/{full}")
        with self._engine.client() as client:
            if found is not None and found.get("Options") != options:
                client.remove_volume(full)
            labels = {containers.NAMESPACE: self._namespace, containers.VOLUME: name}
            client.create_volume(full, driver="local", driver_opts=options, labels=labels)

    def gang_hosts(self, gang: Gang) -> tuple[str, ...]:
        """Return the hosts of a gang as a node of it here has them on its label; empty without one."""
        wanted = {LABEL + "run": gang.run, LABEL + "replica": str(gang.replica)}
        wanted[LABEL + "attempt"] = str(gang.attempt)
        for one in self._listing():
            if wanted.items() <= one["Labels"].items() and NODES in one["Labels"]:
                return tuple(one["Labels"][NODES].split())
        return ()

    def listening(self) -> frozenset[int]:
        """Return the TCP ports of the host on which somebody listens (proc(5), state 0A)."""
        rows = (
            line.split()
            for line in self.connection.run("cat /proc/net/tcp /proc/net/tcp6 2>/dev/null").splitlines()
        )
        listed = (row[1] for row in rows if len(row) > 3 and row[3] == "0A")
        return frozenset(int(address.rpartition(":")[2], 16) for address in listed)

    def _look_at_machine(self) -> Machine:
        before = time.time()
        try:
            self._survey = parse(self.connection.run(script())).asked(before, time.time())
        except ValueError as error:
            raise Unreachable(f"host '{self.host.name}': {error}", backend=self.name) from error
        return self._survey.machine

    # -- launches --------------------------------------------------------------------------------

    def as_node(self, launch: Launch, hosts: Sequence[str], addresses: Sequence[str]) -> Launch:
        """Return a gang's launch with where its nodes are, on the network of its host.

        Collectives open connections on ports of their own choice, which no list could publish.

        Raises:
            Rejected: a port that it names is taken here.
        """
        if not self.holds(launch.name):
            taken = self.listening() & {port.container for port in launch.ports}
            if taken:
                raise Rejected(
                    f"port {min(taken)} of host '{self.host.name}' is taken by another program",
                    backend=self.name,
                    fix="choose another port: nodes of one replica use their hosts' own network",
                )
        env = {**node_environment(addresses), **dict(launch.env)}
        options = (*launch.options, (NODES, " ".join(hosts)))
        if self.connection.run(f"ls -d {FABRIC_FOLDER} 2>/dev/null || :").strip():
            options = (*options, (FABRIC, FABRIC_FOLDER))
        return replace(launch, env=tuple(env.items()), options=options, host_network=True)

    def start(self, launch: Launch, *, secrets: Mapping[str, str], progress: Progress) -> Instance:
        """Start ``launch`` here, as Docker does; what goes wrong names the host."""
        try:
            return super().start(launch, secrets=secrets, progress=progress)
        except BackendError as error:
            if self.host.name not in error.what:
                error.what = f"host '{self.host.name}': {error.what}"
            raise

    def _unusable(self) -> frozenset[str]:
        return frozenset(device.key for device in self.survey().ill_devices())

    def _meets_another(self, container: Json) -> bool:
        """Say whether the container has to step back: another holds what is its own, or the host is full.

        Two control planes may have found the same room free. As with accelerators, whoever sees
        after creating that all of them are more than there is steps back.
        """
        return super()._meets_another(container) or (self._shares and self._is_overfull())

    def _create(self, launch: Launch, secrets: Mapping[str, str], progress: Progress) -> bool:
        if self._shares and not self.room().fits(launch.resources):
            raise NoCapacity(
                f"host '{self.host.name}' has no room for launch '{launch.name}' now",
                backend=self.name,
                fix="stop a run, or wait for one",
            )
        return super()._create(launch, secrets, progress)

    def _is_overfull(self) -> bool:
        room = self.room()
        if room.blocks is not None and room.blocks_held > room.blocks:
            return True
        cpu, memory_bytes, _ = containers.held(self._listing(everyone=True))
        return cpu > room.cpu or memory_bytes > room.memory_bytes

    def _body(self, launch: Launch, image: str, secrets: Mapping[str, str]) -> dict[str, Any]:
        body = super()._body(launch, image, secrets)
        told = {key: value for key, value in launch.options if key in (NODES, FABRIC)}
        body["Labels"] |= told
        if FABRIC in told:  # the engine takes a folder for all device files in it
            host, folder = body["HostConfig"], told[FABRIC]
            device = {"PathOnHost": folder, "PathInContainer": folder, "CgroupPermissions": "rwm"}
            host["Devices"] = [*host.get("Devices", ()), device]
            if self._raises_limits and not host.get("Ulimits"):
                host["Ulimits"] = [MEMLOCK]  # cards read and write pinned memory
        return body

    def instances(self) -> Sequence[Instance]:
        """Return every launch of our namespace on this host; ports of those that are gone are closed."""
        found = super().instances()
        kept = {here for one in found for _, here in one.ports.values()}
        self.connection.keep_only(kept, owner=self._namespace)
        return found

    def _instance(self, container: Json) -> Instance:
        """Return the instance, with its ports led to this machine."""
        found = super()._instance(container)
        ports = found.ports if found.phase is Phase.RUNNING else {}
        led = self.connection.lead_to([there for _, there in ports.values()], owner=self._namespace)
        if found.reason == "error" and self._fell_with_its_host(found):
            found = replace(found, reason="lost", message="its host, or the engine there, was restarted")
        return replace(
            found,
            machine=self.host.name,
            address=self.host.internal_ip or self.host.login.hostname,
            leave=self._hold.leave if self._hold else "",
            ports={port: ("127.0.0.1", led[there]) for port, (_, there) in ports.items()},
        )

    def _fell_with_its_host(self, ended: Instance) -> bool:
        """Say whether a launch ended because its host, or the engine there, went down.

        The engine's socket is made when it starts. A launch that was up before, and ended just before
        or as it was made, had no say in it: an engine that goes down in good order stops its
        containers, and one that comes up gives those it finds dead the exit code 255.
        """
        if ended.name not in self._fell:
            self._fell[ended.name] = fell_with(ended, self._engine_since())
        return self._fell[ended.name]

    def _engine_since(self) -> datetime | None:
        try:
            said = self.connection.run(f"stat -c %.9Y {shlex.quote(self.host.engine_socket)} 2>/dev/null")
        except Unreachable:
            raise
        except BackendError:
            return None  # no such command there, or none at all for this user
        return made_at(said)

    # -- check -----------------------------------------------------------------------------------

    def check(self) -> Sequence[Check]:
        """Look at the connection, the engine, the machine, its clock and the health of its GPUs."""
        try:
            self._machine = None  # a check looks anew
            survey = self.survey()
            found = [*super().check(), *_check_health(survey), *self._check_network(), _check_clock(survey)]
        except BackendError as error:
            found = [Check.failed("answers", error)]
        return [replace(one, what=f"{self.host.name}: {one.what}") for one in found]

    def _check_network(self) -> list[Check]:
        if self._network is None:
            return []
        try:
            return [Check("is in the network", True, self.address())]
        except Rejected as error:
            return [Check.failed("is in the network", error)]


def _blocks_of(labels: Mapping[str, str], room: Room) -> int:
    devices = [key for key in labels.get(DEVICES, "").split(",") if key]
    return blocks_taken(
        room.blocks or 1,
        (float(labels.get(CPU, 0)), room.cpu),
        (int(labels.get(MEMORY, 0)), room.memory_bytes),
        (len(devices), len(room.devices)),
    )


def _check_health(survey: Survey) -> list[Check]:
    if not survey.machine.accelerators:
        return []
    ill = [Check("accelerators are well", False, f"{key}: {what}", ILL_FIX) for key, what in survey.ill]
    return ill or [Check("accelerators are well", True, f"{len(survey.machine.accelerators)} looked at")]


def _check_clock(survey: Survey) -> Check:
    detail = "" if survey.apart_s < CLOCK_S else f"{survey.apart_s:.0f} s from this machine's"
    return Check("clock is right", survey.apart_s < CLOCK_S, detail, CLOCK_FIX)


def made_at(said: str) -> datetime | None:
    """Return when a file was made by the seconds that ``stat`` tells, None where it tells none.

    Not to the second alone: an engine may come up in the one in which a launch started. BusyBox has no
    fractions, and leaves them out.

    >>> made_at("1795953600.250000000\\n") - made_at("1795953600\\n"), made_at("")
    (datetime.timedelta(microseconds=250000), None)
    """
    seconds, _, fraction = said.strip().partition(".")
    if not seconds.isdecimal() or not (fraction or "0").isdecimal():
        return None
    return datetime.fromtimestamp(int(seconds), UTC) + timedelta(microseconds=int(fraction.ljust(6, "0")[:6]))


def fell_with(ended: Instance, engine_since: datetime | None) -> bool:
    """Say whether a launch ended because its engine went down, which came up at ``engine_since``."""
    started, finished = ended.started_at, ended.finished_at
    if engine_since is None or started is None or finished is None or started >= engine_since:
        return False
    if finished < engine_since:
        return engine_since - finished < GOING_DOWN
    return ended.exit_code == FOUND_DEAD and finished - engine_since < GOING_DOWN


@frozen
class Trouble:
    """What is wrong with a host, and what to do about it."""

    why: str
    fix: str


def troubles(survey: Survey) -> Iterator[Trouble]:
    """Yield what is wrong with a host on which launches may start all the same.

    >>> [each.why for each in troubles(Survey(Machine(1, 1, 1, "x86"), apart_s=600.0))]
    ["its clock is 600 s from this machine's"]
    """
    for key, what in survey.ill:
        yield Trouble(f"{key}: {what}", ILL_FIX)
    for fault in survey.machine.faults:
        yield Trouble(fault, "install the vendor's driver there and restart it, or see the vendor's tool")
    if survey.apart_s >= CLOCK_S:
        yield Trouble(f"its clock is {survey.apart_s:.0f} s from this machine's", CLOCK_FIX)


def listen(host: HostDocker, closed: Flag, tell: Callable[[str], None]) -> None:
    """Hand on what one host's engine reports; one that is gone or refuses us is tried again after a while."""
    while not closed.is_set():
        try:
            for name in host.watch(closed):
                tell(name)
        except BackendError:
            closed.wait(10.0)
