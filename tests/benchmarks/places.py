"""What the process backend and the sim cost: ``python -m tests.benchmarks.places``.

Wall times are medians and depend on what else the machine does; the ratio to a bare ``Popen`` of
the same command, taken in the same run, does less so.
"""

from __future__ import annotations

import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from backends.machine import Machine
from backends.process import Process
from backends.process.shelf import Shelf
from backends.sim import Hand, Sim
from orchestrator.backend import Launch

LAUNCHES = 20
SIMULATED = 10_000
LINES = 1_000_000
LINE = "a line of output as long as many are, with sixty characters in it"
MACHINE = Machine(cpu=64.0, memory_bytes=2**36, disk_bytes=2**36, arch="x86")


def quiet(_: str) -> None:
    """Hear nothing."""


def median_ms(work: Callable[[int], object], times: int) -> float:
    """Return the median wall time of ``work`` in milliseconds."""
    taken = []
    for n in range(times):
        began = time.perf_counter()
        work(n)
        taken.append(time.perf_counter() - began)
    return 1000 * statistics.median(taken)


def start_and_list(place: Process) -> dict[str, str]:
    """Measure starts against a bare one, and a listing."""
    bare: list[subprocess.Popen[bytes]] = []
    command = ("sleep", "600")
    raw_ms = median_ms(lambda _: bare.append(subprocess.Popen(command)), LAUNCHES)
    for child in bare:
        child.kill()
        child.wait()

    def start(n: int) -> None:
        place.start(Launch(f"b-{n}-0-1", "b", command=command), secrets={}, progress=quiet)

    start_ms = median_ms(start, LAUNCHES)
    began = time.process_time()
    for _ in range(10):
        place.instances()
    list_ms = 100 * (time.process_time() - began)
    return {
        "start": f"{start_ms:.1f} ms ({start_ms / raw_ms:.0f} × a bare Popen of {raw_ms:.1f} ms)",
        f"list {LAUNCHES}": f"{list_ms:.2f} CPU ms",
        "supervisor": f"{private_kib(place)} KiB of its own",
    }


def private_kib(place: Process) -> int:
    """Return the memory that a supervisor shares with nobody."""
    pid = Shelf(place.state_dir / "modelyard").status("b-0-0-1")["supervisor"][0]
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def write_output(place: Process) -> str:
    """Measure how fast output goes through a supervisor into the log."""
    command = ("sh", "-c", f"yes '{LINE}' | head -n {LINES}")
    began = time.perf_counter()
    place.start(Launch("y-0-0-1", "y", command=command), secrets={}, progress=quiet)
    Shelf(place.state_dir / "modelyard").has_ended("y-0-0-1", within_s=600)
    return f"{LINES * (len(LINE) + 1) / (time.perf_counter() - began) / 1e6:.0f} MB/s"


def simulate() -> dict[str, str]:
    """Measure the sim with many launches."""
    sim = Sim(clock=Hand())
    began = time.process_time()
    for n in range(SIMULATED):
        sim.start(Launch(f"a-{n}-0-1", "a"), secrets={}, progress=quiet)
    started = time.process_time()
    sim.instances()
    listed = time.process_time()
    return {
        f"sim: start {SIMULATED:,}": f"{started - began:.2f} CPU s",
        f"sim: list {SIMULATED:,}": f"{1000 * (listed - started):.0f} CPU ms",
    }


def main() -> None:
    """Print one line a figure."""
    with tempfile.TemporaryDirectory() as folder:
        place = Process(state_dir=folder, machine=lambda: MACHINE)
        try:
            figures = start_and_list(place) | {"output": write_output(place)} | simulate()
        finally:
            for instance in place.instances():
                place.remove(instance.name)
    for what, figure in figures.items():
        print(f"{what:<20} {figure}")


if __name__ == "__main__":
    main()
