"""Serving as a roofline: how many tokens a replica makes at a stated load, and how fast each comes.

A pass through the model reads the weights and the KV cache once for all its tokens (bandwidth),
multiplies each token (compute), and pays its all-reduces and launches. Decode is a pass of one
token per sequence, prefill one of a chunk of prompt. Little's law joins the two.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

from orchestrator.catalog.values import Accelerator, ModelFacts
from orchestrator.frozen import frozen
from orchestrator.planner.sizing.formats import KV_ELEMENT_BYTES
from orchestrator.planner.sizing.kv import kv_layout
from orchestrator.planner.sizing.profiles import version_key
from orchestrator.planner.throughput.device import (
    bandwidth,
    bus_share,
    by_architecture,
    is_switched,
    is_widened,
    peak_flops,
    product_format,
)
from orchestrator.planner.throughput.factors import SERVING, EngineSpeed, ServingFactors
from orchestrator.planner.throughput.measured import Measured, closest
from orchestrator.planner.throughput.work import Work, work
from orchestrator.units import GIB

BoundBy = Literal["bandwidth", "compute", "interconnect", "overhead"]


@frozen
class Throughput:
    """A replica's speed at a stated load, all its accelerators together.

    ``low`` and ``high`` bound ``output_tokens_s`` in four of five unseen cases. ``ttft_s`` is a
    request's mean wait for its first token, with its queueing for a free place; ``tpot_s`` the
    mean time between its tokens, 0 where there is one only. Of a model that pools, ``output_tokens_s``
    and its bounds count the tokens that are read, as none comes out, and ``ttft_s`` is the wait for the
    answer. ``sequences`` run at once: fewer than
    asked for where the KV cache is full. ``measured`` names the source of the row that the
    figures were brought to,
    ``cautions`` say in a phrase each why the figures deserve less trust than their range.
    """

    output_tokens_s: float
    total_tokens_s: float
    ttft_s: float
    tpot_s: float
    low: float
    high: float
    bound_by: BoundBy
    sequences: float
    measured: str = ""
    cautions: tuple[str, ...] = ()


@frozen
class Ceiling:
    """What a replica cannot surpass at a load: tokens a second at most, seconds at least."""

    output_tokens_s: float
    ttft_s: float
    tpot_s: float


@frozen
class _Replica:
    """A model on its accelerators under its load: what every pass is computed from."""

    facts: ModelFacts
    model: Work
    accelerator: Accelerator
    engine: EngineSpeed
    factors: ServingFactors
    tensor: int
    pipeline: int
    data: int
    expert: int
    weight_format: str
    element_bytes: float
    input_tokens: float
    output_tokens: float
    max_sequences: int
    chunk_tokens: int

    @property
    def rank_devices(self) -> int:
        """Return the accelerators of one data-parallel rank."""
        return self.tensor * self.pipeline

    @property
    def expert_ranks(self) -> int:
        """Return over how many data-parallel ranks the experts are spread."""
        return self.data if self.expert > 1 else 1

    @property
    def context(self) -> float:
        """Return the mean tokens of a sequence in decode."""
        return self.input_tokens + self.output_tokens / 2

    @property
    def counted_tokens(self) -> float:
        """Return the tokens of a request that a speed counts: those that come out, else those that go in."""
        return max(self.input_tokens, 1.0) if self.facts.pools else self.output_tokens

    def cache_bytes(self) -> float:
        """Return what a sequence of mean length keeps in the KV cache on one tensor-parallel rank."""
        layout = kv_layout(self.facts, tensor=self.tensor, element_bytes=self.element_bytes, grouped=False)
        return layout.request_bytes(round(self.context))


@frozen
class _Pass:
    """The parts of one pass through the model, in seconds.

    Memory and compute overlap but for a share of the shorter; the host runs ahead of the device
    likewise where it launches every layer.
    """

    bandwidth: float
    compute: float
    interconnect: float
    overhead: float
    host: float
    visible: float

    @property
    def seconds(self) -> float:
        """Return how long the pass takes."""
        device = _overlapped(self.bandwidth, self.compute, self.visible) + self.interconnect + self.overhead
        return _overlapped(device, self.host, self.visible)

    def parts(self) -> dict[BoundBy, float]:
        """Return the seconds by what bounds them."""
        return {
            "bandwidth": self.bandwidth,
            "compute": self.compute,
            "interconnect": self.interconnect,
            "overhead": self.overhead + self.host,
        }


def _overlapped(one: float, other: float, visible: float) -> float:
    return max(one, other) + visible * min(one, other)


def serving_throughput(
    facts: ModelFacts,
    accelerator: Accelerator,
    *,
    input_tokens: float,
    output_tokens: float,
    concurrency: float | None = None,
    tensor: int = 1,
    pipeline: int = 1,
    data: int = 1,
    expert: int = 1,
    weight_format: str = "bf16",
    kv_dtype: str = "bf16",
    engine: str = "vllm",
    engine_version: str | None = None,
    kv_cache_tokens: float | None = None,
    max_sequences: int | None = None,
    burst: bool = False,
    measured: Sequence[Measured] = (),
    counted: Work | None = None,
    factors: ServingFactors = SERVING,
) -> Throughput:
    """Return how fast one replica of ``tensor × pipeline × data`` accelerators serves a load.

    Args:
        facts: The model.
        accelerator: Every device of the replica.
        input_tokens: Mean prompt length.
        output_tokens: Mean answer length; a model that pools has none, whatever is said.
        concurrency: Requests in the replica at any time; None keeps it as full as it gets.
        tensor: Ranks that share every layer, taken to be within one machine or NVLink domain.
        pipeline: Stages that share the layers.
        data: Ranks that share the requests.
        expert: Above 1, the experts are spread over all ranks rather than repeated per data rank.
        weight_format: How weights lie in memory, in any spelling that sizing knows.
        kv_dtype: Format of the KV cache.
        engine: ``vllm``, ``sglang``, ``nim``, ``tgi``, ``transformers``, ``tensorrt-llm``, ...
        engine_version: None means the current one.
        kv_cache_tokens: Tokens the replica's KV cache holds, from sizing; None estimates them.
        max_sequences: The engine's limit of sequences at once per data rank; None is its default.
        burst: Whether the load is one finite burst, as benchmarks send it, that fills and drains.
        measured: Measured rows; the closest of the same model, accelerators, layout, engine and
            format wins over the formula, which then only carries it from its load to this one.
        counted: What ``work`` says of the model in the format, for callers that ask many times.
        factors: What devices and engines reach of their data sheets.

    Raises:
        ValueError: a count is below 1, a length is negative or no token comes out, the catalog
            has no bandwidth for the accelerator, or a format is unknown.

    >>> from orchestrator.catalog import accelerator, model
    >>> load = {"input_tokens": 1500, "output_tokens": 300, "concurrency": 16}
    >>> speed = serving_throughput(model("meta-llama/Llama-3.1-8B-Instruct"), accelerator("H100"), **load)
    >>> speed.bound_by, speed.low < speed.output_tokens_s < speed.high
    ('bandwidth', True)
    """
    if min(tensor, pipeline, data, expert) < 1 or (concurrency is not None and concurrency <= 0):
        raise ValueError("degrees of parallelism and concurrency are at least 1")
    if input_tokens < 0 or output_tokens < 1:
        raise ValueError("a request has a prompt of 0 tokens or more and an answer of at least 1")
    if kv_dtype not in KV_ELEMENT_BYTES:
        raise ValueError(f"unknown KV cache format {kv_dtype!r}; known are {', '.join(KV_ELEMENT_BYTES)}")
    output_tokens = 1 if facts.pools else output_tokens
    speed = engine_speed(engine, engine_version, factors)
    large = _is_large(accelerator)
    replica = _Replica(
        facts=facts,
        model=counted or work(facts, weight_format),
        accelerator=accelerator,
        engine=speed,
        factors=factors,
        tensor=tensor,
        pipeline=pipeline,
        data=data,
        expert=expert,
        weight_format=weight_format,
        element_bytes=KV_ELEMENT_BYTES[kv_dtype],
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        max_sequences=max_sequences or (speed.max_sequences if large else speed.small_max_sequences),
        chunk_tokens=speed.chunk_tokens if large else speed.small_chunk_tokens,
    )
    formula = _at_load(replica, concurrency, kv_cache_tokens, burst)
    row = closest(
        measured,
        model=facts.id,
        accelerator=accelerator.name,
        layout=(tensor, pipeline, data),
        engine=engine,
        weight_format=weight_format,
        load=(input_tokens, output_tokens, concurrency),
    )
    if row is None:
        return formula
    made = 1 if facts.pools else row.output_tokens
    there = replace(replica, input_tokens=row.input_tokens, output_tokens=made)
    expected = _at_load(there, row.concurrency, kv_cache_tokens, burst).output_tokens_s
    return _brought_to(formula, row, row.output_tokens_s / expected, factors)


def serving_ceiling(
    facts: ModelFacts,
    accelerator: Accelerator,
    *,
    input_tokens: float,
    output_tokens: float,
    concurrency: float,
    tensor: int,
    pipeline: int,
    data: int = 1,
    expert: int = 1,
    weight_format: str,
    engine: str,
    engine_version: str | None = None,
    counted: Work,
    factors: ServingFactors = SERVING,
) -> Ceiling:
    """Return what ``serving_throughput`` at the same load never surpasses, at a fraction of its cost.

    No step is shorter than reading what one token takes of the weights, the launches of all layers
    and the latency of their all-reduces, and none gives more than ``concurrency`` tokens. No prompt
    is read faster than its products are made. No measured rows.

    Raises:
        ValueError: the catalog has no bandwidth for the accelerator, or the format is unknown.

    >>> from orchestrator.catalog import accelerator, model
    >>> llama, h100 = model("meta-llama/Llama-3.1-8B-Instruct"), accelerator("H100")
    >>> load = {"input_tokens": 1500, "output_tokens": 300, "concurrency": 16, "tensor": 1, "pipeline": 1}
    >>> speed = serving_throughput(llama, h100, **load)
    >>> most = serving_ceiling(llama, h100, **load, weight_format="bf16", engine="vllm", counted=work(llama))
    >>> speed.output_tokens_s < most.output_tokens_s, most.tpot_s < speed.tpot_s
    (True, True)
    """
    output_tokens = 1 if facts.pools else output_tokens
    replica = _Replica(
        facts=facts,
        model=counted,
        accelerator=accelerator,
        engine=engine_speed(engine, engine_version, factors),
        factors=factors,
        tensor=tensor,
        pipeline=pipeline,
        data=data,
        expert=expert,
        weight_format=weight_format,
        element_bytes=0.0,  # what steps take of the cache comes on top
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        max_sequences=math.ceil(concurrency),
        chunk_tokens=math.ceil(input_tokens),
    )
    speed, later = replica.engine, output_tokens - 1
    step_s = _weights_s(replica, 1.0) + _allreduce_s(replica, 0.0) + speed.layer_s * facts.layers
    flying = 1 + (pipeline - 1) * factors.pipeline
    prompt_s = _products_s(replica, max(input_tokens, 1.0)) / flying
    took = (prompt_s + step_s * later / max(concurrency / data, 1.0)) / speed.rate + speed.request_s
    return Ceiling(
        data * replica.counted_tokens / took, speed.request_s, step_s / speed.rate if later else 0.0
    )


def engine_speed(name: str, version: str | None = None, factors: ServingFactors = SERVING) -> EngineSpeed:
    """Return the speed of an engine; an unknown one has that of ``other``.

    NIM serves through vLLM, and TGI's speed is taken for vLLM's. vLLM before 0.9 ran its V0 core.

    >>> engine_speed("vllm", "0.4.2").graph_tokens, engine_speed("nim") == engine_speed("vllm")
    (8192, True)
    """
    key = {"nim": "vllm", "tgi": "vllm"}.get(name, name)
    if key == "vllm" and version is not None and () < version_key(version) < (0, 9):
        key = "vllm-v0"
    return factors.engines.get(key, factors.engines["other"])


def _is_large(accelerator: Accelerator) -> bool:
    """Return whether engines take their defaults for large devices (vLLM: 70 GiB, the A100 excepted)."""
    return accelerator.visible_bytes >= 70 * GIB and accelerator.architecture != "Ampere"


def _at_load(
    replica: _Replica, concurrency: float | None, kv_cache_tokens: float | None, burst: bool
) -> Throughput:
    """Return the formula's answer for a replica with ``concurrency`` requests in it."""
    factors, engine = replica.factors, replica.engine
    room = min(_places(replica, kv_cache_tokens), float(replica.max_sequences))
    asked = room if concurrency is None else concurrency / replica.data
    sequences = max(min(asked, room), 1.0)
    step, chunk = _decode(replica, sequences), _prefill(replica, sequences)
    share = _chunk_share(replica, sequences)
    later = replica.output_tokens - 1  # the first token comes out of prefill
    steps = later / sequences
    slowed = engine.rate * (factors.burst if burst else 1.0)
    # what one request takes of its rank: its part of prefill passes, of decode passes, and the host's time
    took = (chunk.seconds * share + step.seconds * steps) / slowed + engine.request_s
    requests_s = replica.data / took
    prompts = max(replica.input_tokens / replica.chunk_tokens, 1.0)
    first = chunk.seconds * prompts / slowed + engine.request_s
    output = requests_s * replica.counted_tokens
    spread = _spread(replica)
    return Throughput(
        output_tokens_s=output,
        total_tokens_s=output if replica.facts.pools else output + requests_s * replica.input_tokens,
        ttft_s=first + max(asked - sequences, 0.0) * took,
        tpot_s=max((sequences * took - first) / later, step.seconds / slowed) if later else 0.0,
        low=output / spread,
        high=output * spread,
        bound_by=_bound(((chunk, share), (step, steps))),
        sequences=sequences * replica.data,
        cautions=tuple(_cautions(replica, asked, sequences)),
    )


