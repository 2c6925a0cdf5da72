"""``import --suggest``: the model form beside what was imported, and what the planner says of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.apply import RunPlan
from orchestrator.apply.suggesting import Suggestion, suggest_all
from orchestrator.catalog import ModelFacts
from orchestrator.cli import run
from orchestrator.errors import ModelError
from orchestrator.facts import resolve
from orchestrator.importers import import_text
from orchestrator.render.suggestions import suggestion_text
from orchestrator.spec.load import read
from orchestrator.spec.models import Model, Service, Task

SERVICE = """\
type: service
name: chat
image: vllm/vllm-openai:v0.9.1
env: [MODEL=Qwen/Qwen3-8B, HF_TOKEN]
commands:
  - pip install extra
  - vllm serve $MODEL --max-model-len 8192 --tensor-parallel-size $DSTACK_GPUS_NUM --seed 7 --swap-space 4
port: 8000
resources: {gpu: "H100:8", shm_size: 16GB, disk: 200GB}
"""
TRAINING = """\
name: tune
resources: {accelerators: "H100:4"}
run: |
  trl sft --model_name_or_path Qwen/Qwen3-8B --dataset_name trl-lib/Capybara --output_dir /out \\
    --per_device_train_batch_size 2 --gradient_accumulation_steps 4 --use_peft --lora_r 8 --learning_rate 1e-4
