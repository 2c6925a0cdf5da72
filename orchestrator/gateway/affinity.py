"""Which replica had a request that began alike: its KV cache may hold that beginning still."""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Generic, TypeVar

Place = TypeVar("Place")

PIECE_BYTES = 512
"""How much two requests have to share to count as alike: about 128 tokens, eight of vLLM's blocks."""
MOST_PIECES = 64
"""Of a request that is looked at; beyond 32 KiB a beginning tells replicas apart well enough."""
MOST_KEPT = 20_000
"""Beginnings that are remembered for a service, the ones used last: about 4 MB."""


def beginnings(body: bytes | bytearray) -> list[int]:
    """Return a number for each beginning of ``body``, the shortest first; alike for those that are alike.

    >>> ours, theirs = b"a" * 2048, b"a" * 1024 + b"b" * 1024
    >>> [x == y for x, y in zip(beginnings(ours), beginnings(theirs))]
    [True, True, False, False]
    """
    found, crc = [], 0
    for at in range(0, min(len(body) - PIECE_BYTES + 1, MOST_PIECES * PIECE_BYTES), PIECE_BYTES):
        crc = zlib.crc32(body[at : at + PIECE_BYTES], crc)
        # the length beside it: two beginnings of other lengths share a sum once in four billion
        found.append(crc << 8 | at // PIECE_BYTES)
    return found


class Prefixes(Generic[Place]):
    """Remembers where requests went, by how they began."""

    __slots__ = ("_places",)

    def __init__(self) -> None:
        self._places: OrderedDict[int, Place] = OrderedDict()

    def find(self, begun: Sequence[int]) -> Place | None:
        """Return where the request went that shares the longest beginning, None where none is known.

        >>> known: Prefixes[str] = Prefixes()
        >>> known.put([1, 2, 3], "a")
        >>> known.find([1, 2, 9]), known.find([9])
        ('a', None)
        """
        return next((self._places[each] for each in reversed(begun) if each in self._places), None)

    def put(self, begun: Sequence[int], place: Place) -> None:
        """Remember where a request went."""
        places = self._places
        for each in begun:
            places[each] = place
            places.move_to_end(each)
        while len(places) > MOST_KEPT:
            places.popitem(last=False)
