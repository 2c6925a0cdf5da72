"""Hosts for tests: real ``sshd`` with throw-away keys, and real Docker engines.

Nothing of the system's is touched: configuration, keys, process ids and logs are in a folder of
the test's. The second engine has its data there too, and a network namespace of its own: an
engine without a network of its own deletes the bridge of the one that is there.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests import images

MAIN_SOCKET = "/var/run/docker.sock"
READY_S = 30.0
CABLE = f"10.213.{os.getpid() % 200}"
"""The first three numbers of the addresses on the cable; two test runs at once have two."""


def require_sshd() -> None:
    """Skip the test where no ``sshd`` can be run; fail it where one is required."""
    if reason := _why_no_sshd():
        _go_without(reason)


def _go_without(reason: str) -> NoReturn:
    if "ssh" in os.environ.get("MODELYARD_REQUIRE", "").split(","):
        pytest.fail(reason)
    pytest.skip(reason)


@cache
def _why_no_sshd() -> str | None:
    for program, package in (("sshd", "openssh-server"), ("ssh", "openssh-client")):
        if not _program(program):
            return f"no {program}: apt-get install {package}"
    return None if os.getuid() == 0 else "sshd is started as root"


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


@dataclass
class Sshd:
    """One ``sshd``: a host as far as SSH can tell."""

    folder: Path
    port: int
    extra: str = ""
    inside: tuple[str, ...] = ()
    address: str = "127.0.0.1"
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def key(self) -> Path:
        """Return its private host key."""
        return self.folder / "host_key"

    def start(self) -> None:
        """Start it and wait until it answers."""
        config = self.folder / "sshd_config"
        config.write_text(
            f"{self.extra}\nPort {self.port}\nListenAddress {self.address}\nHostKey {self.key}\n"
            f"AuthorizedKeysFile {self.folder}/authorized\nPidFile none\nUsePAM no\nStrictModes no\n"
            f"PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin yes\n"
            f"MaxStartups 100\n"
            # bash reads ~/.bashrc below this level, and what that leaves locked when killed is no test's
            f"SetEnv SHLVL=2\n"
        )
        program = _program("sshd")
        assert program is not None
        log = self.folder / "sshd.log"
        command = [*self.inside, program, "-D", "-f", config, "-E", log]
        self.process = subprocess.Popen(command, start_new_session=True)
        until(lambda: _listens(self.address, self.port), f"sshd on port {self.port}, see {log}")

    def stop(self) -> None:
        """End it with every connection it has, as a host that loses its power does."""
        if self.process is None:
            return
        for pid in (*_descendants(self.process.pid), self.process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self.process = None

    def new_key(self) -> None:
        """Give it another host key."""
        self.key.unlink(missing_ok=True)
        self.key.with_suffix(".pub").unlink(missing_ok=True)
        generate_key(self.key)


@dataclass
class Machine:
    """Another machine as far as networks and Docker can tell: its engine and its address."""

    folder: Path
    pid: int
    """A process that holds its network, whether its engine runs or not."""
    engine: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def socket(self) -> str:
        """Return where its engine listens."""
        return f"{self.folder}/docker.sock"

    @property
    def inside(self) -> tuple[str, ...]:
        """Return what a command begins with to run on its network."""
        return ("nsenter", f"--net=/proc/{self.pid}/ns/net")

    @property
    def address(self) -> str:
        """Return its address on the cable between the two; ours ends in 1."""
        return f"{CABLE}.2"

    def start(self) -> None:
        """Start its engine and wait until it answers."""
        program = _program("dockerd")
        assert program is not None
        options = [
            f"--data-root={self.folder}/data", f"--exec-root={self.folder}/exec",
            f"--pidfile={self.folder}/pid", f"--host=unix://{self.socket}",
            "--iptables=false", "--ip6tables=false", "--bip=10.214.1.1/24",
        ]  # fmt: skip
        with (self.folder / "log").open("ab") as log:
            self.engine = subprocess.Popen([*self.inside, program, *options], stdout=log, stderr=log)
        until(lambda: _answers(Path(self.socket)), "the second engine")

    def lose_power(self) -> None:
        """Kill its engine and all that runs there at once."""
        assert self.engine is not None
        doomed = [self.engine.pid]
        for ours in _pids_with(f"{self.folder}/exec"):
            doomed += [ours, *_descendants(ours)]
        for pid in doomed:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.engine.wait()
        self.engine = None
        for mount in _mounts_under(self.folder):
            subprocess.run(["umount", "-l", mount], check=False, capture_output=True)
        subprocess.run([*self.inside, "ip", "link", "del", "docker0"], check=False, capture_output=True)
        Path(self.socket).unlink()  # what follows lies in memory, and is gone with it
        (self.folder / "pid").unlink(missing_ok=True)
        shutil.rmtree(self.folder / "exec", ignore_errors=True)

    def stop(self) -> None:
        """End its engine in good order."""
        if self.engine is not None:
            self.engine.terminate()
            self.engine.wait(READY_S)


def _pids_with(word: str) -> list[int]:
    """Return the processes whose command line holds a word."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if word.encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return [pid for pid in found if pid != os.getpid()]


