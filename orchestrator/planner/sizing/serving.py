"""Size a served model: what a replica needs anywhere, and what one kind of device makes of it."""

from __future__ import annotations

import math
from dataclasses import replace

from orchestrator.catalog.values import Accelerator, ModelFacts
from orchestrator.frozen import frozen
from orchestrator.planner.sizing.adapters import adapter_parameters
from orchestrator.planner.sizing.engine_memory import (
    Batch,
    activation_bytes,
    answer_entries,
    graph_bytes,
    non_torch_bytes,
)
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

WHOLE_PROMPT_LIMIT = 32_768
"""Contexts beyond this were cut into chunks of 512 tokens by vLLM 0.6 (its engine arguments)."""


@frozen
class _Setting:
    """Batch limits a device of a tier may run with, and what they cost.

    ``memory`` holds weights, adapters, non-torch memory, graphs and the batch's activations.
    A request that is being read keeps a chunk of its prompt beside each window, so one chunk
    more is wanted of the cache (vLLM, kv_cache_interface.py).
    """

    tier: BatchTier
    batch: Batch
    memory: DeviceMemory
    wanted_bytes: float


@frozen
class ServingNeeds:
    """What one replica needs on each of its devices, before any device is named.

    Each setting holds the memory beside the KV cache, and the KV cache that the asked requests
    want at the asked ``context``. ``entries`` are those of the vector that a sequence ends in: its logits,
    or what a model that pools makes of it. Of ``bidirectional`` ones no cache is kept.
    """

    job: ServingJob
    profile: EngineProfile
    layout: KvLayout
    settings: tuple[_Setting, ...]
    context: int
    entries: int
    bidirectional: bool = False

    def on(self, device: Accelerator) -> Size:
        """Return the memory on ``device`` and whether it fits there.

        A batch limit the job leaves open takes the engine's default for this device; where
        that does not fit, the defaults for smaller devices are tried.
        """
        visible, slow = self.sees(device)
        return self._first_fit(visible, slow=slow)

    def sees(self, device: Accelerator) -> tuple[int, bool]:
        """Return all of ``device`` that its size depends on: its memory, and whether engines call it slow."""
        visible = self.job.measured.visible_bytes or device.visible_bytes
        return visible, _is_slow(self.profile, device.name)

    def with_context(self, context: int) -> ServingNeeds:
        """Return the needs of the same replica for requests of ``context`` tokens.

        Raises:
            ValueError: the engine's activations grow with the context, so that it takes the
                model to say; ``reads_in_chunks`` tells.
        """
        if not self.reads_in_chunks:
            raise ValueError(f"{self.profile.engine} reads a prompt whole: size it again")
        at_once = math.ceil(self.job.concurrency / self.job.data)
        return replace(
            self,
            job=replace(self.job, context=context),
            context=context,
            settings=tuple(
                replace(s, wanted_bytes=_wanted(self.layout, s.batch, context, at_once))
                for s in self.settings
            ),
        )

    @property
    def reads_in_chunks(self) -> bool:
        """Whether the engine's activations leave the length of a prompt aside."""
        return self.profile.base != "none" and not self.profile.whole_prompt and not self.bidirectional

    def _first_fit(self, visible: int, *, slow: bool) -> Size:
        settings = [s for s in self.settings if s.tier.from_bytes <= visible]
        settings = settings[-1:] if slow else settings
        open_limits = self.job.max_num_seqs is None and self.job.max_num_batched_tokens is None
        sizes = (self._size(s, visible) for s in (settings if open_limits else settings[:1]))
        first = next(sizes)
        return first if first.fits else next((s for s in sizes if s.fits), first)

    def _size(self, setting: _Setting, visible: int) -> Size:
        return self._open(setting, visible) if self.profile.base == "none" else self._pooled(setting, visible)

    def _open(self, setting: _Setting, visible: int) -> Size:
        """Answer for engines that take memory as requests come."""
        memory = setting.memory
        pool = visible - memory.non_kv_bytes - CONTEXT_BYTES
        wanted = round(setting.wanted_bytes)
        peak = memory.non_kv_bytes + wanted
        short = round(peak * (1 + self.profile.margin)) + CONTEXT_BYTES - visible
        return self._answer(
            replace(memory, kv_cache_bytes=wanted, peak_bytes=peak, visible_bytes=visible),
            setting,
            pool=pool,
            share=1.0,
            outside=visible - peak,
            verdict=("", 0.0) if short <= 0 else (_TOO_LITTLE, float(short)),
        )

    def _pooled(self, setting: _Setting, visible: int) -> Size:
        """Answer for engines that reserve a pool from a budget."""
        memory = setting.memory
        share = self.job.memory_utilization or _utilization(self.profile, self.job, setting, visible)
        pool, outside = _pool(memory, self.profile, share, visible)
        pool = float(memory.kv_cache_bytes) or pool
        graphs = memory.graphs_bytes if self.profile.graphs != "none" else 0
        held = 0 if self.bidirectional else max(0, round(pool))
        peak = memory.non_kv_bytes + graphs + held
        return self._answer(
            replace(memory, kv_cache_bytes=held, peak_bytes=peak, visible_bytes=visible),
            setting,
            pool=pool,
            share=share,
            outside=outside,
            verdict=_verdict(self, setting, visible, pool=pool, outside=outside),
        )

    def _answer(
        self,
        memory: DeviceMemory,
        setting: _Setting,
        *,
        pool: float,
        share: float,
        outside: float,
        verdict: tuple[str, float],
    ) -> Size:
        reason, short = verdict
        tokens = self.job.measured.kv_cache_tokens
        if tokens is None:
            tokens = self.layout.admitted_tokens(pool, block=self.profile.block_tokens) * self.job.data
        return Size(
            device=memory,
            fits=not reason,
            margin=self.profile.margin,
            reason=reason,
            short_bytes=max(0, math.ceil(short)),
            kv_cache_tokens=tokens,
            wanted_bytes=round(setting.wanted_bytes),
            longest_request_tokens=self._longest(setting, pool),
            max_concurrency=self.layout.concurrency(pool, context=self.context) * self.job.data,
            headroom_bytes=round(outside),
            max_num_seqs=setting.batch.sequences,
            max_num_batched_tokens=setting.batch.tokens,
            memory_utilization=share,
            source=self.profile.source,
        )

    def _longest(self, setting: _Setting, pool: float) -> int:
        """Return the longest request alone; windows apart, no longer than an engine said it admits."""
        if self.bidirectional:
            return self.context
        longest = _reading(self.layout, setting.batch).longest_request(pool, block=self.profile.block_tokens)
        told = self.job.measured.kv_cache_tokens
        return longest if told is None or self.layout.window_bytes else min(longest, told)


