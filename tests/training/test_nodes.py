"""Training on two nodes, each a container of its own on a bridge network, stopped and gone on from."""

from __future__ import annotations

import json
import re
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.engines import Source, trainer
from orchestrator.engines.tuning import Dataset, Tuned, TuningJob
from orchestrator.engines.tuning_entry import INTERRUPTED, REFUSED, lines
from orchestrator.facts import resolve
from tests import images
from tests.training.conftest import User, needed
from tests.training.test_interrupted import NEVER

pytestmark = [pytest.mark.training, pytest.mark.docker, pytest.mark.timeout(600)]

SAME = 1e-3
STEPS = 600


@dataclass
class Lan:
    """A network of containers that share one output."""

    engine: Any
    network: str
    folder: Path
    python: Path

    def job(self, name: str) -> TuningJob:
        """Return what is trained, into a folder of ``name``."""
        model = self.folder / "model"
        args = {"max_steps": STEPS, "logging_steps": 1, "learning_rate": 0.01, "seed": 3, "max_length": 64}
        return TuningJob(
            resolve(model), Source(str(model), path=str(model)),
            Dataset("sft", path=str(self.folder / "sft.jsonl")), str(self.folder / name),
            tuned=Tuned("lora", rank=4), nodes=2, precision="fp32", sequence_tokens=64, save_steps=NEVER,
            image=images.python(), args=args,
        )  # fmt: skip

    def start(self, job: TuningJob, rank: int, *, attempt: int = 0) -> str:
        """Start one node; return its container."""
        home = self.folder / f"home-{Path(job.output).name}-{rank}"
        launch = trainer("trl").launch(replace(job, home=str(home)))
        home.mkdir(exist_ok=True)
        for file in launch.files:
            Path(file.target).write_bytes(file.content)
        environment = {
            **dict(launch.env), "MODELYARD_NODES_NUM": "2", "MODELYARD_NODE_RANK": str(rank),
            "MODELYARD_MASTER_NODE_IP": self.name(job, 0, attempt),
            "MODELYARD_RUN_NAME": Path(job.output).name, "MODELYARD_RUN_SINCE": "monday",
            "PATH": f"{self.python.parent}:/bin", "OMP_NUM_THREADS": "1",
            "HF_HOME": str(self.folder / "hub"), "HOME": str(self.folder),
        }  # fmt: skip
        seen = [self.folder, *needed(self.python)]
        made = self.engine.create_container(
            job.image, [*(launch.entrypoint or ()), *launch.command], environment=environment,
            name=self.name(job, rank, attempt),
            host_config=self.engine.create_host_config(
                binds=[f"{path}:{path}" for path in seen], network_mode=self.network, init=True,
            ),
            networking_config=None,
        )  # fmt: skip
        self.engine.start(made["Id"])
        return str(made["Id"])

    def name(self, job: TuningJob, rank: int, attempt: int) -> str:
        """Return a container's name, which the network knows."""
        return f"{self.network}-{Path(job.output).name}-{rank}-{attempt}"

    def pair(self, job: TuningJob, *, attempt: int = 0) -> tuple[str, str]:
        """Start both nodes."""
        return self.start(job, 0, attempt=attempt), self.start(job, 1, attempt=attempt)

    def until_step(self, container: str, step: int) -> None:
        """Return once training is at a step, as the first node tells it."""
        follow = ["docker", "logs", "--follow", container]
        with subprocess.Popen(follow, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as output:
            assert output.stdout
            told = (re.match(r'modelyard: {"step": (\d+)', line) for line in output.stdout)
            reached = any(found and int(found[1]) >= step for found in told)
            output.kill()
        assert reached, self.said(container)

    def ended(self, container: str) -> int:
        """Return the exit code of a node once it has ended."""
        return int(self.engine.wait(container, timeout=240)["StatusCode"])

    def said(self, container: str) -> str:
        """Return what a node printed."""
        return str(self.engine.logs(container).decode())

    def told(self, container: str) -> list[dict[str, Any]]:
        """Return what a node told in lines of ours."""
        return list(lines(iter(self.said(container).splitlines())))

    def losses(self, job: TuningJob) -> dict[int, float]:
        """Return the loss of every step up to the last checkpoint."""
        last = max(Path(job.output).glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]))
        history = json.loads((last / "trainer_state.json").read_text())["log_history"]
        return {entry["step"]: entry["loss"] for entry in history if "loss" in entry}


@pytest.fixture
def lan(user: User) -> Iterator[Lan]:
    """Lend a network, and remove it with all that is on it."""
    images.require_engine()
    import docker

    name = f"modelyard-lan-{uuid.uuid4().hex[:6]}"
    with ExitStack() as left:
        engine = left.enter_context(closing(docker.APIClient(version="auto", timeout=300)))
        engine.create_network(name, driver="bridge")
        left.callback(engine.remove_network, name)
        lent = Lan(engine, name, user.folder, user.python)
        yield lent
        for each in engine.containers(all=True, filters={"network": name}):
            engine.remove_container(each["Id"], force=True)
        for each in engine.containers(all=True, filters={"name": name}):
            engine.remove_container(each["Id"], force=True)


def test_two_nodes_are_stopped_and_go_on_where_they_were(lan: Lan) -> None:
    whole = lan.job("lan-whole")
    nodes = lan.pair(whole)
    assert [lan.ended(each) for each in nodes] == [0, 0], lan.said(nodes[0])
    broken = lan.job("lan-broken")
    first, second = lan.pair(broken)
    lan.until_step(first, 10)
    for node in (first, second):
        lan.engine.kill(node, signal="SIGTERM")
    assert [lan.ended(each) for each in (first, second)] == [INTERRUPTED, INTERRUPTED], lan.said(first)
    told = lan.told(first)
    [saved] = [fact["interrupted"] for fact in told if "interrupted" in fact]
    assert saved >= 10
    nodes = lan.pair(broken, attempt=1)
    assert [lan.ended(each) for each in nodes] == [0, 0], lan.said(nodes[0])
    assert [fact["resumed"] for fact in lan.told(nodes[0]) if "resumed" in fact] == [saved]
    assert [fact["resumed"] for fact in lan.told(nodes[1]) if "resumed" in fact] == [saved]
    expected, found = lan.losses(whole), lan.losses(broken)
    assert expected.keys() - found.keys() <= {saved}  # it was logged after the checkpoint
    assert max(abs(found[step] - expected[step]) for step in found) < SAME
    logged = re.findall(r"\{'loss': '?([\d.e-]+)", lan.said(first))
    assert abs(float(logged[-1]) - expected[saved]) < SAME, "the loss of the step it was stopped at"


def test_nodes_that_cannot_meet_say_so(lan: Lan) -> None:
    job, other = lan.job("lan-apart"), lan.job("lan-other")
    alone = lan.start(other, 0)
    # called as the first node would be, and no node of this run
    lan.engine.disconnect_container_from_network(alone, lan.network)
    lan.engine.connect_container_to_network(alone, lan.network, aliases=[lan.name(job, 0, 0)])
    stranger = lan.start(job, 1)
    assert lan.ended(stranger) == REFUSED
    assert "left before all nodes had come" in lan.told(stranger)[-1]["refused"]
    lan.engine.kill(alone, signal="SIGTERM")
    assert lan.ended(alone) == INTERRUPTED
