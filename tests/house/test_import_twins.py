"""Broken twins of importers and renderers: each test of theirs must catch the one made for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.apply import imagined, model_form, suggesting
from orchestrator.engines import script, written
from orchestrator.errors import ModelyardError
from orchestrator.importers import compose as from_compose
from orchestrator.importers import draft, dstack, skypilot, theirs
from orchestrator.render import compose as to_compose
from tests.engines import test_written
from tests.importers import test_fuzz, test_import, test_suggest
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
    "options cut short are unknown": (
        planted(written, "_whole_name", lambda name, flags, prefix: name),
        lambda: test_written.test_a_command_says_what_a_spec_does("sglang with options cut short"),
    ),
    "what the plan computes stays an option": (
        planted(written, "_FIELDS", {}),
        test_written.test_what_the_plan_computes_is_left_out_by_name,
    ),
    "an option that is not known is dropped": (
        planted(written.Flags, "find", lambda flags, name: written.load("trl", "1.16.0").by_name["--seed"]),
        test_written.test_an_option_of_another_version_is_kept_and_named,
    ),
    "a value of another machine is one": (
        planted(written, "is_open", lambda text: False),
        test_written.test_a_value_that_only_the_machine_knows_is_left_out,
    ),
    "comments open quotes": (
        planted(script, "_without_comment", lambda line: line),
        lambda: test_written.test_a_script_is_its_commands(["# don't", "a", "# it's"], [("a",)]),
    ),
    "what we start is not known again": (
        planted(written, "_from_variables", lambda *_: iter(())),
        lambda: test_written.reads_its_own("nim"),
    ),
    "the number asked for is kept": (
        planted(model_form, "kind_of_gpu", lambda gpu, count: ":".join([*gpu.name, "8"])),
        test_suggest.test_a_command_becomes_a_model_that_is_sized,
    ),
    "the most is the least": (
        planted(suggesting, "_size", lambda plan: -suggesting.devices(plan)),
        test_suggest.test_what_is_asked_stands_beside_what_is_needed,
    ),
    "changes are not told": (
        planted(model_form, "_changes", lambda spec, found: iter(())),
        test_suggest.test_every_change_is_told,
    ),
    "a trainer's defaults are ours": (
        planted(model_form, "_default", lambda found, setting: None),
        test_suggest.test_a_trainers_command_becomes_a_task_that_is_sized,
    ),
    "a registry's key is a value": (
        planted(dstack, "_registry", lambda draft: None),
        test_import.test_dstacks_key_of_a_registry_is_a_secret_of_ours,
    ),
    "a profile wins over what is said": (
        planted(
            theirs.Profile,
            "under",
            lambda self, node, allowed: (
                theirs.Entries(node.line, node.column, {**node.entries, **self.entries}),
                True,
            ),
        ),
        test_import.fills_in_what_is_not_said,
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
