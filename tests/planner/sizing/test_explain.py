"""A receipt shows every part of a size, with the numbers it came from."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.planner.sizing import Measured, ServingJob, TrainingJob, size_serving, size_training
from orchestrator.planner.sizing.explain import explain_serving, explain_training
from orchestrator.units import GIB
from tests.planner.sizing.shapes import ALL, H100, LLAMA_8B, LLAMA_70B

PARTS = {"weights", "activations", "non-torch", "graphs", "adapters", "KV cache"}


@pytest.mark.parametrize("engine", ["vllm", "sglang", "tgi", "nim", "transformers"])
def test_the_parts_of_a_receipt_add_up_to_the_peak(engine: str) -> None:
    for model in ALL:
        job = ServingJob(engine=engine, context=4096, tensor=8, adapters=2)

        steps = explain_serving(model, H100, job)

        total = sum(s.size_bytes for s in steps if s.what in PARTS)
        assert total == pytest.approx(size_serving(model, H100, job).device.peak_bytes, abs=4)


def test_a_receipt_names_the_numbers_it_used() -> None:
    job = ServingJob(context=8192, concurrency=16, tensor=2)

    text = "\n".join(map(str, explain_serving(LLAMA_70B, H100, job)))

    for number in ("70.55 B parameters", "tensor 2", "128256 entries", "16 requests of 8192 tokens", "92%"):
        assert number in text


def test_a_measured_part_says_so() -> None:
    job = ServingJob(measured=Measured(weights_bytes=15 * GIB))

    (weights,) = [s for s in explain_serving(LLAMA_8B, H100, job) if s.what == "weights"]

    assert weights.how == "measured"


def test_a_training_receipt_leaves_out_what_is_not_there() -> None:
    lora = {s.what for s in explain_training(LLAMA_8B, H100, TrainingJob(tuning="lora"))}
    full = {s.what for s in explain_training(LLAMA_8B, H100, TrainingJob())}

    assert "adapter" in lora - full
    assert "generation" not in full


def test_the_parts_of_a_training_receipt_add_up_to_the_peak() -> None:
    for job in (TrainingJob(), TrainingJob(tuning="qlora"), TrainingJob(method="grpo", rollout_share=0.3)):
        for run in (job, replace(job, sharding="fsdp", devices=8)):
            steps = explain_training(LLAMA_8B, H100, run)

            total = sum(s.size_bytes for s in steps if s.what != "peak")
            assert total == pytest.approx(size_training(LLAMA_8B, H100, run).device.peak_bytes, abs=8)
