"""Files, folders and stdin to documents, with every problem of every file at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

from orchestrator.errors import Position, Problem, Problems
from orchestrator.frozen import frozen
from orchestrator.spec.complaints import complain, locate, parse_path
from orchestrator.spec.forms import nearest, shown
from orchestrator.spec.interpolation import Interpolation
from orchestrator.spec.models import TYPES, Spec
from orchestrator.spec.rules import Finding, findings
from orchestrator.spec.tree import Entries, Items, Node, Scalar, Source, Value, plain
from orchestrator.spec.values import Context

SUFFIXES = (".yaml", ".yml")
STDIN = "<stdin>"
_RUNS = frozenset(("task", "service", "dev-environment"))


@frozen
class Document:
    """A checked spec, and where it and its fields stand."""

    spec: Spec
    position: Position
    source: Source = field(repr=False, compare=False)
    root: Entries = field(repr=False, compare=False)

    def at(self, path: str) -> Position:
        """Return where the value at ``path`` stands, or the nearest one around it that is written.

        A path is written as in messages: ``resources.gpu``, ``commands[1]``.
        """
        _, place = locate(self.root, parse_path(path))
        return Position(self.source.file, *place)

    def line(self, at: Position) -> str | None:
        """Return the text of the line that ``at`` is on, to show; None when it is too long."""
        return self.source.line(at.line)

    def problem(self, path: str, what: str, fix: str | None = None) -> Problem:
        """Return a problem with the value at ``path``, drawn with its line."""
        at = self.at(path)
        return Problem(at, what, fix, self.line(at))

    def found(self, finding: Finding) -> Problem:
        """Return a finding of somebody else's rule as a problem, at its key or its value."""
        at = Position(self.source.file, *_place_of(finding, self.root))
        return Problem(at, f"{finding.path}: {finding.what}", finding.fix_at(self.at), self.line(at))


def load(
    paths: Sequence[str],
    *,
    stdin: BinaryIO | None = None,
    known_accelerators: Collection[str] | None = None,
    env: Mapping[str, str] | None = None,
    args: Sequence[str] = (),
    also: Callable[[Sequence[Document]], Iterable[Problem]] = lambda _documents: (),
) -> tuple[Document, ...]:
    """Return the documents of ``paths`` in order.

    Args:
        paths: Files; folders, searched for ``*.yaml`` and ``*.yml`` in order of name, hidden and
            encrypted ones (``*.sops.yaml``) left out; ``-`` for ``stdin``.
        stdin: What ``-`` reads.
        known_accelerators: Names a spec may use; None checks no name.
        env: The environment that ``${{ env.X }}`` is taken from.
        args: What ``${{ run.args }}`` stands for.
        also: Yields what else is wrong with what could be read of the documents: told with the rest.

    Raises:
        SpecError: something is wrong; holds every problem of every file, by place.
    """
    reader = _Reader(_by_lower_case(known_accelerators), env or {}, args)
    for file, content in _contents(paths, stdin, reader.problems):
        folder = Path.cwd() if file == STDIN else Path(file).absolute().parent
        reader.read(content, file, str(folder))
    if not reader.documents and not reader.problems.found:
        nowhere = Position(paths[0] if paths else STDIN, 1, 1)
        reader.problems.add(nowhere, "no documents", "begin with type: task, for example")
    reader.problems.found += also(reader.legible)
    return reader.settle()


def read(
    text: str,
    *,
    file: str = STDIN,
    folder: str | None = None,
    known_accelerators: Collection[str] | None = None,
    env: Mapping[str, str] | None = None,
    args: Sequence[str] = (),
) -> tuple[Document, ...]:
    """Return the documents in ``text``; relative paths count from ``folder``, or stay as they are.

    Raises:
        SpecError: something is wrong; holds every problem, by place.

    >>> read("type: volume\\nname: cache")[0].spec.hash()[:8]
    '1a3b3618'
    """
    reader = _Reader(_by_lower_case(known_accelerators), env or {}, args)
    reader.read(text.encode("utf-8", "surrogatepass"), file, folder)
    return reader.settle()


