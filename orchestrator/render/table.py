"""Columns that line up, without colour, the same on a terminal and in a file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from unicodedata import east_asian_width

from orchestrator.units import plain


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, indent: str = "") -> str:
    """Return rows under a header, each column as wide as its widest cell.

    >>> print(table(["NAME", "STATE"], [["chat", "ready"], ["sft", "queued"]]))
    NAME  STATE
    chat  ready
    sft   queued
    """
    return "\n".join(columns([header, *rows], indent=indent))


def columns(rows: Iterable[Sequence[str]], *, indent: str = "") -> list[str]:
    """Return one line per row with its cells aligned, nothing behind the last.

    >>> columns([["a", "1"], ["bcd", "2"]])
    ['a    1', 'bcd  2']
    """
    # names and messages are other people's: none of them may clear the screen, or look like a row
    cells = [[plain(str(cell)) for cell in row] for row in rows]
    count = max((len(row) for row in cells), default=0)
    widths = [max((_width(row[c]) for row in cells if c < len(row)), default=0) for c in range(count)]
    lines = ("  ".join(c + " " * (w - _width(c)) for c, w in zip(row, widths, strict=False)) for row in cells)
    return [(indent + line).rstrip() for line in lines]


def _width(text: str) -> int:
    """Return the columns that ``text`` takes on a terminal."""
    return sum(2 if east_asian_width(char) in "WF" else 1 for char in text)


def to_json(schema: str, body: Mapping[str, object], *, indent: int | None = 2) -> str:
    """Return a JSON document under its schema's name, such as ``modelyard/plan/v1``.

    Without ``indent`` it is one line.

    >>> print(to_json("modelyard/runs/v1", {"runs": []}))
    {
      "schema": "modelyard/runs/v1",
      "runs": []
    }
    """
    return json.dumps({"schema": schema, **body}, indent=indent, ensure_ascii=False)


def plural(count: int, noun: str) -> str:
    """Return a count with its noun.

    >>> plural(1, "offer"), plural(2, "offer")
    ('1 offer', '2 offers')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
