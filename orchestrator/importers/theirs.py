"""A file of another tool's: its keys taken one by one, and what is left over named by its line."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import NoReturn

from orchestrator.errors import Position, Problem, SpecError
from orchestrator.frozen import frozen
from orchestrator.importers.draft import Draft, Place
from orchestrator.spec.interpolation import looks_secret
from orchestrator.spec.tree import Entries, Entry, Items, Node, Scalar, Source, Value
from orchestrator.spec.values import MAX_NAME

_WORDS_OF_1_1: Mapping[str, bool] = {
    word: value
    for lower, value in (("yes", True), ("on", True), ("no", False), ("off", False))
    for word in (lower, lower.capitalize(), lower.upper())
}
"""What these tools' YAML 1.1 takes for booleans and 1.2 for text (yaml.org/type/bool.html)."""


@frozen
class Profile:
    """Keys that a document may leave out, under a name."""

    name: str
    entries: Mapping[str, Entry]

    def under(self, node: Entries, allowed: Iterable[str]) -> tuple[Entries, bool]:
        """Return a document with what the profile says of the allowed keys, and whether that is anything.

        Its keys stand where the document begins: they are lines of another file.
        """
        found = {
            key: Entry(node.line, node.column, _moved(self.entries[key].node, node))
            for key in allowed
            if key in self.entries and key not in node.entries
        }
        return Entries(node.line, node.column, {**node.entries, **found}, node.size), bool(found)


def _moved(node: Node, to: Node) -> Node:
    if isinstance(node, Scalar):
        return replace(node, line=to.line, column=to.column)
    if isinstance(node, Items):
        return Items(to.line, to.column, tuple(_moved(item, to) for item in node.items), node.size)
    moved = {k: Entry(to.line, to.column, _moved(e.node, to)) for k, e in node.entries.items()}
    return Entries(to.line, to.column, moved, node.size)


@dataclass(slots=True)
class Theirs:
    """One file on its way: the documents made of it so far, and what they could not take."""

    source: Source
    tool: str
    drafts: list[Draft] = field(default_factory=list)
    profile: Profile | None = None
    """What fills in where a document says nothing."""
    folders: set[str] = field(default_factory=set)
    """Variables that stand for a folder, or part of its path."""

    @property
    def left_out(self) -> list[Problem]:
        """What could not be carried over."""
        return self.source.problems.found

    def leave_out(self, at: Node | Entry | Place, what: str, fix: str | None = None) -> None:
        """Note something that cannot be carried over."""
        self.source.add(*_place(at), what, fix)

    def leave_secret(self, at: Node | Entry, name: str) -> None:
        """Note that a secret's value was not carried over, without showing its line."""
        where = Position(self.source.file, at.line, at.column)
        fix = f"export {name}, or keep it with: modelyard secret set {name}"
        self.left_out.append(Problem(where, f"the value of {name!r} is not written down again", fix))

    def refuse(self, at: Node | Entry | Place, what: str, fix: str | None = None) -> NoReturn:
        """End here, with all that was found so far.

        Raises:
            SpecError: always.
        """
        self.leave_out(at, what, fix)
        raise SpecError(self.left_out)

    def mapping(self, node: Node | None, path: str) -> Keys | None:
        """Return the keys of a mapping; anything else is noted, and None."""
        if node is None:
            return None
        if isinstance(node, Entries):
            return Keys(self, node, path)
        self.leave_out(node, f"{path or 'document'}: not carried over: expected a mapping")
        return None

    def begin(self, type: str, name: str | None, at: Node | Entry) -> Draft:
        """Begin a document of ours; without a name it gets the file's, and names are made ours."""
        stem = PurePath(self.source.file).name.split(".")[0].strip("<>")
        found = self._unused(_slug(name or stem) or type, type)
        draft = Draft(type, found, _place(at))
        if name is None:
            draft.remark("name", f"{self.tool}'s file gives no name")
        elif name != found:
            draft.remark("name", f"called {name!r} in {self.tool}'s file")
        self.drafts.append(draft)
        return draft

    def _unused(self, name: str, type: str) -> str:
        """Return ``name``, with a number where a document of the kind has it: runs are of one kind."""
        kept = ("fleet", "volume")
        taken = {
            draft.name
            for draft in self.drafts
            if draft.type == type or not (draft.type in kept or type in kept)
        }
        numbered = (f"{name[: MAX_NAME - 4]}-{number}" for number in range(2, 1000))
        return next(one for one in (name, *numbered) if one not in taken)


def _place(at: Node | Entry | Place) -> Place:
    return at if isinstance(at, tuple) else (at.line, at.column)


