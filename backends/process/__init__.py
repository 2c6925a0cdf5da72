"""Commands as processes of this machine: no engine, no image, one small supervisor for each.

A launch is a folder in the user's state directory. Its supervisor (``supervise.py``) holds a lock
in it for as long as it lives and writes the launch's state and output there, so that any later
command finds it, and a lock that can be taken means that nobody keeps the launch any more. Linux
only: it leans on ``/proc``, ``prctl``, ``pidfd_open`` and ``inotify``.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pwd
import re
import shutil
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path, PurePosixPath
from threading import Event as Flag
from threading import Lock
from typing import Any

from backends.devices import choose, of_kind, offer_of
from backends.machine import Device, Machine, inventory
from backends.process import supervise
from backends.process.output import Changes, Tail
from backends.process.shelf import MARK, NAME, Record, Shelf, locked
from backends.process.terminal import run_here, run_on_terminal
from orchestrator.backend import Can, Check, Instance, Launch, LogLine, Offer, Progress, Volume
from orchestrator.errors import BackendError, ConfigError, NoCapacity, NotFound, Rejected, Unreachable

INHERITED = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|LANG|LC_\w+|TZ|TMPDIR|XDG_\w+|LD_LIBRARY_PATH|CUDA_HOME|VIRTUAL_ENV"
    r"|SSL_CERT_(FILE|DIR)|REQUESTS_CA_BUNDLE|(HTTPS?|NO|ALL)_PROXY|(https?|no|all)_proxy|HF_(HOME|ENDPOINT)"
)
"""Variables that a launch takes over from the command that starts it; no others go with it."""

STALE_S = 2.0  # how soon a reader sees that a supervisor was killed, which tells nobody
SLACK_S = 10.0  # beyond the grace a supervisor gets this long to end a launch; then it is killed
_ELSEWHERE = "choose a backend that can, such as docker"


class Process:
    """Runs launches as detached processes of this machine.

    ``Resources.memory_bytes`` becomes ``RLIMIT_DATA`` of each process and does not hold the launch
    as a whole, which is why ``Can.LIMITS`` is not claimed. (``RLIMIT_AS`` would count the address
    space that CUDA reserves and does not use, and stop every GPU program.)

    Args:
        name: The backend's name in the configuration.
        namespace: Whose launches these are; those of others in the same folder are left alone.
        state_dir: Where launches are kept. Default: ``process`` in the user's state directory.
        machine: Says what this machine has.

    Raises:
        ConfigError: ``namespace`` is no plain name.
    """

    can = frozenset({Can.BARE, Can.PORTS, Can.EXEC, Can.RESTART})

    def __init__(
        self,
        name: str = "process",
        *,
        namespace: str = "modelyard",
        state_dir: str | os.PathLike[str] | None = None,
        machine: Callable[[], Machine] = inventory,
    ) -> None:
        if not NAME.fullmatch(namespace):
            raise ConfigError(
                f"namespace {namespace!r} of backend {name!r} is no plain name",
                fix="use letters, digits, '.', '_' and '-'",
            )
        self.name = name
        self.state_dir = Path(state_dir) if state_dir is not None else _default_folder()
        self._shelf = Shelf(self.state_dir / namespace)
        self._read_machine = machine
        self._machine: Machine | None = None
        self._machine_lock = Lock()

    # --- offers

    def offers(self) -> Sequence[Offer]:
        """Return this machine, less what launches of every namespace hold: one offer a kind of device."""
        machine, held = self._inventory(), self._held()
        cpu, memory_bytes = _left(machine, held)
        whole = Offer(
            backend=self.name,
            instance_type=os.uname().nodename,
            cpu=cpu,
            memory_bytes=memory_bytes,
            disk_bytes=self._free_disk_bytes(),
            arch=machine.arch,
            available=1,
            divisible=True,
        )
        taken = _devices(held)
        kinds: dict[tuple[str, int], list[Device]] = {}
        for device in machine.accelerators:
            kinds.setdefault((device.name, device.vram_bytes), []).append(device)
        return tuple(offer_of(whole, kind, taken) for kind in kinds.values()) or (whole,)

    # --- the life of a launch

    def start(self, launch: Launch, *, secrets: Mapping[str, str], progress: Progress) -> Instance:
        """Hand ``launch`` to a supervisor of its own, or find that it has one."""
        self._refuse_what_it_cannot(launch)
        env = self._environment(launch, secrets)
        with self._edge(), self._alone():
            if found := self._shelf.find_begun(launch.name):
                return found
            progress("starting")
            record = self._reserve(launch)
            draft = self._draft(launch, record)
            try:
                self._refuse_missing(launch, env.get("PATH"), draft)
                env |= self._own_environment(record)
                self._hand_over(launch, env, draft, taken=self._taken(record))
            finally:
                shutil.rmtree(draft, ignore_errors=True)
            return self._started(launch.name)

    def instances(self) -> Sequence[Instance]:
        """Return the launches of this namespace, ordered by name."""
        with self._edge():
            return tuple(found for name in self._shelf.names() if (found := self._shelf.find(name)))

    def stop(self, name: str, *, grace_s: float) -> None:
        """Tell the supervisor to stop the launch, and wait until it has."""
        with self._edge():
            if not self._shelf.is_kept(name):
                self._shelf.find(name)  # one that was lost is written down as such
                return
            self._shelf.tell_to_stop(name, grace_s)
            if not self._shelf.has_ended(name, within_s=grace_s + SLACK_S):
                self._shelf.kill_supervisor(name)
                self._shelf.settle(name, "stopped", "its supervisor did not answer and was killed")

    def remove(self, name: str) -> None:
        """Forget the launch and its output; one that runs is killed first."""
        if not NAME.fullmatch(name) or not self._shelf.folder(name).exists():
            return
        self.stop(name, grace_s=0.0)
        with self._edge(), self._alone():
            self._shelf.forget(name)

    # --- output

    def logs(
        self, name: str, *, follow: bool = False, since: datetime | None = None, tail: int | None = None
    ) -> Iterator[LogLine]:
        """Yield the launch's lines; of a long output the last 16 to 32 MiB are there."""
        self._find(name)
        return self._lines(name, follow=follow, since=since, tail=tail)

    def execute(self, name: str, command: Sequence[str], *, tty: bool) -> int:
        """Run ``command`` where and with what the launch runs; secrets come from its own memory."""
        self._find(name)
        pid, ticks = self._shelf.status(name).get("pid", (0, None))
        try:
            pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            cwd = str(Path(f"/proc/{pid}/cwd").readlink())
        except OSError:
            raise self._rejected(f"{name} is not running", "start it first") from None
        if supervise.start_ticks(pid) != ticks:  # the number is another program's by now
            raise self._rejected(f"{name} is not running", "start it first")
        env = {key: value for key, sep, value in (pair.partition(b"=") for pair in pairs) if sep}
        run = run_on_terminal if tty and not os.isatty(0) else run_here
        try:
            return run(command, env=env, cwd=cwd)
        except FileNotFoundError:
            print(f"{command[0]}: not found", file=sys.stderr)
            return supervise.NOT_FOUND
        except OSError:
            return supervise.NOT_RUNNABLE

    def watch(self, closed: Flag) -> Iterator[str]:
        """Yield names as states are written; a supervisor that was killed shows within 2 s."""
        with self._edge():
            self._shelf.launches.mkdir(mode=0o700, parents=True, exist_ok=True)
        with Changes(self._shelf.launches, deep=True) as changes:
            kept, looked_at = self._shelf.kept(), time.monotonic()
            while not closed.is_set():
                yield from changes.wait(0.2)
                if time.monotonic() - looked_at >= STALE_S:
                    before, kept, looked_at = kept, self._shelf.kept(), time.monotonic()
                    yield from sorted(before - kept)

    # --- health

    def check(self) -> Sequence[Check]:
        """Look at the kernel, the folder and the accelerators' tools."""
        machine = self._read_machine()
        faults = [
            Check("accelerators answer", False, f, "run the vendor's tool by hand") for f in machine.faults
        ]
        well = Check("accelerators answer", True, f"{len(machine.accelerators)} found")
        return (_check_kernel(), self._check_folder(), *(faults or [well]))

    def create_volume(self, name: str, *, size_bytes: int | None) -> None:  # noqa: ARG002 - the port's
        """Refuse: a process sees the machine's own folders.

        Raises:
            Rejected: always.
        """
        raise self._cannot(Can.VOLUMES)

    def volumes(self) -> Sequence[Volume]:
        """Return nothing: there are no volumes here."""
        return ()

    def delete_volume(self, name: str) -> None:
        """Do nothing: there are no volumes here."""

    # --- what is refused

    def _rejected(self, what: str, fix: str) -> Rejected:
        return Rejected(what, backend=self.name, fix=fix)

    def _cannot(self, can: Can) -> Rejected:
        return self._rejected(f"{self.name} cannot {can.value}", _ELSEWHERE)

    def _refuse_what_it_cannot(self, launch: Launch) -> None:
        asked = {
            Can.IMAGES: launch.image is not None,
            Can.PRIVILEGED: launch.privileged,
            Can.VOLUMES: any(mount.kind == "volume" for mount in launch.mounts),
            Can.MOUNTS: any(mount.kind == "folder" for mount in launch.mounts),
        }
        for can in (can for can, is_asked in asked.items() if is_asked):
            raise self._cannot(can)
        if not NAME.fullmatch(launch.name):
            raise self._rejected(f"{launch.name!r} cannot name a folder", "use letters, digits and '-'")
        if launch.user is not None and launch.user not in _own_names():
            raise self._rejected(f"cannot run as user {launch.user}", "leave user out, or use docker")
        if launch.working_dir is not None and ".." in PurePosixPath(launch.working_dir).parts:
            raise self._rejected(f"working_dir {launch.working_dir} leads upwards", "leave out its '..'")
        for file in launch.files:
            path = PurePosixPath(launch.working_dir or "", file.target)
            if path.is_absolute() or ".." in path.parts or not path.parts:
                raise self._rejected(
                    f"file {file.target!r} would not lie in the launch's own folder",
                    "give a path relative to where the command runs",
                )

    def _refuse_missing(self, launch: Launch, path: str | None, draft: Path) -> None:
        if not _command(launch):
            raise self._rejected(f"{launch.name} has no command", "give commands")
        cwd = _working_dir(launch, draft)
        if not cwd.is_dir():
            raise self._rejected(f"no folder {cwd} to work in", "make it, or leave working_dir out")
        program = _command(launch)[0]
        there = (cwd / program).exists() if "/" in program else shutil.which(program, path=path)
        if not there:
            raise self._rejected(f"no program {program} on this machine", "install it, or use an image")

    # --- what a launch gets

    def _environment(self, launch: Launch, secrets: Mapping[str, str]) -> dict[str, str]:
        missing = [variable for variable, _ in launch.secrets if variable not in secrets]
        if missing:
            raise self._rejected(f"no value for {', '.join(missing)}", "set the secret it refers to")
        inherited = {key: value for key, value in os.environ.items() if INHERITED.fullmatch(key)}
        return inherited | dict(launch.env) | {variable: secrets[variable] for variable, _ in launch.secrets}

    def _own_environment(self, record: Record) -> dict[str, str]:
        ports = list(record.ports.items())
        env = {f"MODELYARD_PORT_{container}": str(host) for container, host in ports}
        if ports:
            env |= {"PORT": str(ports[0][1]), "MODELYARD_PORT": str(ports[0][1])}
        machine = self._inventory().accelerators
        chosen = [device for device in machine if device.key in record.devices]
        return env | _visible(machine, chosen) | {MARK: str(self._shelf.folder(record.name))}

    def _reserve(self, launch: Launch) -> Record:
        """Return the launch's record, with ports and devices that nobody of ours holds."""
        held, wanted = self._held(), launch.resources
        cpu, memory_bytes = _left(self._inventory(), held)
        if (wanted.cpu or 0) > cpu or (wanted.memory_bytes or 0) > memory_bytes:
            raise NoCapacity(
                f"{launch.name}: too little CPU or memory is free", backend=self.name, fix="stop a run"
            )
        return Record(
            name=launch.name,
            run=launch.run,
            replica=launch.replica,
            node=launch.node,
            attempt=launch.attempt,
            spec_hash=launch.spec_hash,
            cpu=wanted.cpu or 0.0,
            memory_bytes=wanted.memory_bytes or 0,
            devices=self._choose_devices(launch, held),
            ports=self._choose_ports(launch, held),
        )

    def _choose_devices(self, launch: Launch, held: Sequence[Record]) -> tuple[str, ...]:
        wanted = launch.resources
        if not wanted.accelerators:
            return ()
        devices = self._inventory().accelerators
        asked = f"{wanted.accelerators} × {wanted.accelerator or wanted.vendor or 'accelerator'}"
        if (alike := len(of_kind(devices, wanted))) < wanted.accelerators:
            raise self._rejected(f"{asked}: this machine has {alike}", "see: offers")
        chosen = choose(devices, wanted, _devices(held))
        if chosen is None:
            raise NoCapacity(f"{asked}: too few are free", backend=self.name, fix="stop a run")
        return tuple(device.key for device in chosen)

    def _choose_ports(self, launch: Launch, held: Sequence[Record]) -> dict[int, int]:
        taken = {host: record.name for record in held for host in record.ports.values()}
        ports: dict[int, int] = {}
        for port in launch.ports:
            wanted = port.host or port.container
            free = wanted not in taken and _is_free(wanted)
            if port.host is not None and not free:
                holder = taken.get(wanted, "another program")
                raise self._rejected(f"port {wanted} is taken by {holder}", "leave the choice to the backend")
            ports[port.container] = host = wanted if free else _any_free_port(taken)
            taken[host] = launch.name
        return ports

    def _draft(self, launch: Launch, record: Record) -> Path:
        """Put the launch's folder together under a name that nobody looks at."""
        draft = self._shelf.folder(f".new-{launch.name}")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        work = draft / "work"
        work.mkdir()
        record.write(draft)
        os.mkfifo(draft / "control", 0o600)
        if launch.working_dir is not None and not PurePosixPath(launch.working_dir).is_absolute():
            (work / launch.working_dir).mkdir(parents=True, exist_ok=True)
        for file in launch.files:
            path = work / (launch.working_dir or "") / file.target
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.content)
            path.chmod(file.mode)
        return draft

    def _taken(self, record: Record) -> str:
        """Say what stands in the way of a program that opens its own port and not the one it is given."""
        holders = {host: held.name for held in self._held() for host in held.ports.values()}
        told = [
            f"port {container} is held by {holders.get(container, 'another program')}: "
            f"listen on ${'MODELYARD_PORT' if at == 0 else f'MODELYARD_PORT_{container}'}"
            for at, (container, host) in enumerate(record.ports.items())
            if host != container and (container in holders or not _is_free(container))
        ]
        return "; ".join(told)

    def _hand_over(self, launch: Launch, env: Mapping[str, str], draft: Path, *, taken: str) -> None:
        """Give the folder its name, start the supervisor and wait until it has tried the command."""
        folder = self._shelf.folder(launch.name)
        shutil.rmtree(folder, ignore_errors=True)  # half started, by someone who was killed
        with _opened(draft / "control") as control, locked(draft / "alive") as alive:
            draft.rename(folder)
            order = {
                "command": _command(launch),
                "env": dict(env),
                "cwd": str(_working_dir(launch, folder)),
                "restart": launch.restart,
                "stop_grace_s": launch.stop_grace_s,
                "memory_bytes": launch.resources.memory_bytes,
                "umask": _umask(),
                "alive": alive,
                "control": control,
                "taken": taken,
            }
            _supervise(folder, order)

    def _started(self, name: str) -> Instance:
        found = self._shelf.find(name)
        if found is None:
            said = (self._shelf.folder(name) / "supervisor.log").read_text().strip().splitlines()
            self._shelf.forget(name)
            why = said[-1] if said else "it said nothing"
            raise BackendError(f"the supervisor of {name} did not come up: {why}", backend=self.name)
        return found

    # --- the place

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the folder against other starters, of every namespace."""
        self._shelf.launches.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(self.state_dir / "lock"):
            yield

    @contextlib.contextmanager
    def _edge(self) -> Iterator[None]:
        """Turn what the system says of the folder into errors of ours."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoCapacity(
                    f"{self.state_dir}: {error.strerror}", backend=self.name, fix="free some space there"
                ) from None
            raise Unreachable(
                f"{self.state_dir}: {error.strerror}",
                backend=self.name,
                fix="set state_dir to a folder of yours",
            ) from None

    def _find(self, name: str) -> Instance:
        with self._edge():
            found = self._shelf.find(name)
        if found is None:
            raise NotFound(f"{self.name} has no launch {name!r}")
        return found

    def _held(self) -> list[Record]:
        """Return the records of all that runs here, of every namespace."""
        with self._edge():
            if not self.state_dir.exists():
                return []
            shelves = [Shelf(place) for place in sorted(self.state_dir.iterdir()) if place.is_dir()]
            return [record for shelf in shelves for record in shelf.running()]

    def _inventory(self) -> Machine:
        with self._machine_lock:
            if self._machine is None:
                self._machine = self._read_machine()
            return self._machine

    def _free_disk_bytes(self) -> int:
        disk = os.statvfs(_nearest(self.state_dir))
        return disk.f_bavail * disk.f_frsize

    def _check_folder(self) -> Check:
        place = _nearest(self.state_dir)
        well = place.is_dir() and os.access(place, os.R_OK | os.W_OK | os.X_OK)
        fix = "" if well else "set state_dir to a folder of yours"
        return Check("folder can be written", well, str(self.state_dir), fix)

    def _lines(
        self, name: str, *, follow: bool, since: datetime | None, tail: int | None
    ) -> Iterator[LogLine]:
        def recent(lines: Iterator[LogLine]) -> Iterator[LogLine]:
            return (line for line in lines if since is None or line.at is None or line.at >= since)

        folder = self._shelf.folder(name)
        with Tail(folder) as log:
            yield from recent(log.read()) if tail is None else deque(recent(log.read()), maxlen=tail)
            if not follow:
                return
            with Changes(folder) as changes:
                while True:
                    over = self._shelf.is_over(name)  # first: after the end all of it is there
                    yield from recent(log.read())
                    if over:
                        return
                    changes.wait(STALE_S)


