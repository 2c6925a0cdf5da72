"""Strict YAML: text to trees that know their lines and columns, with every problem on the way.

Scalars follow the core schema of YAML 1.2.2 (§10.3): only true and false are booleans, ``1:30``
is text, ``010`` is ten. Duplicate keys are refused. Anchors work, also as ``<<`` merges, but not
in cycles, and what they expand to is limited. Built on parser events, not on PyYAML's composer,
which recurses in C without a limit and resolves scalars as YAML 1.1 does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import yaml  # 20 ms of CPU: this module is only imported when there is a file to read
from yaml import Event, MappingStartEvent, ScalarEvent, SequenceStartEvent
from yaml.reader import Reader

from orchestrator.errors import Position, Problems
from orchestrator.spec.tree import Entries, Entry, Items, Node, Scalar, Source, end_of, resolve, size_of

MAX_SOURCE_BYTES = 10_000_000
MAX_NODES = 200_000
"""Nodes of one file, aliases counted by what they expand to."""
MAX_DEPTH = 64

_BOM = "\ufeff"
"""Allowed by YAML where a file begins, which ``utf-8-sig`` has taken away; inside, nobody sees it."""
_TEXT_TAGS = frozenset(("!", "tag:yaml.org,2002:str"))
_FIXES = (
    ("mapping values are not allowed", "put text that holds ': ' in quotes"),
    ("could not find expected ':'", "write key: value"),
    ("did not find expected ',' or", "close the bracket, and put text that holds braces in quotes"),
    ("did not find expected key", "check the indentation, and close the quotes"),
    ("undefined alias", "define it with & above"),
)


def decode(content: bytes, file: str, problems: Problems) -> Source | None:
    """Return the text of a file, or None when it is too large or no UTF-8; that is a problem then."""
    if len(content) > MAX_SOURCE_BYTES:
        at = Position(file, 1, 1)
        problems.add(at, f"larger than {MAX_SOURCE_BYTES // 10**6} MB", "split it into several files")
        return None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode("utf-8", "replace")
        at = Position(file, *end_of(before))
        problems.add(at, f"not UTF-8: byte 0x{content[error.start]:02x}", "save the file as UTF-8")
        return None
    return Source(file, text, problems)


def _start_of(event: Event) -> tuple[int, int]:
    assert event.start_mark is not None
    return event.start_mark.line + 1, event.start_mark.column + 1


def parse(source: Source) -> tuple[Node, ...]:
    """Return the documents of a file, empty ones left out; what is wrong is added to its problems.

    A file whose YAML is broken gives what stands before the break.
    """
    if (at := _forbidden(source.text)) is not None:
        line, column = end_of(source.text[:at])
        source.add(line, column, f"a character that YAML forbids: U+{ord(source.text[at]):04X}", "remove it")
        return ()
    return tuple(_documents(source))


def _forbidden(text: str) -> int | None:
    """Return where the first character is that a file may not hold.

    >>> _forbidden("a\\tb"), _forbidden("a\\ufeffb\\0"), _forbidden("a\\0b\\ufeff")
    (None, 1, 1)
    """
    found = Reader.NON_PRINTABLE.search(text)  # PyYAML's own: one of ours costs 5 ms more to compile
    at = text.find(_BOM, 0, found.start() if found else len(text))
    if at >= 0:
        return at
    return found.start() if found else None


def _fix(what: str, character: str) -> str | None:
    """Say what to do about the parser's complaint at ``character``."""
    if "cannot start any token" in what:
        tab = character == "\t"
        return (
            "indent with spaces, not with tabs" if tab else f"put text that begins with {character} in quotes"
        )
    return next((fix for part, fix in _FIXES if part in what), None)


class _LimitError(Exception):
    """A limit was passed; the problem is noted, and the rest of the file is not looked at."""


def _documents(source: Source) -> Iterator[Node]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    builder = _Builder(source, yaml.parse(source.text, Loader=loader))
    try:
        yield from builder.documents()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = str(error.problem or error.context or "cannot be read")
        line, column = source.before_end(mark.line + 1, mark.column + 1) if mark else (1, 1)
        source.add(line, column, f"broken YAML: {what}", _fix(what, source.character(line, column)))
    except yaml.YAMLError as error:
        source.add(1, 1, f"broken YAML: {' '.join(str(error).split())}")
    except _LimitError:
        pass


