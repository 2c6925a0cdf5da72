"""Docker: containers of one engine, with its labels as the record of truth."""

from __future__ import annotations

import contextlib
import math
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from threading import Event as Flag
from typing import Any, Literal

from backends.devices import choose, of_kind, offer_of
from backends.docker import container as containers
from backends.docker.container import LAUNCH, NAMESPACE, VOLUME, to_instance
from backends.docker.engine import Engine, EngineError, Json, filters, local_endpoint
from backends.docker.images import pull
from backends.docker.refusals import explained
from backends.docker.streams import engine_time, forward, frames, log_lines
from backends.machine import Device, Machine, arch_name, inventory
from orchestrator.backend import (
    LABEL,
    Can,
    Check,
    Instance,
    Launch,
    LogLine,
    Mount,
    Offer,
    Progress,
    Volume,
)
from orchestrator.errors import (
    BackendError,
    Busy,
    ConfigError,
    NoCapacity,
    NotFound,
    Rejected,
    Unreachable,
)
from orchestrator.terminal import raw_terminal
from orchestrator.units import format_bytes

INVENTORY_S = 60.0
"""A vendor's tool is asked again after this long: it may wake every GPU, and they rarely change."""

MOST_MEETINGS = 8
"""How often a start gives way to other starters before it leaves it for another time."""

STOP_PAUSES_S = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
"""Stopping is repeated: the engine says yes to it for a container that is just being restarted."""

LEAST_DISK_BYTES = 10 * 2**30
"""Less free space than a CUDA image takes is worth a warning."""


