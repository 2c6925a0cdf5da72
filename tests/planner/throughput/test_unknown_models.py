"""The estimates for models nobody knows: what a row counts must do where the name says nothing."""

from __future__ import annotations

import statistics
from functools import cache
from math import exp
from pathlib import Path

import pytest

from orchestrator.catalog import model
from orchestrator.planner.throughput.work import work
from tests.benchmarks.throughput import (
    TRAINS,
    Row,
    Scored,
    accelerator_of,
    facts_of,
    median_error,
    predict,
    read_rows,
    resized,
    same_size,
    score,
    stand_in,
    within,
)

REFERENCE = Path(__file__).parents[2] / "data" / "throughput.csv"


@cache
def scored() -> tuple[Scored, ...]:
    rows, answers = read_rows(REFERENCE)
    unknown = resized(rows)
    return tuple(score(unknown, answers, [predict(row) for row in unknown]))


def errors(*, trains: bool) -> list[float]:
    return [each.error for each in scored() if (each.row["kind"] == TRAINS) == trains]


def test_serving_is_within_a_fifth_in_the_median() -> None:
    found = errors(trains=False)

    assert median_error(found) <= 0.19
    assert within(found, 1.5) >= 0.79
    assert within(found, 2.0) >= 0.93


def test_training_is_within_a_tenth_in_the_median() -> None:
    found = errors(trains=True)

    assert median_error(found) <= 0.10
    assert within(found, 1.5) >= 0.93


def test_neither_leans_to_one_side() -> None:
    for trains in (False, True):
        assert exp(abs(statistics.median(errors(trains=trains)))) <= 1.05


def test_no_row_is_of_a_known_shape() -> None:
    rows, _ = read_rows(REFERENCE)

    assert {facts_of(row).architecture for row in resized(rows)} == {"stand-in"}


@pytest.mark.parametrize(
    ("total", "active"), [(116.8, 5.1), (20.9, 3.6), (235.1, 22.2), (46.7, 12.9), (30.5, 3.4)]
)
def test_a_mixture_multiplies_what_is_said_to_be_active(total: float, active: float) -> None:
    counted = work(stand_in("x", total * 1e9, active * 1e9))

    assert counted.held_bytes == pytest.approx(2 * total * 1e9, rel=0.01)
    assert counted.active == pytest.approx(active * 1e9, rel=0.15)


@pytest.mark.parametrize("total", [0.5, 1.5, 8, 32, 70, 405])
def test_a_dense_model_has_the_parameters_it_is_said_to_have(total: float) -> None:
    facts = stand_in("x", total * 1e9, total * 1e9)

    assert not facts.experts
    assert work(facts).held_bytes == pytest.approx(2 * total * 1e9, rel=0.01)


def test_a_finetune_has_the_shapes_of_a_model_of_its_very_size() -> None:
    row = {"model_id": "someone/chat-tuned", "params_b": "70.554", "active_params_b": "70.554"}
    known = model("meta-llama/Llama-3.3-70B-Instruct")

    assert known is not None
    assert (facts_of(row).layers, facts_of(row).hidden) == (known.layers, known.hidden)


def test_a_dense_model_is_no_mixture_of_the_same_size() -> None:
    mixture = same_size(30.532e9, 3.35e9)
    dense = same_size(30.532e9, 30.532e9)

    assert mixture is not None
    assert mixture.experts
    assert dense is None or not dense.experts


def test_a_name_gives_the_sizes_that_no_column_does() -> None:
    row: Row = {"model_id": "unknown/model-40B-A4B-it", "params_b": "", "active_params_b": ""}
    facts = facts_of(row)

    assert facts.parameters == 40_000_000_000
    assert facts.experts


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("Thor", "JETSON-THOR-128GB"),
        ("A100/A800-80GB", "A100-80GB"),
        ("A100-80G", "A100-80GB"),
        ("A100-40GB", "A100-40GB"),
        ("NVIDIA H100 PCIe", "H100-80GB-PCIE"),
    ],
)
def test_spellings_of_accelerators_are_the_catalogs(spelling: str, name: str) -> None:
    assert accelerator_of({"gpu": spelling}).name == name


def test_an_accelerator_nobody_knows_is_none() -> None:
    with pytest.raises(ValueError, match="Zorg 9"):
        accelerator_of({"gpu": "Zorg 9-80GB"})


@pytest.mark.parametrize("column", ["n_gpus", "tp", "pp", "dp", "params_b", "active_params_b"])
@pytest.mark.parametrize("value", ["", "0", "not known"])
def test_a_column_that_says_nothing_still_leaves_an_estimate(column: str, value: str) -> None:
    rows, _ = read_rows(REFERENCE)
    served = [row for row in resized(rows) if row["kind"] != TRAINS][::40]

    for row in served:
        said = predict({**row, column: value})
        assert (said.output_tokens_s or 0) > 0, row["row_id"]
