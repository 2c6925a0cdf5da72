"""Whatever a file holds, reading it gives documents or problems with a place, never a traceback."""

from __future__ import annotations

import re
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import Problem, SpecError
from orchestrator.spec.load import read
from orchestrator.spec.models import TYPES, spec_of
from orchestrator.spec.parts import Part, part_of
from tests.spec.test_models import TEXTS
from tests.spec.texts import KNOWN

EXAMPLES = settings(max_examples=150, deadline=None)


def problems_of(text: str) -> tuple[Problem, ...]:
    try:
        documents = read(text, known_accelerators=KNOWN, env={"N": "2"})
    except SpecError as error:
        return error.problems
    for document in documents:
        assert spec_of(document.spec.canonical()) == document.spec
    return ()


def outcome(text: str) -> None:
    """Read ``text``; hold whatever comes back against what must be true of it."""
    lines = len(re.split("\r\n|[\n\r\x85\u2028\u2029]", text))
    for problem in problems_of(text):
        assert 1 <= problem.at.line <= lines
        assert problem.at.column >= 1
        assert problem.what
        assert "pydantic" not in str(problem)


def words(part: type[Part]) -> set[str]:
    found = set(part.model_fields)
    for info in part.model_fields.values():
        if (inner := part_of(info.annotation)) is not None:
            found |= words(inner)
    return found


KEYS = st.sampled_from(sorted(set().union(*map(words, TYPES.values())) | {"<<", "x"}))
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 70_000),
    st.floats(allow_nan=True),
    st.text(max_size=6),
    st.sampled_from(
        [
            "1..4", "..", "24GB", "H100:2", "H1OO", "off", "5m", "80:8080", "*:1", "a:/b", "./a:/b", "auto",
            "true", "${{ env.N }}", "${{ env.X }}", "${{ secrets.A }}", "${{ run.args }}", "task", "service",
            "volume", "t", "0 3 * * *", "arm:2", "A=1", "lora", "2..", "\u2028", "a: b",
        ]
    ),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@EXAMPLES
@given(st.text(max_size=200))
def test_any_text(text: str) -> None:
    outcome(text)


@EXAMPLES
@given(st.text(alphabet="abt:-[]{},&*!|>'\"%@`?#$<~. \n\t\r1é", max_size=80))
def test_any_punctuation(text: str) -> None:
    outcome(f"type: task\n{text}")


@EXAMPLES
@given(kind=st.sampled_from([*TYPES, "pod"]), document=st.dictionaries(KEYS, VALUES, max_size=6))
def test_any_document(kind: str, document: dict[str, object]) -> None:
    outcome(yaml.safe_dump({"type": kind, "name": "t", **document}, allow_unicode=True))


@EXAMPLES
@given(text=st.sampled_from(TEXTS), path=st.lists(st.integers(0, 7), min_size=1, max_size=4), value=VALUES)
def test_any_value_in_place_of_another(text: str, path: list[int], value: object) -> None:
    root = yaml.safe_load(text)
    node: Any = root
    for step in path:
        if not (isinstance(node, dict | list) and node):
            break
        holder = node
        key = sorted(node)[step % len(node)] if isinstance(node, dict) else step % len(node)
        node = holder[key]
    holder[key] = value

    outcome(yaml.safe_dump(root, allow_unicode=True))


@EXAMPLES
@given(text=st.sampled_from(TEXTS), cut=st.integers(0, 1200), junk=st.text(max_size=4))
def test_any_file_cut_short(text: str, cut: int, junk: str) -> None:
    outcome(text[:cut] + junk)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=64))
def test_any_bytes(content: bytes) -> None:
    outcome(content.decode("utf-8", "surrogateescape"))