class Docker:
    """Runs launches as containers of one Docker engine.

    Args:
        name: The backend's name in the configuration.
        namespace: Begins the names of containers and volumes; two namespaces on one engine do
            not see each other's launches, but count each other's holdings.
        host: ``unix://``, ``tcp://`` or ``ssh://``; default: what the Docker CLI would use.
        default_image: Runs commands of specs that name no image.
        bind: The address of this machine that ports are published on.
        pull: ``missing`` pulls an image the engine does not have, ``always`` asks the registry
            every time, ``never`` leaves it to a person.
        timeout_s: How long one answer of the engine may take.
        machine: Reads the engine's machine; default: this one, when the engine is local.

    Raises:
        ConfigError: an option has no such value.
    """

    def __init__(
        self,
        name: str = "docker",
        *,
        namespace: str = "modelyard",
        host: str | None = None,
        default_image: str | None = None,
        bind: str = "127.0.0.1",
        pull: Literal["missing", "always", "never"] = "missing",
        timeout_s: float = 30.0,
        machine: Callable[[], Machine] | None = None,
    ) -> None:
        _check_options(name, namespace=namespace, bind=bind, pull=pull)
        self.name = name
        self._namespace = namespace
        self._default_image = default_image
        self._bind = bind
        self._pull_policy = pull
        endpoint = local_endpoint(host)
        self._engine = Engine(endpoint, backend=name, timeout_s=timeout_s)
        if machine is not None and not callable(machine):
            raise ConfigError(f"backend '{name}': machine is for programs and has no value in a file")
        self._read_machine = machine or (inventory if endpoint.is_local else None)
        self._machine: tuple[float, Machine | None] | None = None
        self._raises_limits = True
        self._lock = threading.Lock()
        self.can = frozenset(
            {Can.IMAGES, Can.PORTS, Can.VOLUMES, Can.EXEC, Can.LIMITS, Can.PRIVILEGED, Can.RESTART}
            | ({Can.MOUNTS} if endpoint.is_local else set())
            | ({Can.BARE} if default_image else set())
        )

    # -- offers --------------------------------------------------------------------------------

    def offers(self) -> Sequence[Offer]:
        """Return what the engine's machine has free: one offer for each kind of accelerator."""
        info = self._engine.get("/info")
        cpu, memory, held = containers.held(self._listing(everyone=True))
        machine = self._inventory()
        whole = Offer(
            backend=self.name,
            instance_type=info["Name"],
            cpu=max(0.0, info["NCPU"] - cpu),
            memory_bytes=max(0, info["MemTotal"] - memory),
            disk_bytes=machine.disk_bytes if machine else None,
            arch=arch_name(info["Architecture"]),
            available=1,
            divisible=True,
        )
        kinds: dict[tuple[str, int], list[Device]] = {}
        for device in machine.accelerators if machine else ():
            kinds.setdefault((device.name, device.vram_bytes), []).append(device)
        return [offer_of(whole, kind, held) for kind in kinds.values()] or [whole]

    # -- the life of a launch --------------------------------------------------------------------

    def start(self, launch: Launch, *, secrets: Mapping[str, str], progress: Progress) -> Instance:
        """Create and start the container of ``launch``, or find it."""
        met = 0
        while met < MOST_MEETINGS:
            found = self._find(launch.name)
            if found is not None and not _is_waiting(found):
                return self._instance(found)
            if found is None:
                went_on = self._create(launch, secrets, progress)
            else:
                progress("starting")
                went_on = self._run(found, launch)
                if went_on and not launch.ports:
                    # Asking again would wait for the end of a short program: the engine locks it.
                    return self._instance(containers.as_started(found))
            if not went_on:
                _pause_unlike_others(met)
                met += 1
        raise Busy(f"launch '{launch.name}' could not start: others kept coming first", backend=self.name)

    def instances(self) -> Sequence[Instance]:
        """Return every launch of our namespace, running or ended, ordered by name."""
        paths = [f"/containers/{one['Id']}/json" for one in self._listing()]
        found = [one for one in self._engine.get_all(paths) if one is not None] if paths else []
        return sorted(map(self._instance, found), key=lambda instance: instance.name)

    def stop(self, name: str, *, grace_s: float) -> None:
        """Ask the container to end, and kill it after ``grace_s``; what ended or is gone stays so."""
        found = self._find(name)
        if found is None or not containers.is_active(found) or containers.failed_to_start(found):
            return
        identity = found["Id"]
        # First the record, then the deed: killed in between, the next stop goes on from here.
        marked = containers.was_asked_to_stop(found) or self._mark_stopped(name, identity)
        if found["State"]["Status"] != "created":
            self._end(found, grace_s)
        if not marked:
            self._mark_stopped(name, identity)

    def remove(self, name: str) -> None:
        """Delete the container with its anonymous volumes; kill it first if it runs."""
        found = self._find(name)
        if found is not None:
            self._delete(found["Id"])

    def logs(
        self, name: str, *, follow: bool = False, since: datetime | None = None, tail: int | None = None
    ) -> Iterator[LogLine]:
        """Yield the container's output, through restarts when ``follow`` is set."""
        identity = self._must_find(name)["Id"]
        start: str | None = engine_time(since)
        while True:
            for line, stamp in self._log_stream(identity, follow=follow, since=start, tail=tail):
                start, tail = _just_after(stamp), None
                yield line
            # The engine ends the stream with each exit; a container that is restarted goes on.
            if not follow or not self._still_runs(identity):
                return

    def execute(self, name: str, command: Sequence[str], *, tty: bool) -> int:
        """Run ``command`` in the container on this process's terminal; return its exit code."""
        found = self._must_find(name)
        if found["State"]["Status"] != "running":
            raise Rejected(
                f"launch '{name}' is not running",
                backend=self.name,
                fix=f"start it again, or see: logs {name}",
            )
        with self._engine.client() as client:
            identity = client.exec_create(found["Id"], list(command), stdin=True, tty=tty)["Id"]
            connection, early = self._engine.hijack(f"/exec/{identity}/start", {"Tty": tty, "Detach": False})
            with connection, contextlib.ExitStack() as terminal:
                if tty:
                    terminal.enter_context(raw_terminal(partial(self._resize, identity)))
                forward(connection, early, demultiplex=not tty)
            return self._exit_code(identity)

    def watch(self, closed: Flag) -> Iterator[str]:
        """Yield the names of launches the engine reports on; "" after each (re)connection."""
        pause_s = 0.5
        while not closed.is_set():
            try:
                with self._engine.events(f"{NAMESPACE}={self._namespace}", closed=closed) as events:
                    pause_s = 0.5
                    yield ""  # whatever happened before we listened
                    yield from _names(events)
            except (Unreachable, Busy):
                pause_s = min(10.0, pause_s * 2)
            closed.wait(pause_s)

    # -- volumes ---------------------------------------------------------------------------------

    def create_volume(self, name: str, *, size_bytes: int | None) -> None:
        """Make a named volume, or find it; the engine's own driver knows no sizes."""
        found = self._engine.get(f"/volumes/{self._volume_name(name)}")
        if found is not None:
            self._require_ours(found, f"volume '{self._volume_name(name)}'")
            return
        labels = {NAMESPACE: self._namespace, VOLUME: name}
        if size_bytes is not None:
            labels[LABEL + "size-bytes"] = str(size_bytes)
        with self._engine.client() as client:
            client.create_volume(self._volume_name(name), labels=labels)

    def volumes(self) -> Sequence[Volume]:
        """Return the named volumes of our namespace, ordered by name."""
        ours = filters(label=f"{NAMESPACE}={self._namespace}")
        found = self._engine.get("/volumes", filters=ours)["Volumes"] or []
        users: dict[str, set[str]] = {}
        for one in self._listing():
            for mount in one.get("Mounts", ()):
                users.setdefault(mount.get("Name", ""), set()).add(one["Labels"][LAUNCH])
        return sorted(
            (
                Volume(
                    name=one["Labels"][VOLUME],
                    size_bytes=int(size) if (size := one["Labels"].get(LABEL + "size-bytes")) else None,
                    used_by=tuple(sorted(users.get(one["Name"], ()))),
                )
                for one in found
            ),
            key=lambda volume: volume.name,
        )

    def delete_volume(self, name: str) -> None:
        """Delete a named volume; one that a container holds, running or ended, is refused."""
        found = self._engine.get(f"/volumes/{self._volume_name(name)}")
        if found is None:
            return
        self._require_ours(found, f"volume '{self._volume_name(name)}'")
        try:
            with _suppress(404), self._engine.client() as client:
                client.remove_volume(found["Name"])
        except EngineError as refusal:
            if refusal.status != 409:
                raise
            raise Rejected(
                f"volume '{name}' is in use", backend=self.name, fix="delete the runs that mount it first"
            ) from refusal

    # -- check -----------------------------------------------------------------------------------

    def check(self) -> Sequence[Check]:
        """Look at the engine, its limits, disk and accelerators."""
        where = self._engine.endpoint.url
        try:
            info = self._engine.get("/info")
            machine = self._inventory()
        except BackendError as error:
            return [Check.failed("engine answers", error)]
        return [
            Check("engine answers", True, f"Docker {info['ServerVersion']} at {where}"),
            Check(
                "memory limits hold",
                bool(info.get("MemoryLimit")),
                f"cgroup v{info.get('CgroupVersion', '1')}",
                "enable the memory cgroup of the kernel (cgroup_enable=memory)",
            ),
            *(_check_machine(info, machine) if machine else ()),
        ]

    # -- inside ----------------------------------------------------------------------------------

    def _container_name(self, launch: str) -> str:
        return containers.container_name(self._namespace, launch)

    def _volume_name(self, name: str) -> str:
        return f"{self._namespace}-{name}"

    def _instance(self, container: Json) -> Instance:
        return to_instance(container, address=self._engine.endpoint.client_address)

    def _listing(self, *, everyone: bool = False) -> Sequence[Json]:
        """Return the engine's listing of our containers, or of every namespace's."""
        label = LAUNCH if everyone else f"{NAMESPACE}={self._namespace}"
        found: Sequence[Json] = self._engine.get("/containers/json", all="true", filters=filters(label=label))
        return found

    def _find(self, launch: str) -> Json | None:
        """Return the container of ``launch``, under its name or the one that says it was stopped."""
        ours = {NAMESPACE: self._namespace, LAUNCH: launch}.items()
        for ending in ("", containers.STOPPED):
            path = f"/containers/{self._container_name(launch)}{ending}/json"
            one: Json | None = self._engine.get(path)
            if one and ours <= (one["Config"]["Labels"] or {}).items():
                return one
        return None

    def _must_find(self, launch: str) -> Json:
        found = self._find(launch)
        if found is None:
            raise NotFound(f"no launch '{launch}' on backend '{self.name}'")
        return found

    def _require_ours(self, volume: Json, what: str) -> None:
        if (volume["Labels"] or {}).get(NAMESPACE) != self._namespace:
            raise Rejected(
                f"{what} exists and was not made by us",
                backend=self.name,
                fix="rename it, or set another namespace for this backend",
            )

    def _inventory(self) -> Machine | None:
        """Return the engine's machine, read at most once in ``INVENTORY_S``."""
        if self._read_machine is None:
            return None
        with self._lock:
            now = time.monotonic()
            if self._machine is None or now - self._machine[0] > INVENTORY_S:
                self._machine = (now, self._read_machine())
            return self._machine[1]

    def _create(self, launch: Launch, secrets: Mapping[str, str], progress: Progress) -> bool:
        """Create the container, with the image pulled; False when its name is just being freed."""
        image = launch.image or self._default_image
        if image is None:
            raise Rejected(
                "Docker runs images, and none is named",
                backend=self.name,
                fix="add image: to the spec, or default_image: to this backend's configuration",
            )
        self._require_volumes(launch.mounts)
        if self._pull_policy == "always":
            self._pull(image, secrets, progress)
        try:
            return self._try_create(launch, self._body(launch, image, secrets))
        except EngineError as refusal:
            if refusal.status != 404 or "No such image" not in refusal.message:
                raise self._explained(refusal, launch) from refusal
        self._pull_missing(image, secrets, progress)
        return self._try_create(launch, self._body(launch, image, secrets))

    def _body(self, launch: Launch, image: str, secrets: Mapping[str, str]) -> dict[str, Any]:
        devices = self._choose(launch) if launch.resources.accelerators else ()
        return containers.create_body(
            launch,
            image=image,
            namespace=self._namespace,
            secrets=secrets,
            devices=devices,
            groups=_owning_groups(devices),
            bind=self._bind,
            memory_bytes=self._engine.get("/info")["MemTotal"] if devices else 0,
            raise_limits=self._raises_limits,
        )

    def _choose(self, launch: Launch) -> tuple[Device, ...]:
        wanted, machine = launch.resources, self._inventory()
        devices = machine.accelerators if machine else ()
        alike = len(of_kind(devices, wanted))
        asked = f"{wanted.accelerators} × {wanted.accelerator or wanted.vendor or 'accelerator'}"
        if alike < wanted.accelerators:
            raise Rejected(f"{asked}: this machine has {alike}", backend=self.name, fix="see: offers")
        _, _, held = containers.held(self._listing(everyone=True))
        chosen = choose(devices, wanted, held | self._unusable())
        if chosen is None:
            raise NoCapacity(
                f"{asked}: too few are free", backend=self.name, fix="stop a run, or wait for one"
            )
        return chosen

    def _unusable(self) -> frozenset[str]:
        """Return the keys of accelerators that are not handed out, whoever asks."""
        return frozenset()

    def _try_create(self, launch: Launch, body: dict[str, Any]) -> bool:
        try:
            with self._engine.client() as client:
                create = client.create_container_from_config
                create(body, self._container_name(launch.name))  # type: ignore[no-untyped-call]  # not in the stubs
        except EngineError as refusal:
            if refusal.status != 409:
                raise
            return self._is_taken(launch.name)
        return True

    def _is_taken(self, launch: str) -> bool:
        """Say whether the name's holder is this launch; False while the engine removes an old one."""
        name = self._container_name(launch)
        holder = self._engine.get(f"/containers/{name}/json")
        if holder is not None and self._find(launch) is None:
            raise Rejected(
                f"container '{name}' exists and is not ours",
                backend=self.name,
                fix="rename it, or set another namespace for this backend",
            )
        return holder is not None

    def _meets_another(self, container: Json) -> bool:
        """Say whether another container holds an accelerator of this one's, or is its launch, stopped.

        Everyone creates first and looks afterwards, so of two that meet at least one sees the
        other. Whoever sees another steps back, without regard to who was first: a rule by age
        or name would let both go on when the elder becomes visible late.
        """
        if self._engine.get(f"/containers{container['Name']}{containers.STOPPED}/json"):
            return True
        mine = container["Config"]["Labels"].get(containers.DEVICES)
        if mine is None:
            return False
        others = [one for one in self._listing(everyone=True) if one["Id"] != container["Id"]]
        _, _, held = containers.held(others)
        return not held.isdisjoint(mine.split(","))

    def _run(self, found: Json, launch: Launch) -> bool:
        """Put the files in and start; False when the container was given up, to be made anew.

        One that cannot start is not left behind.
        """
        identity = found["Id"]
        if self._meets_another(found):
            self._give_up(identity)
            return False
        try:
            with self._engine.client() as client:
                if launch.files:
                    packed = containers.archive(
                        launch.files, working_dir=found["Config"]["WorkingDir"], user=launch.user
                    )
                    client.put_archive(identity, "/", packed)
                client.start(identity)
        except EngineError as refusal:
            if refusal.status == 404 and "No such container" in refusal.message:
                return False  # another starter of this launch gave it up
            self._give_up(identity)
            if "setting rlimit" in refusal.message and found["HostConfig"].get("Ulimits"):
                # A rootless engine may not raise limits; its own then hold for accelerator work.
                self._raises_limits = False
                return False
            raise self._explained(refusal, launch) from refusal
        return True

    def _give_up(self, identity: str) -> None:
        """Delete a container that does not run; one that another starter has started stays."""
        with _suppress(404, 409), self._engine.client() as client:
            client.remove_container(identity, v=True)

    def _delete(self, identity: str) -> None:
        """Delete a container, killing it; 409 is one whose deletion is under way already."""
        with _suppress(404, 409), self._engine.client() as client:
            client.remove_container(identity, v=True, force=True)

    def _require_volumes(self, mounts: Sequence[Mount]) -> None:
        """Refuse a volume that is not there: the engine would quietly make an empty one. Make caches."""
        for mount in mounts:
            if mount.kind == "cache":
                self.create_volume(mount.source, size_bytes=None)
            if mount.kind != "volume":
                continue
            found = self._engine.get(f"/volumes/{self._volume_name(mount.source)}")
            if found is None:
                raise Rejected(
                    f"no volume '{mount.source}' on backend '{self.name}'",
                    backend=self.name,
                    fix=f"apply a spec with type: volume and name: {mount.source} first",
                )
            self._require_ours(found, f"volume '{self._volume_name(mount.source)}'")

    def _explained(self, refusal: EngineError, launch: Launch) -> BackendError:
        return explained(refusal, launch, holder=self._port_holder, backend=self.name)

    def _port_holder(self, number: int) -> str | None:
        """Return the launch of any namespace that has a port of the machine."""
        for one in self._listing(everyone=True):
            if any(port.get("PublicPort") == number for port in one["Ports"]):
                return str(one["Labels"][LAUNCH])
        return None

    def _pull_missing(self, image: str, secrets: Mapping[str, str], progress: Progress) -> None:
        if self._pull_policy == "never":
            raise Rejected(
                f"image '{image}' is not here, and this backend pulls none",
                backend=self.name,
                fix=f"docker pull {image}, or docker load it",
            )
        self._pull(image, secrets, progress)

    def _pull(self, image: str, secrets: Mapping[str, str], progress: Progress) -> None:
        pull(self._engine, image, login=secrets.get("registry"), progress=progress, backend=self.name)

    def _log_stream(
        self, identity: str, *, follow: bool, since: str | None, tail: int | None
    ) -> Iterator[tuple[LogLine, str]]:
        params: dict[str, str | int] = {"stdout": 1, "stderr": 1, "timestamps": 1, "follow": int(follow)}
        if since is not None:
            params["since"] = since
        if tail is not None:
            params["tail"] = tail
        with self._engine.stream(f"/containers/{identity}/logs", params) as chunks:
            yield from log_lines(frames(chunks))

    def _mark_stopped(self, launch: str, identity: str) -> bool:
        """Write down that the launch was asked to stop; False for one that is just being restarted.

        The engine renames no container between two of its runs: it has no network to rename there.
        """
        try:
            with self._engine.client() as client:
                client.rename(identity, self._container_name(launch) + containers.STOPPED)
        except EngineError as refusal:
            if refusal.status not in (404, 409):
                raise
            return False
        return True

    def _end(self, container: Json, grace_s: float) -> None:
        """Stop a container for good; between two runs the engine forgets that it was asked to."""
        identity = container["Id"]
        restarts = container["HostConfig"]["RestartPolicy"]["Name"] != "no"
        for pause_s in STOP_PAUSES_S:
            if restarts:
                restarts = not self._forbid_restarts(identity)
            with _suppress(404), self._engine.client() as client:
                client.stop(identity, timeout=math.ceil(grace_s))
            if not self._still_runs(identity):
                return
            time.sleep(pause_s)
        raise Busy(f"container {identity[:12]} does not end", backend=self.name)

    def _forbid_restarts(self, identity: str) -> bool:
        """Take the restart policy away; False when the engine was just ending or starting a run."""
        try:
            with self._engine.client() as client:
                policy: Any = {"Name": "no"}  # the stubs ask for a count, which this policy must not have
                client.update_container(identity, restart_policy=policy)
        except EngineError:
            return False
        return True

    def _exit_code(self, identity: str) -> int:
        """Return how a command inside ended; its output may end a moment before it."""
        for pause_s in (0.01, 0.03, 0.1, 0.3, 1.0):
            seen = self._engine.get(f"/exec/{identity}/json")
            if seen is not None and not seen["Running"]:
                return int(seen["ExitCode"])
            time.sleep(pause_s)
        raise Unreachable("lost contact with the command; it may still run", backend=self.name)

    def _resize(self, identity: str, rows: int, columns: int) -> None:
        """Tell the window's size; a command that has only just begun has no terminal yet."""
        for pause_s in (0.01, 0.03, 0.1, 0.3):
            try:
                with self._engine.client() as client:
                    client.exec_resize(identity, rows, columns)
                return
            except EngineError:
                time.sleep(pause_s)

    def _still_runs(self, identity: str) -> bool:
        found = self._engine.get(f"/containers/{identity}/json")
        return found is not None and found["State"]["Status"] in ("running", "restarting", "paused")