def _cautions(replica: _Replica, asked: float, sequences: float) -> Iterator[str]:
    """Yield what makes this estimate weaker than others."""
    device, factors = replica.accelerator, replica.factors
    if device.architecture not in factors.fitted:
        yield f"nothing measured on {device.architecture}"
    if replica.engine == factors.engines["other"]:
        yield "nothing measured with this engine"
    if replica.model.experts and replica.tensor > 1 and not is_switched(device):
        # TensorRT-LLM 1.0 perf-overview, Qwen3-30B-A3B on RTX PRO 6000: 2 devices 0.58 to 0.91, 8 devices
        # 0.18 to 0.53 of linear
        yield "experts over a bus scale badly: 8 devices gave 0.2 to 0.5 of linear"
    if sequences < asked:
        yield f"{sequences:.0f} of {asked:.0f} requests fit at once, the others wait"


def _bound(passes: Sequence[tuple[_Pass, float]]) -> BoundBy:
    """Return what takes the most of a request's passes, each with the part of it the request causes."""
    kinds: tuple[BoundBy, ...] = ("bandwidth", "compute", "interconnect", "overhead")
    return max(kinds, key=lambda kind: sum(each.parts()[kind] * share for each, share in passes))


def _spread(replica: _Replica) -> float:
    """Return the factor up and down within which four of five unseen cases lie."""
    spread = replica.factors.spread
    seen = replica.accelerator.architecture in replica.factors.fitted
    kind = "experts" if replica.model.experts else "dense"
    return spread[kind] if seen else spread["other"]


