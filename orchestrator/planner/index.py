"""Offers made ready for many questions: what fits, and how many fell for which reason.

Offers are kept in their order of rank, and a set of offers is an integer with one bit for each.
A stage is asked once per combination of the fields it reads; the answer holds for all offers
with that combination, whose set was built once. Refusing fifty thousand offers is then a
handful of operations on large integers.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cached_property
from heapq import merge
from operator import attrgetter

from orchestrator.backend import Offer
from orchestrator.errors import Refusal
from orchestrator.frozen import frozen
from orchestrator.planner.demand import Demand
from orchestrator.planner.match import OVER_PRICE, STAGES, Stage


@frozen
class Matched:
    """What is left of the offers for one demand.

    ``fitting`` comes in order of rank. ``refused`` is ordered by count, then reason.
    ``over_price`` would fit if only ``max_price`` were higher, in order of rank.
    """

    fitting: OfferSet
    refused: tuple[Refusal, ...]
    over_price: OfferSet


class OfferSet(Collection[Offer]):
    """Some offers of an index, in order of rank, read one by one: most callers want the first few."""

    def __init__(self, index: OfferIndex, bits: int) -> None:
        self._index = index
        self._bits = bits

    def __len__(self) -> int:
        return self._bits.bit_count()

    def __bool__(self) -> bool:
        return self._bits != 0  # without counting them

    def __contains__(self, offer: object) -> bool:
        return any(offer == own for own in self)

    def __iter__(self) -> Iterator[Offer]:
        return (offer for _, offer in self.ranked())

    def __or__(self, other: OfferSet) -> OfferSet:
        return OfferSet(self._index, self._bits | other._bits)

    def __sub__(self, other: OfferSet) -> OfferSet:
        return OfferSet(self._index, 0 if other is self else self._bits & ~other._bits)

    def ranked(self) -> Iterator[tuple[int, Offer]]:
        """Yield each offer with its rank among all offers of the index."""
        left = self._bits
        while left:
            lowest = left & -left
            place = lowest.bit_length() - 1
            yield place, self._index.offers[place]
            left ^= lowest

    def cheapest(self, cost: Callable[[Offer], float]) -> Iterator[tuple[int, Offer]]:
        """Yield each offer with its rank, by what is paid for it, then the preference of its backend.

        Rank knows listed prices, which order what is rented as ``cost`` does. What an owner counts for
        a machine depends on how much of it a job takes: those are put in their places here.
        """

        def key(ranked: tuple[int, Offer]) -> tuple[float, int, int]:
            place, offer = ranked
            return cost(offer), self._index.preference_of(offer.backend), place

        own = self._bits & self._index.own_bits
        if not own:
            return self.ranked()
        counted = sorted(OfferSet(self._index, own).ranked(), key=key)
        return merge(counted, OfferSet(self._index, self._bits & ~own).ranked(), key=key)

    def by(self, *fields: str) -> Iterator[tuple[Offer, OfferSet]]:
        """Yield the offers that share each combination of ``fields``, with one that has it."""
        groups = self._index.grouped(fields)
        if len(groups) == 1:
            yield groups[0][0], self
            return
        for sample, bits in groups:
            if hit := self._bits & bits:
                yield sample, OfferSet(self._index, hit)


class OfferIndex:
    """A fixed set of offers, indexed.

    Args:
        offers: In any order; the result does not depend on it.
        preference: Backends in the order of configuration; it decides between equal prices.
    """

    def __init__(self, offers: Sequence[Offer], *, preference: Sequence[str] = ()) -> None:
        self._preference = {name: at for at, name in enumerate(preference)}
        self.offers = sorted(offers, key=lambda o: _rank(o, self.preference_of(o.backend)))
        self._groups: dict[tuple[str, ...], list[tuple[Offer, int]]] = {}
        self._roomy: dict[tuple[float | None, int], OfferIndex] = {}

    def roomy(self, demand: Demand) -> OfferIndex:
        """Return the same offers with disks that hold what ``demand`` takes, where their size is chosen."""
        key = (demand.disk_bytes.low, demand.fetched_bytes)
        if key not in self._roomy:
            kinds = self.grouped(("disk_bytes", "growth", "fetches", "system_bytes"))
            if all(kind is _roomy(kind, demand) for kind, _ in kinds):
                self._roomy[key] = self
            else:
                found = [_roomy(offer, demand) for offer in self.offers]
                self._roomy[key] = OfferIndex(found, preference=tuple(self._preference))
        return self._roomy[key]

    def preference_of(self, backend: str) -> int:
        """Return the place of a backend in the configuration; one that is not there comes last."""
        return self._preference.get(backend, len(self._preference))

    def match(self, demand: Demand) -> Matched:
        """Return what fits ``demand``, and how many offers fell for which reason."""
        left = (1 << len(self.offers)) - 1
        fallen: dict[str, int] = {}
        for stage in STAGES:
            if not left:
                break
            left = self._refuse(stage, demand, left, fallen)
        refused = sorted((Refusal(r, bits.bit_count()) for r, bits in fallen.items()), key=_by_count)
        return Matched(OfferSet(self, left), tuple(refused), OfferSet(self, fallen.get(OVER_PRICE, 0)))

    def _refuse(self, stage: Stage, demand: Demand, left: int, fallen: dict[str, int]) -> int:
        """Return ``left`` without the offers that ``stage`` refuses, and note those."""
        groups = self._dearer(stage, demand) if stage.by_price else self.grouped(stage.reads)
        for sample, bits in groups:
            reason = stage.refuse(sample, demand)  # far cheaper than to look which are left
            if reason is not None and (hit := left & bits):
                fallen[reason] = fallen.get(reason, 0) | hit
                left &= ~bits
        return left

    def _dearer(self, stage: Stage, demand: Demand) -> list[tuple[Offer, int]]:
        """Return the offers from the first that ``stage`` refuses, found by halving."""
        first = bisect_left(self.offers, True, key=lambda offer: stage.refuse(offer, demand) is not None)
        if first == len(self.offers):
            return []
        return [(self.offers[first], ((1 << len(self.offers)) - 1) & ~((1 << first) - 1))]

    @cached_property
    def own_bits(self) -> int:
        """The set of machines that their owner counts at a price."""
        own = 0
        for sample, bits in self.grouped(("own_prices",)):
            own |= bits if sample.own_usd_hour else 0
        return own

    def grouped(self, fields: tuple[str, ...]) -> list[tuple[Offer, int]]:
        """Return one offer for each combination of ``fields``, with the set of all that share it."""
        known = self._groups.get(fields)
        if known is None:
            known = self._groups[fields] = _group(self.offers, fields)
        return known


def _roomy(offer: Offer, demand: Demand) -> Offer:
    return offer.with_disk(demand.disk_need_bytes(offer))


def _group(offers: Sequence[Offer], fields: tuple[str, ...]) -> list[tuple[Offer, int]]:
    key: Callable[[Offer], object] = attrgetter(*fields)
    members: dict[object, list[int]] = {}
    for at, offer in enumerate(offers):
        members.setdefault(key(offer), []).append(at)
    size = (len(offers) + 7) // 8
    return [(offers[found[0]], _bits(found, size)) for found in members.values()]


def _bits(positions: Sequence[int], size: int) -> int:
    raw = bytearray(size)
    for at in positions:
        raw[at >> 3] |= 1 << (at & 7)
    return int.from_bytes(raw, "little")


def _rank(offer: Offer, preference: int) -> tuple[object, ...]:
    """Return the sort key: cheapest first, then the preferred backend, then the smallest that does."""
    return (
        offer.price_usd_hour,
        preference,
        offer.count,
        offer.vram_bytes,
        offer.cpu,
        offer.memory_bytes,
        offer.backend,
        offer.region,
        offer.zone or "",
        offer.instance_type,
        offer.spot,
        repr(offer),
    )


def _by_count(refusal: Refusal) -> tuple[int, str]:
    return (-refusal.offers, refusal.reason)
