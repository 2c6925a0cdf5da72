from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.planner.throughput import Measured, serving_throughput
from orchestrator.planner.throughput.serving import engine_speed
from orchestrator.planner.throughput.work import work
from tests.planner.throughput.worlds import (
    AMPERE,
    CARD,
    HOPPER,
    LARGE,
    LATENT,
    MIXTURE,
    SMALL,
    STRANGER,
    WINDOWED,
)

CHAT = {"input_tokens": 1000, "output_tokens": 200, "concurrency": 16}


def speed(facts=LARGE, device=HOPPER, **load):
    return serving_throughput(facts, device, **{**CHAT, **load})


def test_decode_at_batch_one_is_bound_by_reading_the_weights_once() -> None:
    alone = speed(LARGE, concurrency=1, input_tokens=1, output_tokens=1000)
    read = work(LARGE).dense_bytes / (HOPPER.bandwidth_gbs * 1e9)
    assert alone.bound_by == "bandwidth"
    assert 1 / read > alone.output_tokens_s > 0.5 / read


def test_a_long_prompt_is_bound_by_compute() -> None:
    assert speed(tensor=2, input_tokens=30_000, output_tokens=10).bound_by == "compute"


def test_a_bus_bounds_tensor_parallelism_on_prompts() -> None:
    assert speed(SMALL, CARD, tensor=8, input_tokens=4000, output_tokens=10).bound_by == "interconnect"


def test_python_bounds_transformers() -> None:
    assert speed(SMALL, engine="transformers", concurrency=1).bound_by == "overhead"


def test_links_beat_a_bus() -> None:
    linked = speed(tensor=4)
    bus = speed(device=replace(HOPPER, link_gbs=None), tensor=4)
    assert linked.output_tokens_s > bus.output_tokens_s


def test_a_two_card_bridge_counts_as_a_bus() -> None:
    bridge = speed(device=replace(HOPPER, link_gbs=112.5), tensor=4)
    assert bridge == speed(device=replace(HOPPER, link_gbs=None), tensor=4)


def test_experts_read_grow_with_the_batch() -> None:
    one, many = speed(MIXTURE, concurrency=1), speed(MIXTURE, concurrency=64)
    assert many.tpot_s > 1.5 * one.tpot_s


def test_a_mixture_is_faster_than_a_dense_model_of_its_size() -> None:
    dense = replace(LARGE, id="dense")
    per_byte = work(dense).held_bytes / work(MIXTURE).held_bytes
    assert (
        speed(MIXTURE).output_tokens_s
        > per_byte * speed(dense, tensor=1, kv_cache_tokens=1e6).output_tokens_s
    )


def test_spreading_experts_makes_room_for_more_sequences() -> None:
    wide = {"data": 4, "concurrency": None, "engine": "unheard-of"}
    big = replace(MIXTURE, expert_intermediate=2400)
    assert speed(big, expert=4, **wide).sequences > speed(big, expert=1, **wide).sequences


def test_windows_keep_long_contexts_cheap() -> None:
    plain = replace(WINDOWED, layer_kinds=(), sliding_window=None)
    far = {"input_tokens": 30_000, "concurrency": 8, "output_tokens": 1000}
    assert speed(WINDOWED, **far).output_tokens_s > speed(plain, **far).output_tokens_s


def test_a_latent_cache_is_not_divided_by_tensor_parallelism() -> None:
    full = {"concurrency": None, "input_tokens": 30_000, "engine": "unheard-of", "max_sequences": 10**6}
    one, two = speed(LATENT, **full), speed(LATENT, tensor=2, **full)
    assert two.sequences < 1.5 * one.sequences


def test_fp8_weights_are_faster_where_they_are_native() -> None:
    wide, narrow = speed(tensor=4), speed(tensor=4, weight_format="fp8")
    assert narrow.output_tokens_s > 1.2 * wide.output_tokens_s


def test_narrow_weights_cost_products_where_they_are_widened() -> None:
    load = {"input_tokens": 8000, "output_tokens": 8}
    widened = speed(SMALL, AMPERE, weight_format="fp8", **load)
    assert widened.output_tokens_s < speed(SMALL, AMPERE, **load).output_tokens_s


def test_mxfp4_leaves_all_but_the_experts_wide() -> None:
    assert work(MIXTURE, "mxfp4").dense_bytes == work(MIXTURE, "bf16").dense_bytes


def test_an_eight_bit_cache_holds_twice_the_sequences() -> None:
    full = {"concurrency": None, "max_sequences": 10**6}
    wide, narrow = speed(SMALL, **full), speed(SMALL, kv_dtype="fp8", **full)
    assert narrow.sequences == pytest.approx(2 * wide.sequences, rel=0.01)


def test_requests_beyond_the_cache_wait_for_their_first_token() -> None:
    tight = {"kv_cache_tokens": 16 * 1100}
    calm, busy = speed(**tight, concurrency=16), speed(**tight, concurrency=32)
    assert busy.output_tokens_s == pytest.approx(calm.output_tokens_s)
    assert busy.ttft_s > calm.ttft_s + calm.tpot_s * 100


def test_littles_law_joins_rate_and_latency() -> None:
    held = speed(tensor=2)
    request_s = held.ttft_s + held.tpot_s * (CHAT["output_tokens"] - 1)
    assert held.sequences == pytest.approx(held.output_tokens_s / CHAT["output_tokens"] * request_s, rel=0.02)


def test_one_token_comes_out_of_prefill_alone() -> None:
    one, two = speed(output_tokens=1, concurrency=1), speed(output_tokens=2, concurrency=1)
    assert one.tpot_s == 0
    assert 1 / two.output_tokens_s * 2 == pytest.approx(1 / one.output_tokens_s + two.tpot_s, rel=1e-6)


