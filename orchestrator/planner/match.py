"""Reasons to refuse an offer, one function each.

A stage looks at an offer and a demand and says why they do not go together, or None. It
declares the fields of the offer that it reads, so that the index asks it once for every
combination that exists rather than once for every offer.
"""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.backend import Can, Offer
from orchestrator.frozen import frozen
from orchestrator.planner.demand import Demand
from orchestrator.units import GB, GIB, format_bytes

Refuse = Callable[[Offer, Demand], str | None]


@frozen
class Stage:
    """One reason to refuse, and the offer's fields it depends on.

    ``by_price`` stages refuse every offer from some price on.
    """

    reads: tuple[str, ...]
    refuse: Refuse
    by_price: bool = False


TOO_FULL = "too little disk for image and model"
OVER_PRICE = "over max_price"

STAGES: list[Stage] = []
"""Every stage, in the order they are asked; an offer falls at the first that refuses it."""


def _stage(*reads: str, by_price: bool = False) -> Callable[[Refuse], Refuse]:
    def register(refuse: Refuse) -> Refuse:
        STAGES.append(Stage(reads, refuse, by_price))
        return refuse

    return register


@_stage("backend")
def allowed(offer: Offer, demand: Demand) -> str | None:
    """Refuse a backend that the spec does not name."""
    return "not in backends" if demand.backends and offer.backend not in demand.backends else None


@_stage("backend")
def able(offer: Offer, demand: Demand) -> str | None:
    """Refuse a backend that cannot do what the job uses."""
    can = demand.places.get(offer.backend, frozenset())
    for need in demand.needs:
        if need not in can:
            return f"{offer.backend} cannot {need.value}, which {demand.needs[need]} needs"
    if demand.ordered and Can.GROUPS in can:  # its own controllers start them
        return f"{offer.backend} starts all nodes at once, and startup_order does not"
    return None


@_stage("region")
def region(offer: Offer, demand: Demand) -> str | None:
    """Refuse a region that the spec does not name."""
    return "not in regions" if demand.regions and offer.region not in demand.regions else None


@_stage("zone")
def zone(offer: Offer, demand: Demand) -> str | None:
    """Refuse a zone that the spec does not name."""
    return "not in availability_zones" if demand.zones and offer.zone not in demand.zones else None


@_stage("instance_type")
def instance_type(offer: Offer, demand: Demand) -> str | None:
    """Refuse an instance type that the spec does not name."""
    wanted = demand.instance_types
    return "not in instance_types" if wanted and offer.instance_type not in wanted else None


@_stage("fleet")
def fleet(offer: Offer, demand: Demand) -> str | None:
    """Refuse what is outside the fleets the spec names."""
    return "not in fleets" if demand.fleets and offer.fleet not in demand.fleets else None


@_stage("reservation")
def reservation(offer: Offer, demand: Demand) -> str | None:
    """Refuse what is outside the reservation the spec names, and what is kept for those who name it."""
    if offer.reservation == demand.reservation:
        return None
    return "reserved" if demand.reservation is None else "not in the reservation"


@_stage("spot")
def spot(offer: Offer, demand: Demand) -> str | None:
    """Refuse spot where on-demand is asked for, and the other way round."""
    if demand.spot == "auto" or offer.spot == (demand.spot == "spot"):
        return None
    return "spot" if offer.spot else "not spot"


@_stage("arch")
def architecture(offer: Offer, demand: Demand) -> str | None:
    """Refuse another processor architecture."""
    return f"not {demand.arch}" if demand.arch and offer.arch != demand.arch else None


@_stage("unfit", "vendor", "accelerator", "vram_bytes")
def unknown(offer: Offer, demand: Demand) -> str | None:
    """Refuse devices of which nobody knows what they are, with the reason: their other facts are none."""
    is_known = offer.accelerator is not None and offer.vram_bytes
    return offer.unfit or None if demand.accelerator and offer.vendor and not is_known else None


@_stage("vendor", "count")
def vendor(offer: Offer, demand: Demand) -> str | None:
    """Refuse offers without accelerators, or with those of another vendor."""
    if demand.accelerator is None:
        return None
    if not offer.vendor:
        return "no accelerator"
    wanted = demand.accelerator.vendors
    return f"not {' or '.join(sorted(wanted))}" if wanted and offer.vendor not in wanted else None


@_stage("accelerator")
def accelerator(offer: Offer, demand: Demand) -> str | None:
    """Refuse another model of accelerator than the spec names."""
    wanted = demand.accelerator.names if demand.accelerator else frozenset()
    return "another accelerator" if wanted and offer.accelerator not in wanted else None


@_stage("compute_capability")
def capability(offer: Offer, demand: Demand) -> str | None:
    """Refuse an older compute capability than asked for."""
    wanted = demand.accelerator.capability if demand.accelerator else None
    if wanted is None or (offer.compute_capability and offer.compute_capability >= wanted):
        return None
    return f"compute capability below {wanted[0]}.{wanted[1]}"


@_stage("vram_bytes")
def device_memory(offer: Offer, demand: Demand) -> str | None:
    """Refuse devices with too little memory, or with more than the user wants to pay for.

    Vendors sell binary gigabytes as ``GB``: an H100 of "80GB" shows 85.5·10⁹ bytes. The upper
    bound is therefore read as binary, so that ``24GB..80GB`` includes it.
    """
    if demand.accelerator is None:
        return None
    span = demand.accelerator.vram_bytes
    if span.low is not None and offer.vram_bytes < span.low:
        return "too little device memory"
    if span.high is not None and offer.vram_bytes > span.high * GIB / GB:
        return "more device memory than asked for"
    return None