@dataclass
class Farm:
    """Keys, known hosts and ssh configuration that belong together, and hosts made with them."""

    folder: Path
    hosts: list[Sshd] = field(default_factory=list)

    @property
    def key(self) -> Path:
        """Return the private key that every host lets in."""
        return self.folder / "key"

    @property
    def known_hosts(self) -> Path:
        """Return the file of host keys that are known."""
        return self.folder / "known_hosts"

    @property
    def config(self) -> Path:
        """Return the ssh configuration that goes with them."""
        return self.folder / "ssh_config"

    def add(
        self,
        *,
        known: bool = True,
        extra: str = "",
        address: str = "127.0.0.1",
        machine: Machine | None = None,
    ) -> Sshd:
        """Start another host, on this machine or inside another."""
        folder = self.folder / f"host-{len(self.hosts)}"
        folder.mkdir()
        host = Sshd(folder, _free_port(), extra, address=address)
        if machine is not None:
            host.inside, host.address = machine.inside, machine.address
        host.new_key()
        shutil.copy(self.key.with_suffix(".pub"), folder / "authorized")
        if known:
            self.learn(host)
        self.hosts.append(host)
        host.start()
        return host

    def learn(self, host: Sshd) -> None:
        """Write a host's key down as known."""
        kind, key = host.key.with_suffix(".pub").read_text().split()[:2]
        with self.known_hosts.open("a") as file:
            file.write(f"[{host.address}]:{host.port} {kind} {key}\n")

    def options(self, *hosts: Sshd, machine: Machine | None = None) -> dict[str, Any]:
        """Return the options of an ssh backend for some of the hosts; ``machine``'s has its engine."""
        return {
            "hosts": [self._entry(host, machine) for host in hosts],
            "user": "root",
            "identity_file": str(self.key),
            "ssh_config": str(self.config),
        }

    def _entry(self, host: Sshd, machine: Machine | None) -> dict[str, Any]:
        entry: dict[str, Any] = {"hostname": host.address, "port": host.port}
        if machine is not None and host.address == machine.address:
            entry["engine_socket"] = machine.socket
        return entry

    def stop(self) -> None:
        """End every host."""
        for host in self.hosts:
            host.stop()


@contextmanager
def farm() -> Iterator[Farm]:
    """Lend a farm without hosts, with a runtime and state folder of its own; end all of it."""
    require_sshd()
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where every sshd of Debian's drops privileges
    with tempfile.TemporaryDirectory(prefix="my-ssh-", dir="/tmp") as name:  # paths of sockets are short
        lent = Farm(Path(name))
        generate_key(lent.key)
        lent.known_hosts.touch()
        lent.config.write_text(
            f"Host *\n  UserKnownHostsFile {lent.known_hosts}\n  GlobalKnownHostsFile /dev/null\n"
        )
        try:
            yield lent
        finally:
            lent.stop()


def disconnect(runtime: Path) -> None:
    """End every connection that is kept in a runtime folder."""
    for control in runtime.glob("modelyard-ssh/*.ctl"):
        subprocess.run(
            ["ssh", "-F", "none", "-S", control, "-O", "exit", "x"], capture_output=True, check=False
        )


@contextmanager
def second_machine() -> Iterator[Machine]:
    """Lend a Docker engine of its own on a network of its own, with the tests' images."""
    images.require_engine()
    programs = [_program(name) for name in ("dockerd", "ip", "unshare", "nsenter")]
    if not all(programs) or os.getuid() != 0:
        _go_without("a second machine needs dockerd, iproute2, util-linux and root")
    folder = Path(tempfile.mkdtemp(prefix="my-engine-", dir="/tmp"))
    hold = ["unshare", "--net", "sh", "-c", "ip link set lo up; exec sleep infinity"]
    holder = subprocess.Popen(hold)
    machine = Machine(folder, holder.pid)
    try:
        until(lambda: _has_own_network(holder.pid), "a network of its own")
        machine.start()
        _lay_cable(machine)
        _copy(images.busybox(), Path(machine.socket))
        yield machine
    finally:
        machine.stop()
        holder.terminate()
        holder.wait(READY_S)
        for mount in _mounts_under(folder):
            subprocess.run(["umount", "-l", mount], check=False, capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)


def _has_own_network(pid: int) -> bool:
    own, theirs = (Path(f"/proc/{one}/ns/net").readlink() for one in ("self", pid))
    return own != theirs


def _lay_cable(machine: Machine) -> None:
    """Connect the two networks; the cable goes away with the namespace it ends in."""
    end, other = f"my{os.getpid()}a", f"my{os.getpid()}b"
    for command in (
        f"ip link add {end} type veth peer name {other}",
        f"ip link set {other} netns {machine.pid}",
        f"ip addr add {CABLE}.1/30 dev {end}",
        f"ip link set {end} up",
        f"{' '.join(machine.inside)} ip addr add {CABLE}.2/30 dev {other}",
        f"{' '.join(machine.inside)} ip link set {other} up",
    ):
        subprocess.run(command.split(), check=True, capture_output=True)


def _mounts_under(folder: Path) -> list[str]:
    points = (line.split()[1] for line in Path("/proc/mounts").read_text().splitlines())
    return sorted((point for point in points if point.startswith(f"{folder}/")), reverse=True)


def _answers(where: Path) -> bool:
    from backends.docker import Docker

    return where.exists() and Docker(host=f"unix://{where}", timeout_s=5.0).check()[0].ok


def _copy(image: str, where: Path) -> None:
    import docker

    with (
        closing(docker.APIClient(version="auto")) as here,
        closing(docker.APIClient(f"unix://{where}", version="auto")) as there,
    ):
        there.load_image(b"".join(here.get_image(image)))


def until(claim: Any, what: str) -> None:
    """Fail unless ``claim`` comes true in time."""
    deadline = time.monotonic() + READY_S
    while not claim():
        assert time.monotonic() < deadline, f"{what}: not within {READY_S:g} s"
        threading.Event().wait(0.03)


def generate_key(path: Path) -> None:
    """Make a pair of keys without a passphrase."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _listens(address: str, port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex((address, port)) == 0


def _descendants(pid: int) -> list[int]:
    children = [
        int(child)
        for task in Path(f"/proc/{pid}/task").glob("*")
        for child in (task / "children").read_text().split()
    ]
    return [one for child in children for one in (*_descendants(child), child)]
