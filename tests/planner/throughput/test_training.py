from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.planner.throughput import serving_throughput, training_flops, training_throughput
from orchestrator.planner.throughput.training import passes
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


@pytest.mark.parametrize("tuning", ["full", "lora", "qlora"])
def test_methods_are_as_slow_as_their_passes(tuning: str) -> None:
    order = ["sft", "orpo", "dpo", "ppo"]

    rates = [speed(tuning=tuning, method=method).tokens_s for method in order]

    assert rates == sorted(rates, reverse=True)
    assert len(set(rates)) == len(order)


def test_an_example_of_two_answers_is_twice_the_work() -> None:
    alone, pair = speed(), speed(method="reward")
    assert pair.flops_per_token == 2 * alone.flops_per_token
    assert pair.tokens_s < alone.tokens_s
    assert speed(method="orpo").tokens_s == pair.tokens_s


def test_a_reference_costs_a_forward_of_both_answers() -> None:
    # 6 operations a parameter to learn, 2 to ask the reference, of two sequences
    products, _ = training_flops(work(LARGE), sequence_length=4096, way=passes("dpo"))
    assert products == 2 * (6 + 2) * work(LARGE).active


def test_attention_is_a_third_of_a_pass_in_a_forward() -> None:
    _, learned = training_flops(work(LARGE), sequence_length=4096)
    _, asked = training_flops(work(LARGE), sequence_length=4096, way=passes("dpo"))
    assert asked == pytest.approx(2 * (1 + 1 / 3) * learned)


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_probabilities_computed_before_leave_the_pair_alone(tuning: str) -> None:
    before = speed(tuning=tuning, method="dpo", reference=False)
    assert before.tokens_s == speed(tuning=tuning, method="orpo").tokens_s
    assert before.tokens_s > speed(tuning=tuning, method="dpo").tokens_s


def test_kto_asks_two_models_about_a_mismatched_answer() -> None:
    assert passes("kto").forwards == 3
    assert passes("kto", reference=False).forwards == 1
    assert speed(method="kto").tokens_s < speed(method="sft").tokens_s


GRPO = {"method": "grpo", "tuning": "lora", "rollout_share": 0.3}


def test_answers_are_written_before_they_are_learned() -> None:
    written = serving_throughput(SMALL, HOPPER, input_tokens=0, output_tokens=4096, concurrency=8)
    learned = speed(**GRPO, count=1, micro_batch=8)
    assert learned.tokens_s < speed(tuning="lora", count=1, micro_batch=8).tokens_s
    assert learned.tokens_s < written.output_tokens_s


def test_a_reference_of_grpo_is_one_forward_more() -> None:
    assert speed(**GRPO, reference=True).tokens_s < speed(**GRPO).tokens_s
    assert passes("grpo", reference=True).forwards == passes("grpo").forwards + 1


def test_another_engine_has_its_probabilities_computed_again() -> None:
    assert passes("grpo", rollout_share=0.3).forwards == passes("grpo").forwards + 1


def test_an_engine_beside_the_trainer_generates_faster() -> None:
    assert speed(**GRPO).tokens_s > speed(**{**GRPO, "rollout_share": 0.0}).tokens_s


def test_more_answers_at_once_are_written_faster() -> None:
    assert speed(**GRPO, accumulation=16).tokens_s > speed(**GRPO).tokens_s
    assert speed(accumulation=16).tokens_s == speed().tokens_s


def test_a_larger_share_is_never_slower() -> None:
    rates = [speed(**{**GRPO, "rollout_share": share}, accumulation=64).tokens_s for share in (0.1, 0.3, 0.6)]
    assert rates == sorted(rates)


def test_more_bandwidth_writes_answers_faster() -> None:
    faster = replace(HOPPER, bandwidth_gbs=2 * HOPPER.bandwidth_gbs)
    assert speed(device=faster, **GRPO).tokens_s > speed(**GRPO).tokens_s


@pytest.mark.parametrize("method", ["dpo", "kto", "orpo", "reward", "ppo", "grpo"])
def test_what_nobody_measured_is_said_and_has_a_wider_range(method: str) -> None:
    found, known = speed(method=method), speed()
    assert f"no measured row stands behind the speed of {method}" in found.cautions
    assert found.high / found.low > known.high / known.low
    assert known.cautions == ()


def test_pretraining_is_the_supervised_law() -> None:
    assert speed(method="pretrain") == speed()


@pytest.mark.parametrize(
    "wrong",
    [
        {"count": 0},
        {"micro_batch": 0},
        {"tensor": 3},
        {"sequence_length": 0},
        {"accumulation": 0},
        {"stack": "abacus"},
    ],
    ids=str,
)
def test_absurd_numbers_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        speed(**wrong)
