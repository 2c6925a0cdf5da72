"""Commands that people write start an engine, and what they say is read back."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.engines import engine
from orchestrator.engines.script import commands, in_container
from orchestrator.engines.written import written
from tests.engines.jobs import job

SERVED: dict[str, tuple[list[str], str, dict[str, Any], dict[str, Any]]] = {
    "vllm serve": (
        ["vllm serve a/b --max-model-len=8192 --dtype half --kv-cache-dtype fp8_e4m3"],
        "vllm",
        {"model.id": "a/b", "model.context": 8192, "model.precision": "fp16", "model.kv_cache": "fp8"},
        {},
    ),
    "the module, by way of a shell": (
        ["set -e", "nohup python3 -u -m vllm.entrypoints.openai.api_server \\\n  --model a/b > log 2>&1 &"],
        "vllm",
        {"model.id": "a/b"},
        {},
    ),
    "fp8 is a precision and awq is not": (
        ["vllm serve a/b --quantization fp8"],
        "vllm",
        {"model.id": "a/b", "model.precision": "fp8"},
        {},
    ),
    "awq is how weights were made": (
        ["vllm serve a/b -q awq"],
        "vllm",
        {"model.id": "a/b", "model.quantization": "awq"},
        {},
    ),
    "adapters": (
        ["vllm serve a/b --enable-lora --lora-modules x=o/x y=/y --max-loras 4 --max-lora-rank 32"],
        "vllm",
        {
            "model.id": "a/b",
            "model.adapters": [{"name": "x", "id": "o/x"}, {"name": "y", "id": "/y"}],
            "model.max_adapters": 4,
        },
        {},
    ),
    "flags that stay": (
        ["vllm serve a/b --seed 7 --enforce-eager --hf-overrides '{\"a\": 1}'"],
        "vllm",
        {"model.id": "a/b"},
        {"seed": 7, "enforce-eager": True, "hf-overrides": '{"a": 1}'},
    ),
    "sglang with options cut short": (
        ["python -m sglang.launch_server --model a/b --tp 8 --context-length 4096 --mem-fraction-static 0.8"],
        "sglang",
        {"model.id": "a/b", "model.context": 4096},
        {"mem-fraction-static": 0.8},
    ),
    "tgi in docker": (
        [
            "docker run --gpus all -v ~/data:/data -e MAX_TOTAL_TOKENS=4096 -p 80:80 "
            "ghcr.io/huggingface/text-generation-inference:3.3 --model-id a/b"
        ],
        "tgi",
        {"model.id": "a/b", "model.context": 4096},
        {},
    ),
    "a variable of the script": (
        ["N=a/b", "export LEN=2048", "vllm serve ${N} --max-model-len ${LEN:-1}"],
        "vllm",
        {"model.id": "a/b", "model.context": 2048},
        {},
    ),
}


@pytest.mark.parametrize("name", SERVED)
def test_a_command_says_what_a_spec_does(name: str) -> None:
    lines, program, fields, args = SERVED[name]

    (found,) = written(lines, {})

    assert (found.engine, found.fields, found.args, found.unknown) == (program, fields, args, [])


@pytest.mark.parametrize(
    "line",
    [
        "ps aux | grep 'vllm serve'",
        "echo vllm serve a/b",
        "pip install vllm",
        "pkill -f 'python -m vllm.entrypoints.openai.api_server'",
        "vllm bench serve --model a/b",
        "python train.py --model a/b",
    ],
)
def test_what_only_speaks_of_an_engine_is_none(line: str) -> None:
    assert written([line], {}) == ()


def test_what_the_plan_computes_is_left_out_by_name() -> None:
    (found,) = written(["vllm serve a/b -tp 4 --pipeline-parallel-size 2 --nnodes 2 --api-key $KEY"], {})

    assert dict(found.dropped) == {
        "-tp": "computed by the plan",
        "--pipeline-parallel-size": "computed by the plan",
        "--nnodes": "nodes and ranks are set for each node",
        "--api-key": "put VLLM_API_KEY in env",
    }
    assert found.args == {}


def test_an_option_of_another_version_is_kept_and_named() -> None:
    (found,) = written(["vllm serve a/b --swap-space 16"], {})

    assert (found.args, found.unknown) == ({"swap-space": 16}, ["--swap-space"])


def test_a_value_that_only_the_machine_knows_is_left_out() -> None:
    (found,) = written(["vllm serve a/b --max-num-seqs $(nproc) --seed $SEED"], {"SEED": None})

    assert [option for option, _ in found.dropped] == ["--max-num-seqs", "--seed"]
    assert found.args == {}


@pytest.mark.parametrize("model", ["$MODEL", "${{ env.MODEL }}", "$(cat model)"])
def test_a_model_that_only_the_machine_knows_is_a_problem(model: str) -> None:
    (found,) = written([f"vllm serve {model}"], {"MODEL": None})

    assert "only the machine that runs it knows" in found.problem


@pytest.mark.parametrize(
    ("image", "env", "behind", "fields"),
    [
        ("vllm/vllm-openai:v0.9", {}, ["--model", "a/b"], {"model.id": "a/b"}),
        (
            "ghcr.io/huggingface/text-generation-inference:3",
            {"MODEL_ID": "a/b", "NUM_SHARD": "2", "TRUST_REMOTE_CODE": "true"},
            [],
            {"model.id": "a/b"},
        ),
        (
            "nvcr.io/nim/nvidia/llm-nim:1",
            {"NIM_MODEL_NAME": "hf://a/b:v1", "NIM_MAX_MODEL_LEN": "4096"},
            [],
            {"model.id": "a/b", "model.revision": "v1", "model.context": 4096},
        ),
        (
            "nvcr.io/nim/meta/llama-3.1-8b-instruct:1.3",
            {"NGC_API_KEY": None},
            [],
            {"model.id": "meta-llama/Llama-3.1-8B-Instruct"},
        ),
    ],
    ids=["vllm", "tgi", "nim by variable", "nim by image"],
)
def test_an_engines_image_says_it_without_a_command(
    image: str, env: dict[str, str | None], behind: list[str], fields: dict[str, Any]
) -> None:
    (found,) = written([], env, image=image, behind=behind)

    assert found.fields == fields


@pytest.mark.parametrize("image", ["python:3.12", "vllm/vllm-openai:v0.9", "acme/vllm", "pytorch/pytorch"])
def test_an_image_alone_is_no_model(image: str) -> None:
    assert written([], {"MODEL": "a/b"}, image=image) == ()


def test_a_trainers_command_says_how_it_learns() -> None:
    line = (
        "accelerate launch --num_processes $N trl/scripts/dpo.py --model_name a/b --dataset_name o/d "
        "--per_device_train_batch_size 2 --load_in_4bit --use_peft --max_seq_length 1024 --beta 0.2 --new 1"
    )

    (found,) = written([line], {})

    assert found.engine == "trl"
    assert found.fields == {
        "train.method": "dpo",
        "train.model.id": "a/b",
        "train.dataset": "o/d",
        "train.sequence_length": 1024,
        "micro_batch": 2,
        "four_bit": True,
        "peft": True,
    }
    assert (found.args, found.unknown) == ({"beta": 0.2, "new": 1}, ["new"])


def test_axolotl_names_its_file_of_settings() -> None:
    (found,) = written(["axolotl train qlora.yaml --learning-rate 1e-4 --num-processes 2"], {})

    assert (found.settings, found.args) == ("qlora.yaml", {"learning_rate": 0.0001})
    assert [option for option, _ in found.dropped] == ["--num-processes"]


def reads_its_own(name: str) -> None:
    """What an engine is started with here reads back as the engine, the model and its length."""
    sized = job(context_tokens=8192, env=(("NGC_API_KEY", "x"),))
    launch = engine(name).launch(sized)
    words = (*(launch.entrypoint or ()), *launch.command)

    found = written([], dict(launch.env), image=launch.image, behind=words)
    if name != "nim":
        found = written([" ".join(words)], dict(launch.env))

    (one,) = found
    assert (one.engine, one.model) == (name, sized.source.id)
    assert one.fields["model.context"] == 8192


@pytest.mark.parametrize("name", ["nim", "sglang", "vllm"])
def test_what_we_start_reads_back(name: str) -> None:
    reads_its_own(name)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["a 1 2>&1 | tee x"], [("a", "1"), ("tee", "x")]),
        (["a # b", "# c", "d '#e'"], [("a",), ("d", "#e")]),
        (["a 'two", "lines' b"], [("a", "two\nlines", "b")]),
        (["it's broken", "a b"], [("a", "b")]),
        (["X= a $Y $Z"], [("a", "$Z")]),
        (["a $(b | c) d"], [("a", "$_", "d")]),
        (["a ${{ env.X }}/y"], [("a", "${{ env.X }}/y")]),
        (["for i in 1; do a; done"], [("for", "i", "in", "1"), ("do", "a"), ("done",)]),
    ],
    ids=["pipe", "comments", "quotes", "no shell", "empty variable", "substitution", "reference", "loop"],
)
def test_a_script_is_its_commands(lines: list[str], words: list[tuple[str, ...]]) -> None:
    assert [command.words for command in commands(lines, {"Y": ""})] == words


def test_options_with_paths_are_no_images() -> None:
    options = ["-v", "data/x:/data", "--name", "n", "--network", "host", "-w", "work/dir"]

    assert in_container(["docker", "run", *options, "org/image:1", "a"]) == ("org/image:1", ("a",))
