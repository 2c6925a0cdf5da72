"""What an engine takes beside weights and KV cache: activations, non-torch memory, graphs."""

from __future__ import annotations

import math

from orchestrator.catalog.values import ModelFacts
from orchestrator.frozen import frozen
from orchestrator.planner.sizing.profiles import EngineProfile
from orchestrator.planner.sizing.values import ServingJob
from orchestrator.units import GIB

GRAPH_POOL_BYTES = round(0.63 * GIB)
GRAPH_BYTES_PER_UNIT = 2390.0
GRAPH_MOE_BYTES = round(1.06 * GIB)
"""CUDA graphs: a pool, and bytes per layer x hidden over the root of the tensor-parallel ranks;
mixtures of experts add up to the third. Fitted on the graph pools of llm-d-planner PR #205
(``python -m tests.benchmarks.sizing_fit CSV``)."""

OWN_WORKSPACE = frozenset({"mxfp4"})
"""Formats whose expert kernels keep no workspace between steps (gpt-oss in PR #205's logs)."""


VISION_STATES = 44
"""16-bit values of a vision tower's hidden size that one patch keeps while an engine profiles
its largest image: 6.90 GiB at 65,536 patches of 1,280 (Lingshu-32B, a Qwen2.5-VL, in PR #205)."""

NATIVE_RESOLUTION = ("Qwen2VL", "Qwen2_5_VL", "Qwen3VL", "Qwen3_5")
NATIVE_PATCHES = 65_536
"""Architectures whose images keep their size, and the patches of the largest one they take
(preprocessor_config.json: 12,845,056 pixels in patches of 14, 16,777,216 in patches of 16)."""


@frozen
class Batch:
    """The largest batch an engine prepares for: sequences, and tokens in one step."""

    sequences: int
    tokens: int


def answer_entries(facts: ModelFacts) -> int:
    """Return the entries of the vector that a sequence ends in: logits, or a vector of the stream's size.

    >>> from orchestrator.catalog import model
    >>> [answer_entries(model(f"Qwen/Qwen3-{name}")) for name in ("8B", "Embedding-8B")]
    [151936, 4096]
    """
    return facts.hidden if facts.pools else facts.vocab


def activation_bytes(
    facts: ModelFacts, job: ServingJob, profile: EngineProfile, batch: Batch, *, weights: str
) -> float:
    """Return the peak of one step: the forward pass of a full batch, or sampling from it.

    The forward pass of one layer keeps gate, up and their product beside four states of the
    stream; sampling keeps logits, their sort and its indices, per sequence and vocabulary
    entry. Fused expert kernels hold two workspaces for good, so these come on top.
    ``weights`` is the name of the weights' format.
    """
    element = 4 if weights == "fp32" else 2
    h, inner = facts.hidden, facts.intermediate / job.tensor
    if profile.base == "none":
        return _eager_bytes(facts, profile, batch, inner=inner, element=element)
    products = 3 if facts.gated else 2
    forward = batch.tokens * (products * inner + 4 * h) * element
    stream = batch.tokens * h * element
    sampler = batch.sequences * answer_entries(facts) * profile.sampler_element_bytes + stream
    encoder = _encoder_bytes(facts)
    keeps_workspace = profile.moe_workspace and facts.experts and weights not in OWN_WORKSPACE
    return max(forward, sampler, encoder) + (_workspace_bytes(facts, job, batch) if keeps_workspace else 0.0)


def _eager_bytes(
    facts: ModelFacts, profile: EngineProfile, batch: Batch, *, inner: float, element: int
) -> float:
    """Return what an engine without a fixed batch keeps while it reads a prompt."""
    forward = batch.tokens * (3 * inner + 3 * facts.hidden) * element if profile.prefill_activations else 0.0
    if facts.pools:
        return forward
    if profile.prompt_logits:
        return max(forward, batch.tokens * facts.vocab * 6)
    return max(forward, batch.sequences * facts.vocab * 4)


def _encoder_bytes(facts: ModelFacts) -> float:
    """Return what a vision tower keeps while it reads the largest image."""
    tower = facts.vision
    if tower is None:
        return 0.0
    native = facts.architecture.startswith(NATIVE_RESOLUTION)
    patches = NATIVE_PATCHES if native else (tower.image // tower.patch) ** 2
    return patches * VISION_STATES * tower.hidden * 2


def _workspace_bytes(facts: ModelFacts, job: ServingJob, batch: Batch) -> float:
    """Return the two buffers of a fused expert kernel: gate and up, then their product."""
    width = facts.expert_intermediate / (1 if job.expert > 1 else job.tensor)
    rows = batch.tokens * facts.experts_per_token
    return rows * (max(width, facts.hidden) + max(2 * width, facts.hidden)) * 2


def non_torch_bytes(profile: EngineProfile, job: ServingJob) -> int:
    """Return what the engine's profiler finds outside torch: context, NCCL, kernels' buffers."""
    one, group, doubling = profile.non_torch_bytes
    ranks = job.tensor * job.data
    if ranks > 1:
        return one + group + round(doubling * max(0.0, math.log2(ranks) - 1))
    if job.pipeline > 1 and profile.stage_non_torch_bytes is not None:
        return profile.stage_non_torch_bytes
    return one


def graph_bytes(facts: ModelFacts, profile: EngineProfile, job: ServingJob) -> int:
    """Return the memory of captured CUDA graphs, 0 for engines that capture none."""
    if profile.graphs == "none":
        return 0
    units = facts.layers * facts.hidden / job.pipeline / math.sqrt(job.tensor)
    return GRAPH_POOL_BYTES + round(GRAPH_BYTES_PER_UNIT * units) + (GRAPH_MOE_BYTES if facts.experts else 0)
