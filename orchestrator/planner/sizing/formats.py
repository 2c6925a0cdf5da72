"""How many bits a weight takes in each format, and which weights the format touches."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Literal

from orchestrator.frozen import frozen

Scope = Literal["all", "linear", "experts"]
"""Which weights are stored in the format; the rest stay in 16 bits.

``all``: everything. ``linear``: the layers' matrices, not embeddings, head, norms or vision
tower. ``experts``: routed experts only.
"""


@frozen
class WeightFormat:
    """A way to store weights: ``bits`` per touched weight with its scales and zeros included.

    ``moe_scope`` replaces ``scope`` for mixtures of experts, where published checkpoints touch
    less. ``pad_experts`` is the multiple to which kernels pad each expert's inner dimension when
    it is loaded.
    """

    name: str
    bits: float
    scope: Scope
    source: str
    rest_bits: float = 16.0
    moe_scope: Scope | None = None
    pad_experts: int = 1

    def scope_for(self, *, experts: bool) -> Scope:
        """Return the scope that holds for a model with or without experts.

        >>> FORMATS["gptq"].scope_for(experts=True)
        'experts'
        """
        return self.moe_scope if experts and self.moe_scope is not None else self.scope


def _grouped(bits: int, group: int, *, zeros: bool) -> float:
    return bits + 16 / group + (bits / group if zeros else 0)


_FORMATS = (
    WeightFormat("fp32", 32, "all", "IEEE 754", rest_bits=32),
    WeightFormat("bf16", 16, "all", "IEEE 754 truncated to 16 bits"),
    WeightFormat("fp16", 16, "all", "IEEE 754"),
    WeightFormat("fp8", 8, "linear", "vLLM docs, quantization/fp8: one scale per tensor or channel"),
    WeightFormat("fp8_block128", 8 + 32 / 128**2, "linear", "DeepSeek-V3 README: one fp32 scale per 128x128"),
    WeightFormat("int8", 8, "linear", "vLLM docs, quantization/int8: W8A8, one scale per channel"),
    WeightFormat(
        "awq",
        _grouped(4, 128, zeros=True),
        "linear",
        "AutoAWQ README: 4 bits, group 128",
        moe_scope="experts",
    ),
    WeightFormat(
        "gptq",
        _grouped(4, 128, zeros=True),
        "linear",
        "GPTQModel README: 4 bits, group 128",
        moe_scope="experts",
    ),
    WeightFormat(
        "gptq_int8", _grouped(8, 128, zeros=True), "linear", "GPTQModel README: 8 bits", moe_scope="experts"
    ),
    WeightFormat(
        "int4",
        _grouped(4, 128, zeros=True),
        "linear",
        "vLLM docs, quantization/int4: W4A16, group 128",
        moe_scope="experts",
    ),
    WeightFormat("nf4", 4.5, "linear", "QLoRA, arXiv 2305.14314: 4 bits, fp32 scale per 64"),
    WeightFormat("nf4-dq", 4.127, "linear", "QLoRA, arXiv 2305.14314: scales quantised again, 0.127 bits"),
    WeightFormat(
        "mxfp4",
        4.25,
        "experts",
        "OCP Microscaling 1.0: 4 bits, 8-bit scale per 32; gpt-oss README",
        pad_experts=256,
    ),
    WeightFormat("nvfp4", 4.5, "linear", "NVIDIA Model-Optimizer README: 4 bits, fp8 scale per 16"),
    WeightFormat(
        "nvfp4_mixed", 4.5, "experts", "NVIDIA Model-Optimizer README: 4-bit experts, the rest 16 bits"
    ),
    WeightFormat(
        "fp8_fp4", 4.25, "experts", "DeepSeek-V4 config.json: fp4 experts, fp8 elsewhere", rest_bits=8.0
    ),
    WeightFormat("gguf_q8_0", 8.5, "all", "llama.cpp ggml-common.h: 32 weights and a 16-bit scale"),
    WeightFormat("gguf_q6_k", 6.5625, "all", "llama.cpp ggml-common.h: 210 bytes per 256"),
    WeightFormat("gguf_q5_k_m", 5.7, "all", "gguf-parser-go README: bits per weight"),
    WeightFormat("gguf_q4_k_m", 4.9, "all", "gguf-parser-go README: 4.8 to 5.2 bits per weight"),
)

FORMATS: Mapping[str, WeightFormat] = {fmt.name: fmt for fmt in _FORMATS}
"""Every format the sizing knows, by its name."""

_SPELLINGS = {
    "float32": "fp32",
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "auto": "bf16",
    "16bit": "bf16",
    "fbgemm_fp8": "fp8",
    "modelopt": "fp8",
    "modelopt_fp8": "fp8",
    "fp8_runtime": "fp8",
    "fp8_e4m3": "fp8",
    "w8a8": "int8",
    "w8a8_int8": "int8",
    "experts_int8": "int8",
    "awq_marlin": "awq",
    "awq_int4": "awq",
    "awq_int4_g128": "awq",
    "gptq_marlin": "gptq",
    "gptq_int4": "gptq",
    "gptq_int4_g128": "gptq",
    "gptq_int8_g128": "gptq_int8",
    "w4a16": "int4",
    "bitsandbytes": "nf4",
    "bnb": "nf4",
    "bitsandbytes-nf4": "nf4",
    "modelopt_fp4": "nvfp4",
    "compressed-tensors": "int4",
    "auto-round": "gptq",
    "intel/auto-round": "gptq",
    "gptqmodel": "gptq",
    "marlin": "gptq",
    "hqq": "int4",
    "eetq": "int8",
    "torchao": "int8",
    "quark": "fp8",
    "fp4": "nvfp4",
    "gguf": "gguf_q4_k_m",
}


@lru_cache(maxsize=256)
def weight_format(name: str) -> WeightFormat:
    """Return the format that ``name`` means, in any spelling engines and configs use.

    Raises:
        ValueError: no format has that name.

    >>> weight_format("w8a8_int8").name, weight_format("awq").bits
    ('int8', 4.15625)
    >>> weight_format("exl2-2.5bpw").bits
    2.5
    """
    key = name.lower()
    if exl2 := re.fullmatch(r"exl2-(\d+(?:\.\d+)?)bpw", key):
        # ExLlamaV2 README: the average bits per weight are chosen freely, scales included
        return WeightFormat(key, float(exl2[1]), "linear", "ExLlamaV2 README: bits per weight")
    found = FORMATS.get(_SPELLINGS.get(key, key))
    if found is None:
        raise ValueError(f"unknown weight format {name!r}; known are {', '.join(sorted(FORMATS))}")
    return found


def known_formats() -> tuple[str, ...]:
    """Return every name that means a format, whoever uses it."""
    return tuple(sorted({*FORMATS, *_SPELLINGS}))


def is_known(name: str) -> bool:
    """Return whether ``name`` means a format here.

    >>> is_known("awq"), is_known("vptq")
    (True, False)
    """
    try:
        weight_format(name)
    except ValueError:
        return False
    return True


KV_ELEMENT_BYTES: Mapping[str, float] = {
    "16bit": 2,
    "auto": 2,
    "bf16": 2,
    "bfloat16": 2,
    "fp16": 2,
    "float16": 2,
    "fp32": 4,
    "fp8": 1,
    "fp8_e4m3": 1,
    "fp8_e5m2": 1,
    "int8": 1,
}
"""Bytes of one element of the KV cache, by the names engines use."""