def _by_lower_case(names: Collection[str] | None) -> dict[str, str] | None:
    # of two spellings, the one with capitals is kept to be suggested
    return None if names is None else {name.lower(): name for name in sorted(names, reverse=True)}


# --- files ----------------------------------------------------------------------------------


def _contents(
    paths: Sequence[str], stdin: BinaryIO | None, problems: Problems
) -> Iterator[tuple[str, bytes]]:
    """Yield every file once, with what it holds; what cannot be read is a problem."""
    from orchestrator.spec.source import MAX_SOURCE_BYTES

    seen: set[str] = set()
    for path in paths:
        if path == "-":
            if stdin is not None:
                yield STDIN, stdin.read(MAX_SOURCE_BYTES + 1)
            continue
        for file in _files(path, problems):
            real = os.path.realpath(file)
            if real in seen:
                continue
            seen.add(real)
            try:
                with Path(file).open("rb") as opened:
                    yield file, opened.read(MAX_SOURCE_BYTES + 1)
            except OSError as error:
                problems.add(Position(file, 1, 1), _reason(error), "check the path and its permissions")


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def files_of(paths: Sequence[str], problems: Problems) -> list[str]:
    """Return the files that paths stand for, each once; a folder without any is a problem."""
    return list(dict.fromkeys(file for path in paths for file in _files(path, problems)))


def _files(path: str, problems: Problems) -> list[str]:
    if not Path(path).is_dir():
        return [path]
    found: list[str] = []
    for folder, inner, files in os.walk(path):
        inner[:] = [name for name in inner if not name.startswith(".")]
        shown_here = (name for name in files if name.endswith(SUFFIXES) and _is_shown(name))
        paths = [Path(folder) / name for name in shown_here]
        # a pipe or a device that happens to lie there would be waited for; a broken link is told
        found += [str(each) for each in paths if each.is_file() or not each.exists()]
    if not found:
        problems.add(
            Position(path, 1, 1), "a folder without *.yaml or *.yml", "name a file or another folder"
        )
    return sorted(found)


def _is_shown(name: str) -> bool:
    return name[0] != "." and ".sops." not in name


# --- documents ------------------------------------------------------------------------------


@frozen
class _Reader:
    """Collects documents, and all that is wrong with any of them."""

    accelerators: Mapping[str, str] | None
    env: Mapping[str, str]
    args: Sequence[str]
    problems: Problems = field(default_factory=Problems)
    documents: list[Document] = field(default_factory=list)
    legible: list[Document] = field(default_factory=list)
    """Those, and what could be read of the others."""

    def read(self, content: bytes, file: str, folder: str | None) -> None:
        from orchestrator.spec.source import decode, parse  # brings PyYAML: 20 ms of CPU

        source = decode(content, file, self.problems)
        if source is None:
            return
        context = Context(self.accelerators, folder)
        filling = Interpolation(source, self.env, self.args) if "${{" in source.text else None
        for root in parse(source):
            filled, unread = filling.document(root) if filling else (root, frozenset[str]())
            self._take(filled, source, context, unread)

    def _take(self, root: Node, source: Source, context: Context, unread: Collection[str]) -> None:
        before = len(source.problems.found)
        spec = _spec(root, source, context, unread)
        if spec is None or not isinstance(root, Entries):
            return
        document = Document(spec, Position(source.file, root.line, root.column), source, root)
        self.legible.append(document)
        if len(source.problems.found) == before and not unread:
            self.documents.append(document)

    def settle(self) -> tuple[Document, ...]:
        """Return the documents, or raise what is wrong with them."""
        _refuse_same_names(self.documents, self.problems)
        self.problems.settle()
        return tuple(self.documents)


