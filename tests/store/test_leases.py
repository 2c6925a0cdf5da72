from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta

import pytest

from orchestrator.store.leases import is_gone, this_owner
from orchestrator.store.records import Store
from tests.store.values import T0, a_run, made

LATER = T0 + timedelta(seconds=30)


@pytest.fixture
def two(store: Store) -> list[str]:
    """The ids of two runs in the store."""
    runs = [a_run("chat"), a_run("embed")]
    store.commit([made(run) for run in runs])
    return [run.id for run in runs]


def _alive(_owner: str) -> bool:
    return False


def _dead(_owner: str) -> bool:
    return True


def test_a_free_run_is_taken_and_a_held_one_is_not(store: Store, two: list[str]) -> None:
    assert store.lease(two[:1], owner="a", until=LATER, now=T0, is_gone=_alive) == {two[0]}

    assert store.lease(two, owner="b", until=LATER, now=T0, is_gone=_alive) == {two[1]}


def test_an_owner_may_take_its_own_again(store: Store, two: list[str]) -> None:
    store.lease(two, owner="a", until=LATER, now=T0, is_gone=_alive)

    assert store.lease(two, owner="a", until=LATER, now=T0, is_gone=_alive) == set(two)


def test_a_lease_that_ran_out_is_taken(store: Store, two: list[str]) -> None:
    store.lease(two, owner="a", until=LATER, now=T0, is_gone=_alive)

    assert store.lease(two, owner="b", until=LATER, now=LATER, is_gone=_alive) == set(two)


def test_a_dead_owners_lease_is_taken_at_once(store: Store, two: list[str]) -> None:
    store.lease(two, owner="a", until=LATER, now=T0, is_gone=_alive)

    assert store.lease(two, owner="b", until=LATER, now=T0, is_gone=_dead) == set(two)


def test_a_renewed_lease_holds_until_its_new_end(store: Store, two: list[str]) -> None:
    store.lease(two, owner="a", until=LATER, now=T0, is_gone=_alive)

    store.renew("a", until=LATER + timedelta(seconds=1))

    assert store.lease(two, owner="b", until=LATER, now=LATER, is_gone=_alive) == set()


def test_a_released_lease_is_free_and_only_the_owner_releases(store: Store, two: list[str]) -> None:
    store.lease(two, owner="a", until=LATER, now=T0, is_gone=_alive)

    store.release("b", two)
    store.release("a", two[:1])

    assert store.lease(two, owner="c", until=LATER, now=T0, is_gone=_alive) == {two[0]}


def test_a_lease_survives_a_turn_and_does_not_move_the_serial(store: Store, two: list[str]) -> None:
    store.lease(two, owner="a", until=LATER, now=T0, is_gone=_alive)

    store.commit([made(a_run("chat"))], expected={two[0]: 1})

    assert store.lease(two, owner="b", until=LATER, now=T0, is_gone=_alive) == set()


def test_a_run_that_is_not_there_cannot_be_leased(store: Store) -> None:
    assert store.lease(["nobody"], owner="a", until=LATER, now=T0) == set()
    assert store.lease([], owner="a", until=LATER, now=T0) == set()


def test_a_process_that_lives_is_not_gone_and_one_that_ended_is() -> None:
    program = (
        "import sys; from orchestrator.store.leases import this_owner; print(this_owner()); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin is not None
    assert child.stdout is not None
    owner = child.stdout.readline().strip()

    living = is_gone(owner)
    child.stdin.close()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    zombie = is_gone(owner)
    child.wait()
    child.stdout.close()

    assert (living, zombie, is_gone(owner)) == (False, True, True)


def test_another_process_of_the_same_number_is_not_the_owner() -> None:
    host, pid, ticks = this_owner().rsplit(":", 2)

    assert is_gone(f"{host}:{pid}:{int(ticks) - 1}")
    assert int(pid) == os.getpid()


@pytest.mark.parametrize("owner", ["elsewhere:999999999:1", "no owner at all", "", "a:b:c"])
def test_nobody_knows_of_an_owner_elsewhere(owner: str) -> None:
    assert not is_gone(owner)
