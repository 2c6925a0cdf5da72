"""Fleets as they are compared with the record."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from orchestrator.apply import FleetRecord, require_unused
from orchestrator.apply.fleets import fleet_template
from orchestrator.errors import UsageError
from orchestrator.spec.models import Fleet as FleetSpec
from orchestrator.store.values import Fleet

POOL = Fleet("pool", "{}", "h", datetime(2026, 11, 30, tzinfo=UTC))


@pytest.mark.parametrize(
    ("record", "said", "runs"),
    [
        (FleetRecord(POOL, {"i-1": ("b", "a")}, ("a",)), "in use: a, b", "a b"),
        (FleetRecord(POOL, {"i-1": ("b",)}, ("a",)), "in use: b; a may also go there", "b a"),
        (FleetRecord(POOL, {}, ("a",)), "free, and a may go there", "a"),
    ],
    ids=["there", "there and coming", "coming"],
)
def test_a_fleet_that_is_used_says_by_whom_and_what_to_type(
    record: FleetRecord, said: str, runs: str
) -> None:
    with pytest.raises(UsageError) as refused:
        require_unused(record)
    assert refused.value.what == f"fleet 'pool' is {said}"
    assert refused.value.fix == (
        f"modelyard stop {runs}, or for tasks that are to finish modelyard wait {runs} --for ended; "
        "then modelyard fleet delete pool"
    )


def test_machines_of_a_fleet_bear_its_tags_and_keep_their_hash() -> None:
    plain, tagged = (
        fleet_template(FleetSpec(name="pool", nodes=1, tags=tags), backends=("aws",), rents=(None,)).launch
        for tags in ({}, {"b": "2", "a": "1"})
    )
    assert tagged == replace(plain, tags=(("a", "1"), ("b", "2")))


def test_a_fleet_that_nobody_uses_may_go() -> None:
    require_unused(FleetRecord(POOL, {}))  # nothing is raised
