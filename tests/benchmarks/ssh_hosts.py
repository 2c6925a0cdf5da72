"""What SSH hosts cost beside a local engine: ``python -m tests.benchmarks.ssh_hosts [HOSTS]``.

One sshd and one engine play all hosts, under as many loopback addresses: connections, processes
and requests are as many as with real ones, and all of it shares this machine's cores.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from backends.docker import Docker
from backends.ssh import Ssh
from tests import images
from tests.backends.ssh.farm import Farm, Sshd, disconnect, farm


def main(count: int = 50) -> None:
    """Print one line for each figure."""
    with tempfile.TemporaryDirectory(prefix="my-run-", dir="/tmp") as name, farm() as lent:
        os.environ |= {"XDG_RUNTIME_DIR": name, "XDG_STATE_HOME": f"{name}/state"}
        try:
            _measure(lent, _everywhere(lent, count))
        finally:
            disconnect(Path(name))


def _everywhere(lent: Farm, count: int) -> list[Sshd]:
    """Start one sshd on every loopback address, and return it once for each of ``count``."""
    real = lent.add(address="0.0.0.0")
    hosts = [Sshd(real.folder, real.port, address=f"127.0.1.{n}") for n in range(1, count + 1)]
    for host in hosts:
        lent.learn(host)
    return hosts


def _measure(lent: Farm, hosts: list[Sshd]) -> None:
    namespace = f"modelyard-bench-{uuid.uuid4().hex[:8]}"
    options: dict[str, Any] = {**lent.options(*hosts), "namespace": namespace}
    one = {**lent.options(hosts[0]), "namespace": namespace}
    _timed("one host, first command: connect and list", Ssh(**one).instances)
    _timed("one host, later command: list", Ssh(**one).instances)
    _timed("local engine: list", Docker(namespace=namespace).instances)
    local, tunnelled = Docker(namespace=namespace), Ssh(**one)
    _timed("local engine: list, 20 times", lambda: [local.instances() for _ in range(20)])
    _timed("one host: list, 20 times", lambda: [tunnelled.instances() for _ in range(20)])
    _timed(f"{len(hosts)} hosts, first command: connect and list", Ssh(**options).instances)
    _timed(f"{len(hosts)} hosts, later command: list", Ssh(**options).instances)
    _timed(f"{len(hosts)} hosts, inventory and offers", Ssh(**options).offers)
    _measure_commands(options, len(hosts))


def _measure_commands(options: dict[str, Any], count: int) -> None:
    """Apply the hosts as a fleet with a run on it, and time commands as a user meets them."""
    config = {key: value for key, value in options.items() if key not in ("ssh_config",)}
    config["config_file"] = options["ssh_config"]
    fleet = {"type": "fleet", "name": "rack", "blocks": 64, "ssh_config": config}
    task = {
        "type": "task", "name": "idle", "image": images.busybox(), "commands": ["sleep 600"],
        "fleets": ["rack"], "resources": {"cpu": "0.1..", "memory": "16MB..", "disk": None},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ |= {"MODELYARD_DATABASE_URL": f"sqlite:///{folder}/state.db"}
        (folder / "config.yaml").write_text("backends: [process]\n")
        os.environ["MODELYARD_CONFIG"] = str(folder / "config.yaml")
        for document in (fleet, task):
            (folder / f"{document['name']}.yaml").write_text(yaml.safe_dump(document))
        _command(f"{count} hosts, fleet: apply", "apply", "-y", "-f", f"{folder}/rack.yaml")
        _command(f"{count} hosts, one run: apply -d", "apply", "-y", "-d", "-f", f"{folder}/idle.yaml")
        for _ in range(3):
            _command(f"{count} hosts: ps", "ps")
        _command(f"{count} hosts: fleet show", "fleet", "show", "rack")
        _command(f"{count} hosts: fleet list", "fleet", "list")
        _command(f"{count} hosts: offers", "offers")
        _command(f"{count} hosts: delete the run", "delete", "-y", "idle")


def _command(what: str, *arguments: str) -> None:
    def work() -> None:
        program = [sys.executable, "-m", "orchestrator.cli", *arguments]
        done = subprocess.run(program, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    _timed(what, work)


def _timed(what: str, work: Callable[[], object]) -> None:
    """Print how long ``work`` took, and the CPU of this process and of the commands it waited for."""
    began, spent = time.perf_counter(), _cpu_s()
    work()
    print(f"{what:<50} {time.perf_counter() - began:8.3f} s {_cpu_s() - spent:8.3f} s of CPU")


def _cpu_s() -> float:
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
