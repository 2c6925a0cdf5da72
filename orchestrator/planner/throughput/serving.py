"""Serving as a roofline: how many tokens a replica makes at a stated load, and how fast each comes.

A decode step reads the weights and the KV cache once for all sequences (bandwidth), multiplies
each sequence's token (compute), and pays its all-reduces and its launches. Prompts enter in
chunks that cost the same step with many tokens. Little's law joins the two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from orchestrator.catalog.values import Accelerator, ModelFacts
from orchestrator.units import GIB
from orchestrator.planner.throughput.factors import SERVING, EngineSpeed, ServingFactors, Silicon
from orchestrator.planner.throughput.work import (
    Work,
    attended_tokens,
    attention_flops,
    kv_elements,
    state_bytes,
    weight_bits,
    weight_bytes,
    work,
)

BoundBy = Literal["bandwidth", "compute", "interconnect", "overhead"]

@dataclass(frozen=True, slots=True)
class Throughput:
    """A replica's speed at a stated load, all its accelerators together.

    ``low`` and ``high`` bound ``output_tokens_s``. ``ttft_s`` is a request's wait for its first
    token, queueing for a free place included; ``tpot_s`` the time between its tokens.
    ``sequences`` run at once, which is fewer than asked for where the KV cache is full.
    """

    output_tokens_s: float
    total_tokens_s: float
    ttft_s: float
    tpot_s: float
    low: float
    high: float
    bound_by: BoundBy
    sequences: float
    measured: bool = False


@dataclass(frozen=True, slots=True)
class Load:
    """What a replica's shape and its traffic make of a model: the inputs of every step."""

    facts: ModelFacts
    model: Work
    accelerator: Accelerator
    tensor: int
    pipeline: int
    data: int
    expert: int
    weight_format: str
    kv_bytes: float
    engine: EngineSpeed
    input_tokens: float
    output_tokens: float

    @property
    def chunk_tokens(self) -> int:
        """Return how many prompt tokens the engine takes into one step by default."""
        return self.engine.chunk_tokens if _is_large(self.accelerator) else self.engine.small_chunk_tokens

    @property
    def max_sequences(self) -> int:
        """Return how many sequences the engine runs at once by default."""
        return self.engine.max_sequences if _is_large(self.accelerator) else self.engine.small_max_sequences


def _is_large(accelerator: Accelerator) -> bool:
    return accelerator.visible_bytes >= 70 * GIB and accelerator.architecture != "Ampere"


def silicon(accelerator: Accelerator, factors: ServingFactors) -> Silicon:
    """Return the shares that ``accelerator``'s architecture reaches."""
    name = accelerator.architecture
    # sm_120 and sm_121 have neither tcgen05 nor HBM: a Blackwell by name only.
    if name == "Blackwell" and accelerator.capability is not None and accelerator.capability[0] >= 11:
        name = "Blackwell RTX"
    return factors.silicon.get(name, factors.silicon["other"])


def peak_flops(accelerator: Accelerator, number_format: str) -> float:
    """Return the dense peak of ``accelerator`` in ``number_format``, in operations a second.

    Where no figure for 16 bits is known, 0.08 TFLOP/s per GB/s stands in: what GeForce 30 and 40
    have (RTX 3090: 71.2 over 936; RTX 3090 Ti: 80 over 1008).

    Raises:
        ValueError: neither the peak nor the bandwidth is known.
    """
    peaks = accelerator.tflops
    if number_format in peaks:
        return peaks[number_format] * 1e12
    if "bf16" in peaks or "fp16" in peaks:
        return peaks.get("bf16", peaks.get("fp16", 0.0)) * 1e12
    return 0.08 * bandwidth(accelerator) / 1e9 * 1e12


def bandwidth(accelerator: Accelerator) -> float:
    """Return the memory bandwidth of ``accelerator`` in bytes a second.

    Raises:
        ValueError: the catalog has no figure.
    """
    if accelerator.bandwidth_gbs is None:
        raise ValueError(f"no memory bandwidth is known for {accelerator.name}")
    return accelerator.bandwidth_gbs * 1e9


def product_format(accelerator: Accelerator, weight_format: str) -> str:
    """Return the format in which weights of ``weight_format`` are multiplied on ``accelerator``.

    MXFP4 weights meet 8-bit activations where the device has FP4; formats that it lacks are
    widened to 16 bits on the way in.
    """
    wanted = {"fp8": "fp8", "mxfp8": "fp8", "int8": "int8", "nvfp4": "fp4", "mxfp4": "fp4"}.get(weight_format)
    if wanted is None or wanted not in accelerator.tflops:
        return "bf16"
    return "fp8" if weight_format == "mxfp4" else wanted


