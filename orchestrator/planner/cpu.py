"""A machine without accelerators, as a sizing sees it: one device that is all of its memory."""

from __future__ import annotations

from orchestrator.catalog import Accelerator
from orchestrator.planner.groups import Groups
from orchestrator.planner.index import OfferSet
from orchestrator.units import GIB

CPU = "CPU"
ENGINES = frozenset({"transformers"})
"""Engines that serve from a CPU without being built for that one machine."""


def cpu_device(memory_bytes: int) -> Accelerator:
    """Return the device that stands for a machine with this much memory; its speed is not known.

    >>> cpu_device(16 * 2**30).name
    'CPU-16GiB'
    """
    return Accelerator(
        name=f"{CPU}-{memory_bytes / GIB:.4g}GiB",
        vendor="intel",
        architecture=CPU,
        nominal_gb=memory_bytes / 1e9,
        visible_bytes=memory_bytes,
        source="the memory that the machine says is free",
        native=frozenset({"fp32", "bf16", "fp16"}),
        max_per_node=1,
    )


def is_cpu(device: Accelerator) -> bool:
    """Return whether a device stands for a machine without accelerators."""
    return device.architecture == CPU


def cpu_groups(offers: OfferSet) -> dict[str, tuple[Accelerator, OfferSet]]:
    """Return offers without accelerators by the device that stands for them."""
    found: dict[str, tuple[Accelerator, OfferSet]] = {}
    for sample, these in offers.by("accelerator", "memory_bytes"):
        if sample.accelerator is None:
            device = cpu_device(sample.memory_bytes)
            known = found.get(device.name)
            found[device.name] = (device, known[1] | these if known else these)
    return found


def with_cpus(groups: Groups, offers: OfferSet) -> dict[str, Accelerator]:
    """Add machines without accelerators to the groups; return the devices that stand for them."""
    devices: dict[str, Accelerator] = {}
    for name, (device, found) in cpu_groups(offers).items():
        devices[name] = device
        groups.add(found, name, [1])
        groups.refused["no accelerator"] -= len(found)  # as which they were counted before
    return devices
