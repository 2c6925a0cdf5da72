"""The program that every node of a replica starts with, run for real on loopback."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.engines import engine, node_entry, nodes
from tests.engines.jobs import job

TELL = "import json, os, sys; print(json.dumps({'argv': sys.argv[1:], 'env': dict(os.environ)}))"


def start(tmp_path: Path, words: list[str], **variables: str) -> dict[str, Any]:
    """Run the delivered file as a node would, with a program in the engine's place that tells what it got."""
    delivered = tmp_path / "node_entry.py"
    delivered.write_bytes(nodes.entry_file().content)
    done = subprocess.run(
        [sys.executable, str(delivered), *words],
        env={"PATH": os.environ["PATH"], **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@pytest.mark.parametrize(("rank", "added"), [("0", []), ("1", ["--headless"])])
def test_followers_get_their_argument_and_rank_0_does_not(
    tmp_path: Path, rank: str, added: list[str]
) -> None:
    words = ["--headless", "--", sys.executable, "-c", TELL, "--node-rank", nodes.RANK]
    told = start(tmp_path, words, MODELYARD_NODE_RANK=rank, MODELYARD_MASTER_NODE_IP="127.0.0.1")
    assert told["argv"] == ["--node-rank", rank, *added]


def test_address_and_interface_are_those_on_the_way_to_rank_0(tmp_path: Path) -> None:
    variables = {**dict(nodes.ENV), "VLLM_HOST_IP": nodes.OWN}
    words = ["--", sys.executable, "-c", TELL]
    told = start(tmp_path, words, MODELYARD_NODE_RANK="1", MODELYARD_MASTER_NODE_IP="127.0.0.1", **variables)
    assert told["env"]["VLLM_HOST_IP"] == "127.0.0.1"
    assert told["env"]["NCCL_SOCKET_IFNAME"] == told["env"]["GLOO_SOCKET_IFNAME"] == "lo"


def test_values_set_by_hand_are_kept(tmp_path: Path) -> None:
    words = ["--", sys.executable, "-c", TELL]
    told = start(
        tmp_path,
        words,
        MODELYARD_NODE_RANK="0",
        MODELYARD_MASTER_NODE_IP="127.0.0.1",
        NCCL_SOCKET_IFNAME="ib0",
    )
    assert told["env"]["NCCL_SOCKET_IFNAME"] == "ib0"


def test_unknown_references_are_left_as_they_are() -> None:
    assert node_entry.expand("$(HOME) $(MODELYARD_X)", {"HOME": "/root"}) == "$(HOME) $(MODELYARD_X)"


@pytest.mark.parametrize("name", ["vllm", "sglang"])
def test_nodes_of_one_replica_share_their_command(name: str) -> None:
    """A cluster backend has one template for all nodes of a group."""
    wide = job(count=8, nodes=2, tensor=8, pipeline=2)
    first, second = (engine(name).launch(wide, node_rank=rank) for rank in (0, 1))
    assert (first.entrypoint, first.command, first.env) == (second.entrypoint, second.command, second.env)
    assert first.probe
    assert second.probe is None
    assert second.port == 0
    assert not second.routes


@pytest.mark.parametrize("name", ["nim", "tgi", "transformers"])
def test_engines_of_one_node_refuse_two(name: str) -> None:
    assert engine(name).refuses(job(nodes=2, tensor=2)) is not None
    with pytest.raises(ValueError, match="one"):
        engine(name).launch(job(), node_rank=1)


class NoRoute(socket.socket):
    """A network that comes up after the program: two attempts fail first."""

    failures = 0

    def connect(self, address: object) -> None:
        """Reach loopback once there is a way."""
        if NoRoute.failures:
            NoRoute.failures -= 1
            raise OSError(errno.ENETUNREACH, "Network is unreachable")
        super().connect(("127.0.0.1", 9))


def test_a_network_that_comes_after_the_program_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(node_entry.socket, "socket", NoRoute)
    monkeypatch.setattr(node_entry.time, "sleep", slept.append)
    NoRoute.failures = 2
    assert node_entry.own_address("node-0") == "127.0.0.1"
    assert len(slept) == 2

    NoRoute.failures = 1000
    monkeypatch.setattr(node_entry.time, "monotonic", iter(range(0, 10_000, 100)).__next__)
    with pytest.raises(SystemExit, match="node 0 at node-0 cannot be reached: Network is unreachable"):
        node_entry.own_address("node-0")
