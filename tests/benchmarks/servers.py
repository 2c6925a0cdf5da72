"""Print what two servers on one PostgreSQL do with thousands of runs while one is killed again and again.

Half of the runs are services that stay up, half are tasks that end by themselves, all on a sim whose
world lies in a file that both servers share. Every few seconds one server is killed with -9 and started
anew. At the end nothing may be lost (every run is where it should be), doubled (one launch a run),
or stuck. Beside it: how soon a container's end is on record, with both up and while one dies.

Run it with ``python -m tests.benchmarks.servers [--runs 2000] [--seconds 120]``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from backends.sim import Sim
from orchestrator.backend import Launch, Phase
from orchestrator.reconcile import Retry, Run, RunState, Template
from orchestrator.reconcile.steps import Turn
from orchestrator.store import open_store
from orchestrator.store.records import Store

CONFIG = """\
backends:
  - {{type: sim, state: {state},
     offers: [{{instance_type: sim, cpu: 1000000, memory_bytes: 1000000000000000}}],
     script: {{"task-*": {{run_s: 5.0}}, "web-*": {{ready_s: 0.0}}}}}}
"""
RETRY = Retry(frozenset({"no-capacity", "interruption", "error"}), first_s=0.2, most_s=2.0)
SETTLE_S = 120.0


@dataclass
class Server:
    """One server as a process, on the shared record."""

    folder: Path
    url: str
    name: str
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; it is up when it has said where it listens."""
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "orchestrator.cli", "server", "--listen", "127.0.0.1:0"],
                stdout=subprocess.PIPE, stderr=log, cwd=self.folder,
                env=os.environ | {
                    "PYTHONPATH": str(Path(__file__).parents[2]), "MODELYARD_DATABASE_URL": self.url,
                    "MODELYARD_CONFIG": str(self.folder / "config.yaml"),
                    "XDG_CONFIG_HOME": str(self.folder),
                },
            )  # fmt: skip
        assert self.process.stdout is not None
        self.process.stdout.readline()

    def kill(self) -> None:
        """End it without a word."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def cpu_s(self) -> float:
        """Return the CPU seconds it took since it started."""
        assert self.process is not None
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss_mb(self) -> float:
        """Return the memory it has, in MB."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1000


@dataclass
class Found:
    """What is wrong at the end, and the times that were taken."""

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    calm_s: list[float] = field(default_factory=list)
    killing_s: list[float] = field(default_factory=list)
    kills: int = 0
    idle_cpu: float = 0.0
    rss_mb: float = 0.0

    @property
    def is_well(self) -> bool:
        """Whether nothing was lost, doubled or stuck."""
        return not (self.lost or self.doubled or self.stuck)


def put(store: Store, names: list[str]) -> None:
    """Write runs down as ``apply`` would."""
    now = datetime.now(UTC)
    turns = []
    for name in names:
        kind = "service" if name.startswith("web") else "task"
        launch = Launch(f"{name}-0-0-0", name, spec_hash="h", command=("serve",))
        template = Template(launch, ("sim",), retry=RETRY if kind == "service" else Retry())
        run = Run(f"id-{name}", name, kind, "{}", "h", template, now, created_at=now)  # type: ignore[arg-type]
        turns.append(Turn(run, None))
    store.commit(turns, expected={turn.run.id: 0 for turn in turns})


