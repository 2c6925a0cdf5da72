"""Broken twins of the spec's reader: each property of tests/spec must catch the one made for it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.spec import (
    complaints,
    forms,
    interpolation,
    load,
    models,
    parts,
    rules,
    source,
    tree,
    values,
)
from tests.spec import (
    test_forms,
    test_fuzz,
    test_interpolation,
    test_load,
    test_models,
    test_rules,
    test_source,
)
from tests.spec.texts import task

Plant = Callable[[pytest.MonkeyPatch], None]
Check = Callable[[], None]


def planted(target: object, name: str, twin: object) -> Plant:
    return lambda patch: patch.setattr(target, name, twin)


def yaml_1_1(text: str) -> object:
    return {"yes": True, "no": False, "on": True, "off": False}.get(text, tree.resolve(text))


def last_wins(builder: object, event: object, line: int, column: int, depth: int) -> object:
    """A mapping that lets the last of two equal keys win in silence."""
    entries = {}
    while not isinstance(inner := next(builder.events), source.yaml.MappingEndEvent):  # type: ignore[attr-defined]
        key = builder.node(inner, depth + 1)  # type: ignore[attr-defined]
        entries[key.text] = tree.Entry(line, column, builder.node(next(builder.events), depth + 1))  # type: ignore[attr-defined]
    return tree.Entries(line, column, entries)


def binary_sizes(size: int) -> str:
    return f"{size // 2**30}GiB"


def everything(part: parts.Part) -> dict[str, parts.Plain]:
    plain = parts.Part.canonical(part)
    assert isinstance(plain, dict)
    return plain


def at_the_start(root: tree.Node, path: object) -> tuple[tree.Node, tuple[int, int]]:
    return root, (1, 1)


def silent(spec: models.Spec, *, unread: object = ()) -> tuple[rules.Finding, ...]:
    return ()


def unread_too(spec: models.Spec, *, unread: object = ()) -> object:
    return tuple(rules.findings(spec))


def first_only(documents: object, problems: object) -> None:
    return None


def with_folder(check: Callable[[Path], None]) -> Check:
    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            check(Path(folder))

    return run


FAULTS: dict[str, tuple[Plant, Check]] = {
    "yes is true": (
        planted(source, "resolve", yaml_1_1),
        lambda: test_load.test_what_is_wrong_is_said_at_its_place(
            "auth: yes", (4, 7), "auth: expected true or false, got 'yes'", "write true"
        ),
    ),
    "the last of two keys wins": (
        planted(source._Builder, "mapping", last_wins),
        test_source.test_duplicate_keys_are_refused_with_both_places,
    ),
    "aliases are not counted": (
        planted(source, "MAX_NODES", 10**12),
        test_source.test_merge_bombs_are_refused,
    ),
    "depth is not counted": (
        planted(source, "MAX_DEPTH", 10**6),
        lambda: test_source.test_deep_nesting_is_refused("["),
    ),
    "sizes are rounded": (
        planted(values, "exact_bytes", binary_sizes),
        test_models.test_byte_ranges_survive_their_text,
    ),
    "the hash sees everything": (
        planted(models, "lasting", everything),
        lambda: test_models.test_hash_overlooks_what_is_changed_in_place("priority: 7"),
    ),
    "the hash sees nothing": (
        planted(models, "lasting", lambda part: {}),
        lambda: test_models.test_hash_sees_what_needs_new_containers("image: x"),
    ),
    "secrets are put in": (
        planted(interpolation, "looks_secret", lambda name: False),
        lambda: test_interpolation.test_no_secret_of_the_environment_becomes_part_of_a_spec(
            "commands: ['{}']", "HF_TOKEN"
        ),
    ),
    "every problem is at the start": (
        planted(complaints, "locate", at_the_start),
        lambda: test_load.test_what_is_wrong_is_said_at_its_place(
            "priority: 101", (4, 11), "priority: expected at most 100, got 101", None
        ),
    ),
    "rules are not asked": (
        planted(load, "findings", silent),
        lambda: test_rules.test_broken_rules_are_said_at_their_place(
            task("shell: zsh"), (4, 8), "shell: expected sh, bash or a path, got 'zsh'"
        ),
    ),
    "rules are asked about what could not be read": (
        planted(load, "findings", unread_too),
        test_load.test_a_slip_is_not_held_against_rules_that_read_it,
    ),
    "two documents may have one name": (
        planted(load, "_refuse_same_names", first_only),
        with_folder(test_load.test_two_documents_with_one_name_are_refused_with_both_places),
    ),
    "a word is a GPU": (
        planted(forms, "_refuse_count_in_words", lambda *_: None),
        lambda: test_forms.test_gpu_slips_are_pointed_at(
            "24GB:two", 23, "resources.gpu: expected a count such as 2 or 1..4, got 'two'"
        ),
    ),
    "variables are read as numbers": (
        planted(load, "_scalar_text", tree.plain),
        lambda: test_forms.test_env_is_text_as_it_is_written("{V: 3.10}", {"V": "3.10"}),
    ),
    "lines are shown with their secrets": (
        planted(tree, "_covered", lambda found: found[0]),
        lambda: test_load.test_lines_are_shown_with_secrets_covered(
            "env: ['API_KEY=k1', '9=x']", "env: ['API_KEY=***, '9=x']"
        ),
    ),
    "a mistake of ours gets out": (
        planted(load, "complain", lambda *_: int("a mistake")),
        test_fuzz.test_any_document,
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_caught(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, check = FAULTS[fault]
    check()
    plant(monkeypatch)

    with pytest.raises((Exception, pytest.fail.Exception)):  # whatever it says, it must say something
        check()
