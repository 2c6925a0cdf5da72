"""Makes tiny models on disk: a config, safetensors headers and GGUF files, byte by byte."""

from __future__ import annotations

import json
import struct
from math import prod
from typing import Any

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 2048,
    "torch_dtype": "bfloat16",
}


def safetensors(shapes: dict[str, tuple[int, ...]], *, dtype: str = "BF16") -> bytes:
    """Return a safetensors file with zeros of 16 bits."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        size = 2 * prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    raw = json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + bytes(end)


def index(files: dict[str, str], total: int | None = None) -> bytes:
    """Return an index that places tensors in files."""
    metadata = {} if total is None else {"total_size": total}
    return json.dumps({"metadata": metadata, "weight_map": files}).encode()


def llama_shapes(layers: int = 2) -> dict[str, tuple[int, ...]]:
    """Return the shapes of every tensor of the model that ``CONFIG`` describes."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (512, 64), "lm_head.weight": (512, 64)}
    for layer in range(layers):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.self_attn.{name}_proj.weight": (64, 64) for name in ("q", "o")}
        shapes |= {f"{at}.self_attn.{name}_proj.weight": (32, 64) for name in ("k", "v")}
        shapes |= {f"{at}.mlp.{name}_proj.weight": (128, 64) for name in ("gate", "up")}
        shapes[f"{at}.mlp.down_proj.weight"] = (64, 128)
        shapes |= {f"{at}.{name}_layernorm.weight": (64,) for name in ("input", "post_attention")}
    return {**shapes, "model.norm.weight": (64,)}


def novel_shapes(layers: int = 3) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a model nobody has described: two attention layers and a recurrent one."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (512, 64), "lm_head.weight": (512, 64)}
    for layer in range(layers):
        mixer = "state_proj" if layer == 1 else "self_attn.k_proj"
        shapes[f"model.layers.{layer}.{mixer}.weight"] = (32, 64)
        shapes[f"model.layers.{layer}.mlp.weight"] = (128, 64)
    return shapes


def gguf(
    metadata: dict[str, Any], tensors: dict[str, tuple[tuple[int, ...], int]], *, version: int = 3
) -> bytes:
    """Return the header of a GGUF file; ``tensors`` maps names to shape and type number."""
    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    for key, value in metadata.items():
        out += _text(key) + _value(value)
    for name, (shape, kind) in tensors.items():
        out += _text(name) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", n) for n in shape)
        out += struct.pack("<IQ", kind, 0)
    return out


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if all(isinstance(one, str) for one in value):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(_text(one) for one in value)
    return struct.pack("<IIQ", 9, 5, len(value)) + b"".join(struct.pack("<i", one) for one in value)


LLAMA_METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.embedding_length": 256,
    "llama.feed_forward_length": 512,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.context_length": 4096,
    "tokenizer.ggml.tokens": ["a", "b", "c", "d"],
}
LLAMA_TENSORS: dict[str, tuple[tuple[int, ...], int]] = {
    "token_embd.weight": ((256, 4), 1),
    "blk.0.attn_k.weight": ((256, 128), 12),
    "blk.1.attn_k.weight": ((256, 128), 14),
}
