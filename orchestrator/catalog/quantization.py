"""Reads how published weights were quantized, from a config's ``quantization_config``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.errors import ModelError
from orchestrator.frozen import frozen

METHODS = (
    "auto-round", "awq", "awq_marlin", "bitsandbytes", "bnb", "compressed-tensors", "eetq", "exl2",
    "experts_int8", "fbgemm_fp8", "fp4", "fp8", "gptq", "gptq_marlin", "gptqmodel", "hqq", "int4", "int8",
    "intel/auto-round", "marlin", "modelopt", "modelopt_fp4", "modelopt_fp8", "mxfp4", "nvfp4", "quark",
    "torchao", "w4a16", "w8a8", "w8a8_int8",
)  # fmt: skip
"""What a ``quant_method`` may be: the methods whose bytes per weight are known here."""

# Bits per weight with its scales and zero points where the format fixes the group size:
# MXFP4 has one 8-bit scale per 32 weights, NVFP4 one per 16 (OCI MX v1.0; NVIDIA NVFP4 blog),
# bitsandbytes' NF4 a 32-bit scale per 64, itself quantized to 8 bits with double quantization.
_MXFP4_BITS = 4.25
_NVFP4_BITS = 4.5
_NF4_BITS = 4.5
_NF4_DOUBLE_BITS = 4.127


@frozen
class Quantization:
    """How weights were made: ``bits`` per weight with scales, None where the config does not say."""

    method: str
    bits: float | None = None
    group: int | None = None
    skips: tuple[str, ...] = ()
    """Module name patterns that stay 16-bit."""
    floats: bool = False
    """Whether the numbers are floating-point ones."""

    @property
    def precision(self) -> str | None:
        """Return the number format, such as ``int4`` or ``fp8``; None where it is not said.

        >>> Quantization("awq", 4.15625, 128).precision, Quantization("fp8", 8.0, floats=True).precision
        ('int4', 'fp8')
        """
        if self.bits is None:
            return None
        return f"{'fp' if self.floats else 'int'}{4 if self.bits < 6 else 8}"


def read_quantization(config: Mapping[str, Any]) -> Quantization | None:
    """Return the quantization of a ``config.json``, or None for plain weights.

    Raises:
        ModelError: it names no method, or one whose bytes per weight nobody here knows.

    >>> read_quantization({"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128}})
    Quantization(method='awq', bits=4.15625, group=128, skips=(), floats=False)
    """
    found = config.get("quantization_config") or _nested(config)
    if not isinstance(found, Mapping) or not found:
        return None
    method = _method(found)
    skips = tuple(
        str(name)
        for key in (
            "modules_to_not_convert",
            "ignored_layers",
            "ignore",
            "exclude_modules",
            "llm_int8_skip_modules",
        )
        for name in (found.get(key) or ())
    )
    if method == "compressed-tensors":
        return _compressed(found, skips)
    if method == "modelopt":
        return _modelopt(found, skips)
    if method in ("awq", "gptq", "auto-round", "gptqmodel", "intel/auto-round"):
        return _grouped(method, found, skips)
    if method in ("bitsandbytes", "bnb"):
        return _bitsandbytes(found, skips)
    if method == "mxfp4":
        return Quantization("mxfp4", _MXFP4_BITS, 32, skips, floats=True)
    if method in ("fp8", "fbgemm_fp8"):
        block = found.get("weight_block_size")
        return Quantization("fp8", 8.0, int(block[0]) if block else None, skips, floats=True)
    bits = found.get("bits")
    return Quantization(method, float(bits) if bits else None, None, skips)


def _method(found: Mapping[str, Any]) -> str:
    """Return the method's name; bits alone do not say what else is stored, nor who can read it."""
    said = found.get("quant_method") or found.get("quant_algo")
    method = str(said or "").lower()
    if method in METHODS:
        return method
    raise ModelError(
        f"the config's quantization {method!r} is not known"
        if said
        else "the config's quantization has no 'quant_method'",
        fix=f"use weights in one of {', '.join(METHODS)}, or plain ones",
    )


def _nested(config: Mapping[str, Any]) -> Any:
    text = config.get("text_config")
    return text.get("quantization_config") if isinstance(text, Mapping) else None


def _grouped(method: str, found: Mapping[str, Any], skips: tuple[str, ...]) -> Quantization:
    """Return AWQ's and GPTQ's: a 16-bit scale and a zero point of the weight's width per group."""
    bits = int(found.get("bits") or found.get("w_bit") or 4)
    group = int(found.get("group_size") or found.get("q_group_size") or 128)
    extra = (16 + bits) / group if group > 0 else 0.0  # -1 is one group per row: nothing
    return Quantization(method, bits + extra, group if group > 0 else None, skips)


def _bitsandbytes(found: Mapping[str, Any], skips: tuple[str, ...]) -> Quantization:
    if not (found.get("load_in_4bit") or found.get("_load_in_4bit")):
        return Quantization("bitsandbytes", 8.0, None, skips)
    double = bool(found.get("bnb_4bit_use_double_quant"))
    return Quantization("bitsandbytes", _NF4_DOUBLE_BITS if double else _NF4_BITS, 64, skips, floats=True)


def _compressed(found: Mapping[str, Any], skips: tuple[str, ...]) -> Quantization:
    """Return compressed-tensors': the widest group decides, one scheme is the rule."""
    weights = [
        group["weights"]
        for group in (found.get("config_groups") or {}).values()
        if isinstance(group, Mapping) and isinstance(group.get("weights"), Mapping)
    ]
    if not weights:
        return Quantization("compressed-tensors", None, None, skips)
    first = max(weights, key=lambda scheme: int(scheme.get("num_bits") or 16))
    bits, group = int(first.get("num_bits") or 16), first.get("group_size")
    if bits == 4 and first.get("type") == "float" and group == 16:
        return Quantization("nvfp4", _NVFP4_BITS, 16, skips, floats=True)
    scale = 16 / group if group and group > 0 else 0.0
    return Quantization(
        "compressed-tensors",
        bits + scale,
        group if group and group > 0 else None,
        skips,
        floats=first.get("type") == "float",
    )


def _modelopt(found: Mapping[str, Any], skips: tuple[str, ...]) -> Quantization:
    algorithm = str(found.get("quant_algo") or "").upper()
    if "MIXED" in algorithm:
        return Quantization("modelopt", None, None, skips)
    if "NVFP4" in algorithm or (not algorithm and "FP4" in str(found).upper()):
        return Quantization("nvfp4", _NVFP4_BITS, int(found.get("group_size") or 16), skips, floats=True)
    if algorithm.startswith("FP8"):  # W4A8_MXFP4_FP8 computes in fp8 and stores 4 bits
        return Quantization("fp8", 8.0, None, skips, floats=True)
    raise ModelError(
        f"the config's quantization 'modelopt' has a 'quant_algo' that is not known, {algorithm!r}"
        if algorithm
        else "the config's quantization 'modelopt' has no 'quant_algo'",
        fix="use weights in FP8 or NVFP4, or plain ones",
    )
