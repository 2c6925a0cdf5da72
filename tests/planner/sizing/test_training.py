"""Training: figures that frameworks published, and laws that hold for any run."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.catalog.values import ModelFacts
from orchestrator.planner.sizing import TrainingJob, size_training
from orchestrator.planner.sizing.training import NO_ROOM_TO_GENERATE, least_training_bytes
from orchestrator.planner.sizing.values import ROLLOUT_SHARE, Sharding, Tuning
from orchestrator.units import GIB
from tests.planner.sizing.shapes import ALL, DEEPSEEK_V3, H100, LLAMA_8B, LLAMA_70B, device, llama

LLAMA_3B = llama("meta-llama/Llama-3.2-3B", 28, 3072, 8192, 24, tied=True)
TABLE = TrainingJob(
    engine="torchtune",
    sequence_length=4096,
    micro_batch=2,
    packing=True,
    checkpointing="none",
    compiled=True,
    accumulates=False,
)

jobs = st.builds(
    TrainingJob,
    engine=st.sampled_from(["trl", "axolotl", "torchtune"]),
    tuning=st.sampled_from(["full", "lora", "qlora"]),
    method=st.sampled_from(["sft", "dpo", "kto", "orpo", "reward", "ppo", "grpo"]),
    sequence_length=st.sampled_from([512, 8192]),
    micro_batch=st.sampled_from([1, 4]),
    optimizer=st.sampled_from(["adamw", "adamw_8bit", "paged_adamw_8bit", "adafactor"]),
    state_dtype=st.sampled_from(["bf16", "fp32"]),
    checkpointing=st.sampled_from(["none", "selective", "full"]),
    loss_kernel=st.sampled_from(["full", "chunked", "fused"]),
    accumulates=st.booleans(),
)
models = st.sampled_from([m for m in ALL if m is not DEEPSEEK_V3])


def peak(model: ModelFacts, job: TrainingJob) -> int:
    return size_training(model, H100, job).device.peak_bytes


@pytest.mark.parametrize(
    ("changes", "gib"),
    [
        # pytorch/torchtune README.md, optimization flags on Llama 3.2 3B, A100
        ({"compiled": False}, 60.0),
        ({}, 51.0),
        ({"loss_kernel": "chunked"}, 42.9),
        ({"loss_kernel": "chunked", "checkpointing": "full"}, 24.9),
        ({"loss_kernel": "chunked", "checkpointing": "full", "optimizer_in_backward": True}, 23.1),
    ],
)
def test_each_flag_saves_what_the_table_says(changes: dict[str, object], gib: float) -> None:
    job = replace(TABLE, **changes)  # type: ignore[arg-type]  # fields of the job by name

    assert peak(LLAMA_3B, job) / GIB == pytest.approx(gib, rel=0.13)


def test_states_of_full_tuning_in_fp32_are_sixteen_bytes_a_parameter() -> None:
    size = size_training(LLAMA_8B, H100, TrainingJob(precision="fp32", state_dtype="fp32"))

    memory = size.device
    states = memory.weights_bytes + memory.gradients_bytes + memory.optimizer_bytes
    assert states / 8_030_261_248 == pytest.approx(16, rel=0.001)


def test_zero_3_keeps_eighteen_bytes_a_parameter_over_its_devices() -> None:
    # DeepSpeed's estimator: 2 weights, 4 gradients, 12 master and moments
    job = TrainingJob(sharding="zero3", state_dtype="fp32", devices=8)

    memory = size_training(LLAMA_8B, H100, job).device

    states = memory.weights_bytes + memory.gradients_bytes + memory.optimizer_bytes
    assert 8 * states / 8_030_261_248 == pytest.approx(18, rel=0.001)


def test_an_adapter_is_its_own_reference() -> None:
    sft = TrainingJob(tuning="lora", longest_sample=2048)

    with_dpo = size_training(LLAMA_8B, H100, replace(sft, method="dpo"))

    assert with_dpo.device.weights_bytes == size_training(LLAMA_8B, H100, sft).device.weights_bytes


@pytest.mark.parametrize(("method", "copies"), [("dpo", 1), ("kto", 1), ("grpo", 0), ("orpo", 0), ("sft", 0)])
def test_preference_methods_keep_a_frozen_copy_of_a_full_model(method: str, copies: int) -> None:
    plain = size_training(LLAMA_8B, H100, TrainingJob())
    other = size_training(LLAMA_8B, H100, TrainingJob(method=method))  # type: ignore[arg-type]  # a Method

    more = other.device.weights_bytes - plain.device.weights_bytes
    assert more == pytest.approx(copies * 2 * 8_030_261_248, rel=0.001)


def test_ppo_holds_four_models() -> None:
    memory = size_training(LLAMA_8B, H100, TrainingJob(method="ppo")).device

    assert memory.weights_bytes > 4 * 2 * 8_030_261_248


def test_a_reward_model_has_no_vocabulary_at_its_head() -> None:
    assert size_training(LLAMA_8B, H100, TrainingJob(method="reward")).device.logits_bytes == 0


def test_the_engine_that_generates_takes_its_share() -> None:
    job = TrainingJob(tuning="lora", method="grpo")

    shared = peak(LLAMA_8B, replace(job, rollout_share=0.4)) - peak(LLAMA_8B, replace(job, rollout_share=0.0))

    assert shared == pytest.approx(0.4 * H100.visible_bytes, rel=0.001)


@pytest.mark.parametrize("tuning", ["full", "lora", "qlora"])
def test_learning_from_answers_takes_more_than_from_examples(tuning: Tuning) -> None:
    sft = TrainingJob(tuning=tuning)

    more = peak(LLAMA_8B, replace(sft, method="grpo")) - peak(LLAMA_8B, sft)

    assert more == pytest.approx(ROLLOUT_SHARE * H100.visible_bytes, rel=0.001)


@pytest.mark.parametrize(("tuning", "copies"), [("full", 1), ("lora", 0), ("qlora", 0)])
def test_a_reference_of_its_own_is_kept_of_a_full_model_only(tuning: Tuning, copies: int) -> None:
    grpo = TrainingJob(tuning=tuning, method="grpo")

    more = peak(LLAMA_8B, replace(grpo, reference=True)) - peak(LLAMA_8B, grpo)

    assert more == pytest.approx(copies * 2 * 8_030_261_248, rel=0.001)


def test_probabilities_computed_before_the_run_need_no_reference() -> None:
    orpo, dpo = TrainingJob(method="orpo"), TrainingJob(method="dpo", reference=False)

    assert peak(LLAMA_8B, dpo) == peak(LLAMA_8B, orpo)


def test_the_engine_that_generates_needs_room_for_its_own_weights() -> None:
    # 0.3 of 192 GiB hold 16-bit weights of 8 B parameters, and not those of 70 B
    job = TrainingJob(tuning="qlora", method="grpo")

    large = size_training(LLAMA_70B, device("card", 192), job)

    assert size_training(LLAMA_8B, device("card", 192), job).fits
    assert (large.fits, large.reason) == (False, NO_ROOM_TO_GENERATE)
    assert large.device.peak_bytes < large.device.visible_bytes


@settings(max_examples=40, deadline=None)
@given(models, jobs)
def test_a_run_fits_on_its_least_device_and_on_nothing_less(model: ModelFacts, job: TrainingJob) -> None:
    least = least_training_bytes(model, job)

    assert least is not None
    assert size_training(model, device("card", least * 1.001 / GIB), job).fits
    assert not size_training(model, device("card", least * 0.999 / GIB), job).fits


def test_preference_pairs_double_the_tokens() -> None:
    assert TrainingJob(method="dpo").tokens == 2 * TrainingJob().tokens


def test_an_unpacked_batch_is_padded_to_its_longest_sample_only() -> None:
    job = TrainingJob(sequence_length=8192, longest_sample=1000, micro_batch=2)

    assert (job.tokens, replace(job, packing=True).tokens) == (2000, 16384)


def test_experts_of_one_stacked_tensor_stay_in_16_bits_unless_asked() -> None:
    qlora = TrainingJob(tuning="qlora")
    left = size_training(DEEPSEEK_V3, H100, qlora).device.weights_bytes
    converted = size_training(DEEPSEEK_V3, H100, replace(qlora, quantizes_experts=True)).device.weights_bytes

    assert left > 3 * converted


def test_tensor_parallelism_divides_states() -> None:
    one = size_training(LLAMA_70B, H100, TrainingJob()).device
    four = size_training(LLAMA_70B, H100, TrainingJob(tensor=4, devices=4)).device

    assert four.weights_bytes == pytest.approx(one.weights_bytes / 4, rel=0.001)
    assert four.optimizer_bytes == pytest.approx(one.optimizer_bytes / 4, rel=0.001)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"engine": "word2vec"}, "unknown trainer"),
        ({"optimizer": "newton"}, "unknown optimizer"),
        ({"micro_batch": 0}, "micro_batch"),
        ({"devices": 6, "tensor": 4}, "cannot be cut"),
        ({"rollout_share": 1.0}, "rollout share"),
    ],
)
def test_nonsense_is_refused_by_name(bad: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        size_training(LLAMA_8B, H100, TrainingJob(**bad))  # type: ignore[arg-type]  # fields by name


@settings(max_examples=60, deadline=None)
@given(models, jobs, st.floats(8, 300), st.floats(8, 300))
def test_more_memory_never_turns_a_fit_into_a_refusal(
    model: ModelFacts, job: TrainingJob, one: float, other: float
) -> None:
    small, large = sorted((one, other))

    if size_training(model, device("card", small), job).fits:
        assert size_training(model, device("card", large), job).fits


@settings(max_examples=40, deadline=None)
@given(models, jobs)
def test_what_saves_memory_never_costs_any(model: ModelFacts, job: TrainingJob) -> None:
    at_most = peak(model, replace(job, checkpointing="none", loss_kernel="full", optimizer="adamw"))

    assert peak(model, replace(job, checkpointing="full", loss_kernel="full", optimizer="adamw")) <= at_most
    assert (
        peak(model, replace(job, checkpointing="none", loss_kernel="chunked", optimizer="adamw")) <= at_most
    )
    assert (
        peak(model, replace(job, checkpointing="none", loss_kernel="full", optimizer="adamw_8bit")) <= at_most
    )


@settings(max_examples=40, deadline=None)
@given(models, jobs, st.sampled_from(["zero1", "zero2", "zero3", "fsdp"]), st.sampled_from([2, 8, 64]))
def test_states_never_grow_when_more_devices_share_them(
    model: ModelFacts, job: TrainingJob, sharding: Sharding, devices: int
) -> None:
    few = size_training(model, H100, replace(job, sharding=sharding, devices=2)).device
    many = size_training(model, H100, replace(job, sharding=sharding, devices=devices)).device

    assert many.weights_bytes <= few.weights_bytes
    assert many.optimizer_bytes <= few.optimizer_bytes
    assert many.gradients_bytes <= few.gradients_bytes


@settings(max_examples=40, deadline=None)
@given(models, jobs, st.sampled_from([1, 2]), st.sampled_from([2, 4]))
def test_longer_batches_never_take_less(model: ModelFacts, job: TrainingJob, one: int, times: int) -> None:
    base = replace(job, micro_batch=one)

    assert peak(model, base) <= peak(model, replace(base, micro_batch=one * times))
