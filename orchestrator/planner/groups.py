"""Offers that fit, grouped by what a sizing can tell apart: the accelerator, and how many of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from orchestrator.backend import Can, Offer
from orchestrator.catalog import Accelerator
from orchestrator.errors import Refusal, WhyNot
from orchestrator.planner.demand import AcceleratorDemand, Demand, Span
from orchestrator.planner.index import Matched, OfferSet
from orchestrator.planner.why import Fallen


@dataclass
class Groups:
    """Offers by accelerator and how many of it one machine gives to the job."""

    offers: dict[tuple[str, int], OfferSet] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    declined: Counter[str] = field(default_factory=Counter)
    """What engines said of sets that would hold the model."""
    fallen: list[Fallen] = field(default_factory=list)
    slices: set[tuple[str, int, int]] = field(default_factory=set)
    """Machines that are one: accelerator, nodes and count of each node."""
    dear: list[WhyNot] = field(default_factory=list)
    """Sets that would hold the model, and together cost more than ``max_price``."""

    def add(self, offers: OfferSet, accelerator: str, counts: Sequence[int]) -> None:
        """Put offers of one accelerator into the groups of these counts."""
        for count in counts:
            known = self.offers.get((accelerator, count))
            self.offers[accelerator, count] = known | offers if known else offers


UNASKED = "has accelerators, and gpu: 0 asks for none"


def any_of(wanted: AcceleratorDemand | None) -> AcceleratorDemand:
    """Return the demand for accelerators that leaves their number and memory to the sizing."""
    if wanted is None:
        return AcceleratorDemand(count=Span(1), as_written="any that hold the model")
    return replace(wanted, count=Span(1), total_vram_bytes=Span())


def group(
    offers: OfferSet, demand: Demand, accelerators: Mapping[str, Accelerator], *, only_cpu: bool = False
) -> Groups:
    """Return offers by accelerator and count, and count what the catalog does not know, or nobody wants."""
    groups = Groups()
    if only_cpu:
        groups.refused[UNASKED] += len(offers)
        return groups
    for sample, found in offers.by("accelerator", "count", "divisible", "nodes", "vram_bytes"):
        if sample.accelerator not in accelerators:
            groups.refused["not in the catalog"] += len(found)
            continue
        asked = counts_of(sample, demand.accelerator)
        counts = [n for n in asked if _has_total(sample, n, demand.accelerator)]
        if not counts:
            what = "total of device memory" if asked else "count"
            groups.refused[f"another {what} than asked for"] += len(found)
        groups.add(found, sample.accelerator or "", counts)
        if sample.nodes > 1:
            groups.slices |= {(sample.accelerator or "", sample.nodes, count) for count in counts}
    return groups


def counts_of(offer: Offer, wanted: AcceleratorDemand | None) -> list[int]:
    """Return how many accelerators of ``offer`` one replica may take on one machine.

    Machines that are one are taken whole, and what is asked for is what they have together.
    """
    possible = [n for n in (1, 2, 4, 8, 16) if n <= offer.count] if offer.divisible else [offer.count]
    if offer.divisible and offer.count not in possible:
        possible.append(offer.count)
    return [n for n in possible if wanted is None or wanted.count.holds(n * offer.nodes)]


def _has_total(offer: Offer, count: int, wanted: AcceleratorDemand | None) -> bool:
    """Return whether so many accelerators have together the memory that is asked for."""
    return wanted is None or wanted.has_total(offer.vram_bytes * count * offer.nodes)


def spanning(offers: OfferSet, nodes: int, demand: Demand, *, joined: bool | None = None) -> OfferSet:
    """Return the offers of which one replica may take ``nodes`` machines.

    A machine of one's own is an offer by itself: a place has as many as it offers, of those that do.
    Machines that are one are taken by as many nodes; ``joined`` says whether these have to be such, or
    must not, None that either does.
    """
    for sample, found in offers.by("nodes"):
        if sample.nodes not in (1, nodes) or joined not in (None, sample.nodes > 1):
            offers -= found
    if nodes == 1:
        return offers
    own: Counter[str] = Counter()
    for sample, found in offers.by("backend", "divisible"):
        own[sample.backend] += len(found) if sample.divisible else 0
    for sample, found in offers.by("backend", "available", "divisible"):
        able = Can.NODES in demand.places.get(sample.backend, frozenset())
        there = sample.available
        if there is not None and sample.divisible:
            there = max(there, own[sample.backend])
        if not able or (there is not None and there < nodes):
            offers -= found
    return offers


def affordable(offers: OfferSet, *, count: int, nodes: int, demand: Demand) -> OfferSet:
    """Return the offers of which ``count`` accelerators on ``nodes`` machines keep to ``max_price``."""
    limit = demand.max_price_usd_hour
    if limit is None:
        return offers
    for sample, found in offers.by("price_usd_hour", "own_usd_hour"):
        if sample.costs_usd_hour(count=count, nodes=nodes) > limit:
            offers -= found
    return offers


def refusals(matched: Matched, fallen: Counter[str]) -> tuple[Refusal, ...]:
    """Return why offers fell, in matching and in sizing together, most first."""
    total = Counter({r.reason: r.offers for r in matched.refused}) + fallen
    return tuple(sorted((Refusal(r, n) for r, n in total.items()), key=lambda r: (-r.offers, r.reason)))