@_stage("count", "divisible")
def count(offer: Offer, demand: Demand) -> str | None:
    """Refuse the wrong number of accelerators; a machine of one's own may have more than asked for."""
    if demand.accelerator is None:
        return None
    span = demand.accelerator.count
    if offer.count < max(1, span.low or 1):
        return "too few accelerators free" if offer.divisible else "too few accelerators"
    if not offer.divisible and not span.holds(offer.count):
        return "more accelerators than asked for"
    return None


@_stage("vram_bytes", "count", "divisible")
def total_device_memory(offer: Offer, demand: Demand) -> str | None:
    """Refuse when no count that is asked for has the memory, or not as many are free, or it has more."""
    if demand.accelerator is None:
        return None
    span, takes = demand.accelerator.total_vram_bytes, demand.takes(offer)
    total_bytes = offer.vram_bytes * takes
    if not demand.accelerator.count.holds(takes) or (span.low is not None and total_bytes < span.low):
        return "too little device memory in total"
    if takes > offer.count:
        return "too little device memory free in total"
    if span.high is not None and total_bytes > span.high * GIB / GB:
        return "more device memory in total than asked for"
    return None


@_stage("accelerator", "divisible", "kept")
def wasted(offer: Offer, demand: Demand) -> str | None:
    """Refuse to rent accelerators for a job that asks for none, and a machine that is kept for those."""
    if demand.accelerator is None and offer.accelerator and not offer.divisible:
        return "has accelerators that are not asked for"
    return "kept for what asks for its accelerators" if demand.accelerator is None and offer.kept else None


@_stage("cpu", "divisible")
def cpu(offer: Offer, demand: Demand) -> str | None:
    """Refuse the wrong number of processors."""
    if demand.cpu.low is not None and offer.cpu < demand.cpu.low:
        return "too few processors"
    if demand.cpu.high is not None and not offer.divisible and offer.cpu > demand.cpu.high:
        return "more processors than asked for"
    return None


@_stage("memory_bytes", "divisible")
def memory(offer: Offer, demand: Demand) -> str | None:
    """Refuse too little memory of the machine, or more than asked for."""
    span = demand.memory_bytes
    if span.low is not None and offer.memory_bytes < span.low:
        return "too little memory"
    if span.high is not None and not offer.divisible and offer.memory_bytes > span.high * GIB / GB:
        return "more memory than asked for"
    return None


@_stage("disk_bytes")
def disk(offer: Offer, demand: Demand) -> str | None:
    """Refuse a disk that is known to be too small."""
    low = demand.disk_bytes.low
    if low is not None and offer.disk_bytes is not None and offer.disk_bytes < low:
        return "too little disk"
    return None


@_stage("disk_bytes", "fetches", "system_bytes")
def fetched(offer: Offer, demand: Demand) -> str | None:
    """Refuse a disk that image and model would fill, where they are fetched anew for every start."""
    need = demand.fetched_bytes
    if not need or not offer.fetches or offer.disk_bytes is None:
        return None
    if offer.disk_bytes < need + offer.system_bytes:
        return f"{TOO_FULL} ({format_bytes(need)})"
    return None


@_stage("unfit")
def unfit(offer: Offer, demand: Demand) -> str | None:  # noqa: ARG001  # a stage's signature
    """Refuse a machine on which nothing may start now, with its owner's or the machine's own reason."""
    return offer.unfit or None


@_stage("available", "divisible")
def available(offer: Offer, demand: Demand) -> str | None:
    """Refuse what is sold out, or too few for all nodes."""
    if offer.available is not None and offer.available < (1 if offer.divisible else demand.nodes):
        return "no capacity now"
    return None


@_stage("nodes")
def joined(offer: Offer, demand: Demand) -> str | None:
    """Refuse machines that are one, such as those of a TPU slice, where another number is asked for."""
    if offer.nodes == 1 or demand.spans or offer.nodes == demand.nodes:
        return None
    return f"one of {offer.nodes} machines"


@_stage("price_list")
def unpriced(offer: Offer, demand: Demand) -> str | None:  # noqa: ARG001  # a stage's signature
    """Refuse to rent what nobody knows the price of."""
    return "price not known" if offer.price_list else None


@_stage("own_prices", "vram_bytes", "count", "divisible")
def own_price(offer: Offer, demand: Demand) -> str | None:
    """Refuse a machine of one's own whose share costs more than ``max_price``."""
    limit = demand.max_price_usd_hour
    if limit is None or not offer.own_usd_hour:
        return None
    return OVER_PRICE if demand.costs_usd_hour(offer) > limit else None


@_stage("price_usd_hour", by_price=True)
def price(offer: Offer, demand: Demand) -> str | None:
    """Refuse what costs more than ``max_price``. Last, so that its count is of offers that would do."""
    limit = demand.max_price_usd_hour
    costs = round(offer.price_usd_hour * demand.nodes, 6)  # as an offer's costs are told
    return OVER_PRICE if limit is not None and costs > limit else None
