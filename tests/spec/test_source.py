"""Strict YAML: what is read, what is refused, and where the problem is."""

from __future__ import annotations

import pytest

from orchestrator.errors import Problem, Problems
from orchestrator.spec.source import MAX_DEPTH, MAX_NODES, MAX_SOURCE_BYTES, decode, parse
from orchestrator.spec.tree import Entries, Items, Value, plain, resolve


def parsed(content: bytes | str) -> tuple[list[Value], list[Problem]]:
    problems = Problems()
    source = decode(content.encode() if isinstance(content, str) else content, "a.yaml", problems)
    roots = parse(source) if source else ()
    return [plain(root) for root in roots], problems.found


def only_problem(content: bytes | str) -> Problem:
    _, found = parsed(content)
    (problem,) = found
    return problem


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True), ("False", False), ("yes", "yes"), ("off", "off"), ("on", "on"), ("n", "n"),
        ("null", None), ("~", None), ("1:30", "1:30"), ("12:30:45", "12:30:45"), ("010", 10), ("0o10", 8),
        ("0x1F", 31), ("-7", -7), ("1_000", "1_000"), ("1e3", 1000.0), ("2.0e-4", 2e-4), (".5", 0.5),
        ("3.10", 3.1), ("2026-01-02", "2026-01-02"), ("+", "+"), (".", "."), ("-", "-"), ("1..4", "1..4"),
        ("=", "="), ("0b1", "0b1"),
    ],
)  # fmt: skip
def test_plain_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    resolved = resolve(text)

    assert resolved == value
    assert type(resolved) is type(value)


def test_quotes_and_str_tag_make_text() -> None:
    values, problems = parsed("[\"1\", 'true', !!str 3.10, ! 5]")

    assert values == [["1", "true", "3.10", "5"]]
    assert problems == []


def test_documents_are_divided_and_empty_ones_left_out() -> None:
    values, problems = parsed("---\n---\na: 1\n---\n# nothing\n---\nb: 2\n...\n")

    assert values == [{"a": 1}, {"b": 2}]
    assert problems == []


def test_values_and_keys_know_their_places() -> None:
    source = decode(b"# c\na:\n  - x\n  - {k: 'v'}\n", "a.yaml", Problems())
    assert source is not None

    (root,) = parse(source)

    assert isinstance(root, Entries)
    entry = root.entries["a"]
    assert (entry.line, entry.column) == (2, 1)
    assert isinstance(entry.node, Items)
    inner = entry.node.items[1]
    assert isinstance(inner, Entries)
    assert (inner.entries["k"].line, inner.entries["k"].column) == (4, 6)
    assert (inner.entries["k"].node.line, inner.entries["k"].node.column) == (4, 9)


def test_columns_count_characters() -> None:
    problem = only_problem("ключ: {a: 1, a: 2}\n")

    assert (problem.at.line, problem.at.column) == (1, 14)


def test_duplicate_keys_are_refused_with_both_places() -> None:
    problem = only_problem("a: 1\nb: 2\na: 3\n")

    assert problem.what == "duplicate key 'a'"
    assert problem.fix is not None
    assert "line 1" in problem.fix
    assert problem.at.line == 3


def test_anchors_and_merges_work() -> None:
    values, problems = parsed("a: &x {k: 1, l: 2}\nb: *x\nc: {<<: *x, l: 3}\nd: {<<: [{m: 1}, *x]}\n")

    assert problems == []
    assert values == [
        {"a": {"k": 1, "l": 2}, "b": {"k": 1, "l": 2}, "c": {"l": 3, "k": 1}, "d": {"m": 1, "k": 1, "l": 2}}
    ]


@pytest.mark.parametrize("text", ["a: &x [*x]", "a: &x {b: *x}", "a: &x {b: [{c: *x}]}", "&x [*x]"])
def test_cyclic_anchors_are_refused(text: str) -> None:
    assert only_problem(text).what == "'*x' contains itself"


def test_anchors_end_with_their_document() -> None:
    assert only_problem("a: &x 1\n---\nb: *x\n").what == "undefined alias '*x'"


def test_anchor_bombs_are_refused() -> None:
    levels = ["l0: &l0 [" + ",".join("1" * 10) + "]"]
    levels += [f"l{n}: &l{n} [" + ",".join([f"*l{n - 1}"] * 10) + "]" for n in range(1, 12)]

    problem = only_problem("\n".join(levels))

    assert "aliases expanded" in problem.what
    assert problem.at.line == 6


