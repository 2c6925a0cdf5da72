"""Whatever a file of theirs says, it is imported or refused; what was imported always loads."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orchestrator.catalog.hardware import known_names
from orchestrator.errors import Problems, SpecError
from orchestrator.importers import TOOLS, import_text
from orchestrator.importers.draft import dump
from orchestrator.spec.load import read
from orchestrator.spec.source import parse
from orchestrator.spec.tree import Source, plain

HERE = Path(__file__).parent
DOCUMENTS = {
    tool: [
        document
        for path in sorted((HERE / "theirs" / tool).iterdir())
        for document in yaml.safe_load_all(path.read_text())
    ]
    for tool in TOOLS
}
ODD: list[Any] = [
    None, "", "x", "$", "${X}", "${X:-}", "${{ env.X }}", "..", "1..", "a:b", ":", "/", "-", "8000-", "9-1",
    "1e9", "+", 0, -1, 1.5, 10**12, True, [], {}, ["a"], [None], [[1]], [{}], {"a": 1}, {"a": None},
    {"name": ["x"]}, "ü\n\tz",
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value inside ``value``."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, one in inner for found in places(one, (*path, key)))]


@st.composite
def damaged(draw: st.DrawFn, tool: str) -> str:
    """A document of theirs in which up to three values are something odd."""
    document = {"whole": copy.deepcopy(draw(st.sampled_from(DOCUMENTS[tool])))}
    for _ in range(draw(st.integers(1, 3))):
        *path, last = draw(st.sampled_from(places(document)[1:]))
        inner: Any = document
        for key in path:
            inner = inner[key]
        inner[last] = copy.deepcopy(draw(st.sampled_from(ODD)))
    text: str = yaml.safe_dump(document["whole"], sort_keys=False, allow_unicode=True)
    return text


@pytest.mark.parametrize("tool", TOOLS)
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_a_damaged_file_is_imported_or_refused(tool: str, data: st.DataObject) -> None:
    text = data.draw(damaged(tool))
    try:
        found = import_text(text, tool=tool, file="x.yaml")
    except SpecError:
        return
    assert read(found.text, known_accelerators=known_names(), env={"X": "1", "HF_TOKEN": "1", "TORCH": "1"})
    lines = text.count("\n") + 1
    assert all(1 <= problem.at.line <= lines for problem in found.left_out)


LOOKS_ELSE = [
    "1e3",
    "010",
    "0o17",
    "0x1f",
    "1:30",
    ".5",
    "yes",
    "null",
    "~",
    "2026-11-25",
    "- a",
    "a: b",
    "#",
]


@given(
    text=st.sampled_from(LOOKS_ELSE)
    | st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\t"))
)
@example("1e3")
@settings(max_examples=200, deadline=None)
def test_text_that_is_written_reads_back_as_text(text: str) -> None:
    problems = Problems()

    (root,) = parse(Source("x", dump({"key": text}), problems))

    assert (plain(root), problems.found) == ({"key": text}, [])
