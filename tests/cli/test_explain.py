"""``plan --explain``, ``--sort`` and ``--strict`` at a prompt, on places made of frozen accelerators."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import Cli

SERVICE = "type: service\nname: chat\nmodel: {{id: Qwen/Qwen3-8B, precision: bf16, context: {context}}}\n"
FITS = SERVICE.format(context=8192)
TOO_LONG = SERVICE.format(context=90_000)
TOO_SMALL = """\
type: service
name: chat
model: {id: meta-llama/Llama-3.1-405B, precision: bf16, context: 8192}
resources: {gpu: "H100:1"}
env: [HF_TOKEN]
"""
TUNED = """\
type: task
name: sft
train: {model: Qwen/Qwen3-8B, dataset: trl-lib/Capybara, output: ./out, adapter: {type: lora}}
"""


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "x")


def test_the_arithmetic_is_shown_when_asked_for(cli: Cli) -> None:
    file = cli.write("chat.yaml", FITS)

    plain, explained = cli("plan", "-f", file), cli("plan", "-f", file, "--explain")

    assert "arithmetic" not in plain.out
    for word in ("visible", "weights", "KV cache", "a pass reads", "each token", "first token", "output"):
        assert any(line.strip().startswith(word) for line in explained.out.splitlines()), word


def test_the_arithmetic_is_in_the_json(cli: Cli) -> None:
    result = cli("plan", "-f", cli.write("chat.yaml", FITS), "--explain", "--json")

    run = json.loads(result.out)["runs"][0]
    assert run["explained"][0]["what"] == "visible"
    assert all(set(row) >= {"accelerator", "count", "reason", "change"} for row in run["why_not"])


def test_the_arithmetic_of_a_training_run_is_shown(cli: Cli) -> None:
    result = cli("plan", "-f", cli.write("sft.yaml", TUNED), "--explain")

    for word in ("weights", "gradients", "optimizer", "activations", "peak", "trained"):
        assert any(line.strip().startswith(word) for line in result.out.splitlines()), word


def test_a_refusal_says_what_would_admit_each_machine(cli: Cli) -> None:
    result = cli("plan", "-f", cli.write("big.yaml", TOO_SMALL), "--explain")

    assert result.code == 75
    assert "why not" in result.err
    assert "or      " in result.err  # what the price list has for it


def test_strict_refuses_what_contradicts_itself(cli: Cli) -> None:
    result = cli("plan", "-f", cli.write("long.yaml", TOO_LONG), "--strict")

    assert result.code == 65
    assert "a context of 90,000 is beyond the model's 40,960" in result.err


def test_strict_refuses_args_that_say_less_than_the_spec_where_they_stand(cli: Cli) -> None:
    spec = FITS + "traffic: {concurrency: 16}\nargs: {max-model-len: 2048, max-num-seqs: 4}\n"

    told = cli("plan", "-f", cli.write("less.yaml", spec))
    refused = cli("plan", "-f", cli.write("less.yaml", spec), "--strict")

    assert (told.code, refused.code) == (0, 65)
    for said in ("args hold requests of 2,048 tokens", "args run 4 requests at once"):
        assert said in told.out
        assert f"less.yaml:{spec.count(chr(10))}:7: {said}" in refused.err


def test_args_that_the_engine_does_not_read_are_refused_where_they_stand(cli: Cli) -> None:
    spec = FITS + "args: {kv-cache-dtype: banana}\n"

    file = cli.write("banana.yaml", spec)
    for result in (cli("validate", "-f", file), cli("plan", "-f", file)):
        assert result.code == 65
        at = f"banana.yaml:{spec.count(chr(10))}:8"
        assert f"{at}: args.kv-cache-dtype: --kv-cache-dtype takes one of auto" in result.err


def test_a_quantization_that_nobody_knows_is_refused_where_it_stands(cli: Cli) -> None:
    file = cli.write("awk.yaml", "type: service\nname: a\nmodel: {id: Qwen/Qwen3-8B, quantization: awk}\n")
    for result in (cli("validate", "-f", file), cli("plan", "-f", file)):
        assert result.code == 65
        assert "awk.yaml:3:42: model.quantization: no engine here serves weights made by 'awk'" in result.err
        assert "did you mean 'awq'?" in result.err


def test_args_reach_the_engine_as_it_reads_them(cli: Cli) -> None:
    draft = "{method: eagle3, model: a/b, num_speculative_tokens: 3}"
    args = f"args: {{enable_prefix_caching: false, speculative_config: {draft}}}\n"
    result = cli("plan", "--json", "-f", cli.write("args.yaml", FITS + args))

    command = json.loads(result.out)["runs"][0]["engine"]["command"]
    assert "--no-enable-prefix-caching" in command
    said = json.loads(command[command.index("--speculative-config") + 1])
    assert said == {"method": "eagle3", "model": "a/b", "num_speculative_tokens": 3}


@pytest.mark.parametrize("sort", ["price", "throughput", "latency"])
def test_a_plan_is_sorted_by_what_is_asked_for(cli: Cli, sort: str) -> None:
    assert cli("plan", "-f", cli.write("chat.yaml", FITS), "--sort", sort).code == 0


def test_every_spec_without_a_place_is_told_at_once(cli: Cli) -> None:
    file = cli.write("two.yaml", "---\n".join([TOO_SMALL, TUNED, TOO_SMALL.replace("chat", "again")]))

    result = cli("plan", "--explain", "-f", file)

    assert result.code == 75
    heads = [line for line in result.err.splitlines() if "no offer" in line]
    assert [line.partition(": ")[0] for line in heads] == [f"{file}:1:1", f"{file}:11:1"]
    assert result.err.count("why not\n") == 2
