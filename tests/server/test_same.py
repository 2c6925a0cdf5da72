"""The same tests, once more, with a server between the command line and the record."""

from __future__ import annotations

import pytest

from tests.apply import test_planfile, test_sets
from tests.cli import test_commands
from tests.cli.conftest import Cli

SAME = [
    test_commands.test_a_task_is_planned_run_shown_and_deleted,
    test_commands.test_a_failed_task_ends_with_1_and_the_reason,
    test_commands.test_applying_twice_is_a_no_op,
    test_commands.test_a_finished_task_runs_again_only_when_asked_to,
    test_commands.test_a_service_is_ready_updated_in_place_and_replaced,
    test_commands.test_stop_ends_a_run_and_apply_brings_it_back,
    test_commands.test_nothing_that_fits_ends_with_75_and_counts_the_reasons,
    test_commands.test_plans_have_images_from_the_mirror_that_the_places_configuration_names,
    test_commands.test_what_is_to_be_deleted_cannot_be_asked_to_stop_instead,
    test_sets.test_deletions_stand_in_every_form_of_the_plan,
    test_sets.test_a_volume_goes_after_the_runs_that_used_it,
    test_sets.test_what_another_set_has_is_not_taken,
    test_sets.test_a_saved_prune_deletes_what_was_reviewed_or_nothing,
    test_planfile.test_a_saved_plan_is_applied_once_and_without_a_question,
    test_planfile.test_a_service_is_updated_and_replaced_by_saved_plans,
    test_planfile.test_consent_may_come_with_the_plan_or_later,
]


@pytest.mark.parametrize("test", SAME, ids=lambda test: test.__name__)
def test_afar_as_in_process(test: object, afar: Cli) -> None:
    test(afar)  # type: ignore[operator]  # each takes a prompt
