"""A document of ours in the making, and how it is written as YAML that reads back the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from orchestrator.spec.complaints import named
from orchestrator.spec.tree import Entries, Entry, Items, Node, Value, resolve

Place = tuple[int, int]
"""A line and a column of their file."""
Path = tuple[str | int, ...]
"""Keys and indexes that lead to a value."""


@dataclass(slots=True)
class Draft:
    """One document: its fields, where each came from, and remarks to stand above them.

    ``at`` is where the original begins. Fields are in the order in which they were put.
    """

    type: str
    name: str
    at: Place
    values: dict[str, Value] = field(default_factory=dict)
    origins: dict[str, Node | Entry] = field(default_factory=dict)
    remarks: dict[str, list[str]] = field(default_factory=dict)
    behind: tuple[str, ...] = ()
    """Words behind the image's own entrypoint, which a document of ours has no place for."""

    def put(self, key: str, value: Value, at: Node | Entry, remark: str = "") -> None:
        """Set a field, and say what changed on the way."""
        self.values[key] = value
        self.origins[key] = at
        if remark:
            self.remark(key, remark)

    def remark(self, key: str, text: str) -> None:
        """Say something above a field."""
        said = self.remarks.setdefault(key, [])
        if text not in said:
            said.append(text)

    def holds(self, path: Path) -> bool:
        """Say whether there is a value at ``path``."""
        inner: Any = self.values
        for key in path:
            keys = range(len(inner)) if isinstance(inner, list) else inner if isinstance(inner, dict) else ()
            if key not in keys:
                return False
            inner = inner[key]
        return True

    def drop(self, path: Path) -> Place:
        """Take a value out, with what becomes empty by that; return where it came from."""
        place = self.place(path)
        while path:
            inner: Any = self.values
            for key in path[:-1]:
                inner = inner[key]
            del inner[path[-1]]
            if inner:
                break
            path = path[:-1]
        return place

    def place(self, path: Path) -> Place:
        """Return where the value at ``path`` came from, or the nearest one around it that is known."""
        origin = self.origins.get(str(path[0]))
        if origin is None:
            return self.at
        place, node = (origin.line, origin.column), origin.node if isinstance(origin, Entry) else origin
        for key in path[1:]:
            if isinstance(node, Entries) and key in node.entries:
                entry = node.entries[str(key)]
                place, node = (entry.line, entry.column), entry.node
            elif isinstance(node, Items) and isinstance(key, int) and key < len(node.items):
                node = node.items[key]
                place = node.line, node.column
            elif isinstance(node, Items) and (said := named(node, str(key))):
                node = said
                place = node.line, node.column
            else:
                break
        return place


def write(drafts: Iterable[Draft]) -> str:
    """Return the documents as YAML.

    >>> print(write([Draft("task", "a", (1, 1), {"env": {"V": "1e3"}}, remarks={"env": ["as text"]})]))
    type: task
    name: a
    # as text
    env:
      V: "1e3"
    <BLANKLINE>
    """
    return "---\n".join(_document(draft) for draft in drafts)


def _document(draft: Draft) -> str:
    fields: dict[str, Value] = {"type": draft.type, "name": draft.name, **draft.values}
    return "".join(_remarks(draft, key) + dump({key: value}) for key, value in fields.items())


def _remarks(draft: Draft, key: str) -> str:
    return "".join(f"# {text}\n" for text in draft.remarks.get(key, ()))


def dump(value: Mapping[str, Any]) -> str:
    """Return a mapping as YAML in its own order, which readers of 1.1 and 1.2 take for the same.

    >>> print(dump({"a": "010", "b": "x\\ny"}))
    a: "010"
    b: |-
      x
      y
    <BLANKLINE>
    """
    text: str = yaml.dump(
        dict(value), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100, default_flow_style=False
    )
    return text


class _Dumper(yaml.SafeDumper):
    """Writes text so that YAML 1.1 and 1.2 both read it as text, and scripts as they look.

    A word of a list stays text whatever a reference in it stands for; elsewhere that may be a number.
    """

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002  # PyYAML's signature
        """Write a value that is there twice twice."""
        return True


class Word(str):
    """A text that stays one, whatever a reference in it stands for."""

    __slots__ = ()


def _represent_list(dumper: yaml.SafeDumper, values: list[Any]) -> yaml.SequenceNode:
    words = [Word(value) if isinstance(value, str) else value for value in values]
    return dumper.represent_sequence("tag:yaml.org,2002:seq", words)


def _represent_word(dumper: yaml.SafeDumper, text: Word) -> yaml.ScalarNode:
    if text.startswith("${{") and "\n" not in text:
        return dumper.represent_scalar("tag:yaml.org,2002:str", str(text), style='"')
    return _represent_text(dumper, str(text))


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None if _is_plain(text) else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _is_plain(text: str) -> bool:
    """Say whether YAML 1.2 reads ``text`` as text without quotes; PyYAML itself knows 1.1."""
    try:
        return isinstance(resolve(text), str)
    except ValueError:
        return False


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(list, _represent_list)
_Dumper.add_representer(Word, _represent_word)
