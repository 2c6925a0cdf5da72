"""Every command we generate is one that the engine's own parser accepts.

Needs the engines' packages (no GPU) in environments of their own: ``docs/reference/engines.md``
says how they are made. ``MODELYARD_VLLM_PYTHON`` and ``MODELYARD_SGLANG_PYTHON`` name the
interpreters; without them these tests skip, unless ``MODELYARD_REQUIRE`` asks for them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.catalog import models
from orchestrator.catalog.values import ModelFacts
from orchestrator.engines import ServingJob, engine
from orchestrator.engines.node_entry import command as node_command
from tests.engines.jobs import A100, H100, LLAMA_8B, MODELS, every_job, few_jobs, job

SCRIPT = Path(__file__).with_name("ask_parser.py")
NODE = {"MODELYARD_MASTER_NODE_IP": "10.0.0.1", "MODELYARD_NODE_IP": "10.0.0.2", "MODELYARD_NODE_RANK": "1"}


def interpreter(name: str) -> str:
    """Return the interpreter that has ``name``, or skip the test."""
    variable = f"MODELYARD_{name.upper()}_PYTHON"
    python = os.environ.get(variable)
    if python is None:
        if name in os.environ.get("MODELYARD_REQUIRE", "").split(","):
            pytest.fail(f"{variable} is not set, and MODELYARD_REQUIRE asks for {name}")
        pytest.skip(f"{variable} names no interpreter with {name}")
    return python


def ask(name: str, questions: Iterable[tuple[tuple[str, ...], str | None]]) -> list[dict[str, Any]]:
    """Return the parser's verdicts on command lines, in order."""
    lines = [json.dumps({"argv": argv, "folder": folder}) for argv, folder in questions]
    done = subprocess.run(
        [interpreter(name), str(SCRIPT), name],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        check=False,
    )
    verdicts = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(verdicts) == len(lines), done.stderr[-2000:]
    return verdicts


def argv_of(name: str, sized: ServingJob) -> tuple[str, ...]:
    """Return what the engine's program gets on a node of ``sized``, a follower where there are several."""
    launch = engine(name).launch(sized)
    words = (*(launch.entrypoint or ()), *launch.command)
    if sized.nodes > 1:
        words = tuple(node_command(words[2:], NODE))
    prefix = {"vllm": 2, "sglang": 3}[name]
    return words[prefix:]


def distinct(name: str, models: Iterable[ModelFacts]) -> dict[tuple[str, ...], ServingJob]:
    """Return every different command line for ``models``, with a job that gives it."""
    served = engine(name)
    return {argv_of(name, sized): sized for sized in every_job(models) if served.refuses(sized) is None}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["vllm", "sglang"])
def test_every_command_parses(name: str) -> None:
    """Every catalog model × device family × precision × option that the engine does not refuse."""
    interpreter(name)
    commands = distinct(name, models().values())
    verdicts = ask(name, [(argv, None) for argv in commands])
    refused = [(argv, v["error"]) for argv, v in zip(commands, verdicts, strict=True) if not v["ok"]]
    print(
        f"{name}: {len(models())} models, {len(commands)} commands, {len(refused)} refused", file=sys.stderr
    )
    assert not refused, refused[:3]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vllm", "sglang"])
def test_parser_refuses_what_does_not_exist(name: str) -> None:
    """The question itself must be able to fail."""
    words = argv_of(name, job())
    verdicts = ask(name, [(words, None), ((*words, "--swap-space", "4"), None)])
    assert [v["ok"] for v in verdicts] == [True, False]


@pytest.mark.slow
def test_users_spellings_survive_our_reading() -> None:
    """What vLLM takes glued, dotted or with underscores it still takes as we pass it on."""
    args = (
        "-O3",
        "--compilation-config.mode=3",
        "--max_num_seqs",
        "8",
        "-dp=1",
        "--no-enable-prefix-caching",
    )
    assert ask("vllm", [(argv_of("vllm", job(args=args)), None)]) == [{"ok": True}]


