from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.planner.throughput import training_flops, training_throughput
from orchestrator.planner.throughput.work import work
from tests.planner.throughput.worlds import AMPERE, CARD, HOPPER, LARGE, MIXTURE, SMALL, STRANGER

RUN = {"count": 8, "sequence_length": 4096, "micro_batch": 2}


def speed(facts=SMALL, device=HOPPER, **run):
    return training_throughput(facts, device, **{**RUN, **run})


def test_full_tuning_takes_six_operations_a_parameter() -> None:
    products, _ = training_flops(work(LARGE), sequence_length=4096)
    assert products == 6 * work(LARGE).active


def test_frozen_weights_take_four() -> None:
    products, _ = training_flops(work(LARGE), sequence_length=4096, tuning="qlora")
    assert products == 4 * work(LARGE).active


def test_attention_grows_with_the_sequence() -> None:
    _, short = training_flops(work(SMALL), sequence_length=2048)
    _, long = training_flops(work(SMALL), sequence_length=8192)
    assert long == 4 * short


def test_checkpointing_executes_a_forward_more_for_the_same_work() -> None:
    kept, again = speed(), speed(checkpointing=True)
    assert again.flops_per_token == kept.flops_per_token
    assert again.executed_flops_per_token == pytest.approx(kept.flops_per_token * 8 / 6)
    assert again.tokens_s < kept.tokens_s


def test_a_mixture_trains_only_what_a_token_takes() -> None:
    assert speed(MIXTURE).flops_per_token < 0.2 * 6 * work(MIXTURE).experts


@pytest.mark.parametrize("stack", ["transformers", "fsdp", "megatron"])
def test_no_stack_reaches_the_peak(stack: str) -> None:
    assert 0 < speed(LARGE, stack=stack, micro_batch=8).mfu < 1


def test_adapters_train_faster_than_all_weights() -> None:
    assert speed(tuning="lora").tokens_s > speed(tuning="full").tokens_s


def test_four_bit_weights_cost_their_widening() -> None:
    assert speed(tuning="qlora", weight_format="nf4").tokens_s < speed(tuning="lora").tokens_s


def test_gptq_widens_slower_than_nf4() -> None:
    run = {"tuning": "qlora", "checkpointing": True}
    assert speed(weight_format="gptq", **run).tokens_s < speed(weight_format="nf4", **run).tokens_s


def test_a_narrow_format_helps_where_the_stack_has_it() -> None:
    plain, narrow = speed(LARGE, stack="megatron"), speed(LARGE, stack="megatron", weight_format="fp8")
    assert 1.2 * plain.tokens_s < narrow.tokens_s < 2 * plain.tokens_s
    assert speed(weight_format="fp8") == speed()


def test_small_micro_batches_are_bound_by_the_host() -> None:
    run = {"sequence_length": 512, "micro_batch": 1, "count": 1}
    assert speed(**run).mfu < 0.5 * speed(**{**run, "micro_batch": 32}).mfu


def test_gathering_over_the_network_is_slower_than_over_links() -> None:
    run = {"sequence_length": 1024, "micro_batch": 1, "stack": "fsdp"}
    near, far = speed(LARGE, count=8, **run), speed(LARGE, count=16, **run)
    assert far.tokens_s < 2 * near.tokens_s


def test_tensor_ranks_pay_their_all_reduces() -> None:
    assert speed(SMALL, tensor=8, stack="megatron").tokens_s < speed(SMALL, stack="megatron").tokens_s


def test_pipeline_stages_share_the_layers() -> None:
    assert speed(LARGE, pipeline=8, stack="megatron").tokens_s > 0.9 * speed(LARGE, stack="megatron").tokens_s


@pytest.mark.parametrize("device", [HOPPER, AMPERE, CARD, STRANGER], ids=lambda device: device.name)
def test_higher_peaks_are_never_slower(device) -> None:
    faster = replace(device, tflops={"bf16": 1000})
    assert speed(device=replace(device, tflops={"bf16": 500})).tokens_s <= speed(device=faster).tokens_s


def test_the_range_holds_the_estimate() -> None:
    held = speed()
    assert held.low < held.tokens_s < held.high


def test_work_counted_before_changes_nothing() -> None:
    assert speed(counted=work(SMALL)) == speed()


@pytest.mark.parametrize(
    "wrong",
    [{"count": 0}, {"micro_batch": 0}, {"tensor": 3}, {"sequence_length": 0}, {"stack": "abacus"}],
    ids=str,
)
def test_absurd_numbers_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        speed(**wrong)
