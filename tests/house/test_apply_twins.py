"""Broken twins of saved plans and sets: the scenes at the prompt must catch every one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.apply import consent, planfile, planning, sets
from orchestrator.apply.sets import Scope
from orchestrator.reconcile import Run
from tests.apply import scenes
from tests.cli.conftest import Cli, cli

__all__ = ["cli"]


def seals_with_nothing(_body: Mapping[str, Any]) -> str:
    return "sha256:"


def takes_any_serial(step: Mapping[str, Any], runs: Mapping[str, Run]) -> Run | None:
    return runs.get(step["name"])


def reads_no_input(_inputs: Sequence[Mapping[str, str]]) -> None:
    return


def keeps_file_contents(plan: planning.RunPlan) -> object:
    return plan.template


def takes_any_file(template: object, _plan: planning.RunPlan) -> object:
    return template


def prunes_every_set(scope: Scope, *, runs: Mapping[str, Run], **rest: Any) -> tuple[sets.Deletion, ...]:
    return REAL_DELETIONS(scope, runs={n: replace(r, set_name=scope.name) for n, r in runs.items()}, **rest)


def prunes_unasked(scope: Scope, **rest: Any) -> tuple[sets.Deletion, ...]:
    return REAL_DELETIONS(replace(scope, prune=bool(scope.name)), **rest)


def forgets_the_set(name: str, there: str, scope: Scope) -> str:
    return ""


def takes_any_record(*_: object) -> None:
    """Look at no record."""


def loses_nothing(*_: object) -> bool:
    return False


REAL_DELETIONS = sets.deletions


@pytest.mark.parametrize(
    ("room", "name", "twin", "scene"),
    [
        (planfile, "_seal", seals_with_nothing, scenes.a_changed_plan_is_refused),
        (planfile, "_same_run", takes_any_serial, scenes.a_plan_whose_run_moved_is_refused),
        (planfile, "_check_record", takes_any_record, scenes.a_plan_made_against_another_record_is_refused),
        (planfile, "_check_inputs", reads_no_input, scenes.a_plan_whose_input_changed_is_refused),
        (
            planfile, "_without_files", keeps_file_contents,
            scenes.a_file_is_not_in_the_plan_and_held_to_what_it_was,
        ),
        (
            planfile, "_refilled", takes_any_file,
            scenes.a_file_is_not_in_the_plan_and_held_to_what_it_was,
        ),
        (planning, "deletions", prunes_every_set, scenes.a_prune_owns_its_set_and_nothing_else),
        (planning, "deletions", prunes_unasked, scenes.without_prune_nothing_is_deleted),
        (planning, "joined", forgets_the_set, scenes.a_prune_owns_its_set_and_nothing_else),
        (consent, "loses_work", loses_nothing, scenes.a_running_task_is_replaced_only_when_that_is_allowed),
    ],
)  # fmt: skip
def test_a_broken_twin_is_caught(
    room: object, name: str, twin: object, scene: Callable[[Cli], None], cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(room, name, twin)
    with pytest.raises(AssertionError):
        scene(cli)


@pytest.mark.parametrize(
    "scene", [scenes.a_volume_goes_only_when_that_is_allowed, scenes.an_expired_plan_is_refused]
)
def test_a_check_that_is_left_out_is_caught(
    scene: Callable[[Cli], None], cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.api.local.require_consent", lambda *_: None)
    monkeypatch.setattr("orchestrator.apply.require_consent", lambda *_: None)
    monkeypatch.setattr(planfile, "_checked", unchecked)
    with pytest.raises(AssertionError):
        scene(cli)


def unchecked(path: str, body: Mapping[str, Any], seal: object, **_: object) -> planfile.Saved:
    scope = Scope(body["set"], body["prune"])
    return planfile.Saved(path, scope, consent.Consent(**body["allow"]), tuple(body["steps"]))
