"""Broken twins of the throughput estimate and of its benchmark, which their checks must catch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, find, settings
from hypothesis import strategies as st

from orchestrator.catalog.values import Accelerator, ModelFacts
from orchestrator.planner.throughput import Throughput, serving_throughput
from tests.benchmarks.throughput import Prediction, Row, predict
from tests.planner.throughput import test_laws as laws
from tests.planner.throughput.test_reference import answers_are_not_read
from tests.planner.throughput.worlds import Estimate, World, worlds


def _reads_bandwidth_upside_down(facts: ModelFacts, device: Accelerator, **load: Any) -> Throughput:
    slower = replace(device, bandwidth_gbs=1e6 / (device.bandwidth_gbs or 1))
    return serving_throughput(facts, slower, **load)


def _reads_peaks_upside_down(facts: ModelFacts, device: Accelerator, **load: Any) -> Throughput:
    peaks = {name: 1e5 / peak for name, peak in device.tflops.items()}
    return serving_throughput(facts, replace(device, tflops=peaks), **load)


def _chokes_on_many_requests(facts: ModelFacts, device: Accelerator, **load: Any) -> Throughput:
    speed = serving_throughput(facts, device, **load)
    return replace(speed, output_tokens_s=speed.output_tokens_s / (1 + load["concurrency"]))


def _forgets_the_queue(facts: ModelFacts, device: Accelerator, **load: Any) -> Throughput:
    speed = serving_throughput(facts, device, **load)
    return replace(speed, ttft_s=speed.ttft_s / load["concurrency"] ** 2, tpot_s=0.0)


def _skips_prefill(facts: ModelFacts, device: Accelerator, **load: Any) -> Throughput:
    speed = serving_throughput(facts, device, **load)
    return replace(speed, output_tokens_s=speed.output_tokens_s * (1 + load["input_tokens"]))


def _forgets_the_cache(facts: ModelFacts, device: Accelerator, **load: Any) -> Throughput:
    load.pop("kv_cache_tokens", None)
    return serving_throughput(facts, device, **load)


def _runs_more_than_asked(facts: ModelFacts, device: Accelerator, **load: Any) -> Throughput:
    return serving_throughput(facts, device, **{**load, "concurrency": load["concurrency"] * 4})


def _gives_a_range_beside_it(facts: ModelFacts, device: Accelerator, **load: Any) -> Throughput:
    speed = serving_throughput(facts, device, **load)
    return replace(speed, low=speed.high, high=speed.low)


def _counts_output_as_total(facts: ModelFacts, device: Accelerator, **load: Any) -> Throughput:
    speed = serving_throughput(facts, device, **load)
    return replace(speed, total_tokens_s=speed.output_tokens_s)


def _trusts_the_formula_over_a_measurement(facts: ModelFacts, device: Accelerator, **load: Any) -> Throughput:
    load.pop("measured", None)
    return serving_throughput(facts, device, **load)


def _outruns_its_memory(facts: ModelFacts, device: Accelerator, **load: Any) -> Throughput:
    return serving_throughput(facts, replace(device, bandwidth_gbs=1e6), **load)


TWINS: list[tuple[Estimate, laws.Law]] = [
    (_reads_bandwidth_upside_down, laws.more_bandwidth_is_never_slower),
    (_reads_peaks_upside_down, laws.higher_peaks_are_never_slower),
    (_chokes_on_many_requests, laws.more_requests_never_make_less),
    (_forgets_the_queue, laws.more_requests_never_answer_sooner),
    (_skips_prefill, laws.longer_prompts_never_make_more),
    (_forgets_the_cache, laws.a_cache_holds_no_more_than_it_has),
    (_runs_more_than_asked, laws.no_more_run_than_were_asked),
    (_gives_a_range_beside_it, laws.the_range_holds_the_estimate),
    (_counts_output_as_total, laws.tokens_in_and_out_keep_their_ratio),
    (_trusts_the_formula_over_a_measurement, laws.a_measured_load_comes_back_as_measured),
    (_outruns_its_memory, laws.no_estimate_passes_its_ceiling),
]


@pytest.mark.parametrize(("twin", "law"), TWINS, ids=lambda each: each.__name__.strip("_"))
def test_law_catches_its_broken_twin(twin: Estimate, law: laws.Law) -> None:
    def is_caught(case: tuple[World, float]) -> bool:
        try:
            law(twin, *case)
        except AssertionError:
            return True
        return False

    find(
        st.tuples(worlds, st.sampled_from([1.5, 4.0])),
        is_caught,
        settings=settings(
            max_examples=500, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
        ),
    )


def test_every_law_has_a_broken_twin() -> None:
    assert {law for _, law in TWINS} == set(laws.LAWS)


def test_a_benchmark_that_peeks_is_caught() -> None:
    def peeks(row: Row) -> Prediction:
        made = predict(row)
        return replace(made, tokens_s_total=float(row.get("measured_output_tokens_s") or 0))

    with pytest.raises(AssertionError):
        answers_are_not_read(peeks)
