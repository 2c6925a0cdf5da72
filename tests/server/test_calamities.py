"""What befalls a server: a database that restarts, a disk that is full, clocks that jump."""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from orchestrator.errors import ModelyardError, StoreError
from orchestrator.reconcile import JobState, RunState, Wanted
from orchestrator.spec.load import read
from tests.server.conftest import Served
from tests.store.conftest import restart

HELLO = "type: task\nname: {}\ncommands: [echo hi]\n"
WEB = "type: service\nname: web\nport: 8000\ncommands: [serve]\nprobes: [{type: http, url: /}]\n"


def apply(served: Served, *names: str) -> None:
    client = served.client()
    client.apply(client.plan([d for name in names for d in read(HELLO.format(name))]))


@pytest.mark.postgres
def test_a_database_that_restarts_in_mid_transaction_costs_that_transaction_alone(
    serve: Callable[..., Served], postgres_store_url: str
) -> None:
    served = serve(postgres_store_url)
    apply(served, "hello-a")
    client = served.client()
    assert client.follow(["hello-a"], "ended", timeout_s=30)
    before = client.events(None)
    store = served.site.store

    def forget_everything() -> None:
        with store.database.writing() as connection:
            connection.exec_driver_sql("DELETE FROM runs")
            restart(postgres_store_url)
            connection.exec_driver_sql("DELETE FROM events")

    with pytest.raises(StoreError):
        forget_everything()

    assert [view.run.name for view in client.runs()] == ["hello-a"]
    assert client.events(None)[: len(before)] == before
    apply(served, "hello-b")
    assert client.follow(["hello-b"], "ended", timeout_s=60)
    assert client.run("hello-b").run.state is RunState.SUCCEEDED
    assert served.http.get(f"{served.url}/readyz").status_code == 200


def test_a_time_out_is_kept_though_the_stream_says_now_and_then_that_it_is_quiet(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.server.streams.QUIET_S", 0.2)
    client = served.client()
    client.apply(client.plan(read(WEB)))
    began = time.monotonic()
    assert not client.follow(["web"], "ended", timeout_s=1.0)
    assert 1.0 <= time.monotonic() - began < 20.0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["sh", "-c", f"mount -t tmpfs -o size=2m tmpfs {folder}"]
    made = subprocess.run(mount, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"file systems cannot be mounted here: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_refuses_and_forgets_nothing(serve: Callable[..., Served], small_disk: Path) -> None:
    served = serve(f"sqlite:///{small_disk}/state.db")
    apply(served, "hello-a")
    client = served.client()
    assert client.follow(["hello-a"], "ended", timeout_s=30)
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space left"):
        filler.write_bytes(b"x" * 2**22)

    with pytest.raises(ModelyardError, match="no space left"):
        apply(served, *(f"hello-{n}x" for n in range(200)))
    assert [view.run.name for view in client.runs()] == ["hello-a"]
    assert served.http.get(f"{served.url}/healthz").status_code == 200

    filler.unlink()
    apply(served, "hello-b")
    assert client.follow(["hello-b"], "ended", timeout_s=60)


@pytest.mark.parametrize("jump", [timedelta(hours=12), timedelta(days=-400)], ids=["ahead", "back"])
def test_a_clock_that_jumps_starts_nothing_twice_and_loses_nothing(
    serve: Callable[..., Served], jump: timedelta
) -> None:
    off = timedelta()
    served = serve(clock=lambda: datetime.now(UTC) + off)
    client = served.client()
    client.apply(client.plan(read(WEB)))
    assert client.follow(["web"], "ready", timeout_s=30)
    off = jump
    served.site.wrote()
    apply(served, "hello-a")
    assert client.follow(["hello-a"], "ended", timeout_s=30)

    assert client.run("web").run.state is RunState.READY
    assert _starts(served) == {"web-0-0-0": 1, "hello-a-0-0-0": 1}
    client.ask(["web"], Wanted.STOP)
    assert client.follow(["web"], "ended", timeout_s=30)


@pytest.mark.postgres
def test_a_server_whose_clock_is_ahead_takes_runs_over_and_doubles_none(
    serve: Callable[..., Served], postgres_store_url: str
) -> None:
    right = serve(postgres_store_url, owner="elsewhere:1:1")
    client = right.client()
    client.apply(client.plan(read(WEB)))
    assert client.follow(["web"], "ready", timeout_s=30)
    ahead = serve(
        postgres_store_url, owner="elsewhere:2:2", clock=lambda: datetime.now(UTC) + timedelta(hours=1)
    )  # it takes every lease for one that has run out
    deadline = time.monotonic() + 30
    while not ahead.site.loop._leases and time.monotonic() < deadline:
        ahead.site.wrote()
    assert ahead.site.loop._leases
    apply(right, "hello-a", "hello-b")
    assert client.follow(["hello-a", "hello-b"], "ended", timeout_s=60)

    assert client.run("web").run.state is RunState.READY
    assert set(_starts(right).values()) == {1}
    jobs = [job for view in client.runs() for job in view.jobs]
    assert [job.state for job in jobs if job.attempt] == []
    assert Counter(job.state for job in jobs) == {JobState.SUCCEEDED: 2, JobState.READY: 1}


def _starts(served: Served) -> Counter[str]:
    """Return how often each launch was truly started, by the journal of the place."""
    assert served.site.config is not None
    journal = served.site.config.with_name("sim.jsonl")
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    return Counter(line["start"]["instance"]["name"] for line in lines if "start" in line)
