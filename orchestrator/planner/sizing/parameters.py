"""How many parameters sit in each part of a model, from its shapes and its known total."""

from __future__ import annotations

from dataclasses import dataclass, replace

from orchestrator.catalog.values import LayerKind, ModelFacts, VisionFacts

LINEAR_ATTENTION_HIDDEN_SQUARES = 4.5
"""Parameters of a linear-attention layer in units of hidden²; what is left of Qwen3.5-27B's
27.36 B total over 48 such layers is 4.4 (config.json and total from the hub, 2026)."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """Parameter counts by part; ``attention`` … ``other`` are sums over all layers.

    ``mtp`` are multi-token-prediction layers: on disk, and loaded only to speculate.
    """

    embedding: int
    head: int
    attention: int
    dense: int
    experts: int
    shared: int
    other: int
    vision: int
    mtp: int

    @property
    def body(self) -> int:
        """What the layers hold together."""
        return self.attention + self.dense + self.experts + self.shared + self.other

    @property
    def total(self) -> int:
        """All that is loaded to serve the model: everything but ``mtp``."""
        return self.embedding + self.head + self.body + self.vision


def expert_layers(facts: ModelFacts) -> int:
    """Return how many layers hold routed experts.

    A model whose experts come at a stride says so in ``extra["moe_layers"]``.
    """
    if not facts.experts:
        return 0
    stated = facts.extra.get("moe_layers")
    return stated if isinstance(stated, int) else facts.layers - facts.dense_layers


def attention_parameters(facts: ModelFacts, kind: LayerKind) -> int:
    """Return the parameters of one attention layer, without norms."""
    h = facts.hidden
    if kind == "linear":
        return int(LINEAR_ATTENTION_HIDDEN_SQUARES * h * h)
    if facts.attention == "mla":
        return _latent_attention(facts)
    q, kv = facts.heads * facts.head_dim, facts.kv_heads * facts.head_dim
    values = facts.kv_heads * (facts.v_head_dim or facts.head_dim)
    out = facts.heads * (facts.v_head_dim or facts.head_dim)
    bias = q + kv + values if facts.qkv_bias else 0
    return h * (q + kv + values) + out * h + bias


def _latent_attention(facts: ModelFacts) -> int:
    h, rank = facts.hidden, facts.kv_lora_rank or 0
    nope = facts.qk_nope_head_dim or facts.head_dim
    rope, value = facts.qk_rope_head_dim or 0, facts.v_head_dim or nope
    queries = facts.heads * (nope + rope)
    into_q = facts.q_lora_rank * (h + queries) if facts.q_lora_rank else h * queries
    return into_q + h * (rank + rope) + rank * facts.heads * (nope + value) + facts.heads * value * h


def vision_parameters(vision: VisionFacts | None) -> int:
    """Return the parameters of a vision tower: stated, else from its shapes."""
    if vision is None:
        return 0
    if vision.parameters is not None:
        return vision.parameters
    layer = 4 * vision.hidden**2 + 2 * vision.hidden * vision.intermediate + 4 * vision.hidden
    return vision.layers * layer + 3 * vision.patch**2 * vision.hidden


def count_parts(facts: ModelFacts) -> Parameters:
    """Return the parameters of each part; their sum is ``facts.parameters`` where that is known.

    >>> llama = ModelFacts("llama-3.1-8b", "LlamaForCausalLM", 32, 4096, 14336, 32, 8, 128, 128256)
    >>> count_parts(llama).total
    8030261248
    """
    h, kinds = facts.hidden, facts.kinds()
    matrices = 3 if facts.gated else 2
    routed = expert_layers(facts)
    expert = matrices * h * facts.expert_intermediate
    shared_width = facts.shared_intermediate or facts.shared_experts * facts.expert_intermediate
    attention = sum(kinds.count(k) * attention_parameters(facts, k) for k in _KINDS if k in kinds)
    embedding = facts.vocab * h
    counted = Parameters(
        embedding=embedding,
        head=0 if facts.tied else embedding,
        attention=attention,
        dense=(facts.layers - routed) * matrices * h * facts.intermediate,
        experts=routed * facts.experts * expert,
        shared=routed * matrices * h * shared_width,
        other=2 * facts.layers * h + routed * facts.experts * h + h,
        vision=vision_parameters(facts.vision),
        mtp=_speculative_parameters(facts, attention // max(1, facts.layers)),
    )
    return counted if facts.parameters is None else _reconciled(counted, facts, facts.parameters)


_KINDS: tuple[LayerKind, ...] = ("full", "sliding", "linear")


def _speculative_parameters(facts: ModelFacts, attention: int) -> int:
    layers = facts.extra.get("num_nextn_predict_layers")
    if not isinstance(layers, int):
        return 0
    matrices = 3 if facts.gated else 2
    width = facts.experts * facts.expert_intermediate if facts.experts else facts.intermediate
    return layers * (matrices * facts.hidden * width + attention + 2 * facts.hidden**2)


def _reconciled(counted: Parameters, facts: ModelFacts, total: int) -> Parameters:
    """Bring the layers' parts to the known total; what the shapes leave open takes the rest."""
    left = total - counted.embedding - counted.head - counted.vision
    rest = left - counted.attention - counted.shared - counted.other - counted.dense
    if facts.experts and not counted.experts and rest > 0:
        return replace(counted, experts=rest)
    if not facts.experts and not counted.dense and rest > 0:
        return replace(counted, dense=rest)
    if counted.body <= 0 or left <= 0:
        return replace(counted, dense=counted.dense + max(0, total - counted.total))
    # embeddings are exact and the layers' shapes are not (biases, gates, norms of a family we
    # do not spell out), so the layers carry the difference
    names = ("attention", "dense", "experts", "shared", "other")
    return replace(counted, **{n: getattr(counted, n) * left // counted.body for n in names})
