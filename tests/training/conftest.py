"""A user who tunes a tiny model on this machine, with a trainer of an environment of its own.

``MODELYARD_TRL_PYTHON`` names an interpreter with torch, trl, peft, s3fs and ``transformers[serving]``;
without it these tests skip, unless ``MODELYARD_REQUIRE`` asks for ``trl``.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from platform import machine
from types import MappingProxyType
from typing import Any

import pytest

from tests.engines.test_parsers import interpreter

ROOT = Path(__file__).parents[2]
SPEC = """\
type: task
name: {name}
backends: [process]
train:
  method: {method}
  model: ./model
  dataset: {dataset}
  adapter: {{type: lora, rank: 4}}
  sequence_length: 64
  batch_size: 2
  args: {{max_steps: {steps}, save_steps: {save}, logging_steps: 1, learning_rate: 0.01, seed: 3}}
  output: {output}
  merge: {merge}
env: {{OMP_NUM_THREADS: "1"{env}}}
"""


def needed(python: Path) -> tuple[Path, ...]:
    """Return what a container has to see of this machine to run an environment's Python with torch.

    The environment; the interpreter it leads to, which our image has by another name; and what
    torch loads besides: libstdc++ and old names of libc's parts.
    """
    libraries = (Path(f"{root}/{machine()}-linux-gnu") for root in ("/lib", "/usr/lib"))
    return (python.parents[1], python.resolve().parent, *libraries)


STEPS = 1500
"""Of a run that can be stopped: transformers waits 3 s after the signal, and made 130 steps a second."""


@dataclass
class User:
    """Someone at a prompt, in a folder with a tiny model and data for each method."""

    folder: Path
    python: Path

    def __call__(self, *words: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Run a command; ``code`` None takes any."""
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator.cli", *words], cwd=self.folder, env=self.environment(),
            capture_output=True, text=True, timeout=280,
        )  # fmt: skip
        assert code in (None, done.returncode), (words, done.returncode, done.stderr[-3000:])
        return done

    def environment(self) -> dict[str, str]:
        """Return the variables of its shell: the trainer's ``python3`` comes first."""
        kept = {name: os.environ[name] for name in ("TMPDIR", "LANG") if name in os.environ}
        path = f"{self.python.parent}:{os.environ['PATH']}"
        return kept | {"HOME": str(self.folder), "PATH": path, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}

    def write(
        self, name: str, *, method: str = "sft", steps: int = STEPS, merge: bool = False, more: str = "",
        dataset: str = "", output: str = "", save: int = 25, env: Mapping[str, str] = MappingProxyType({}),
    ) -> str:  # fmt: skip
        """Write a spec and return its path; ``save`` steps lie between two checkpoints."""
        text = SPEC.format(
            name=name, method=method, steps=steps, save=save, merge=str(merge).lower(),
            dataset=dataset or f"./{method}.jsonl", output=output or f"./out-{name}",
            env="".join(f", {key}: {json.dumps(value)}" for key, value in env.items()),
        )  # fmt: skip
        (self.folder / f"{name}.yaml").write_text(text + more)
        return f"{name}.yaml"

    def until_step(self, name: str, step: int) -> None:
        """Return once training is at a step, as ``logs -f`` tells it."""
        follow = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.cli", "logs", "-f", name], cwd=self.folder,
            env=self.environment(), stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        with follow:
            assert follow.stdout
            told = (re.match(r'modelyard: {"step": (\d+)', line) for line in follow.stdout)
            reached = next((int(found[1]) for found in told if found and int(found[1]) >= step), None)
            follow.kill()
        assert reached is not None, self("logs", name, code=None).stdout[-3000:]

    def trainer(self, name: str) -> int:
        """Return the process that trains."""
        out, script = str(self.folder / f"out-{name}").encode(), b"trl.scripts.sft"
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue  # it has ended
            if out in words and script in words and b"--" not in words:
                return int(process.name)
        raise AssertionError(f"nothing trains {name}")

    def shown(self, name: str) -> dict[str, Any]:
        """Return a run as it is on record."""
        found: dict[str, Any] = json.loads(self("show", name, "--json").stdout)["run"]
        return found

    def loss(self, name: str) -> float:
        """Return the loss of the last step of a run that has ended well."""
        run = self.shown(name)
        assert run["state"] == "succeeded", run
        state = next(each for each in run["artifacts"] if each["kind"] == "state")
        return float(state["metrics"]["loss"])

    def said(self, name: str) -> str:
        """Return what the last attempt printed."""
        return self("logs", name).stdout


@pytest.fixture(scope="session")
def user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    """Make the model and the data, and leave nothing running."""
    python, folder = Path(interpreter("trl")), tmp_path_factory.mktemp("training")
    maker = Path(__file__).parents[1] / "engines" / "make_tiny.py"
    subprocess.run([python, maker, folder / "model"], check=True, capture_output=True)
    turns = [
        [{"role": "user", "content": f"{n}"}, {"role": "assistant", "content": f"{n * 2}"}] for n in range(64)
    ]
    sft = [{"messages": pair} for pair in turns]
    dpo = [{"prompt": t[:1], "chosen": t[1:], "rejected": t[:1][::-1]} for t in turns]
    for name, rows in (("sft", sft), ("dpo", dpo)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    one = User(folder, python)
    yield one
    for run in json.loads(one("ps", "-a", "--json").stdout)["runs"]:
        one("delete", run["name"], "-y")
