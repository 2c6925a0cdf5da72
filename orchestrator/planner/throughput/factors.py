"""What share of their data sheets devices, engines and training stacks reach, as versioned values.

Every figure is a law over an architecture, a number format, an engine or a stack; none knows a
model. ``python -m tests.benchmarks.throughput_fit CSV`` prints them again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Silicon:
    """The shares of a data sheet's figures that good kernels reach.

    ``bandwidth`` is of device memory, ``flops`` of the dense peak in large matrix products.
    """

    bandwidth: float
    flops: float


@dataclass(frozen=True, slots=True)
class EngineSpeed:
    """What a serving engine adds to the device's own time.

    ``rate`` scales the whole. ``layer_s`` is the device's idle time per layer and step,
    ``host_layer_s`` the host's time to launch a layer where no recorded graph does it (the two
    run side by side; the longer one counts). ``sequence_s`` is host time per sequence and step,
    ``request_s`` per request (HTTP, tokenizer). ``narrow_bandwidth`` is what kernels that widen
    weights reach of the bandwidth of the others, ``kv_reads`` how often a step moves the KV
    cache. ``chunk_tokens`` prompt tokens enter a step, ``max_sequences`` run at once;
    ``small_chunk_tokens`` and ``small_max_sequences`` are the defaults on devices below Hopper's
    class. Beyond ``graph_tokens`` of context the engine leaves its graphs and the host launches
    every layer.
    """

    rate: float = 1.0
    layer_s: float = 35e-6
    host_layer_s: float = 0.0
    sequence_s: float = 10e-6
    request_s: float = 1e-3
    narrow_bandwidth: float = 1.0
    kv_reads: float = 1.0
    chunk_tokens: int = 8192
    max_sequences: int = 1024
    small_chunk_tokens: int = 8192
    small_max_sequences: int = 1024
    graph_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Stack:
    """What a training stack reaches of the bf16 dense peak, recomputation counted as work.

    ``layer_s`` is host time per layer and micro batch.
    """

    flops: float
    layer_s: float


@dataclass(frozen=True, slots=True)
class ServingFactors:
    """Efficiency factors of serving.

    ``format_flops`` multiplies ``Silicon.flops`` where products run in that format,
    ``weight_only_flops`` where weights are stored narrower than they are multiplied.
    ``experts_bandwidth`` and ``experts_flops`` are routed experts' shares of what dense layers
    reach, ``kv_bandwidth`` the KV cache's. ``overlap`` is how much of the shorter of memory and
    compute time stays visible. ``allreduce_s`` is one all-reduce's latency over a switch,
    ``bus_allreduce_s`` over PCIe; ``link`` and ``bus_gbs`` are the share of a link, and the rate
    of a bus without one.
    """

    silicon: Mapping[str, Silicon]
    engines: Mapping[str, EngineSpeed]
    format_flops: Mapping[str, float]
    weight_only_flops: float
    experts_bandwidth: float
    experts_flops: float
    attention_flops: float
    kv_bandwidth: float
    overlap: float
    allreduce_s: float
    bus_allreduce_s: float
    link: float
    bus_gbs: float
    pipeline: float
    burst: float


SERVING = ServingFactors(
    silicon={
        "Volta": Silicon(0.70, 0.45),
        "Turing": Silicon(0.70, 0.45),
        "Ampere": Silicon(0.75, 0.6),
        "Ada": Silicon(0.8, 0.5),
        "Hopper": Silicon(0.9, 0.5),
        "Blackwell": Silicon(0.8, 0.5),
        "Blackwell RTX": Silicon(0.8, 0.5),
        "other": Silicon(0.65, 0.35),
    },
    engines={
        # vLLM 0.11, engine/arg_utils.py: 8192 and 1024 from 70 GiB on, A100 excepted, else 2048 and 256
        "vllm": EngineSpeed(
            0.95, layer_s=50e-6, sequence_s=20e-6, small_chunk_tokens=2048, small_max_sequences=256
        ),
        "vllm 0.8": EngineSpeed(
            0.95,
            layer_s=90e-6,
            host_layer_s=0.35e-3,
            narrow_bandwidth=0.5,
            kv_reads=3.0,
            graph_tokens=8192,
        ),
        "sglang": EngineSpeed(0.9, layer_s=50e-6, sequence_s=20e-6),
        "tensorrt-llm": EngineSpeed(1.0, request_s=0.3e-3, max_sequences=2048),
        "lmdeploy": EngineSpeed(1.0),
        "exllamav2": EngineSpeed(1.0, request_s=0.0),
        "transformers": EngineSpeed(
            1.0, host_layer_s=0.83e-3, request_s=0.0, narrow_bandwidth=0.5, kv_reads=20.0, graph_tokens=0
        ),
        "other": EngineSpeed(0.8),
    },
    format_flops={"bf16": 1.0, "fp8": 0.85, "int8": 0.85, "fp4": 0.55},
    weight_only_flops=0.8,
    experts_bandwidth=0.5,
    experts_flops=0.6,
    attention_flops=0.6,
    kv_bandwidth=0.8,
    overlap=0.3,
    allreduce_s=12e-6,
    bus_allreduce_s=45e-6,
    link=0.6,
    bus_gbs=50.0,
    pipeline=0.8,
    burst=0.76,
)


@dataclass(frozen=True, slots=True)
class TrainingFactors:
    """Efficiency factors of training.

    ``silicon`` scales a stack's share of the peak by architecture; ``format_speed`` is the gain
    of a narrower format over bf16 by stack and format; ``width_half`` is the hidden size at which matrix
    products reach half their rate; ``link`` and ``network_gbs`` carry sharded weights.
    """

    stacks: Mapping[str, Stack]
    silicon: Mapping[str, float]
    format_speed: Mapping[str, float]
    experts_flops: float
    attention_flops: float
    width_half: float
    dequantize_layer_s: float
    link: float
    network_gbs: float
    overlap: float


TRAINING = TrainingFactors(
    stacks={
        "fsdp": Stack(0.60, 0.2e-3),
        "megatron": Stack(0.60, 0.1e-3),
        "transformers": Stack(0.5, 2e-3),
    },
    silicon={"Ampere": 1.0, "Hopper": 0.75, "Blackwell": 0.75, "other": 0.75},
    format_speed={
        "fsdp fp8": 1.3,
        "megatron fp8": 1.8,
        "megatron mxfp8": 1.7,
        "megatron nvfp4": 2.2,
    },
    experts_flops=0.5,
    attention_flops=0.6,
    width_half=300.0,
    dequantize_layer_s=10e-3,
    link=0.5,
    network_gbs=40.0,
    overlap=0.2,
)
