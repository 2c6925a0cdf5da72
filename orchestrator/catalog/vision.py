"""Counts the vision tower and projector of a multimodal config, tower by tower."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from orchestrator.catalog.values import VisionFacts

Config: TypeAlias = Mapping[str, Any]


def read_vision(family: str, config: Config, text_hidden: int) -> VisionFacts | None:
    """Return the vision tower of ``config``, its parameters with the projector to ``text_hidden``.

    Parameters stay None for a tower whose shapes are not known.
    """
    vision = config.get("vision_config")
    if not isinstance(vision, Mapping) or not vision:
        return None
    hidden = _first(vision, "embed_dim", "hidden_size", "vt_hidden_size")
    layers = _first(vision, "num_hidden_layers", "depth", "vt_num_hidden_layers", "num_layers")
    if hidden is None or layers is None:
        return None
    count = _TOWERS.get(family)
    return VisionFacts(
        layers=layers,
        hidden=hidden,
        intermediate=_first(vision, "intermediate_size", "vt_intermediate_size") or 4 * hidden,
        heads=_first(vision, "num_attention_heads", "num_heads", "vt_num_attention_heads") or 16,
        patch=_first(vision, "patch_size") or 14,
        image=_first(vision, "image_size") or 224,
        parameters=count(vision, config, text_hidden) if count else None,
    )


def _first(config: Config, *keys: str) -> int | None:
    for key in keys:
        value = config.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def _encoder_layer(hidden: int, width: int) -> int:
    """Return a ViT layer: two layer norms, four projections and two linear maps, all with bias."""
    return 4 * hidden + 4 * _linear(hidden, hidden) + _linear(hidden, width) + _linear(width, hidden)


def _qwen3(vision: Config, config: Config, text_hidden: int) -> int:
    """Qwen3-VL and Qwen3.5: a ViT with learned positions, one merger and one per deepstack level."""
    hidden, width, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    merged = hidden * vision.get("spatial_merge_size", 2) ** 2
    volume = vision.get("in_channels", 3) * vision.get("temporal_patch_size", 2) * patch**2
    embed = _linear(volume, hidden) + vision["num_position_embeddings"] * hidden
    out = vision.get("out_hidden_size", text_hidden)
    merger = _linear(merged, merged) + _linear(merged, out)
    deep = len(vision.get("deepstack_visual_indexes") or ())
    layers = vision["depth"] * _encoder_layer(hidden, width)
    return embed + layers + 2 * hidden + merger + deep * (merger + 2 * merged)


def _qwen2_5(vision: Config, config: Config, text_hidden: int) -> int:
    """Qwen2.5-VL: RMS norms and a gated feed-forward with biases."""
    hidden, width, patch = vision["hidden_size"], vision["intermediate_size"], vision.get("patch_size", 14)
    volume = (
        vision.get("in_channels", vision.get("in_chans", 3)) * vision.get("temporal_patch_size", 2) * patch**2
    )
    layer = 2 * hidden + 4 * _linear(hidden, hidden) + 2 * _linear(hidden, width) + _linear(width, hidden)
    merged = hidden * vision.get("spatial_merge_size", 2) ** 2
    out = vision.get("out_hidden_size", text_hidden)
    return volume * hidden + vision["depth"] * layer + hidden + _linear(merged, merged) + _linear(merged, out)


def _qwen2(vision: Config, config: Config, text_hidden: int) -> int:
    """Qwen2-VL: a ViT whose output size is called hidden_size."""
    hidden, patch = vision["embed_dim"], vision.get("patch_size", 14)
    width = int(hidden * vision.get("mlp_ratio", 4))
    volume = vision.get("in_channels", 3) * vision.get("temporal_patch_size", 2) * patch**2
    merged = hidden * vision.get("spatial_merge_size", 2) ** 2
    merger = 2 * hidden + _linear(merged, merged) + _linear(merged, vision["hidden_size"])
    return volume * hidden + vision["depth"] * _encoder_layer(hidden, width) + merger


def _mllama(vision: Config, config: Config, text_hidden: int) -> int:
    """Llama 3.2 Vision: two stacks of ViT layers and a table of positions for every way to tile."""
    hidden, width, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    ways = len(vision.get("supported_aspect_ratios", range(8))) + 1
    tiles = vision.get("max_num_tiles", 4)
    positions = (vision["image_size"] // patch) ** 2 + 1
    table = positions * hidden * (1 + ways * tiles) + 2 * ways * tiles * hidden + 3
    layer = 4 * hidden + 4 * hidden * hidden + _linear(hidden, width) + _linear(width, hidden)
    last = vision.get("num_global_layers", 8)
    layers = (vision["num_hidden_layers"] + last) * layer + 2 * last
    out = hidden * (1 + len(vision.get("intermediate_layers_indices", range(5))))
    return hidden + 3 * patch**2 * hidden + table + 4 * hidden + layers + _linear(out, text_hidden)


def _siglip(vision: Config, config: Config, text_hidden: int) -> int:
    """Gemma 3: SigLIP, a norm and one matrix without bias."""
    hidden, width, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    positions = (vision["image_size"] // patch) ** 2
    embed = _linear(3 * patch**2, hidden) + positions * hidden
    layers = vision["num_hidden_layers"] * _encoder_layer(hidden, width)
    return embed + layers + 2 * hidden + hidden + hidden * text_hidden


def _gemma4(vision: Config, config: Config, text_hidden: int) -> int:
    """Gemma 4: gated layers with four norms and query and key norms, a table of positions per axis."""
    hidden, width, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    head = vision.get("head_dim", hidden // vision["num_attention_heads"])
    query = vision["num_attention_heads"] * head
    layer = 4 * hidden * query + 2 * head + 3 * hidden * width + 4 * hidden
    embed = 2 * vision["position_embedding_size"] * hidden + 3 * patch**2 * hidden
    return embed + vision["num_hidden_layers"] * layer + hidden * text_hidden


def _llama4(vision: Config, config: Config, text_hidden: int) -> int:
    """Llama 4: a ViT with a class token, a pixel-shuffle adapter and one matrix to the text."""
    hidden, width, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    positions = (vision["image_size"] // patch) ** 2 + 1
    embed = hidden + positions * hidden + 3 * patch**2 * hidden
    layers = vision["num_hidden_layers"] * _encoder_layer(hidden, width)
    inner = vision["projector_input_dim"]
    adapter = width * inner + inner * vision["projector_output_dim"]
    return embed + layers + 4 * hidden + adapter + vision["vision_output_dim"] * text_hidden


def _pixtral(vision: Config, config: Config, text_hidden: int) -> int:
    """Mistral 3: Pixtral's gated layers without bias, a patch merger and two matrices."""
    hidden, width, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    layer = 2 * hidden + 4 * hidden * hidden + 3 * hidden * width
    embed = 3 * patch**2 * hidden + hidden
    merge = config.get("spatial_merge_size", 2) ** 2 * hidden * hidden + hidden
    bias = 2 * text_hidden if config.get("multimodal_projector_bias") else 0
    return (
        embed
        + vision["num_hidden_layers"] * layer
        + merge
        + hidden * text_hidden
        + text_hidden * text_hidden
        + bias
    )


