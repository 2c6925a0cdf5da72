"""The user's own options: they win, and are told where they contradict."""

from __future__ import annotations

import pytest

from orchestrator.engines import engine
from orchestrator.engines.arguments import parse
from tests.engines.jobs import H100, LLAMA_8B, T4, job


def launched(*args: str, name: str = "vllm", **changes: object) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the command and the warnings of a job with ``args``."""
    answer = engine(name).launch(job(args=args, **changes))
    return answer.command, answer.warnings


def test_users_value_replaces_ours_and_is_told() -> None:
    command, warnings = launched("--max-model-len", "4096")
    assert command.count("--max-model-len") == 1
    assert command[-2:] == ("--max-model-len", "4096")
    assert warnings == ("args: --max-model-len 4096 replaces 8192 of the plan",)


def test_short_name_replaces_the_long_one() -> None:
    command, _ = launched("-tp=2", "-pp", "2", count=4, tensor=4)
    assert "--tensor-parallel-size" not in command
    assert command[-4:] == ("-tp", "2", "-pp", "2")


def test_same_value_is_no_news() -> None:
    assert launched("--max-model-len=8192")[1] == ()


def test_dotted_underscored_and_level_options_pass() -> None:
    command, _ = launched("--compilation-config.mode=3", "--max_num_seqs", "8", "-O3")
    assert command[-5:] == ("3", "--max_num_seqs", "8", "-O", "3")


def test_what_is_turned_off_is_said_as_each_parser_has_it() -> None:
    off = ("--no-enable-prefix-caching",)
    assert launched(*off)[0][-1:] == off
    left_out, _ = launched("--no-disable-radix-cache", name="sglang")
    assert not any("radix-cache" in word for word in left_out)


@pytest.mark.parametrize(
    ("name", "args", "told"),
    [
        ("vllm", ("--speculative-config", '{"method": "eagle3", "model": "a/b"}'), True),
        ("vllm", ("--speculative-config.model", "a/b"), True),
        ("vllm", ("--speculative-config", '{"method": "ngram"}'), False),
        ("sglang", ("--speculative-draft-model", "a/b"), True),
    ],
)
def test_weights_that_are_loaded_beside_the_model_are_told(
    name: str, args: tuple[str, ...], told: bool
) -> None:
    _, warnings = launched(*args, name=name)
    said = f"args: {args[0]} loads weights beside the model, which its memory here leaves out"
    assert (said in warnings) == told


def test_negative_number_is_a_value() -> None:
    assert parse(["--seed", "-1"])[0].values == ("-1",)


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["--swap-space", "4"], "vllm 0.33.0 has no option --swap-space"),
        (["--max-modle-len", "4096"], "did you mean --max-model-len"),
        (["4096"], "'4096' stands before any option"),
        (["--host", "127.0.0.1"], "--host is not for args"),
        (["--port", "9000"], "say port: in the spec"),
        (["--api-key", "abc"], "put VLLM_API_KEY in env"),
        (["--nnodes", "2"], "nodes and ranks are set for each node"),
        (["--max-lora-rank", "20"], "takes one of"),
        (["--max-model-len"], "takes one value, got none"),
        (["--enforce-eager", "yes"], "takes no value, got 'yes'"),
        (["--max-num-seqs", "many"], "--max-num-seqs takes a whole number, got 'many'"),
        (["--kv-cache-dtype", "banana"], "--kv-cache-dtype takes one of auto, bfloat16"),
        (["--attention-backend", "flash_atn"], "--attention-backend takes one of AMX_MLA"),
        (["--tool-call-parser", "lama"], "--tool-call-parser takes one of"),
        (["--block-size", "16.5"], "--block-size takes a whole number, got '16.5'"),
        (["--cpu-offload-gb", "4GB"], "--cpu-offload-gb takes a number, got '4GB'"),
        (["--max-num-batched-tokens", "8Ki"], "--max-num-batched-tokens takes a number, got '8Ki'"),
        (["-tp", "4"], "tensor 4 x pipeline 1 x data 1 is 4 accelerators, not 1"),
        (["--max-model-len", "1M"], "a context of 1048576 is beyond the model's 131072"),
        (["--gpu-memory-utilization", "90"], "memory utilization 90 is not a fraction of 1"),
        (["--quantization", "awq"], "are not awq; name a repository whose weights are"),
        (["--max-num-seqs", "512", "--max-num-batched-tokens", "256"], "fewer than 512 sequences"),
    ],
)
def test_contradiction_is_refused_by_name(args: list[str], reason: str) -> None:
    assert reason in (engine("vllm").refuses(job(args=tuple(args))) or "accepted")


@pytest.mark.parametrize(
    "args",
    [
        ("--attention-backend", "flash_attn"),
        ("--kv-cache-memory-bytes", "None"),
        ("--max-model-len", "auto"),
        ("--max-num-batched-tokens", "25.6k"),
        ("--kv-cache-dtype", "fp8_e5m2"),
        ("--compilation-config.level", "high"),
    ],
)
def test_what_the_parser_reads_passes(args: tuple[str, ...]) -> None:
    assert engine("vllm").refuses(job(args=args)) is None


def test_image_of_ones_own_may_know_more_than_the_published_one() -> None:
    args = ("--tool-call-parser", "ours")
    assert "takes one of" in (engine("vllm").refuses(job(args=args)) or "")
    assert engine("vllm").refuses(job(args=args, image="local/vllm:ours")) is None


def test_secret_is_not_repeated_in_the_reason() -> None:
    assert "hunter2" not in (engine("vllm").refuses(job(args=("--api-key", "hunter2"))) or "")


def test_online_quantization_by_name_is_taken() -> None:
    command, _ = launched("--quantization", "fp8_per_block")
    assert command.count("--quantization") == 1


def test_device_still_decides_about_the_users_quantization() -> None:
    why = engine("vllm").refuses(
        job(accelerator=T4, precision="auto", args=("--quantization", "experts_int8"))
    )
    assert why == "vllm needs compute capability 8.0 for experts_int8, T4-16GB has 7.5"


def test_unrecorded_version_warns_and_is_checked_against_the_newest() -> None:
    answer = engine("vllm").launch(job(version="0.19.0"))
    assert answer.image == "vllm/vllm-openai:v0.19.0"
    assert answer.warnings == ("options of vllm 0.19.0 are not recorded, checked against 0.33.0",)


def test_version_without_an_image_needs_one_named() -> None:
    assert engine("vllm").refuses(job(version="0.1")) == "there is no image of vllm 0.1 for cuda, name one"
    assert engine("vllm").refuses(job(version="0.1", image="local/vllm:0.1")) is None


@pytest.mark.parametrize(
    ("name", "args", "reason"),
    [
        ("sglang", ("--host", "127.0.0.1"), "listen on every address"),
        ("sglang", ("--quantization", "int4"), "takes one of"),
        ("sglang", ("--max-running-requests", "1k"), "takes a whole number"),
        ("sglang", ("--tp_size", "2"), "did you mean --tp-size"),
        ("tgi", ("--quantize", "exl2"), "are not exl2"),
        ("tgi", ("--otlp-endpoint", "a b"), "splits 'a b' at its spaces"),
        ("nim", ("--swap-space", "4"), "no option --swap-space"),
        ("transformers", ("--device", "cpu"), "the plan chose it"),
    ],
)
def test_every_engine_checks_its_own(name: str, args: tuple[str, ...], reason: str) -> None:
    assert reason in (engine(name).refuses(job(LLAMA_8B, H100, args=args)) or "accepted")
