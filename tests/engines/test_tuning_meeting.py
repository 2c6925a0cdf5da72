"""Nodes of a training run meet before the trainer starts: or say in words why they do not."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from orchestrator.engines import tuning_meeting
from orchestrator.engines.tuning_meeting import Apart, Told, follow, lead


@pytest.fixture
def port() -> int:
    """Return a port that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look more often than on real networks."""
    monkeypatch.setattr(tuning_meeting, "TRY_S", 0.02)
    monkeypatch.setattr(tuning_meeting, "NOTE_AFTER_S", 0.0)


def never() -> bool:
    return False


def unsaid(_: str) -> None:
    """Hear a note, and keep it to oneself."""


@contextmanager
def led(nodes: int, port: int, step: int, **way: Any) -> Iterator[Future[None]]:
    """Lead a meeting in a thread of its own."""
    way = {"is_told": never, "note": unsaid, "wait_s": 30.0, **way}
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(lead, "sft", nodes, port, step, **way)


def followed(rank: int, port: int, sees: Callable[[int], bool] = lambda _: True, **way: Any) -> int:
    way = {"is_told": never, "note": unsaid, "wait_s": 30.0, **way}
    return follow("sft", rank, "127.0.0.1", port, sees=sees, **way)


@pytest.mark.parametrize("step", [0, 50, -1])
def test_all_go_on_from_what_the_first_has(port: int, step: int) -> None:
    with led(3, port, step) as leader, ThreadPoolExecutor(2) as pool:
        steps = list(pool.map(lambda rank: followed(rank, port), (1, 2)))
        assert leader.result() is None
    assert steps == [step, step]


def test_port_is_free_for_the_trainer_right_afterwards(port: int) -> None:
    with led(2, port, 0) as leader:
        followed(1, port)
        leader.result()
    with socket.socket() as trainers:  # without SO_REUSEADDR: nothing of ours may linger there
        trainers.bind(("127.0.0.1", port))


def test_node_that_does_not_see_the_checkpoint_is_named(port: int) -> None:
    with led(2, port, 50) as leader:
        with pytest.raises(Apart, match="node 1 does not see checkpoint-50"):
            followed(1, port, sees=lambda step: step != 50)
        with pytest.raises(Apart, match="node 1 does not see checkpoint-50: all nodes need one folder"):
            leader.result()


def test_port_that_is_taken_is_said_at_once(port: int) -> None:
    with socket.socket() as other:
        other.bind(("", port))
        other.listen()
        with pytest.raises(Apart, match=f"port {port}, where the nodes meet, cannot be had here: Address"):
            lead("sft", 2, port, 0, is_told=never, note=unsaid)


def test_node_that_does_not_come_is_named(port: int) -> None:
    noted: list[str] = []
    with led(3, port, 0, wait_s=1.0, note=noted.append) as leader:
        with pytest.raises(Apart, match=r"node 0 at .* left before all nodes had come"):
            followed(2, port)
        with pytest.raises(Apart, match="node 1 did not come to port"):
            leader.result()
    assert noted[0].startswith(f"waits on port {port} for node 1")


def test_first_node_that_is_not_there_is_said(port: int) -> None:
    noted: list[str] = []
    with pytest.raises(Apart, match=f"node 0 cannot be reached at 127.0.0.1:{port}: connection refused"):
        followed(1, port, wait_s=0.1, note=noted.append)
    assert noted == [f"waits for node 0 at 127.0.0.1:{port}: connection refused"]


def test_run_that_is_stopped_does_not_wait_on(port: int) -> None:
    with pytest.raises(Told):
        lead("sft", 2, port, 0, is_told=lambda: True, note=unsaid)
    with pytest.raises(Told):
        followed(1, port, is_told=lambda: True)


def test_strangers_are_sent_away(port: int) -> None:
    with led(2, port, 7) as leader, ThreadPoolExecutor(1) as pool:
        stranger = pool.submit(
            follow,
            "dpo",
            1,
            "127.0.0.1",
            port,
            sees=lambda _: True,
            is_told=never,
            note=unsaid,
            wait_s=30.0,
        )
        assert followed(1, port) == 7
        leader.result()
        with pytest.raises(Apart):
            stranger.result()