@dataclass(slots=True)
class _Builder:
    """Builds trees from parser events."""

    source: Source
    events: Iterator[Event]
    anchors: dict[str, Node | None] = field(default_factory=dict)
    nodes: int = 0

    def documents(self) -> Iterator[Node]:
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                self.anchors = {}
                node = self.node(next(self.events), 0)
                if not (isinstance(node, Scalar) and node.value is None):
                    yield node

    def node(self, event: Event, depth: int) -> Node:
        line, column = _start_of(event)
        if isinstance(event, yaml.AliasEvent):
            assert event.anchor is not None
            return self.alias(event.anchor, line, column)
        self.count(1, line, column)
        if depth > MAX_DEPTH:
            self.source.add(line, column, f"nested more than {MAX_DEPTH} deep", "flatten it")
            raise _LimitError
        anchor = getattr(event, "anchor", None)
        if anchor is not None:
            self.anchors[anchor] = None  # unfinished: an alias inside itself is a cycle
        node: Node
        if isinstance(event, yaml.ScalarEvent):
            node = self.scalar(event, line, column)
        elif isinstance(event, yaml.SequenceStartEvent):
            node = self.sequence(event, line, column, depth)
        else:
            assert isinstance(event, yaml.MappingStartEvent), event
            node = self.mapping(event, line, column, depth)
        if anchor is not None:
            self.anchors[anchor] = node
        return node

    def count(self, nodes: int, line: int, column: int) -> None:
        self.nodes += nodes
        if self.nodes > MAX_NODES:
            fix = "split the file, or use fewer aliases"
            self.source.add(line, column, f"more than {MAX_NODES:,} values with aliases expanded", fix)
            raise _LimitError

    def alias(self, anchor: str, line: int, column: int) -> Node:
        if anchor not in self.anchors:
            self.source.add(line, column, f"undefined alias '*{anchor}'", f"define it above with &{anchor}")
            return Scalar(line, column, "", None)
        target = self.anchors[anchor]
        if target is None:
            self.source.add(line, column, f"'*{anchor}' contains itself", "write the value out")
            return Scalar(line, column, "", None)
        self.count(1 if isinstance(target, Scalar) else target.size, line, column)
        return target

    def tagged(self, tag: str | None, line: int, column: int) -> None:
        if tag is not None:
            short = tag.replace("tag:yaml.org,2002:", "!!")
            self.source.add(line, column, f"unknown tag '{short}'", "remove it; only !!str is known")

    def scalar(self, event: ScalarEvent, line: int, column: int) -> Scalar:
        style = event.style or ""
        if "\0" in event.value:  # an escape in quotes; no program can be given one
            self.source.add(line, column, "text with a NUL character", "remove it")
        if event.tag in _TEXT_TAGS or style:
            if event.tag not in _TEXT_TAGS:
                self.tagged(event.tag, line, column)
            return Scalar(line, column, event.value, event.value, style)
        self.tagged(event.tag, line, column)
        try:
            return Scalar(line, column, event.value, resolve(event.value))
        except ValueError as error:
            self.source.add(line, column, str(error), "put it in quotes if it is text")
            return Scalar(line, column, event.value, event.value, is_unread=True)

    def sequence(self, event: SequenceStartEvent, line: int, column: int, depth: int) -> Items:
        self.tagged(event.tag, line, column)
        items: list[Node] = []
        while not isinstance(inner := next(self.events), yaml.SequenceEndEvent):
            items.append(self.node(inner, depth + 1))
        return Items(line, column, tuple(items), 1 + sum(map(size_of, items)))

    def mapping(self, event: MappingStartEvent, line: int, column: int, depth: int) -> Entries:
        self.tagged(event.tag, line, column)
        entries: dict[str, Entry] = {}
        merged: dict[str, Entry] = {}
        while not isinstance(inner := next(self.events), yaml.MappingEndEvent):
            key = self.node(inner, depth + 1)
            value = self.node(next(self.events), depth + 1)
            # an alias as key stands where its anchor does; the place meant is here
            at = Scalar(*_start_of(inner), "", None)
            if not isinstance(key, Scalar) or (key.value is None and not key.style):
                self.source.add(at.line, at.column, "a key is one word of text", "write key: value")
            elif key.text == "<<" and not key.style:
                for name, entry in self.merge(value, at).items():
                    merged.setdefault(name, entry)
            elif key.text in entries:
                first = entries[key.text].line
                what = f"duplicate key {key.text!r}"
                self.source.add(at.line, at.column, what, f"the first is on line {first}; keep one")
            else:
                entries[key.text] = Entry(at.line, at.column, value)
        full = entries | {name: entry for name, entry in merged.items() if name not in entries}
        return Entries(line, column, full, 1 + sum(1 + size_of(entry.node) for entry in full.values()))

    def merge(self, value: Node, at: Scalar) -> Mapping[str, Entry]:
        if isinstance(value, Entries):
            return value.entries
        parts = value.items if isinstance(value, Items) else ()
        if not parts or not all(isinstance(part, Entries) for part in parts):
            self.source.add(at.line, at.column, "'<<' takes a mapping or a list of them", "write <<: *name")
        found: dict[str, Entry] = {}
        for part in parts:
            if isinstance(part, Entries):
                found = {**part.entries, **found}
        return found
