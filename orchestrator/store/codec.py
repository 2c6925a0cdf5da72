"""Turn frozen values into JSON text and back, by their type hints alone.

Times are whole microseconds since 1970 in UTC, here and in every column: one way, exact, and
ordered by the database as they are by us. A field that a stored value lacks takes its default,
so that a field can be added without a migration.
"""

from __future__ import annotations

import base64
import collections.abc
import dataclasses
import enum
import functools
import json
import types
import typing
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Union

_Convert = Callable[[Any], Any]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_micros(at: datetime) -> int:
    """Return ``at`` in microseconds since 1970.

    Raises:
        ValueError: ``at`` has no time zone, so that nobody knows when it is.

    >>> to_micros(datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC))
    1000000
    """
    if at.tzinfo is None:
        raise ValueError(f"a time without a zone: {at.isoformat()}")
    return (at - _EPOCH) // _MICROSECOND


def from_micros(micros: int) -> datetime:
    """Return the UTC time that is ``micros`` microseconds after 1970.

    >>> from_micros(1000000).isoformat()
    '1970-01-01T00:00:01+00:00'
    """
    return _EPOCH + micros * _MICROSECOND


def legible(text: str) -> str:
    """Return ``text`` as any database can hold it: NUL and halves of UTF-16 pairs become U+FFFD.

    Messages come from containers and vendors, who may say anything.

    >>> legible("ok"), legible("bad" + chr(0) + chr(0xD800))
    ('ok', 'bad��')
    """
    if text.isascii() and "\0" not in text:
        return text
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return whole.replace("\0", "�")


def encode(value: object) -> str:
    """Return a value as compact JSON, the same text for the same value.

    >>> encode(("a", None, b"x"))
    '["a",null,"eA=="]'
    """
    return json.dumps(_plain(value), separators=(",", ":"))


def decode(kind: Any, text: str) -> Any:
    """Return the value of type ``kind`` that ``text`` holds.

    >>> decode(tuple[int, ...], "[1,2]")
    (1, 2)
    """
    return _decoder(kind)(json.loads(text))


def _same(value: Any) -> Any:
    return value


@functools.cache
def _encoder(kind: Any) -> _Convert:
    """Return how values of the class ``kind`` become what ``json`` writes."""
    if dataclasses.is_dataclass(kind):
        names = tuple(f.name for f in dataclasses.fields(kind))
        return lambda value: {name: _plain(getattr(value, name)) for name in names}
    if issubclass(kind, enum.Enum):
        return lambda value: value.value
    if issubclass(kind, datetime):
        return to_micros
    if issubclass(kind, bytes):
        return lambda value: base64.b64encode(value).decode("ascii")
    if issubclass(kind, collections.abc.Mapping):
        return lambda value: [[_plain(k), _plain(v)] for k, v in value.items()]
    if issubclass(kind, frozenset):
        return lambda value: sorted(_plain(item) for item in value)
    if issubclass(kind, tuple | list):
        return lambda value: [_plain(item) for item in value]
    if issubclass(kind, str | int | float | types.NoneType):
        return _same
    raise TypeError(f"values of type {kind.__name__} are not kept in the store")


def _plain(value: Any) -> Any:
    kind: Any = type(value)
    return _encoder(kind)(value)


@functools.cache
def _decoder(kind: Any) -> _Convert:
    """Return how what ``json`` read becomes a value of ``kind``."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _dataclass_decoder(kind)
    if origin in (Union, types.UnionType):
        return _optional_decoder(arguments)
    if origin is tuple:
        return _tuple_decoder(arguments)
    if origin is frozenset:
        item = _decoder(arguments[0])
        return lambda items: frozenset(item(i) for i in items)
    if origin is collections.abc.Mapping:
        key, value = map(_decoder, arguments)
        return lambda pairs: {key(k): value(v) for k, v in pairs}
    if kind is bytes:
        return lambda text: base64.b64decode(text)
    if kind is datetime:
        return from_micros
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind
    if kind in (str, int, float, bool, types.NoneType) or origin is Literal:
        return _same
    raise TypeError(f"values of type {kind} are not kept in the store")


def _dataclass_decoder(kind: Any) -> _Convert:
    hints: dict[str, Any] = typing.get_type_hints(kind)
    decoders = {f.name: _decoder(hints[f.name]) for f in dataclasses.fields(kind)}

    def build(found: dict[str, Any]) -> Any:
        return kind(**{name: read(found[name]) for name, read in decoders.items() if name in found})

    return build


def _optional_decoder(arguments: tuple[Any, ...]) -> _Convert:
    others = [a for a in arguments if a is not types.NoneType]
    if len(others) != 1:
        raise TypeError(f"one type or None can be kept in the store, not {arguments}")
    inner = _decoder(others[0])
    return lambda value: None if value is None else inner(value)


def _tuple_decoder(arguments: tuple[Any, ...]) -> _Convert:
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        item = _decoder(arguments[0])
        return lambda items: tuple(item(i) for i in items)
    parts = tuple(map(_decoder, arguments))
    return lambda items: tuple(part(i) for part, i in zip(parts, items, strict=True))