def _spec(root: Node, source: Source, context: Context, unread: Collection[str]) -> Spec | None:
    """Return what could be read of a document, None for nothing; what is wrong goes to the problems.

    Nothing more is said about the fields in ``unread``, which could not be made sense of before.
    """
    spec_type = None if "type" in unread else _type_of(root, source)
    if spec_type is None or not isinstance(root, Entries):
        return None
    written = _without(unread, _written(root))
    try:
        spec = spec_type.model_validate(written, context=context)
    except ValidationError as error:
        complaints = error.errors(include_url=False)
        complain(source, root, spec_type, complaints)
        unread = {*unread, *(str(complaint["loc"][0]) for complaint in complaints)}
        spec = spec_type.model_validate(_without(unread, written), context=context)
    _apply_rules(root, source, spec, unread)
    return spec


def _without(unread: Collection[str], written: Mapping[str, Value]) -> dict[str, Value]:
    """Leave out the fields in ``unread``, so that the others can be looked at; a name must be there."""
    kept = {key: value for key, value in written.items() if key not in unread}
    return {"name": "unread", **kept} if "name" in unread else kept


def _type_of(root: Node, source: Source) -> type[Spec] | None:
    words = ", ".join(TYPES)
    if not isinstance(root, Entries):
        source.add(
            root.line, root.column, f"expected a mapping, got {shown(plain(root))}", "write key: value"
        )
        return None
    entry = root.entries.get("type")
    if entry is None:
        source.add(root.line, root.column, "missing key 'type'", f"one of {words}")
        return None
    word = plain(entry.node)
    if isinstance(word, str) and word in TYPES:
        return TYPES[word]
    guess = nearest(word.lower(), {name: name for name in TYPES}) if isinstance(word, str) else None
    where = entry.node.line, entry.node.column
    source.add(*where, f"type: unknown type {shown(word)}", guess or f"one of {words}")
    return None


def _written(root: Entries) -> dict[str, Value]:
    """Return what the document says, with variables and tags as text: ``3.10`` is not 3.1 there."""
    return {
        key: _as_text(entry.node) if key in ("env", "tags") else plain(entry.node)
        for key, entry in root.entries.items()
    }


def _as_text(node: Node) -> Value:
    if isinstance(node, Entries):
        return {key: _scalar_text(entry.node) for key, entry in node.entries.items()}
    return [_scalar_text(item) for item in node.items] if isinstance(node, Items) else plain(node)


def _scalar_text(node: Node) -> Value:
    return node.text if isinstance(node, Scalar) and node.value is not None else plain(node)


def _place_of(finding: Finding, root: Node) -> tuple[int, int]:
    """Return where the key or the value of a finding stands, or the nearest one around it."""
    path = parse_path(finding.path)
    *parents, key = path or ("",)
    holder, _ = locate(root, parents)
    if finding.of_key and isinstance(holder, Entries) and key in holder.entries:
        entry = holder.entries[str(key)]
        return entry.line, entry.column
    _, place = locate(root, path)
    return place


def _apply_rules(root: Node, source: Source, spec: Spec, unread: Collection[str]) -> None:
    """Add what the rules find wrong to the problems."""
    for finding in findings(spec, unread=unread):
        place = _place_of(finding, root)
        where = f"{finding.path}: " if finding.path else ""
        fix = finding.fix_at(lambda path: Position(source.file, *locate(root, parse_path(path))[1]))
        source.add(*place, f"{where}{finding.what}", fix)


def _refuse_same_names(documents: Sequence[Document], problems: Problems) -> None:
    first: dict[tuple[str, str], Position] = {}
    for document in documents:
        spec = document.spec
        kind = "run" if spec.type in _RUNS else spec.type
        at = document.at("name")
        if (kind, spec.name) in first:
            what, fix = f"a second {kind} named {spec.name!r}", f"the first is at {first[kind, spec.name]}"
            problems.found.append(document.problem("name", what, fix))
        else:
            first[kind, spec.name] = at
