"""What a field may hold, checked as it is read: numbers, sizes, durations, names, paths and ranges.

Sizes are kept in bytes and durations in seconds; an unreadable value says how to write it.
"""

# Annotations are not postponed here: evaluating them one by one from text costs 16 ms of CPU.

import posixpath
import re
from collections.abc import Mapping
from os.path import normpath
from pathlib import Path
from typing import Annotated, Literal, Self

from annotated_types import Ge, Gt, Le
from pydantic import AfterValidator, BeforeValidator, Strict, ValidationInfo, model_validator

from orchestrator.frozen import frozen
from orchestrator.spec import forms
from orchestrator.spec.forms import FormError
from orchestrator.spec.parts import Part, Plain, exact_bytes, replace

NAME = re.compile(r"[a-z](?:[a-z0-9-]*[a-z0-9])?", re.ASCII)
NAME_RULE = "lower case letters, digits and dashes, beginning with a letter"
MAX_NAME = 41
"""``<name>-<replica>-<node>-<attempt>`` stays a DNS label of 63 characters."""


@frozen
class Context:
    """What validation may look at beyond the document.

    Args:
        accelerators: Known names in lower case, and how each is spelled; None checks no name.
        folder: The document's folder, from which relative paths count; None leaves them as written.
    """

    accelerators: Mapping[str, str] | None = None
    folder: str | None = None


def context_of(info: ValidationInfo) -> Context:
    """Return what the reader of the document gave; nothing where a model is made in Python."""
    return info.context if isinstance(info.context, Context) else Context()


def _bytes(value: object, info: ValidationInfo) -> object:
    """Read a size; a bare number is bytes in Python, but in YAML nobody knows its unit."""
    return forms.read_bytes(value) if info.context or isinstance(value, str) else value


Bool = Annotated[bool, Strict()]
Int = Annotated[int, Strict()]
Count = Annotated[int, Strict(), Ge(1)]
Natural = Annotated[int, Strict(), Ge(0)]
Positive = Annotated[float, Strict(), Gt(0)]
Percent = Annotated[int, Strict(), Ge(0), Le(100)]
Bytes = Annotated[int, Strict(), Ge(0), BeforeValidator(_bytes, json_schema_input_type=str)]
Seconds = Annotated[
    int, Strict(), Ge(0), BeforeValidator(forms.read_seconds, json_schema_input_type=str | int)
]
Limit = Annotated[
    Annotated[int, Strict(), Ge(0)] | None,
    BeforeValidator(forms.read_limit, json_schema_input_type=str | int | Literal[False] | None),
]
Words = Annotated[
    tuple[str, ...], BeforeValidator(forms.split_words, json_schema_input_type=str | tuple[str, ...])
]
Strings = Annotated[
    tuple[str, ...], BeforeValidator(forms.wrap_one, json_schema_input_type=str | tuple[str, ...])
]


def _checked_name(name: str) -> str:
    if len(name) > MAX_NAME:
        raise FormError(f"a name has at most {MAX_NAME} characters, this has {len(name)}", "shorten it")
    if NAME.fullmatch(name):
        return name
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).lstrip("-0123456789").rstrip("-")
    raise FormError(f"{forms.shown(name)} is no name", f"did you mean {slug!r}?" if slug else NAME_RULE)


def plain_path(path: str, base: str = "") -> str:
    """Return a path of a container as it is spelled without detours, from ``base`` where it is relative.

    >>> plain_path("/tmp/../data/"), plain_path("//data"), plain_path("./x", "/work"), plain_path("a/../x")
    ('/data', '/data', '/work/x', 'x')
    """
    whole = posixpath.normpath(posixpath.join(base, path))
    return "/" + whole.lstrip("/") if whole.startswith("/") else whole


def _absolute(path: str) -> str:
    if not path.startswith("/"):
        raise FormError(f"expected an absolute path, got {forms.shown(path)}", f"write /{path.lstrip('./')}")
    return path


def _local_path(path: str, info: ValidationInfo) -> str:
    """Count a relative path from the document's folder, and ``~`` from the user's."""
    folder = context_of(info).folder
    if folder is None:
        return path
    try:
        return normpath(Path(folder) / Path(path).expanduser())
    except RuntimeError:
        raise FormError(f"no home folder for {forms.shown(path)}", "write the path out") from None


