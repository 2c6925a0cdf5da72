"""Broken twins of the offer index: the comparison with a plain loop must catch every one."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from orchestrator.backend import Offer
from orchestrator.planner import index
from orchestrator.planner.demand import Demand
from orchestrator.planner.index import OfferIndex
from orchestrator.planner.match import STAGES, Stage
from tests.planner import test_match as cases


def forgets_a_field(offers: Sequence[Offer], fields: tuple[str, ...]) -> list[tuple[Offer, int]]:
    """Group by all but the last field that a stage reads."""
    return REAL_GROUP(offers, fields[:-1] or ("backend",))


def loses_the_last(positions: Sequence[int], size: int) -> int:
    """Leave the last offer out of every set."""
    return REAL_BITS(positions[:-1] or positions, size)


REAL_GROUP, REAL_BITS = index._group, index._bits


@settings(max_examples=400, database=None, phases=[Phase.generate], report_multiple_bugs=False)
@given(st.lists(cases.OFFERS, max_size=12), cases.DEMANDS)
def check(offers: list[Offer], demand: Demand) -> None:
    """Hold the index to the plain loop, with enough examples to meet a fault."""
    cases.agree(offers, demand)


@pytest.mark.parametrize(("name", "twin"), [("_group", forgets_a_field), ("_bits", loses_the_last)])
def test_a_broken_index_is_caught(name: str, twin: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, name, twin)
    with pytest.raises(AssertionError):
        check()


def test_a_price_found_at_the_wrong_end_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def cheaper(self: OfferIndex, stage: Stage, demand: object) -> list[tuple[Offer, int]]:
        whole = (1 << len(self.offers)) - 1
        return [(s, whole & ~bits) for s, bits in real(self, stage, demand)]  # type: ignore[arg-type]

    real = OfferIndex._dearer
    monkeypatch.setattr(OfferIndex, "_dearer", cheaper)
    with pytest.raises(AssertionError):
        check()


def test_a_stage_that_reads_more_than_it_says_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    at = next(i for i, stage in enumerate(STAGES) if stage.reads == ("cpu", "divisible"))
    less = Stage(("divisible",), STAGES[at].refuse)
    monkeypatch.setattr(index, "STAGES", [*STAGES[:at], less, *STAGES[at + 1 :]])
    with pytest.raises(AssertionError):
        check()
