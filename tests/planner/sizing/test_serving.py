"""Serving: figures that engines printed, and laws that hold for any model and device."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.catalog.values import Accelerator, ModelFacts
from orchestrator.planner.sizing import Measured, ServingJob, serving_needs, size_serving
from orchestrator.units import GIB
from tests.planner.sizing.shapes import (
    A100,
    ALL,
    DEEPSEEK_V3,
    GEMMA3_27B,
    GPT_OSS_120B,
    H100,
    L4,
    LLAMA_8B,
    LLAMA_70B,
    LLAMA_405B,
    QWEN3_32B,
    QWEN35_27B,
    RTX_3090,
    device,
)

models = st.sampled_from(ALL)
jobs = st.builds(
    ServingJob,
    engine=st.sampled_from(["vllm", "sglang", "tgi", "nim", "transformers"]),
    precision=st.sampled_from(["auto", "bf16", "fp8", "int4"]),
    kv_cache=st.sampled_from(["auto", "fp8"]),
    context=st.sampled_from([None, 1, 4096, 32768]),
    concurrency=st.sampled_from([1, 16]),
    tensor=st.sampled_from([1, 2, 8]),
    pipeline=st.sampled_from([1, 2]),
)
gibs = st.floats(min_value=4, max_value=300)


def serve(model: ModelFacts, on: Accelerator, **settings_: object) -> object:
    return size_serving(model, on, ServingJob(**settings_))  # type: ignore[arg-type]  # keywords of the job


@pytest.mark.parametrize(
    ("model", "job", "weights_gib"),
    [
        # printed by vLLM 0.19 (llm-d-planner PR #205) and by the recipes it cites
        (LLAMA_8B, ServingJob(precision="fp8"), 8.49),
        (LLAMA_8B, ServingJob(precision="int4"), 5.38),
        (LLAMA_8B, ServingJob(tensor=4), 3.77),
        (LLAMA_8B, ServingJob(pipeline=4), 4.26),
        (LLAMA_70B, ServingJob(precision="int8", tensor=2), 33.88),
        (GPT_OSS_120B, ServingJob(), 64.38),
    ],
)
def test_weights_are_what_the_engine_loads(model: ModelFacts, job: ServingJob, weights_gib: float) -> None:
    size = size_serving(model, H100, job)

    assert size.device.weights_bytes / GIB == pytest.approx(weights_gib, rel=0.02)


@pytest.mark.parametrize(
    ("model", "job", "pool_gib", "tokens"),
    [
        # Kimi-K2-like latent attention is whole on every rank: 61 layers of 576 values
        (DEEPSEEK_V3, ServingJob(tensor=8, precision="fp8"), 46.80, 715_072),
        # ten full layers and 52 sliding ones are charged as seven groups of ten
        (GEMMA3_27B, ServingJob(), 19.53, 36_560),
        (GPT_OSS_120B, ServingJob(), 5.38, 78_384),
        (LLAMA_8B, ServingJob(), 58.11, 476_016),
        (LLAMA_8B, ServingJob(kv_cache="fp8"), 58.11, 952_032),
    ],
)
def test_tokens_are_what_the_engine_prints(
    model: ModelFacts, job: ServingJob, pool_gib: float, tokens: int
) -> None:
    given_pool = replace(job, measured=Measured(kv_cache_bytes=round(pool_gib * GIB)))

    size = size_serving(model, H100, given_pool)

    assert size.kv_cache_tokens == pytest.approx(tokens, rel=0.002)


def test_405b_in_16_bits_does_not_fit_eight_devices_of_80_gb() -> None:
    size = size_serving(LLAMA_405B, H100, ServingJob(tensor=8, context=4096))

    assert size.reason == "weights are larger than the device"


def test_405b_in_16_bits_fits_two_nodes_of_eight() -> None:
    size = size_serving(LLAMA_405B, H100, ServingJob(tensor=8, pipeline=2, context=8192))

    assert size.fits


def test_70b_in_4_bits_fits_one_device_of_80_gb() -> None:
    assert size_serving(LLAMA_70B, H100, ServingJob(precision="int4", context=8192)).fits


def test_70b_in_fp8_has_no_room_for_its_cache_on_one_h100() -> None:
    size = size_serving(LLAMA_70B, H100, ServingJob(precision="fp8", context=8192))

    assert not size.fits
    assert size.short_bytes > 0


def test_32b_on_one_h100_of_vllm_011_refuses_32k_and_takes_8k() -> None:
    job = ServingJob(engine_version="0.11.0")
    short = size_serving(QWEN3_32B, H100, replace(job, context=8192, max_num_seqs=256))
    long = size_serving(QWEN3_32B, H100, replace(job, context=32768))

    assert (short.fits, long.fits) == (True, False)


def test_graphs_are_charged_inside_the_budget_from_020_on() -> None:
    before = size_serving(LLAMA_8B, H100, ServingJob(engine_version="0.19", memory_utilization=0.9))
    after = size_serving(LLAMA_8B, H100, ServingJob(engine_version="0.20", memory_utilization=0.9))

    assert before.device.kv_cache_bytes - after.device.kv_cache_bytes == after.device.graphs_bytes


def test_gpt_oss_20b_at_95_percent_lacks_room_outside_the_budget() -> None:
    # llm-d-planner PR #205, failed runs: 786 MiB wanted by the sampler's warm-up, 552 MiB free
    oss_20b = replace(
        GPT_OSS_120B, layers=24, experts=32, layer_kinds=("sliding", "full") * 12, parameters=None
    )
    job = ServingJob(
        engine_version="0.19",
        context=8192,
        memory_utilization=0.95,
        max_num_seqs=1024,
        max_num_batched_tokens=8192,
    )
    tight = size_serving(oss_20b, H100, job)
    looser = size_serving(oss_20b, H100, replace(job, memory_utilization=0.90))

    assert tight.reason == "too little left outside the engine's budget"
    assert looser.fits


def test_longer_prompts_shrink_the_pool_of_vllm_06() -> None:
    # vLLM issue #10517: 3.81 GiB at 20k, 2.89 GiB at 29k
    job = ServingJob(engine_version="0.6", memory_utilization=0.95)
    short = size_serving(LLAMA_8B, RTX_3090, replace(job, context=20_000))
    long = size_serving(LLAMA_8B, RTX_3090, replace(job, context=29_000))

    shrunk = (short.device.kv_cache_bytes - long.device.kv_cache_bytes) / GIB
    assert shrunk == pytest.approx(0.92, rel=0.15)


def test_a100_takes_the_small_batch_by_default() -> None:
    assert size_serving(LLAMA_8B, A100, ServingJob(context=8192)).max_num_seqs == 256
    assert size_serving(LLAMA_8B, H100, ServingJob(context=8192)).max_num_seqs == 1024


def test_a_default_batch_that_does_not_fit_is_lowered_and_said() -> None:
    wide = replace(LLAMA_8B, vocab=262_144)
    size = size_serving(
        wide, device("card", 70.0), ServingJob(context=8192, measured=Measured(weights_bytes=57 * GIB))
    )

    assert (size.fits, size.max_num_seqs) == (True, 256)


def test_a_stated_batch_is_kept_even_where_it_does_not_fit() -> None:
    size = size_serving(LLAMA_8B, L4, ServingJob(context=8192, max_num_seqs=4096))

    assert (size.fits, size.max_num_seqs) == (False, 4096)


def test_one_request_may_be_longer_than_the_printed_tokens_in_a_hybrid() -> None:
    size = size_serving(GEMMA3_27B, H100, ServingJob(context=8192))

    assert size.longest_request_tokens > 3 * size.kv_cache_tokens


def test_states_of_linear_layers_limit_the_requests() -> None:
    size = size_serving(QWEN35_27B, H100, ServingJob(context=1))

    per_request = 48 * QWEN35_27B.linear_state_bytes
    assert size.max_concurrency < size.device.kv_cache_bytes / per_request


def test_the_batch_holds_every_request_asked_for() -> None:
    size = size_serving(LLAMA_8B, L4, ServingJob(precision="int4", context=128, concurrency=512))

    assert size.max_num_seqs == 512


def test_a_window_takes_a_chunk_more_while_its_prompt_is_read() -> None:
    job = ServingJob(context=32768, max_num_seqs=64)
    short = size_serving(GEMMA3_27B, H100, replace(job, max_num_batched_tokens=2048))
    long = size_serving(GEMMA3_27B, H100, replace(job, max_num_batched_tokens=8192))

    assert long.wanted_bytes - short.wanted_bytes == 6144 * 52 * 2 * 16 * 128 * 2


def test_engines_without_groups_keep_every_token_of_a_window() -> None:
    job = ServingJob(context=32768)
    old = size_serving(GEMMA3_27B, H100, replace(job, engine_version="0.8.5"))
    new = size_serving(GEMMA3_27B, H100, job)

    assert old.wanted_bytes > 2 * new.wanted_bytes


@pytest.mark.parametrize(
    "measured",
    [
        Measured(weights_bytes=15 * GIB),
        Measured(activations_bytes=2 * GIB),
        Measured(non_torch_bytes=GIB),
        Measured(graphs_bytes=GIB),
    ],
)
def test_a_measured_value_overrides_its_formula(measured: Measured) -> None:
    size = size_serving(LLAMA_8B, H100, ServingJob(measured=measured))

    for name in ("weights_bytes", "activations_bytes", "non_torch_bytes", "graphs_bytes"):
        stated = getattr(measured, name)
        assert stated is None or getattr(size.device, name) == stated


def test_adapters_take_their_share_of_the_budget() -> None:
    without = size_serving(LLAMA_8B, H100, ServingJob(context=8192))
    with_four = size_serving(LLAMA_8B, H100, ServingJob(context=8192, adapters=4))

    assert with_four.device.adapter_bytes > 0
    assert with_four.device.kv_cache_bytes == without.device.kv_cache_bytes - with_four.device.adapter_bytes


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"tensor": 0}, "tensor"),
        ({"context": 0}, "context"),
        ({"engine": "ollama"}, "unknown engine"),
        ({"precision": "int3"}, "unknown weight format"),
        ({"kv_cache": "int3"}, "unknown KV cache type"),
        ({"memory_utilization": 90}, "memory utilization"),
    ],
)
def test_nonsense_is_refused_by_name(bad: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        serve(LLAMA_8B, H100, **bad)


@settings(max_examples=60, deadline=None)
@given(models, jobs, gibs, gibs)
def test_more_memory_never_turns_a_fit_into_a_refusal(
    model: ModelFacts, job: ServingJob, one: float, other: float
) -> None:
    small, large = sorted((one, other))

    if size_serving(model, device("card", small), job).fits:
        assert size_serving(model, device("card", large), job).fits


@settings(max_examples=60, deadline=None)
@given(models, jobs, gibs, gibs)
def test_tokens_grow_with_memory_at_the_same_batch(
    model: ModelFacts, job: ServingJob, one: float, other: float
) -> None:
    fixed = replace(job, max_num_seqs=64, max_num_batched_tokens=2048, memory_utilization=0.9)
    small, large = (size_serving(model, device("card", g), fixed) for g in sorted((one, other)))

    assert small.kv_cache_tokens <= large.kv_cache_tokens


@settings(max_examples=40, deadline=None)
@given(models, st.sampled_from(["bf16", "fp8", "int4"]), st.sampled_from([2, 4, 8]))
def test_tensor_parallelism_divides_the_weights(model: ModelFacts, precision: str, tensor: int) -> None:
    one = size_serving(model, H100, ServingJob(precision=precision))
    each = size_serving(model, H100, ServingJob(precision=precision, tensor=tensor))

    assert each.device.weights_bytes == pytest.approx(one.device.weights_bytes / tensor, rel=0.001)


@settings(max_examples=40, deadline=None)
@given(models, jobs, gibs)
def test_an_answer_adds_up(model: ModelFacts, job: ServingJob, visible: float) -> None:
    memory = size_serving(model, device("card", visible), job).device

    parts = memory.non_kv_bytes + memory.graphs_bytes + memory.kv_cache_bytes
    assert memory.peak_bytes == pytest.approx(parts, abs=2)


@settings(max_examples=40, deadline=None)
@given(models, st.sampled_from([1, 16]), st.sampled_from([512, 8192, 65536]), gibs)
def test_needs_for_another_context_are_those_sized_for_it(
    model: ModelFacts, concurrency: int, context: int, visible: float
) -> None:
    job = ServingJob(context=4096, concurrency=concurrency)

    moved = serving_needs(model, job).with_context(context)

    assert moved.on(device("card", visible)) == size_serving(
        model, device("card", visible), replace(job, context=context)
    )


def test_an_engine_that_reads_prompts_whole_is_sized_again() -> None:
    needs = serving_needs(LLAMA_8B, ServingJob(engine="transformers", context=4096))

    assert not needs.reads_in_chunks
    with pytest.raises(ValueError, match="size it again"):
        needs.with_context(8192)


ENCODER = ModelFacts(
    "bge-m3", "XLMRobertaModel", 24, 1024, 4096, 16, 16, 64, 250002,
    tied=True, gated=False, context=8192, pools=True, bidirectional=True,
)  # fmt: skip


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_an_encoder_keeps_no_cache_and_reads_a_prompt_whole(engine: str) -> None:
    size = size_serving(ENCODER, L4, ServingJob(engine=engine, concurrency=64))
    assert size.fits
    assert (size.device.kv_cache_bytes, size.kv_cache_tokens, size.wanted_bytes) == (0, 0, 0)
    assert size.max_num_batched_tokens >= size.longest_request_tokens == 8192


def test_what_pools_samples_from_no_vocabulary() -> None:
    job = ServingJob(context=8192)
    plain, pooled = (size_serving(replace(LLAMA_8B, pools=pools), H100, job) for pools in (False, True))
    assert pooled.device.activations_bytes < plain.device.activations_bytes
    assert pooled.kv_cache_tokens > plain.kv_cache_tokens  # a decoder's cache is there all the same
