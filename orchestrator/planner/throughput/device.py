"""What an accelerator's data sheet gives a program: bandwidth, peaks and links, by format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from orchestrator.catalog.values import Accelerator
from orchestrator.planner.sizing.formats import weight_format as known_format

T = TypeVar("T")

SWITCHED_GBS = 200
"""Links from this sum of both directions on are NVLink, Infinity Fabric or alike between all; a
two-card bridge (112.5 GB/s on the A40) is below it."""

_MULTIPLIED_AS = {
    "fp8": "fp8",
    "fp8_block128": "fp8",
    "int8": "int8",
    "nvfp4": "fp4",
    "nvfp4_mixed": "fp4",
    "mxfp4": "fp4",
    "fp8_fp4": "fp4",
}


def by_architecture(accelerator: Accelerator, table: Mapping[str, T]) -> T:
    """Return the entry of ``table`` for the accelerator's architecture, else its ``other``.

    Blackwell without HBM (capability 11 and 12) lacks the tensor-memory instructions of the
    data-centre chips (NVIDIA CUDA C++ guide, family-specific features) and is ``Blackwell RTX``.
    """
    name = accelerator.architecture
    if name == "Blackwell" and accelerator.capability is not None and accelerator.capability[0] > 10:
        name = "Blackwell RTX"
    return table.get(name, table["other"])


def bandwidth(accelerator: Accelerator) -> float:
    """Return the memory bandwidth of ``accelerator`` in bytes a second.

    Raises:
        ValueError: the catalog has no figure.
    """
    if accelerator.bandwidth_gbs is None:
        raise ValueError(f"no memory bandwidth is known for {accelerator.name}")
    return accelerator.bandwidth_gbs * 1e9


def peak_flops(accelerator: Accelerator, number_format: str = "bf16") -> float:
    """Return the dense peak of ``accelerator`` in ``number_format``, in operations a second.

    Where no figure for 16 bits is known, 0.08 TFLOP/s per GB/s stands in: what GeForce 30 and 40
    have (RTX 3090 71.2 over 936, RTX 3090 Ti 80 over 1008).

    Raises:
        ValueError: neither a peak nor the bandwidth is known.
    """
    peaks = accelerator.tflops
    for name in (number_format, "bf16", "fp16"):
        if name in peaks:
            return peaks[name] * 1e12
    return 0.08e3 * bandwidth(accelerator)


def product_format(accelerator: Accelerator, weight_format: str) -> str:
    """Return the format in which weights of ``weight_format`` are multiplied on ``accelerator``.

    MXFP4 weights meet 8-bit activations where the device has FP4 (gpt-oss on Blackwell); formats
    the device lacks are widened to 16 bits on the way in.

    >>> from orchestrator.catalog import accelerator
    >>> [product_format(accelerator(name), "fp8") for name in ("A100", "H100")]
    ['bf16', 'fp8']
    """
    wanted = _MULTIPLIED_AS.get(known_format(weight_format).name)
    if wanted is None or wanted not in accelerator.tflops:
        return "bf16"
    return "fp8" if wanted == "fp4" and not weight_format.startswith("nv") else wanted


def is_widened(accelerator: Accelerator, weight_format: str) -> bool:
    """Return whether weights lie narrower in memory than they are multiplied."""
    return known_format(weight_format).bits < 16 and product_format(accelerator, weight_format) == "bf16"


def is_switched(accelerator: Accelerator) -> bool:
    """Return whether every accelerator of a machine reaches every other over its own links."""
    return (accelerator.link_gbs or 0.0) >= SWITCHED_GBS


def bus_share(accelerator: Accelerator) -> float:
    """Return the part of a PCIe 5.0 x16 bus that ``accelerator`` has: generation 4 before Hopper."""
    return 1.0 if accelerator.architecture in ("Hopper", "Blackwell", "CDNA4") else 0.5