def test_merge_bombs_are_refused() -> None:
    keys = ", ".join(f"k{n}: 1" for n in range(1000))
    uses = "\n".join(f"u{n}: {{<<: *a}}" for n in range(300))

    assert "aliases expanded" in only_problem(f"a: &a {{{keys}}}\n{uses}\n").what


def test_too_many_values_are_refused() -> None:
    assert "more than" in only_problem("- a\n" * (MAX_NODES + 1)).what


@pytest.mark.parametrize("opening", ["[", "{a: ", "- "])
def test_deep_nesting_is_refused(opening: str) -> None:
    problem = only_problem(opening * (MAX_DEPTH + 10))

    assert problem.what == f"nested more than {MAX_DEPTH} deep"


def test_megabytes_of_brackets_are_refused_quickly() -> None:
    assert only_problem("[" * 9_000_000).at.line == 1


def test_larger_than_the_limit_is_refused() -> None:
    assert only_problem(b"a" * (MAX_SOURCE_BYTES + 1)).what == "larger than 10 MB"


def test_not_utf_8_has_its_place() -> None:
    problem = only_problem(b"a: 1\n\xc3\xa4b: \xff\n")

    assert (problem.at.line, problem.at.column) == (2, 5)
    assert problem.what == "not UTF-8: byte 0xff"


@pytest.mark.parametrize("character", ["\0", "\x07", "\x7f", "\ufffe", "\ufeff"])
def test_forbidden_characters_have_their_place(character: str) -> None:
    problem = only_problem(f"a: 1\nb: x{character}\n")

    assert (problem.at.line, problem.at.column) == (2, 5)
    assert problem.what == f"a character that YAML forbids: U+{ord(character):04X}"


def test_escaped_nul_is_refused() -> None:
    assert only_problem('a: "x\\0"').what == "text with a NUL character"


def test_byte_order_mark_is_skipped() -> None:
    assert parsed(b"\xef\xbb\xbfa: 1") == ([{"a": 1}], [])


@pytest.mark.parametrize(
    ("text", "place", "fix"),
    [
        ("a: b: c", (1, 5), "put text that holds ': ' in quotes"),
        ("a:\n\tb: c", (2, 1), "indent with spaces, not with tabs"),
        ("a: @x", (1, 4), "put text that begins with @ in quotes"),
        ("a: {b: ${{ env.X }}}", (1, 9), "close the bracket, and put text that holds braces in quotes"),
        ("a: 'x", (1, 6), None),
        ("a: [1,\n\n\n", (1, 7), None),
        ("a\nb: 1", (2, 2), "put text that holds ': ' in quotes"),
    ],
)
def test_broken_yaml_has_place_and_fix(text: str, place: tuple[int, int], fix: str | None) -> None:
    problem = only_problem(text)

    assert problem.what.startswith("broken YAML: ")
    assert ((problem.at.line, problem.at.column), problem.fix) == (place, fix)


def test_what_stands_before_a_break_is_kept() -> None:
    values, problems = parsed("a: 1\n---\nb: c: d\n")

    assert values == [{"a": 1}]
    assert len(problems) == 1


@pytest.mark.parametrize("text", ["? [a]\n: 1", "? {a: 1}\n: 1", "~: 1"])
def test_keys_are_text(text: str) -> None:
    assert only_problem(text).what == "a key is one word of text"


def test_keys_that_look_like_numbers_are_text() -> None:
    assert parsed("8000: a\ntrue: b") == ([{"8000": "a", "true": "b"}], [])


@pytest.mark.parametrize("tag", ["!secret", "!!python/object:os.system", "!!int", "!!binary"])
def test_unknown_tags_are_refused(tag: str) -> None:
    assert only_problem(f"a: {tag} 1").what == f"unknown tag '{tag}'"


@pytest.mark.parametrize(
    "text", ["1e999", ".inf", "-.INF", ".nan", "9" * 5000, "0x" + "f" * 100, str(2**64), f"-{2**64}"]
)
def test_numbers_without_end_are_refused(text: str) -> None:
    assert only_problem(f"a: {text}").fix == "put it in quotes if it is text"


def test_a_whole_number_of_64_bits_is_read() -> None:
    assert parsed(f"a: {2**64 - 1}\nb: '{2**64}'") == ([{"a": 2**64 - 1, "b": str(2**64)}], [])


def test_source_lines_are_kept_with_any_line_break() -> None:
    problem = only_problem("x: 1\r\ny: 2\r\nx: 3\r\n")

    assert problem.source_line == "x: 3"