def _brought_to(formula: Throughput, row: Measured, ratio: float, factors: ServingFactors) -> Throughput:
    """Return ``formula`` scaled by what a measured row made of it."""
    output, spread = formula.output_tokens_s * ratio, factors.spread["measured"]
    return replace(
        formula,
        output_tokens_s=output,
        total_tokens_s=formula.total_tokens_s * ratio,
        ttft_s=formula.ttft_s / ratio,
        tpot_s=formula.tpot_s / ratio,
        low=output / spread,
        high=output * spread,
        measured=row.source,
    )


def _places(replica: _Replica, kv_cache_tokens: float | None) -> float:
    """Return how many sequences of mean length the KV cache of one data-parallel rank holds."""
    if replica.facts.bidirectional:
        return float(replica.max_sequences)
    if kv_cache_tokens is not None:
        return max(kv_cache_tokens / replica.data / max(replica.context, 1.0), 1.0)
    model, shared = replica.model, replica.rank_devices
    held = (model.held_bytes - model.expert_bytes) / shared
    held += model.expert_bytes / shared / replica.expert_ranks
    # nine tenths of the device for the engine (vLLM's default to 0.16), 2 GB of it for activations and graphs
    free = replica.accelerator.visible_bytes * 0.9 - held - 2e9
    per_sequence = replica.cache_bytes() / replica.pipeline
    return max(free / per_sequence, 1.0) if per_sequence else float(replica.max_sequences)


