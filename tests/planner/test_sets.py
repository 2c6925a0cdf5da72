"""Sets of accelerators without any place: what is asked about, what fits, and at whose price."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import pytest

from orchestrator.catalog import accelerators, model, prices
from orchestrator.catalog.values import Accelerator, ModelFacts, PriceRow
from orchestrator.planner.sets import machines, serving_answer, training_answer
from orchestrator.planner.sizing import Measured, ServingJob, TrainingJob, size_serving
from orchestrator.units import GIB

CARDS = tuple(accelerators().values())
JOB = ServingJob(context=8192, concurrency=4)


def llama(size: str = "8B") -> ModelFacts:
    found = model(f"meta-llama/Llama-3.1-{size}-Instruct")
    assert found is not None
    return found


def card(name: str) -> Accelerator:
    return accelerators()[name]


def row(provider: str, accelerator: str, count: int, usd: float | None) -> PriceRow:
    return PriceRow(
        provider, "eu", f"{count}x", "a list", accelerator=accelerator, count=count,
        on_demand_usd_hour=usd, as_of=date(2026, 11, 1),
    )  # fmt: skip


def test_every_set_fits_and_the_best_is_the_one_asked_about() -> None:
    answer = serving_answer(llama(), JOB, CARDS, prices())

    assert all(each.size.fits for each in answer.sets.fitting)
    assert answer.asked == answer.sets.fitting[0]


def test_the_order_of_accelerators_and_prices_does_not_matter() -> None:
    turned = serving_answer(llama(), JOB, CARDS[::-1], prices()[::-1])

    assert turned == serving_answer(llama(), JOB, CARDS, prices())


def test_a_set_costs_the_cheapest_row_on_demand_of_its_count() -> None:
    rows = [
        row("dear", "H100-80GB", 1, 5.0), row("cheap", "H100-80GB", 1, 2.0),
        row("eight", "H100-80GB", 8, 1.0), row("spot", "H100-80GB", 1, None),
    ]  # fmt: skip

    answer = serving_answer(llama(), JOB, [card("H100-80GB")], rows)

    assert answer.asked.price is not None
    assert answer.asked.price.row.provider == "cheap"
    assert {each.count for each in answer.sets.fitting if each.price is None} == {2, 4}


def test_a_price_nobody_dated_counts_only_where_there_is_no_better_one() -> None:
    undated, weak = row("undated", "H100-80GB", 1, 1.0), row("weak", "H100-80GB", 1, 1.5)
    rows = [
        replace(undated, as_of=None), replace(weak, confidence="low"), row("dated", "H100-80GB", 1, 3.0),
        replace(row("only", "H100-80GB", 2, 4.0), as_of=None),
    ]  # fmt: skip

    fitting = serving_answer(llama(), JOB, [card("H100-80GB")], rows).sets.fitting

    assert {s.count: s.price.row.provider for s in fitting if s.price} == {1: "dated", 2: "only"}


def test_every_machine_of_a_set_is_paid_for() -> None:
    answer = serving_answer(
        llama("405B"), ServingJob(precision="bf16", context=8192), [card("H100-80GB")],
        [row("eight", "H100-80GB", 8, 20.0)], count=16,
    )  # fmt: skip

    assert answer.asked.price is not None
    assert answer.asked.price.usd_hour == 40.0


def test_where_nothing_fits_the_largest_machine_is_told_of() -> None:
    small = [card("T4-16GB"), card("L4-24GB")]

    answer = serving_answer(llama("405B"), ServingJob(precision="bf16", context=8192), small, prices())

    assert answer.sets.fitting == ()
    assert (answer.asked.accelerator.name, answer.asked.count) == ("L4-24GB", 8)
    assert not answer.asked.size.fits


def test_a_context_left_open_is_the_longest_that_fits_the_asked_device() -> None:
    asked = serving_answer(llama(), ServingJob(), [card("L4-24GB")], prices()).asked

    assert isinstance(asked.job, ServingJob)
    assert asked.job.context is not None
    assert asked.size.fits
    assert asked.shortened
    more = replace(asked.job, context=asked.job.context + 1024)
    assert not size_serving(llama(), card("L4-24GB"), more).fits


def test_a_precision_left_open_is_lowered_to_what_fits_the_asked_device() -> None:
    asked = serving_answer(llama("70B"), ServingJob(), [card("H200-141GB")], prices()).asked

    assert (asked.job.precision, asked.size.fits) == ("fp8", True)
    assert asked.lowered == "fp8 instead of bf16, which does not fit"


@pytest.mark.parametrize(("name", "made_by"), [("T4-16GB", "sglang"), ("TPU-V5E", "vllm")])
def test_a_format_that_the_engine_does_not_make_is_no_way_out(name: str, made_by: str) -> None:
    answer = serving_answer(llama(), ServingJob(engine=made_by, context=8192), [card(name)], prices())

    assert (answer.asked.job.precision, answer.asked.size.fits) == ("bf16", False)
    assert {each.job.precision for each in answer.sets.fitting} <= {"bf16"}


def test_what_fits_whole_goes_before_what_was_shortened() -> None:
    fitting = serving_answer(llama(), ServingJob(), [card("L4-24GB")], prices()).sets.fitting

    told = [bool(each.shortened) for each in fitting]
    assert told == sorted(told)
    assert {True, False} == set(told)


def test_no_set_is_offered_that_the_answer_about_it_would_refuse() -> None:
    for each in serving_answer(llama("70B"), JOB, CARDS, prices()).sets.fitting:
        alone = serving_answer(llama("70B"), JOB, [each.accelerator], prices(), count=each.devices)

        assert alone.asked.size.fits, each.accelerator.name


@pytest.mark.parametrize(
    ("name", "job", "why"),
    [
        ("H100-80GB", ServingJob(context=1_000_000), "a context of 1000000 is beyond the model's 131072"),
        ("MI300X-192GB", ServingJob(engine="nim"), "nim runs on NVIDIA devices only, not on rocm"),
        ("TPU-V4", ServingJob(precision="fp8"), "TPU-V4 neither computes nor widens fp8"),
    ],
)
def test_a_device_that_cannot_run_the_job_does_not_fit_it(name: str, job: ServingJob, why: str) -> None:
    asked = serving_answer(llama(), job, [card(name)], prices()).asked

    assert (asked.size.fits, asked.size.reason) == (False, why)
    assert asked.speed is None


def test_what_was_measured_is_said_of_the_measured_set_alone() -> None:
    job = ServingJob(context=8192, measured=Measured(weights_bytes=14 * GIB))

    answer = serving_answer(llama(), job, [card("L40S-48GB")], prices())

    assert answer.asked.size.device.weights_bytes == 14 * GIB
    assert answer.sets.fitting == (answer.asked,)


def test_a_run_is_copied_where_copies_fit_and_sharded_where_not() -> None:
    lora = training_answer(llama(), TrainingJob(tuning="lora"), [card("H100-80GB")], prices(), count=8)
    full = training_answer(llama(), TrainingJob(tuning="full"), [card("H100-80GB")], prices(), count=8)

    shardings = [a.asked.job.sharding for a in (lora, full) if isinstance(a.asked.job, TrainingJob)]
    assert shardings == ["none", "fsdp"]


def test_a_tuning_run_is_never_put_where_no_trainer_runs() -> None:
    answer = training_answer(llama(), TrainingJob(tuning="lora"), CARDS, prices())

    assert {each.accelerator.family for each in answer.sets.fitting} == {"cuda", "rocm"}


def test_slices_share_no_model() -> None:
    with pytest.raises(ValueError, match="slices share no model"):
        machines(card("H100-80GB-MIG-3g.40gb"), 2)
