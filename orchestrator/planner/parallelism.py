"""Which ways a model can be cut over devices, and which formats a device computes in."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.catalog.values import Accelerator, ModelFacts
from orchestrator.frozen import frozen
from orchestrator.planner.sizing.formats import weight_format
from orchestrator.planner.sizing.values import ServingJob

VOCABULARY_UNIT = 64
"""Embeddings are padded to a multiple of this before they are divided (vLLM,
vocab_parallel_embedding.py)."""

MOST_NODES = 4
"""Machines that one replica, or one training, may span."""


@frozen
class Layout:
    """How one replica lies on ``nodes`` machines of ``count`` devices each.

    ``tensor`` × ``pipeline`` devices hold one copy of the attention, ``data`` copies of it share
    the requests, and ``expert`` devices share the routed experts.
    """

    nodes: int
    count: int
    tensor: int
    pipeline: int
    data: int = 1
    expert: int = 1

    @property
    def devices(self) -> int:
        """How many devices the replica takes."""
        return self.nodes * self.count

    def cut(self, job: ServingJob) -> ServingJob:
        """Return ``job`` cut as this layout says."""
        return replace(job, tensor=self.tensor, pipeline=self.pipeline, data=self.data, expert=self.expert)

    def __str__(self) -> str:
        degrees = (
            ("tensor", self.tensor), ("pipeline", self.pipeline), ("data", self.data), ("expert", self.expert)
        )  # fmt: skip
        return " x ".join(f"{name} {degree}" for name, degree in degrees if degree > 1) or "one device"


@frozen
class Degrees:
    """Degrees of parallelism that somebody has fixed; None leaves one open, and ``data`` is then 1."""

    tensor: int | None = None
    pipeline: int | None = None
    data: int | None = None

    def __str__(self) -> str:
        named = (("tensor", self.tensor), ("pipeline", self.pipeline), ("data", self.data))
        return " x ".join(f"{name} {degree}" for name, degree in named if degree)


OPEN = Degrees()


def indivisible(facts: ModelFacts, tensor: int, *, precision: str = "bf16") -> str | None:
    """Say what of the model ``tensor`` ranks cannot share, or None when they can share it all.

    Heads and the padded vocabulary must divide (vLLM 0.19 asserts both: 40 heads divide by 5, a
    vocabulary of 151,936 does not); key-value heads may be replicated instead; experts must
    divide in their inner dimension, and in whole blocks where scales are per block.

    >>> qwen = ModelFacts("Qwen/Qwen3-14B", "Qwen3ForCausalLM", 40, 5120, 17408, 40, 8, 128, 151936)
    >>> indivisible(qwen, 5), indivisible(qwen, 4), indivisible(qwen, 3)
    ('a vocabulary of 151936 does not divide by 5', None, '40 attention heads do not divide by 3')
    """
    if tensor == 1:
        return None
    for kind in ("full", "sliding"):
        heads = facts.heads_of(kind)
        if heads.heads % tensor:
            return f"{heads.heads} attention heads do not divide by {tensor}"
        if -(-facts.vocab // VOCABULARY_UNIT) * VOCABULARY_UNIT % tensor:
            return f"a vocabulary of {facts.vocab} does not divide by {tensor}"
        if facts.attention != "mla" and heads.kv_heads % tensor and tensor % heads.kv_heads:
            return f"{heads.kv_heads} key-value heads neither divide by {tensor} nor repeat over it"
    if facts.experts:
        blocks = facts.quantization == "fp8" and weight_format(precision).name.startswith("fp8")
        unit = facts.quantization_group or 1 if blocks else 1
        if facts.expert_intermediate % (tensor * unit):
            return f"experts of width {facts.expert_intermediate} do not divide by {tensor}"
    elif facts.intermediate % tensor:
        return f"a feed-forward of width {facts.intermediate} does not divide by {tensor}"
    return None


def layout_for(
    facts: ModelFacts, *, nodes: int, count: int, precision: str = "bf16", fixed: Degrees = OPEN
) -> Layout | str:
    """Return how a replica lies on these devices, or why it cannot.

    All devices of a node share tensors where the model divides; else the widest group that
    divides, in stages. Nodes are stages: the network between them carries little then. Data
    ranks are only made where they are asked for, and share the routed experts among them all.

    >>> qwen = ModelFacts("Qwen/Qwen3-8B", "Qwen3ForCausalLM", 36, 4096, 12288, 32, 8, 128, 151936)
    >>> layout_for(qwen, nodes=2, count=8)
    Layout(nodes=2, count=8, tensor=8, pipeline=2, data=1, expert=1)
    >>> layout_for(qwen, nodes=1, count=3)
    Layout(nodes=1, count=3, tensor=1, pipeline=3, data=1, expert=1)
    >>> layout_for(qwen, nodes=1, count=4, fixed=Degrees(tensor=8))
    'tensor 8 does not take 4 accelerators'
    """
    data = fixed.data or 1
    why = f"{fixed} does not take {nodes * count} accelerators" if fixed != OPEN else ""
    each, left = divmod(nodes * count, data)
    if left:
        return why
    for tensor in [fixed.tensor] if fixed.tensor else range(count, 0, -1):
        stages, left = divmod(each, tensor)
        if left or (not fixed.tensor and count % tensor) or fixed.pipeline not in (None, stages):
            continue
        if uncut := indivisible(facts, tensor, precision=precision):
            why = f"tensor {tensor}: {uncut}" if fixed.tensor else why
            continue
        if stages > facts.layers:
            return f"{facts.layers} layers do not fill {stages} stages"
        expert = data * tensor if data > 1 and facts.experts else 1
        return Layout(nodes, count, tensor, stages, data, expert)
    return why or f"cannot be cut over {count} devices"


def layout_over(
    facts: ModelFacts, *, nodes: int, count: int, precision: str = "bf16", fixed: Degrees = OPEN
) -> Layout | str:
    """Return how a replica lies on machines that are one, or why it cannot.

    The network between the chips of a TPU slice does not end at a machine, so that all of them share
    tensors; stages over its machines are not served (tpu-inference PR 3498 is open).

    >>> from orchestrator.catalog import model
    >>> layout_over(model("Qwen/Qwen2.5-72B-Instruct"), nodes=4, count=4)
    Layout(nodes=4, count=4, tensor=16, pipeline=1, data=1, expert=1)
    """
    whole = layout_for(facts, nodes=1, count=nodes * count, precision=precision, fixed=fixed)
    if isinstance(whole, str):
        return whole
    if whole.pipeline > 1:
        return indivisible(facts, nodes * count, precision=precision) or "a slice has no stages"
    return replace(whole, nodes=nodes, count=count)


def spread(facts: ModelFacts, layout: Layout) -> Layout | None:
    """Return ``layout`` with data ranks in place of tensor ranks that would repeat the KV cache.

    A compressed cache (MLA) is held whole by every tensor rank, and so is each key-value head
    where there are more ranks than heads. Data ranks hold the cache of their own requests only,
    and the experts are shared by all of them; the attention's weights are repeated instead (vLLM
    docs, serving/data_parallel_deployment). None where nothing is repeated, where there are no
    experts, and over several machines.

    >>> from orchestrator.catalog import model
    >>> str(spread(model("deepseek-ai/DeepSeek-V3"), Layout(1, 8, 8, 1)))
    'data 8 x expert 8'
    """
    repeats_from = 1 if facts.attention == "mla" else facts.heads_of("full").kv_heads or 1
    if not facts.experts or layout.nodes > 1 or layout.pipeline > 1 or layout.tensor <= repeats_from:
        return None
    data = layout.tensor // repeats_from
    return Layout(1, layout.count, repeats_from, 1, data, layout.tensor)


_NEEDS = {
    "fp32": ("fp32",),
    "bf16": ("bf16", "fp16"),
    "fp16": ("fp16", "bf16"),
    "fp8": ("fp8", "fp8_fnuz", "blockfp8"),
    "fp8_block128": ("fp8", "fp8_fnuz", "blockfp8"),
    "int8": ("int8",),
    "gptq_int8": ("int8",),
    "awq": ("int4",),
    "gptq": ("int4",),
    "int4": ("int4",),
    "nf4": ("int4",),
    "nf4-dq": ("int4",),
    "mxfp4": ("mxfp4", "fp4"),
    "nvfp4": ("nvfp4",),
    "nvfp4_mixed": ("nvfp4",),
    "fp8_fp4": ("mxfp4", "fp4", "fp8"),
}


def is_native(accelerator: Accelerator, precision: str) -> bool:
    """Return whether the device multiplies in the format itself."""
    needs = _NEEDS.get(weight_format(precision).name, ("fp16", "bf16"))
    return any(n in accelerator.native for n in needs)


def runs(accelerator: Accelerator, precision: str) -> bool:
    """Return whether the device can serve weights of the format, natively or by widening them.

    >>> from orchestrator.catalog import accelerator
    >>> runs(accelerator("A100-80GB"), "fp8"), is_native(accelerator("A100-80GB"), "fp8")
    (True, False)
    """
    needs = _NEEDS.get(weight_format(precision).name, ("fp16", "bf16"))
    return is_native(accelerator, precision) or any(n in accelerator.weight_only for n in needs)
