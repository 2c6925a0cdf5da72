"""Engines' figures by version, and the defaults that follow from them."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from orchestrator.catalog.values import Accelerator
from orchestrator.planner.sizing import ServingJob, size_serving
from orchestrator.planner.sizing.profiles import engine_profile
from orchestrator.planner.sizing.serving import default_batch
from tests.planner.sizing.shapes import A100, ALL, H100, L4, LLAMA_8B, device


@pytest.mark.parametrize(
    ("engine", "version", "utilization", "graphs"),
    [
        ("vllm", "0.19.0", 0.90, "outside"),
        ("vllm", "0.20", 0.92, "inside"),
        ("vllm", None, 0.92, "inside"),
        ("nim", None, 0.92, "inside"),
        ("tgi", "3.3.5", 0.90, "outside"),
        ("transformers", None, 1.0, "none"),
    ],
)
def test_a_version_takes_the_newest_profile_that_holds_for_it(
    engine: str, version: str | None, utilization: float, graphs: str
) -> None:
    profile = engine_profile(engine, version)

    assert (profile.memory_utilization, profile.graphs) == (utilization, graphs)


def test_every_profile_has_a_source_and_a_margin() -> None:
    for engine in ("vllm", "sglang", "tgi", "nim", "transformers"):
        for version in ("0.1", "0.11.0", "0.19.0", "4.46.0", "5.1", None):
            profile = engine_profile(engine, version)
            assert profile.source
            assert 0 < profile.margin < 0.2


@pytest.mark.parametrize(
    ("on", "sequences", "tokens"),
    [
        (device("H200-141GB", 140), 1024, 8192),
        (device("B200-180GB", 178.6), 1024, 16384),
        (H100, 1024, 8192),
        (A100, 256, 2048),
        (L4, 256, 2048),
    ],
)
def test_vllm_sets_its_batch_by_device_memory(on: Accelerator, sequences: int, tokens: int) -> None:
    # vLLM 0.33, engine arguments: 160 and 70 GiB, A100 excepted
    tier = default_batch(on, engine="vllm")

    assert (tier.max_num_seqs, tier.max_num_batched_tokens) == (sequences, tokens)


def test_sglang_reserves_what_its_arguments_compute() -> None:
    # 512 MiB, 1.5 MiB for each of 8,192 tokens, 2 for each of 256 graphs, 1/8 GiB for one rank
    size = size_serving(LLAMA_8B, H100, ServingJob(engine="sglang", context=8192))

    reserve = 512 + 8192 * 1.5 + 256 * 2 + 128
    assert size.memory_utilization == pytest.approx(1 - reserve / (79.19 * 1024), abs=0.0005)


def test_the_sizing_imports_nothing_heavy() -> None:
    names = "numpy pandas pydantic sqlalchemy httpx rich docker kubernetes fastapi"
    code = (
        f"import sys, orchestrator.planner.sizing; print(*(n for n in '{names}'.split() if n in sys.modules))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.split() == []


def test_a_size_takes_well_under_a_millisecond_of_processor_time() -> None:
    job = ServingJob(context=8192, tensor=8)
    for model in ALL:
        size_serving(model, H100, job)

    started = time.process_time()
    for _ in range(25):
        for model in ALL:
            size_serving(model, H100, job)

    # 0.1 ms measured; the bound leaves room for a busy machine
    assert time.process_time() - started < 25 * len(ALL) * 0.001
