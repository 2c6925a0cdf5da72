"""One connection to a host: an ``ssh`` in the background that every command of ours shares.

OpenSSH's own multiplexing does the work (``ControlMaster`` in ssh_config(5)). The first command
that needs a host opens the connection; it stays for ``KEPT_S`` after its last use, so that the
next command, in another process, finds Docker's socket of that host already there as a file of
this machine. Nothing is installed on the host and nothing runs there beyond its sshd.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shlex
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from backends.ssh.options import Host, Login
from backends.ssh.refusals import explained
from orchestrator.errors import AuthFailed, BackendError, Unreachable
from orchestrator.units import backoff_s

KEPT_S = 86_400
"""How long an unused connection stays open: whoever was told of a service's port may use it so long."""

CONNECT_S = 10
"""How long a host may take to answer before it counts as unreachable."""

ALIVE_S, ALIVE_COUNT = 5, 3
"""A silent connection is asked for a sign of life every 5 s, and given up after the third."""

LONGEST_PAUSE_S = 30.0
"""Between two attempts at a host that does not answer."""

COMMAND_S = 60.0
"""How long a command on the host may take; GPUs without the persistence daemon wake up slowly."""

LONGEST_SOCKET = 90
"""Bytes in a socket's path: Linux allows 108, and ssh appends 17 while it makes one."""


