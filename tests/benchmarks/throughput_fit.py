"""Fits the efficiency factors: ``python -m tests.benchmarks.throughput_fit CSV [--hold model|source|gpu]``.

Without ``--hold`` it prints the factors that ship, to two digits. With it, it fits again without
each model (source, accelerator) in turn and scores what was left out: how far the laws carry to
rows that nobody fitted on.

The loss is the mean absolute logarithm of predicted over measured, each row weighted by one over
the root of how many rows share its source, model and accelerator, plus a pull of every factor
toward its prior. The search moves one factor at a time, up or down by a step that grows when it
helps and halves when not.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.planner.throughput.factors import SERVING, TRAINING
from tests.benchmarks.throughput import (
    TRAINS,
    Row,
    Serving,
    Training,
    answer_of,
    median_error,
    read_rows,
    serving,
    training,
    within,
)

Case = Serving | Training
Prior = Mapping[str, tuple[float, float]]

PULL = 0.004
ROUNDS = 9

SERVING_PRIOR: Prior = {
    # share of the data sheet; matrix products reach 0.7 to 0.87 in stas00/ml-engineering's MAMF table
    "silicon/Ampere/bandwidth": (0.80, 1.0),
    "silicon/Ampere/flops": (0.70, 0.87),
    "silicon/Ada/bandwidth": (0.85, 0.95),
    "silicon/Hopper/bandwidth": (0.85, 0.95),
    "silicon/Hopper/flops": (0.60, 0.80),
    "silicon/Blackwell/bandwidth": (0.75, 0.95),
    "silicon/Blackwell/flops": (0.55, 0.78),
    "silicon/Blackwell RTX/bandwidth": (0.85, 0.95),
    "silicon/Blackwell RTX/flops": (0.70, 0.85),
    "engines/vllm/rate": (0.95, 1.0),
    "engines/vllm/layer_s": (50e-6, math.inf),
    "engines/vllm/sequence_s": (30e-6, math.inf),
    "engines/vllm/request_s": (1e-3, math.inf),
    "engines/tensorrt-llm/layer_s": (35e-6, math.inf),
    "engines/tensorrt-llm/sequence_s": (10e-6, math.inf),
    "engines/transformers/host_layer_s": (0.83e-3, math.inf),
    "engines/transformers/narrow_bandwidth": (0.5, 1.0),
    "engines/transformers/kv_reads": (20.0, math.inf),
    "engines/vllm-v0/layer_s": (0.1e-3, math.inf),
    "engines/vllm-v0/host_layer_s": (0.35e-3, math.inf),
    "engines/vllm-v0/narrow_bandwidth": (0.7, 1.0),
    "engines/vllm-v0/kv_reads": (3.0, math.inf),
    "format_flops/fp8": (0.85, 1.0),
    "format_flops/fp4": (0.65, 1.0),
    "widened_flops": (0.8, 1.0),
    "experts_bandwidth": (0.5, 1.0),
    "experts_flops": (0.7, 1.0),
    "attention_flops": (0.8, 1.0),
    "kv_bandwidth": (0.8, 1.0),
    "visible": (0.4, 1.0),
    "allreduce_s": (12e-6, math.inf),
    "bus_allreduce_s": (45e-6, math.inf),
    "link": (0.65, 1.0),
    "bus_gbs": (50.0, 64.0),
    "pipeline": (0.75, 1.0),
    "burst": (0.75, 1.0),
}
"""Every fitted factor of serving: its prior, and the bound physics puts on it."""

TRAINING_PRIOR: Prior = {
    "stacks/fsdp/flops": (0.60, 0.87),
    "stacks/fsdp/layer_s": (0.2e-3, math.inf),
    "stacks/megatron/flops": (0.70, 0.87),
    "stacks/transformers/flops": (0.50, 0.87),
    "stacks/transformers/layer_s": (2e-3, math.inf),
    "silicon/Hopper": (0.75, 1.0),
    "silicon/Blackwell": (0.70, 1.0),
    "format_speed/fsdp fp8": (1.3, 2.0),
    "format_speed/megatron fp8": (1.8, 2.0),
    "format_speed/megatron mxfp8": (1.8, 2.0),
    "format_speed/megatron nvfp4": (2.4, 4.0),
    "experts_flops": (0.5, 1.0),
    "attention_flops": (0.5, 1.0),
    "width_half": (300.0, math.inf),
    "widen/gptq": (5.0, math.inf),
    "recompute": (0.5, 1.0),
    "link": (0.5, 1.0),
    "network_gbs": (50.0, math.inf),
    "visible": (0.2, 1.0),
}
"""Every fitted factor of training: its prior, and its bound."""

SHARED = {
    # SGLang runs the same kind of host loop as vLLM, the rest the same kind of kernels as TensorRT-LLM
    "engines/vllm/layer_s": ("engines/sglang/layer_s",),
    "engines/vllm/sequence_s": ("engines/sglang/sequence_s",),
    "engines/vllm/request_s": ("engines/sglang/request_s",),
    "engines/tensorrt-llm/layer_s": ("engines/exllamav2/layer_s", "engines/lmdeploy/layer_s"),
}
"""Factors that move together, for want of rows that tell them apart."""


def put(factors: Any, path: str, value: float) -> Any:
    """Return ``factors`` with the value at ``path`` replaced."""
    name, _, rest = path.partition("/")
    if isinstance(factors, Mapping):
        return {**factors, name: put(factors[name], rest, value) if rest else value}
    inner = getattr(factors, name)
    return replace(factors, **{name: put(inner, rest, value) if rest else value})


def assign(factors: Any, path: str, value: float) -> Any:
    """Return ``factors`` with the value at ``path``, and at all that share it, replaced."""
    for each in (path, *SHARED.get(path, ())):
        factors = put(factors, each, value)
    return factors


def weights(cases: Sequence[Case]) -> list[float]:
    """Return each case's weight in the loss, so that large tables do not drown small ones."""
    keys = [(case.row["source"], case.row["model_id"], case.row["gpu"]) for case in cases]
    count = Counter(keys)
    return [count[key] ** -0.5 for key in keys]


