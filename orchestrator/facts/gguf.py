"""Reads the header of a GGUF file: its metadata and tensor table, never a weight.

Format and block sizes: ggml-org/ggml docs/gguf.md and ggml-common.h.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from orchestrator.catalog.values import LayerKind, ModelFacts
from orchestrator.errors import ModelError
from orchestrator.frozen import frozen

_MAGIC = b"GGUF"
_MOST = 10_000_000  # entries of a table or an array; a damaged count must not fill the memory
_LONGEST = 64 * 2**20
_SCALARS = dict(enumerate(("<B", "<b", "<H", "<h", "<I", "<i", "<f", "<?"))) | {10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_BLOCKS: Mapping[int, tuple[str, int, int]] = {
    0: ("f32", 1, 4),
    1: ("f16", 1, 2),
    2: ("q4_0", 32, 18),
    3: ("q4_1", 32, 20),
    6: ("q5_0", 32, 22),
    7: ("q5_1", 32, 24),
    8: ("q8_0", 32, 34),
    9: ("q8_1", 32, 36),
    10: ("q2_k", 256, 84),
    11: ("q3_k", 256, 110),
    12: ("q4_k", 256, 144),
    13: ("q5_k", 256, 176),
    14: ("q6_k", 256, 210),
    15: ("q8_k", 256, 292),
    16: ("iq2_xxs", 256, 66),
    17: ("iq2_xs", 256, 74),
    18: ("iq3_xxs", 256, 98),
    19: ("iq1_s", 256, 50),
    20: ("iq4_nl", 32, 18),
    21: ("iq3_s", 256, 110),
    22: ("iq2_s", 256, 82),
    23: ("iq4_xs", 256, 136),
    24: ("i8", 1, 1),
    25: ("i16", 1, 2),
    26: ("i32", 1, 4),
    27: ("i64", 1, 8),
    28: ("f64", 1, 8),
    29: ("iq1_m", 256, 56),
    30: ("bf16", 1, 2),
    34: ("tq1_0", 256, 54),
    35: ("tq2_0", 256, 66),
    39: ("mxfp4", 32, 17),
}
"""Tensor types: name, elements in a block, bytes of a block."""
_KEY_TENSORS = {"attn_k.weight", "attn_qkv.weight", "attn_kv_a_mqa.weight"}
_MIXER_TENSORS = ("ssm_", "shortconv", "time_mix")


@frozen
class Gguf:
    """What a GGUF header says: ``metadata`` with lists as their lengths, and bytes by tensor."""

    metadata: Mapping[str, Any]
    elements: Mapping[str, int]
    bytes: Mapping[str, int]


def read_gguf(path: Path) -> Gguf:
    """Return the header of the file at ``path``.

    Raises:
        ModelError: it is no GGUF file, is cut off, or has a tensor type we do not know.
    """
    with path.open("rb") as file:
        reader = _Reader(file, path.name)
        if reader.take(4) != _MAGIC:
            raise ModelError(f"{path.name} is no GGUF file", fix="point at a .gguf file")
        version = reader.scalar("<I")
        if version not in (2, 3):
            raise ModelError(f"{path.name} is GGUF version {version}", fix="convert it to version 3")
        tensors, pairs = reader.count("<Q"), reader.count("<Q")
        metadata = dict(reader.pair() for _ in range(pairs))
        elements: dict[str, int] = {}
        sizes: dict[str, int] = {}
        for _ in range(tensors):
            name, count, size = reader.tensor()
            elements[name], sizes[name] = count, size
    return Gguf(metadata, elements, sizes)


def gguf_facts(path: Path, *, id: str = "") -> ModelFacts:
    """Return the facts of the GGUF model at ``path``, its bytes and parameters from the tensor table.

    Raises:
        ModelError: as ``read_gguf``, or the metadata lacks a size.
    """
    header = read_gguf(path)
    architecture = str(header.metadata.get("general.architecture") or "")
    keys = _Keys(header.metadata, architecture, path.name)
    parameters, weights = sum(header.elements.values()), sum(header.bytes.values())
    hidden, heads = keys.number("embedding_length"), keys.number("attention.head_count")
    head_dim = keys.number("attention.key_length", default=max(1, hidden // heads))
    layers = keys.number("block_count")
    rank = keys.optional("attention.kv_lora_rank")
    rope = keys.optional("rope.dimension_count") or 0
    window = keys.optional("attention.sliding_window")
    return ModelFacts(
        id=id or path.stem,
        architecture=architecture,
        layers=layers,
        hidden=hidden,
        intermediate=keys.number("feed_forward_length", default=4 * hidden),
        heads=heads,
        kv_heads=keys.number("attention.head_count_kv", default=heads),
        head_dim=head_dim,
        vocab=keys.optional("vocab_size") or _vocabulary(header, hidden, path.name),
        tied="output.weight" not in header.elements,
        context=keys.optional("context_length"),
        parameters=parameters,
        weights_bytes=weights,
        attention="mla" if rank else "mha",
        kv_lora_rank=rank,
        q_lora_rank=keys.optional("attention.q_lora_rank"),
        qk_rope_head_dim=rope if rank else None,
        qk_nope_head_dim=max(0, head_dim - rope) if rank else None,
        v_head_dim=keys.optional("attention.value_length"),
        experts=keys.optional("expert_count") or 0,
        experts_per_token=keys.optional("expert_used_count") or 0,
        expert_intermediate=keys.optional("expert_feed_forward_length") or 0,
        shared_experts=keys.optional("expert_shared_count") or 0,
        dense_layers=keys.optional("leading_dense_block_count") or 0,
        layer_kinds=_kinds(header, layers),
        sliding_window=window,
        quantization="gguf",
        quantization_bits=weights * 8 / parameters if parameters else None,
        source=f"GGUF header of {path.name}",
    )


def _vocabulary(header: Gguf, hidden: int, file: str) -> int:
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, int) and tokens > 0:
        return tokens
    table = header.elements.get("token_embd.weight", 0)
    if table >= hidden:
        return table // hidden
    raise ModelError(f"{file} has neither a vocabulary nor an embedding", fix="convert the model again")


def _kinds(header: Gguf, layers: int) -> tuple[LayerKind, ...]:
    """Return each layer's kind by the tensors it has: keys, a recurrent mixer, or neither."""
    kinds: list[LayerKind] = []
    for layer in range(layers):
        prefix = f"blk.{layer}."
        own = {name.removeprefix(prefix) for name in header.elements if name.startswith(prefix)}
        if own & _KEY_TENSORS:
            kinds.append("full")
        elif any(name.startswith(_MIXER_TENSORS) for name in own):
            kinds.append("linear")
        else:
            kinds.append("none")
    return () if set(kinds) <= {"full"} or set(kinds) == {"none"} else tuple(kinds)


