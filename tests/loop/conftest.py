"""A record in a folder of the test's own, and runs to put on it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from orchestrator.backend import Launch, Port, Probe
from orchestrator.reconcile import Retry, Run, RunState, Template
from orchestrator.reconcile.steps import Turn
from orchestrator.store import open_store
from orchestrator.store.records import Store

RETRY = Retry(frozenset({"no-capacity", "interruption", "error"}), first_s=0.02, most_s=0.1)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty record."""
    with open_store(f"sqlite:///{tmp_path}/state.db") as opened:
        yield opened


def put(store: Store, name: str, *, type: str = "task", probe: Probe | None = None, **shape: object) -> Run:
    """Write down a run as ``apply`` would."""
    now = datetime.now(UTC)
    ports = (Port(probe.port),) if probe else ()
    launch = Launch(
        f"{name}-0-0-0", name, spec_hash="h", probe=probe, ports=ports,
        secrets=shape.pop("secrets", ()),  # type: ignore[arg-type]
    )  # fmt: skip
    template = Template(launch, ("sim",), **shape)  # type: ignore[arg-type]
    run = Run(f"id-{name}", name, type, "{}", "h", template, now, created_at=now)  # type: ignore[arg-type]
    store.commit([Turn(run, None)], expected={run.id: 0})
    return run


def state(store: Store, name: str) -> RunState:
    """Return where a run is on record."""
    return store.run(name).state
