from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.reconcile.values import Template
from orchestrator.store.codec import decode, encode, from_micros, to_micros
from tests.store.values import a_template


def test_a_template_comes_back_as_it_was() -> None:
    template = a_template("chat")

    assert decode(Template, encode(template)) == template


def test_a_field_that_was_not_stored_takes_its_default() -> None:
    template = replace(a_template("chat"), surge=True)
    stored = json.loads(encode(template))
    del stored["surge"], stored["launch"]["probe"], stored["launch"]["tags"]

    read = decode(Template, json.dumps(stored))

    assert read == replace(template, surge=False, launch=replace(template.launch, probe=None))


def test_equal_values_are_one_text() -> None:
    assert encode(frozenset({"b", "a", "c"})) == encode(frozenset({"c", "b", "a"})) == '["a","b","c"]'


@given(st.datetimes(timezones=st.just(UTC)))
def test_times_are_exact(at: datetime) -> None:
    assert from_micros(to_micros(at)) == at


def test_a_time_elsewhere_is_the_same_moment() -> None:
    here = datetime(2026, 1, 1, 2, tzinfo=timezone(timedelta(hours=2)))

    assert from_micros(to_micros(here)) == datetime(2026, 1, 1, tzinfo=UTC)


@given(st.dictionaries(st.integers(0, 65535), st.tuples(st.text(), st.integers(0, 65535))))
def test_ports_come_back_with_their_numbers(ports: Mapping[int, tuple[str, int]]) -> None:
    assert decode(Mapping[int, tuple[str, int]], encode(ports)) == ports


@dataclass(frozen=True)
class _Odd:
    either: int | str | None = None


@pytest.mark.parametrize("kind", [_Odd, set[int], object], ids=str)
def test_a_type_that_is_not_kept_is_refused(kind: object) -> None:
    with pytest.raises(TypeError, match="kept in the store"):
        decode(kind, "{}")


def test_a_value_that_is_not_kept_is_refused() -> None:
    with pytest.raises(TypeError, match="object are not kept in the store"):
        encode((object(),))