KINDS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {"model_type": "llama"},
    "Qwen3ForCausalLM": {
        "model_type": "qwen3",
        "quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True},
    },
    "Qwen3MoeForCausalLM": {
        "model_type": "qwen3_moe",
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
    },
    "DeepseekV3ForCausalLM": {
        "model_type": "deepseek_v3",
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 2048,
        "kv_lora_rank": 512,
        "q_lora_rank": 1536,
        "qk_rope_head_dim": 64,
        "qk_nope_head_dim": 128,
        "v_head_dim": 128,
        "quantization_config": {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [128, 128],
        },
    },
    "GptOssForCausalLM": {
        "model_type": "gpt_oss",
        "num_local_experts": 32,
        "num_experts_per_tok": 4,
        "sliding_window": 128,
        "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
    },
    # its first two positions are padding: the context is two less
    "XLMRobertaModel": {
        "model_type": "xlm-roberta",
        "max_position_embeddings": 8194,
        "position_embedding_type": "absolute",
        "type_vocab_size": 1,
    },
}
"""What a ``config.json`` says beyond its dimensions, by architecture, as published on the hub."""


def config_json(folder: Path, model: ModelFacts) -> str:
    """Write a ``config.json`` with the dimensions of ``model`` and return its folder."""
    folder.mkdir(parents=True)
    llama = model.architecture == "LlamaForCausalLM"
    config = {
        "architectures": [model.architecture],
        # transformers wants this of a Llama, whatever the model's own hidden size is
        "hidden_size": model.heads * model.head_dim if llama else model.hidden,
        "intermediate_size": model.intermediate,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "vocab_size": model.vocab,
        "max_position_embeddings": model.context,
        "torch_dtype": "bfloat16",
        **KINDS[model.architecture],
    }
    if not model.quantization:
        config.pop("quantization_config", None)
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_vllm_configures_every_kind_of_model(tmp_path: Path) -> None:
    """Experts, latent attention, sliding windows, weights in AWQ, fp8 and mxfp4, and what pools."""
    interpreter("vllm")
    kinds = [m for m in MODELS if m.architecture in KINDS]
    folders = {m.id: config_json(tmp_path / str(n), m) for n, m in enumerate(kinds)}
    jobs = [s for s in every_job(kinds, (None, H100)) if s.source.scheme != "s3"]
    jobs = [s for s in jobs if engine("vllm").refuses(s) is None]
    asked = {argv_of("vllm", s): folders[s.model.id] for s in jobs}
    verdicts = ask("vllm", asked.items())
    refused = [(argv, v["error"]) for argv, v in zip(asked, verdicts, strict=True) if not v["ok"]]
    print(f"{len(kinds)} kinds, {len(asked)} configurations, {len(refused)} refused", file=sys.stderr)
    assert not refused, refused[:3]


def measures(model: ModelFacts) -> tuple[object, ...]:
    """Return what vLLM's configuration check looks at in a plain dense model."""
    return model.heads, model.kv_heads, model.vocab, model.context, min(model.layers, 8)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_vllm_configures_what_we_launch(tmp_path: Path) -> None:
    """Its configuration check sees what its parser does not: lengths, degrees, batches, formats.

    Every shape of plain model in the catalog is checked, written as a Llama of its dimensions.
    """
    interpreter("vllm")
    plain = {measures(m): m for m in models().values() if m.heads and not m.quantization and not m.experts}
    questions = []
    for number, model in enumerate(plain.values()):
        as_llama = replace(model, architecture="LlamaForCausalLM", attention="mha", dtype="bf16")
        folder = config_json(tmp_path / str(number), as_llama)
        devices = (None, A100, H100) if number == 0 else (H100,)
        jobs = every_job([as_llama], devices) if number == 0 else few_jobs(as_llama)
        questions += [(s, folder) for s in jobs if s.source.scheme != "s3"]
    questions = [(s, folder) for s, folder in questions if engine("vllm").refuses(s) is None]
    verdicts = ask("vllm", [(argv_of("vllm", s), folder) for s, folder in questions])
    refused = [(q, v["error"]) for q, v in zip(questions, verdicts, strict=True) if not v["ok"]]
    print(f"{len(plain)} shapes, {len(questions)} configurations, {len(refused)} refused", file=sys.stderr)
    assert not refused, refused[:3]


@pytest.mark.slow
def test_vllm_configuration_catches_a_length_beyond_the_model(tmp_path: Path) -> None:
    folder = config_json(tmp_path / "llama", LLAMA_8B)
    words = ("m", "--max-model-len", "200000")
    assert not ask("vllm", [(words, folder)])[0]["ok"]
