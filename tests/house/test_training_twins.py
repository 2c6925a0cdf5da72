"""Broken twins of what training methods cost, which the laws of their tests must catch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.planner import tune
from orchestrator.planner.sizing import training as sizing
from orchestrator.planner.sizing.values import TrainingJob
from orchestrator.planner.throughput import training as throughput
from tests.planner import test_tune
from tests.planner.sizing import test_training as sized
from tests.planner.throughput import test_training as timed

passes = throughput.passes


def _every_method_is_sft(method: Any, **asked: Any) -> throughput.Passes:
    return throughput.Passes()


def _pairs_count_once(method: Any, **asked: Any) -> throughput.Passes:
    return replace(passes(method, **asked), sequences=1)


def _references_are_free(method: Any, **asked: Any) -> throughput.Passes:
    return replace(passes(method, **asked), forwards=0)


def _always_asks(method: Any, **asked: Any) -> throughput.Passes:
    return passes(method, **{**asked, "reference": True})


def _answers_fall_from_the_sky(run: Any) -> float:
    return 0.0


def _one_answer_at_a_time(run: Any) -> float:
    return generate(replace(run, at_once=1))


def _no_room_beside_the_weights(run: Any) -> float:
    return float(run.sequence_length)


def _trusts_every_method(method: Any, way: Any) -> tuple[str, ...]:
    return ()


def _no_share(job: Any) -> float:
    return 0.0


def _weights_fit_any_share(facts: Any, parts: Any, job: Any) -> int:
    return 0


def _nobody_compares(method: Any, reference: Any = None) -> bool:
    return False


def _deaf_to_the_trainers_options(method: Any, args: Any) -> None:
    return None


generate = throughput._generate_s

TWINS: list[tuple[Any, str, Any, Callable[[], None]]] = [
    (
        throughput,
        "passes",
        _every_method_is_sft,
        lambda: timed.test_methods_are_as_slow_as_their_passes("full"),
    ),
    (throughput, "passes", _pairs_count_once, timed.test_an_example_of_two_answers_is_twice_the_work),
    (
        throughput,
        "passes",
        _references_are_free,
        lambda: timed.test_methods_are_as_slow_as_their_passes("lora"),
    ),
    (
        throughput,
        "passes",
        _always_asks,
        lambda: timed.test_probabilities_computed_before_leave_the_pair_alone("lora"),
    ),
    (
        throughput,
        "_generate_s",
        _answers_fall_from_the_sky,
        timed.test_answers_are_written_before_they_are_learned,
    ),
    (throughput, "_generate_s", _one_answer_at_a_time, timed.test_more_answers_at_once_are_written_faster),
    (
        throughput,
        "_cache_tokens",
        _no_room_beside_the_weights,
        timed.test_more_answers_at_once_are_written_faster,
    ),
    (
        throughput,
        "_cautions",
        _trusts_every_method,
        lambda: timed.test_what_nobody_measured_is_said_and_has_a_wider_range("kto"),
    ),
    (
        TrainingJob,
        "rollout",
        property(_no_share),
        lambda: sized.test_learning_from_answers_takes_more_than_from_examples("lora"),
    ),
    (
        sizing,
        "_generating_bytes",
        _weights_fit_any_share,
        sized.test_the_engine_that_generates_needs_room_for_its_own_weights,
    ),
    (
        sizing,
        "compares",
        _nobody_compares,
        lambda: sized.test_a_reference_of_its_own_is_kept_of_a_full_model_only("full", 1),
    ),
    (
        tune,
        "_reference",
        _deaf_to_the_trainers_options,
        test_tune.test_a_beta_above_0_has_grpo_ask_a_reference,
    ),
]


@pytest.mark.parametrize(
    ("room", "name", "twin", "check"), TWINS, ids=lambda each: getattr(each, "__name__", "")
)
def test_law_catches_its_broken_twin(
    room: Any, name: str, twin: Any, check: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    check()  # holds of the real part
    monkeypatch.setattr(room, name, twin)
    with pytest.raises(AssertionError):
        check()