class Connection:
    """A shared connection to one host; safe to use from several threads and processes.

    Args:
        host: Where to.
        backend: The backend's name, for errors.
        host_keys: ``strict`` or ``accept-new``.
        ssh_config: The file read in place of the user's own, or None.
    """

    def __init__(self, host: Host, *, backend: str, host_keys: str, ssh_config: str | None) -> None:
        self.host = host
        self._backend = backend
        self._arguments = (*_options(host_keys, ssh_config), *_way(host, host_keys, ssh_config))
        digest = hashlib.sha256(
            "\0".join((*self._arguments, self._destination(), host.engine_socket)).encode()
        ).hexdigest()[:16]
        self._stem = runtime_folder() / digest
        self._lock = threading.Lock()
        self._failures = 0
        self._refused: tuple[float, BackendError] | None = None

    @property
    def socket(self) -> Path:
        """Return the file of this machine behind which the host's Docker engine listens."""
        return self._stem.with_suffix(".sock")

    @property
    def control(self) -> Path:
        """Return the file by which the background ``ssh`` is told what to do."""
        return self._stem.with_suffix(".ctl")

    # -- being connected -------------------------------------------------------------------------

    def ensure(self) -> None:
        """Connect, unless that is done; after failures not more often than the pause allows.

        Raises:
            Unreachable: the host does not answer.
            AuthFailed: it refuses us, or its key is not the one we know.
        """
        if self._is_open():
            return
        with self._lock:
            if self._is_open():
                return
            if self._refused is not None and time.monotonic() < self._refused[0]:
                raise self._refused[1]
            try:
                with self._alone():
                    if not self._is_open():  # another process may have been faster
                        self._open()
            except BackendError as error:
                self._failures += 1
                pause_s = backoff_s(self._failures, first_s=1.0, most_s=LONGEST_PAUSE_S)
                self._refused = (time.monotonic() + pause_s, error)
                raise
            self._failures, self._refused = 0, None

    def run(self, script: str) -> str:
        """Return what a shell script on the host writes to stdout.

        Raises:
            Unreachable: the connection broke, or the script took longer than ``COMMAND_S``.
            BackendError: it failed.
        """
        self.ensure()
        command = [*self._told(), self._destination(), "sh -s"]
        try:
            done = subprocess.run(
                command, input=script, capture_output=True, text=True, errors="replace", timeout=COMMAND_S
            )
        except subprocess.TimeoutExpired:
            raise self._unreachable(f"a command took longer than {COMMAND_S:g} s") from None
        if done.returncode == 255:
            raise self._unreachable(done.stderr.strip() or "the connection broke")
        if done.returncode != 0:
            raise BackendError(
                f"host '{self.host.name}': {done.stderr.strip() or f'exit code {done.returncode}'}",
                backend=self._backend,
            )
        return done.stdout

    def close(self) -> None:
        """End the connection: the next one logs in anew, with the groups that the user has then."""
        with contextlib.suppress(Unreachable):
            self._tell("exit")

    def why_silent(self, reason: str) -> BackendError:
        """Say why the engine did not answer, from what the host itself says about its socket."""
        path = shlex.quote(self.host.engine_socket)
        looks = f"[ -S {path} ] || echo absent\n[ -w {path} ] || echo denied\nid -un\n"
        try:
            said = self.run(looks).split()
        except BackendError as error:
            return error
        where = f"host '{self.host.name}'"
        if "absent" in said:
            return Unreachable(
                f"no Docker engine listens at {self.host.engine_socket} on {where}",
                backend=self._backend,
                fix="install and start Docker there, or set engine_socket",
            )
        if "denied" in said:
            return AuthFailed(
                f"user '{said[-1]}' may not use the Docker engine on {where}",
                backend=self._backend,
                fix=f"sudo usermod -aG docker {said[-1]} there, then end the connection: "
                f"ssh -S {self.control} -O exit {self.host.login.hostname}",
            )
        return Unreachable(
            f"the Docker engine on {where} did not answer ({reason})",
            backend=self._backend,
            fix="look at it there: systemctl status docker; sshd has to allow AllowStreamLocalForwarding",
        )

    def _is_open(self) -> bool:
        with socket.socket(socket.AF_UNIX) as asking:
            try:
                asking.connect(str(self.control))
            except OSError:
                return False
        return self.socket.exists()

    def _open(self) -> None:
        for left in (self.control, self.socket):  # of one that was killed: ssh would not go over them
            left.unlink(missing_ok=True)
        said = self._stem.with_suffix(".log")
        background = ("-f", "-N", "-M", "-o", f"ControlPersist={KEPT_S}", "-o", "ClearAllForwardings=yes")
        command = ["ssh", *background, "-S", str(self.control), *self._arguments, self._destination()]
        with said.open("w") as log:
            # The background process keeps the log open, which a pipe's reader would wait for.
            code = self._call(command, log.fileno(), 3.0 * CONNECT_S)
        if code != 0:
            raise explained(said.read_text(errors="replace"), self.host, backend=self._backend)
        try:
            self._tell("forward", f"{self.socket}:{self.host.engine_socket}")
        except BackendError:
            self._tell("exit")
            raise
        self._wake()

    def _wake(self) -> None:
        """Run nothing on the host: its sshd sends small answers at once only after a first command.

        Until then they wait for the client's delayed acknowledgement, 40 ms each time (TCP_NODELAY
        is set in do_exec, OpenSSH session.c). How it ends says nothing: forwards may be all that an
        account is allowed.
        """
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(
                [*self._told(), self._destination(), "true"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=False,
                timeout=CONNECT_S,
            )

    def _call(self, command: Sequence[str], log: int, timeout_s: float) -> int:
        try:
            return subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,  # an interrupt of the command in front is not meant for it
                timeout=timeout_s,
            ).returncode
        except FileNotFoundError:
            raise BackendError(
                "no program ssh on this machine", backend=self._backend, fix="install OpenSSH's client"
            ) from None
        except subprocess.TimeoutExpired:
            raise self._unreachable(f"no connection within {timeout_s:g} s") from None

    def _tell(self, order: str, forwarding: str = "") -> None:
        """Give the background ``ssh`` an order (``-O`` in ssh(1))."""
        where = ["-L", forwarding] if forwarding else []
        command = [*self._told(), "-O", order, *where, self._destination()]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)
        if done.returncode != 0:
            raise self._unreachable(done.stderr.strip() or f"ssh -O {order} failed")

    def _told(self) -> list[str]:
        """Return the command of a client that shares the connection, and never makes one of its own."""
        alone = ("-F", "none", "-o", "ControlMaster=no", "-o", "ProxyCommand=false", "-o", "BatchMode=yes")
        return ["ssh", *alone, "-S", str(self.control)]

    def _destination(self) -> str:
        return self.host.login.hostname

    def _unreachable(self, why: str) -> Unreachable:
        return Unreachable(
            f"host '{self.host.name}' does not answer over SSH ({why})",
            backend=self._backend,
            fix=f"look whether this works: ssh {self.host.login.hostname} true",
        )

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other threads and processes from opening or changing the same connection meanwhile."""
        make_private(self._stem.parent, backend=self._backend)
        with self._stem.with_suffix(".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    # -- ports -----------------------------------------------------------------------------------

    def lead_to(self, ports: Collection[int], *, owner: str) -> Mapping[int, int]:
        """Return for each of the host's ``ports`` the port on 127.0.0.1 that leads there.

        A port keeps its number here for as long as ``owner`` asks for it, over reconnections too
        where nobody took it meanwhile. The host's own number is preferred.
        """
        led = self._led(owner)
        if not ports or led.keys() >= set(ports):
            return {port: led[port] for port in ports}
        self.ensure()
        with self._alone():
            led, before = self._led(owner), self._written(owner)
            for port in sorted(set(ports) - led.keys()):
                led = {**led, port: self._forward(port, before.get(port))}
                self._write(owner, led)
        return {port: led[port] for port in ports}

    def keep_only(self, kept: Collection[int], *, owner: str) -> None:
        """Close ``owner``'s ports of this machine that are not in ``kept``."""
        if set(self._led(owner).values()) <= set(kept):
            return
        with self._alone():
            led = self._led(owner)
            for port, here in led.items():
                if here not in kept:
                    with contextlib.suppress(Unreachable):  # the connection went, and this with it
                        self._tell("cancel", _forwarding(here, port))
            self._write(owner, {port: here for port, here in led.items() if here in kept})

    def _forward(self, port: int, before: int | None) -> int:
        for wanted in (before, port, 0, 0, 0):
            here = None if wanted is None else _free_port(wanted)
            if here is None:
                continue
            try:
                self._tell("forward", _forwarding(here, port))
            except Unreachable:
                if not self._is_open():
                    raise
                continue  # somebody took it in between
            return here
        raise self._unreachable(f"port {port} could not be led here")

    def _led(self, owner: str) -> dict[int, int]:
        """Return what leads where on the present connection."""
        found = self._read(owner)
        return self._ports(found) if found.get("connection") == self._identity() else {}

    def _written(self, owner: str) -> dict[int, int]:
        """Return what led where, on this connection or the one before."""
        return self._ports(self._read(owner))

    def _ports(self, found: Mapping[str, object]) -> dict[int, int]:
        ports = found.get("ports")
        return {int(port): int(here) for port, here in ports.items()} if isinstance(ports, dict) else {}

    def _read(self, owner: str) -> Mapping[str, object]:
        try:
            found = json.loads(self._stem.with_suffix(f".{owner}.json").read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self, owner: str, ports: Mapping[int, int]) -> None:
        path = self._stem.with_suffix(f".{owner}.json")
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps({"connection": self._identity(), "ports": ports}))
        draft.replace(path)

    def _identity(self) -> str:
        """Return what tells this connection from an earlier one: forwards end with theirs."""
        try:
            found = self.control.stat()
        except OSError:
            return ""
        return f"{found.st_ino}-{found.st_mtime_ns}"