def _decode(replica: _Replica, sequences: float) -> _Pass:
    """Return a pass that gives each of ``sequences`` its next token."""
    return _pass(
        replica,
        tokens=sequences,
        sequences=sequences,
        cache=sequences * replica.cache_bytes() * replica.engine.kv_reads,
        attention=sequences * replica.model.attention_flops(replica.context),
        context=replica.context,
    )


def _prefill(replica: _Replica, sequences: float) -> _Pass:
    """Return a pass over a chunk of prompts; a prompt's mean token sees half of it, or all."""
    tokens = _chunk(replica, sequences)
    seen = replica.input_tokens if replica.facts.bidirectional else replica.input_tokens / 2
    attention = tokens * replica.model.attention_flops(seen)
    return _pass(
        replica, tokens=tokens, sequences=0.0, cache=0.0, attention=attention, context=replica.input_tokens
    )


def _chunk(replica: _Replica, sequences: float) -> float:
    """Return the prompt tokens that enter one pass: a chunk, or all there are."""
    return min(max(replica.input_tokens, 1.0) * sequences, float(replica.chunk_tokens))


def _chunk_share(replica: _Replica, sequences: float) -> float:
    """Return the part of prefill passes that one request causes; above 1 for a prompt of several chunks."""
    return max(replica.input_tokens, 1.0) / _chunk(replica, sequences)


