"""What one node of a run needs from an offer: numbers and names, no prices yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Literal

from orchestrator.backend import SCRATCH_BYTES, Can, Offer
from orchestrator.frozen import frozen
from orchestrator.spec.parts import exact_bytes
from orchestrator.units import GB, GIB, format_bytes


@frozen
class Span:
    """A closed range; None at either end means open.

    >>> Span(2, 4).holds(3), Span(2).holds(1), Span().holds(0)
    (True, False, True)
    """

    low: float | None = None
    high: float | None = None

    def holds(self, value: float) -> bool:
        """Return whether ``value`` lies in the range."""
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)


@frozen
class AcceleratorDemand:
    """Which accelerators would do, and how many of them in one node.

    ``names`` are catalog names, empty for any. ``vram_bytes`` is for one device,
    ``total_vram_bytes`` for all devices of the node.
    """

    names: frozenset[str] = frozenset()
    vendors: frozenset[str] = frozenset()
    count: Span = Span(1, 1)
    vram_bytes: Span = Span()
    total_vram_bytes: Span = Span()
    capability: tuple[int, int] | None = None
    as_written: str = ""

    def has_total(self, total_bytes: int) -> bool:
        """Return whether devices that have so much together would do; the upper end is in binary units.

        >>> AcceleratorDemand(total_vram_bytes=Span(160 * GB, 160 * GB)).has_total(2 * 85 * GB)
        True
        """
        span = self.total_vram_bytes
        return Span(span.low, None if span.high is None else span.high * GIB / GB).holds(total_bytes)

    def least(self, vram_bytes: int) -> int:
        """Return the smallest count that would do, of devices with ``vram_bytes`` each.

        It may lie above ``count``: then no number of them that is asked for has the memory in total.

        >>> wanted = AcceleratorDemand(count=Span(1, 8), total_vram_bytes=Span(160 * 10**9))
        >>> wanted.least(85 * 10**9), wanted.least(24 * 10**9)
        (2, 7)
        """
        fewest, total = max(1, int(self.count.low or 1)), int(self.total_vram_bytes.low or 0)
        return max(fewest, -(-total // vram_bytes)) if vram_bytes else fewest


IMAGE_BYTES = 28_600_000_000
"""An engine's image as it lies on a disk: that of vLLM, in December 2025 (vllm-project/vllm PR 22377)."""


@frozen
class Demand:
    """What one node needs, and where the user allows it to be.

    ``places`` maps every configured backend to what it can do, in the order of preference;
    ``needs`` maps each capability the job uses to the words of the spec that ask for it.
    ``max_price_usd_hour`` is for one replica: all its nodes together.
    """

    cpu: Span = Span()
    memory_bytes: Span = Span()
    disk_bytes: Span = Span()
    arch: str | None = None
    accelerator: AcceleratorDemand | None = None
    nodes: int = 1
    needs: Mapping[Can, str] = field(default_factory=dict)
    places: Mapping[str, frozenset[Can]] = field(default_factory=dict)
    backends: frozenset[str] = frozenset()
    regions: frozenset[str] = frozenset()
    zones: frozenset[str] = frozenset()
    instance_types: frozenset[str] = frozenset()
    fleets: frozenset[str] = frozenset()
    reservation: str | None = None
    spot: Literal["spot", "on-demand", "auto"] = "auto"
    max_price_usd_hour: float | None = None
    ordered: bool = False
    """Whether nodes are to start one after the other."""
    spans: bool = False
    """Whether sizing chooses how many nodes there are, so that machines that are one may be taken whole."""
    fetch_bytes: int = 0
    """What each node downloads of a model; 0 where nothing is, or nobody knows."""

    @property
    def fetched_bytes(self) -> int:
        """What a disk has to hold of an engine and its model where both are fetched anew; 0 without one.

        >>> Demand(fetch_bytes=141 * 10**9).fetched_bytes // 10**9
        173
        """
        return self.fetch_bytes + IMAGE_BYTES + SCRATCH_BYTES if self.fetch_bytes else 0

    def takes(self, offer: Offer) -> int:
        """Return how many accelerators of an offer one node takes: all, or the fewest that would do."""
        if self.accelerator is None:
            return 0
        return self.accelerator.least(offer.vram_bytes) if offer.divisible else offer.count

    def costs_usd_hour(self, offer: Offer) -> float:
        """Return what one replica costs by the hour on such machines: all its nodes together."""
        return offer.costs_usd_hour(count=self.takes(offer), nodes=self.nodes)

    def disk_need_bytes(self, offer: Offer) -> int:
        """Return how large the disk of an offer has to be: as asked for, and for what is fetched to it."""
        fetched = self.fetched_bytes + offer.system_bytes if self.fetched_bytes and offer.fetches else 0
        return max(int(self.disk_bytes.low or 0), fetched)

    def summary(self) -> str:
        """Return the demand in a phrase, for a plan or an error.

        >>> Demand(cpu=Span(2), memory_bytes=Span(4 * 2**30)).summary()
        'cpu 2.., memory 4GiB..'
        """
        parts: list[str] = []
        if self.accelerator:
            parts.append(f"accelerator {self.accelerator.as_written or 'any'}")
        if self.cpu != Span():
            parts.append(f"cpu {_span_text(self.cpu, lambda v: f'{v:g}')}")
        for word, span in (("memory", self.memory_bytes), ("disk", self.disk_bytes)):
            if span != Span():
                parts.append(f"{word} {_span_text(span, lambda v: _bytes_text(int(v)))}")
        if self.nodes > 1:
            parts.append(f"{self.nodes} nodes")
        return ", ".join(parts) or "nothing in particular"


def _bytes_text(size: int) -> str:
    """Return a size as one would have written it; one that nobody wrote, in a unit that is near."""
    exact = exact_bytes(size)
    return exact if len(exact) <= 8 else format_bytes(size)


def _span_text(span: Span, text: Callable[[float], str]) -> str:
    if span.low == span.high and span.low is not None:
        return text(span.low)
    low, high = ("" if end is None else text(end) for end in (span.low, span.high))
    return f"{low}..{high}"
