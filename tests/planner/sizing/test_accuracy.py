"""The sizing against measured memory: the figures that must hold, from the rows' inputs alone."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.benchmarks import sizing
from tests.benchmarks.sizing_rows import ANSWERS, Row

ROWS = Path(__file__).parents[2] / "data" / "sizing_rows.csv"


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return sizing.read(ROWS)


def group(scored: Iterable[sizing.Scored], name: str) -> list[sizing.Scored]:
    found = [s for s in scored if s.group == name]
    assert len(found) > 10, f"too few rows of {name}"
    return found


@pytest.mark.parametrize(
    ("name", "mape"),
    [
        ("serve_peak vllm", 0.04),
        ("kv_cache_tokens", 0.04),
        ("serve_peak generate", 0.10),
        ("train_peak lora", 0.25),
        ("train_peak qlora", 0.25),
        ("train_peak full", 0.35),
    ],
)
def test_mean_error_stays_under_its_bound(rows: list[Row], name: str, mape: float) -> None:
    members = group(sizing.score(rows), name)

    assert statistics.fmean(abs(m.error) for m in members) <= mape


def test_median_error_of_weights_is_at_most_two_percent(rows: list[Row]) -> None:
    members = group(sizing.score(rows), "inference_weights")

    assert statistics.median(abs(m.error) for m in members) <= 0.02


def test_weights_of_known_size_are_never_far_off(rows: list[Row]) -> None:
    members = group(sizing.score(rows), "inference_weights")
    known = [m for m in members if m.row["params_b"]]

    assert max(abs(m.error) for m in known) <= 0.15


def test_the_margin_keeps_the_safe_side(rows: list[Row]) -> None:
    scored = sizing.score(rows)

    assert sum(s.safe for s in scored) / len(scored) >= 0.95


def test_peers_formulas_are_further_off(rows: list[Row]) -> None:
    members = group(sizing.score(rows), "serve_peak vllm")
    ours = statistics.fmean(abs(m.error) for m in members)

    for peer in sizing.PEERS.values():
        said = [(peer(m.row), float(m.row["measured_gib"])) for m in members]
        theirs = statistics.fmean(abs(p / measured - 1) for p, measured in said if p is not None)
        assert ours < theirs


def test_predictions_do_not_depend_on_the_answers(rows: list[Row], tmp_path: Path) -> None:
    blank = [{k: "" if k in ANSWERS else v for k, v in row.items()} for row in rows]
    wrong = [{k: "1" if k in ANSWERS else v for k, v in row.items()} for row in rows]
    givens: list[list[Row]] = [rows, [*blank], [*wrong]]
    outs = [tmp_path / "true.csv", tmp_path / "blank.csv", tmp_path / "wrong.csv"]

    for out, given in zip(outs, givens, strict=True):
        sizing.write(out, given)

    assert outs[0].read_text() == outs[1].read_text() == outs[2].read_text()


def test_end_to_end_tokens_do_not_depend_on_the_printed_pool(rows: list[Row]) -> None:
    ends = [r for r in rows if r["kind"] == "kv_cache_tokens" and r["gpu_mem_gib"] and r["gpu_mem_util"]]

    for row in ends:
        assert sizing.predict(row) == sizing.predict({**row, "kv_pool_gib": ""})


def test_a_file_without_answers_is_predicted_whole(rows: list[Row], tmp_path: Path) -> None:
    source, out = tmp_path / "rows.csv", tmp_path / "predictions.csv"
    blank = [{k: "" if k in ANSWERS or k == "kv_pool_gib" else v for k, v in row.items()} for row in rows]
    with source.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(blank[0]))
        writer.writeheader()
        writer.writerows(blank)

    code = sizing.main([str(source), "--predictions", str(out)])

    predicted = sizing.read(out)
    assert code == 0
    assert list(predicted[0]) == ["row_id", "predicted_gib", "predicted_tokens", "lower_gib", "upper_gib"]
    assert [r["row_id"] for r in predicted] == [r["row_id"] for r in rows]
    assert all(r["predicted_gib"] or r["predicted_tokens"] for r in predicted)


@pytest.mark.parametrize("value", ["", "0", "not known"])
def test_a_column_that_says_nothing_still_leaves_a_prediction(rows: list[Row], value: str) -> None:
    columns = [c for c in rows[0] if c not in ("row_id", "kind", "measure", "model_id")]

    for row in rows[::20]:
        for column in columns:
            said = sizing.predict({**row, column: value})
            assert (said.gib or 0) > 0 or said.tokens is not None, (row["row_id"], column)
