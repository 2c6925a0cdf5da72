"""The shapes of catalog facts: what an accelerator is, what a model is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from datetime import date
from typing import Literal

from orchestrator.frozen import frozen

LayerKind = Literal["full", "sliding", "linear", "none"]
"""How a layer mixes tokens. Only ``full`` and ``sliding`` layers keep keys and values that grow
with the tokens; ``linear`` ones keep a fixed state, ``none`` ones (feed-forward alone) nothing."""
Attention = Literal["mha", "mla"]
"""``mha`` covers MHA, GQA and MQA (they differ in ``kv_heads`` only)."""


@frozen
class Accelerator:
    """One device, as a program sees it.

    ``visible_bytes`` is the memory the driver shows, never the size on the box
    (``nominal_gb``). ``tflops`` are dense peaks by format (``bf16``, ``fp8``, ``int8``, ``fp4``,
    ``fp32``); ``native`` names the formats the hardware multiplies, ``weight_only`` those that
    kernels can store and widen. ``capability`` is the CUDA compute capability or None.
    """

    name: str
    vendor: Literal["nvidia", "amd", "google", "intel", "tenstorrent", "aws", "apple", "huawei"]
    architecture: str
    nominal_gb: float
    visible_bytes: int
    source: str
    year: int | None = None
    bandwidth_gbs: float | None = None
    tflops: Mapping[str, float] = field(default_factory=dict)
    native: frozenset[str] = frozenset()
    weight_only: frozenset[str] = frozenset()
    capability: tuple[int, int] | None = None
    gfx: str | None = None
    interconnect: str | None = None
    link_gbs: float | None = None
    max_per_node: int = 8
    aliases: tuple[str, ...] = ()
    """Every other spelling: nvidia-smi, GFD label, GKE label, Karpenter, AMD labels, dstack, SkyPilot."""
    parent: str | None = None
    """The whole device a MIG slice is cut from."""
    family: Literal["cuda", "rocm", "tpu", "gaudi", "xpu", "tenstorrent", "neuron", "metal", "npu"] = "cuda"
    topologies: Mapping[int, str] = field(default_factory=dict)
    """TPU slices that can be asked for: chips to topology, as GKE spells it (``{4: "2x2"}``)."""
    derived: tuple[str, ...] = ()
    """Fields that are arithmetic on sourced figures, not read from a source."""


@frozen
class VisionFacts:
    """A vision tower, where the config gives one."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    patch: int = 14
    image: int = 224
    parameters: int | None = None
    """Of the tower and the projector to the text."""
    estimated: bool = False
    """Whether the count is a plain tower's, because this one is not known."""


FeedForward = Literal["dense", "experts", "both", "none"]
"""What follows the token mixer in a layer; ``both`` runs a dense block beside the experts."""
Norm = Literal["none", "head", "full"]
"""Norms of queries and keys: one weight per head dimension, or one over all heads together."""


@frozen
class Heads:
    """The head layout of one kind of layer, where kinds differ in it."""

    heads: int
    kv_heads: int
    head_dim: int
    v_head_dim: int | None = None


@frozen
class Trim:
    """The small tensors of an architecture: nothing to a plan, all that an exact count lacks.

    ``norms`` counts vectors of the hidden size per layer. ``layer_other`` and ``model_other`` are
    parameters that fit no other name, per layer and once.
    """

    norms: int = 2
    final_norms: int = 1
    norm_bias: bool = False
    qk_norm: Norm = "none"
    qk_norm_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    router_bias: bool = False
    expert_bias: bool = False
    shared_gate: bool = False
    sinks: tuple[LayerKind, ...] = ()
    output_gate: bool = False
    keys_are_values: tuple[LayerKind, ...] = ()
    positions: int = 0
    token_types: int = 0
    layer_other: int = 0
    model_other: int = 0


