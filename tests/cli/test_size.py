"""``modelyard size``: what it answers, and what it says of questions that make no sense."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.cli.conftest import Cli

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
PARTS = {
    "weights_bytes", "activations_bytes", "non_torch_bytes", "graphs_bytes", "kv_cache_bytes",
    "gradients_bytes", "optimizer_bytes", "adapter_bytes", "logits_bytes", "peak_bytes", "visible_bytes",
}  # fmt: skip


def size(cli: Cli, *arguments: str) -> dict[str, Any]:
    result = cli("size", *arguments, "--json")
    assert result.code == 0, result.err
    found: dict[str, Any] = json.loads(result.out)
    return found


def test_the_json_has_the_documented_form(cli: Cli) -> None:
    found = size(cli, LLAMA, "--gpu", "H100", "--context", "8192", "--concurrency", "16")

    assert found["schema"] == "modelyard/size/v1"
    assert set(found["device"]) == PARTS
    assert {"kv_cache_tokens", "longest_request_tokens", "max_concurrency", "fits", "margin"} <= set(found)
    assert found["fits"] is True
    assert found["accelerator"] == "H100-80GB"
    assert found["max_concurrency"] > 16


def test_an_alias_in_any_case_is_understood(cli: Cli) -> None:
    named = size(cli, LLAMA, "--gpu", "H100-80GB")

    assert size(cli, LLAMA, "--gpu", "h100-80gb") == named
    assert size(cli, LLAMA, "--gpu", "H100") == named


def test_more_than_one_machine_holds_are_spread_over_machines(cli: Cli) -> None:
    found = size(
        cli, "meta-llama/Llama-3.1-405B-Instruct", "--precision", "bf16",
        "--gpu", "H100-80GB:16", "--context", "8192",
    )  # fmt: skip

    assert (found["nodes"], found["count"], found["tensor"], found["pipeline"]) == (2, 8, 8, 2)
    assert found["fits"] is True


def test_one_machine_of_eight_is_too_small_for_405b_in_16_bits(cli: Cli) -> None:
    found = size(
        cli, "meta-llama/Llama-3.1-405B-Instruct", "--precision", "bf16",
        "--gpu", "H100-80GB:8", "--context", "8192",
    )  # fmt: skip

    assert found["fits"] is False
    assert found["reason"]
    assert [(s["nodes"], s["count"]) for s in found["sets"]] == [(2, 8)]


def test_degrees_of_parallelism_are_obeyed(cli: Cli) -> None:
    found = size(cli, LLAMA, "--gpu", "L4", "--tensor", "2", "--pipeline", "2", "--context", "8192")

    assert (found["count"], found["tensor"], found["pipeline"]) == (4, 2, 2)


def test_degrees_without_an_accelerator_hold_for_every_set(cli: Cli) -> None:
    found = size(cli, LLAMA, "--tensor", "4", "--context", "8192")

    assert {s["tensor"] for s in found["sets"]} == {4}


def test_a_measured_log_wins_over_the_formula(cli: Cli) -> None:
    log = cli.write("vllm.log", "INFO Model loading took 14.00 GiB and 3.2 seconds\n")

    found = size(cli, LLAMA, "--gpu", "L40S", "--from-log", log, "--context", "8192")

    assert found["device"]["weights_bytes"] == 14 * 2**30


def test_a_config_file_stands_in_for_a_model(cli: Cli) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048,
        "intermediate_size": 8192, "num_attention_heads": 32, "num_key_value_heads": 8,
        "num_hidden_layers": 16, "vocab_size": 128256, "head_dim": 64, "tie_word_embeddings": True,
        "max_position_embeddings": 131072, "torch_dtype": "bfloat16",
    }  # fmt: skip
    path = cli.write("config.json", json.dumps(config))

    found = size(cli, "--config", path, "--gpu", "L4", "--weights-bytes", "3000000000")

    assert found["device"]["weights_bytes"] == 3_000_000_000


@pytest.mark.parametrize("tuning", ["full", "lora", "qlora"])
def test_training_takes_what_serving_does_not(cli: Cli, tuning: str) -> None:
    found = size(cli, LLAMA, "--train", tuning, "--gpu", "H100:8")

    device = found["device"]
    assert found["fits"] is True
    assert device["gradients_bytes"] > 0
    assert device["optimizer_bytes"] > 0
    assert (device["adapter_bytes"] > 0) is (tuning != "full")


def test_published_weights_are_told_from_asked_ones(cli: Cli) -> None:
    assert "mxfp4 (as published)" in cli("size", "openai/gpt-oss-20b", "--gpu", "H100").out
    assert "fp8 (as asked)" in cli("size", LLAMA, "--gpu", "H100", "--precision", "fp8").out


def test_sets_are_priced_with_the_day_of_the_price(cli: Cli) -> None:
    priced = [s for s in size(cli, LLAMA, "--context", "8192")["sets"] if s["price_usd_hour"]]

    assert priced
    assert all(s["provider"] and s["instance_type"] for s in priced)
    costs = [s["usd_per_million_tokens"] for s in priced if not s["lowered"]]
    assert costs == sorted(costs)


@pytest.mark.parametrize(("sort", "key", "sign"), [("throughput", "tokens_s", -1)])
def test_sets_are_sorted_as_asked(cli: Cli, sort: str, key: str, sign: int) -> None:
    sets = size(cli, LLAMA, "--context", "8192", "--sort", sort)["sets"]

    found = [sign * s[key] for s in sets if s[key] and not s["lowered"]]
    assert found == sorted(found)


def test_the_receipt_is_read_in_ten_lines(cli: Cli) -> None:
    result = cli("size", LLAMA, "--context", "8192", "--concurrency", "4")

    head = result.out.split("\n\n")[0].splitlines()
    assert [line.split()[0] for line in head] == ["model", "job", "on", "memory", "holds", "speed"]
    assert "price as of 20" in result.out


def test_the_same_question_gets_the_same_answer(cli: Cli) -> None:
    assert cli("size", LLAMA).out == cli("size", LLAMA).out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((LLAMA, "--gpu", "H1000"), "no accelerator 'H1000' in the catalog"),
        ((LLAMA, "--gpu", "H100:x"), "'x' is no count"),
        ((LLAMA, "--gpu", "H100:0"), "'0' is no count"),
        ((LLAMA, "--gpu", "H100:99999999"), "'99999999' is no count"),
        ((LLAMA, "--gpu", "H100", "--tensor", "3"), "32 attention heads do not divide by 3"),
        ((LLAMA, "--gpu", "H100:4", "--tensor", "8"), "tensor 8 x pipeline 1 do not take 4"),
        ((LLAMA, "--gpu", "H100", "--engine", "nope"), "unknown engine 'nope'"),
        ((LLAMA, "--gpu", "H100", "--quantization", "nope"), "unknown weight format 'nope'"),
        ((LLAMA, "--context", "-1"), "-1 is not in the range"),
        ((LLAMA, "--rank", "8"), "--rank is about training"),
        ((LLAMA, "--train", "lora", "--context", "1"), "--context is about serving"),
        ((LLAMA, "--train", "full", "--optimizer", "nope"), "unknown optimizer 'nope'"),
        ((LLAMA, "--train", "lora", "--targets", "nope"), "no module is called nope"),
        ((LLAMA, "--from-log", "nothing.log"), "--from-log needs --gpu"),
        ((LLAMA, "--gpu", "L4", "--from-log", "nothing.log"), "cannot read nothing.log"),
        ((LLAMA, "--gpu", "H100-80GB-MIG-3g.40gb:2"), "slices share no model"),
        ((), "name a model"),
        ((LLAMA, "--config", "config.json"), "name a model"),
        (("--config", "nothing.json"), "there is no file nothing.json"),
    ],
)
def test_a_question_without_sense_is_a_usage_error(cli: Cli, arguments: tuple[str, ...], said: str) -> None:
    result = cli("size", *arguments)

    assert result.code == 64
    assert said in " ".join(result.err.split())


def test_an_unknown_model_says_where_to_put_its_config(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    result = cli("size", "nobody/Nothing-1B")

    assert result.code == 65
    assert "config.json" in result.err