def _pass(
    replica: _Replica, *, tokens: float, sequences: float, cache: float, attention: float, context: float
) -> _Pass:
    """Return one pass of ``tokens`` tokens through all stages of one data-parallel rank.

    ``cache`` is the bytes of KV cache that each tensor-parallel rank reads, ``attention`` the
    operations over it.
    """
    # micro batches in flight: fewer than there are stages, as bubbles take their part
    flying = 1 + (min(float(replica.pipeline), max(tokens, 1.0)) - 1) * replica.factors.pipeline
    micro = tokens / flying
    engine, layers = replica.engine, replica.facts.layers
    graphs_end = engine.graph_tokens is not None and context > engine.graph_tokens
    return _Pass(
        bandwidth=_weights_s(replica, micro) + _cache_s(replica, cache / flying),
        compute=_products_s(replica, micro) + _attention_s(replica, attention / flying),
        interconnect=_allreduce_s(replica, micro),
        overhead=engine.layer_s * layers + engine.sequence_s * sequences / flying,
        host=engine.host_layer_s * layers if graphs_end else 0.0,
        visible=replica.factors.visible,
    )


def _weights_s(replica: _Replica, tokens: float) -> float:
    """Return the seconds of reading the weights that ``tokens`` tokens touch.

    Routing is taken for uniform: of the experts, ``1 - (1 - k/E)^tokens`` are touched.
    """
    model = replica.model
    rate = _memory_rate(replica) * replica.tensor
    if is_widened(replica.accelerator, replica.weight_format):
        rate *= replica.engine.narrow_bandwidth
    routed = max(tokens, 1.0) * replica.expert_ranks
    touched = 1 - math.pow(1 - model.expert_share, routed)
    experts = model.expert_bytes * touched / replica.expert_ranks / replica.factors.experts_bandwidth
    return (model.dense_bytes + experts) / rate


def _cache_s(replica: _Replica, read_bytes: float) -> float:
    return read_bytes / (_memory_rate(replica) * replica.factors.kv_bandwidth)


def _memory_rate(replica: _Replica) -> float:
    share = by_architecture(replica.accelerator, replica.factors.silicon).bandwidth
    return bandwidth(replica.accelerator) * share


def _products_s(replica: _Replica, tokens: float) -> float:
    """Return the seconds of multiplying ``tokens`` tokens with the weights."""
    factors, model = replica.factors, replica.model
    chosen = product_format(replica.accelerator, replica.weight_format)
    share = by_architecture(replica.accelerator, factors.silicon).flops * factors.format_flops[chosen]
    if is_widened(replica.accelerator, replica.weight_format):
        share *= factors.widened_flops
    routed = model.experts * model.expert_share / factors.experts_flops
    rate = peak_flops(replica.accelerator, chosen) * share * replica.tensor
    return 2 * tokens * (model.dense + routed) / rate


def _attention_s(replica: _Replica, operations: float) -> float:
    """Return the seconds of attention, which is in 16 bits whatever the weights are in."""
    share = by_architecture(replica.accelerator, replica.factors.silicon).flops
    rate = peak_flops(replica.accelerator) * share * replica.factors.attention_flops
    return operations / (rate * replica.tensor)


def _allreduce_s(replica: _Replica, tokens: float) -> float:
    """Return the seconds of two all-reduces per layer of 16-bit activations of ``tokens`` tokens."""
    if replica.tensor == 1:
        return 0.0
    factors, device = replica.factors, replica.accelerator
    if is_switched(device):
        latency, one_way = factors.allreduce_s, (device.link_gbs or 0.0) / 2 * factors.link
    else:
        latency, one_way = factors.bus_allreduce_s, factors.bus_gbs * bus_share(device)
    # a ring moves 2 (n - 1) / n of the 2 bytes of every activation
    volume = 4 * (replica.tensor - 1) / replica.tensor * tokens * replica.facts.hidden
    return 2 * replica.facts.layers * (latency + volume / (one_way * 1e9))
