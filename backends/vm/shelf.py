"""What is kept on this machine for rented ones: the key, the ways to them, and launches that ended there.

The output of a launch is fetched before its machine is given back; afterwards it is nowhere else.
"""

from __future__ import annotations

import fcntl
import json
import subprocess
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

from backends.ssh.memory import instance_of, plain_of, text_of
from orchestrator.backend import Instance, LogLine
from orchestrator.errors import BackendError

MOST_OUTPUT_BYTES = 16 * 2**20
"""Of the output of a launch the last so many bytes are kept."""


class Shelf:
    """The folder of one backend.

    Args:
        root: Where; made when first written. The key and the deployment's name are for all of it.
        namespace: Whose launches these are.
        backend: The backend's name, for errors.
    """

    def __init__(self, root: Path, namespace: str, *, backend: str) -> None:
        self._root = root
        self._folder = root / namespace
        self._backend = backend

    # -- keys ------------------------------------------------------------------------------------

    def deployment(self) -> str:
        """Return the name by which this user's machines are told from others' of the account."""
        return self._once("deployment", lambda path: path.write_text(uuid.uuid4().hex[:16])).read_text()

    def identity_file(self) -> Path:
        """Return the private key that machines let in, made the first time."""
        return self._once("key", self._generate)

    def _once(self, name: str, make: Callable[[Path], object]) -> Path:
        path = self._root / name
        if path.exists():
            return path
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self._root / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                draft = self._root / f".{name}.{uuid.uuid4().hex}"
                make(draft)
                draft.rename(path)
        return path

    def _generate(self, path: Path) -> None:
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "modelyard", "-f", str(path)]
        self._run(command)
        path.with_name(path.name + ".pub").unlink()

    def public_key(self, identity_file: Path) -> str:
        """Return the public half of a private key."""
        return self._run(["ssh-keygen", "-y", "-P", "", "-f", str(identity_file)]).strip()

    def _run(self, command: Sequence[str]) -> str:
        try:
            return subprocess.run(command, check=True, capture_output=True, text=True).stdout
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", "") or str(error)
            raise BackendError(
                f"{command[0]} failed: {said.strip()}", backend=self._backend,
                fix="install OpenSSH's client; identity_file has to be a private key without a passphrase",
            ) from error  # fmt: skip

    def ssh_config(self, machine: str, address: str) -> Path:
        """Return the ssh configuration by which ``machine`` is reached under its own name.

        Its host key is remembered under that name: addresses are given out again.
        """
        path = self._folder / "ways" / f"{quote(machine, safe='')}.conf"
        text = (
            f"Host {machine}\n  HostName {address}\n  HostKeyAlias {machine}\n"
            f"  UserKnownHostsFile {self._folder}/known_hosts\n  GlobalKnownHostsFile /dev/null\n"
        )
        if not path.exists() or path.read_text() != text:
            _write(path, text)
        return path

    # -- launches that ended ---------------------------------------------------------------------

    def put(self, instance: Instance, output: Iterable[LogLine]) -> None:
        """Keep an ended launch with the end of its output."""
        kept: deque[str] = deque()
        size = 0
        for line in output:
            text = json.dumps([line.text, line.at and line.at.isoformat(), line.stream])
            kept.append(text)
            size += len(text)
            while size > MOST_OUTPUT_BYTES:
                size -= len(kept.popleft())
        _write(self._ended(instance.name, "log"), "".join(f"{text}\n" for text in kept))
        _write(self._ended(instance.name, "json"), json.dumps(plain_of(instance)))

    def ended(self) -> Sequence[Instance]:
        """Return the launches that are kept, ordered by name."""
        found = sorted((self._folder / "ended").glob("*.json"))
        texts = (text for path in found if (text := text_of(path)) is not None)
        return [instance_of(json.loads(text)) for text in texts]

    def output(self, launch: str, *, since: datetime | None, tail: int | None) -> Iterator[LogLine]:
        """Yield the output that is kept of a launch."""
        lines = [_line(text) for text in (text_of(self._ended(launch, "log")) or "").splitlines()]
        if since is not None:
            lines = [line for line in lines if line.at is None or line.at >= since]
        yield from lines if tail is None else lines[max(0, len(lines) - tail) :]

    def forget(self, launch: str) -> None:
        """Delete what is kept of a launch."""
        for ending in ("json", "log"):
            self._ended(launch, ending).unlink(missing_ok=True)

    def _ended(self, launch: str, ending: str) -> Path:
        return self._folder / "ended" / f"{quote(launch, safe='')}.{ending}"

    # -- machines that were given back -----------------------------------------------------------

    def bury(self, machine: str) -> None:
        """Remember that a machine's launch was removed: providers list what has ended for a while."""
        _write(self._folder / "buried" / quote(machine, safe=""), "")

    def buried(self) -> set[str]:
        """Return the machines whose launches were removed."""
        return {path.name for path in (self._folder / "buried").glob("*")}

    def forget_buried(self, listed: set[str]) -> None:
        """Forget machines that their provider has forgotten."""
        for name in self.buried() - {quote(machine, safe="") for machine in listed}:
            (self._folder / "buried" / name).unlink(missing_ok=True)
            (self._folder / "ways" / f"{name}.conf").unlink(missing_ok=True)

    # -- what was made beside machines -------------------------------------------------------------

    def furnish(self, gang: str) -> None:
        """Remember that something may be made for a gang, before it is."""
        _write(self._folder / "furnished" / quote(gang, safe=""), gang)

    def furnished(self) -> set[str]:
        """Return the gangs for which something was made."""
        found = (text_of(path) for path in (self._folder / "furnished").glob("*"))
        return {text for text in found if text is not None}

    def unfurnish(self, gang: str) -> None:
        """Forget a gang whose belongings are gone."""
        (self._folder / "furnished" / quote(gang, safe="")).unlink(missing_ok=True)


def _line(text: str) -> LogLine:
    words, at, stream = json.loads(text)
    return LogLine(words, datetime.fromisoformat(at) if at else None, stream)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    draft.write_text(text)
    draft.replace(path)
