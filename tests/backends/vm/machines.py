"""Machines for tests of clouds: they boot by doing what their user data says, and answer over a real sshd.

What would touch this system is replaced by programs that write down how they were called. Each
machine has a loopback address of its own, where one sshd listens for all; the engine behind it is
this machine's.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from backends.vm import boot
from orchestrator.backend import LABEL
from tests.backends.ssh.farm import MAIN_SOCKET, Farm, Sshd

STUBS = ("systemd-run", "systemctl", "usermod", "nvidia-ctk", "nvidia-smi", "apt-get", "sed")
NOWHERE = "192.0.2.1"
"""An address at which nobody answers (RFC 5737)."""


class Machines:
    """The machines of one cloud.

    Args:
        folder: Where their books and what was called lie.
        host: The sshd that answers for all of them.
    """

    def __init__(self, folder: Path, host: Sshd) -> None:
        self.folder = folder
        self.host = host
        self.boots = True
        self._addresses = 0

    def boot(self, user_data: str) -> str:
        """Do what cloud-init would, and return the machine's address."""
        self._addresses += 1
        config = json.loads(user_data.removeprefix("#cloud-config\n"))
        with (self.host.folder / "authorized").open("a") as file:
            file.write("\n".join(config["ssh_authorized_keys"]) + "\n")
        stubs = self.folder / "stubs"
        for command in (*config["bootcmd"], *config["runcmd"]):
            path = f"{stubs}:{os.environ['PATH']}"
            subprocess.run(command, check=True, env={"PATH": path, "STUBS": str(stubs)})
        return loopback(self._addresses) if self.boots else NOWHERE

    def book(self, key: str) -> Path:
        """Return the folder in which the machine of a key keeps its book."""
        return Path(boot.FOLDER) / key

    def timer(self) -> list[str]:
        """Return how programs that would touch the system were called, in order."""
        return (self.folder / "stubs" / "said").read_text().splitlines()


def loopback(number: int) -> str:
    """Return the loopback address of the machine of this number, of 65,535, in this process."""
    return str(IPv4Address(f"127.{64 + os.getpid() % 128}.0.0") + number)


def end_containers(tags: Mapping[str, str]) -> None:
    """End what ran on a machine with these tags: the engine behind all of them goes on."""
    if LABEL + "namespace" not in tags or not Path(MAIN_SOCKET).exists():
        return
    import docker

    wanted = [f"{LABEL}{key}={tags.get(LABEL + key)}" for key in ("namespace", "launch")]
    with closing(docker.APIClient(f"unix://{MAIN_SOCKET}", version="auto")) as client:
        for container in client.containers(filters={"label": wanted}):
            client.remove_container(container["Id"], force=True)


@contextmanager
def machines(farm: Farm, folder: Path) -> Iterator[Machines]:
    """Lend a place where machines boot."""
    stubs = folder / "stubs"
    stubs.mkdir(parents=True)
    for name in STUBS:
        (stubs / name).write_text(f'#!/bin/sh\nprintf "%s\\n" "{name} $*" >> "$STUBS/said"\n')
        (stubs / name).chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        # all machines are this one, where another run's books may lie
        patch.setattr(boot, "FOLDER", str(folder / "books"))
        yield Machines(folder, farm.add(address="0.0.0.0", known=False))