def trial(folder: Path, url: str, *, runs: int, seconds: float, every_s: float) -> Found:
    """Start two servers, kill one again and again, and look at what became of the runs."""
    (folder / "config.yaml").write_text(CONFIG.format(state=folder / "sim.jsonl"))
    place = Sim(state=folder / "sim.jsonl")
    found = Found()
    names = [f"web-{n}" for n in range(runs // 2)] + [f"task-{n}" for n in range(runs - runs // 2)]
    servers = [Server(folder, url, "one"), Server(folder, url, "two")]
    with open_store(url) as store:
        for server in servers:
            server.start()
        try:
            put(store, names)
            _wait(store, lambda found: all(_is_up(run) for run in found if run.type == "service"), SETTLE_S)
            found.calm_s = _ends(store, place, "web", 100 if runs >= 1_000 else 2, 0)
            began = time.monotonic()
            turn, watched = 0, 0
            while time.monotonic() - began < seconds:
                servers[turn % 2].kill()
                found.killing_s += _ends(store, place, "web", 2, watched)
                watched = (watched + 2) % (runs // 2 - 2)
                servers[turn % 2].start()
                _sleep(every_s)
                found.kills, turn = found.kills + 1, turn + 1
            _wait(store, lambda found: all(map(_is_there, found)), SETTLE_S)
            before = [server.cpu_s() for server in servers]
            _sleep(10.0 if runs >= 1_000 else 0.0)
            after = [server.cpu_s() for server in servers]
            found.idle_cpu = max(b - a for a, b in zip(before, after, strict=True)) / 10.0
            found.rss_mb = max(server.rss_mb() for server in servers)
        finally:
            for server in servers:
                server.kill()
        _judge(store, place, folder / "sim.jsonl", names, found)
    return found


def alone(folder: Path, url: str, *, seconds: float) -> tuple[float, float, float]:
    """Return what a server without runs takes: CPU-seconds to start, of a core at rest, and MB."""
    (folder / "config.yaml").write_text(CONFIG.format(state=folder / "sim.jsonl"))
    server = Server(folder, url, "alone")
    server.start()
    try:
        cold = server.cpu_s()
        _sleep(2.0)
        before = server.cpu_s()
        _sleep(seconds)
        return cold, (server.cpu_s() - before) / seconds, server.rss_mb()
    finally:
        server.kill()


def _judge(store: Store, place: Sim, journal: Path, names: list[str], found: Found) -> None:
    runs = {run.name: run for run in store.runs()}
    found.lost = [name for name in names if name not in runs]
    for name, run in runs.items():
        if not _is_there(run):
            found.stuck.append(f"{name}: {run.state.value} {run.reason}")
    live = Counter(i.run for i in place.instances() if i.phase is not Phase.EXITED)
    found.doubled = [name for name, many in live.items() if many > 1]
    found.stuck += [f"{name}: no container" for name in names if name.startswith("web") and not live[name]]
    starts: Counter[str] = Counter()
    for line in journal.read_text().splitlines():
        record = json.loads(line)
        if "start" in record:
            starts[record["start"]["instance"]["name"]] += 1
    found.doubled += [name for name, many in starts.items() if many > 1]


def _ends(store: Store, place: Sim, prefix: str, many: int, first: int) -> list[float]:
    """End containers behind the servers' backs; return how soon each end was on record, in seconds."""
    took = []
    for n in range(first, first + many):
        run = store.run(f"{prefix}-{n}")
        job = max(store.jobs(run.id), key=lambda job: job.attempt)
        at = time.monotonic()
        place.end(job.name, exit_code=1, reason="error")
        while not any(j.name == job.name and j.state.is_final for j in store.jobs(run.id)):
            if time.monotonic() - at > SETTLE_S:
                break
            _sleep(0.01)
        took.append(time.monotonic() - at)
    return took


def _is_up(run: Run) -> bool:
    return run.state in (RunState.RUNNING, RunState.READY)


def _is_there(run: Run) -> bool:
    """Return whether a run is where it should be at the end."""
    return _is_up(run) if run.type == "service" else run.state is RunState.SUCCEEDED


def _wait(store: Store, until: Callable[[list[Run]], bool], most_s: float) -> None:
    deadline = time.monotonic() + most_s
    while time.monotonic() < deadline:
        if until(store.runs()):
            return
        _sleep(0.25)


def _sleep(seconds: float) -> None:
    time.sleep(seconds)


def quantile(values: list[float], part: float) -> float:
    """Return the value that ``part`` of the values are at most."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


@contextmanager
def database() -> Iterator[str]:
    """Give the URL of an empty database of a server of our own."""
    import psycopg

    from tests.store.conftest import cluster, programs_of_postgres

    programs = programs_of_postgres()
    assert programs is not None, "Debian: apt-get install postgresql"
    with cluster(programs) as url:
        with psycopg.connect(url.format("postgres"), autocommit=True) as connection:
            connection.execute("CREATE DATABASE servers")
        yield url.format("servers")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=2_000)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--every", type=float, default=4.0)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="servers"))
    try:
        with database() as url:
            cold, idle, empty_mb = alone(folder, url, seconds=20.0)
            print(
                f"alone: {cold:.2f} CPU-s to listening, {idle:.2%} of a core, {empty_mb:.0f} MB", flush=True
            )
            found = trial(folder, url, runs=options.runs, seconds=options.seconds, every_s=options.every)
            logs = "".join(path.read_text() for path in folder.glob("*.log"))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"runs {options.runs}, kills {found.kills}, said {len(logs.splitlines())} lines: {logs[:500]}")
    print(f"lost {found.lost[:5]}  doubled {found.doubled[:5]}  stuck {len(found.stuck)} {found.stuck[:5]}")
    for name, took in (("both up", found.calm_s), ("one dying", found.killing_s)):
        if took:
            print(f"{name:10} p50 {quantile(took, 0.5):.2f} s  p99 {quantile(took, 0.99):.2f} s")
    print(f"at rest {found.idle_cpu:.1%} of a core, {found.rss_mb:.0f} MB")
    if not found.is_well:
        sys.exit(1)


if __name__ == "__main__":
    main()