def _default_folder() -> Path:
    import platformdirs  # here, so that a configured folder does without it

    return platformdirs.user_state_path("modelyard") / "process"


def _own_names() -> set[str]:
    """Return what this user may be called in a spec: the number, and the name where it has one."""
    names = {str(os.getuid())}
    with contextlib.suppress(KeyError):  # a number without a name, as containers often have
        names.add(pwd.getpwuid(os.getuid()).pw_name)
    return names


def _command(launch: Launch) -> list[str]:
    return [*(launch.entrypoint or ()), *launch.command]


def _working_dir(launch: Launch, folder: Path) -> Path:
    return folder / "work" / (launch.working_dir or "")


def _left(machine: Machine, held: Sequence[Record]) -> tuple[float, int]:
    """Return the CPU and the bytes of memory that nobody holds."""
    cpu = machine.cpu - sum(record.cpu for record in held)
    return max(0.0, cpu), max(0, machine.memory_bytes - sum(record.memory_bytes for record in held))


def _devices(held: Sequence[Record]) -> frozenset[str]:
    return frozenset(device for record in held for device in record.devices)


def _visible(machine: Sequence[Device], chosen: Sequence[Device]) -> dict[str, str]:
    """Return the variables that show a launch its devices and hide the others.

    ROCm counts ``HIP_VISIBLE_DEVICES`` within what ``ROCR_VISIBLE_DEVICES`` leaves (ROCm docs, GPU
    isolation techniques), hence its numbers from 0. ``-1`` is no device, and hides all.
    """
    env = {}
    nvidia = [device.key for device in chosen if device.vendor == "nvidia"]
    amd = [str(device.index) for device in chosen if device.vendor == "amd"]
    if any(device.vendor == "nvidia" for device in machine):
        env["CUDA_VISIBLE_DEVICES"] = ",".join(nvidia) or "-1"
    if any(device.vendor == "amd" for device in machine):
        env["HIP_VISIBLE_DEVICES"] = ",".join(str(n) for n in range(len(amd))) or "-1"
    if amd:
        env["ROCR_VISIBLE_DEVICES"] = ",".join(amd)
    return env


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def _any_free_port(taken: Collection[int]) -> int:
    while True:
        with socket.socket() as probe:
            probe.bind(("", 0))
            port: int = probe.getsockname()[1]
        if port not in taken:
            return port


def _umask() -> int:
    """Return this process's umask; ``os.umask`` can only be asked by changing it for all threads."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next((int(line.split()[1], 8) for line in lines if line.startswith("Umask:")), 0o022)


@contextlib.contextmanager
def _opened(fifo: Path) -> Iterator[int]:
    handle = os.open(fifo, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield handle
    finally:
        os.close(handle)


def _supervise(folder: Path, order: Mapping[str, Any]) -> None:
    with (folder / "supervisor.log").open("ab") as complaints:
        starter = subprocess.Popen(
            [sys.executable, "-I", "-S", supervise.__file__, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            pass_fds=(order["alive"], order["control"]),
            start_new_session=True,
            cwd="/",
        )
    # returns at the end of its output, which comes when the command was tried or it died
    starter.communicate(json.dumps(order).encode())


def _nearest(place: Path) -> Path:
    """Return ``place``, or what is there of the way to it."""
    while not place.exists() and place != place.parent:
        place = place.parent
    return place


def _check_kernel() -> Check:
    well = sys.platform == "linux" and hasattr(os, "pidfd_open")
    return Check(
        "kernel has what it takes", well, os.uname().release, "" if well else "use Linux 5.3 or later"
    )
