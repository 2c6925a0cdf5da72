"""Broken twins of the store's decisions, which its properties must catch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, find, settings

from orchestrator.errors import ModelyardError
from orchestrator.store.records import Store
from orchestrator.store.settle import Batch, Settled, settle
from orchestrator.store.urls import sqlite_url
from tests.store.test_faults import check_a_kill_leaves_all_or_nothing
from tests.store.test_settle import (
    batches,
    check_a_group_does_what_its_batches_do_one_by_one,
    check_a_refused_batch_leaves_nothing,
    check_a_serial_counts_the_turns_of_a_life,
)


def _forgets_what_came_before(group: Sequence[Batch], **world: Any) -> Settled:
    """Judges every batch against the database, and not against the batches before it."""
    whole = settle(group, **world)
    for place, batch in enumerate(group):
        alone = settle([batch], **world)
        if 0 in alone.refused:
            whole.refused[place] = alone.refused[0]
        else:
            whole.refused.pop(place, None)
            whole.serials[place] = alone.serials[0]
    return whole


def _writes_the_events_of_refused_batches(group: Sequence[Batch], **world: Any) -> Settled:
    settled = settle(group, **world)
    settled.events = [dict(event) for batch in group for event in batch.events]
    for serial, event in enumerate(settled.events, world["last_event"] + 1):
        event["serial"] = serial
    return settled


def _never_raises_a_serial(group: Sequence[Batch], **world: Any) -> Settled:
    settled = settle(group, **world)
    for row in settled.runs.values():
        row["serial"] = 1
    return settled


Check = Callable[[Callable[..., Settled], Sequence[Batch]], None]


@pytest.mark.parametrize(
    ("twin", "check"),
    [
        (_forgets_what_came_before, check_a_group_does_what_its_batches_do_one_by_one),
        (_never_raises_a_serial, check_a_serial_counts_the_turns_of_a_life),
        (_writes_the_events_of_refused_batches, check_a_refused_batch_leaves_nothing),
    ],
)
def test_the_broken_twin_is_caught(twin: Callable[..., Settled], check: Check) -> None:
    def fails(group: Sequence[Batch]) -> bool:
        try:
            check(twin, group)
        except AssertionError:
            return True
        return False

    quick = settings(
        max_examples=1_000,
        database=None,
        phases=[Phase.generate],  # one example will do, however large
        suppress_health_check=list(HealthCheck),
    )
    assert find(batches, fails, settings=quick, random=Random(0))


class _Torn(Store):
    """Writes what changed in one transaction and what happened in the next."""

    def _write(self, group: Sequence[Batch]) -> list[Mapping[str, int] | ModelyardError]:
        answers = super()._write([replace(batch, events=()) for batch in group])
        super()._write([replace(batch, puts=(), expected={}) for batch in group])
        return answers


class _Early(Store):
    """Writes what is kept beside runs in a transaction before theirs."""

    def _write(self, group: Sequence[Batch]) -> list[Mapping[str, int] | ModelyardError]:
        super()._write([replace(batch, puts=(), events=(), expected={}) for batch in group])
        return super()._write([replace(batch, kept=()) for batch in group])


@pytest.mark.parametrize("twin", [_Torn, _Early])
def test_a_torn_commit_is_caught(twin: type[Store], tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "state.db")

    with pytest.raises(AssertionError):
        check_a_kill_leaves_all_or_nothing(lambda: twin.open(url, secret_key=None, busy_s=5))
