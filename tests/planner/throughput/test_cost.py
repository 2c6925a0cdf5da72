from __future__ import annotations

import pytest

from orchestrator.planner.cost import token_cost
from orchestrator.planner.throughput import serving_throughput
from tests.planner.throughput.worlds import HOPPER, SMALL

SPEED = serving_throughput(SMALL, HOPPER, input_tokens=1000, output_tokens=250, concurrency=16)


def test_all_tokens_together_are_cheaper_than_those_that_come_out() -> None:
    cost = token_cost(SPEED, price_usd_hour=3.0)
    assert cost.output_usd == pytest.approx(5 * cost.total_usd)


def test_an_hour_of_tokens_costs_the_hour() -> None:
    cost = token_cost(SPEED, price_usd_hour=3.0)
    assert cost.output_usd * SPEED.output_tokens_s * 3600 / 1e6 == pytest.approx(3.0)


def test_slow_is_dear_and_fast_is_cheap() -> None:
    cost = token_cost(SPEED, price_usd_hour=3.0)
    assert cost.low_usd < cost.output_usd < cost.high_usd


def test_owned_machines_cost_what_the_operator_says() -> None:
    assert token_cost(SPEED, price_usd_hour=0).output_usd == 0


def test_a_negative_price_is_refused() -> None:
    with pytest.raises(ValueError):
        token_cost(SPEED, price_usd_hour=-1)
