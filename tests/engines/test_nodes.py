"""The program that every node of a replica starts with, run for real on loopback."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.catalog import accelerator
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


FIRST_PROCESS = """\
import runpy, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as it is for process 1 of a container that says nothing
paused = time.sleep
time.sleep = lambda s: (print("waits", flush=True), paused(s))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_node_that_waits_for_rank_0_ends_when_it_is_told_to(tmp_path: Path) -> None:
    delivered = tmp_path / "node_entry.py"
    delivered.write_bytes(nodes.entry_file().content)
    unreached = {"PATH": os.environ["PATH"], "MODELYARD_MASTER_NODE_IP": "255.255.255.255"}
    words = [sys.executable, "-c", FIRST_PROCESS, str(delivered), "--", "true"]
    with subprocess.Popen(words, env=unreached, stdout=subprocess.PIPE, text=True) as waiting:
        try:
            assert waiting.stdout is not None
            assert waiting.stdout.readline() == "waits\n"
            waiting.terminate()
            assert waiting.wait(timeout=20) == 143
        finally:
            waiting.kill()


RAY = """\
import json, os, sys
told = {"argv": sys.argv[1:], "backend": os.environ.get("TPU_MULTIHOST_BACKEND")}
open(os.environ["TOLD"], "a").write(json.dumps(told) + "\\n")
"""
RAY_MODULE = """\
import os
_asked = []
def init(**given): assert given["address"] == "auto"
def shutdown(): open(os.environ["TOLD"], "a").write('"left"\\n')
def nodes():
    _asked.append(1)
    return [{"Alive": True}] * min(len(_asked), 2) + [{"Alive": False}]
"""


@pytest.fixture
def ray(tmp_path: Path) -> dict[str, str]:
    """Have a program and a module in the place of Ray's, and return the variables that lead to them."""
    program = tmp_path / "bin" / "ray"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\n{RAY}")
    program.chmod(0o755)
    (tmp_path / "ray.py").write_text(RAY_MODULE)
    return {
        "PATH": f"{program.parent}:{os.environ['PATH']}", "TOLD": str(tmp_path / "told"),
        "MODELYARD_MASTER_NODE_IP": "127.0.0.1", "MODELYARD_NODES_NUM": "2",
    }  # fmt: skip


def gathered(tmp_path: Path, ray: dict[str, str], rank: str) -> tuple[str, list[Any]]:
    """Run the delivered file as a node of a slice would; return what the command said, and what Ray heard."""
    delivered = tmp_path / "node_entry.py"
    delivered.write_bytes(nodes.entry_file().content)
    words = nodes.gathered([sys.executable, "-c", "print('served')"])[2:]
    done = subprocess.run(
        [sys.executable, str(delivered), *words],
        env={**ray, "MODELYARD_NODE_RANK": rank, "TPU_MULTIHOST_BACKEND": "ray"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout, [json.loads(line) for line in (tmp_path / "told").read_text().splitlines()]


def test_rank_0_of_a_slice_serves_once_every_node_has_joined(tmp_path: Path, ray: dict[str, str]) -> None:
    said, heard = gathered(tmp_path, ray, "0")
    began = ["start", "--head", "--port=6379", "--node-ip-address=127.0.0.1"]
    assert heard == [{"argv": began, "backend": "ray"}, "left"]
    assert said.strip() == "served"


def test_others_of_a_slice_join_and_serve_nothing(tmp_path: Path, ray: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as head:
        port = head.getsockname()[1]
        delivered = nodes.entry_file().content.replace(b"RAY_PORT = 6379", b"RAY_PORT = %d" % port)
        entry = tmp_path / "other_entry.py"
        entry.write_bytes(delivered)
        words = nodes.gathered(["vllm", "serve"])[2:]
        env = {**ray, "MODELYARD_NODE_RANK": "3", "TPU_MULTIHOST_BACKEND": "ray"}
        subprocess.run([sys.executable, str(entry), *words], env=env, check=True)
    (heard,) = [json.loads(line) for line in (tmp_path / "told").read_text().splitlines()]
    address = f"--address=127.0.0.1:{port}"
    assert heard["argv"] == ["start", address, "--node-ip-address=127.0.0.1", "--block"]


def test_a_node_that_stays_away_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"MODELYARD_NODE_IP": "127.0.0.1", "MODELYARD_NODES_NUM": "4", "MODELYARD_MASTER_NODE_IP": "x"}
    present = SimpleNamespace(init=lambda **_: None, nodes=lambda: [{"Alive": True}] * 3)
    monkeypatch.setattr(node_entry, "import_module", lambda _: present)
    monkeypatch.setattr(node_entry.subprocess, "run", lambda *_, **__: None)
    monkeypatch.setattr(node_entry.time, "sleep", lambda _: None)
    monkeypatch.setattr(node_entry.time, "monotonic", iter(range(0, 100_000, 1000)).__next__)
    with pytest.raises(SystemExit, match="3 of 4 nodes have joined"):
        node_entry.lead(values)


def test_a_slice_of_tpus_is_gathered_by_ray() -> None:
    device = accelerator("TPU-V5E")
    wide = job(accelerator=device, count=4, nodes=4, tensor=16)
    first, second = (engine("vllm").launch(wide, node_rank=rank) for rank in (0, 1))
    assert (first.entrypoint, first.command, first.env) == (second.entrypoint, second.command, second.env)
    assert first.command[:4] == ("--ray", "--", "vllm", "serve")
    at = first.command.index("--distributed-executor-backend")
    assert first.command[at + 1] == "ray"
    assert not {"--nnodes", "--node-rank", "--master-addr", "--headless"} & set(first.command)
    assert dict(first.env)["TPU_MULTIHOST_BACKEND"] == "ray"
    assert (bool(first.probe), second.probe, second.port) == (True, None, 0)
    alone = engine("vllm").launch(job(accelerator=device, count=4, tensor=4))
    assert "ray" not in alone.command
