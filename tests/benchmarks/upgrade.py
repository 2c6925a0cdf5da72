"""Print how long a record of 10,000 runs takes to be brought forward from the first schema to the last.

Run it with ``python -m tests.benchmarks.upgrade``; the goal is 30 seconds.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

from orchestrator.store import open_store, revisions
from tests.benchmarks.servers import database
from tests.store.past import left_by

RUNS, EVENTS = 10_000, 10


def measure(url: str) -> tuple[float, float]:
    """Return wall and CPU seconds of the first opening of a record of the first revision."""
    left_by(url, revisions.REVISIONS[0], runs=RUNS, events=EVENTS)
    wall, cpu = time.monotonic(), time.process_time()
    with open_store(url) as store:
        assert len(store.runs()) == RUNS
    return time.monotonic() - wall, time.process_time() - cpu


def main() -> None:
    """Print a line for each kind of record."""
    folder = Path(tempfile.mkdtemp(prefix="upgrade"))
    try:
        found = {"SQLite": measure(f"sqlite:///{folder}/state.db")}
    finally:
        shutil.rmtree(folder)
    with database() as url:
        found["PostgreSQL"] = measure(url)
    many = f"{RUNS:,} runs, {RUNS * EVENTS:,} events, {revisions.REVISIONS[0]} to {revisions.HEAD}"
    for name, (wall, cpu) in found.items():
        print(f"{name}: {many}: {wall:.1f} s, {cpu:.1f} CPU-s here")


if __name__ == "__main__":
    main()
