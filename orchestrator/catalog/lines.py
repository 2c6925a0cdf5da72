"""Reads a catalog table: YAML with one entry a line whose value is JSON.

The whole file goes through the JSON parser at once, some fifty times faster than through a YAML
one (``docs/decisions/0005-catalog-format.md``). A user's own table may be any YAML of that shape.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeAlias

from orchestrator.errors import ConfigError, Position

Row: TypeAlias = dict[str, Any]


def shipped(table: str) -> dict[str, Row]:
    """Return the rows of a table that ships with the program, by name, in file order."""
    # a wheel is unpacked when installed, so the file is one; importlib.resources costs 15 ms
    return _parse_lines(Path(__file__).with_name(f"{table}.yaml").read_text("utf-8"))


def own(table: str, folder: Path) -> dict[str, Row]:
    """Return the rows of a user's own table in ``folder``; none where there is no such file.

    Raises:
        ConfigError: the file is no mapping of names to mappings.
    """
    path = folder / f"{table}.yaml"
    if not path.is_file():
        return {}
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the catalog cannot be read: {error}", where=Position(str(path), 1, 1)) from error
    try:
        return _parse_lines(text)
    except (ValueError, RecursionError):
        return _parse_yaml(text, path)


def _parse_lines(text: str) -> dict[str, Row]:
    body = ",".join(line for line in text.splitlines() if line and not line.startswith("#"))
    rows: dict[str, Row] = json.loads(f"{{{body}}}")
    return rows


def _parse_yaml(text: str, path: Path) -> dict[str, Row]:
    import yaml  # only for a user's own table: the shipped ones are read as JSON

    try:
        loaded = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        at = Position(str(path), mark.line + 1 if mark else 1, mark.column + 1 if mark else 1)
        raise ConfigError(f"the catalog is not YAML: {error.problem}", where=at) from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict) or not all(isinstance(row, dict) for row in loaded.values()):
        raise ConfigError(
            "the catalog is no mapping of names to facts",
            where=Position(str(path), 1, 1),
            fix='write one entry a line, such as  MY-CARD: {vendor: nvidia, source: "..."}',
        )
    return {str(name): row for name, row in loaded.items()}
