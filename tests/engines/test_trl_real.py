"""TRL, run for real on this machine's CPU with the commands we generate: tuned, stopped, resumed.

``MODELYARD_TRL_PYTHON`` names an interpreter with torch, trl and peft; without it these tests skip,
unless ``MODELYARD_REQUIRE`` asks for them.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.catalog.values import ModelFacts
from orchestrator.engines import EngineLaunch, Source, trainer
from orchestrator.engines.tuning import Dataset, Tuned, TuningJob, Value
from tests.engines.test_parsers import interpreter

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TINY = ModelFacts("tiny", "LlamaForCausalLM", 2, 48, 96, 4, 2, 12, 259, context=256)
QUICK: Mapping[str, Value] = {"logging_steps": 1, "seed": 3, "warmup_steps": 0, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def python() -> Path:
    """Return the interpreter that has TRL."""
    return Path(interpreter("trl"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, python: Path) -> Path:
    """Return a folder with the tiny model and two sets of rows."""
    folder = tmp_path_factory.mktemp("tuning")
    maker = Path(__file__).with_name("make_tiny.py")
    subprocess.run([python, maker, folder / "model"], check=True, capture_output=True)
    turns = [
        [{"role": "user", "content": f"{n}"}, {"role": "assistant", "content": f"{n * 2}"}] for n in range(64)
    ]
    sft = [{"messages": pair} for pair in turns]
    dpo = [{"prompt": t[:1], "chosen": t[1:], "rejected": t[:1][::-1]} for t in turns]
    for name, rows in (("sft", sft), ("dpo", dpo)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def job(home: Path, output: Path, **args: Value) -> TuningJob:
    """Return a LoRA run of the tiny model on the CPU."""
    return TuningJob(
        TINY,
        Source("tiny", path=str(home / "model")),
        Dataset("sft.jsonl", path=str(home / "sft.jsonl")),
        str(output),
        tuned=Tuned("lora", rank=4),
        precision="fp32",
        sequence_tokens=64,
        micro_batch=2,
        checkpointing=False,
        fetch_bytes=0,
        args={**QUICK, **args},
    )


def start(launch: EngineLaunch, python: Path, files: Path) -> subprocess.Popen[str]:
    """Start a launch as a process, with its files in ``files`` and no image."""
    files.mkdir()
    for file in launch.files:
        (files / Path(file.target).name).write_bytes(file.content)
    words = [w.replace("/modelyard", str(files)) for w in (*(launch.entrypoint or ()), *launch.command)]
    variables = {**os.environ, **dict(launch.env), "HF_HOME": str(files / "home")}
    variables["PATH"] = f"{python.parent}:{variables['PATH']}"
    return subprocess.Popen(
        words, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=files
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Return the output of a process that has to end well."""
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said[-3000:]
    return said


def step_of(checkpoint: Path) -> int:
    """Return the step a checkpoint was written at."""
    step: int = json.loads((checkpoint / "trainer_state.json").read_text())["global_step"]
    return step


def test_supervised_tuning_leaves_an_adapter(home: Path, python: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    launch = trainer("trl").launch(job(home, output, max_steps=3))
    finish(start(launch, python, tmp_path / "files"))
    assert (output / "adapter_model.safetensors").stat().st_size > 0
    assert json.loads((output / "adapter_config.json").read_text())["r"] == 4


def test_preferences_are_learnt(home: Path, python: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    pairs = replace(job(home, output, max_steps=2), method="dpo")
    pairs = replace(pairs, dataset=Dataset("dpo.jsonl", path=str(home / "dpo.jsonl")))
    finish(start(trainer("trl").launch(pairs), python, tmp_path / "files"))
    assert (output / "adapter_model.safetensors").exists()


def test_stopped_run_keeps_its_step_and_is_resumed_there(home: Path, python: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    first = start(trainer("trl").launch(job(home, output, max_steps=100_000)), python, tmp_path / "first")
    assert first.stdout
    for line in first.stdout:  # one line a step
        if "'loss'" in line:
            break
    first.send_signal(signal.SIGTERM)
    finish(first)
    [saved] = output.glob("checkpoint-*")
    stopped_at = step_of(saved)
    assert stopped_at >= 1

    again = replace(job(home, output, max_steps=stopped_at + 2), resume=str(saved))
    finish(start(trainer("trl").launch(again), python, tmp_path / "second"))
    assert step_of(output / f"checkpoint-{stopped_at + 2}") == stopped_at + 2
