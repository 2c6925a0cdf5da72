"""Reads a model from its tensors' shapes, for an architecture that nobody has described to us."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from orchestrator.catalog.config import pooling, pools
from orchestrator.catalog.quantization import read_quantization
from orchestrator.catalog.text import Text
from orchestrator.catalog.values import LayerKind, ModelFacts
from orchestrator.errors import ModelError
from orchestrator.facts.safetensors import Tensor

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.(.+)$")
_TABLE = re.compile(r"(embed_tokens|wte|word_embeddings|embed_in|tok_embeddings|embeddings)\.weight$")
_KEYS = re.compile(r"(k_proj|key|kv_a_proj_with_mqa|qkv_proj|query_key_value|c_attn|wqkv|W_pack)\.weight$")
_EXACT_KEYS = re.compile(r"(k_proj|\bkey)\.weight$")
_VISION = re.compile(r"vision|visual|image|audio")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")


def facts_from_shapes(
    config: Mapping[str, Any], tensors: Sequence[Tensor], *, id: str, architecture: str, source: str
) -> ModelFacts:
    """Return what the shapes of ``tensors`` say about a model of unknown architecture.

    Parameters and bytes are exact; layers without keys count as linear attention with an unknown state.
    ``extra["assumed"]`` says that this was read from shapes.

    Raises:
        ModelError: there is no embedding or no layer, or the config lacks the number of heads.
    """
    text = Text.of(config)
    table = next((t for t in tensors if _TABLE.search(t.name) and len(t.shape) == 2), None)
    layers = _by_layer(tensors)
    if table is None or not layers:
        raise ModelError(
            f"architecture {architecture or 'not named'!r} is not known, and its tensors have no "
            f"{'embedding' if table is None else 'layers'} that can be told",
            fix="give the sizes in the spec, or use a model of a known architecture",
        )
    vocab, hidden = table.shape
    if text.get(*_HEADS) is None:
        raise ModelError(
            f"architecture {architecture or 'not named'!r} is not known, and the config lacks "
            f"{_HEADS[0]!r}, which no shape tells",
            fix=f"add {_HEADS[0]!r} to config.json",
        )
    heads = text.number(*_HEADS)
    head_dim = text.number("head_dim", default=max(1, hidden // heads))
    found = ModelFacts(
        id=id,
        architecture=architecture,
        layers=len(layers),
        hidden=hidden,
        intermediate=text.number("intermediate_size", default=4 * hidden),
        heads=heads,
        kv_heads=_kv_heads(tensors, head_dim, text.number("num_key_value_heads", default=heads)),
        head_dim=head_dim,
        vocab=vocab,
        tied=not any(t.name.endswith("lm_head.weight") for t in tensors),
        context=text.count("max_position_embeddings") or None,
        parameters=sum(t.elements for t in tensors),
        weights_bytes=sum(t.size_bytes for t in tensors),
        experts=text.count("num_experts", "num_local_experts", "n_routed_experts"),
        experts_per_token=text.count("num_experts_per_tok"),
        layer_kinds=_kinds(layers),
        source=source,
        extra={"assumed": "read from the shapes of its tensors"},
    )
    found = pooling(found) if pools(architecture) else found
    quantization = read_quantization(config)
    if quantization is None:
        return found
    # packed weights: elements on disk are no parameters
    return replace(
        found,
        parameters=None,
        quantization=quantization.method,
        quantization_bits=quantization.bits,
        quantization_group=quantization.group,
        quantization_skips=quantization.skips,
        quantized_precision=quantization.precision,
    )


def _by_layer(tensors: Sequence[Tensor]) -> dict[int, list[str]]:
    layers: dict[int, list[str]] = {}
    for tensor in tensors:
        found = _LAYER.search(tensor.name)
        if found and not _VISION.search(tensor.name):
            layers.setdefault(int(found[1]), []).append(found[2])
    return dict(sorted(layers.items()))


def _kv_heads(tensors: Sequence[Tensor], head_dim: int, default: int) -> int:
    for tensor in tensors:
        plain = _EXACT_KEYS.search(tensor.name) and _LAYER.search(tensor.name)
        if plain and len(tensor.shape) == 2 and not _VISION.search(tensor.name):
            return max(1, tensor.shape[0] // head_dim)
    return default


def _kinds(layers: Mapping[int, Sequence[str]]) -> tuple[LayerKind, ...]:
    kinds: tuple[LayerKind, ...] = tuple(
        "full" if any(_KEYS.search(name) for name in names) else "linear" for names in layers.values()
    )
    return () if set(kinds) == {"full"} else kinds