def _slug(name: str) -> str:
    """Return ``name`` as a name of ours; "" where nothing of it can stay.

    >>> _slug("My_Model.v2"), _slug("123")
    ('my-model-v2', '')
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).lstrip("-0123456789")[:MAX_NAME].rstrip("-")


@dataclass(slots=True)
class Keys:
    """A mapping of theirs, whose keys are taken one by one."""

    theirs: Theirs
    node: Entries
    path: str = ""
    taken: set[str] = field(default_factory=set)

    def name(self, key: str) -> str:
        """Return the path of a key, as messages write it."""
        return f"{self.path}.{key}" if self.path else key

    def entry(self, key: str) -> Entry | None:
        """Take a key with its place; None where it is not there or null."""
        self.taken.add(key)
        found = self.node.entries.get(key)
        return None if found is None or _is_null(found.node) else found

    def take(self, key: str) -> Node | None:
        """Take what a key says; None where it is not there or null."""
        found = self.entry(key)
        return found.node if found else None

    def text(self, key: str) -> str | None:
        """Take a scalar as text; None where there is none."""
        node = self.take(key)
        if node is None or isinstance(node, Scalar):
            return node.text if node else None
        self.leave_out(key, "expected one word or number")
        return None

    def mapping(self, key: str) -> Keys | None:
        """Take a mapping; anything else is noted, and None."""
        return self.theirs.mapping(self.take(key), self.name(key))

    def items(self, key: str) -> tuple[Node, ...]:
        """Take a list; a lone value is a list of one, nothing an empty one."""
        node = self.take(key)
        return node.items if isinstance(node, Items) else () if node is None else (node,)

    def copy(self, draft: Draft, keys: Iterable[str]) -> None:
        """Carry keys over that mean the same to us."""
        for key in keys:
            if (entry := self.entry(key)) is not None:
                draft.put(key, meaning(entry.node), entry)

    def ignore(self, *keys: str) -> None:
        """Take keys that say nothing we do not do anyway."""
        self.taken.update(keys)

    def leave_out(self, key: str, what: str, fix: str | None = None) -> None:
        """Take a key that is there and cannot be carried over, and say why."""
        self.taken.add(key)
        entry = self.node.entries.get(key)
        if entry is not None and not _is_null(entry.node):
            self.theirs.leave_out(entry, f"{self.name(key)}: not carried over: {what}", fix)

    def leave_rest(self, why: Mapping[str, tuple[str, str]] | None = None) -> None:
        """Note every key that nobody took; ``why`` knows some, with what to do instead."""
        for key in [key for key in self.node.entries if key not in self.taken]:
            if not key.startswith("x-"):  # an extension of the user's own, in compose's spelling
                what, fix = (why or {}).get(key, ("there is no such thing here", ""))
                self.leave_out(key, what, fix or None)


def _is_null(node: Node) -> bool:
    return isinstance(node, Scalar) and node.value is None


def meaning(node: Node) -> Value:
    """Return what ``node`` says to a reader of YAML 1.1."""
    if isinstance(node, Items):
        return [meaning(item) for item in node.items]
    if isinstance(node, Entries):
        return {key: meaning(entry.node) for key, entry in node.entries.items()}
    return node.value if node.style else _WORDS_OF_1_1.get(node.text, node.value)


def as_written(scalar: Scalar) -> str:
    """Return a scalar's text, whatever it would mean."""
    return scalar.text


def environment(
    theirs: Theirs, node: Node | None, path: str, read: Callable[[Scalar], str | None] = as_written
) -> dict[str, Value]:
    """Return variables of a list or a mapping; one without a value, or with a secret one, is bare.

    Args:
        theirs: The file.
        node: What it says: ``[NAME=value, NAME]`` or ``{NAME: value}``.
        path: Where, for messages.
        read: Gives the value that a scalar stands for; None makes the name a bare one.
    """
    found: dict[str, Value] = {}
    for name, scalar in pairs_in(theirs, node, path):
        value = read(scalar) if scalar else None
        if value and _is_secret(name, value):
            theirs.leave_secret(scalar or node or Scalar(1, 1, "", None), name)
            value = None
        found[name] = value
    return found


def _is_secret(name: str, value: str) -> bool:
    """Say whether a value is a secret itself, and neither a reference to one nor the path of its file.

    >>> _is_secret("API_KEY", "abc"), _is_secret("API_KEY_FILE", "/run/key"), _is_secret("DEBUG", "1")
    (True, False, False)
    """
    is_path = name.endswith("_FILE") and value.startswith("/")
    return looks_secret(name) and not is_path and "${{" not in value


def pairs_in(theirs: Theirs, node: Node | None, path: str) -> Iterator[tuple[str, Scalar | None]]:
    """Yield the names of ``[NAME=value, NAME]`` or ``{NAME: value}``, each with its value if any."""
    if isinstance(node, Entries):
        for name, entry in node.entries.items():
            if isinstance(entry.node, Scalar):
                yield name, None if _is_null(entry.node) else entry.node
            else:
                theirs.leave_out(entry, f"{path}.{name}: not carried over: expected one word or number")
    elif node is not None:
        for item in node.items if isinstance(node, Items) else (node,):
            if not isinstance(item, Scalar):
                theirs.leave_out(item, f"{path}: not carried over: expected NAME=value")
                continue
            name, equals, text = item.text.partition("=")
            yield name, Scalar(item.line, item.column, text, text, item.style) if equals else None


def renamed(text: str, names: Mapping[str, str], prefix: str) -> tuple[str, tuple[str, ...]]:
    """Return ``text`` with another tool's variables by our names, and those that we have none for.

    >>> renamed("torchrun --nnodes=$X_NODES $X_ID", {"X_NODES": "MODELYARD_NODES_NUM"}, "X_")
    ('torchrun --nnodes=$MODELYARD_NODES_NUM $X_ID', ('X_ID',))
    """
    word = re.compile(rf"\b{prefix}[A-Z0-9_]+\b")
    unknown = dict.fromkeys(found for found in word.findall(text) if found not in names)
    return word.sub(lambda found: names.get(found[0], found[0]), text), tuple(unknown)
