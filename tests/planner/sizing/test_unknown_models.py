"""The sizing of models nobody knows: the columns of a row must do where the name says nothing."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from orchestrator.planner.sizing.kv import kv_layout
from orchestrator.planner.sizing.parameters import count_parts
from tests.benchmarks import sizing
from tests.benchmarks.sizing_rows import Row, certainty, device_of, facts_of, renamed

ROWS = Path(__file__).parents[2] / "data" / "sizing_rows.csv"
DENSE = {"kind": "inference_weights", "measure": "vllm_weights_per_gpu", "weight_quant": "bf16"}
SHAPES = {"layers": "32", "hidden": "4096", "heads": "32", "kv_heads": "8", "head_dim": "128"}
ENDS = {"kind": "kv_cache_tokens", "measure": "vllm_gpu_kv_cache_size", "kv_dtype": "16bit"}


def row(**columns: str) -> Row:
    plain = {
        "row_id": "R",
        "model_id": "unknown/model-a",
        "engine": "vLLM 0.19.0",
        "arch": "",
        "method": "serve",
    }
    return {**plain, **columns}


@pytest.fixture(scope="module")
def scored() -> list[sizing.Scored]:
    return sizing.score(renamed(sizing.read(ROWS)))


@pytest.mark.parametrize(
    ("group", "mape"),
    [
        ("inference_weights", 0.035),
        ("kv_cache_tokens", 0.02),
        ("serve_peak vllm", 0.03),
        ("serve_peak generate", 0.05),
        ("train_peak lora", 0.20),
        ("train_peak qlora", 0.20),
        ("train_peak full", 0.20),
    ],
)
def test_mean_error_stays_under_its_bound(scored: list[sizing.Scored], group: str, mape: float) -> None:
    members = [abs(each.error) for each in scored if each.group == group]

    assert len(members) > 10
    assert statistics.fmean(members) <= mape


def test_the_safe_side_is_kept(scored: list[sizing.Scored]) -> None:
    assert sum(each.safe for each in scored) / len(scored) >= 0.95


def test_no_row_is_of_a_known_model() -> None:
    rows = renamed(sizing.read(ROWS))

    assert len({each["model_id"] for each in rows}) == len({each["model_id"] for each in sizing.read(ROWS)})
    assert all(each["model_id"].startswith("unknown/") for each in rows)


@pytest.mark.parametrize("arch", ["", "Qwen3MoeForCausalLM", "LlamaForCausalLM", "NemotronHForCausalLM"])
@pytest.mark.parametrize("count", ["8", "49.1", "671"])
def test_a_stated_count_is_the_count(arch: str, count: str) -> None:
    facts = facts_of(row(**DENSE, **SHAPES, params_b=count, arch=arch))

    assert count_parts(facts).total == pytest.approx(float(count) * 1e9, rel=1e-3)


def test_a_count_that_no_dense_block_holds_is_experts() -> None:
    assert facts_of(row(**DENSE, **SHAPES, params_b="49.1")).experts
    assert not facts_of(row(**DENSE, **SHAPES, params_b="8")).experts


def test_a_mixture_is_known_by_its_count_where_its_experts_are_not_named() -> None:
    facts = facts_of(row(**DENSE, **SHAPES, params_b="120", intermediate="4096"))

    assert facts.experts
    assert count_parts(facts).experts > 0.8 * 120e9


@pytest.mark.parametrize("column", ["hidden", "heads", "head_dim"])
def test_a_blank_shape_follows_from_the_others(column: str) -> None:
    whole = row(**DENSE, **SHAPES, params_b="8")
    said = [kv_layout(facts_of(each)).token_bytes for each in (whole, {**whole, column: ""})]

    assert said[0] == said[1]


def test_gemma_4_keeps_fewer_and_wider_heads_in_full_layers() -> None:
    columns = {**SHAPES, "layers": "30", "n_full_attn": "5", "sliding_window": "1024", "head_dim": "256"}
    layout = kv_layout(facts_of(row(**columns, arch="Gemma4ForConditionalGeneration", params_b="26")))

    assert layout.full_bytes == 5 * 2 * 2 * 512 * 2
    assert layout.window_bytes == 25 * 8 * 2 * 256 * 2


def test_the_less_a_row_says_the_wider_its_bounds() -> None:
    wide = [
        (said.upper_gib or 0) / (said.lower_gib or 1)
        for columns in ({"params_b": "8", **SHAPES}, SHAPES, {**SHAPES, "kv_lora_rank": "512"}, {})
        for said in [sizing.predict(row(**DENSE, **columns))]
    ]

    assert wide == sorted(wide)
    assert len(set(wide)) == len(wide)


def test_a_named_size_is_as_good_as_a_stated_one() -> None:
    assert certainty({**row(**SHAPES), "model_id": "unknown/model-8B"}) == 1.0


def test_the_catalog_says_what_a_named_device_holds() -> None:
    bytes_ = [device_of(row(gpu=name)).visible_bytes for name in ("Thor", "H200", "NVIDIA L4", "")]

    assert bytes_[0] > bytes_[3]
    assert bytes_[1] > 1.5 * bytes_[3]
    assert bytes_[2] < 0.4 * bytes_[3]


@pytest.mark.parametrize("gpu", ["", "A100-40GB", "Thor", "no such device"])
def test_an_engine_that_started_holds_at_least_one_request(gpu: str) -> None:
    said = sizing.predict(row(**ENDS, **SHAPES, params_b="70", gpu=gpu, context="8192"))

    assert said.tokens is not None
    assert said.tokens >= 8192
