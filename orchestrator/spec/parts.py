"""What every part of a spec shares: frozen fields with a mark, the canonical form, the diff."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema

from orchestrator.frozen import frozen
from orchestrator.units import format_duration, parse_duration

Mark: TypeAlias = Literal["replace", "in-place"]
REPLACE: Mark = "replace"
"""A change of this field needs new containers."""
IN_PLACE: Mark = "in-place"
"""A change of this field is taken up by what runs."""

Unit: TypeAlias = Literal["bytes", "seconds"]
Plain: TypeAlias = "str | int | float | bool | list[Plain] | dict[str, Plain] | None"
"""What JSON and YAML can say."""

_SIZES = tuple(
    (unit, scale**power)
    for power, unit in enumerate("KMGT", 1)
    for unit, scale in ((f"{unit}B", 1000), (f"{unit}iB", 1024))
)


def replace(description: str, *, unit: Unit | None = None, examples: list[Any] | None = None) -> Any:
    """Return a field's annotation: what it says, and that changing it needs new containers."""
    return Field(description=description, examples=examples, json_schema_extra=_extra(REPLACE, unit))


def in_place(description: str, *, unit: Unit | None = None, examples: list[Any] | None = None) -> Any:
    """Return a field's annotation: what it says, and that changing it leaves containers alone."""
    return Field(description=description, examples=examples, json_schema_extra=_extra(IN_PLACE, unit))


def _extra(mark: Mark, unit: Unit | None) -> dict[str, Any]:
    return {"x-on-change": mark} | ({"x-unit": unit} if unit else {})


def mark_of(info: FieldInfo) -> Mark:
    """Return what a change of the field needs."""
    extra = info.json_schema_extra
    return extra["x-on-change"] if isinstance(extra, dict) else REPLACE  # type: ignore[return-value]  # set by _extra


def unit_of(info: FieldInfo) -> Unit | None:
    """Return the unit of a field that is a plain number, or None."""
    extra = info.json_schema_extra
    return extra.get("x-unit") if isinstance(extra, dict) else None  # type: ignore[return-value]  # set by _extra


def exact_bytes(size: int) -> str:
    """Return ``size`` with the largest unit that loses nothing.

    >>> exact_bytes(16 * 10**9), exact_bytes(2**30), exact_bytes(1001)
    ('16GB', '1GiB', '1001B')
    """
    fitting = [(scale, unit) for unit, scale in _SIZES if size and size % scale == 0]
    scale, unit = max(fitting, default=(1, "B"))
    return f"{size // scale}{unit}"


def exact_seconds(seconds: int) -> str | int:
    """Return ``seconds`` as a duration where one of at most two units is exact, else the number.

    >>> exact_seconds(5400), exact_seconds(90061)
    ('1h30m', 90061)
    """
    text = format_duration(seconds)
    return text if parse_duration(text) == seconds else seconds


class Part(BaseModel):
    """A piece of a spec: frozen, and unknown keys are refused."""

    # Building a validator costs milliseconds: only the types that a file names are built.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    short_forms: ClassVar[tuple[str, ...]] = ()
    """JSON types that it may be written as, in place of a mapping."""
    is_leaf: ClassVar[bool] = False
    """Whether a diff shows it whole, in its short form."""

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Describe the short forms beside the long one."""
        long = handler(core_schema)
        return {"anyOf": [{"type": list(cls.short_forms)}, long]} if cls.short_forms else long

    def canonical(self) -> Plain:
        """Return what differs from the defaults, as a person would write it; same value, same result."""
        return {
            name: _plain(value, info)
            for name, info in type(self).model_fields.items()
            if (value := getattr(self, name)) != info.get_default(call_default_factory=True)
        }


def _plain(value: object, info: FieldInfo) -> Plain:
    if value is None:
        # a duration that has a limit unless it is told otherwise
        return "off" if unit_of(info) == "seconds" and info.default is not None else None
    if isinstance(value, int) and unit_of(info) == "bytes":
        return exact_bytes(value)
    if isinstance(value, int) and unit_of(info) == "seconds":
        return exact_seconds(value)
    return _nested(value)


def _nested(value: object) -> Plain:
    if isinstance(value, Part):
        return value.canonical()
    if isinstance(value, Mapping):
        return {str(key): _nested(item) for key, item in sorted(value.items())}
    if isinstance(value, tuple | list):
        return [_nested(item) for item in value]
    assert value is None or isinstance(value, str | int | float | bool), type(value)
    return value


def lasting(part: Part) -> dict[str, Plain]:
    """Return what differs from the defaults in fields that need new containers, and nothing else."""
    kept = {
        name: value
        for name, info in type(part).model_fields.items()
        if mark_of(info) == REPLACE
        and (value := getattr(part, name)) != info.get_default(call_default_factory=True)
    }
    return {name: _lasting(value, type(part).model_fields[name]) for name, value in kept.items()}


def _lasting(value: object, info: FieldInfo) -> Plain:
    if isinstance(value, Part) and not value.is_leaf:
        return dict(lasting(value))
    if isinstance(value, tuple):
        return [_lasting(item, info) for item in value]
    return _plain(value, info)


def part_of(annotation: object) -> type[Part] | None:
    """Return the kind of part that a field holds, alone or in a list, or None.

    >>> part_of(tuple[Part, ...] | None).__name__
    'Part'
    """
    if isinstance(annotation, type) and issubclass(annotation, Part):
        return annotation
    if typing.get_origin(annotation) in (types.UnionType, typing.Union, tuple, typing.Annotated):
        for inner in typing.get_args(annotation):
            if found := part_of(inner):
                return found
    return None


@frozen
class Change:
    """One field that differs; ``old`` or ``new`` is None where the field is unset there."""

    path: str
    old: Plain
    new: Plain
    mark: Mark


def changes_between(old: Part, new: Part, *, at: str = "") -> Iterator[Change]:
    """Yield every field that differs, nested ones by their own path, in the order of the fields."""
    for name, info in type(new).model_fields.items():
        before, after = getattr(old, name, None), getattr(new, name)
        if before != after:
            yield from _change(f"{at}.{name}" if at else name, before, after, info)


def _change(path: str, before: object, after: object, info: FieldInfo) -> Iterator[Change]:
    if isinstance(before, Part) and isinstance(after, Part) and not after.is_leaf:
        yield from changes_between(before, after, at=path)
        return
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in sorted(before.keys() | after.keys()):
            if before.get(key, ...) != after.get(key, ...):
                sides = _nested(before.get(key)), _nested(after.get(key))
                yield Change(f"{path}.{key}", *sides, mark_of(info))
        return
    if isinstance(before, tuple) and isinstance(after, tuple) and len(before) == len(after):
        for index, (left, right) in enumerate(zip(before, after, strict=True)):
            if left != right:
                yield from _change(f"{path}[{index}]", left, right, info)
        return
    yield Change(path, _plain(before, info), _plain(after, info), mark_of(info))
