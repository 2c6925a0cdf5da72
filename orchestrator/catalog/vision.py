"""Counts the vision tower and projector of a multimodal config, tower by tower."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from orchestrator.catalog.text import Text
from orchestrator.catalog.values import VisionFacts
from orchestrator.errors import ModelError
from orchestrator.frozen import frozen


@frozen
class _Tower:
    """A vision config, the whole config around it, and the width of the text it feeds."""

    vision: Text
    outer: Text
    text_hidden: int

    @property
    def hidden(self) -> int:
        return self.vision.number("embed_dim", "hidden_size", "vt_hidden_size")

    @property
    def layers(self) -> int:
        return self.vision.number("num_hidden_layers", "depth", "vt_num_hidden_layers")

    @property
    def heads(self) -> int:
        return self.vision.number(
            "num_attention_heads", "num_heads", "attention_heads", "vt_num_attention_heads", default=16
        )

    @property
    def width(self) -> int:
        ratio = self.vision.get("mlp_ratio") or 4
        return self.vision.number(
            "intermediate_size", "vt_intermediate_size", default=int(self.hidden * ratio)
        )

    @property
    def patch(self) -> int:
        return self.vision.number("patch_size", default=14)

    @property
    def image(self) -> int:
        return self.vision.number("image_size", default=224)

    @property
    def positions(self) -> int:
        return (self.image // self.patch) ** 2

    @property
    def patch_volume(self) -> int:
        """Values of one patch over colours and, in video towers, frames."""
        frames = self.vision.number("temporal_patch_size", default=2)
        return self.vision.number("in_channels", "in_chans", default=3) * frames * self.patch**2

    @property
    def merged(self) -> int:
        """Width of the patches that are merged into one token."""
        return self.hidden * self.vision.number("spatial_merge_size", default=2) ** 2


_Count: TypeAlias = Callable[[_Tower], int]


def read_vision(family: str, config: Mapping[str, Any], text_hidden: int) -> VisionFacts | None:
    """Return the vision tower of ``config``, its parameters with the projector to ``text_hidden``.

    A tower we do not know is counted as a plain ViT with two matrices to the text, and says so.
    None where the config has no tower, or leaves all its sizes to code.
    """
    vision = config.get("vision_config")
    if not isinstance(vision, Mapping) or not vision:
        return None
    tower = _Tower(Text(vision, vision), Text(config, config), text_hidden)
    try:
        facts = VisionFacts(tower.layers, tower.hidden, tower.width, tower.heads, tower.patch, tower.image)
        return _counted(facts, tower, _TOWERS.get(family))
    except ModelError:
        return None


def _counted(facts: VisionFacts, tower: _Tower, count: _Count | None) -> VisionFacts:
    """Return ``facts`` with the count; a plain tower's where ours is unknown or says too little."""
    if count is not None:
        try:
            return replace(facts, parameters=count(tower))
        except ModelError:
            pass  # its config leaves a size to its code
    return replace(facts, parameters=_plain(tower), estimated=True)


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def _encoder_layers(tower: _Tower) -> int:
    """Return plain ViT layers: two layer norms, four projections and two linear maps, all with bias."""
    hidden, width = tower.hidden, tower.width
    layer = 4 * hidden + 4 * _linear(hidden, hidden) + _linear(hidden, width) + _linear(width, hidden)
    return tower.layers * layer


def _plain(tower: _Tower) -> int:
    hidden, text = tower.hidden, tower.text_hidden
    embed = _linear(3 * tower.patch**2, hidden) + tower.positions * hidden
    return embed + _encoder_layers(tower) + _linear(hidden, text) + _linear(text, text)


def _qwen2(tower: _Tower) -> int:
    """Qwen2-VL: a ViT whose output size is called hidden_size."""
    out = tower.vision.number("hidden_size")
    merger = 2 * tower.hidden + _linear(tower.merged, tower.merged) + _linear(tower.merged, out)
    return tower.patch_volume * tower.hidden + _encoder_layers(tower) + merger


def _qwen2_5(tower: _Tower) -> int:
    """Qwen2.5-VL: RMS norms and a gated feed-forward with biases."""
    hidden, width = tower.hidden, tower.width
    layer = 2 * hidden + 4 * _linear(hidden, hidden) + 2 * _linear(hidden, width) + _linear(width, hidden)
    out = tower.vision.number("out_hidden_size", default=tower.text_hidden)
    merger = hidden + _linear(tower.merged, tower.merged) + _linear(tower.merged, out)
    return tower.patch_volume * hidden + tower.layers * layer + merger


def _qwen3(tower: _Tower) -> int:
    """Qwen3-VL and Qwen3.5: a ViT with learned positions, one merger and one per deepstack level."""
    hidden, merged = tower.hidden, tower.merged
    positions = tower.vision.number("num_position_embeddings")
    embed = _linear(tower.patch_volume, hidden) + positions * hidden
    out = tower.vision.number("out_hidden_size", default=tower.text_hidden)
    merger = _linear(merged, merged) + _linear(merged, out)
    deep = len(tower.vision.items("deepstack_visual_indexes"))
    return embed + _encoder_layers(tower) + 2 * hidden + merger + deep * (merger + 2 * merged)


