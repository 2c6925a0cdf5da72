"""Offers that fit, grouped by what a sizing can tell apart: the accelerator, and how many of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from orchestrator.backend import Can, Offer
from orchestrator.catalog import Accelerator
from orchestrator.errors import Refusal
from orchestrator.planner.demand import AcceleratorDemand, Demand, Span
from orchestrator.planner.index import Matched
from orchestrator.planner.why import Fallen


@dataclass
class Groups:
    """Offers by accelerator and how many of it one machine gives to the job."""

    offers: dict[tuple[str, int], list[Offer]] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    declined: Counter[str] = field(default_factory=Counter)
    """What engines said of sets that would hold the model."""
    fallen: list[Fallen] = field(default_factory=list)

    def add(self, offer: Offer, counts: Sequence[int]) -> None:
        """Put an offer into the groups of these counts."""
        for count in counts:
            self.offers.setdefault((offer.accelerator or "", count), []).append(offer)


def any_of(wanted: AcceleratorDemand | None) -> AcceleratorDemand:
    """Return the demand for accelerators that leaves their number and memory to the sizing."""
    if wanted is None:
        return AcceleratorDemand(count=Span(1), as_written="any that hold the model")
    return replace(wanted, count=Span(1), total_vram_bytes=Span())


def group(matched: Matched, demand: Demand, accelerators: Mapping[str, Accelerator]) -> Groups:
    """Return what fits, by accelerator and count, and count what the catalog does not know."""
    groups = Groups()
    for offer in matched.fitting:
        if offer.accelerator not in accelerators:
            groups.refused["not in the catalog"] += 1
            continue
        counts = counts_of(offer, demand.accelerator)
        if not counts:
            groups.refused["another count than asked for"] += 1
        groups.add(offer, counts)
    return groups


def counts_of(offer: Offer, wanted: AcceleratorDemand | None) -> list[int]:
    """Return how many accelerators of ``offer`` one replica may take on one machine."""
    possible = [n for n in (1, 2, 4, 8, 16) if n <= offer.count] if offer.divisible else [offer.count]
    if offer.divisible and offer.count not in possible:
        possible.append(offer.count)
    return [n for n in possible if wanted is None or wanted.count.holds(n)]


def spans(offer: Offer, nodes: int, demand: Demand) -> bool:
    """Return whether one replica may lie on so many machines of an offer."""
    if nodes == 1:
        return True
    if Can.NODES not in demand.places.get(offer.backend, frozenset()):
        return False
    return offer.available is None or offer.available >= nodes


def refusals(matched: Matched, fallen: Counter[str]) -> tuple[Refusal, ...]:
    """Return why offers fell, in matching and in sizing together, most first."""
    total = Counter({r.reason: r.offers for r in matched.refused}) + fallen
    return tuple(sorted((Refusal(r, n) for r, n in total.items()), key=lambda r: (-r.offers, r.reason)))
