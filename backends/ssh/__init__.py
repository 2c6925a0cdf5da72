"""SSH hosts: Docker on machines of one's own, reached over one connection each."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from threading import Event as Flag
from typing import Any, Literal, TypeVar
from urllib.parse import quote

from backends.machine import Device
from backends.ssh.connection import Connection
from backends.ssh.host import HostDocker, listen
from backends.ssh.memory import Claim, Memory
from backends.ssh.options import ENGINE_SOCKET, Reader
from backends.ssh.placement import Gang, Room, candidates, gang_name, gang_of, spread
from orchestrator.backend import (
    Can,
    Check,
    Host,
    Instance,
    Launch,
    LogLine,
    Offer,
    Phase,
    Progress,
    Volume,
)
from orchestrator.errors import BackendError, NoCapacity, NotFound, Rejected

AT_ONCE = 32
"""Hosts that are asked at the same time."""

Answer = TypeVar("Answer")


class Ssh:
    """Runs launches on the Docker engines of machines that are reached over SSH.

    Args:
        name: The backend's name in the configuration.
        hosts: Names, or mappings with ``hostname``, ``port``, ``user``, ``identity_file``,
            ``internal_ip``, ``blocks``, ``proxy_jump`` and ``engine_socket``.
        user: Who logs in; default: what ssh's own configuration says.
        port: The port of all hosts that name none.
        identity_file: The private key's file; default: the agent's keys and ssh's usual files.
        proxy_jump: A machine on the way: ``user@host:port``, or a mapping as for hosts.
        network: The network between the hosts, such as ``10.0.0.0/24``.
        blocks: Into how many equal parts each host is divided; default: it is shared freely.
        host_keys: ``strict`` takes only keys in known_hosts, ``accept-new`` those of hosts that
            were never seen before as well; a changed key is refused by both.
        ssh_config: A file read in place of the user's ssh configuration.
        engine_socket: Where Docker listens on the hosts.
        namespace: Begins the names of containers and volumes.
        default_image: Runs commands of specs that name no image.
        pull: ``missing``, ``always`` or ``never``, as for Docker.
        timeout_s: How long one answer of an engine may take.
        held: Hosts by name on which nothing new starts, each with ``reason`` and ``leave``: how what is
            there is to go elsewhere.
        env: Variables of everything that runs there; a launch's own go first.

    Raises:
        ConfigError: an option has no such value.
    """

    def __init__(
        self,
        name: str = "ssh",
        *,
        hosts: Sequence[str | Mapping[str, Any]] = (),
        user: str | None = None,
        port: int | None = None,
        identity_file: str | None = None,
        proxy_jump: str | Mapping[str, Any] | None = None,
        network: str | None = None,
        blocks: int | None = None,
        host_keys: Literal["strict", "accept-new"] = "strict",
        ssh_config: str | None = None,
        engine_socket: str = ENGINE_SOCKET,
        namespace: str = "modelyard",
        default_image: str | None = None,
        pull: Literal["missing", "always", "never"] = "missing",
        timeout_s: float = 30.0,
        held: Mapping[str, Mapping[str, str]] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        read = Reader(name)
        shared: dict[str, object] = {"user": user, "port": port, "identity_file": identity_file}
        shared |= {"proxy_jump": proxy_jump, "blocks": blocks, "engine_socket": engine_socket}
        found = read.hosts(hosts, shared)
        holds = read.held(held or {})
        every = {
            host.name: HostDocker(
                Connection(
                    host,
                    backend=name,
                    host_keys=read.host_keys(host_keys),
                    ssh_config=read.path("ssh_config", ssh_config),
                ),
                backend=name,
                network=read.network(network),
                namespace=namespace,
                default_image=default_image,
                pull=pull,
                timeout_s=timeout_s,
                hold=holds.get(host.name),
                shares=True,
            )
            for host in found
        }
        can = {Can.IMAGES, Can.PORTS, Can.VOLUMES, Can.MOUNTS, Can.EXEC, Can.LIMITS}
        can |= {Can.PRIVILEGED, Can.RESTART, Can.NODES} | ({Can.BARE} if default_image else set())
        self._take(name, every, namespace=namespace, can=can, env=read.env(env or {}))

    def _take(
        self,
        name: str,
        hosts: Mapping[str, HostDocker],
        *,
        namespace: str,
        can: Iterable[Can],
        env: Mapping[str, str],
    ) -> None:
        """Begin with these hosts."""
        self.name = name
        self.can = frozenset(can)
        self.env = env
        self._hosts = dict(hosts)
        self._memory = Memory(_state_folder() / quote(name, safe="") / namespace)
        self._seen_on: dict[str, str] = {}
        self._unheard: frozenset[str] = frozenset()

    # -- offers ----------------------------------------------------------------------------------

    def offers(self) -> Sequence[Offer]:
        """Return what each host has free, one offer for each kind of accelerator; silent hosts none."""
        rooms = self._heard(lambda host: (host, host.room()))
        found = [offer for host, room in rooms for offer in self._offers_of(host, room)]
        return [replace(one, available=sum(_holds(other, one) for other in found)) for one in found]

    def _offers_of(self, host: HostDocker, room: Room) -> list[Offer]:
        survey = host.survey()
        machine, unfit = survey.machine, host.unfit()
        whole = Offer(
            backend=self.name,
            instance_type=room.host,
            cpu=min(room.free_cpu, room.cpu * room.share),
            memory_bytes=min(room.free_memory_bytes, int(room.memory_bytes * room.share)),
            disk_bytes=machine.disk_bytes,
            arch=machine.arch,
            divisible=True,
            fleet=self.name,
            unfit=unfit.why if unfit else "",
        )
        kinds: dict[tuple[str, int], list[Device]] = {}
        for device in room.devices:
            kinds.setdefault((device.name, device.vram_bytes), []).append(device)
        found = [_with_accelerators(whole, room, kind) for kind in kinds.values()] or [whole]
        return found + [_ill_offer(whole, device, survey.ills_of(device)) for device in survey.ill_devices()]

    # -- its machines ----------------------------------------------------------------------------

    def host_names(self) -> Sequence[str]:
        """Return what its machines are called, in the order of the configuration; asks none of them."""
        return list(self._hosts)

    def unheard(self) -> frozenset[str]:
        """Return the hosts of which nothing was known when all were last asked."""
        return self._unheard

    def hosts(self) -> Sequence[Host]:
        """Return every machine in the order of the configuration; one that does not answer is ``silent``."""
        answers = self._ask(lambda host: (host.described(), host.instances()))
        found = []
        for name, answer in answers.items():
            if isinstance(answer, BackendError):
                found.append(self._silent(name, answer))
                continue
            host, there = answer
            self._memory.keep(name, there)  # it has answered: should it fall silent, its last word is known
            found.append(host)
        return found

    def _silent(self, host: str, error: BackendError) -> Host:
        """Return a host that does not answer, with what can be done about it."""
        if self._memory.last(host) is not None:
            return Host(host, "silent", error.what, error.fix or "")
        fix = f"{error.fix}; or take it out of the hosts".removeprefix("None; or ")
        return Host(host, "silent", f"{error.what}; it has never answered", fix)

    # -- the life of a launch --------------------------------------------------------------------

    def start(self, launch: Launch, *, secrets: Mapping[str, str], progress: Progress) -> Instance:
        """Start ``launch`` on the host it was sent to before, or on the best one with room."""
        with self._memory.claim(launch.name) as claim:
            holder = self._holder(launch.name)
            if holder is not None:
                return holder.start(launch, secrets=secrets, progress=progress)
            try:
                return self._start_somewhere(launch, claim, secrets, progress)
            except (NoCapacity, Rejected):
                claim.forget()  # it is nowhere
                raise

    def _start_somewhere(
        self, launch: Launch, claim: Claim, secrets: Mapping[str, str], progress: Progress
    ) -> Instance:
        gang = gang_of(launch)
        hosts = self._gang(launch, *gang).hosts if gang else ()
        chosen = deque([hosts[launch.node]] if hosts else self._choose(launch))
        while True:
            host = self._hosts[chosen.popleft()]
            claim.write(host.host.name)  # first the record, then the deed
            try:
                wanted = self._as_node(host, launch, hosts) if hosts else launch
                return host.start(wanted, secrets=secrets, progress=progress)
            except NoCapacity:
                if not chosen:
                    raise

    def instances(self) -> Sequence[Instance]:
        """Return every launch of our namespace on every host, ordered by name.

        A host that does not answer is taken at its last word, which stands in ``message``: nothing
        on it seems to have changed, and nothing follows.

        Raises:
            Unreachable: none of them answers, and of one nobody remembers its last word.
        """
        answers = self._ask(lambda host: host.instances())
        silent = {name: answer for name, answer in answers.items() if isinstance(answer, BackendError)}
        unheard = [name for name in silent if self._memory.last(name) is None]
        if unheard and len(silent) == len(self._hosts):
            raise silent[unheard[0]]
        self._unheard = frozenset(unheard)
        found: dict[str, Instance] = {}
        for name, answer in answers.items():
            if isinstance(answer, BackendError):
                said = self._remembered(name, answer)
            else:
                said = answer
                self._memory.keep(name, said)
            for one in said:
                self._seen_on[one.name] = name
                if one.name not in found or found[one.name].phase is Phase.EXITED:
                    found[one.name] = one
        return sorted(found.values(), key=lambda one: one.name)

    def stop(self, name: str, *, grace_s: float) -> None:
        """Ask the launch to end, and kill it after ``grace_s``; what ended or is gone stays so."""
        holder = self._holder(name)
        if holder is not None:
            holder.stop(name, grace_s=grace_s)

    def remove(self, name: str) -> None:
        """Delete the launch where it is, and forget where it was sent."""
        with self._memory.claim(name) as claim:
            holder = self._holder(name)
            if holder is not None:
                holder.remove(name)
            self._seen_on.pop(name, None)
            claim.forget()
        if (gang := gang_name(name)) is not None:
            with self._memory.claim(gang) as claim:
                claim.forget()

    def logs(
        self, name: str, *, follow: bool = False, since: datetime | None = None, tail: int | None = None
    ) -> Iterator[LogLine]:
        """Yield the launch's output from the host it is on."""
        return self._must_find(name).logs(name, follow=follow, since=since, tail=tail)

    def execute(self, name: str, command: Sequence[str], *, tty: bool) -> int:
        """Run ``command`` in the container on this process's terminal; return its exit code."""
        return self._must_find(name).execute(name, command, tty=tty)

    def watch(self, closed: Flag) -> Iterator[str]:
        """Yield the names of launches that the hosts report on; "" after each (re)connection."""
        heard: queue.Queue[str] = queue.Queue()
        threads = [
            threading.Thread(target=listen, args=(host, closed, heard.put), daemon=True)
            for host in self._hosts.values()
        ]
        for thread in threads:
            thread.start()
        while not closed.is_set():
            try:
                yield heard.get(timeout=0.2)
            except queue.Empty:
                continue
        for thread in threads:
            thread.join()

    # -- volumes ---------------------------------------------------------------------------------

    def create_volume(self, name: str, *, size_bytes: int | None) -> None:
        """Make a named volume on one of the hosts, or find it; launches that mount it go there."""
        holder = self._volume_holder(name)
        if holder is None:
            answers = self._ask(lambda host: host.has_volume(name))
            answering = [host for host, answer in answers.items() if not isinstance(answer, BackendError)]
            if not answering:
                raise self._no_hosts()
            holder = self._hosts[spread(name, answering)[0]]
        holder.create_volume(name, size_bytes=size_bytes)

    def volumes(self) -> Sequence[Volume]:
        """Return the named volumes of our namespace on the hosts that answer, ordered by name."""
        found = (one for volumes in self._heard(lambda host: host.volumes()) for one in volumes)
        return sorted(found, key=lambda volume: volume.name)

    def delete_volume(self, name: str) -> None:
        """Delete a named volume where it is; one that a container holds is refused."""
        holder = self._volume_holder(name)
        if holder is not None:
            holder.delete_volume(name)

    # -- check -----------------------------------------------------------------------------------

    def check(self) -> Sequence[Check]:
        """Look at every host: connection, engine, disk, clock, network and accelerators."""
        if not self._hosts:
            return [Check("hosts are named", False, "none", f"give hosts to backend '{self.name}'")]
        answers = self._ask(lambda host: host.check())
        found = (one for one in answers.values() if not isinstance(one, BackendError))
        return [check for checks in found for check in checks]

    # -- where things are ------------------------------------------------------------------------

    def _ask(
        self, question: Callable[[HostDocker], Answer], hosts: Iterable[str] | None = None
    ) -> dict[str, Answer | BackendError]:
        """Return every host's answer, or the error in its place; all are asked at the same time."""

        def ask(name: str) -> Answer | BackendError:
            try:
                return question(self._hosts[name])
            except BackendError as error:
                return error

        names = list(self._hosts if hosts is None else hosts)
        if len(names) < 2:
            return {name: ask(name) for name in names}
        with ThreadPoolExecutor(min(AT_ONCE, len(names))) as pool:
            return dict(zip(names, pool.map(ask, names), strict=True))

    def _heard(self, question: Callable[[HostDocker], Answer]) -> list[Answer]:
        """Return the answers of the hosts that gave one; raise where none did."""
        answers = self._ask(question)
        heard = [one for one in answers.values() if not isinstance(one, BackendError)]
        if not heard:
            for error in answers.values():
                assert isinstance(error, BackendError)
                raise error
        return heard

    def _remembered(self, host: str, error: BackendError) -> Sequence[Instance]:
        """Return what a silent host said last; nothing of one that was never heard."""
        last = self._memory.last(host) or ()
        told, since = f"{error.what}: as last seen", self._memory.heard_at(host)
        return [
            one if one.phase is Phase.EXITED else replace(one, message=told, silent_since=since)
            for one in last
        ]

    def _holder(self, launch: str) -> HostDocker | None:
        """Return the host that holds a launch, or None when none can.

        Raises:
            Unreachable: a host that may hold it does not answer.
        """
        likely = self._hosts.get(self._seen_on.get(launch, ""))
        if likely is not None and self._ask(lambda host: host.holds(launch), [likely.host.name]) == {
            likely.host.name: True
        }:
            return likely
        answers = self._ask(lambda host: host.holds(launch))
        for name, answer in answers.items():
            if answer is True:
                self._seen_on[launch] = name
                return self._hosts[name]
        for name, answer in answers.items():
            if isinstance(answer, BackendError) and self._memory.may_hold(name, launch):
                raise answer
        return None

    def _must_find(self, launch: str) -> HostDocker:
        holder = self._holder(launch)
        if holder is None:
            raise NotFound(f"no launch '{launch}' on backend '{self.name}'")
        return holder

    def _volume_holder(self, name: str) -> HostDocker | None:
        """Return the host that a volume is on; a silent host may have it, so that it is asked for."""
        answers = self._ask(lambda host: host.has_volume(name))
        for host, answer in answers.items():
            if answer is True:
                return self._hosts[host]
        for answer in answers.values():
            if isinstance(answer, BackendError):
                raise answer
        return None

    # -- where things go -------------------------------------------------------------------------

    def _choose(self, launch: Launch) -> list[str]:
        """Return the hosts to try, best first.

        Raises:
            NoCapacity: none has room now.
            Rejected: none will ever have, or a volume it mounts is on none.
        """
        answers = self._ask(lambda host: host.open_room(), self._allowed(launch))
        rooms = [room for room in answers.values() if not isinstance(room, BackendError)]
        found = candidates(rooms, launch.resources)
        if found:
            return found
        raise self._no_room(launch, rooms, answers)

    def _no_room(
        self, launch: Launch, rooms: Sequence[Room], answers: Mapping[str, Room | BackendError]
    ) -> BackendError:
        silent = [one for one in answers.values() if isinstance(one, BackendError)]
        if not rooms:
            closed = [one for one in silent if isinstance(one, NoCapacity)]
            return next(iter([*closed, *silent]), None) or self._no_hosts()
        wanted = launch.resources
        asked = f"{wanted.accelerators} × {wanted.accelerator or wanted.vendor or 'accelerator'}"
        what = f"launch '{launch.name}'" + (f" with {asked}" if wanted.accelerators else "")
        if silent or any(room.could(wanted) for room in rooms):
            return NoCapacity(
                f"{what}: no host has room now", backend=self.name, fix="stop a run, or wait for one"
            )
        return Rejected(f"{what}: no host is large enough", backend=self.name, fix="see: offers")

    def _no_hosts(self) -> BackendError:
        return Rejected(f"backend '{self.name}' has no hosts", backend=self.name, fix="give it hosts")

    def _allowed(self, launch: Launch) -> list[str]:
        """Return the hosts that have every named volume the launch mounts."""
        allowed = list(self._hosts)
        for mount in launch.mounts:
            if mount.kind != "volume":
                continue
            holder = self._volume_holder(mount.source)
            if holder is None:
                raise Rejected(
                    f"no volume '{mount.source}' on backend '{self.name}'",
                    backend=self.name,
                    fix=f"apply a spec with type: volume and name: {mount.source} first",
                )
            if holder.host.name not in allowed:
                raise Rejected(
                    f"the volumes of launch '{launch.name}' are on different hosts",
                    backend=self.name,
                    fix="a volume is on one host: mount volumes of one host only",
                )
            allowed = [holder.host.name]
        return allowed

    def _gang(self, launch: Launch, gang: Gang, nodes: int) -> Gang:
        """Return the gang with its hosts: all of them are decided before the first node starts."""
        with self._memory.claim(gang.name) as claim:
            hosts = claim.read() or next(filter(None, self._heard(lambda host: host.gang_hosts(gang))), ())
            if len(hosts) != nodes or not set(hosts) <= self._hosts.keys():
                hosts = tuple(self._choose(launch)[:nodes])
                if len(hosts) < nodes:
                    raise NoCapacity(
                        f"launch '{launch.name}': {len(hosts)} of {nodes} hosts have room now",
                        backend=self.name,
                        fix="stop a run, or wait for one",
                    )
                hosts = tuple(sorted(hosts, key=list(self._hosts).index))
            claim.write(*hosts)
            return replace(gang, hosts=hosts)

    def _as_node(self, host: HostDocker, launch: Launch, hosts: Sequence[str]) -> Launch:
        addresses = [self._hosts[name].address() for name in hosts]
        return host.as_node(launch, hosts, addresses)


