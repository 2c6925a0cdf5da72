"""Passes of the reconciler over 10,000 runs at rest: ``python -m tests.benchmarks.reconcile``."""

from __future__ import annotations

import statistics
import time
from datetime import UTC, datetime

from orchestrator.backend import Instance, Launch, Phase
from orchestrator.reconcile import Job, JobState, Run, RunState, Template
from orchestrator.reconcile.decide import reconcile
from orchestrator.reconcile.steps import Observed

RUNS = 10_000
T = datetime(2026, 1, 1, tzinfo=UTC)
Case = tuple[Run, list[Job], Observed]


def case(number: int) -> Case:
    """Return one ready service of two replicas, as a server would hold thousands of them."""
    name = f"run-{number}"
    template = Template(Launch(f"{name}-0-0-0", name, spec_hash="h"), ("docker",), replicas=2)
    run = Run(
        str(number), name, "service", "{}", "h", template, T, state=RunState.READY, was_ready=True, ready=2
    )
    jobs = [
        Job(run.id, f"{name}-{r}-0-0", r, 0, 0, "h", "docker", JobState.READY, T, ready_at=T) for r in (0, 1)
    ]
    seen = [Instance(j.name, name, j.replica, 0, 0, "h", Phase.RUNNING, ready=True) for j in jobs]
    return run, jobs, Observed({"docker": seen})


def one_pass(cases: list[Case]) -> int:
    """Decide for every run; return how many actions were asked for."""
    return sum(len(reconcile(run, jobs, observed, now=T).actions) for run, jobs, observed in cases)


def main() -> None:
    """Print one line."""
    cases = [case(number) for number in range(RUNS)]
    assert one_pass(cases) == 0, "runs at rest ask for nothing"
    spent = []
    for _ in range(5):
        start = time.process_time()
        one_pass(cases)
        spent.append(time.process_time() - start)
    median = statistics.median(spent)
    print(
        f"{RUNS:,} runs, 2 replicas each: {median:.2f} CPU-s a pass, {RUNS / median:,.0f} runs a CPU-second"
    )


if __name__ == "__main__":
    main()
