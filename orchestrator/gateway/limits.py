"""How often a client may ask: token buckets, with the time as an argument."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.frozen import frozen

MOST_BUCKETS = 10_000
"""Clients remembered per service; the longest unseen is forgotten first."""


@frozen
class Rate:
    """A limit of a spec: requests a second for one client under ``prefix``, ``burst`` ahead of it.

    Clients are told apart by the value of ``header`` (lower case), or by address where it is "".
    """

    prefix: str
    rps: float
    burst: int = 0
    header: str = ""


def rate_for(rates: Sequence[Rate], path: str) -> Rate | None:
    """Return the limit for ``path``: the one with the longest prefix.

    >>> rate_for([Rate("/", 10), Rate("/v1/", 1)], "/v1/models").rps
    1
    """
    fitting = [rate for rate in rates if path.startswith(rate.prefix)]
    return max(fitting, key=lambda rate: len(rate.prefix)) if fitting else None


class Buckets:
    """The token buckets of one service, by limit and client.

    A bucket holds ``1 + burst`` requests and fills by ``rps`` a second.
    """

    def __init__(self, most: int = MOST_BUCKETS) -> None:
        self._most = most
        self._levels: dict[tuple[Rate, str], tuple[float, float]] = {}

    def take(self, rate: Rate, client: str, *, now_s: float) -> float:
        """Take one request; return 0.0, or the seconds until one can be had where none is left.

        >>> buckets = Buckets()
        >>> [buckets.take(Rate("/", rps=2, burst=1), "ann", now_s=t) for t in (0.0, 0.0, 0.0, 0.5)]
        [0.0, 0.0, 0.5, 0.0]
        """
        full = 1.0 + rate.burst
        level, at = self._levels.pop((rate, client), (full, now_s))
        level = min(full, level + (now_s - at) * rate.rps)
        # A float just under one is one: 0.1 + 0.2 shall not cost a client its turn.
        wait_s = 0.0 if level >= 1.0 - 1e-9 else (1.0 - level) / rate.rps
        self._levels[rate, client] = (level if wait_s else level - 1.0, now_s)
        if len(self._levels) > self._most:
            del self._levels[next(iter(self._levels))]
        return wait_s
