"""What must hold of a serving estimate whatever the model, the device and the load."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.planner.throughput import Measured, serving_ceiling, serving_throughput
from orchestrator.planner.throughput.work import work
from tests.planner.throughput.worlds import Estimate, World, worlds

Law = Callable[[Estimate, World, float], None]
SLACK = 1 + 1e-9
"""For the last bit of floating point, nothing else."""


def more_bandwidth_is_never_slower(estimate: Estimate, world: World, factor: float) -> None:
    faster = world.on(bandwidth_gbs=(world.accelerator.bandwidth_gbs or 0.0) * factor)
    assert world.ask(estimate).output_tokens_s <= faster.ask(estimate).output_tokens_s * SLACK


def higher_peaks_are_never_slower(estimate: Estimate, world: World, factor: float) -> None:
    peaks = {name: peak * factor for name, peak in world.accelerator.tflops.items()}
    assert world.ask(estimate).output_tokens_s <= world.on(tflops=peaks).ask(estimate).output_tokens_s * SLACK


def more_requests_never_make_less(estimate: Estimate, world: World, factor: float) -> None:
    busier = world.but(concurrency=world.load["concurrency"] * factor)
    assert world.ask(estimate).output_tokens_s <= busier.ask(estimate).output_tokens_s * SLACK


def more_requests_never_answer_sooner(estimate: Estimate, world: World, factor: float) -> None:
    busier = world.but(concurrency=world.load["concurrency"] * factor)
    one, two = world.ask(estimate), busier.ask(estimate)
    answered = world.load["output_tokens"] - 1
    assert one.ttft_s + one.tpot_s * answered <= (two.ttft_s + two.tpot_s * answered) * SLACK


def longer_prompts_never_make_more(estimate: Estimate, world: World, factor: float) -> None:
    longer = world.but(input_tokens=(world.load["input_tokens"] + 1) * factor)
    assert longer.ask(estimate).output_tokens_s <= world.ask(estimate).output_tokens_s * SLACK


def a_cache_holds_no_more_than_it_has(estimate: Estimate, world: World, factor: float) -> None:
    mean = world.load["input_tokens"] + world.load["output_tokens"] / 2
    tight = world.but(kv_cache_tokens=mean * factor * world.load["data"])
    assert tight.ask(estimate).sequences <= factor * world.load["data"] * SLACK


def no_more_run_than_were_asked(estimate: Estimate, world: World, factor: float) -> None:
    assert world.ask(estimate).sequences <= max(world.load["concurrency"], world.load["data"]) * SLACK


def the_range_holds_the_estimate(estimate: Estimate, world: World, factor: float) -> None:
    speed = world.ask(estimate)
    assert 0 < speed.low < speed.output_tokens_s < speed.high


def tokens_in_and_out_keep_their_ratio(estimate: Estimate, world: World, factor: float) -> None:
    speed, load = world.ask(estimate), world.load
    ratio = (load["input_tokens"] + load["output_tokens"]) / load["output_tokens"]
    assert speed.total_tokens_s == pytest.approx(speed.output_tokens_s * ratio)


def a_measured_load_comes_back_as_measured(estimate: Estimate, world: World, factor: float) -> None:
    keys = ("input_tokens", "output_tokens", "concurrency", "engine", "weight_format")
    rest = {key: world.load[key] for key in ("tensor", "pipeline", "data")}
    there = {key: world.load[key] for key in keys}
    rate = 1000.0 * factor
    row = Measured(
        model=world.facts.id,
        accelerator=world.accelerator.name,
        output_tokens_s=rate,
        source="our own run",
        **there,
        **rest,
    )
    speed = world.but(measured=[row]).ask(estimate)
    assert (speed.output_tokens_s, speed.measured) == (pytest.approx(rate), "our own run")


def no_estimate_passes_its_ceiling(estimate: Estimate, world: World, factor: float) -> None:
    alone = world.but(data=1, expert=1, burst=False)
    keys = ("input_tokens", "output_tokens", "concurrency", "tensor", "pipeline", "weight_format", "engine")
    load = {key: alone.load[key] for key in keys}
    counted = work(world.facts, load["weight_format"])
    most = serving_ceiling(world.facts, world.accelerator, counted=counted, **load)
    speed = alone.ask(estimate)
    assert speed.output_tokens_s <= most.output_tokens_s
    assert most.ttft_s <= speed.ttft_s
    assert most.tpot_s <= speed.tpot_s


LAWS: tuple[Law, ...] = (
    more_bandwidth_is_never_slower,
    higher_peaks_are_never_slower,
    more_requests_never_make_less,
    more_requests_never_answer_sooner,
    longer_prompts_never_make_more,
    a_cache_holds_no_more_than_it_has,
    no_more_run_than_were_asked,
    the_range_holds_the_estimate,
    tokens_in_and_out_keep_their_ratio,
    a_measured_load_comes_back_as_measured,
    no_estimate_passes_its_ceiling,
)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_law_holds(law: Law) -> None:
    @settings(max_examples=60, deadline=None)
    @given(worlds, st.sampled_from([1.01, 1.5, 4.0]))
    def everywhere(world: World, factor: float) -> None:
        law(serving_throughput, world, factor)

    everywhere()