def _state_folder() -> Path:
    import platformdirs  # pulled in where a backend of this type is configured

    return platformdirs.user_state_path("modelyard") / "ssh"


def _with_accelerators(whole: Offer, room: Room, kind: Sequence[Device]) -> Offer:
    first = kind[0]
    return replace(
        whole,
        accelerator=first.name,
        vendor=first.vendor,
        count=room.free_of(kind),
        vram_bytes=first.vram_bytes,
        compute_capability=first.compute_capability,
    )


def _ill_offer(whole: Offer, device: Device, why: str) -> Offer:
    """Return the offer of one accelerator that is not well, so that a plan says why it is left alone."""
    return replace(
        whole,
        accelerator=device.name,
        vendor=device.vendor,
        count=1,
        vram_bytes=device.vram_bytes,
        compute_capability=device.compute_capability,
        unfit=whole.unfit or f"{device.key}: {why}",
    )


def _holds(other: Offer, one: Offer) -> bool:
    """Say whether ``other`` has all that ``one`` has: so many machines there are for its nodes."""
    return (
        (other.accelerator, other.vram_bytes, other.arch) == (one.accelerator, one.vram_bytes, one.arch)
        and not other.unfit
        and other.count >= one.count
        and other.cpu >= one.cpu
        and other.memory_bytes >= one.memory_bytes
    )
