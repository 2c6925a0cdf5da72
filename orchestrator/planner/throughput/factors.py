"""What share of their data sheets devices, engines and training stacks reach, as versioned values.

Every figure is a law over an architecture, a number format, an engine or a stack; none knows a
model. Unless a comment names another source, ``python -m tests.benchmarks.throughput_fit CSV``
prints it again, from 503 serving and 247 training rows of public measurements
(``docs/reference/throughput.md`` lists them).
"""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.frozen import frozen


@frozen
class Silicon:
    """The shares of a data sheet's figures that good kernels reach.

    ``bandwidth`` is of device memory, ``flops`` of the dense peak in large matrix products.
    """

    bandwidth: float
    flops: float


@frozen
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


@frozen
class Stack:
    """What a training stack reaches of the bf16 dense peak, recomputation counted as work.

    ``layer_s`` is host time per layer and micro batch. ``gathers`` says whether full tuning
    collects its sharded weights for every micro batch (FSDP, ZeRO-3).
    """

    flops: float
    layer_s: float
    gathers: bool


@frozen
class ServingFactors:
    """Efficiency factors of serving.

    ``format_flops`` multiplies ``Silicon.flops`` where products run in that format,
    ``widened_flops`` where weights are stored narrower than they are multiplied.
    ``experts_bandwidth`` and ``experts_flops`` are routed experts' shares of what dense layers
    reach, ``kv_bandwidth`` the KV cache's. ``visible`` is how much of the shorter of memory and
    compute time is not hidden by the longer. ``allreduce_s`` is one all-reduce's latency over a
    switch, ``bus_allreduce_s`` over PCIe; ``link`` is the share that all-reduces reach of a link
    one way, ``bus_gbs`` what PCIe 5.0 x16 carries for them. ``pipeline`` is how full pipeline
    stages are, ``burst`` what filling and draining leave of a finite burst. ``spread`` is the
    factor up and down that holds four of five rows of a source that was left out of the fit, by
    kind (``other``, where no row is, is a guess); ``fitted`` are the architectures that the rows
    cover.
    """

    silicon: Mapping[str, Silicon]
    engines: Mapping[str, EngineSpeed]
    format_flops: Mapping[str, float]
    widened_flops: float
    experts_bandwidth: float
    experts_flops: float
    attention_flops: float
    kv_bandwidth: float
    visible: float
    allreduce_s: float
    bus_allreduce_s: float
    link: float
    bus_gbs: float
    pipeline: float
    burst: float
    spread: Mapping[str, float]
    fitted: frozenset[str]


SERVING = ServingFactors(
    silicon={
        "Ampere": Silicon(0.87, 0.87),
        "Ada": Silicon(0.95, 0.60),
        "Hopper": Silicon(0.90, 0.60),
        "Blackwell": Silicon(0.71, 0.61),
        "Blackwell RTX": Silicon(0.95, 0.85),
        # no rows: below all that were seen, as their kernels are less travelled (MAMF, the best
        # matrix product, is 51 % of the peak on MI300X, 68 % on MI355X, 74 % on Gaudi 3:
        # stas00/ml-engineering, compute/accelerator)
        "other": Silicon(0.70, 0.45),
    },
    engines={
        # vLLM 0.11, engine/arg_utils.py: 8192 and 1024 from 70 GiB on, the A100 excepted, else 2048 and 256
        "vllm": EngineSpeed(
            rate=1.0,
            layer_s=59e-6,
            sequence_s=47e-6,
            request_s=1.1e-3,
            small_chunk_tokens=2048,
            small_max_sequences=256,
        ),
        # until 0.8; vLLM 0.4.2, config.py: max_context_len_to_capture 8192
        "vllm-v0": EngineSpeed(
            layer_s=160e-6,
            host_layer_s=0.27e-3,
            narrow_bandwidth=1.0,
            kv_reads=2.5,
            max_sequences=256,
            small_max_sequences=256,
            graph_tokens=8192,
        ),
        # the rows say 0.74, most of them untuned launches of one model; held at vLLM's side of it
        "sglang": EngineSpeed(rate=0.85, layer_s=59e-6, sequence_s=47e-6, request_s=1.1e-3),
        # the measure of the others: its rate is 1 by definition
        "tensorrt-llm": EngineSpeed(layer_s=34e-6, sequence_s=10e-6, request_s=0.3e-3, max_sequences=2048),
        "lmdeploy": EngineSpeed(layer_s=34e-6),
        "exllamav2": EngineSpeed(layer_s=34e-6, request_s=0.0),
        # launches every layer from Python and copies the cache as it grows (DynamicCache, repeat_kv)
        "transformers": EngineSpeed(
            host_layer_s=0.80e-3,
            narrow_bandwidth=0.38,
            kv_reads=27.0,
            request_s=0.0,
            graph_tokens=0,
        ),
        # no rows: below all engines that were seen
        "other": EngineSpeed(rate=0.8),
    },
    format_flops={"bf16": 1.0, "fp8": 1.0, "int8": 1.0, "fp4": 0.73},
    widened_flops=0.93,
    experts_bandwidth=0.48,
    experts_flops=0.67,
    attention_flops=1.0,
    kv_bandwidth=0.83,
    visible=0.59,
    allreduce_s=12e-6,
    bus_allreduce_s=39e-6,
    link=0.66,
    bus_gbs=64.0,
    pipeline=0.72,
    burst=0.72,
    spread={"dense": 1.35, "experts": 1.55, "other": 2.0, "measured": 1.2},
    fitted=frozenset({"Ampere", "Ada", "Hopper", "Blackwell"}),
)


@frozen
class TrainingFactors:
    """Efficiency factors of training.

    ``silicon`` scales a stack's share of the peak by architecture, ``format_speed`` is the gain
    of a stack in a format over bf16. ``width_half`` is the hidden size at which matrix products
    reach half their rate. ``widen`` multiplies the bandwidth cost of widening frozen weights by
    their method, ``recompute`` is what a checkpointed forward costs of a first one. ``link`` is
    the share of the links between accelerators, ``network_gbs`` what reaches one accelerator from
    other machines. ``spread`` is as for serving.
    """

    stacks: Mapping[str, Stack]
    silicon: Mapping[str, float]
    format_speed: Mapping[str, float]
    experts_flops: float
    attention_flops: float
    width_half: float
    widen: Mapping[str, float]
    recompute: float
    link: float
    network_gbs: float
    visible: float
    spread: float


TRAINING = TrainingFactors(
    stacks={
        "fsdp": Stack(flops=0.61, layer_s=0.20e-3, gathers=True),
        "megatron": Stack(flops=0.77, layer_s=0.1e-3, gathers=False),
        "transformers": Stack(flops=0.52, layer_s=2.3e-3, gathers=True),
    },
    silicon={
        "Ampere": 1.0,
        "Hopper": 0.71,
        "Blackwell": 0.66,
        # PaLM (arXiv 2204.02311, 4.1): 57.8 % of TPU v4's peak with recomputation, against 0.61
        "TPU v4": 0.95,
        "TPU v5e": 0.95,
        "TPU v5p": 0.95,
        # no rows: the lowest of those that have
        "other": 0.66,
    },
    format_speed={
        "fsdp fp8": 1.5,
        "megatron fp8": 2.0,
        "megatron mxfp8": 1.9,
        "megatron nvfp4": 2.9,
    },
    experts_flops=0.47,
    attention_flops=0.43,
    width_half=320.0,
    widen={"gptq": 5.1, "other": 1.0},
    recompute=0.32,
    link=0.53,
    network_gbs=86.0,
    visible=0.20,
    spread=1.3,
)
