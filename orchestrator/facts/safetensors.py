"""Reads the headers of safetensors files and their index: names, shapes and bytes, never a weight.

Format: eight bytes with the header's length, little-endian, then JSON (safetensors docs, "Format").
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from math import prod
from typing import Any, TypeAlias

from orchestrator.errors import ModelError
from orchestrator.frozen import frozen

_LENGTH_BYTES = 8
_LARGEST_HEADER = 100_000_000  # the limit of the reference implementation
_INDEX_BYTES = 256 * 2**20

_BITS = {
    8: "BOOL U8 I8 F8_E5M2 F8_E4M3 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ",
    16: "U16 I16 F16 BF16",
    32: "U32 I32 F32",
    64: "U64 I64 F64 C64",
    6: "F6_E2M3 F6_E3M2",
    4: "F4",
}
BITS = {dtype: bits for bits, dtypes in _BITS.items() for dtype in dtypes.split()}
"""Bits of an element by the name of its type (safetensors 0.7, ``Dtype``)."""

Read: TypeAlias = Callable[[int, int], bytes]
"""Returns ``length`` bytes from ``start``, fewer at the end: a file, or a range of a URL."""


@frozen
class Tensor:
    """One tensor as a header describes it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    size_bytes: int
    start: int
    """Where its bytes begin, counted from the end of the header."""

    @property
    def elements(self) -> int:
        """Return how many numbers it stores, packed ones counting as one."""
        return prod(self.shape)


def read_header(read: Read, name: str, *, file_bytes: int | None = None) -> tuple[Tensor, ...]:
    """Return the tensors of one file.

    Args:
        read: Gives bytes of the file.
        name: What to call it in an error.
        file_bytes: Its size where known; a whole file ends where its last tensor does.

    Raises:
        ModelError: the header is cut off, no JSON, or describes other bytes than the file holds.
    """
    prefix = read(0, _LENGTH_BYTES)
    if len(prefix) < _LENGTH_BYTES:
        raise _broken(name, f"it has {len(prefix)} bytes, too few for a header")
    length = int.from_bytes(prefix, "little")
    if length > _LARGEST_HEADER:
        raise _broken(name, f"its header claims {length} bytes: no safetensors file, or a damaged one")
    raw = read(_LENGTH_BYTES, length)
    if len(raw) < length:
        raise _broken(name, f"its header is cut off after {len(raw)} of {length} bytes")
    try:
        described = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _broken(name, "its header is no JSON") from error
    if not isinstance(described, Mapping):
        raise _broken(name, "its header is no mapping")
    tensors = tuple(_tensor(name, key, value) for key, value in described.items() if key != "__metadata__")
    end = _end(tensors, name)
    if file_bytes is not None and _LENGTH_BYTES + length + end != file_bytes:
        raise _broken(name, f"it holds {file_bytes} bytes of {_LENGTH_BYTES + length + end}")
    return tensors


def _end(tensors: Iterable[Tensor], name: str) -> int:
    """Return where the last tensor ends; each begins where the one before it ended."""
    end = 0
    for tensor in sorted(tensors, key=lambda tensor: (tensor.start, tensor.size_bytes)):
        if tensor.start != end:
            raise _broken(name, f"its tensors overlap or leave gaps at {tensor.name!r}")
        end += tensor.size_bytes
    return end


def read_index(raw: bytes, name: str) -> tuple[frozenset[str], int | None]:
    """Return the files that an index names, and the bytes of their tensors where it says so.

    Raises:
        ModelError: it is no index.
    """
    try:
        index = json.loads(raw[:_INDEX_BYTES])
    except (ValueError, RecursionError) as error:
        raise _broken(name, "it is no JSON") from error
    placed = index.get("weight_map") if isinstance(index, Mapping) else None
    if not isinstance(placed, Mapping) or not placed:
        raise _broken(name, "it has no 'weight_map'")
    files = frozenset(str(file) for file in placed.values())
    if any("/" in file or "\\" in file or file.startswith(".") for file in files):
        raise _broken(name, "it names files outside its folder")
    total = (index.get("metadata") or {}).get("total_size")
    return files, int(total) if isinstance(total, (int, float)) and total > 0 else None


def _tensor(file: str, name: str, described: Any) -> Tensor:
    try:
        start, end = (int(at) for at in described["data_offsets"])
        shape = tuple(int(size) for size in described["shape"])
        dtype = str(described["dtype"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _broken(file, f"tensor {name!r} has no shape, dtype or offsets") from error
    if end < start or start < 0 or any(size < 0 for size in shape):
        raise _broken(file, f"tensor {name!r} has negative sizes")
    if dtype in BITS and prod(shape) * BITS[dtype] != (end - start) * 8:
        raise _broken(file, f"tensor {name!r} of {list(shape)} in {dtype} does not take {end - start} bytes")
    return Tensor(name, shape, dtype, end - start, start)


def _broken(name: str, why: str) -> ModelError:
    return ModelError(f"{name} cannot be read: {why}", fix="fetch the file again")
