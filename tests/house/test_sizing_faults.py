"""Broken twins of the sizing's laws, which its tests must catch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.planner import choose, choose_training, parallelism
from orchestrator.planner.sizing import kv, logs, serving, training, weights
from orchestrator.planner.sizing.values import Measured, ServingJob, TrainingJob
from tests.benchmarks import sizing
from tests.benchmarks.sizing_rows import Row
from tests.planner import test_choose
from tests.planner.sizing import shapes, test_accuracy, test_logs, test_serving, test_training
from tests.planner.sizing.shapes import DEEPSEEK_V3, GEMMA3_27B, GPT_OSS_120B, LLAMA_8B

Twin = Callable[..., Any]


def _latent_shared_by_ranks(facts: Any, kind: Any, *, tensor: int, element_bytes: float) -> float:
    whole: float = kv_layer(facts, kind, tensor=tensor, element_bytes=element_bytes)
    return whole / tensor


def _groups_without_padding(full: int, sliding: int) -> int:
    return full + sliding


def _embeddings_in_the_format_too(parts: Any, fmt: Any, facts: Any) -> Any:
    return by_scope(parts, replace(fmt, scope="all", moe_scope="all"), facts)


def _every_stage_is_the_mean(
    facts: Any, sized: Any, *, tensor: int, pipeline: int, expert_ranks: int
) -> float:
    return float(sized.total) / tensor / pipeline


def _experts_not_padded(facts: Any, precision: str, *, loaded: bool = True) -> Any:
    return weight_bytes(facts, precision, loaded=False)


def _only_the_default_batch(needs: Any, visible: int, *, slow: bool) -> Any:
    reached = [s for s in needs.settings if s.tier.from_bytes <= visible]
    return needs._size(reached[0], visible)


def _budget_only(needs: Any, setting: Any, visible: int, *, pool: float, outside: float) -> Any:
    return ("", 0.0) if pool >= setting.wanted_bytes else ("too little device memory", 1.0)


def _graphs_always_outside(memory: Any, profile: Any, share: float, visible: int) -> Any:
    return pool(memory, replace(profile, graphs="outside"), share, visible)


def _formulas_only(measured: int | None, computed: int) -> int:
    return computed


def _first_rank(text: str, patterns: tuple[str, ...]) -> int | None:
    found = find(text, patterns)
    return round(found[0] * 2**30) if found else None


def _no_logits(facts: Any, job: Any, tokens: int) -> float:
    return 0.0


def _states_of_the_policy_only(parts: Any, job: Any, keeps: Any, width: int) -> float:
    return 0.0


def _state_of_one_moment(keeps: Any, width: int) -> float:
    states: int = keeps.states
    fixed: float = keeps.fixed_bytes
    return states * width / 2 + fixed


def _anything_divides(facts: Any, tensor: int, *, precision: str = "bf16") -> None:
    return None


def _least_without_margin(facts: Any, job: Any) -> int:
    nothing = shapes.device("none", 0)
    return int(training.size_training(facts, nothing, job).device.peak_bytes)


def _first_step(facts: Any, needs: Any, device: Any, *, most: int) -> int:
    return choose.STEP


def _nothing_kept(facts: Any, job: Any, profile: Any) -> tuple[float, float]:
    return 0.0, 0.0


kv_layer = kv.layer_token_bytes
by_scope = weights._by_scope
weight_bytes = weights.weight_bytes
pool = serving._pool
find = logs._find


@pytest.mark.parametrize(
    ("room", "name", "twin", "check"),
    [
        (
            kv,
            "layer_token_bytes",
            _latent_shared_by_ranks,
            lambda: test_serving.test_tokens_are_what_the_engine_prints(
                DEEPSEEK_V3, ServingJob(tensor=8, precision="fp8"), 46.80, 715_072
            ),
        ),
        (
            kv,
            "_padded",
            _groups_without_padding,
            lambda: test_serving.test_tokens_are_what_the_engine_prints(
                GEMMA3_27B, ServingJob(), 19.53, 36_560
            ),
        ),
        (
            weights,
            "_by_scope",
            _embeddings_in_the_format_too,
            lambda: test_serving.test_weights_are_what_the_engine_loads(
                LLAMA_8B, ServingJob(precision="int4"), 5.38
            ),
        ),
        (
            serving,
            "device_weight_bytes",
            _every_stage_is_the_mean,
            lambda: test_serving.test_weights_are_what_the_engine_loads(
                LLAMA_8B, ServingJob(pipeline=4), 4.26
            ),
        ),
        (
            serving,
            "weight_bytes",
            _experts_not_padded,
            lambda: test_serving.test_weights_are_what_the_engine_loads(GPT_OSS_120B, ServingJob(), 64.38),
        ),
        (
            serving.ServingNeeds,
            "_first_fit",
            _only_the_default_batch,
            test_serving.test_a_default_batch_that_does_not_fit_is_lowered_and_said,
        ),
        (
            serving,
            "_verdict",
            _budget_only,
            test_serving.test_gpt_oss_20b_at_95_percent_lacks_room_outside_the_budget,
        ),
        (
            serving,
            "_pool",
            _graphs_always_outside,
            test_serving.test_graphs_are_charged_inside_the_budget_from_020_on,
        ),
        (
            serving,
            "_first",
            _formulas_only,
            lambda: test_serving.test_a_measured_value_overrides_its_formula(Measured(graphs_bytes=2**30)),
        ),
        (
            logs,
            "_largest",
            _first_rank,
            test_logs.test_a_log_overrides_the_formulas_of_a_size,
        ),
        (
            training,
            "_logits",
            _no_logits,
            lambda: test_training.test_each_flag_saves_what_the_table_says({}, 51.0),
        ),
        (
            training,
            "_extra_models",
            _states_of_the_policy_only,
            test_training.test_ppo_holds_four_models,
        ),
        (
            training,
            "_state_bytes",
            _state_of_one_moment,
            test_training.test_states_of_full_tuning_in_fp32_are_sixteen_bytes_a_parameter,
        ),
        (
            training,
            "_step",
            _nothing_kept,
            lambda: test_training.test_each_flag_saves_what_the_table_says({"compiled": False}, 60.0),
        ),
        (
            parallelism,
            "indivisible",
            _anything_divides,
            test_choose.test_devices_that_do_not_divide_become_stages,
        ),
        (
            choose,
            "is_native",
            parallelism.runs,
            test_choose.test_auto_precision_never_takes_what_the_device_only_widens,
        ),
        (
            choose_training,
            "least_training_bytes",
            _least_without_margin,
            test_choose.test_micro_batch_times_accumulation_is_the_batch,
        ),
        (
            choose,
            "longest_context",
            _first_step,
            test_choose.test_an_open_context_is_cut_to_what_fits,
        ),
    ],
)
def test_a_broken_law_is_caught(
    monkeypatch: pytest.MonkeyPatch, room: Any, name: str, twin: Twin, check: Callable[[], None]
) -> None:
    check()
    monkeypatch.setattr(room, name, twin)

    with pytest.raises(AssertionError):
        check()


@pytest.mark.parametrize("answer", ["measured_gib", "notes"])
def test_a_prediction_that_peeks_is_caught(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: str
) -> None:
    rows = [r for r in sizing.read(test_accuracy.ROWS) if r["kind"] == "serve_peak"][:5]
    rows = [{**row, "notes": "activation 1.26"} for row in rows]
    honest = sizing.predict

    def peeks(row: Row) -> sizing.Prediction:
        said = honest(row)
        return replace(said, gib=(said.gib or 0.0) + len(row.get(answer) or ""))

    monkeypatch.setattr(sizing, "predict", peeks)

    with pytest.raises(AssertionError):
        test_accuracy.test_predictions_do_not_depend_on_the_answers(rows, tmp_path)


def test_a_law_that_forgets_the_room_of_experts_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_LOADED_QUANTIZED", frozenset())

    with pytest.raises(AssertionError):
        test_training.test_experts_of_one_stacked_tensor_stay_in_16_bits_unless_asked()


def test_a_pair_counted_once_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrainingJob, "tokens", property(lambda job: job.sequence_length * job.micro_batch))

    with pytest.raises(AssertionError):
        test_training.test_preference_pairs_double_the_tokens()