def _product_flops(load: Load, factors: ServingFactors) -> float:
    chosen = product_format(load.accelerator, load.weight_format)
    share = factors.format_flops[chosen] * silicon(load.accelerator, factors).flops
    if chosen == "bf16" and weight_bits(load.weight_format) < 16:
        share *= factors.weight_only_flops
    return peak_flops(load.accelerator, chosen) * share


@dataclass(frozen=True, slots=True)
class Pass:
    """The parts of one pass through the model, in seconds."""

    bandwidth: float
    compute: float
    interconnect: float
    overhead: float
    host: float
    overlap: float

    @property
    def seconds(self) -> float:
        """Return the length of the pass; memory and compute overlap, and the host runs ahead of both."""
        longer, shorter = max(self.bandwidth, self.compute), min(self.bandwidth, self.compute)
        device = longer + self.overlap * shorter + self.interconnect + self.overhead
        return max(device, self.host) + self.overlap * min(device, self.host)


def _pass(
    load: Load, factors: ServingFactors, *, tokens: float, sequences: float, kv: float, attention: float, context: float
) -> Pass:
    """Return one pass of ``tokens`` tokens through all stages of one data-parallel rank.

    ``kv`` is the bytes of KV cache read and ``attention`` the operations over it, both before
    tensor parallelism divides them.
    """
    stages = min(float(load.pipeline), max(tokens, 1.0))
    micro = tokens / stages
    shards = load.tensor
    expert_shards = load.tensor * (load.data if load.expert > 1 else 1)
    routed = micro * (load.data if load.expert > 1 else 1)
    device = silicon(load.accelerator, factors)
    rate = bandwidth(load.accelerator) * device.bandwidth
    dense, experts = weight_bytes(load.model, load.weight_format)
    touched = 1 - (1 - load.model.expert_share) ** max(routed, 1.0) if experts else 0.0
    if weight_bits(load.weight_format) < 16 and product_format(load.accelerator, load.weight_format) == "bf16":
        rate_w = rate * load.engine.narrow_bandwidth
    else:
        rate_w = rate
    read = dense / shards / rate_w + experts * touched / expert_shards / (rate_w * factors.experts_bandwidth)
    kv_shards = min(shards, load.facts.kv_heads) if load.facts.attention == "mha" else 1
    read += kv * load.engine.kv_reads / stages / kv_shards / (rate * factors.kv_bandwidth)
    flops = _product_flops(load, factors)
    routed_work = load.model.experts * load.model.expert_share
    # per micro batch over all stages; a stage holds 1/stages of the layers and all stages work at once
    multiply = 2 * micro * (load.model.dense + routed_work / factors.experts_flops) / shards / flops
    sixteen = peak_flops(load.accelerator, "bf16") * device.flops * factors.attention_flops
    multiply += attention / stages / shards / sixteen
    return Pass(
        bandwidth=read,
        compute=multiply,
        interconnect=_allreduce(load, factors, micro),
        overhead=load.engine.layer_s * load.model.layers + sequences / stages * load.engine.sequence_s,
        host=_host_layer_s(load, context) * load.model.layers,
        overlap=factors.overlap,
    )


def _host_layer_s(load: Load, context: float) -> float:
    """Return the host's time per layer at ``context``: none while a recorded graph runs."""
    limit = load.engine.graph_tokens
    return load.engine.host_layer_s if limit is not None and context > limit else 0.0


def _allreduce(load: Load, factors: ServingFactors, tokens: float) -> float:
    """Return the seconds of two all-reduces per layer, of ``tokens`` activations in 16 bits each."""
    if load.tensor == 1:
        return 0.0
    link = load.accelerator.link_gbs
    switched = link is not None and link >= 200
    one_way = (link or 0.0) / 2 * factors.link if switched else _bus_gbs(load.accelerator, factors)
    latency = factors.allreduce_s if switched else factors.bus_allreduce_s
    volume = 2 * (load.tensor - 1) / load.tensor * tokens * load.model.hidden * 2
    return 2 * load.model.layers * (latency + volume / (one_way * 1e9))


def _bus_gbs(accelerator: Accelerator, factors: ServingFactors) -> float:
    """Return what PCIe carries one way: generation 5 from Hopper on, half of it before."""
    return factors.bus_gbs if accelerator.architecture in ("Hopper", "Blackwell") else factors.bus_gbs / 2


def _decode(load: Load, factors: ServingFactors, sequences: float) -> Pass:
    context = load.input_tokens + load.output_tokens / 2
    attended = attended_tokens(load.facts, context)
    element = load.kv_bytes * kv_elements(load.facts)
    return _pass(
        load,
        factors,
        tokens=sequences,
        sequences=sequences,
        kv=sequences * (attended * element + state_bytes(load.facts)),
        attention=sequences * attention_flops(load.facts, attended),
        context=context,
    )


