"""Broken twins of importers and renderers: each test of theirs must catch the one made for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.apply import imagined
from orchestrator.errors import ModelyardError
from orchestrator.importers import compose as from_compose
from orchestrator.importers import draft, dstack, skypilot, theirs
from orchestrator.render import compose as to_compose
from tests.importers import test_fuzz, test_import
from tests.render import test_compose

Plant = Callable[[pytest.MonkeyPatch], None]
Check = Callable[[], object]
FILES = Path(test_import.__file__).parent / "theirs"


def planted(target: object, name: str, twin: object) -> Plant:
    return lambda patch: patch.setattr(target, name, twin)


def says_the_same(name: str) -> Check:
    return lambda: test_import.test_an_import_says_what_it_said_before(FILES / name)


def hides_secrets(name: str) -> Check:
    return lambda: test_import.test_a_secret_is_written_nowhere(FILES / name)


def comes_back() -> None:
    test_compose.test_what_was_rendered_is_imported_as_it_was(test_compose.WEB)


def memory_is_read() -> None:
    test_import.test_composes_resources_are_read("mem_limit: 2g", {"memory": "2GiB.."}, 0)


def amds_are_files() -> None:
    test_compose.test_amds_accelerators_are_device_files()


TWINS: dict[str, tuple[Plant, Check]] = {
    "text that YAML 1.2 takes for a number": (
        planted(draft, "_is_plain", lambda text: True),
        test_fuzz.test_text_that_is_written_reads_back_as_text,
    ),
    "a secret's value is carried over": (
        planted(theirs, "looks_secret", lambda name: False),
        hides_secrets("dstack/train.dstack.yml"),
    ),
    "keys that nobody took are passed over": (
        planted(theirs.Keys, "leave_rest", lambda keys, why=None: None),
        says_the_same("dstack/vllm.dstack.yml"),
    ),
    "what our reader refuses goes in silence": (
        planted(theirs.Theirs, "leave_out", lambda self, at, what, fix=None: None),
        says_the_same("dstack/several.dstack.yml"),
    ),
    "places are those of the document": (
        planted(draft.Draft, "place", lambda self, path: self.at),
        says_the_same("dstack/several.dstack.yml"),
    ),
    "dstack's variables stay": (
        planted(dstack, "renamed", lambda text, names, prefix: (text, ())),
        says_the_same("dstack/train.dstack.yml"),
    ),
    "SkyPilot's slices count cores": (
        planted(skypilot, "tpu_slice", lambda name: None),
        says_the_same("skypilot/pipeline.yaml"),
    ),
    "alternatives add to what they replace": (
        planted(skypilot, "_in_force", lambda keys, alternatives, *names: [keys]),
        says_the_same("skypilot/train.yaml"),
    ),
    "compose's units are decimal": (
        planted(from_compose, "_SCALE", {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}),
        memory_is_read,
    ),
    "a lone dollar is compose's": (planted(to_compose, "_escaped", lambda text: text), comes_back),
    "a secret may be empty": (
        planted(to_compose, "_reference", lambda text: "${TOKEN:-}"),
        test_compose.test_a_secret_is_a_reference_that_has_to_be_set,
    ),
    "a service ends with its first failure": (
        planted(to_compose, "_restart", lambda plan, launch: "no"),
        test_compose.test_a_model_comes_with_its_engine_and_its_probe,
    ),
    "machines have no accelerators": (planted(imagined, "_offers", lambda *_: ()), amds_are_files),
    "volumes are named anew": (
        planted(to_compose, "_NAMESPACE", "compose"),
        test_compose.test_volumes_are_those_that_docker_runs_use,
    ),
    "wishes for a place count": (
        planted(test_compose, "anywhere", lambda document: document),
        test_compose.test_wishes_for_a_place_do_not_count,
    ),
}


@pytest.mark.parametrize("name", sorted(TWINS))
def test_a_broken_twin_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, check = TWINS[name]
    plant(monkeypatch)

    with pytest.raises((AssertionError, ModelyardError)):
        check()


@pytest.mark.parametrize("name", sorted(TWINS))
def test_the_real_thing_passes(name: str) -> None:
    TWINS[name][1]()
