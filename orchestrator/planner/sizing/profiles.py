"""What each version of an engine does with device memory, as data with sources.

Every figure that was fitted rather than read names the command that fits it again:
``python -m tests.benchmarks.sizing_fit CSV``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from orchestrator.frozen import frozen
from orchestrator.units import GIB

Base = Literal["total", "static", "free", "none"]
"""What a memory fraction counts: ``total`` visible memory for everything but graphs outside,
``static`` visible memory for weights and KV cache only, ``free`` what is left when the weights
are loaded, ``none`` no pool is reserved."""


@frozen
class BatchTier:
    """Batch limits an engine sets on devices with at least ``from_bytes`` of memory."""

    from_bytes: int
    max_num_seqs: int
    max_num_batched_tokens: int


@frozen
class EngineProfile:
    """How one engine, from version ``since`` on, spends device memory.

    ``sampler_element_bytes`` is the peak per sequence and vocabulary entry when the engine
    samples its largest batch. ``non_torch_bytes`` is what the profiler finds outside torch:
    on one device, added for a tensor-parallel group, and for each doubling of it beyond two.
    ``stage_non_torch_bytes`` replaces the first on pipeline ranks. ``graphs`` says whether CUDA
    graphs are charged inside the budget. ``whole_prompt`` engines profile a prompt of the whole
    context; ``prompt_logits`` ones compute logits for every prompt token. ``unties`` names formats
    in which a head of its own is loaded although the config ties it to the embedding.
    """

    engine: str
    since: tuple[int, ...]
    base: Base
    memory_utilization: float
    margin: float
    source: str
    sampler_element_bytes: float = 0.0
    moe_workspace: bool = False
    non_torch_bytes: tuple[int, int, int] = (0, 0, 0)
    stage_non_torch_bytes: int | None = None
    graphs: Literal["inside", "outside", "none"] = "none"
    grouped_layers: bool = False
    whole_prompt: bool = False
    prompt_logits: bool = False
    prefill_activations: bool = True
    block_tokens: int = 16
    tiers: tuple[BatchTier, ...] = (BatchTier(0, 256, 2048),)
    unties: frozenset[str] = frozenset()
    slow_tier_names: tuple[str, ...] = ()
    """Accelerators that keep the lowest tier whatever their memory."""


_READ = "llm-d-planner PR #205, accuracy/results/v0.19.0, raw logs"
_VLLM_TIERS = (
    BatchTier(160 * GIB, 1024, 16384),
    BatchTier(70 * GIB, 1024, 8192),
    BatchTier(0, 256, 2048),
)


def _gib(*values: float) -> tuple[int, int, int]:
    one, group, doubling = (round(v * GIB) for v in values)
    return one, group, doubling


_EARLY = EngineProfile(
    engine="vllm",
    since=(0, 0),
    base="total",
    memory_utilization=0.90,
    margin=0.05,
    source="vLLM issue #10517 (the context sets the profiled prompt); log of 0.6 on an 80 GB card",
    sampler_element_bytes=38.4,
    non_torch_bytes=_gib(0.13, 0.42, 0.0),
    graphs="outside",
    whole_prompt=True,
)
_V011 = replace(
    _EARLY,
    since=(0, 10),
    source="llm-d-planner docs/empirical-vllm-memory-results.md (0.11, 0.15)",
    whole_prompt=False,
    grouped_layers=True,
    tiers=_VLLM_TIERS,
    slow_tier_names=("A100",),
)
_V017 = replace(
    _V011,
    since=(0, 17),
    source=_READ,
    sampler_element_bytes=14.8,
    moe_workspace=True,
    non_torch_bytes=_gib(0.13, 1.93, 0.07),
    stage_non_torch_bytes=round(0.07 * GIB),
)
_V018 = replace(_V017, since=(0, 18), non_torch_bytes=_gib(0.25, 1.82, 0.07))
_TRANSFORMERS = EngineProfile(
    engine="transformers",
    since=(0,),
    base="none",
    memory_utilization=1.0,
    margin=0.15,
    source="GLM-4 inference/README.md: memory grows with the prompt's logits",
    prompt_logits=True,
    tiers=(BatchTier(0, 1, 1),),
)
_T445 = replace(
    _TRANSFORMERS,
    since=(4, 45),
    source="Qwen2.5 speed_benchmark.rst: logits of the last token only (transformers PR #31292)",
    prompt_logits=False,
)

_PROFILES: tuple[EngineProfile, ...] = (
    _EARLY,
    replace(
        _EARLY,
        since=(0, 6, 5),
        source="vLLM PR #10511: context and NCCL counted as non-torch",
        non_torch_bytes=_gib(1.79, 1.79, 0.0),
    ),
    replace(
        _EARLY,
        since=(0, 7),
        source="vLLM PR #12569 (non-torch 0.25 GiB at tensor 2); 0.8.5 log on four 22 GB Turing cards",
        non_torch_bytes=_gib(0.13, 0.12, 0.0),
        whole_prompt=False,
    ),
    _V011,
    _V017,
    _V018,
    replace(
        _V018,
        since=(0, 20),
        source="vLLM 0.33 parser defaults; its 0.19 log announces graphs inside the budget; " + _READ,
        memory_utilization=0.92,
        graphs="inside",
    ),
    EngineProfile(
        engine="sglang",
        since=(0,),
        base="static",
        memory_utilization=0.0,
        margin=0.06,
        source="sglang PR #10975: server_args' reserve by chunk, graph batch and ranks",
        non_torch_bytes=_gib(0.5, 0.5, 0.0),
        graphs="outside",
        block_tokens=1,
        tiers=(
            BatchTier(160 * GIB, 512, 16384),
            BatchTier(60 * GIB, 256, 8192),
            BatchTier(35 * GIB, 80, 4096),
            BatchTier(20 * GIB, 24, 2048),
            BatchTier(0, 8, 2048),
        ),
    ),
    EngineProfile(
        engine="tgi",
        since=(0,),
        base="free",
        memory_utilization=0.90,
        margin=0.08,
        source="text-generation-inference models/globals.py: TGI_WIGGLE_ROOM, 0.90 of what is left",
        non_torch_bytes=_gib(0.5, 0.5, 0.0),
        graphs="outside",
        block_tokens=1,
        tiers=(BatchTier(0, 128, 4096),),
    ),
    _TRANSFORMERS,
    _T445,
    replace(
        _T445,
        since=(4, 51),
        source="Qwen3 speed_benchmark.md: the peak over a prompt of 30,720 tokens is weights and KV cache",
        prefill_activations=False,
        unties=frozenset({"fp8_block128"}),
    ),
    replace(_T445, since=(4, 52), source="as 4.45 to 4.50: the larger of the two behaviours measured"),
    replace(_T445, engine="litgpt", since=(0,), source="litgpt tutorials/resource-tables.md"),
)

CURRENT: Mapping[str, str] = {
    "vllm": "0.33",
    "sglang": "0.5.23",
    "tgi": "3.3.5",
    "nim": "0.33",
    "transformers": "5",
}
"""The version that is meant when none is named; NIM 3 wraps vLLM and counts by its version."""


def version_key(version: str) -> tuple[int, ...]:
    """Return the numbers of a version for comparison; text after them is dropped.

    >>> version_key("0.6.5-dev"), version_key("v0.19.0"), version_key("")
    ((0, 6, 5), (0, 19, 0), ())
    """
    found = re.match(r"v?(\d+(?:\.\d+)*)", version.strip())
    return tuple(int(n) for n in found[1].split(".")) if found else ()


def engine_profile(engine: str, version: str | None = None) -> EngineProfile:
    """Return the newest profile that holds for ``version`` (None: the current one).

    Raises:
        ValueError: the engine has no profile.

    >>> engine_profile("vllm", "0.19.0").since, engine_profile("vllm").memory_utilization
    ((0, 18), 0.92)
    """
    family = "vllm" if engine == "nim" else engine
    rows = [p for p in _PROFILES if p.engine == family]
    if not rows:
        known = sorted({p.engine for p in _PROFILES} | {"nim"})
        raise ValueError(f"unknown engine {engine!r}; known are {', '.join(known)}")
    key = version_key(CURRENT.get(engine, "999") if version is None else version)
    fitting = [p for p in rows if p.since <= key]
    return max(fitting or rows[:1], key=lambda p: p.since)