"""


def facts(model: Model) -> ModelFacts:
    return resolve(model.id, revision=model.revision, offline=True)


def suggested(text: str, tool: str = "dstack", folder: Path | None = None) -> tuple[Suggestion, ...]:
    return suggest_all(import_text(text, tool=tool, file="x.yml"), folder=folder, facts=facts)


def says(suggestion: Suggestion) -> str:
    return suggestion_text(suggestion, commented=True)


def test_a_command_becomes_a_model_that_is_sized() -> None:
    (one,) = suggested(SERVICE)

    (document,) = read(one.text)
    spec = document.spec
    assert isinstance(spec, Service)
    assert spec.model is not None
    assert (spec.model.id, spec.model.context, spec.engine) == ("Qwen/Qwen3-8B", 8192, "vllm")
    assert (spec.image, spec.commands, dict(spec.env)) == (None, (), {"HF_TOKEN": None})
    assert spec.args == {"seed": 7, "swap-space": 4}
    assert spec.resources.canonical() == {
        "disk": "200GB",
        "gpu": {"name": ["H100"], "count": "1.."},
    }


def test_what_is_asked_stands_beside_what_is_needed() -> None:
    (one,) = suggested(SERVICE)

    assert one.offered is not None
    assert (one.offered.asked, one.offered.asked_count) == ("8 × H100", 8)
    assert isinstance(one.offered.least, RunPlan)
    assert "asked     8 × H100\n" in says(one)
    assert "needs     1 × H100" in says(one)
    assert "7 fewer than were asked for" in says(one)


def test_every_change_is_told() -> None:
    (one,) = suggested(SERVICE)

    text = "\n".join(one.says)
    for said in (
        "image vllm/vllm-openai:v0.9.1 is left out",
        "left out: --tensor-parallel-size: computed by the plan",
        "vllm 0.33.0 has no --swap-space: kept in args",
        "filled in from env: MODEL",
        "what else runs there is not in it: pip install",
    ):
        assert said in text


def test_a_trainers_command_becomes_a_task_that_is_sized() -> None:
    (one,) = suggested(TRAINING, "skypilot")

    spec = read(one.text)[0].spec
    assert isinstance(spec, Task)
    assert spec.train is not None
    train = spec.train
    assert (train.method, train.model.id, train.dataset) == ("sft", "Qwen/Qwen3-8B", "trl-lib/Capybara")
    assert (train.batch_size, train.epochs, train.sequence_length) == (2 * 4 * 4, 3.0, 1024)
    assert (train.adapter.type, train.adapter.rank, train.adapter.alpha) == ("lora", 8, 32)
    assert train.args == {"learning_rate": 0.0001}
    assert one.offered is not None
    assert isinstance(one.offered.least, RunPlan)


def test_axolotls_settings_are_read_from_what_is_sent_along(tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "qlora.yaml").write_text(
        "base_model: Qwen/Qwen3-8B\nadapter: qlora\nlora_r: 32\nlora_target_linear: true\n"
        "sequence_len: 4096\n"
        "datasets: [{path: org/data, type: alpaca}]\nmicro_batch_size: 2\ngradient_accumulation_steps: 4\n"
        "num_epochs: 1\noutput_dir: ./out\nlearning_rate: 0.0002\n"
    )
    theirs = "name: tune\nworkdir: job\nresources: {accelerators: L4}\n"
    theirs += "run: accelerate launch -m axolotl.cli.train qlora.yaml"

    (one,) = suggested(theirs, "skypilot", tmp_path)

    spec = read(one.text)[0].spec
    assert isinstance(spec, Task)
    assert spec.train is not None
    assert (spec.train.engine, spec.train.dataset, spec.train.batch_size) == ("axolotl", "org/data", 8)
    assert (spec.train.adapter.type, spec.train.adapter.rank) == ("qlora", 32)
    assert spec.train.adapter.targets == ("all-linear",)


def test_settings_that_are_not_here_are_asked_for() -> None:
    (one,) = suggested("run: axolotl train missing.yml", "skypilot")

    assert one.text == ""
    assert "its settings are in missing.yml, which is not here: put it beside this file" in says(one)


def test_an_unknown_model_says_so_and_how_to_give_facts() -> None:
    (one,) = suggested(SERVICE.replace("Qwen/Qwen3-8B", "acme/secret-9b"))

    assert one.text
    assert one.offered is not None
    assert isinstance(one.offered.least, ModelError)
    assert "needs     not known: acme/secret-9b" in says(one)
    assert "config.json" in says(one)


def test_what_no_machine_holds_says_why() -> None:
    theirs = SERVICE.replace("Qwen/Qwen3-8B", "meta-llama/Llama-3.1-405B-Instruct").replace("H100:8", "T4:1")

    (one,) = suggested(theirs)

    assert "more than any machine has that was asked for" in says(one)
    assert "any kind  " in says(one)


def test_words_behind_an_images_entrypoint_are_not_lost() -> None:
    theirs = (
        "services:\n  llm:\n    image: ghcr.io/huggingface/text-generation-inference:3.3\n"
        "    command: --model-id Qwen/Qwen3-8B --num-shard 2\n    ports: ['8080:80']\n"
    )

    (one,) = suggested(theirs, "compose")

    assert one.engine == "tgi"
    assert "model: Qwen/Qwen3-8B" in one.text


def test_two_engines_of_a_script_are_two_documents() -> None:
    theirs = "name: rag\nrun: |\n  vllm serve Qwen/Qwen3-8B &\n  vllm serve Qwen/Qwen3-0.6B --port 8001\n"

    found = suggested(theirs, "skypilot")

    assert [read(one.text)[0].spec.name for one in found] == ["rag", "rag-2"]


def test_nothing_is_suggested_for_what_runs_no_engine() -> None:
    assert suggested("type: task\nname: a\ncommands: [python train.py]") == ()


# --- the command line -----------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "chat.dstack.yml"
    path.write_text(SERVICE)
    return path


def stays_what_was_imported(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["import", "--from", "dstack", str(file)]) == 0
    plain = capsys.readouterr().out

    assert run(["import", "--from", "dstack", "--suggest", str(file)]) == 0

    out = capsys.readouterr().out
    assert out.startswith(plain)
    assert len(out) > len(plain)
    assert [document.spec for document in read(out)] == [document.spec for document in read(plain)]


def test_a_suggestion_on_stdout_is_a_comment(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stays_what_was_imported(file, capsys)


def test_a_suggestion_has_a_file_of_its_own(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = file.with_name("chat.yaml")

    assert run(["import", "--from", "dstack", "--suggest", str(file), "-o", str(target)]) == 0

    beside = file.with_name("chat.suggested.yaml")
    assert f"suggested: {beside}" in capsys.readouterr().err
    assert run(["validate", "-f", str(target)]) == 0
    assert run(["validate", "-f", str(beside)]) == 65, "the one option that this vLLM does not have was kept"
    assert "args.swap-space: vllm 0.33.0 has no option --swap-space" in capsys.readouterr().err
    beside.write_text(beside.read_text().replace("  swap-space: 4\n", ""))
    assert run(["validate", "-f", str(beside)]) == 0
    assert "engine: vllm" in beside.read_text()
    assert "engine: vllm" not in target.read_text()


def test_no_engine_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.yml"
    path.write_text("type: task\nname: a\ncommands: [date]")

    assert run(["import", "--from", "dstack", "--suggest", str(path)]) == 0

    assert "nothing to suggest" in capsys.readouterr().err
