"""From apply to a running container, beside raw docker-py: ``python -m tests.benchmarks.apply``.

Rounds are interleaved in one process, so that both meet the same machine. "Ours" begins with a plan
in hand and ends with the run's state ``running`` durable in the record; "raw" is create and start of
the same image with the same labels, limits and network.
"""

from __future__ import annotations

import statistics
import tempfile
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path

import docker

from orchestrator.api import Local
from orchestrator.spec.load import read
from tests.images import busybox

ROUNDS = 10
SPEC = """\
type: task
name: {name}
image: {image}
commands: ["sleep 60"]
backends: [docker]
resources: {{cpu: 1, memory: 64MB}}
stop_duration: 0s
"""
CONFIG = "backends: [{{type: docker, namespace: {namespace}}}]\n"


def ours(api: Local, name: str) -> float:
    """Apply a spec and follow it until it runs; return the seconds."""
    plans = api.plan(read(SPEC.format(name=name, image=busybox())))
    start = time.perf_counter()
    api.apply(plans)
    api.follow([name], "started")
    return time.perf_counter() - start


def raw(client: docker.DockerClient, name: str) -> float:
    """Create and start the same container by hand; return the seconds."""
    start = time.perf_counter()
    made = client.containers.create(
        busybox(), ["/bin/sh", "-ec", "sleep 60"], name=name, labels={"modelyard-test": name},
        nano_cpus=10**9, mem_limit=64 * 10**6, init=True,
    )  # fmt: skip
    made.start()
    return time.perf_counter() - start


def timed(call: Callable[[], float]) -> tuple[float, float]:
    """Return the wall seconds that ``call`` says, and the CPU seconds of this process."""
    before = time.process_time()
    wall = call()
    return wall, time.process_time() - before


def main() -> None:
    """Print the table and the ratio."""
    namespace = f"modelyard-test-{uuid.uuid4().hex[:8]}"
    walls: dict[str, list[float]] = {"ours": [], "raw": []}
    cpus: dict[str, list[float]] = {"ours": [], "raw": []}
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(CONFIG.format(namespace=namespace))
        api = Local(f"sqlite:///{folder}/state.db", config=config)
        client = docker.from_env()
        client.ping()
        for number in range(ROUNDS + 1):  # the first round warms up: imports, connections, the schema
            name = f"bench-{number}"
            ways = {"ours": partial(ours, api, name), "raw": partial(raw, client, f"{namespace}-{name}")}
            for way, call in ways.items():
                wall, cpu = timed(call)
                if number:
                    walls[way].append(wall)
                    cpus[way].append(cpu)
            client.containers.get(f"{namespace}-{name}").remove(force=True)
            for backend_container in client.containers.list(
                filters={"label": f"modelyard.dev/namespace={namespace}"}
            ):
                backend_container.remove(force=True)
        api.close()
        client.close()
    print(f"{'way':<6}{'median ms':>12}{'min ms':>10}{'CPU ms':>10}")
    for way in walls:
        print(
            f"{way:<6}{statistics.median(walls[way]) * 1e3:>12.0f}{min(walls[way]) * 1e3:>10.0f}"
            f"{statistics.median(cpus[way]) * 1e3:>10.0f}"
        )
    ratio = statistics.median(walls["ours"]) / statistics.median(walls["raw"])
    added = (statistics.median(cpus["ours"]) - statistics.median(cpus["raw"])) * 1e3
    print(f"apply to running: {ratio:.2f} of raw docker-py (goal 1.25), {added:.0f} ms CPU added (goal 100)")


if __name__ == "__main__":
    main()
