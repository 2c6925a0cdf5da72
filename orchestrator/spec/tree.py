"""What a YAML file says, as trees that know their lines and columns."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from orchestrator.errors import Position, Problems
from orchestrator.frozen import frozen

MAX_SHOWN_LINE = 2000
_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
"""YAML's own line breaks, as the parser's marks count them."""
_SECRET_VALUE = re.compile(
    r"""(?P<name>(?:^|[^A-Za-z0-9_])(?:[A-Za-z0-9]+_)*(?:TOKEN|SECRET|PASSWORD|PASSWD|KEY|CREDENTIALS?)["']?\s*[:=]\s*)"""
    r"""(?P<value>"(?!\$\{\{)[^"]+"|'(?!\$\{\{)[^']+'|[^\s"'$&*{\[|>#,}\]][^,}\]#]*)""",
    re.IGNORECASE,
)
_NULL = frozenset(("", "~", "null", "Null", "NULL"))
_BOOL: Mapping[str, bool] = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INT = re.compile(r"[-+]?[0-9]+", re.ASCII)
_BASED = re.compile(r"0o([0-7]+)|0x([0-9a-fA-F]+)", re.ASCII)
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", re.ASCII)
_SPECIAL = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", re.ASCII)
_MAX_DIGITS = 64

Value: TypeAlias = "str | int | float | bool | list[Value] | dict[str, Value] | None"
"""What a tree says, without its places."""


@frozen
class Scalar:
    """One value; ``text`` is what the file says, ``value`` what it means."""

    line: int
    column: int
    text: str
    value: str | int | float | bool | None
    style: str = ""
    """How it is quoted: one of ``'``, ``"``, ``|``, ``>``, or not at all."""
    is_unread: bool = False
    """Whether it is a number that nobody can read, which is a problem already."""


@frozen
class Items:
    """A list."""

    line: int
    column: int
    items: tuple[Node, ...]
    size: int = 1


@frozen
class Entry:
    """A key with its place, and its value."""

    line: int
    column: int
    node: Node


@frozen
class Entries:
    """A mapping, in the order of the file."""

    line: int
    column: int
    entries: Mapping[str, Entry]
    size: int = 1


Node: TypeAlias = Scalar | Items | Entries


@dataclass(slots=True)
class Source:
    """One file's text, and the problems found in it."""

    file: str
    text: str
    problems: Problems
    _lines: list[str] | None = None

    def add(self, line: int, column: int, what: str, fix: str | None = None) -> None:
        """Remember a problem with the line it is on."""
        self.problems.add(Position(self.file, line, column), what, fix, self.line(line))

    def place(self, scalar: Scalar, offset: int) -> tuple[int, int]:
        """Return the line and column of the character at ``offset`` of a scalar's text."""
        if scalar.style in ("|", ">"):
            before = scalar.text[:offset]
            line = scalar.line + 1 + before.count("\n")
            text = self._raw(line)
            return line, len(text) - len(text.lstrip()) + offset - before.rfind("\n")
        quote = 1 if scalar.style else 0
        on_this_line = self._raw(scalar.line)[scalar.column - 1 + quote :].startswith(scalar.text)
        return scalar.line, scalar.column + (quote + offset if on_this_line else 0)

    def before_end(self, line: int, column: int) -> tuple[int, int]:
        """Return the place, or the end of the last line with text when it lies beyond all text."""
        last = max((n for n, text in enumerate(self._split(), 1) if text.strip()), default=1)
        return (line, column) if line <= last else (last, len(self._raw(last).rstrip()) + 1)

    def line(self, number: int) -> str | None:
        """Return the text of a line to show, which counts from 1; None when it is too long to show.

        What looks like the value of a secret is covered, for messages end up in logs.
        """
        text = self._raw(number)
        return None if len(text) > MAX_SHOWN_LINE else _SECRET_VALUE.sub(_covered, text)

    def character(self, line: int, column: int) -> str:
        """Return what stands at a place; "" beyond the end."""
        return self._raw(line)[column - 1 : column]

    def _raw(self, number: int) -> str:
        lines = self._split()
        return lines[number - 1] if 0 < number <= len(lines) else ""

    def _split(self) -> list[str]:
        if self._lines is None:
            self._lines = _BREAK.split(self.text)
        return self._lines


def _covered(found: re.Match[str]) -> str:
    return found["name"] + "*" * len(found["value"])


def end_of(text: str) -> tuple[int, int]:
    """Return the line and column that follow ``text``."""
    lines = _BREAK.split(text)
    return len(lines), len(lines[-1]) + 1


def plain(node: Node) -> Value:
    """Return what ``node`` says as strings, numbers, lists and dictionaries."""
    if isinstance(node, Scalar):
        return node.value
    if isinstance(node, Items):
        return [plain(item) for item in node.items]
    return {key: plain(entry.node) for key, entry in node.entries.items()}


def size_of(node: Node) -> int:
    """Return how many values ``node`` holds, itself counted."""
    return 1 if isinstance(node, Scalar) else node.size


def resolve(text: str) -> str | int | float | bool | None:
    """Return what an unquoted scalar means in YAML 1.2's core schema.

    Raises:
        ValueError: a number is not finite, has more than 64 digits, or is whole and beyond 64 bits.

    >>> [resolve(text) for text in ("yes", "true", "1:30", "010", "1e3", "0x10", "~", "3.10")]
    ['yes', True, '1:30', 10, 1000.0, 16, None, 3.1]
    """
    if text in _NULL:
        return None
    if (found := _BOOL.get(text)) is not None:
        return found
    if text[0] not in "+-.0123456789":
        return text
    if len(text) <= _MAX_DIGITS:
        return _number(text)
    if _FLOAT.fullmatch(text) or _BASED.fullmatch(text):
        raise ValueError(f"a number of more than {_MAX_DIGITS} digits")
    return text


def _whole(number: int) -> int:
    if abs(number) >= 2**64:
        raise ValueError("a whole number beyond 64 bits")
    return number


def _number(text: str) -> str | int | float:
    if _INT.fullmatch(text):
        return _whole(int(text))
    if based := _BASED.fullmatch(text):
        return _whole(int(based[1], 8) if based[1] else int(based[2], 16))
    if _SPECIAL.fullmatch(text):
        raise ValueError(f"expected a finite number, got {text}")
    if _FLOAT.fullmatch(text):
        number = float(text)
        if math.isinf(number):
            raise ValueError(f"expected a finite number, got {text}")
        return number
    return text
