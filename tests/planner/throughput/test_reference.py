"""The estimates against public measurements, under the thresholds that must hold.

``tests/data/throughput.csv`` has numbers and sources only: one row a published run.
"""

from __future__ import annotations

import csv
import math
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from orchestrator.planner.throughput import serving_throughput
from orchestrator.planner.throughput.factors import SERVING, TRAINING
from tests.benchmarks.throughput import (
    TRAINS,
    Prediction,
    Row,
    Scored,
    from_neighbours,
    layout_of,
    median_error,
    pair_order,
    predict,
    read_rows,
    score,
    serving,
    within,
)
from tests.benchmarks.throughput_fit import (
    SERVING_PRIOR,
    TRAINING_PRIOR,
    Prior,
    assign,
    cases_of,
    fit,
    loss,
    shipped,
)

ROOT = Path(__file__).parents[3]
REFERENCE = ROOT / "tests/data/throughput.csv"


@cache
def scored() -> tuple[Scored, ...]:
    rows, answers = read_rows(REFERENCE)
    return tuple(score(rows, answers, [predict(row) for row in rows]))


def errors(*, trains: bool) -> list[float]:
    return [each.error for each in scored() if (each.row["kind"] == TRAINS) == trains]


def test_serving_is_within_a_fifth_in_the_median() -> None:
    assert median_error(errors(trains=False)) <= 0.20


def test_three_of_four_serving_rows_are_within_half_as_much_again() -> None:
    assert within(errors(trains=False), 1.5) >= 0.75


def test_training_is_within_a_fifth_in_the_median() -> None:
    assert median_error(errors(trains=True)) <= 0.20


def test_neither_leans_to_one_side() -> None:
    for trains in (False, True):
        found = sorted(errors(trains=trains))
        assert math.exp(abs(found[len(found) // 2])) <= 1.05


def test_accelerators_are_ordered_by_dollars_a_token() -> None:
    right, total = pair_order(scored())
    assert total >= 50
    assert right / total >= 0.90


def test_a_measured_neighbour_halves_the_error() -> None:
    found = from_neighbours(scored())
    assert len(found) >= 400
    assert median_error(found) <= 0.5 * 0.20
    assert within(found, SERVING.spread["measured"]) >= 0.80


def test_four_of_five_rows_are_inside_their_range() -> None:
    inside = []
    for each in scored():
        if each.row["kind"] != TRAINS:
            case = serving(each.row)
            speed = serving_throughput(case.facts, case.accelerator, **case.load)
            inside.append(speed.low <= each.measured <= speed.high)
    assert sum(inside) / len(inside) >= 0.80
    assert within(errors(trains=True), TRAINING.spread) >= 0.80


def test_every_row_is_scored() -> None:
    rows, _ = read_rows(REFERENCE)
    assert len(scored()) == len(rows) >= 700


def answers_are_not_read(prediction: Callable[[Row], Prediction]) -> None:
    """Fail when a prediction changes with the answers of its row."""
    with REFERENCE.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))[::25]
    for row in rows:
        blank = {key: "" if key.startswith("measured") else value for key, value in row.items()}
        wrong = {key: "1" if key.startswith("measured") else value for key, value in row.items()}
        assert prediction(blank) == prediction(wrong)


def test_answers_are_not_read() -> None:
    answers_are_not_read(predict)


def test_rows_come_without_their_answers(tmp_path: Path) -> None:
    text = "row_id,notes,mfu,ttft_ms,measured_output_tokens_s\na,22391 tok/s,0.4,1,22391\n"
    (tmp_path / "rows.csv").write_text(text)

    rows, answers = read_rows(tmp_path / "rows.csv")

    assert rows == [{"row_id": "a"}]
    assert answers[0]["notes"] == "22391 tok/s"


def test_blank_answers_are_predicted_and_not_scored(tmp_path: Path) -> None:
    lines = REFERENCE.read_text(encoding="utf-8").splitlines()
    reader = list(csv.DictReader([lines[0], lines[1], lines[-1]]))
    with (tmp_path / "blank.csv").open("w", newline="", encoding="utf-8") as file:
        out = csv.DictWriter(file, list(reader[0]))
        out.writeheader()
        for row in reader:
            out.writerow({key: "" if key.startswith("measured") else value for key, value in row.items()})

    command = [sys.executable, "-m", "tests.benchmarks.throughput", str(tmp_path / "blank.csv")]
    done = subprocess.run(
        [*command, "--predictions", str(tmp_path / "out.csv")], cwd=ROOT, capture_output=True, text=True
    )

    assert done.stdout == "no answers to score\n", done.stderr
    written = list(csv.DictReader((tmp_path / "out.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["row_id"] for row in written] == [row["row_id"] for row in reader]
    assert float(written[0]["predicted_output_tokens_s"]) > 0
    assert written[1]["predicted_output_tokens_s"] == ""
    assert float(written[1]["predicted_tokens_s_per_gpu"]) > 0


def test_a_model_nobody_knows_is_predicted_from_its_size() -> None:
    rows, _ = read_rows(REFERENCE)
    row = {**rows[0], "model_id": "nobody/knows", "params_b": "109", "active_params_b": "17"}
    assert (predict(row).tokens_s_total or 0) > 0


def test_a_device_nobody_knows_is_named_and_left_blank(capsys: pytest.CaptureFixture[str]) -> None:
    rows, _ = read_rows(REFERENCE)
    assert predict({**rows[0], "gpu": "Abacus"}) == Prediction(rows[0]["row_id"])
    assert "'Abacus'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("count", "tp", "dp", "layout"),
    [
        ("8", "8", "1", (8, 1, 1)),
        ("8", "8", "8", (1, 1, 8)),
        ("4", "2", "1", (2, 2, 1)),
        ("", "", "", (1, 1, 1)),
    ],
)
def test_a_rows_devices_are_all_used(count: str, tp: str, dp: str, layout: tuple[int, int, int]) -> None:
    assert layout_of({"n_gpus": count, "tp": tp, "dp": dp}) == layout


FITTED = [(SERVING, SERVING_PRIOR), (TRAINING, TRAINING_PRIOR)]


@pytest.mark.parametrize(("factors", "prior"), FITTED, ids=["serving", "training"])
def test_shipped_factors_keep_the_bounds_of_physics(factors: object, prior: Prior) -> None:
    values = shipped(factors, prior)
    assert {path: value for path, value in values.items() if not 0 < value <= prior[path][1]} == {}


@pytest.mark.slow
@pytest.mark.parametrize(("factors", "prior"), FITTED, ids=["serving", "training"])
def test_shipped_factors_are_as_good_as_a_new_fit(factors: object, prior: Prior) -> None:
    cases, measured = cases_of(REFERENCE, trains=factors is TRAINING)
    fitted, values = fit(cases, measured, factors, prior)
    best = loss(cases, measured, fitted, values, prior)
    assert loss(cases, measured, factors, shipped(factors, prior), prior) <= 1.02 * best


def test_assigning_a_factor_reaches_those_that_share_it() -> None:
    moved = assign(SERVING, "engines/vllm/layer_s", 1.0)
    assert (moved.engines["sglang"].layer_s, moved.engines["transformers"].layer_s) == (
        1.0,
        SERVING.engines["transformers"].layer_s,
    )


def test_few_factors_are_fitted() -> None:
    assert len(SERVING_PRIOR) + len(TRAINING_PRIOR) <= 60
