"""What tokens and training runs cost, from a speed and a price by the hour."""

from __future__ import annotations

import math
from dataclasses import dataclass

from orchestrator.planner.throughput.serving import Throughput
from orchestrator.planner.throughput.training import TrainingSpeed


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class TrainingCost:
    """Hours and dollars of one training run; the bounds follow from those of the speed."""

    hours: float
    usd: float
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


def replicas_for(speed: Throughput, *, concurrency: float) -> int:
    """Return how many replicas hold ``concurrency`` requests at once without one waiting.

    Raises:
        ValueError: the concurrency is negative.

    >>> replicas_for(Throughput(1000, 4000, 0.1, 0.01, 800, 1250, "bandwidth", 16), concurrency=40)
    3
    """
    if concurrency < 0:
        raise ValueError("concurrency is not negative")
    return max(1, math.ceil(concurrency / speed.sequences))


def replicas_for_rate(speed: Throughput, *, output_tokens_s: float) -> int:
    """Return how many replicas make ``output_tokens_s`` tokens a second, each at its load.

    Raises:
        ValueError: the rate is negative.

    >>> replicas_for_rate(Throughput(1000, 4000, 0.1, 0.01, 800, 1250, "bandwidth", 16), output_tokens_s=2500)
    3
    """
    if output_tokens_s < 0:
        raise ValueError("a rate is not negative")
    return max(1, math.ceil(output_tokens_s / speed.output_tokens_s))


def training_cost(speed: TrainingSpeed, *, tokens: int, price_usd_hour: float) -> TrainingCost:
    """Return the hours and dollars that training over ``tokens`` tokens takes.

    Args:
        speed: The run's speed.
        tokens: Of the data set, times its epochs.
        price_usd_hour: Of all accelerators together.

    Raises:
        ValueError: tokens or price are negative.

    >>> speed = TrainingSpeed(10_000, 8_000, 12_500, 5e10, 5e10, 0.4)
    >>> training_cost(speed, tokens=72_000_000, price_usd_hour=5)
    TrainingCost(hours=2.0, usd=10.0, low_usd=8.0, high_usd=12.5)
    """
    if tokens < 0 or price_usd_hour < 0:
        raise ValueError("tokens and price are not negative")
    hours = tokens / speed.tokens_s / 3600
    return TrainingCost(
        hours=hours,
        usd=hours * price_usd_hour,
        low_usd=tokens / speed.high / 3600 * price_usd_hour,
        high_usd=tokens / speed.low / 3600 * price_usd_hour,
    )
