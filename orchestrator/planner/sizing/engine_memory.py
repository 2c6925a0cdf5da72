"""What an engine takes beside weights and KV cache: activations, non-torch memory, graphs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from orchestrator.catalog.values import ModelFacts
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


@dataclass(frozen=True, slots=True)
class Batch:
    """The largest batch an engine prepares for: sequences, and tokens in one step."""

    sequences: int
    tokens: int


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
    sampler = batch.sequences * facts.vocab * profile.sampler_element_bytes + stream
    keeps_workspace = profile.moe_workspace and facts.experts and weights not in OWN_WORKSPACE
    return max(forward, sampler) + (_workspace_bytes(facts, job, batch) if keeps_workspace else 0.0)


def _eager_bytes(
    facts: ModelFacts, profile: EngineProfile, batch: Batch, *, inner: float, element: int
) -> float:
    """Return what an engine without a fixed batch keeps while it reads a prompt."""
    forward = batch.tokens * (3 * inner + 3 * facts.hidden) * element if profile.prefill_activations else 0.0
    if profile.prompt_logits:
        return max(forward, batch.tokens * facts.vocab * 6)
    return max(forward, batch.sequences * facts.vocab * 4)


def _workspace_bytes(facts: ModelFacts, job: ServingJob, batch: Batch) -> float:
    """Return the two buffers of a fused expert kernel: gate and up, then their product."""
    width = facts.expert_intermediate / (1 if job.expert > 1 else job.tensor)
    rows = batch.tokens * facts.experts_per_token
    return rows * (max(width, facts.hidden) + max(2 * width, facts.hidden)) * 2


def non_torch_bytes(profile: EngineProfile, job: ServingJob) -> int:
    """Return what the engine's profiler finds outside torch: context, NCCL, kernels' buffers."""
    one, group, doubling = profile.non_torch_bytes
    if job.tensor > 1:
        return one + group + round(doubling * max(0.0, math.log2(job.tensor) - 1))
    if job.pipeline > 1 and profile.stage_non_torch_bytes is not None:
        return profile.stage_non_torch_bytes
    return one


def graph_bytes(facts: ModelFacts, profile: EngineProfile, job: ServingJob) -> int:
    """Return the memory of captured CUDA graphs, 0 for engines that capture none."""
    if profile.graphs == "none":
        return 0
    units = facts.layers * facts.hidden / job.pipeline / math.sqrt(job.tensor)
    return GRAPH_POOL_BYTES + round(GRAPH_BYTES_PER_UNIT * units) + (GRAPH_MOE_BYTES if facts.experts else 0)
