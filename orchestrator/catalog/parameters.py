"""Counts a model's parameters from its shapes, part by part and exactly."""

from __future__ import annotations

from dataclasses import fields

from orchestrator.catalog.values import LayerKind, ModelFacts
from orchestrator.frozen import frozen


@frozen
class Parameters:
    """Where a model's parameters are; ``total`` adds them up.

    ``head`` is 0 where it is tied to the embedding. ``attention`` holds the projections of full
    and sliding layers, ``mixer`` those of linear-attention layers, ``dense`` the feed-forwards
    outside the experts. ``other`` has norms, biases and whatever fits no other name.
    """

    embedding: int = 0
    head: int = 0
    attention: int = 0
    mixer: int = 0
    dense: int = 0
    experts: int = 0
    shared: int = 0
    router: int = 0
    vision: int = 0
    other: int = 0

    @property
    def total(self) -> int:
        """Return the sum of all parts."""
        return sum(getattr(self, part.name) for part in fields(self))


def count_parameters(facts: ModelFacts) -> int:
    """Return the number of parameters that the shapes of ``facts`` add up to.

    This is what the served model holds: heads that only predict ahead (multi-token prediction)
    are in some checkpoints and not in here.

    >>> from orchestrator.catalog import model
    >>> count_parameters(model("meta-llama/Llama-3.1-8B-Instruct"))
    8030261248
    """
    return parameters(facts).total


def parameters(facts: ModelFacts) -> Parameters:
    """Return the parameters of ``facts`` by part.

    >>> from orchestrator.catalog import model
    >>> parameters(model("openai/gpt-oss-20b")).experts
    19116933120
    """
    kinds, feeds = facts.kinds(), facts.feeds()
    trim = facts.trim
    table = facts.vocab * facts.hidden
    attending = [kind for kind in kinds if kind in ("full", "sliding")]
    sparse = sum(1 for feed in feeds if feed in ("experts", "both"))
    return Parameters(
        embedding=table,
        head=0 if facts.tied else table,
        attention=sum(_attention(facts, kind) for kind in attending) + _indexers(facts),
        mixer=kinds.count("linear") * facts.linear_parameters,
        dense=sum(_block(facts, width) for width in _dense_widths(facts)),
        experts=sparse * facts.experts * _expert(facts),
        shared=sparse * facts.shared_experts * _matrices(facts) * facts.hidden * facts.shared_intermediate,
        router=sparse * facts.experts * facts.hidden,
        vision=(facts.vision.parameters or 0) if facts.vision else 0,
        other=_norms(facts)
        + sum(_attention_small(facts, kind) for kind in attending)
        + sparse * _sparse_small(facts)
        + (facts.vocab if trim.head_bias else 0)
        + (trim.positions + trim.token_types) * facts.hidden
        + trim.layer_other * facts.layers
        + trim.model_other,
    )


def active_parameters(facts: ModelFacts) -> int:
    """Return how many parameters one token passes through: of the experts, only the chosen ones.

    >>> from orchestrator.catalog import model
    >>> active_parameters(model("Qwen/Qwen3-30B-A3B"))
    3353032704
    """
    parts = parameters(facts)
    idle = parts.experts * (facts.experts - facts.experts_per_token) // facts.experts if facts.experts else 0
    return parts.total - idle


def _matrices(facts: ModelFacts) -> int:
    return 3 if facts.gated else 2


def _dense_widths(facts: ModelFacts) -> list[int]:
    widths = facts.intermediates or (facts.intermediate,) * facts.layers
    return [width for width, feed in zip(widths, facts.feeds(), strict=True) if feed in ("dense", "both")]


def _block(facts: ModelFacts, width: int) -> int:
    """Return a dense feed-forward's matrices and, where it has them, its biases."""
    matrices = _matrices(facts)
    bias = (matrices - 1) * width + facts.hidden if facts.trim.mlp_bias else 0
    return matrices * facts.hidden * width + bias


def _expert(facts: ModelFacts) -> int:
    width, hidden = facts.expert_intermediate, facts.expert_hidden or facts.hidden
    matrices = _matrices(facts)
    bias = (matrices - 1) * width + hidden if facts.trim.expert_bias else 0
    return matrices * hidden * width + bias


def _sparse_small(facts: ModelFacts) -> int:
    """Return what an expert layer has beside experts and router matrix."""
    latent = 2 * facts.hidden * facts.expert_hidden if facts.expert_hidden else 0
    return (
        (facts.experts if facts.trim.router_bias else 0)
        + (facts.hidden if facts.trim.shared_gate else 0)
        + latent
    )


def _attention(facts: ModelFacts, kind: LayerKind) -> int:
    if facts.attention == "mla":
        return _latent_attention(facts)
    heads = facts.heads_of(kind)
    value_dim = heads.v_head_dim or heads.head_dim
    query = heads.heads * heads.head_dim * (2 if facts.trim.output_gate else 1)
    key = heads.kv_heads * heads.head_dim
    value = 0 if kind in facts.trim.keys_are_values else heads.kv_heads * value_dim
    return facts.hidden * (query + key + value + heads.heads * value_dim)


def _latent_attention(facts: ModelFacts) -> int:
    """Return MLA's matrices: queries (through a rank or not), the shared latent, its expansion, output."""
    rank, rope = facts.kv_lora_rank or 0, facts.qk_rope_head_dim or 0
    nope, value = facts.qk_nope_head_dim or 0, facts.v_head_dim or facts.head_dim
    width = facts.heads * (nope + rope)
    query = facts.q_lora_rank * (facts.hidden + width) if facts.q_lora_rank else facts.hidden * width
    gate = facts.hidden * facts.heads * value if facts.trim.output_gate else 0
    latent = facts.hidden * (rank + rope) + rank * facts.heads * (nope + value)
    return query + latent + facts.heads * value * facts.hidden + gate


def _indexers(facts: ModelFacts) -> int:
    """Return DeepSeek's sparse-attention indexers: queries from the rank, one key, a weight per head."""
    source = facts.q_lora_rank or facts.hidden
    width = facts.index_head_dim
    return facts.index_layers * (facts.index_heads * (source * width + facts.hidden) + facts.hidden * width)


def _attention_small(facts: ModelFacts, kind: LayerKind) -> int:
    """Return an attention layer's biases, query and key norms and sinks."""
    trim, heads = facts.trim, facts.heads_of(kind)
    sinks = heads.heads if kind in trim.sinks else 0
    if facts.attention == "mla":
        latent = (facts.q_lora_rank or 0) + (facts.kv_lora_rank or 0)
        bias = (facts.q_lora_rank or 0) + (facts.kv_lora_rank or 0) + (facts.qk_rope_head_dim or 0)
        return latent + sinks + (bias if facts.qkv_bias else 0) + (facts.hidden if trim.o_bias else 0)
    query, key = heads.heads * heads.head_dim, heads.kv_heads * heads.head_dim
    value = heads.kv_heads * (heads.v_head_dim or heads.head_dim)
    norm = {"none": 0, "head": 2 * heads.head_dim, "full": query + key}[trim.qk_norm]
    bias = (query * (2 if trim.output_gate else 1) + key + value) if facts.qkv_bias else 0
    return norm * (2 if trim.qk_norm_bias else 1) + bias + (facts.hidden if trim.o_bias else 0) + sinks


def _norms(facts: ModelFacts) -> int:
    trim = facts.trim
    vectors = facts.layers * trim.norms + trim.final_norms
    return vectors * facts.hidden * (2 if trim.norm_bias else 1)