def _check_options(name: str, *, namespace: str, bind: str, pull: str) -> None:
    if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_-]*", namespace):
        raise ConfigError(f"backend '{name}': namespace {namespace!r} is no Docker name")
    if pull not in ("missing", "always", "never"):
        raise ConfigError(f"backend '{name}': pull is {pull!r}", fix="write missing, always or never")
    if not _is_ip_address(bind):
        raise ConfigError(
            f"backend '{name}': bind {bind!r} is no IP address", fix="write 127.0.0.1 or 0.0.0.0"
        )


def _is_ip_address(text: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):
            socket.inet_pton(family, text)
            return True
    return False


def _pause_unlike_others(trial: int) -> None:
    """Wait for a random while, longer from trial to trial: two starters must not step alike."""
    import random  # 10 ms, for the few that met another starter or pulled an image

    time.sleep(random.uniform(0.01, 0.05) * 2**trial)


def _is_waiting(container: Json) -> bool:
    """Say whether a container was created, and nobody wants it stopped."""
    return container["State"]["Status"] == "created" and not containers.was_asked_to_stop(container)


@contextlib.contextmanager
def _suppress(*statuses: int) -> Iterator[None]:
    """Let pass what the engine refuses with one of ``statuses``."""
    try:
        yield
    except EngineError as refusal:
        if refusal.status not in statuses:
            raise