def _options(host_keys: str, ssh_config: str | None) -> tuple[str, ...]:
    options = (
        "BatchMode=yes",
        f"StrictHostKeyChecking={'yes' if host_keys == 'strict' else 'accept-new'}",
        f"ConnectTimeout={CONNECT_S}",
        f"ServerAliveInterval={ALIVE_S}",
        f"ServerAliveCountMax={ALIVE_COUNT}",
        "ForwardAgent=no",
        "ForwardX11=no",
        "PermitLocalCommand=no",
        "RemoteCommand=none",
        "RequestTTY=no",
    )
    file = ("-F", ssh_config) if ssh_config else ()
    return (*file, *(word for option in options for word in ("-o", option)))


def _way(host: Host, host_keys: str, ssh_config: str | None) -> tuple[str, ...]:
    """Return the arguments that lead to a host; a jump may have a key of its own, which -J cannot say."""
    way = _login(host.login)
    if host.jump is None:
        return way
    through = ("ssh", *_options(host_keys, ssh_config), *_login(host.jump), "-W")
    words = [word.replace("%", "%%") for word in through]
    return (*way, "-o", f"ProxyCommand={shlex.join(words)} '[%h]:%p' {shlex.quote(host.jump.hostname)}")


def _login(login: Login) -> tuple[str, ...]:
    words: list[str] = []
    if login.user:
        words += ["-l", login.user]
    if login.port:
        words += ["-p", str(login.port)]
    if login.identity_file:
        words += ["-o", "IdentitiesOnly=yes", "-i", login.identity_file]
    return tuple(words)


def _forwarding(here: int, there: int) -> str:
    return f"127.0.0.1:{here}:127.0.0.1:{there}"


def _free_port(wanted: int) -> int | None:
    """Return ``wanted`` when it can be had on 127.0.0.1 (0: any), else None."""
    with socket.socket(socket.AF_INET) as trying:
        trying.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trying.bind(("127.0.0.1", wanted))
        except OSError:
            return None
        return int(trying.getsockname()[1])


def runtime_folder() -> Path:
    """Return where connections of this user are kept: gone after a restart, as they are."""
    given = os.environ.get("XDG_RUNTIME_DIR")
    if given and len(given) < LONGEST_SOCKET - len("/modelyard-ssh/0123456789abcdef.sock"):
        return Path(given, "modelyard-ssh")
    return Path(os.environ.get("TMPDIR") or "/tmp", f"modelyard-ssh-{os.getuid()}")


def make_private(folder: Path, *, backend: str) -> None:
    """Make ``folder``, or refuse one that others could reach into: who opens its sockets is root there.

    Raises:
        BackendError: it is not ours alone.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise BackendError(
            f"folder {folder} is not yours alone", backend=backend, fix=f"chmod 700 {folder}, or remove it"
        )
