"""The last step of an import: what was made is read as any document is, and what is refused goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field

from orchestrator.catalog.hardware import known_names
from orchestrator.errors import Position, Problem, Problems, SpecError
from orchestrator.frozen import frozen
from orchestrator.importers.draft import Draft, Path, write
from orchestrator.importers.theirs import Theirs
from orchestrator.spec.interpolation import AnyVariables
from orchestrator.spec.load import read
from orchestrator.spec.tree import Entries, Entry, Node, Scalar, Source


@frozen
class Imported:
    """Documents of ours as YAML, and what of the original is not in them, by place."""

    text: str
    left_out: tuple[Problem, ...]
    behind: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By document, words behind its image's own entrypoint, which are not in it."""


def settle(theirs: Theirs) -> Imported:
    """Return the documents as text that loads.

    Fields that our reader refuses are left out and noted, and so are documents that lack what they
    cannot run without.

    Raises:
        SpecError: no document is left; holds all that was found.
    """
    numbers: dict[str, str] = {}  # each another: two may be ports of one machine
    env = AnyVariables(
        lambda name: numbers.setdefault(name, f"{'/' if name in theirs.folders else ''}{len(numbers) + 1}")
    )
    while True:
        if not theirs.drafts:
            theirs.refuse((1, 1), "nothing in this file can be imported")
        text = write(theirs.drafts)
        try:
            read(text, known_accelerators=known_names(), env=env)
        except SpecError as error:
            _drop_refused(theirs, text, error.problems)
        else:
            behind = {draft.name: draft.behind for draft in theirs.drafts if draft.behind}
            return Imported(text, tuple(sorted(theirs.left_out, key=lambda problem: problem.at)), behind)


def _drop_refused(theirs: Theirs, text: str, refused: Sequence[Problem]) -> None:
    """Drop the fields that were refused, each once, and documents that cannot do without."""
    from orchestrator.spec.source import parse

    roots = parse(Source("", text, Problems()))
    gone: list[Draft] = []
    for problem in refused:
        index = max(i for i, root in enumerate(roots) if root.line <= problem.at.line)
        draft, path = theirs.drafts[index], _path_to(roots[index], problem.at)
        if path[0] in ("type", "name"):
            what = f"{draft.type} {draft.name!r}: not carried over: {problem.what}"
            theirs.leave_out(draft.at, what, problem.fix)
            gone.append(draft)
        elif draft.holds(path):
            theirs.leave_out(draft.drop(path), f"not carried over: {problem.what}", problem.fix)
    theirs.drafts = [draft for draft in theirs.drafts if not any(draft is one for one in gone)]


def _path_to(root: Node, at: Position) -> Path:
    """Return the keys and indexes that lead to what stands at a place."""
    path: Path = ()
    node = root
    while not isinstance(node, Scalar):
        inner: list[tuple[str | int, Entry | Node, Node]] = (
            [(key, entry, entry.node) for key, entry in node.entries.items()]
            if isinstance(node, Entries)
            else [(index, item, item) for index, item in enumerate(node.items)]
        )
        before = [one for one in inner if (one[1].line, one[1].column) <= (at.line, at.column)]
        if not before:
            break
        path, node = (*path, before[-1][0]), before[-1][2]
    return path
