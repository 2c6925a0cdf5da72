"""A frozen class is what dataclasses makes of it, in all that can be seen, and cheaper to make."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import time
from collections.abc import Callable, Mapping
from dataclasses import FrozenInstanceError, asdict, dataclass, field, fields, replace
from typing import Any, Generic, TypeVar

import pytest
from pydantic import TypeAdapter

from orchestrator.frozen import frozen

T = TypeVar("T")


@frozen
class Point:
    """Where."""

    x: int
    y: int = 2
    names: Mapping[str, int] = field(default_factory=dict)
    hidden: str = field(default="s3cret", repr=False)
    noted: str = field(default="", compare=False)
    made: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        if self.x < 0:
            raise ValueError("x is negative")

    @property
    def both(self) -> int:
        return self.x + self.y


@frozen
class Farther(Point):
    z: int = 9


@frozen
class Holds(Generic[T]):
    held: T


@frozen
class Empty:
    pass


@frozen
class Says:
    word: str

    def __repr__(self) -> str:
        return "as it likes"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Says)


def twin_of(made: type[Any]) -> Any:
    """Return what dataclasses makes of the body of a frozen class."""
    body = {
        name: held
        for name, held in made.__dict__.items()
        if name in ("__post_init__", "both", "__doc__", "__module__")
    }
    parts = [(part.name, part.type, part) for part in fields(made)]
    return dataclasses.make_dataclass(made.__name__, parts, namespace=body, frozen=True, slots=True)


Twin = twin_of(Point)
CALLS: list[Callable[[Any], Any]] = [
    lambda kind: kind(1),
    lambda kind: kind(1, 3, {"a": 1}, "h", "n", made=4),
    lambda kind: kind(x=1, y=5),
    lambda kind: kind(),
    lambda kind: kind(1, z=3),
    lambda kind: kind(1, 2, {}, "h", "n", 4),
    lambda kind: kind(-1),
    lambda kind: kind(1) == kind(1),
    lambda kind: kind(1) == kind(2),
    lambda kind: kind(1, hidden="a") == kind(1, hidden="b"),
    lambda kind: kind(1, noted="a") == kind(1, noted="b"),
    lambda kind: kind(1) == 1,
    lambda kind: hash(kind(1)),
    lambda kind: hash(kind(1, names=())) == hash(kind(1, names=())),
    lambda kind: setattr(kind(1), "x", 2),
    lambda kind: delattr(kind(1), "x"),
    lambda kind: replace(kind(1), y=7, made=3),
    lambda kind: replace(kind(1), x=-7),
    lambda kind: asdict(kind(1, names={"a": 1})),
    lambda kind: [(part.name, part.default) for part in fields(kind)],
    lambda kind: copy.copy(kind(1, 3)),
    lambda kind: copy.deepcopy(kind(1, 3)),
    lambda kind: hasattr(kind(1), "__dict__"),
    lambda kind: kind.__slots__,
    lambda kind: kind.__match_args__,
    lambda kind: kind(1, 4).both,
    lambda kind: kind.__doc__,
    lambda kind: TypeAdapter(kind).validate_python({"x": "1", "made": 2}),
    lambda kind: TypeAdapter(kind).dump_python(kind(1)),
]


@pytest.mark.parametrize("call", CALLS)
def test_is_what_dataclasses_makes(call: Callable[[Any], Any]) -> None:
    assert _seen(call, Point) == _seen(call, Twin)


def _seen(call: Callable[[Any], Any], kind: Any) -> str:
    try:
        return repr(call(kind))
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def test_what_a_subclass_adds_is_part_of_it() -> None:
    assert repr(Farther(1, z=3, made=5)) == "Farther(x=1, y=2, names={}, noted='', made=5, z=3)"
    assert Farther(1) != Point(1)
    assert Point(1) != Farther(1)
    assert Farther(1, z=3) != Farther(1, z=4)
    with pytest.raises(ValueError, match="x is negative"):
        Farther(-1)


def test_takes_no_attribute_that_it_has_not() -> None:
    with pytest.raises(FrozenInstanceError, match="cannot assign to field 'unknown'"):
        Point(1).unknown = 2


def test_goes_through_a_pickle() -> None:
    there = pickle.loads(pickle.dumps(Farther(1, names={"a": 1}, noted="n")))
    assert there == Farther(1, names={"a": 1})
    assert there.noted == "n"
    with pytest.raises(FrozenInstanceError):
        there.x = 4


def test_what_a_class_says_itself_stays() -> None:
    assert repr(Says("a")) == "as it likes"
    assert Says("a") == Says("b")
    assert len({Says("a"), Says("a")}) == 1


def test_generic_and_empty_classes() -> None:
    assert Holds[int](3) == Holds(3)
    assert Empty() == Empty()
    assert len({Empty(), Empty()}) == 1
    assert repr(Empty()) == "Empty()"


def test_a_value_that_holds_itself_can_be_shown() -> None:
    inside: list[Any] = []
    holds = Holds(inside)
    inside.append(holds)
    assert repr(holds) == "Holds(held=[...])"


def test_a_class_costs_less_than_half_to_make() -> None:
    usual = dataclass(frozen=True, slots=True)
    ours, theirs = (min(_cpu_s(maker) for _ in range(5)) for maker in (frozen, usual))
    assert ours < theirs / 2, (ours, theirs)


def _cpu_s(maker: Callable[[type], type]) -> float:
    began = time.process_time()
    for _ in range(20):
        maker(type("Six", (), {"__annotations__": dict.fromkeys("abcdef", "int"), "f": 1}))
    return time.process_time() - began
