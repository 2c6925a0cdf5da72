"""Which accelerators a launch gets: of the kind asked for, free, and never one held by another."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from backends.machine import Device
from orchestrator.backend import Offer, Resources


def of_kind(devices: Sequence[Device], wanted: Resources) -> tuple[Device, ...]:
    """Return the devices that ``wanted`` may be given, free or not.

    An accelerator's name is compared as an offer of ours spells it. A name that no device here
    has, such as a catalog's, is no reason to refuse where there is only one kind to give.

    >>> gpu = Device(0, "GPU-a", "NVIDIA L4", 23034 * 2**20, "nvidia")
    >>> [d.uuid for d in of_kind([gpu], Resources(accelerator="L4-24GB", accelerators=1))]
    ['GPU-a']
    """
    vendor = [device for device in devices if wanted.vendor in (None, device.vendor)]
    named = [device for device in vendor if device.name == wanted.accelerator]
    if named or wanted.accelerator is None:
        return tuple(named or vendor)
    return tuple(vendor) if len({device.name for device in vendor}) == 1 else ()


def choose(devices: Sequence[Device], wanted: Resources, held: Collection[str]) -> tuple[Device, ...] | None:
    """Return ``wanted.accelerators`` free devices of one name, or None when there are too few.

    Lowest numbers first: on machines with fast links between some of the devices, neighbours
    have them.
    """
    free = [device for device in of_kind(devices, wanted) if device.key not in held]
    for name in dict.fromkeys(device.name for device in free):
        alike = tuple(device for device in free if device.name == name)
        if len(alike) >= wanted.accelerators:
            return alike[: wanted.accelerators]
    return None


def offer_of(whole: Offer, kind: Sequence[Device], held: Collection[str]) -> Offer:
    """Return the machine's offer with the free ones of a kind; a kind all held is offered 0 times."""
    first = kind[0]
    return replace(
        whole,
        accelerator=first.name,
        vendor=first.vendor,
        count=sum(device.key not in held for device in kind),
        vram_bytes=first.vram_bytes,
        compute_capability=first.compute_capability,
    )
