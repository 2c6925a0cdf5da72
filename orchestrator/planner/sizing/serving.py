"""Size a served model on one kind of device: what it takes, and what the engine then admits."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from orchestrator.catalog.values import Accelerator, ModelFacts
from orchestrator.planner.sizing.adapters import adapter_parameters
from orchestrator.planner.sizing.formats import KV_ELEMENT_BYTES, weight_format
from orchestrator.planner.sizing.kv import KvLayout, kv_layout
from orchestrator.planner.sizing.profiles import BatchTier, EngineProfile, engine_profile
from orchestrator.planner.sizing.values import DeviceMemory, ServingJob, Size
from orchestrator.planner.sizing.weights import device_weight_bytes, published_format, weight_bytes
from orchestrator.units import GIB

CONTEXT_BYTES = GIB // 2
"""What a CUDA context takes before anything is loaded (gpt-oss-20b at utilisation 0.95 on an
H100 kept 552 MiB of the 4 GiB outside the budget; llm-d-planner PR #205, failed runs)."""

SLACK_BYTES_PER_TOKEN = 3 * GIB // 2 // 8192
"""Allocator slack outside the budget by batched token: 1.5 GiB at 8,192, from that same run."""

GRAPH_POOL_BYTES = round(0.63 * GIB)
GRAPH_BYTES_PER_UNIT = 2390.0
GRAPH_MOE_BYTES = round(1.06 * GIB)
"""CUDA graphs: a pool, and bytes per layer x hidden over the root of the tensor-parallel ranks;
mixtures of experts add up to the third. Fitted on the graph pools of llm-d-planner PR #205
(``python -m tests.benchmarks.sizing_fit CSV``)."""

WHOLE_PROMPT_LIMIT = 32_768
"""Contexts beyond this were cut into chunks of 512 tokens by vLLM 0.6 (its engine arguments)."""


@dataclass(frozen=True, slots=True)
class _Batch:
    """The largest batch the engine prepares for: sequences, and tokens in one step."""

    sequences: int
    tokens: int


def size_serving(facts: ModelFacts, device: Accelerator, job: ServingJob) -> Size:
    """Return the memory of one replica of ``job`` on ``device``, and whether it fits.

    A batch limit the job leaves open takes the engine's default for this device; where that
    does not fit, the defaults for smaller devices are tried, and the answer says which limits
    it stands for (``max_num_seqs``, ``max_num_batched_tokens``).

    Raises:
        ValueError: an unknown engine, format or KV cache type, or a number below 1.

    >>> from orchestrator.catalog.values import Accelerator
    >>> h100 = Accelerator("H100-80GB", "nvidia", "hopper", 80, round(79.19 * 2**30), "torch on an H100 SXM")
    >>> llama = ModelFacts("llama-3.1-8b", "LlamaForCausalLM", 32, 4096, 14336, 32, 8, 128, 128256)
    >>> job = ServingJob(engine_version="0.19.0", context=8192, memory_utilization=0.95)
    >>> size = size_serving(llama, h100, job)
    >>> size.fits, round(size.device.non_kv_bytes / 2**30, 1), size.kv_cache_tokens
    (True, 17.1, 476352)
    """
    _check(job)
    profile = engine_profile(job.engine, job.engine_version)
    visible = job.measured.visible_bytes or device.visible_bytes
    tiers = _tiers(profile, device.name, visible)
    open_limits = job.max_num_seqs is None and job.max_num_batched_tokens is None
    sizes = (_size(facts, job, profile, tier, visible) for tier in (tiers if open_limits else tiers[:1]))
    first = next(sizes)
    return first if first.fits else next((s for s in sizes if s.fits), first)


def default_batch(device: Accelerator, *, engine: str, version: str | None = None) -> BatchTier:
    """Return the batch limits an engine sets by itself on ``device``.

    >>> h200 = Accelerator("H200-141GB", "nvidia", "hopper", 141, 140 * 2**30, "torch on an H200")
    >>> default_batch(h200, engine="vllm").max_num_batched_tokens
    8192
    """
    return _tiers(engine_profile(engine, version), device.name, device.visible_bytes)[0]


def _check(job: ServingJob) -> None:
    for name in ("concurrency", "tensor", "pipeline", "data", "expert"):
        if getattr(job, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(job, name)}")
    if job.context is not None and job.context < 1:
        raise ValueError(f"context must be at least 1 token, got {job.context}")
    if job.kv_cache not in KV_ELEMENT_BYTES:
        raise ValueError(f"unknown KV cache type {job.kv_cache!r}; known are {', '.join(KV_ELEMENT_BYTES)}")
    if job.memory_utilization is not None and not 0 < job.memory_utilization <= 1:
        raise ValueError(f"memory utilization must be above 0 and at most 1, got {job.memory_utilization}")


def _tiers(profile: EngineProfile, name: str, visible: int) -> tuple[BatchTier, ...]:
    ordered = sorted(profile.tiers, key=lambda t: t.from_bytes, reverse=True)
    if name.startswith(profile.slow_tier_names) and profile.slow_tier_names:
        return (ordered[-1],)
    return tuple(t for t in ordered if t.from_bytes <= visible)


def _batch(facts: ModelFacts, job: ServingJob, profile: EngineProfile, tier: BatchTier) -> _Batch:
    context = job.context or facts.context or tier.max_num_batched_tokens
    sequences = job.max_num_seqs or tier.max_num_seqs
    if job.max_num_batched_tokens is not None:
        tokens = job.max_num_batched_tokens
    elif profile.base == "none":
        tokens = context
    elif profile.whole_prompt:
        tokens = 512 if context > WHOLE_PROMPT_LIMIT else max(context, tier.max_num_batched_tokens)
    else:
        tokens = tier.max_num_batched_tokens
    return _Batch(job.concurrency if profile.base == "none" else sequences, tokens)


def _size(facts: ModelFacts, job: ServingJob, profile: EngineProfile, tier: BatchTier, visible: int) -> Size:
    batch = _batch(facts, job, profile, tier)
    memory = _non_kv(facts, job, profile, batch, visible)
    element = KV_ELEMENT_BYTES[job.kv_cache]
    if job.kv_cache in ("auto", "16bit") and _precision(facts, job) == "fp32":
        element = 4
    layout = kv_layout(
        facts,
        tensor=job.tensor,
        pipeline=job.pipeline,
        element_bytes=element,
        grouped=profile.grouped_layers,
    )
    context = job.context or facts.context or batch.tokens
    wanted = layout.request_bytes(context) * math.ceil(job.concurrency / job.data)
    if profile.base == "none":
        return _without_pool(memory, layout, profile, wanted=wanted, context=context, batch=batch)
    return _with_pool(
        memory,
        layout,
        profile,
        job,
        vocab=facts.vocab,
        wanted=wanted,
        context=context,
        batch=batch,
        tier=tier,
    )


def _precision(facts: ModelFacts, job: ServingJob) -> str:
    return published_format(facts) if job.precision == "auto" else job.precision


def _non_kv(
    facts: ModelFacts, job: ServingJob, profile: EngineProfile, batch: _Batch, visible: int
) -> DeviceMemory:
    measured = job.measured
    precision = weight_format(_precision(facts, job))
    expert_ranks = max(job.expert, job.tensor)
    weights = measured.weights_bytes
    if weights is None:
        own_head = facts.tied and precision.name in profile.unties
        sized = weight_bytes(facts, precision.name)
        sized = replace(sized, head=sized.embedding) if own_head else sized
        weights = round(
            device_weight_bytes(
                facts, sized, tensor=job.tensor, pipeline=job.pipeline, expert_ranks=expert_ranks
            )
        )
    activations = measured.activations_bytes
    if activations is None:
        wide = 4 if precision.name == "fp32" else 2
        activations = round(
            _activations(facts, job, profile, batch, element_bytes=wide, native=precision.name)
        )
    adapter = 2 * job.adapters * adapter_parameters(facts, job.adapter_rank) // job.tensor // job.pipeline
    return DeviceMemory(
        weights_bytes=weights,
        activations_bytes=activations,
        non_torch_bytes=_first(measured.non_torch_bytes, _non_torch(profile, job)),
        graphs_bytes=_first(measured.graphs_bytes, _graphs(facts, profile, job)),
        kv_cache_bytes=measured.kv_cache_bytes or 0,
        adapter_bytes=adapter,
        visible_bytes=visible,
    )


def _first(measured: int | None, computed: int) -> int:
    return computed if measured is None else measured


def _activations(
    facts: ModelFacts,
    job: ServingJob,
    profile: EngineProfile,
    batch: _Batch,
    *,
    element_bytes: int,
    native: str,
) -> float:
    """Return the peak of one step: the forward pass of a full batch, or sampling from it.

    The forward pass of one layer keeps gate, up and their product beside four states of the
    stream; sampling keeps logits, their sort and its indices, per sequence and vocabulary
    entry. Fused expert kernels hold two workspaces for good, so these come on top.
    """
    h, inner = facts.hidden, facts.intermediate / job.tensor
    if profile.base == "none":
        forward = batch.tokens * (3 * inner + 3 * h) * element_bytes if profile.prefill_activations else 0.0
        logits = (
            batch.tokens * facts.vocab * 6 if profile.prompt_logits else batch.sequences * facts.vocab * 4
        )
        return max(forward, logits)
    products = 3 if facts.gated else 2
    forward = batch.tokens * (products * inner + 4 * h) * element_bytes
    stream = batch.tokens * h * element_bytes
    sampler = batch.sequences * facts.vocab * profile.sampler_element_bytes + stream
    workspace = 0.0
    if profile.moe_workspace and facts.experts and native not in _OWN_WORKSPACE:
        ranks = 1 if job.expert > 1 else job.tensor
        expert = facts.expert_intermediate / ranks
        rows = batch.tokens * facts.experts_per_token
        workspace = rows * (max(expert, h) + max(2 * expert, h)) * 2
    return max(forward, sampler) + workspace


_OWN_WORKSPACE = frozenset({"mxfp4"})
"""Formats whose expert kernels keep no workspace between steps (gpt-oss in PR #205's logs)."""


def _non_torch(profile: EngineProfile, job: ServingJob) -> int:
    one, group, doubling = profile.non_torch_bytes
    if job.tensor > 1:
        return one + group + round(doubling * max(0.0, math.log2(job.tensor) - 1))
    if job.pipeline > 1 and profile.stage_non_torch_bytes is not None:
        return profile.stage_non_torch_bytes
    return one


def _graphs(facts: ModelFacts, profile: EngineProfile, job: ServingJob) -> int:
    if profile.graphs == "none":
        return 0
    units = facts.layers * facts.hidden / job.pipeline / math.sqrt(job.tensor)
    return GRAPH_POOL_BYTES + round(GRAPH_BYTES_PER_UNIT * units) + (GRAPH_MOE_BYTES if facts.experts else 0)


def _without_pool(
    memory: DeviceMemory,
    layout: KvLayout,
    profile: EngineProfile,
    *,
    wanted: float,
    context: int,
    batch: _Batch,
) -> Size:
    """Answer for engines that take memory as requests come."""
    pool = memory.visible_bytes - memory.non_kv_bytes - CONTEXT_BYTES
    peak = memory.non_kv_bytes + round(wanted)
    short = round(peak * (1 + profile.margin)) + CONTEXT_BYTES - memory.visible_bytes
    return Size(
        device=replace(memory, kv_cache_bytes=round(wanted), peak_bytes=peak),
        fits=short <= 0,
        margin=profile.margin,
        reason="" if short <= 0 else _REASONS["memory"],
        short_bytes=max(0, short),
        kv_cache_tokens=layout.admitted_tokens(pool, block=1),
        longest_request_tokens=layout.longest_request(pool),
        max_concurrency=layout.concurrency(pool, context=context),
        headroom_bytes=memory.visible_bytes - peak,
        max_num_seqs=batch.sequences,
        max_num_batched_tokens=batch.tokens,
        memory_utilization=1.0,
        source=profile.source,
    )


def _with_pool(
    memory: DeviceMemory,
    layout: KvLayout,
    profile: EngineProfile,
    job: ServingJob,
    *,
    vocab: int,
    wanted: float,
    context: int,
    batch: _Batch,
    tier: BatchTier,
) -> Size:
    """Answer for engines that reserve a pool from a budget."""
    share = job.memory_utilization or _utilization(profile, job, batch, memory, default_tier=tier)
    pool, outside = _pool(memory, profile, share)
    if memory.kv_cache_bytes:
        pool = memory.kv_cache_bytes
    charged = memory.weights_bytes if profile.base == "static" else memory.non_kv_bytes
    room = pool - profile.margin * charged
    reason, short = _verdict(memory, profile, batch, vocab=vocab, room=room, wanted=wanted, outside=outside)
    tokens = job.measured.kv_cache_tokens
    if tokens is None:
        tokens = layout.admitted_tokens(pool, block=profile.block_tokens) * job.data
    return Size(
        device=replace(memory, kv_cache_bytes=max(0, round(pool)), peak_bytes=_peak(memory, profile, pool)),
        fits=not reason,
        margin=profile.margin,
        reason=reason,
        short_bytes=max(0, math.ceil(short)),
        kv_cache_tokens=tokens,
        longest_request_tokens=layout.longest_request(pool),
        max_concurrency=layout.concurrency(pool, context=context) * job.data,
        headroom_bytes=round(outside),
        max_num_seqs=batch.sequences,
        max_num_batched_tokens=batch.tokens,
        memory_utilization=share,
        source=profile.source,
    )


def _utilization(
    profile: EngineProfile, job: ServingJob, batch: _Batch, memory: DeviceMemory, *, default_tier: BatchTier
) -> float:
    if profile.base != "static":
        return profile.memory_utilization
    # sglang's server_args, in MiB: metadata, prefill activations, graphs, ranks
    reserve = 512 + max(batch.tokens, 2048) * 1.5 + batch.sequences * 2
    reserve += job.tensor * job.pipeline / 8 * 1024
    if default_tier.from_bytes >= 60 * GIB:
        reserve = max(reserve, 10 * 1024)
    return max(0.05, 1 - reserve * 2**20 / memory.visible_bytes)


def _pool(memory: DeviceMemory, profile: EngineProfile, share: float) -> tuple[float, float]:
    """Return the KV cache pool, and what is left beside everything the budget holds."""
    graphs_in = memory.graphs_bytes if profile.graphs == "inside" else 0
    graphs_out = memory.graphs_bytes if profile.graphs == "outside" else 0
    if profile.base == "free":
        left = memory.visible_bytes - memory.non_kv_bytes
        return share * left, (1 - share) * left - graphs_out
    budget = share * memory.visible_bytes
    if profile.base == "static":
        pool = budget - memory.weights_bytes - memory.adapter_bytes
        others = memory.activations_bytes + memory.non_torch_bytes + graphs_out
        return pool, memory.visible_bytes - budget - others
    return budget - memory.non_kv_bytes - graphs_in, memory.visible_bytes - budget - graphs_out


def _verdict(
    memory: DeviceMemory,
    profile: EngineProfile,
    batch: _Batch,
    *,
    vocab: int,
    room: float,
    wanted: float,
    outside: float,
) -> tuple[str, float]:
    if memory.weights_bytes >= memory.visible_bytes:
        return _REASONS["weights"], memory.weights_bytes - memory.visible_bytes + wanted
    if room < wanted:
        return _REASONS["kv" if room > 0 else "memory"], wanted - room
    slack = CONTEXT_BYTES
    if profile.base == "total":
        slack = SLACK_BYTES_PER_TOKEN * batch.tokens + 4 * batch.sequences * vocab  # the warm-up's logits
    if outside < slack:
        return _REASONS["outside"], slack - outside
    return "", 0.0


_REASONS = {
    "weights": "weights are larger than the device",
    "memory": "too little device memory",
    "kv": "too little room for the KV cache",
    "outside": "too little left outside the engine's budget",
}


def _peak(memory: DeviceMemory, profile: EngineProfile, pool: float) -> int:
    graphs = memory.graphs_bytes if profile.graphs != "none" else 0
    return memory.non_kv_bytes + graphs + max(0, round(pool))