def test_vllm_runs_fewer_at_once_on_an_a100() -> None:
    full = {"concurrency": None, "input_tokens": 10, "output_tokens": 10}
    assert speed(SMALL, AMPERE, **full).sequences == 256
    assert speed(SMALL, HOPPER, **full).sequences == 1024


def test_the_asked_limit_of_sequences_wins() -> None:
    assert speed(SMALL, concurrency=None, max_sequences=7).sequences == 7


def test_vllm_before_v1_leaves_its_graphs_on_long_contexts() -> None:
    long = {"input_tokens": 10_000, "concurrency": 1, "engine_version": "0.4.2"}
    short = {**long, "input_tokens": 7000}
    assert speed(SMALL, **short).output_tokens_s > 1.3 * speed(SMALL, **long).output_tokens_s


@pytest.mark.parametrize("version", ["0.9.0", "0.33", "1.0", "nightly", None])
def test_later_vllm_keeps_its_graphs(version: str | None) -> None:
    assert engine_speed("vllm", version).graph_tokens is None


def test_pipeline_stages_cost_some_of_their_gain() -> None:
    one, two = speed(tensor=2), speed(tensor=2, pipeline=2)
    assert one.output_tokens_s < two.output_tokens_s < 2 * one.output_tokens_s


def test_data_ranks_serve_side_by_side() -> None:
    one, two = speed(SMALL), speed(SMALL, data=2, concurrency=32)
    assert two.output_tokens_s == pytest.approx(2 * one.output_tokens_s)


def test_a_burst_is_slower_than_a_steady_load() -> None:
    assert speed(burst=True).output_tokens_s < speed().output_tokens_s


def test_an_architecture_without_rows_gets_a_wider_range() -> None:
    known, unknown = speed(), speed(device=STRANGER)
    assert unknown.high / unknown.low > known.high / known.low


def test_a_plain_estimate_needs_no_caution() -> None:
    assert speed(tensor=2).cautions == ()


@pytest.mark.parametrize(
    ("device", "facts", "load", "caution"),
    [
        (STRANGER, SMALL, {}, "nothing measured on TPU v5p"),
        (HOPPER, SMALL, {"engine": "unheard-of"}, "nothing measured with this engine"),
        (CARD, MIXTURE, {"tensor": 8}, "experts over a bus scale badly: 8 devices gave 0.2 to 0.5 of linear"),
        (HOPPER, SMALL, {"max_sequences": 4}, "4 of 16 requests fit at once, the others wait"),
    ],
    ids=["architecture", "engine", "bus", "cache"],
)
def test_a_weak_estimate_says_why(device, facts, load: dict[str, object], caution: str) -> None:
    assert speed(facts, device, **load).cautions == (caution,)


def test_work_counted_before_changes_nothing() -> None:
    assert speed(counted=work(LARGE)) == speed()


ROW = Measured("large", "hopper", "vllm", "bf16", 1000, 200, 16, 500.0, "bench 2026-11-01", tensor=2)


def test_a_measured_row_carries_to_another_load_by_the_formula() -> None:
    there, here = speed(tensor=2), speed(tensor=2, concurrency=32)
    brought = speed(tensor=2, concurrency=32, measured=[ROW])
    assert brought.output_tokens_s == pytest.approx(here.output_tokens_s * 500 / there.output_tokens_s)


def test_a_measured_row_narrows_the_range() -> None:
    free, held = speed(tensor=2), speed(tensor=2, measured=[ROW])
    assert held.high / held.low < free.high / free.low


def test_the_nearest_of_several_rows_wins() -> None:
    far = replace(ROW, input_tokens=9000, output_tokens_s=90.0, source="far")
    full = replace(ROW, concurrency=None, source="full")
    assert speed(tensor=2, measured=[far, full, ROW]).measured == "bench 2026-11-01"


@pytest.mark.parametrize(
    "other",
    [
        {"model": "small"},
        {"accelerator": "ampere"},
        {"engine": "sglang"},
        {"weight_format": "fp8"},
        {"tensor": 4},
        {"pipeline": 2},
        {"data": 2},
    ],
    ids=str,
)
def test_a_row_of_another_setup_says_nothing(other: dict[str, object]) -> None:
    assert speed(tensor=2, measured=[replace(ROW, **other)]) == speed(tensor=2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"tensor": 0},
        {"data": 0},
        {"concurrency": 0},
        {"output_tokens": 0},
        {"input_tokens": -1},
        {"weight_format": "fp3"},
        {"kv_dtype": "fp3"},
    ],
    ids=str,
)
def test_absurd_numbers_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        speed(**wrong)


def test_an_accelerator_without_bandwidth_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="hopper"):
        speed(device=replace(HOPPER, bandwidth_gbs=None))


def test_an_accelerator_without_peaks_is_still_estimated() -> None:
    assert speed(device=replace(CARD, tflops={})).output_tokens_s > 0


def test_what_pools_is_counted_by_what_it_reads() -> None:
    pools = replace(SMALL, pools=True, tied=True)
    found = speed(pools, output_tokens=300)
    assert found == speed(pools, output_tokens=1)
    assert found.tpot_s == 0
    assert found.output_tokens_s == found.total_tokens_s
    assert found.output_tokens_s > 10 * speed(SMALL).output_tokens_s


def test_an_encoder_is_full_by_its_engine_alone() -> None:
    encoder = replace(SMALL, pools=True, tied=True, bidirectional=True)
    assert speed(encoder, kv_cache_tokens=0).sequences == CHAT["concurrency"]
