"""Broken twins of serving: the tests of ``tests/planner/test_serve.py`` must catch every one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.backend import Offer
from orchestrator.errors import NothingFits
from orchestrator.planner import index, serve
from orchestrator.planner.choose import Candidate
from orchestrator.planner.demand import Demand
from orchestrator.planner.index import OfferSet
from orchestrator.planner.plan import Choice
from orchestrator.planner.sizing.serving import ServingNeeds
from orchestrator.planner.sizing.values import Size
from orchestrator.planner.why import Fallen
from orchestrator.spec.models import Traffic
from tests.planner import test_serve as cases


def first_come(offer: Offer, preference: int) -> tuple[object, ...]:
    """Leave offers in the order they came in."""
    return ()


def every_node(offers: OfferSet, nodes: int, demand: Demand, *, joined: bool | None = None) -> OfferSet:
    """Let any backend join machines."""
    return offers


def shown_only(option: object, speed: object, place: int, choice: Choice, *, sort: str) -> tuple[object, ...]:
    """Rank by price alone, whatever was asked for or lowered."""
    return (choice.price_usd_hour, place)


def test_a_plan_by_order_of_arrival_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "_rank", first_come)
    with pytest.raises(AssertionError):
        cases.test_a_plan_does_not_depend_on_the_order_of_offers()


def test_machines_joined_by_nobody_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "spanning", every_node)
    with pytest.raises(pytest.fail.Exception):
        cases.test_several_machines_are_taken_only_where_a_backend_joins_them()


def test_a_rank_by_price_alone_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "_rank", shown_only)
    with pytest.raises(AssertionError):
        cases.test_published_weights_win_over_lowered_ones_whatever_they_cost()


def test_a_floor_above_what_is_found_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    real = serve.serving_ceiling

    def low(*args: object, **load: object) -> object:
        most = real(*args, **load)  # type: ignore[arg-type]  # passed on as they came
        return replace(most, output_tokens_s=most.output_tokens_s / 50, tpot_s=most.tpot_s * 50)

    monkeypatch.setattr(serve, "serving_ceiling", low)
    drawn = cases.test_the_first_choices_are_those_of_asking_every_group_how_fast_it_is
    test = drawn.hypothesis.inner_test  # type: ignore[attr-defined]  # as it is before anything is drawn
    with pytest.raises(AssertionError):
        test("openai/gpt-oss-20b", "throughput", Traffic(), "auto", [1.0] * len(cases.EVERYTHING))


def first_size(self: serve._Known, candidate: Candidate) -> Size:
    """Take every device for the first."""
    return next(iter(self.sizes.values()), None) or SIZE(self, candidate)


SIZE = serve._Known.size


@pytest.mark.parametrize(
    ("owner", "name", "twin"),
    [(serve, "kind_of", lambda device: ("any", None, None)), (serve._Known, "size", first_size)],
)
def test_devices_taken_for_others_are_caught(
    owner: object, name: str, twin: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, name, twin)
    with pytest.raises(AssertionError):
        cases.test_devices_of_a_kind_are_served_as_if_each_were_asked_about("openai/gpt-oss-20b", "fp8")


def test_memory_that_harms_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def on(self: ServingNeeds, device: object) -> Size:
        size = real(self, device)  # type: ignore[arg-type]  # a device
        return replace(size, fits=size.fits and size.device.visible_bytes < 100 * 2**30)

    real = ServingNeeds.on
    monkeypatch.setattr(ServingNeeds, "on", on)
    with pytest.raises(AssertionError):
        cases.test_more_memory_never_turns_a_fit_into_a_refusal()


def test_refused_offers_that_nobody_counts_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "refusals", lambda matched, fallen: matched.refused)
    with pytest.raises(AssertionError):
        cases.test_every_model_is_placed_or_refused_with_a_reason("bf16", 8192)


def test_a_change_that_does_not_help_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def why_not(self: Fallen) -> object:
        said = real(self)
        field, _, value = said.change.partition(" ")
        return replace(said, change=f"{field} {int(value) * 2}")

    real = Fallen.why_not
    monkeypatch.setattr(Fallen, "why_not", why_not)
    with pytest.raises(NothingFits):
        cases.test_a_change_that_is_named_admits_the_group()


def test_machines_of_a_slice_that_are_taken_for_any_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def either(offers: OfferSet, nodes: int, demand: Demand, *, joined: bool | None = None) -> OfferSet:
        return real(offers, nodes, demand)

    real = serve.spanning
    monkeypatch.setattr(serve, "spanning", either)
    with pytest.raises(AssertionError):
        cases.test_a_slice_is_taken_whole_and_other_machines_are_none()