def size_serving(facts: ModelFacts, device: Accelerator, job: ServingJob) -> Size:
    """Return the memory of one replica of ``job`` on ``device``, and whether it fits.

    A batch limit the job leaves open takes the engine's default for this device; where that
    does not fit, the defaults for smaller devices are tried, and the answer says which limits
    it stands for (``max_num_seqs``, ``max_num_batched_tokens``).

    Raises:
        ValueError: an unknown engine, format or KV cache type, or a number below 1.

    >>> h100 = Accelerator("H100-80GB", "nvidia", "hopper", 80, round(79.19 * 2**30), "torch on an H100 SXM")
    >>> llama = ModelFacts("llama-3.1-8b", "LlamaForCausalLM", 32, 4096, 14336, 32, 8, 128, 128256)
    >>> job = ServingJob(engine_version="0.19.0", context=8192, memory_utilization=0.95)
    >>> size = size_serving(llama, h100, job)
    >>> size.fits, round(size.device.non_kv_bytes / 2**30, 1), size.kv_cache_tokens
    (True, 17.1, 476352)
    """
    return serving_needs(facts, job).on(device)


def serving_needs(facts: ModelFacts, job: ServingJob) -> ServingNeeds:
    """Return what a replica of ``job`` needs on each device; ask it about many devices.

    Raises:
        ValueError: as ``size_serving``.
    """
    _check(job)
    profile = engine_profile(job.engine, job.engine_version)
    name = published_format(facts) if job.precision == "auto" else job.precision
    weights = weight_format(name).name
    element = KV_ELEMENT_BYTES[job.kv_cache]
    if job.kv_cache in ("auto", "16bit") and weights == "fp32":
        element = 4
    layout = kv_layout(
        facts,
        tensor=job.tensor,
        pipeline=job.pipeline,
        element_bytes=element,
        grouped=profile.grouped_layers,
        windows=profile.grouped_layers,
    )
    tiers = sorted(profile.tiers, key=lambda t: t.from_bytes, reverse=True)
    resident = _resident(facts, job, profile, weights=weights)
    context = job.context or facts.context or tiers[-1].max_num_batched_tokens
    return ServingNeeds(
        job=job,
        profile=profile,
        layout=layout,
        settings=tuple(
            _setting(facts, job, profile, t, resident, layout=layout, context=context, weights=weights)
            for t in tiers
        ),
        context=context,
        entries=answer_entries(facts),
        bidirectional=facts.bidirectional,
    )