@frozen
class _Keys:
    """A model's sizes in the metadata, under its architecture's prefix."""

    metadata: Mapping[str, Any]
    architecture: str
    file: str

    def optional(self, key: str) -> int | None:
        found = self.metadata.get(f"{self.architecture}.{key}")
        if isinstance(found, tuple):  # one number per layer: the largest
            found = max((value for value in found if isinstance(value, int)), default=None)
        return int(found) if isinstance(found, (int, float)) and found > 0 else None

    def number(self, key: str, *, default: int | None = None) -> int:
        found = self.optional(key) or default
        if found is None:
            raise ModelError(
                f"{self.file} lacks '{self.architecture}.{key}'",
                fix="convert the model with a current llama.cpp",
            )
        return found


class _Reader:
    """Takes values off a file and says where it was cut off."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._name = name

    def take(self, length: int) -> bytes:
        if length > _LONGEST:
            raise self._broken(f"claims a value of {length} bytes")
        raw = self._file.read(length)
        if len(raw) < length:
            raise self._broken("is cut off in its header")
        return raw

    def scalar(self, code: str) -> Any:
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def count(self, code: str) -> int:
        found = int(self.scalar(code))
        if found > _MOST:
            raise self._broken(f"claims {found} entries")
        return found

    def text(self) -> str:
        return self.take(int(self.scalar("<Q"))).decode("utf-8", "replace")

    def pair(self) -> tuple[str, Any]:
        return self.text(), self.value(int(self.scalar("<I")))

    def value(self, kind: int) -> Any:
        """Return a scalar or text; of numbers a tuple, of texts (the vocabulary) only how many."""
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            raise self._broken(f"has a value of unknown type {kind}")
        inner, length = int(self.scalar("<I")), self.count("<Q")
        if inner in _SCALARS:
            code = f"<{length}{_SCALARS[inner][1]}"
            return struct.unpack(code, self.take(struct.calcsize(code)))
        for _ in range(length):
            self.value(inner)
        return length

    def tensor(self) -> tuple[str, int, int]:
        """Return a tensor's name, elements and bytes."""
        name, dimensions = self.text(), int(self.scalar("<I"))
        if dimensions > 8:
            raise self._broken(f"has a tensor of {dimensions} dimensions")
        elements = prod(int(self.scalar("<Q")) for _ in range(dimensions))
        kind = int(self.scalar("<I"))
        self.scalar("<Q")  # the offset
        if kind not in _BLOCKS:
            raise self._broken(f"has a tensor of unknown type {kind}")
        _, block, size = _BLOCKS[kind]
        return name, elements, -(-elements // block) * size

    def _broken(self, why: str) -> ModelError:
        return ModelError(f"{self._name} {why}", fix="fetch the file again")