def errors(cases: Sequence[Case], measured: Sequence[float], factors: Any) -> list[float]:
    """Return the logarithm of predicted over measured, case by case."""
    found = []
    for case, answer in zip(cases, measured, strict=True):
        made = case.predict(factors)
        found.append(math.log((made[0] if isinstance(made, tuple) else made) / answer))
    return found


def cases_of(path: Path, *, trains: bool) -> tuple[list[Case], list[float]]:
    """Return the rows of one kind that have an answer, and the answers."""
    rows, answers = read_rows(path)
    scored = [(row, answer_of(row, given)) for row, given in zip(rows, answers, strict=True)]
    known = [(row, answer) for row, answer in scored if answer is not None]
    chosen = [(row, answer) for row, answer in known if (row["kind"] == TRAINS) == trains]
    cases: list[Case] = [training(row) if trains else serving(row) for row, _ in chosen]
    return cases, [answer for _, answer in chosen]


def loss(
    cases: Sequence[Case], measured: Sequence[float], factors: Any, values: Mapping[str, float], prior: Prior
) -> float:
    """Return how bad ``factors`` are, whose fitted values by path are ``values``."""
    scale = weights(cases)
    found = errors(cases, measured, factors)
    far = sum(weight * abs(error) for weight, error in zip(scale, found, strict=True)) / sum(scale)
    return far + PULL * sum(math.log(values[path] / guess) ** 2 for path, (guess, _) in prior.items())


def fit(
    cases: Sequence[Case], measured: Sequence[float], start: Any, prior: Prior
) -> tuple[Any, dict[str, float]]:
    """Return the factors of least loss, and the values found by path."""
    values = {path: guess for path, (guess, _) in prior.items()}
    factors = start
    for path, value in values.items():
        factors = assign(factors, path, value)
    best = loss(cases, measured, factors, values, prior)
    step = dict.fromkeys(prior, 0.25)
    for _ in range(ROUNDS):
        for path, (_, bound) in prior.items():
            step[path] *= 0.5
            for sign in (2, -2):
                value = min(values[path] * math.exp(sign * step[path]), bound)
                moved, there = assign(factors, path, value), {**values, path: value}
                found = loss(cases, measured, moved, there, prior)
                if found < best - 1e-6:
                    factors, values, best = moved, there, found
                    step[path] *= 2.6
                    break
    return factors, values


