"""A world without a record and without places: every kind of machine that the catalog knows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from orchestrator.apply.plans import World
from orchestrator.backend import Can, Offer
from orchestrator.catalog.hardware import accelerators, candidates, tpu_slice
from orchestrator.catalog.pricing import prices
from orchestrator.catalog.values import Accelerator
from orchestrator.planner.mirrors import NO_MIRRORS, Mirrors
from orchestrator.spec.load import Document
from orchestrator.spec.models import DevEnvironment, Model, Service, Task, Volume
from orchestrator.units import GIB

if TYPE_CHECKING:
    from orchestrator.catalog import ModelFacts

_COUNTS = (1, 2, 4, 8)
_CHIPS = 4
UNPRICED_USD_HOUR = 1000.0
"""An hour of an accelerator that the catalog has no price of: dearer than any it has, so that one
that can be had is preferred."""
_MACHINE = partial(Offer, cpu=256, memory_bytes=2048 * GIB, disk_bytes=65_536 * GIB, divisible=True)
"""As large as machines are, for nobody knows what the real one has."""
_NO_WISHES = {
    **dict.fromkeys(("backends", "regions", "availability_zones", "instance_types", "fleets"), ()),
    **dict.fromkeys(("reservation", "max_price")),
    "spot_policy": "auto",
}


def imagined_world(
    place: str,
    can: Collection[Can],
    *,
    vendor: str,
    facts: Callable[[Model], ModelFacts],
    mirrors: Mirrors = NO_MIRRORS,
) -> World:
    """Return a world whose one place has a machine of every kind, at the catalog's lowest price.

    A plan against it says what a spec needs, whoever plans it and wherever: the same documents
    and the same catalog give the same plan.

    Args:
        place: The name of the place.
        can: What it is able to do.
        vendor: Whose accelerators there are; one machine has those of one vendor.
        facts: What a model is.
        mirrors: Where images and models are had from.
    """
    return World(
        runs={},
        volumes={},
        places={place: frozenset(can)},
        offers=lambda: _offers(place, vendor),
        names=lambda name: [device.name for device in candidates(name)],
        facts=facts,
        mirrors=mirrors,
    )


def anywhere(document: Document) -> Document:
    """Return a document without its wishes for a place, which say nothing where there is only one."""
    spec = document.spec
    if isinstance(spec, Task | Service | DevEnvironment):
        return replace(document, spec=spec.model_copy(update=_NO_WISHES))
    return (
        replace(document, spec=spec.model_copy(update={"backend": None}))
        if isinstance(spec, Volume)
        else document
    )


def vendor_of(document: Document) -> str:
    """Return whose accelerators a document asks for: the one it names, a slice of a TPU too, or NVIDIA."""
    gpu = getattr(getattr(document.spec, "resources", None), "gpu", None)
    if gpu is None:
        return "nvidia"
    names = ((tpu_slice(name) or (name,))[0] for name in gpu.name)
    named = (device.vendor for name in names for device in candidates(name))
    return gpu.vendor or next(named, "nvidia")


def _offers(place: str, vendor: str) -> Sequence[Offer]:
    lowest = _lowest_prices()
    found = [_MACHINE(place, "machine")]
    for device in accelerators().values():
        if device.vendor == vendor and device.parent is None:
            usd = lowest.get(device.name, UNPRICED_USD_HOUR)
            counts = (count for count in _COUNTS if count <= device.max_per_node)
            found += [_offer(place, device, count, usd) for count in counts]
            found += _slices(place, device, usd)
    return found


def _slices(place: str, device: Accelerator, usd_hour: float) -> Iterator[Offer]:
    """Yield the slices of several machines, of four chips each (GKE docs, "About TPUs in GKE")."""
    for chips in device.topologies:
        if chips > device.max_per_node:
            nodes = chips // _CHIPS
            one = _offer(place, device, _CHIPS, usd_hour)
            kind = f"{chips}x-{device.name}"
            yield replace(one, instance_type=kind, divisible=False, nodes=nodes, available=nodes)


def _lowest_prices() -> dict[str, float]:
    """Return the lowest price of one of each accelerator, in dollars an hour."""
    lowest: dict[str, float] = {}
    for row in prices():
        if row.accelerator and row.count and row.on_demand_usd_hour:
            usd = row.on_demand_usd_hour / row.count
            lowest[row.accelerator] = min(usd, lowest.get(row.accelerator, usd))
    return lowest


def _offer(place: str, device: Accelerator, count: int, usd_hour: float) -> Offer:
    return _MACHINE(
        place,
        f"{count}x-{device.name}",
        accelerator=device.name,
        vendor=device.vendor,
        count=count,
        vram_bytes=device.visible_bytes,
        compute_capability=device.capability,
        price_usd_hour=count * usd_hour,
    )
