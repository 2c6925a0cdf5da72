"""Servers on one PostgreSQL: the work is shared, and what a killed one drove goes on at the other."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from orchestrator.loop.leases import Leases
from orchestrator.reconcile import Run
from orchestrator.store import open_store
from tests.benchmarks.servers import trial
from tests.loop.conftest import put
from tests.server.conftest import Served


@pytest.mark.postgres
def test_nothing_is_lost_doubled_or_stuck_while_servers_are_killed(
    tmp_path: Path, postgres_store_url: str
) -> None:
    found = trial(tmp_path, postgres_store_url, runs=12, seconds=0.1, every_s=0.0)

    assert found.kills == 1
    assert (found.lost, found.doubled, found.stuck) == ([], [], [])


@pytest.mark.postgres
def test_work_is_shared_in_equal_parts_and_handed_over(
    serve: Callable[..., Served], postgres_store_url: str
) -> None:
    one = serve(postgres_store_url, owner="elsewhere:1:1").site
    two = serve(postgres_store_url, owner="elsewhere:2:2").site

    def there() -> bool:
        one._say_there()
        return len(one.peers) == len(two.peers) == 2

    two._say_there()
    assert there()
    assert (one._share(9), two._share(9)) == (5, 5)
    two.store.access.leave(two.owner)
    one._say_there()
    assert one._share(9) == 9


def test_a_server_that_fell_silent_is_no_longer_counted(served: Served) -> None:
    now = datetime.now(UTC)
    access = served.site.store.access
    access.be_there("elsewhere:1:1", until=now + timedelta(seconds=12), now=now)

    assert len(access.be_there(served.site.owner, until=now + timedelta(seconds=12), now=now)) == 2
    later = now + timedelta(seconds=13)
    assert access.be_there(served.site.owner, until=later + timedelta(seconds=12), now=later) == [
        served.site.owner
    ]


def test_a_loop_takes_its_share_and_gives_back_what_is_above_it(tmp_path: Path) -> None:
    share, now = 3, datetime.now(UTC)

    def later() -> datetime:
        nonlocal now
        now += timedelta(seconds=1)
        return now

    def taken(leases: Leases, runs: list[Run]) -> set[str]:
        return {run.id for run in leases.take(runs, is_busy=lambda _: False)}

    with open_store(f"sqlite:///{tmp_path}/state.db") as store:
        for n in range(4):
            put(store, f"hello-{n}x")
        runs = store.active_runs()
        one = Leases(store, "a:1:1", later, look_s=None, share=lambda _: share)
        two = Leases(store, "b:2:2", later, look_s=None, share=lambda _: 2)
        with closing(one), closing(two):
            assert (len(taken(one, runs)), len(taken(two, runs))) == (3, 1)
            share = 2
            assert (len(taken(one, runs)), len(taken(two, runs))) == (2, 2)
            assert not taken(one, runs) & taken(two, runs)
