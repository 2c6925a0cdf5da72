"""The parts that families share: which layers attend how, where the experts are, latent attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from orchestrator.catalog.text import Text
from orchestrator.catalog.values import FeedForward, LayerKind

Differences: TypeAlias = dict[str, Any]
"""Fields of ``ModelFacts`` in which a model differs from a plain gated decoder."""

_KINDS: Mapping[str, LayerKind] = {
    "full_attention": "full",
    "attention": "full",
    "sliding_attention": "sliding",
    "chunked_attention": "sliding",
    "compressed_sparse_attention": "full",
    "heavily_compressed_attention": "full",
    "linear_attention": "linear",
    "mamba": "linear",
    "conv": "linear",
}


def layer_kinds(text: Text, *, every: int = 0) -> Differences:
    """Return the kinds of the layers, from ``layer_types`` or a period.

    Args:
        text: The config.
        every: Where the config has no list: each ``every``-th layer is full, the others slide.
    """
    layers = text.number("num_hidden_layers", "n_layer")
    named = text.items("layer_types", "layers_block_type")[:layers]
    window = text.get("sliding_window", "attention_chunk_size", "sliding_window_size")
    kinds: tuple[LayerKind, ...] = ()
    if named:
        kinds = tuple(_KINDS.get(str(name), "full") for name in named)
    elif every and window:
        kinds = tuple("full" if (i + 1) % every == 0 else "sliding" for i in range(layers))
    if "sliding" in kinds and not window:
        kinds = tuple("full" if kind == "sliding" else kind for kind in kinds)
    if not kinds or set(kinds) == {"full"}:
        return {}
    return {"layer_kinds": kinds, "sliding_window": int(window) if "sliding" in kinds else None}


def always_sliding(text: Text) -> Differences:
    """Mistral's first: every layer slides when the config has a window shorter than the context."""
    layers, window = text.number("num_hidden_layers"), text.get("sliding_window")
    if text.items("layer_types"):
        return layer_kinds(text)
    if not window or window >= text.count("max_position_embeddings", default=window):
        return {}
    return {"layer_kinds": ("sliding",) * layers, "sliding_window": int(window)}


def sparse_layers(text: Text, is_sparse: Callable[[int], bool]) -> Differences:
    """Return which layers have experts, as a count of leading dense ones where that says it all."""
    layers = text.number("num_hidden_layers")
    feeds: tuple[FeedForward, ...] = tuple("experts" if is_sparse(i) else "dense" for i in range(layers))
    leading = next((i for i, feed in enumerate(feeds) if feed == "experts"), layers)
    plain = feeds == ("dense",) * leading + ("experts",) * (layers - leading)
    return {"dense_layers": leading, "feed_forwards": () if plain else feeds}


def expert_sizes(text: Text, *, width: int | None = None) -> Differences:
    """Return how many experts there are, how many a token meets, and how wide each is."""
    return {
        "experts": text.count("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts"),
        "experts_per_token": text.count(
            "num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk", "moe_k", default=1
        ),
        "expert_intermediate": width
        or text.number("moe_intermediate_size", "expert_ffn_hidden_size", "intermediate_size"),
    }


def every_layer_sparse(text: Text) -> Differences:
    """Return the fields of a model with experts in every layer."""
    return {**expert_sizes(text), "dense_layers": 0}


def leading_dense(text: Text) -> Differences:
    """DeepSeek's layout: dense layers first, then experts with shared ones beside them."""
    shared = text.count("n_shared_experts", "num_shared_experts")
    frequency = text.get("moe_layer_freq")
    leading = text.count("first_k_dense_replace")
    if isinstance(frequency, list):
        sparse = sparse_layers(text, lambda i: bool(frequency[i]))
    elif isinstance(text.get("mlp_layer_types"), list):
        named = text.items("mlp_layer_types")
        sparse = sparse_layers(text, lambda i: named[i] != "dense")
    else:
        sparse = sparse_layers(text, lambda i: i >= leading and i % (frequency or 1) == 0)
    experts = expert_sizes(text)
    return {
        **experts,
        **sparse,
        "shared_experts": shared,
        "shared_intermediate": experts["expert_intermediate"] if shared else 0,
    }


def latent(text: Text) -> Differences:
    """Return the fields of multi-head latent attention."""
    nope, rope = text.count("qk_nope_head_dim", default=128), text.count("qk_rope_head_dim", default=64)
    return {
        "attention": "mla",
        "q_lora_rank": text.count("q_lora_rank") or None,
        "kv_lora_rank": text.number("kv_lora_rank"),
        "qk_nope_head_dim": nope,
        "qk_rope_head_dim": rope,
        "v_head_dim": text.number("v_head_dim", default=128),
        "head_dim": nope + rope,
        "kv_heads": text.number("num_attention_heads"),
    }
