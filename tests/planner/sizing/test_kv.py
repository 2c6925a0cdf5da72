"""The KV cache by layout: what a token costs, what an engine prints, what one request may have."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.catalog.published import model
from orchestrator.catalog.values import Heads, ModelFacts
from orchestrator.planner.sizing.kv import KvLayout, kv_layout
from orchestrator.units import GIB
from tests.planner.sizing.shapes import DEEPSEEK_V3, GEMMA3_27B, GPT_OSS_120B, LLAMA_8B, LLAMA_70B, QWEN35_27B

layouts = st.builds(
    KvLayout,
    token_bytes=st.sampled_from([1.0, 8.0]),
    full_bytes=st.sampled_from([0.0, 4.0]),
    window_bytes=st.sampled_from([0.0, 2.0]),
    window=st.sampled_from([16, 1024]),
    state_bytes=st.sampled_from([0, 512]),
)


@pytest.mark.parametrize(
    ("model", "tensor", "token_bytes"),
    [
        # HF's Llama 3.1 blog: 0.125 GiB and 0.313 GiB per 1,024 tokens
        (LLAMA_8B, 1, 131_072),
        (LLAMA_70B, 1, 327_680),
        (LLAMA_70B, 8, 40_960),
        # eight heads over sixteen ranks: each keeps one
        (LLAMA_70B, 16, 40_960),
        (DEEPSEEK_V3, 1, 70_272),
        (DEEPSEEK_V3, 8, 70_272),
        (GPT_OSS_120B, 1, 73_728),
        # 62 layers are charged as seven groups of ten
        (GEMMA3_27B, 1, 70 * 2 * 16 * 128 * 2),
        # only 16 of 64 layers keep tokens
        (QWEN35_27B, 1, 65_536),
    ],
)
def test_a_token_costs_what_its_layout_says(model: ModelFacts, tensor: int, token_bytes: int) -> None:
    assert kv_layout(model, tensor=tensor).token_bytes == token_bytes


def test_kinds_with_unequal_tokens_share_pages_of_one_size() -> None:
    # vLLM on Gemma-4-26B-A4B: 451,040 tokens in 51.62 GiB; sliding layers have 8 heads of 256,
    # full ones 2 of 512, so that their blocks are twice as long
    gemma4 = replace(
        GEMMA3_27B,
        layers=30,
        kv_heads=2,
        head_dim=512,
        sliding_heads=Heads(16, 8, 256),
        layer_kinds=(("sliding",) * 5 + ("full",)) * 5,
    )

    tokens = kv_layout(gemma4).admitted_tokens(51.62 * GIB, block=32)

    assert tokens == pytest.approx(451_040, rel=0.0005)


def test_groups_of_nearly_equal_kinds_take_the_larger_size() -> None:
    # 12 and 10 layers: two groups of twelve, rather than three of ten
    near = replace(LLAMA_8B, layer_kinds=("full",) * 10 + ("sliding",) * 12, sliding_window=4096)

    assert kv_layout(near).token_bytes == 24 * 4096


def test_layers_that_read_anothers_cache_keep_none() -> None:
    shared = replace(LLAMA_8B, kv_shared_layers=12)

    assert kv_layout(shared).token_bytes == 20 * 4096


def test_the_stage_with_the_most_caching_layers_decides() -> None:
    uneven = replace(LLAMA_8B, layer_kinds=("none",) * 8 + ("full",) * 24)

    assert kv_layout(uneven, pipeline=2).token_bytes == 16 * 4096


def test_a_state_is_fixed_and_shared_by_ranks() -> None:
    one, four = kv_layout(QWEN35_27B), kv_layout(QWEN35_27B, tensor=4)

    assert one.state_bytes == 48 * QWEN35_27B.linear_state_bytes
    assert four.state_bytes == one.state_bytes // 4


def test_a_sparse_attention_indexer_keeps_its_own_keys() -> None:
    sparse = replace(DEEPSEEK_V3, index_layers=61, index_heads=64, index_head_dim=128)

    assert kv_layout(sparse).token_bytes == 70_272 + 61 * 132


@pytest.mark.parametrize(("name", "gib"), [("V4-Pro", 9.62), ("V4-Flash", 6.72)])
def test_an_entry_that_stands_for_several_tokens_is_kept_once(name: str, gib: float) -> None:
    # vllm.ai/blog/deepseek-v4, and the same count for the smaller one: 1,048,576 tokens in bf16
    facts = model(f"deepseek-ai/DeepSeek-{name}")
    assert facts is not None
    layout = kv_layout(facts)

    assert layout.request_bytes(2**20) / GIB == pytest.approx(gib, abs=0.005)
    assert kv_layout(facts, tensor=8) == layout


def test_compressed_layers_are_cut_into_stages_and_their_windows_hold() -> None:
    facts = replace(
        DEEPSEEK_V3, layers=4, compress_ratios=(0, 4, 4, 128), index_head_dim=128, sliding_window=128
    )
    whole, half = kv_layout(facts), kv_layout(facts, pipeline=2)

    assert (whole.full_bytes, whole.window_bytes) == (2 * (1152 + 256) / 4 + 1152 / 128, 4 * 1152)
    assert (half.full_bytes, half.window_bytes) == ((1152 + 256) / 4 + 1152 / 128, 2 * 1152)
    assert kv_layout(facts, element_bytes=1).full_bytes == 2 * (576 + 132) / 4 + 576 / 128


def test_nothing_fits_into_no_pool() -> None:
    layout = kv_layout(LLAMA_8B)

    assert layout.admitted_tokens(-1.0, block=16) == 0
    assert layout.longest_request(0.0) == 0
    assert layout.concurrency(-1.0, context=1) == 0.0


@given(layouts, st.integers(0, 100_000))
def test_the_longest_request_fits_and_one_token_more_does_not(layout: KvLayout, pool: int) -> None:
    longest = layout.longest_request(pool)

    if 0 < longest < 2**31 - 1:
        assert layout.request_bytes(longest) <= pool
        assert layout.request_bytes(longest + 1) > pool


@given(layouts, st.integers(1, 5000), st.integers(1, 5000))
def test_a_longer_request_never_takes_less(layout: KvLayout, one: int, other: int) -> None:
    short, long = sorted((one, other))

    assert layout.request_bytes(short) <= layout.request_bytes(long)


def test_windows_hold_with_and_without_groups() -> None:
    grouped, plain = kv_layout(GEMMA3_27B), kv_layout(GEMMA3_27B, grouped=False)
    whole = kv_layout(GEMMA3_27B, windows=False)

    assert plain.request_bytes(32768) == grouped.request_bytes(32768)
    assert plain.token_bytes == 62 * 2 * 16 * 128 * 2
    assert whole.request_bytes(32768) == 32768 * plain.token_bytes