def _prefill(load: Load, factors: ServingFactors, sequences: float) -> tuple[Pass, float]:
    """Return one prefill pass, and the share of it that one request causes."""
    tokens = min(max(load.input_tokens, 1.0) * sequences, float(load.chunk_tokens))
    share = max(load.input_tokens, 1.0) / tokens
    attended = attended_tokens(load.facts, load.input_tokens / 2)
    one = _pass(
        load,
        factors,
        tokens=tokens,
        sequences=0.0,
        kv=0.0,
        attention=tokens * attention_flops(load.facts, attended),
        context=load.input_tokens,
    )
    return one, share


def kv_places(load: Load, *, memory_share: float = 0.9, other_bytes: float = 2e9) -> float:
    """Return how many sequences one data-parallel rank's KV cache holds at their mean length.

    Args:
        load: The replica.
        memory_share: Of the visible memory, what the engine takes (vLLM's default).
        other_bytes: Activations and graphs per device.
    """
    dense, experts = weight_bytes(load.model, load.weight_format)
    shards = load.tensor * load.pipeline
    spread = shards * (load.data if load.expert > 1 else 1)
    held = (dense + load.model.table * 2) / shards + experts / spread
    free = load.accelerator.visible_bytes * memory_share - held - other_bytes
    context = load.input_tokens + load.output_tokens / 2
    kv_shards = min(load.tensor, load.facts.kv_heads) if load.facts.attention == "mha" else 1
    per_token = load.kv_bytes * kv_elements(load.facts) * attended_tokens(load.facts, context)
    per_sequence = (per_token + state_bytes(load.facts)) / load.pipeline / kv_shards
    return max(free / per_sequence, 1.0)


def engine_speed(name: str, factors: ServingFactors = SERVING) -> EngineSpeed:
    """Return the speed of an engine, which may carry its version: ``vllm 0.11.0``.

    NIM serves with TensorRT-LLM or vLLM and is taken for vLLM. vLLM before 0.9 ran its V0 core,
    which leaves its CUDA graphs beyond 8192 tokens (``--max-seq-len-to-capture``).
    """
    word, _, version = name.lower().partition(" ")
    word = {"nim": "vllm"}.get(word, word)
    if word == "vllm" and version.startswith("0.") and version.split(".")[1].isdigit() and int(version.split(".")[1]) < 9:
        word = "vllm 0.8"
    return factors.engines.get(word, factors.engines["other"])


def serving_throughput(
    facts: ModelFacts,
    accelerator: Accelerator,
    *,
    input_tokens: float,
    output_tokens: float,
    concurrency: float | None,
    weight_format: str = "bf16",
    kv_dtype: str = "bf16",
    engine: str = "vllm",
    tensor: int = 1,
    pipeline: int = 1,
    data: int = 1,
    expert: int = 1,
    burst: bool = False,
    factors: ServingFactors = SERVING,
) -> Throughput:
    """Return how fast a replica of ``tensor × pipeline × data`` accelerators serves a load."""
    load = Load(
        facts=facts,
        model=work(facts),
        accelerator=accelerator,
        tensor=tensor,
        pipeline=pipeline,
        data=data,
        expert=expert,
        weight_format=weight_format,
        kv_bytes=1.0 if kv_dtype == "fp8" else 2.0,
        engine=engine_speed(engine, factors),
        input_tokens=input_tokens,
        output_tokens=output_tokens,
    )
    room = min(kv_places(load), float(load.max_sequences))
    asked = room if concurrency is None else concurrency / data
    sequences = max(min(asked, room), 1.0)
    step = _decode(load, factors, sequences)
    chunk, share = _prefill(load, factors, sequences)
    slow = (factors.pipeline if pipeline > 1 and sequences >= pipeline else 1.0) * load.engine.rate
    if burst:
        slow *= factors.burst
    steps = max(output_tokens, 1.0)
    # what one request takes of the replica: its part of prefill passes, of decode steps, and the host's time
    took = (chunk.seconds * share + steps * step.seconds / sequences) / slow + load.engine.request_s
    rate = data / took
    output = rate * output_tokens
    cycle = sequences * took
    waiting = max(asked / sequences - 1, 0.0) * cycle
    first = chunk.seconds * max(input_tokens / load.chunk_tokens, 1.0) / slow + step.seconds
    return Throughput(
        output_tokens_s=output,
        total_tokens_s=rate * (input_tokens + output_tokens),
        ttft_s=waiting + first,
        tpot_s=max(cycle - first, step.seconds) / steps,
        low=output / 1.5,
        high=output * 1.5,
        bound_by="bandwidth",
        sequences=sequences * data,
    )