def default_batch(device: Accelerator, *, engine: str, version: str | None = None) -> BatchTier:
    """Return the batch limits an engine sets by itself on ``device``.

    >>> h200 = Accelerator("H200-141GB", "nvidia", "hopper", 141, 140 * 2**30, "torch on an H200")
    >>> default_batch(h200, engine="vllm").max_num_batched_tokens
    8192
    """
    profile = engine_profile(engine, version)
    lowest = min(profile.tiers, key=lambda t: t.from_bytes)
    if _is_slow(profile, device.name):
        return lowest
    reached = [t for t in profile.tiers if t.from_bytes <= device.visible_bytes]
    return max(reached, key=lambda t: t.from_bytes, default=lowest)


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


def _is_slow(profile: EngineProfile, name: str) -> bool:
    return bool(profile.slow_tier_names) and name.startswith(profile.slow_tier_names)


def _setting(
    facts: ModelFacts,
    job: ServingJob,
    profile: EngineProfile,
    tier: BatchTier,
    resident: DeviceMemory,
    *,
    layout: KvLayout,
    context: int,
    weights: str,
) -> _Setting:
    at_once = math.ceil(job.concurrency / job.data)
    if job.max_num_batched_tokens is not None:
        tokens = job.max_num_batched_tokens
    elif profile.base == "none":
        tokens = context
    elif facts.bidirectional:
        tokens = max(context, tier.max_num_batched_tokens)
    elif profile.whole_prompt:
        tokens = 512 if context > WHOLE_PROMPT_LIMIT else max(context, tier.max_num_batched_tokens)
    else:
        tokens = tier.max_num_batched_tokens
    if profile.base == "none":
        batch = Batch(at_once, tokens)
    else:
        batch = Batch(job.max_num_seqs or max(tier.max_num_seqs, at_once), tokens)
    computed = activation_bytes(facts, job, profile, batch, weights=weights)
    return _Setting(
        tier=tier,
        batch=batch,
        memory=replace(resident, activations_bytes=_first(job.measured.activations_bytes, round(computed))),
        wanted_bytes=_wanted(layout, batch, context, at_once),
    )


def _wanted(layout: KvLayout, batch: Batch, context: int, at_once: int) -> float:
    """Return the KV cache of ``at_once`` requests, one of which is being read."""
    return layout.request_bytes(context) * (at_once - 1) + _reading(layout, batch).request_bytes(context)