def _local_if_dotted(path: str, info: ValidationInfo) -> str:
    """Leave ``org/name`` and URLs alone; a path begins with a dot, a tilde or a slash."""
    return _local_path(path, info) if path.startswith(("./", "../", "~/")) else path


def _adapter_name(name: str) -> str:
    """Take what engines can be told on a command line as ``name=path``, and SGLang after a colon."""
    if len(name) > 128 or not _ADAPTER_NAME.fullmatch(name):
        rule = "letters, digits, dots, dashes, underscores and slashes, at most 128"
        raise FormError(f"{forms.shown(name)} is no name for an adapter", rule)
    return name


_ADAPTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*", re.ASCII)

Name = Annotated[str, AfterValidator(_checked_name)]
AdapterName = Annotated[str, AfterValidator(_adapter_name)]
AbsolutePath = Annotated[str, AfterValidator(_absolute)]
LocalPath = Annotated[str, AfterValidator(_local_path)]
Source = Annotated[str, AfterValidator(_local_if_dotted)]


class IntRange(Part):
    """From ``min`` to ``max``, both included; an end that is None is open."""

    short_forms = ("integer", "string")

    is_leaf = True

    min: Annotated[Natural | None, replace("The least.")] = None
    max: Annotated[Natural | None, replace("The most.")] = None

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: object) -> object:
        return forms.expand_int_range(value)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_order(self.min, self.max)
        return self

    def canonical(self) -> Plain:
        """Return the short form, such as ``2`` or ``1..4``."""
        return self.min if self.min == self.max else f"{_end(self.min)}..{_end(self.max)}"

    def __contains__(self, value: int) -> bool:
        """Say whether ``value`` lies in the range."""
        return (self.min is None or value >= self.min) and (self.max is None or value <= self.max)


class FloatRange(Part):
    """From ``min`` to ``max``, both included; an end that is None is open."""

    short_forms = ("number", "string")

    is_leaf = True

    min: Annotated[Annotated[float, Strict(), Ge(0)] | None, replace("The least.")] = None
    max: Annotated[Annotated[float, Strict(), Ge(0)] | None, replace("The most.")] = None

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: object) -> object:
        return forms.expand_float_range(value)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_order(self.min, self.max)
        return self

    def canonical(self) -> Plain:
        """Return the short form, such as ``0.5`` or ``2..8``."""
        return _number(self.min) if self.min == self.max else f"{_end(self.min)}..{_end(self.max)}"

    def __contains__(self, value: float) -> bool:
        """Say whether ``value`` lies in the range."""
        return (self.min is None or value >= self.min) and (self.max is None or value <= self.max)


class ByteRange(Part):
    """From ``min`` to ``max`` bytes, both included; an end that is None is open."""

    short_forms = ("string",)

    is_leaf = True

    min: Annotated[Bytes | None, replace("The least, for example 16GB.", unit="bytes")] = None
    max: Annotated[Bytes | None, replace("The most, for example 80GB.", unit="bytes")] = None

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: object) -> object:
        return forms.expand_byte_range(value)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_order(self.min, self.max)
        return self

    def canonical(self) -> Plain:
        """Return the short form, such as ``16GB..80GB``."""
        ends = ["" if end is None else exact_bytes(end) for end in (self.min, self.max)]
        return ends[0] if self.min == self.max else "..".join(ends)

    def __contains__(self, value: int) -> bool:
        """Say whether ``value`` bytes lie in the range."""
        return (self.min is None or value >= self.min) and (self.max is None or value <= self.max)


def _check_order(low: float | None, high: float | None) -> None:
    if low is None and high is None:
        raise FormError("a range needs at least one end", "for example 2.. or ..8")
    if low is not None and high is not None and low > high:
        raise FormError(f"the range ends before it begins: {low} to {high}", "swap the two")


def _number(value: float | None) -> Plain:
    return int(value) if value is not None and value == int(value) else value


def _end(value: float | None) -> str:
    return "" if value is None else str(_number(value))
