"""Sets of accelerators: what holds a model, why others do not, and what would help."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.catalog import accelerator, accelerators, model, models
from orchestrator.catalog.values import Accelerator, ModelFacts
from orchestrator.planner.choose import Choices, choose, contradictions, longest_context
from orchestrator.planner.choose_training import choose_training
from orchestrator.planner.parallelism import Layout, indivisible, layout_for
from orchestrator.planner.sizing import ServingJob, TrainingJob, serving_needs, size_training
from orchestrator.planner.sizing.formats import weight_format
from orchestrator.planner.sizing.weights import published_format

CARDS = tuple(accelerators().values())
POOL = ("T4-16GB", "L4-24GB", "A100-80GB", "H100-80GB", "MI300X-192GB", "TPU-V5E", "H100-80GB-MIG-3g.40gb")
MODELS = (
    "meta-llama/Llama-3.1-8B-Instruct",
    "meta-llama/Llama-3.1-70B-Instruct",
    "Qwen/Qwen3-14B",
    "google/gemma-3-27b-it",
    "deepseek-ai/DeepSeek-V3",
    "openai/gpt-oss-20b",
)


def card(name: str) -> Accelerator:
    found = accelerator(name)
    assert found is not None, name
    return found


def known(name: str) -> ModelFacts:
    found = model(name)
    assert found is not None, name
    return found


def sets(choices: Choices) -> set[tuple[str, int, int, str]]:
    return {
        (c.accelerator.name, c.layout.nodes, c.layout.count, c.needs.job.precision)
        for c in choices.candidates
    }


def test_405b_in_16_bits_takes_two_nodes_of_eight_h100() -> None:
    asked = ServingJob(precision="bf16", context=8192)
    choices = choose(known("meta-llama/Llama-3.1-405B-Instruct"), asked, [card("H100-80GB")])

    assert sets(choices) == {("H100-80GB", 2, 8, "bf16")}
    assert choices.candidates[0].layout == Layout(nodes=2, count=8, tensor=8, pipeline=2)


def test_70b_in_4_bits_takes_one_device_of_80_gb() -> None:
    asked = ServingJob(precision="int4", context=8192)
    choices = choose(known("meta-llama/Llama-3.1-70B-Instruct"), asked, [card("H100-80GB")])

    assert choices.candidates[0].layout.devices == 1


def test_auto_precision_is_as_published_where_it_fits() -> None:
    choices = choose(known("meta-llama/Llama-3.1-8B-Instruct"), ServingJob(context=8192), [card("L40S-48GB")])

    assert choices.candidates[0].needs.job.precision == "bf16"
    assert choices.candidates[0].lowered == ""


def test_auto_precision_is_lowered_with_a_reason_where_only_less_fits() -> None:
    choices = choose(
        known("meta-llama/Llama-3.1-8B-Instruct"), ServingJob(context=8192), [card("RTX4080")], counts=(1,)
    )

    best = choices.candidates[0]
    assert best.needs.job.precision == "fp8"
    assert best.lowered == "fp8 instead of bf16, which does not fit"


def test_auto_precision_never_takes_what_the_device_only_widens() -> None:
    # an A100 widens fp8 weights and multiplies int8 itself
    asked = ServingJob(context=8192)
    choices = choose(
        known("mistralai/Mistral-Small-24B-Instruct-2501"),
        asked,
        [card("A100-40GB")],
        counts=(1,),
        max_nodes=1,
    )

    assert [c.needs.job.precision for c in choices.candidates] == ["int8"]


def test_an_open_context_is_cut_to_what_fits() -> None:
    llama = known("meta-llama/Llama-3.1-8B-Instruct")
    choices = choose(llama, ServingJob(), [card("L4-24GB")], counts=(1,))

    job, size = choices.candidates[0].settled()

    assert llama.context is not None
    assert job.context is not None
    assert 4096 <= job.context < llama.context
    assert size.fits


def test_a_stated_context_is_never_changed() -> None:
    choices = choose(known("Qwen/Qwen3-8B"), ServingJob(context=8192), CARDS)

    assert {c.settled()[0].context for c in choices.candidates[:20]} == {8192}


def test_a_refusal_says_the_smallest_change() -> None:
    asked = ServingJob(precision="bf16", context=32768, concurrency=4)
    choices = choose(known("Qwen/Qwen3-8B"), asked, [card("L4-24GB")], counts=(1, 2))

    (missed,) = [m for m in choices.missed if m.nodes == 1 and m.count == 1]
    change = missed.change()
    assert missed.reason == "too little device memory"
    assert change is not None
    assert change.field == "context"
    shorter = replace(asked, context=int(change.value))
    assert serving_needs(known("Qwen/Qwen3-8B"), shorter).on(card("L4-24GB")).fits


def test_a_change_of_the_context_is_one_that_the_model_has() -> None:
    facts = known("Qwen/Qwen3-8B")
    asked = ServingJob(precision="bf16", context=10**9, concurrency=4)
    (missed,) = choose(facts, asked, [card("H100-80GB")], counts=(1,), max_nodes=1).missed
    change = missed.change()
    assert change is not None
    assert (change.field, int(change.value)) == ("context", facts.context)


def test_a_format_the_device_lacks_is_the_first_reason() -> None:
    choices = choose(known("deepseek-ai/DeepSeek-V3"), ServingJob(context=8192), [card("V100-32GB")])

    assert {m.reason for m in choices.missed} == {"no fp8"}


def test_slices_are_never_joined() -> None:
    choices = choose(known("Qwen/Qwen3-8B"), ServingJob(context=8192), [card("H100-80GB-MIG-3g.40gb")])

    assert all(c.layout.devices == 1 for c in choices.candidates)


@pytest.mark.parametrize(
    ("name", "tensor", "reason"),
    [
        # vLLM 0.19 on Qwen3-14B at five ranks: 151936 is not divisible by 5
        ("Qwen/Qwen3-14B", 5, "a vocabulary of 151936 does not divide by 5"),
        ("Qwen/Qwen3-14B", 16, "40 attention heads do not divide by 16"),
        ("meta-llama/Llama-3.1-70B-Instruct", 16, None),
        ("Qwen/Qwen2.5-7B-Instruct", 8, "28 attention heads do not divide by 8"),
        # an odd vocabulary is padded to 49216
        ("ibm-granite/granite-3.1-8b-instruct", 2, None),
        # 768 over four ranks is 192, one and a half blocks of 128
        ("Qwen/Qwen3-30B-A3B-FP8", 4, "experts of width 768 do not divide by 4"),
    ],
)
def test_ranks_must_divide_the_model(name: str, tensor: int, reason: str | None) -> None:
    facts = known(name)

    assert indivisible(facts, tensor, precision=published_format(facts)) == reason


def test_devices_that_do_not_divide_become_stages() -> None:
    layout = layout_for(known("Qwen/Qwen2.5-7B-Instruct"), nodes=1, count=8)

    assert layout == Layout(nodes=1, count=8, tensor=4, pipeline=2)


def test_contradictions_come_with_their_numbers() -> None:
    job = ServingJob(precision="fp8", context=999_999, tensor=3)

    found = contradictions(known("meta-llama/Llama-3.1-70B-Instruct"), job, card("V100-32GB"))

    assert found[0] == "V100-32GB neither computes nor widens fp8"
    assert found[1] == "tensor 3: 64 attention heads do not divide by 3"
    assert found[2] == "context 999999 is beyond the model's 131072"


def test_what_fits_contradicts_nothing() -> None:
    assert contradictions(known("Qwen/Qwen3-8B"), ServingJob(context=8192), card("H100-80GB")) == ()


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(MODELS),
    st.sampled_from([None, 8192]),
    st.sampled_from(["auto", "fp8", "int4"]),
    st.randoms(use_true_random=False),
)
def test_the_order_of_accelerators_does_not_matter(
    name: str, context: int | None, precision: str, rng: random.Random
) -> None:
    cards = [card(c) for c in POOL]
    shuffled = rng.sample(cards, len(cards))
    asked = ServingJob(context=context, precision=precision)

    one, other = choose(known(name), asked, cards), choose(known(name), asked, shuffled)

    assert one == other


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(MODELS), st.sampled_from([None, 8192, 32768]), st.sampled_from(["auto", "fp8", "int4"])
)
def test_every_candidate_fits_and_every_set_is_answered(
    name: str, context: int | None, precision: str
) -> None:
    cards = [card(c) for c in POOL]
    choices = choose(known(name), ServingJob(context=context, precision=precision), cards)

    answered = Counter((c.accelerator.name, c.layout.nodes, c.layout.count) for c in choices.candidates)
    answered.update((m.accelerator.name, m.nodes, m.count) for m in choices.missed)
    assert set(answered.values()) == {1}
    for each in choices.candidates:
        assert each.needs.on(each.accelerator).fits


@settings(max_examples=10, deadline=None)
@given(st.sampled_from(MODELS), st.sampled_from(["L4-24GB", "H100-80GB", "A100-80GB"]))
def test_the_longest_context_fits_and_a_longer_one_does_not(name: str, on: str) -> None:
    facts, job, device = known(name), ServingJob(concurrency=2), card(on)

    context = longest_context(facts, serving_needs(facts, job), device, most=1_000_000)

    if 0 < context < 1_000_000:
        assert serving_needs(facts, replace(job, context=context)).on(device).fits
        assert not serving_needs(facts, replace(job, context=context + 1024)).on(device).fits


@pytest.mark.parametrize("name", sorted(models()))
def test_every_model_of_the_catalog_is_placed_or_refused_with_a_reason(name: str) -> None:
    facts = known(name)
    cards = [card(c) for c in ("L4-24GB", "H100-80GB", "MI300X-192GB")]
    for precision in ("bf16", "fp8", "int4"):
        for context in (8192, 32768, None):
            choices = choose(facts, ServingJob(precision=precision, context=context), cards)

            assert len(choices.candidates) + len(choices.missed) > 0
            assert all(m.reason for m in choices.missed)


def test_every_published_format_is_known() -> None:
    for facts in models().values():
        if facts.quantization:
            weight_format(facts.quantization)


def test_training_takes_copies_before_shards() -> None:
    llama = known("meta-llama/Llama-3.1-8B-Instruct")
    lora = choose_training(llama, TrainingJob(tuning="lora"), [card("H100-80GB")], batch_size=16)
    full = choose_training(llama, TrainingJob(tuning="full"), [card("H100-80GB")], batch_size=16)

    assert {c.job.sharding for c in lora.candidates} == {"none"}
    assert {c.job.sharding for c in full.candidates if c.job.devices == 8} == {"fsdp"}


def test_micro_batch_times_accumulation_is_the_batch() -> None:
    llama = known("meta-llama/Llama-3.1-8B-Instruct")
    choices = choose_training(
        llama, TrainingJob(tuning="qlora"), [card("L4-24GB"), card("H100-80GB")], batch_size=16
    )

    assert choices.candidates
    for each in choices.candidates:
        assert each.job.micro_batch * each.accumulation * each.job.devices == 16
        assert each.size().fits


def test_a_batch_that_does_not_divide_is_a_reason() -> None:
    llama = known("meta-llama/Llama-3.2-1B")
    choices = choose_training(
        llama, TrainingJob(tuning="lora"), [card("H100-80GB")], batch_size=2, max_nodes=1
    )

    reasons = {m.count: m.reason for m in choices.missed}
    assert reasons[8] == "a batch of 2 does not divide over 8 devices"


def test_full_tuning_of_405b_is_refused_by_how_much_is_missing() -> None:
    choices = choose_training(
        known("meta-llama/Llama-3.1-405B-Instruct"),
        TrainingJob(),
        [card("H100-80GB")],
        batch_size=32,
        max_nodes=2,
    )

    assert not choices.candidates
    assert all(m.short_bytes > 0 for m in choices.missed)


def test_a_training_candidate_is_what_its_size_says() -> None:
    llama = known("meta-llama/Llama-3.1-8B-Instruct")
    choices = choose_training(llama, TrainingJob(tuning="lora"), [card("H100-80GB")], batch_size=8)

    for each in choices.candidates:
        assert size_training(llama, each.accelerator, each.job) == each.size()
