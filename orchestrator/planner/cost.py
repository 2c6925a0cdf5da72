"""What tokens cost, from a speed and a price by the hour."""

from __future__ import annotations

from orchestrator.frozen import frozen
from orchestrator.planner.throughput.serving import Throughput


@frozen
class TokenCost:
    """Dollars per million tokens of a replica at its stated load.

    ``output_usd`` puts the whole price on the tokens that come out, ``total_usd`` spreads it over
    those that go in as well; public tables mix the two. ``low_usd`` and ``high_usd`` bound
    ``output_usd``.
    """

    output_usd: float
    total_usd: float
    low_usd: float
    high_usd: float


def token_cost(speed: Throughput, *, price_usd_hour: float) -> TokenCost:
    """Return the dollars per million tokens of a replica that costs ``price_usd_hour``.

    Args:
        speed: The replica at its load.
        price_usd_hour: Of all its accelerators together.

    Raises:
        ValueError: the price is negative.

    >>> speed = Throughput(1000, 4000, 0.1, 0.01, 800, 1250, "bandwidth", 16)
    >>> token_cost(speed, price_usd_hour=3.6)
    TokenCost(output_usd=1.0, total_usd=0.25, low_usd=0.8, high_usd=1.25)
    """
    if price_usd_hour < 0:
        raise ValueError("a price is not negative")
    per_million = price_usd_hour / 3600 * 1e6
    return TokenCost(
        output_usd=per_million / speed.output_tokens_s,
        total_usd=per_million / speed.total_tokens_s,
        low_usd=per_million / speed.high,
        high_usd=per_million / speed.low,
    )