def shipped(factors: Any, prior: Prior) -> dict[str, float]:
    """Return the values that ``factors`` have at the fitted paths."""
    values = {}
    for path in prior:
        found = factors
        for name in path.split("/"):
            found = found[name] if isinstance(found, Mapping) else getattr(found, name)
        values[path] = float(found)
    return values


def held_out(
    cases: Sequence[Case], measured: Sequence[float], start: Any, prior: Prior, key: Callable[[Row], str]
) -> dict[str, list[tuple[Case, float]]]:
    """Return the cases of each group with their errors under factors fitted without it."""
    groups: dict[str, list[int]] = defaultdict(list)
    for i, case in enumerate(cases):
        groups[key(case.row)].append(i)
    left_out = {}
    for name, members in groups.items():
        rest = [i for i in range(len(cases)) if i not in set(members)]
        factors, _ = fit([cases[i] for i in rest], [measured[i] for i in rest], start, prior)
        ours = [cases[i] for i in members]
        left_out[name] = list(zip(ours, errors(ours, [measured[i] for i in members], factors), strict=True))
    return left_out


def summary(title: str, found: Sequence[float]) -> str:
    """Return one line about logarithmic errors."""
    far = sorted(abs(error) for error in found)
    most = math.exp(far[math.ceil(0.8 * len(far)) - 1])
    return (
        f"{title:<44} {len(found):>4} rows  median {median_error(found):6.1%}  within 1.5x "
        f"{within(found, 1.5):6.1%}  bias {math.exp(statistics.median(found)):.2f}  4 of 5 within x{most:.2f}"
    )


def group_key(hold: str) -> Callable[[Row], str]:
    """Return what rows are left out together: a model, a source's repository or an accelerator."""
    if hold == "source":  # one repository's tables share their method, and so their bias
        return lambda row: row["source"].split(" ")[0]
    return lambda row: row["model_id" if hold == "model" else "gpu"]


def print_factors(
    title: str, cases: Sequence[Case], measured: Sequence[float], start: Any, prior: Prior
) -> None:
    """Fit on all rows and print the factors."""
    factors, values = fit(cases, measured, start, prior)
    for path, value in values.items():
        print(f"{path:<40} {value:.2g}")
    print(summary(title, errors(cases, measured, factors)))


def print_held_out(
    title: str,
    cases: Sequence[Case],
    measured: Sequence[float],
    start: Any,
    prior: Prior,
    key: Callable[[Row], str],
) -> None:
    """Leave each group out in turn and print how it was predicted, then experts, dense and all."""
    left_out = held_out(cases, measured, start, prior, key)
    for name, found in left_out.items():
        print(summary(name[:44], [error for _, error in found]))
    together = [each for found in left_out.values() for each in found]
    for kind, experts in (("experts", True), ("dense", False)):
        if part := [error for case, error in together if bool(case.facts.experts) == experts]:
            print(summary(f"{title}, {kind}", part))
    print(summary(f"{title}, all", [error for _, error in together]))


def main() -> None:
    """Read, fit, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("csv", type=Path)
    parser.add_argument("--hold", choices=["model", "source", "gpu"], default="")
    arguments = parser.parse_args()
    for title, trains, start, prior in (
        ("serving", False, SERVING, SERVING_PRIOR),
        ("training", True, TRAINING, TRAINING_PRIOR),
    ):
        cases, measured = cases_of(arguments.csv, trains=trains)
        if arguments.hold:
            print_held_out(title, cases, measured, start, prior, group_key(arguments.hold))
        else:
            print_factors(title, cases, measured, start, prior)


if __name__ == "__main__":
    main()