def _moonvit(vision: Config, config: Config, text_hidden: int) -> int:
    """Kimi-VL and Kimi K2.5: MoonViT with a grid of positions and a two-layer merger."""
    hidden = _first(vision, "vt_hidden_size", "hidden_size") or 0
    width = _first(vision, "vt_intermediate_size", "intermediate_size") or 0
    layers = _first(vision, "vt_num_hidden_layers", "num_hidden_layers") or 0
    grid = (vision.get("init_pos_emb_height") or 64) * (vision.get("init_pos_emb_width") or 64)
    embed = _linear(3 * (vision.get("patch_size") or 14) ** 2, hidden) + grid * hidden
    merged = 4 * hidden
    merger = 2 * hidden + _linear(merged, merged) + _linear(merged, text_hidden)
    return embed + layers * _encoder_layer(hidden, width) + 2 * hidden + merger


def _minimax3(vision: Config, config: Config, text_hidden: int) -> int:
    """MiniMax M3: CLIP layers without position table, two maps to the text and two to merge."""
    hidden, width, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    inner = config.get("projector_hidden_size", text_hidden)
    compression = vision.get("img_token_compression_config") or {}
    merge = compression.get("spatial_merge_size", 2) ** 2
    embed = 3 * compression.get("temporal_patch_size", 2) * patch**2 * hidden + 2 * hidden
    project = _linear(hidden, inner) + _linear(inner, text_hidden)
    merging = _linear(merge * text_hidden, inner) + _linear(inner, text_hidden)
    return embed + vision["num_hidden_layers"] * _encoder_layer(hidden, width) + project + merging


_TOWERS: Mapping[str, Callable[[Config, Config, int], int]] = {
    "Qwen3VL": _qwen3,
    "Qwen3VLMoe": _qwen3,
    "Qwen3_5": _qwen3,
    "Qwen3_5Moe": _qwen3,
    "Qwen2VL": _qwen2,
    "Qwen2_5_VL": _qwen2_5,
    "Mllama": _mllama,
    "Gemma3": _siglip,
    "Gemma4": _gemma4,
    "Llama4": _llama4,
    "Mistral3": _pixtral,
    "KimiVL": _moonvit,
    "KimiK25": _moonvit,
    "MiniMaxM3Sparse": _minimax3,
}
