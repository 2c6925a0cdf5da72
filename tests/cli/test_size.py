"""``modelyard size``: what it answers, and what it says of questions that make no sense."""

from __future__ import annotations

import json
from datetime import date
from typing import Any

import pytest

from orchestrator.catalog import accelerators, model
from orchestrator.catalog.values import PriceRow
from orchestrator.planner.sets import serving_answer
from orchestrator.planner.sizing import ServingJob
from orchestrator.render.sizes import size_text
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


@pytest.mark.parametrize("tuning", ["full", "qlora"])
def test_training_takes_what_a_plan_of_it_takes(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tuning: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", "x")
    adapter = "none" if tuning == "full" else tuning
    train = f"{{model: {LLAMA}, dataset: a/b, adapter: {adapter}, sequence_length: 4096, batch_size: 8}}"
    file = cli.write(
        "t.yaml", f"type: task\nname: t\ntrain: {train}\nenv: [HF_TOKEN]\nresources: {{gpu: 8}}\n"
    )

    planned = json.loads(cli("plan", "--json", "-f", file).out)["runs"][0]["memory"]
    found = size(cli, LLAMA, "--train", tuning, "--sequence-length", "4096", "--gpu", "H100:8")["device"]

    parts = ("weights", "gradients", "optimizer", "adapter", "activations", "logits")
    assert {part: found[f"{part}_bytes"] for part in parts} == {
        part: planned[f"{part}_bytes"] for part in parts
    }


def test_no_training_fits_where_no_trainer_runs(cli: Cli) -> None:
    found = size(cli, LLAMA, "--train", "lora", "--gpu", "TPU-V5P:8")
    assert (found["fits"], found["reason"], found["short_bytes"]) == (False, "trl does not train on tpu", 0)
    assert found["sets"] == []


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


def test_a_context_beyond_the_models_does_not_fit(cli: Cli) -> None:
    found = size(cli, LLAMA, "--gpu", "H100:8", "--context", "1000000")

    assert found["fits"] is False
    assert found["reason"] == "a context of 1000000 is beyond the model's 131072"
    assert found["sets"] == []


def test_the_first_reason_is_told_before_a_lack_of_memory(cli: Cli) -> None:
    result = cli("size", LLAMA, "--gpu", "L4", "--context", "1000000")

    assert "does not fit: a context of 1000000 is beyond the model's 131072\n" in result.out


def test_an_engine_that_refuses_the_device_is_named(cli: Cli) -> None:
    found = size(cli, LLAMA, "--gpu", "MI300X", "--engine", "nim")

    assert found["fits"] is False
    assert found["reason"] == "nim runs on NVIDIA devices only, not on rocm"


def test_a_context_that_nobody_stated_is_cut_to_what_fits(cli: Cli) -> None:
    found = size(cli, LLAMA, "--gpu", "L4")
    told = cli("size", LLAMA, "--gpu", "L4").out

    assert found["fits"] is True
    assert 4096 <= found["context_tokens"] < 131_072
    assert found["max_concurrency"] >= 1
    assert f"fits {found['context_tokens']:,} tokens a request in bf16, with a margin" in told


def test_a_stated_context_is_never_cut(cli: Cli) -> None:
    found = size(cli, LLAMA, "--gpu", "L4", "--context", "131072")

    assert (found["fits"], found["context_tokens"]) == (False, 131_072)


def test_the_asked_count_leads_the_table(cli: Cli) -> None:
    found = size(cli, LLAMA, "--gpu", "L4:8", "--context", "8192")

    first, *rest = found["sets"]
    assert first["count"] == 8
    assert 8 not in {s["count"] for s in rest}


def test_a_slice_of_tpus_is_as_many_chips_as_its_name_says(cli: Cli) -> None:
    found = size(cli, LLAMA, "--gpu", "v5litepod-8", "--context", "8192")

    assert (found["accelerator"], found["nodes"] * found["count"]) == ("TPU-V5E", 8)


def test_a_slice_of_tpus_that_nobody_sells_does_not_fit(cli: Cli) -> None:
    found = size(cli, LLAMA, "--gpu", "TPU-V5P:3", "--context", "8192")

    assert (found["fits"], found["reason"]) == (False, "TPU-V5P comes in slices of 4, 8, 16, 32, 64")


def test_a_tpu_without_a_count_is_the_smallest_slice_there_is(cli: Cli) -> None:
    found = size(cli, LLAMA, "--gpu", "TPU-V5P", "--context", "8192")

    assert (found["count"], found["fits"]) == (4, True)


@pytest.mark.parametrize(
    ("days", "said"),
    [
        ((date(2026, 11, 1), None, None), "price as of 2026-11-01 (2 of 3 undated)"),
        ((date(2026, 11, 1), date(2025, 1, 1)), "price as of 2025-01-01 (1 of 2 older than 90 days)"),
        ((None, None), "price of no known day: none of 2 is dated"),
    ],
)
def test_prices_without_a_day_are_counted(days: tuple[date | None, ...], said: str) -> None:
    facts = model(LLAMA)
    assert facts is not None
    rows = [
        PriceRow("acme", "eu", f"{count}x", "a list", "H100-80GB", count, on_demand_usd_hour=2.0, as_of=day)
        for count, day in zip((1, 2, 4), days, strict=False)
    ]

    answer = serving_answer(facts, ServingJob(context=8192), [accelerators()["H100-80GB"]], rows)

    assert said in size_text(facts, answer, today=date(2026, 11, 25)).splitlines()


def test_more_than_a_thousand_billion_parameters_are_trillions(cli: Cli) -> None:
    assert " · 1.03 T · " in cli("size", "moonshotai/Kimi-K2-Instruct", "--gpu", "H200:16").out


def test_prices_are_written_without_powers_of_ten(cli: Cli) -> None:
    assert "e+" not in cli("size", "meta-llama/Llama-3.1-405B-Instruct", "--gpu", "L4").out


def test_a_shortened_set_says_so_in_the_table(cli: Cli) -> None:
    shown = cli("size", LLAMA, "--gpu", "L4").out.split("\n\n")[1].splitlines()

    assert [line for line in shown if line.startswith("1 × L4-24GB") and " tokens " in line]


@pytest.mark.parametrize("name", [LLAMA, "Qwen/Qwen3-30B-A3B", "Qwen/Qwen2.5-7B-Instruct"])
def test_the_longest_request_is_whole_blocks_of_the_cache(cli: Cli, name: str) -> None:
    found = size(cli, name, "--gpu", "H100", "--context", "8192")

    assert found["longest_request_tokens"] <= found["kv_cache_tokens"]
    assert found["longest_request_tokens"] % 16 == 0


@pytest.mark.parametrize("precision", ["bf16", "int4"])
def test_a_method_within_its_precision_is_no_contradiction(cli: Cli, precision: str) -> None:
    found = size(cli, LLAMA, "--gpu", "L4", "--quantization", "awq", "--precision", precision)

    assert found["precision"] == "awq"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((LLAMA, "--gpu", "H1000"), "no accelerator 'H1000' in the catalog"),
        ((LLAMA, "--gpu", "H1OO:8"), "did you mean 'H100'?"),
        ((LLAMA, "--gpu", "H100:x"), "'x' is no count"),
        ((LLAMA, "--gpu", "H100:0"), "'0' is no count"),
        ((LLAMA, "--gpu", "H100:100000"), "one set has at most 4,096 accelerators"),
        ((LLAMA, "--gpu", "v5litepod-8:2"), "v5litepod-8 says how many there are"),
        ((LLAMA, "--gpu", "H100", "--gpu", "L4"), "--gpu is given 2 times"),
        ((LLAMA, "--quantization", "fp8", "--precision", "int4"), "fp8 weights are no int4"),
        ((LLAMA, "--quantization", "awq", "--precision", "fp4"), "awq weights are no fp4"),
        ((LLAMA, "--engine-version", "banana"), "'banana' is no version"),
        ((LLAMA, "--engine-version", "9" * 5000), "is no version"),
        ((LLAMA, "--gpu", "H100:"), "'' is no count"),
        ((LLAMA, "--weights-bytes", "1000"), "are not the bytes of 8.03 B parameters"),
        ((LLAMA, "--weights-bytes", "99999999999999"), "are not the bytes of 8.03 B parameters"),
        ((LLAMA, "--max-num-seqs", "10000001"), "10000001 is not in the range"),
        ((LLAMA, "--max-num-batched-tokens", "10000001"), "10000001 is not in the range"),
        ((LLAMA, "--train", "lora", "--rank", "10000001"), "10000001 is not in the range"),
        ((LLAMA, "--train", "full", "--rank", "8"), "--rank is about an adapter"),
        ((LLAMA, "--train", "full", "--targets", "mlp"), "--targets is about an adapter"),
        ((LLAMA, "--train", "qlora", "--precision", "fp8"), "qlora keeps its base in 4 bits"),
        ((LLAMA, "--gpu", "H100", "--tensor", "3"), "32 attention heads do not divide by 3"),
        ((LLAMA, "--gpu", "H100:4", "--tensor", "8"), "tensor 8 does not take 4 accelerators"),
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


def test_a_model_that_embeds_has_no_figures_of_decoding(cli: Cli) -> None:
    told = cli("size", "BAAI/bge-base-en-v1.5", "--gpu", "L4").out
    assert "input tokens/s" in told
    assert "an answer in" in told
    assert not [word for word in ("output tokens/s", "KV cache", "first token") if word in told]