def _reading(layout: KvLayout, batch: Batch) -> KvLayout:
    """Return the layout of a request that is being read: each window with a chunk beside it."""
    return replace(layout, window=layout.window - 1 + batch.tokens) if layout.window else layout


def _resident(facts: ModelFacts, job: ServingJob, profile: EngineProfile, *, weights: str) -> DeviceMemory:
    measured = job.measured
    sized = weight_bytes(facts, weights)
    if facts.tied and weights in profile.unties:
        sized = replace(sized, head=sized.embedding)
    held = device_weight_bytes(
        facts, sized, tensor=job.tensor, pipeline=job.pipeline, expert_ranks=max(job.expert, job.tensor)
    )
    adapter = adapter_parameters(facts, job.adapter_rank) if job.adapters else 0
    return DeviceMemory(
        weights_bytes=_first(measured.weights_bytes, round(held)),
        non_torch_bytes=_first(measured.non_torch_bytes, non_torch_bytes(profile, job)),
        graphs_bytes=_first(measured.graphs_bytes, graph_bytes(facts, profile, job)),
        kv_cache_bytes=measured.kv_cache_bytes or 0,
        adapter_bytes=2 * job.adapters * adapter // job.tensor // job.pipeline,
    )


def _first(measured: int | None, computed: int) -> int:
    return computed if measured is None else measured


def _utilization(profile: EngineProfile, job: ServingJob, setting: _Setting, visible: int) -> float:
    if profile.base != "static":
        return profile.memory_utilization
    # sglang's server_args, in MiB: metadata, prefill activations, graphs, ranks
    reserve = 512 + max(setting.batch.tokens, 2048) * 1.5 + setting.batch.sequences * 2
    reserve += job.tensor * job.pipeline / 8 * 1024
    if setting.tier.from_bytes >= 60 * GIB:
        reserve = max(reserve, 10 * 1024)
    return max(0.05, 1 - reserve * 2**20 / visible)


def _pool(memory: DeviceMemory, profile: EngineProfile, share: float, visible: int) -> tuple[float, float]:
    """Return the KV cache pool, and what is left beside everything the budget holds."""
    graphs_in = memory.graphs_bytes if profile.graphs == "inside" else 0
    graphs_out = memory.graphs_bytes if profile.graphs == "outside" else 0
    if profile.base == "free":
        left = visible - memory.non_kv_bytes
        return share * left, (1 - share) * left - graphs_out
    if profile.base == "static":
        # the share counts from what is free once the process and its ranks have started
        free = visible - memory.non_torch_bytes
        pool = share * free - memory.weights_bytes - memory.adapter_bytes
        return pool, (1 - share) * free - memory.activations_bytes - graphs_out
    budget = share * visible
    return budget - memory.non_kv_bytes - graphs_in, visible - budget - graphs_out


_TOO_LITTLE = "too little device memory"


def _verdict(
    needs: ServingNeeds, setting: _Setting, visible: int, *, pool: float, outside: float
) -> tuple[str, float]:
    """Return why the replica does not fit and by how many bytes; no reason when it does."""
    profile, memory, wanted, batch = needs.profile, setting.memory, setting.wanted_bytes, setting.batch
    if memory.weights_bytes >= visible:
        return "weights are larger than the device", memory.weights_bytes - visible + wanted
    charged = memory.weights_bytes if profile.base == "static" else memory.non_kv_bytes
    room = pool - profile.margin * charged
    if room < wanted:
        return "too little room for the KV cache" if room > 0 else _TOO_LITTLE, wanted - room
    slack = CONTEXT_BYTES
    if profile.base == "total":
        # the sampler's warm-up has its logits outside the budget
        slack = SLACK_BYTES_PER_TOKEN * batch.tokens + 4 * batch.sequences * needs.entries
    if outside < slack:
        return "too little left outside the engine's budget", slack - outside
    return "", 0.0
