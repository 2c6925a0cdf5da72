from __future__ import annotations

import pytest

from orchestrator.planner.cost import replicas_for, replicas_for_rate, token_cost, training_cost
from orchestrator.planner.throughput import serving_throughput, training_throughput
from tests.planner.throughput.worlds import HOPPER, SMALL

SPEED = serving_throughput(SMALL, HOPPER, input_tokens=1000, output_tokens=250, concurrency=16)
RUN = training_throughput(SMALL, HOPPER, count=8, sequence_length=4096)


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


@pytest.mark.parametrize(("concurrency", "replicas"), [(0, 1), (16, 1), (17, 2), (160, 10)])
def test_replicas_hold_the_stated_concurrency(concurrency: int, replicas: int) -> None:
    assert replicas_for(SPEED, concurrency=concurrency) == replicas


def test_replicas_make_the_stated_rate() -> None:
    needed = 3.5 * SPEED.output_tokens_s
    assert replicas_for_rate(SPEED, output_tokens_s=needed) == 4


def test_a_run_costs_its_hours() -> None:
    cost = training_cost(RUN, tokens=int(RUN.tokens_s * 7200), price_usd_hour=20)
    assert (cost.hours, cost.usd) == (pytest.approx(2, rel=1e-3), pytest.approx(40, rel=1e-3))
    assert cost.low_usd < cost.usd < cost.high_usd


def test_negative_amounts_are_refused() -> None:
    for wrong in (
        lambda: token_cost(SPEED, price_usd_hour=-1),
        lambda: replicas_for(SPEED, concurrency=-1),
        lambda: replicas_for_rate(SPEED, output_tokens_s=-1),
        lambda: training_cost(RUN, tokens=-1, price_usd_hour=1),
    ):
        with pytest.raises(ValueError):
            wrong()
