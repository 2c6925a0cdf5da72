"""1,000 launches of two control planes on one fleet: nothing of a host is ever given to two at once.

Between two calls of one plane the other may do as it likes.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from backends.ssh.host import HostDocker
from orchestrator.backend import Launch, Resources
from orchestrator.errors import Busy, NoCapacity
from tests.backends.ssh.books import GIB, HOSTS, Books, fleet

LAUNCHES = 1_000


def launch_all(books: Sequence[Books], seed: int, count: int = LAUNCHES) -> int:
    """Start launches from two planes, each with several hands, and end some whenever it is full."""
    planes = [fleet(books, n) for n in range(2)]
    chance = random.Random(seed)
    sizes = [chance.choice((0, 0, 0, 1, 1, 2, 4)) for _ in range(count)]

    def hand(which: int) -> int:
        plane, begun, mine = planes[which % 2], 0, []
        for number in range(which, count, 4):
            gpus = sizes[number]
            wanted = {"accelerator": "Test One", "accelerators": gpus} if gpus else {}
            resources = Resources(cpu=2.0 * gpus or 5.0, memory_bytes=GIB, **wanted)
            launch = Launch(f"job-{number}-0-0", "job", image="x", replica=number, resources=resources)
            try:
                plane.start(launch, secrets={}, progress=lambda _: None)
            except (NoCapacity, Busy):
                for name in mine[: len(mine) // 2 + 1]:
                    plane.remove(name)
                mine = mine[len(mine) // 2 + 1 :]
                continue
            begun += 1
            mine.append(launch.name)
        return begun

    with ThreadPoolExecutor(4) as pool:
        return sum(pool.map(hand, range(4)))


@pytest.fixture(autouse=True)
def in_each_others_way(monkeypatch: pytest.MonkeyPatch, folders: Path) -> Iterator[None]:
    """Let planes take turns all the time, and step back without a pause: they meet the more often."""
    assert folders
    monkeypatch.setattr("backends.docker._pause_unlike_others", lambda _met: None)
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval_s)


def test_two_planes_spread_a_thousand_launches_and_nothing_is_given_twice() -> None:
    books = [Books() for _ in range(HOSTS)]
    begun = launch_all(books, seed=1)
    assert [each.twice for each in books] == [[]] * HOSTS
    assert begun > LAUNCHES // 3
    assert all(each.containers for each in books)


@pytest.mark.parametrize("blind", ["_meets_another", "_is_overfull"])
def test_a_plane_that_does_not_look_again_is_caught(blind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HostDocker, blind, lambda *_: False)
    for seed in range(20):
        books = [Books() for _ in range(HOSTS)]
        launch_all(books, seed, count=200)
        if any(each.twice for each in books):
            return
    pytest.fail("launches met and nobody noticed")