def _siglip(tower: _Tower) -> int:
    """Gemma 3: SigLIP, a norm and one matrix without bias."""
    hidden = tower.hidden
    embed = _linear(3 * tower.patch**2, hidden) + tower.positions * hidden
    return embed + _encoder_layers(tower) + 3 * hidden + hidden * tower.text_hidden


def _gemma4(tower: _Tower) -> int:
    """Gemma 4: gated layers with four norms and query and key norms, a table of positions per axis."""
    hidden = tower.hidden
    head = tower.vision.number("head_dim", default=hidden // tower.heads)
    layer = 4 * hidden * tower.heads * head + 2 * head + 3 * hidden * tower.width + 4 * hidden
    embed = 2 * tower.vision.number("position_embedding_size") * hidden + 3 * tower.patch**2 * hidden
    return embed + tower.layers * layer + hidden * tower.text_hidden


def _llama4(tower: _Tower) -> int:
    """Llama 4: a ViT with a class token, a pixel-shuffle adapter and one matrix to the text."""
    hidden, vision = tower.hidden, tower.vision
    embed = hidden + (tower.positions + 1) * hidden + 3 * tower.patch**2 * hidden
    inner = vision.number("projector_input_dim")
    adapter = tower.width * inner + inner * vision.number("projector_output_dim")
    project = vision.number("vision_output_dim") * tower.text_hidden
    return embed + _encoder_layers(tower) + 4 * hidden + adapter + project


def _mllama(tower: _Tower) -> int:
    """Llama 3.2 Vision: two stacks of ViT layers and a table of positions for every way to tile."""
    hidden, width, vision = tower.hidden, tower.width, tower.vision
    tilings = len(vision.items("supported_aspect_ratios") or range(8)) + 1
    tiles = vision.number("max_num_tiles", default=4)
    table = (tower.positions + 1) * hidden * (1 + tilings * tiles) + 2 * tilings * tiles * hidden + 3
    layer = 4 * hidden + 4 * hidden * hidden + _linear(hidden, width) + _linear(width, hidden)
    last = vision.number("num_global_layers", default=8)
    layers = (tower.layers + last) * layer + 2 * last
    out = hidden * (1 + len(vision.items("intermediate_layers_indices") or range(5)))
    embed = hidden + 3 * tower.patch**2 * hidden + table + 4 * hidden
    return embed + layers + _linear(out, tower.text_hidden)


def _pixtral(tower: _Tower) -> int:
    """Mistral 3: Pixtral's gated layers without bias, a patch merger and two matrices."""
    hidden, text = tower.hidden, tower.text_hidden
    layer = 2 * hidden + 4 * hidden * hidden + 3 * hidden * tower.width
    embed = 3 * tower.patch**2 * hidden + hidden
    merge = tower.outer.number("spatial_merge_size", default=2) ** 2 * hidden * hidden + hidden
    bias = 2 * text if tower.outer.flag("multimodal_projector_bias") else 0
    return embed + tower.layers * layer + merge + hidden * text + text * text + bias


def _moonvit(tower: _Tower) -> int:
    """Kimi-VL and Kimi K2.5: MoonViT with a grid of positions and a two-layer merger."""
    hidden, vision = tower.hidden, tower.vision
    grid = vision.number("init_pos_emb_height", default=64) * vision.number("init_pos_emb_width", default=64)
    embed = _linear(3 * tower.patch**2, hidden) + grid * hidden
    merged = 4 * hidden
    merger = 2 * hidden + _linear(merged, merged) + _linear(merged, tower.text_hidden)
    return embed + _encoder_layers(tower) + 2 * hidden + merger


def _minimax3(tower: _Tower) -> int:
    """MiniMax M3: CLIP layers without position table, two maps to the text and two to merge."""
    hidden, text = tower.hidden, tower.text_hidden
    inner = tower.outer.number("projector_hidden_size", default=text)
    named = tower.vision.get("img_token_compression_config") or {}
    compression = Text(named, named)
    merge = compression.number("spatial_merge_size", default=2) ** 2
    embed = 3 * compression.number("temporal_patch_size", default=2) * tower.patch**2 * hidden + 2 * hidden
    project = _linear(hidden, inner) + _linear(inner, text)
    return embed + _encoder_layers(tower) + project + _linear(merge * text, inner) + _linear(inner, text)


_TOWERS: Mapping[str, _Count] = {
    "Gemma3": _siglip,
    "Gemma4": _gemma4,
    "KimiK25": _moonvit,
    "KimiVL": _moonvit,
    "Llama4": _llama4,
    "MiniMaxM3Sparse": _minimax3,
    "Mistral3": _pixtral,
    "Mllama": _mllama,
    "Qwen2VL": _qwen2,
    "Qwen2_5_VL": _qwen2_5,
    "Qwen3VL": _qwen3,
    "Qwen3VLMoe": _qwen3,
    "Qwen3_5": _qwen3,
    "Qwen3_5Moe": _qwen3,
}