@frozen
class ModelFacts:
    """What a model is, from its ``config.json``: all that sizing needs, and nothing it computes.

    ``parameters`` is exact where known (index or tensor headers), else counted from the shapes
    below. ``weights_bytes`` is the sum over the files the index names, when known.
    ``layer_kinds`` has one entry per layer. ``quantization`` is how the published weights were
    made (``awq``, ``gptq``, ``fp8``, ``mxfp4`` …), None for plain 16- or 32-bit ones.
    """

    id: str
    architecture: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool = False
    dtype: str = "bf16"
    context: int | None = None
    parameters: int | None = None
    weights_bytes: int | None = None
    attention: Attention = "mha"
    gated: bool = True
    """Whether the feed-forward has three matrices (gate, up, down) or two."""
    qkv_bias: bool = False
    v_head_dim: int | None = None
    q_lora_rank: int | None = None
    kv_lora_rank: int | None = None
    qk_nope_head_dim: int | None = None
    qk_rope_head_dim: int | None = None
    experts: int = 0
    experts_per_token: int = 0
    expert_intermediate: int = 0
    shared_experts: int = 0
    shared_intermediate: int = 0
    """Width of one shared expert."""
    dense_layers: int = 0
    """Leading layers that keep a dense feed-forward in a mixture-of-experts model."""
    layer_kinds: tuple[LayerKind, ...] = ()
    sliding_window: int | None = None
    linear_state_bytes: int = 0
    """Bytes of recurrent state per sequence and linear-attention layer, 0 when there is none."""
    linear_parameters: int = 0
    """Parameters of the token mixer of one linear-attention layer."""
    feed_forwards: tuple[FeedForward, ...] = ()
    """One entry per layer; empty means what ``experts`` and ``dense_layers`` say."""
    intermediates: tuple[int, ...] = ()
    """Width of the dense block layer by layer, where it varies."""
    sliding_heads: Heads | None = None
    """Heads of the sliding layers where they differ; the plain fields are then the full layers'."""
    kv_shared_layers: int = 0
    """Last layers that read the keys and values of an earlier layer and keep none."""
    expert_hidden: int | None = None
    """Width the experts work in, where it is not the hidden size (latent experts)."""
    index_layers: int = 0
    """Layers with an indexer that picks tokens for sparse attention; it caches ``index_head_dim``
    values per token of its own."""
    index_heads: int = 0
    index_head_dim: int = 0
    compress_ratios: tuple[int, ...] = ()
    """Tokens that one cached entry stands for, layer by layer, beside a window of single tokens in
    each; 0 where a layer has its window only. Empty where every token is kept."""
    trim: Trim = Trim()
    quantization: str | None = None
    quantization_bits: float | None = None
    quantization_group: int | None = None
    quantization_skips: tuple[str, ...] = ()
    quantized_precision: str | None = None
    """The number format that quantized weights are in: ``fp8``, ``int8``, ``int4``, ``fp4``; a method
    such as ``compressed-tensors`` has them all."""
    vision: VisionFacts | None = None
    pools: bool = False
    """Whether a prompt is answered with vectors or scores at once: it embeds, reranks or classifies,
    and no token is ever generated."""
    bidirectional: bool = False
    """Whether every token sees every other, as in an encoder: a prompt is read whole, and none of its
    keys and values are kept."""
    revision: str | None = None
    licence: str | None = None
    gated_access: bool | None = None
    languages: tuple[str, ...] = ()
    source: str = ""
    extra: Mapping[str, object] = field(default_factory=dict)

    def kinds(self) -> tuple[LayerKind, ...]:
        """Return the kind of every layer; all full where the config says nothing else."""
        plain: tuple[LayerKind, ...] = ("full",)
        return self.layer_kinds or plain * self.layers

    def feeds(self) -> tuple[FeedForward, ...]:
        """Return the feed-forward of every layer."""
        if self.feed_forwards:
            return self.feed_forwards
        dense: tuple[FeedForward, ...] = ("dense",)
        sparse: tuple[FeedForward, ...] = ("experts",)
        if not self.experts:
            return dense * self.layers
        return dense * self.dense_layers + sparse * (self.layers - self.dense_layers)

    def heads_of(self, kind: LayerKind) -> Heads:
        """Return the head layout of the layers of ``kind``."""
        if kind == "sliding" and self.sliding_heads is not None:
            return self.sliding_heads
        return Heads(self.heads, self.kv_heads, self.head_dim, self.v_head_dim)


@frozen
class PriceRow:
    """What one kind of instance costs at a provider, as somebody read it on a day.

    Prices are in US dollars for the whole instance and hour; None is unknown and never free.
    ``accelerator`` is a catalog name, ``count`` how many of it one instance has.
    """

    provider: str
    region: str
    instance_type: str
    source: str
    accelerator: str | None = None
    count: int = 0
    cpu: float | None = None
    memory_bytes: int | None = None
    disk_bytes: int | None = None
    arch: Literal["x86", "arm"] = "x86"
    on_demand_usd_hour: float | None = None
    spot_usd_hour: float | None = None
    as_of: date | None = None
    """The day of the page or file the price is from, None where it carries none."""
    confidence: Literal["high", "medium", "low"] = "medium"
    notes: str = ""

    @property
    def name(self) -> str:
        """Return the key of this row: provider, region and instance type."""
        return f"{self.provider}/{self.region}/{self.instance_type}"

    @property
    def is_sure(self) -> bool:
        """Whether the price has a day and a source that can be relied on."""
        return self.as_of is not None and self.confidence != "low"


@frozen
class Image:
    """The container image of one engine version for one family of accelerators."""

    engine: str
    version: str
    family: str
    """As ``Accelerator.family``; ``cpu`` and ``cpu-arm`` where there is no accelerator."""
    repository: str
    tag: str
    source: str
    digest: str | None = None
    min_capability: tuple[int, int] | None = None
    min_driver: int | None = None
    """Major version of the NVIDIA driver that the image's CUDA needs."""
    ended: str | None = None
    """Why nobody should start with it, where its project has ended."""
    notes: str = ""

    @property
    def reference(self) -> str:
        """Return what to pull: by digest where one is pinned, else by tag.

        >>> Image("vllm", "0.33.0", "cuda", "vllm/vllm-openai", "v0.33.0", "docs").reference
        'vllm/vllm-openai:v0.33.0'
        """
        return f"{self.repository}@{self.digest}" if self.digest else f"{self.repository}:{self.tag}"
