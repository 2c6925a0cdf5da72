"""Read what an engine printed about its memory, so that it can override the formulas."""

from __future__ import annotations

import re

from orchestrator.planner.sizing.values import Measured
from orchestrator.units import GIB

_NUMBER = r"(-?\d+(?:\.\d+)?)"
_GIB = rf"{_NUMBER}\s*Gi?B"
_WEIGHTS = (
    rf"[Mm]odel loading took {_GIB}",
    rf"[Ll]oading model weights took {_GIB}",
    rf"model weights take {_GIB}",
    rf"weights memory: {_GIB}",
    rf"{_GIB} for weight\b",
    rf"Load weight end\..*?mem usage={_GIB}",
)
_ACTIVATIONS = (
    rf"PyTorch activation peak memory takes {_GIB}",
    rf"{_GIB} for peak activation",
    rf"torch peak memory increase:? {_GIB}",
)
_NON_TORCH = (
    rf"non_torch_memory takes {_GIB}",
    rf"{_GIB} for non-torch memory",
    rf"non-torch forward increase memory:? {_GIB}",
)
_GRAPHS = (
    rf"Graph capturing finished in .*?took {_GIB}",
    rf"{_GIB} for CUDAGraph memory",
    rf"Capture cuda graph end\..*?mem usage={_GIB}",
)
_POOL = (
    rf"Available KV cache memory: {_GIB}",
    rf"memory reserved for KV Cache is {_GIB}",
)
_SPLIT_POOL = rf"KV Cache is allocated\..*?K size: {_GIB}, V size: {_GIB}"
_TOKENS = (r"GPU KV cache size: ([\d,]+) tokens", r"max_total_num_tokens=(\d+)")
_BLOCKS = r"# (?:GPU|cuda) blocks: (\d+)"
_BLOCK_SIZE = r"block_size[=:]\s*(\d+)"
_VISIBLE = (rf"total_gpu_memory \({_NUMBER}\s*Gi?B\)", rf"on device \([\d.]+/{_NUMBER} GiB\)")


def from_log(text: str) -> Measured:
    """Return the memory figures found in an engine's log, the largest where ranks differ.

    vLLM (old and current) and SGLang are understood; both print GiB, SGLang under the name GB
    (it divides by 2^30). The KV cache is the exception: the smallest rank decides what is
    admitted.

    >>> from_log("INFO Model loading took 14.99 GiB and 3.2 seconds").weights_bytes == round(14.99 * 2**30)
    True
    """
    tokens = _find(text, _TOKENS)
    blocks = _find(text, (_BLOCKS,))
    if not tokens and blocks:
        size = _find(text, (_BLOCK_SIZE,)) or [16.0]
        tokens = [b * size[0] for b in blocks]
    pools = _find(text, _POOL)
    pools += [float(k) + float(v) for k, v in re.findall(_SPLIT_POOL, text)]
    return Measured(
        weights_bytes=_largest(text, _WEIGHTS),
        activations_bytes=_largest(text, _ACTIVATIONS),
        non_torch_bytes=_largest(text, _NON_TORCH),
        graphs_bytes=_largest(text, _GRAPHS),
        kv_cache_bytes=round(min(pools) * GIB) if pools else None,
        kv_cache_tokens=round(min(tokens)) if tokens else None,
        visible_bytes=_largest(text, _VISIBLE),
    )


def _find(text: str, patterns: tuple[str, ...]) -> list[float]:
    return [float(n.replace(",", "")) for p in patterns for n in re.findall(p, text)]


def _largest(text: str, patterns: tuple[str, ...]) -> int | None:
    found = _find(text, patterns)
    return round(max(found) * GIB) if found else None
