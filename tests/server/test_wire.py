"""Errors cross whole: the type that went in comes out, with every part."""

from __future__ import annotations

import inspect

import pytest

from orchestrator import errors
from orchestrator.errors import ModelyardError, Position, Problem, Refusal, WhyNot
from orchestrator.wire import STATUS, error_of, problem_of

AT = Position("chat.yaml", 3, 8)
FULL: dict[type[ModelyardError], ModelyardError] = {
    errors.SpecError: errors.SpecError(
        [Problem(AT, "unknown key", "did you mean 'count'?", "  cuont: 2"), Problem(AT, "too much")]
    ),
    errors.NothingFits: errors.NothingFits(
        "no offer fits", needs="146 GiB", refused=[Refusal("no fp8", 9)], where=AT, fix="lower it",
        why_not=[WhyNot("H100-80GB", 2, 3, 1.5, "too little", "max_price: 4")], elsewhere="aws",
    ),
    errors.HubUnreachable: errors.HubUnreachable("silence", fix="wait", retry_after_s=2.5),
}  # fmt: skip
KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, ModelyardError) and kind not in (ModelyardError, errors.Temporary)
]


def full(kind: type[ModelyardError]) -> ModelyardError:
    """Return an error of a kind with all of its parts filled."""
    if kind in FULL:
        return FULL[kind]
    if issubclass(kind, errors.BackendError):
        return kind("what", backend="rack", where=AT, fix="fix")
    return kind("what", where=AT, fix="fix")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_comes_out_as_it_went_in(kind: type[ModelyardError]) -> None:
    error = full(kind)
    if isinstance(error, errors.Temporary):
        error.retry_after_s = 2.5

    found = error_of(problem_of(error))

    assert type(found) is kind
    assert (str(found), vars(found), found.exit_code) == (str(error), vars(error), error.exit_code)


def test_specs_that_found_no_place_come_out_together() -> None:
    other = errors.NothingFits("nor this", needs="1 GiB", where=AT)
    error = errors.NothingFits("no offer fits")
    error.also = (other,)

    found = error_of(problem_of(error))

    assert isinstance(found, errors.NothingFits)
    assert [str(each) for each in found.also] == [str(other)]
    assert str(found) == str(error)


def test_every_error_has_a_status() -> None:
    assert set(STATUS) == set(KINDS)


def test_a_problem_of_another_server_keeps_its_words() -> None:
    found = error_of({"type": "about:blank", "title": "Bad Gateway", "status": 502})

    assert (type(found), found.what) == (ModelyardError, "Bad Gateway")
