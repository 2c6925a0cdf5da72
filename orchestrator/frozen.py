"""What every value of the house is: a frozen dataclass with slots, made for a fraction of the time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, FrozenInstanceError, dataclass, field, fields
from operator import attrgetter
from reprlib import recursive_repr
from typing import Any, NoReturn, TypeVar, dataclass_transform

T = TypeVar("T")
Method = Callable[..., Any]


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def frozen(cls: type[T]) -> type[T]:
    """Make of ``cls`` what ``dataclass(frozen=True, slots=True)`` makes of it.

    ``dataclass`` writes and compiles the source of six methods for each class: 0.7 ms of CPU, and a
    command imports two hundred classes to make objects of some. Five of them need no source. The
    sixth, ``__init__``, is compiled when the first object is made.
    """
    made = dataclass(init=False, repr=False, eq=False, slots=True)(cls)
    for name, method in _methods(made, fields(made)).items():  # type: ignore[arg-type]  # it is one
        if cls.__dict__.get(name) is None:  # Python says None of the hash of what says what equals it
            setattr(made, name, method)
    return made


def _methods(made: Any, parts: Sequence[Field[Any]]) -> dict[str, Method]:
    names = [part.name for part in parts]
    shown = [part.name for part in parts if part.repr]
    compared = _getter([part.name for part in parts if part.compare])

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        made.__init__ = _compiled_init(made, parts)  # in the place of this one
        made.__init__(self, *args, **kwargs)

    @recursive_repr()
    def represent(self: Any) -> str:
        return f"{type(self).__qualname__}({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    def equal(self: Any, other: object) -> bool:
        return compared(self) == compared(other) if other.__class__ is self.__class__ else NotImplemented

    def hashed(self: Any) -> int:
        return hash(compared(self))

    def state(self: Any) -> list[Any]:
        return [getattr(self, name) for name in names]

    def set_state(self: Any, values: Sequence[Any]) -> None:
        for name, held in zip(names, values, strict=True):
            object.__setattr__(self, name, held)

    return {
        "__init__": init,
        "__repr__": represent,
        "__eq__": equal,
        "__hash__": hashed,
        "__setattr__": _refuse_to_set,
        "__delattr__": _refuse_to_delete,
        "__getstate__": state,
        "__setstate__": set_state,
    }


def _compiled_init(made: Any, parts: Sequence[Field[Any]]) -> Method:
    """Return the ``__init__`` of a class: what it is given, or the defaults, goes into the slots."""
    known: dict[str, Any] = {"_absent": MISSING}
    heads, lines = ["_self"], []
    for part in sorted(parts, key=lambda part: bool(part.kw_only)):
        name = part.name
        if part.kw_only and "*" not in heads:
            heads.append("*")
        if part.default is not MISSING:
            known[f"_default_{name}"] = part.default
            heads.append(f"{name}=_default_{name}")
        elif part.default_factory is not MISSING:
            known[f"_make_{name}"] = part.default_factory
            heads.append(f"{name}=_absent")
            lines.append(f"if {name} is _absent: {name} = _make_{name}()")
        else:
            heads.append(name)
        known[f"_set_{name}"] = getattr(made, name).__set__
        lines.append(f"_set_{name}(_self, {name})")
    if hasattr(made, "__post_init__"):
        lines.append("_self.__post_init__()")
    body = "\n    ".join(lines or ["pass"])
    exec(f"def __init__({', '.join(heads)}):\n    {body}", known)
    init: Method = known.pop("__init__")
    init.__qualname__ = f"{made.__qualname__}.__init__"
    return init


def _getter(names: Sequence[str]) -> Callable[[Any], Any]:
    return attrgetter(*names) if names else lambda _: ()


def _refuse_to_set(_: object, name: str, __: object) -> NoReturn:
    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_to_delete(_: object, name: str) -> NoReturn:
    raise FrozenInstanceError(f"cannot delete field {name!r}")