def _owning_groups(devices: Iterable[Device]) -> tuple[str, ...]:
    """Return ids of the groups that own device files: an image rarely has a group called render."""
    others = [device for device in devices if device.vendor != "nvidia"]
    paths = [path for device in others if not device.groups for path in device.paths]
    groups = {group for device in others for group in device.groups}
    for path in paths:
        with contextlib.suppress(OSError):
            groups.add(str(Path(path).stat().st_gid))
    return tuple(sorted(groups)) or (("video",) if paths else ())


def _just_after(stamp: str) -> str:
    """Return the engine's time one nanosecond after a log line's, to go on without repeating it."""
    whole, _, fraction = stamp.removesuffix("Z").partition(".")
    moment = datetime.fromisoformat(f"{whole}+00:00")
    nanoseconds = int(moment.timestamp()) * 10**9 + int(fraction.ljust(9, "0")[:9] or 0) + 1
    return f"{nanoseconds // 10**9}.{nanoseconds % 10**9:09d}"


def _names(events: Iterable[Json]) -> Iterator[str]:
    for event in events:
        name = (event.get("Actor") or {}).get("Attributes", {}).get(LAUNCH)
        if name:
            yield name


def _check_machine(info: Json, machine: Machine) -> list[Check]:
    found = [Check("accelerators answer", False, fault, "see the vendor's tool") for fault in machine.faults]
    free = f"{format_bytes(machine.disk_bytes)} free"
    found.append(Check("disk has room", machine.disk_bytes >= LEAST_DISK_BYTES, free, "docker system prune"))
    if any(device.vendor == "nvidia" for device in machine.accelerators):
        knows = "nvidia" in info.get("Runtimes", {}) or bool(info.get("DiscoveredDevices"))
        count = sum(device.vendor == "nvidia" for device in machine.accelerators)
        fix = "install the NVIDIA Container Toolkit, run nvidia-ctk runtime configure, restart Docker"
        found.append(Check("engine hands out GPUs", knows, f"{count} NVIDIA GPU(s)", fix))
    return found
