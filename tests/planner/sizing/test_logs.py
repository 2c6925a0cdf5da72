"""What engines print is read back into measured values."""

from __future__ import annotations

import pytest

from orchestrator.planner.sizing import Measured, ServingJob, from_log, size_serving
from orchestrator.units import GIB
from tests.planner.sizing.shapes import H100, LLAMA_8B

VLLM_OLD = """\
INFO 12-01 10:00:00 model_runner.py:1077] Loading model weights took 14.9595 GB
INFO 12-01 10:00:05 worker.py:232] Memory profiling results: duration=0.89 seconds, the current vLLM \
instance can use total_gpu_memory (79.22GiB) x gpu_memory_utilization (0.90) = 71.30GiB, model weights \
take 14.96GiB; non_torch_memory takes 1.79GiB; PyTorch activation peak memory takes 1.26GiB; \
the rest of the memory reserved for KV Cache is 53.29GiB.
INFO 12-01 10:00:05 gpu_executor.py:76] # GPU blocks: 27284, # CPU blocks: 2048
INFO 12-01 10:00:20 model_runner.py:1527] Graph capturing finished in 12 secs, took 0.31 GiB
"""
VLLM = """\
(Worker_TP0) INFO gpu_model_runner.py:4118] Model loading took 7.51 GiB memory and 2.7 seconds
(Worker_TP1) INFO gpu_model_runner.py:4118] Model loading took 7.52 GiB memory and 2.9 seconds
(Worker_TP0) INFO gpu_worker.py:356] Available KV cache memory: 63.76 GiB
(Worker_TP1) INFO gpu_worker.py:356] Available KV cache memory: 63.70 GiB
INFO kv_cache_utils.py:1307] GPU KV cache size: 1,044,688 tokens
"""
VLLM_DEBUG = """\
DEBUG Memory profiling takes 5.11 seconds. Total non KV cache memory: 17.12GiB; torch peak memory increase: \
1.89GiB; non-torch forward increase memory: 0.25GiB; weights memory: 14.99GiB.
INFO Free memory on device (78.65/79.19 GiB) on startup. Desired GPU memory utilization is \
(0.95, 75.23 GiB). Actual usage is 14.99 GiB for weight, 1.89 GiB for peak activation, 0.25 GiB for \
non-torch memory, and 0.91 GiB for CUDAGraph memory.
"""
SGLANG = """\
[2025-06-01 10:00:00 TP0] Load weight end. type=Qwen3ForCausalLM, dtype=torch.bfloat16, avail mem=15.98 GB, \
mem usage=7.08 GB.
[2025-06-01 10:00:01 TP0] KV Cache is allocated. #tokens: 298447, K size: 5.69 GB, V size: 5.69 GB
[2025-06-01 10:00:20 TP0] Capture cuda graph end. Time elapsed: 15.20 s. mem usage=0.33 GB. avail mem=3.9 GB.
[2025-06-01 10:00:21 TP0] max_total_num_tokens=298447, chunked_prefill_size=2048, max_prefill_tokens=16384
"""


def gib(value: float | None) -> int | None:
    return None if value is None else round(value * GIB)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            VLLM_OLD,
            Measured(
                weights_bytes=gib(14.96),
                activations_bytes=gib(1.26),
                non_torch_bytes=gib(1.79),
                graphs_bytes=gib(0.31),
                kv_cache_bytes=gib(53.29),
                kv_cache_tokens=27284 * 16,
                visible_bytes=gib(79.22),
            ),
        ),
        (
            VLLM,
            Measured(weights_bytes=gib(7.52), kv_cache_bytes=gib(63.70), kv_cache_tokens=1_044_688),
        ),
        (
            VLLM_DEBUG,
            Measured(
                weights_bytes=gib(14.99),
                activations_bytes=gib(1.89),
                non_torch_bytes=gib(0.25),
                graphs_bytes=gib(0.91),
                visible_bytes=gib(79.19),
            ),
        ),
        (
            SGLANG,
            Measured(
                weights_bytes=gib(7.08),
                graphs_bytes=gib(0.33),
                kv_cache_bytes=gib(11.38),
                kv_cache_tokens=298_447,
            ),
        ),
    ],
    ids=["vllm 0.6", "vllm 0.19, two ranks", "vllm 0.19, debug", "sglang"],
)
def test_the_lines_of_each_engine_are_understood(text: str, expected: Measured) -> None:
    assert from_log(text) == expected


def test_a_log_without_memory_says_nothing() -> None:
    assert from_log("INFO: Started server process [1]") == Measured()


def test_a_log_overrides_the_formulas_of_a_size() -> None:
    size = size_serving(LLAMA_8B, H100, ServingJob(tensor=2, measured=from_log(VLLM)))

    assert size.device.weights_bytes == gib(7.52)
    assert size.kv_cache_tokens == 1_044_688


def test_what_a_user_states_wins_over_a_log() -> None:
    stated = Measured(weights_bytes=GIB)

    assert stated.over(from_log(VLLM)).weights_bytes == GIB
    assert stated.over(from_log(VLLM)).kv_cache_tokens == 1_044_688
