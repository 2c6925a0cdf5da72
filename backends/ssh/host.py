"""One host: the Docker backend over a forwarded socket, and what only this host can tell."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network
from typing import Any, Literal

from backends.docker import Docker
from backends.docker import container as containers
from backends.docker.container import CPU, DEVICES, MEMORY
from backends.docker.engine import Endpoint, Engine, Json
from backends.machine import Machine
from backends.ssh.connection import Connection
from backends.ssh.placement import Gang, Room, blocks_taken, node_environment
from backends.ssh.survey import Survey, parse, script
from orchestrator.backend import LABEL, Check, Instance, Launch, Phase
from orchestrator.errors import BackendError, Rejected, Unreachable

NODES = LABEL + "nodes"
"""Label on each node of a gang: the hosts of all its nodes, by rank, separated by spaces."""

CLOCK_S = 60
"""Clocks further apart than this make times in logs and events mislead, and TLS certificates fail."""


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
        self._survey: Survey | None = None
        self.host = connection.host

    # -- what there is ---------------------------------------------------------------------------

    def room(self) -> Room:
        """Return what the host has and what of it is free."""
        info, listing = self._engine.get("/info"), self._listing(everyone=True)
        cpu, memory_bytes, held = containers.held(listing)
        machine = self._inventory()
        devices = machine.accelerators if machine else ()
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
        try:
            self._survey = parse(self.connection.run(script()))
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
        return replace(launch, env=tuple(env.items()), options=options, host_network=True)

    def _body(self, launch: Launch, image: str, secrets: Mapping[str, str]) -> dict[str, Any]:
        body = super()._body(launch, image, secrets)
        body["Labels"] |= {key: value for key, value in launch.options if key == NODES}
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
        return replace(
            found,
            machine=self.host.name,
            address=self.host.internal_ip or self.host.login.hostname,
            ports={port: ("127.0.0.1", led[there]) for port, (_, there) in ports.items()},
        )

    # -- check -----------------------------------------------------------------------------------

    def check(self) -> Sequence[Check]:
        """Look at the connection, the engine, the machine, its clock and the health of its GPUs."""
        before = time.time()
        try:
            self._machine = None  # a check looks anew
            survey = self.survey()
            after = time.time()
            found = [*super().check(), *_check_health(survey), *self._check_network()]
        except BackendError as error:
            found = [Check("answers", False, error.what, error.fix or "")]
        else:
            found.append(_check_clock(survey.clock_s, before, after))
        return [replace(one, what=f"{self.host.name}: {one.what}") for one in found]

    def _check_network(self) -> list[Check]:
        if self._network is None:
            return []
        try:
            return [Check("is in the network", True, self.address())]
        except Rejected as error:
            return [Check("is in the network", False, error.what, error.fix or "")]


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
    fix = "take its runs elsewhere and restart the machine; replace the GPU if it comes again"
    ill = [Check("accelerators are well", False, f"{key}: {what}", fix) for key, what in survey.ill]
    return ill or [Check("accelerators are well", True, f"{len(survey.machine.accelerators)} looked at")]


def _check_clock(clock_s: int, before: float, after: float) -> Check:
    apart_s = max(0.0, before - clock_s - 1, clock_s - after)
    detail = "" if apart_s < CLOCK_S else f"{apart_s:.0f} s from this machine's"
    return Check("clock is right", apart_s < CLOCK_S, detail, "set up NTP on both (timedatectl)")
