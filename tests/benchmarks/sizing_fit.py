"""Fit the sizing's few fitted constants again, and score each on rows it was not fitted on.

    python -m tests.benchmarks.sizing_fit CSV [--leave-out family|source]

Without ``--leave-out`` it prints, for every constant, the value in the code and the value that
these rows would choose. With it, the constants are fitted once per family (or source) on the
rows of all others and scored on that one; the table sets the errors beside those of the code.
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.planner.sizing import engine_memory, profiles, trainers, training
from orchestrator.units import GIB
from tests.benchmarks import sizing
from tests.benchmarks.sizing_rows import Row, facts_of, number, question, whole

FAMILIES = (
    "llama", "qwen", "gemma", "mistral", "mixtral", "ministral", "phi", "falcon", "deepseek", "gpt-oss",
    "granite", "glm", "nemotron", "kimi", "minimax", "lfm", "stablelm",
)  # fmt: skip


ALLOCATOR = trainers.trainer_profile("trl").allocator
"""What most frameworks share; the ones that report allocated memory have their own."""


@dataclass(frozen=True, slots=True)
class Constant:
    """A fitted figure: where it lives, and the groups of rows that speak of it."""

    name: str
    groups: tuple[str, ...]
    value: float
    hold: Callable[[float], ExitStack]


@contextmanager
def _attribute(module: object, name: str, value: object) -> Iterator[None]:
    kept = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, kept)


def _figure(module: object, name: str) -> Callable[[float], ExitStack]:
    def hold(value: float) -> ExitStack:
        stack = ExitStack()
        stack.enter_context(_attribute(module, name, value))
        return stack

    return hold


def _sampler(since: tuple[int, ...], until: tuple[int, ...]) -> Callable[[float], ExitStack]:
    def hold(value: float) -> ExitStack:
        rows = tuple(
            replace(p, sampler_element_bytes=value) if p.engine == "vllm" and since <= p.since < until else p
            for p in profiles._PROFILES
        )
        stack = ExitStack()
        stack.enter_context(_attribute(profiles, "_PROFILES", rows))
        return stack

    return hold


def _allocator(value: float) -> ExitStack:
    rows = tuple(replace(p, allocator=value) if p.allocator == ALLOCATOR else p for p in trainers._PROFILES)
    stack = ExitStack()
    stack.enter_context(_attribute(trainers, "_PROFILES", rows))
    return stack


_TRAINING = ("train_peak full", "train_peak lora", "train_peak qlora")
CONSTANTS = (
    Constant("sampler bytes, vLLM to 0.16", ("serve_peak vllm",), 38.4, _sampler((0,), (0, 17))),
    Constant("sampler bytes, vLLM from 0.17", ("serve_peak vllm",), 14.8, _sampler((0, 17), (9,))),
    Constant("stream states", _TRAINING, training.STREAM_STATES, _figure(training, "STREAM_STATES")),
    Constant(
        "stream states, parallel",
        _TRAINING,
        training.PARALLEL_STREAM_STATES,
        _figure(training, "PARALLEL_STREAM_STATES"),
    ),
    Constant(
        "stream states, compiled",
        _TRAINING,
        training.COMPILED_STREAM_STATES,
        _figure(training, "COMPILED_STREAM_STATES"),
    ),
    Constant("selective share", _TRAINING, training.SELECTIVE_SHARE, _figure(training, "SELECTIVE_SHARE")),
    Constant("allocator", _TRAINING, ALLOCATOR, _allocator),
)
STEPS = (0.7, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2, 1.3)
"""The grid a constant is fitted on, in units of its value in the code."""


def fit(rows: Sequence[Row]) -> dict[str, float]:
    """Return the value of every constant that gives ``rows`` the least mean ratio, one by one.

    A constant that no row speaks of keeps its value.
    """
    chosen = {}
    for constant in CONSTANTS:
        members = [r for r in rows if sizing.group_of(r) in constant.groups]
        errors = {step: _mean_error(members, constant, constant.value * step) for step in STEPS}
        best = min(STEPS, key=lambda step: (round(errors[step], 6), abs(step - 1)))
        chosen[constant.name] = constant.value * best
    return chosen


def _mean_error(rows: Sequence[Row], constant: Constant, value: float) -> float:
    if not rows:
        return 0.0
    with constant.hold(value):
        # ratios, so that half and double weigh the same
        return statistics.fmean(abs(math.log(1 + s.error)) for s in sizing.score(rows))


def held_out(rows: Sequence[Row], part_of: Callable[[Row], str]) -> list[sizing.Scored]:
    """Return every row scored with the constants that the other parts' rows choose."""
    scored: list[sizing.Scored] = []
    speaking = [r for r in rows if any(sizing.group_of(r) in c.groups for c in CONSTANTS)]
    for part in sorted({part_of(r) for r in rows}):
        mine = [r for r in rows if part_of(r) == part]
        chosen = fit([r for r in speaking if part_of(r) != part])
        with ExitStack() as stack:
            for constant in CONSTANTS:
                stack.enter_context(constant.hold(chosen[constant.name]))
            scored += sizing.score(mine)
    return scored


def family(row: Row) -> str:
    """Return the family a model belongs to by its name.

    >>> family({"model_id": "RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w8a8"})
    'llama'
    """
    name = row["model_id"].lower()
    return next((f for f in FAMILIES if f in name), name)


PARTS: Mapping[str, Callable[[Row], str]] = {"family": family, "source": lambda row: row["source"][:40]}


def graph_pools(rows: Sequence[Row]) -> list[tuple[float, float, bool]]:
    """Return (layers x hidden, GiB, is a mixture of experts) of every printed graph pool."""
    pools = []
    for row in rows:
        found = re.search(r"cudagraph pool ([\d.]+) GiB", row.get("notes", ""))
        if found and row["kind"] == "serve_peak" and whole(row, "tp") * whole(row, "pp") == 1:
            facts = facts_of(question(row))
            pools.append((float(facts.layers * facts.hidden), float(found[1]), facts.experts > 0))
    return pools


def _print_fit(rows: Sequence[Row]) -> None:
    chosen = fit(rows)
    for constant in CONSTANTS:
        print(
            f"{constant.name:<32} in code {constant.value:>7.2f}   these rows {chosen[constant.name]:>7.2f}"
        )
    pools = graph_pools(rows)
    dense = [(units, gib) for units, gib, moe in pools if not moe]
    if len(dense) > 2:
        slope, base = statistics.linear_regression(*zip(*dense, strict=True))
        in_code = (
            f"{engine_memory.GRAPH_POOL_BYTES / GIB:.2f} GiB + {engine_memory.GRAPH_BYTES_PER_UNIT:.0f} B"
        )
        print(f"{'graph pool':<32} in code {in_code}   these rows {base:.2f} GiB + {slope * GIB:.0f} B")
        beyond = [gib - base - slope * units for units, gib, moe in pools if moe]
        print(f"{'graph pool of experts, most':<32} {max(beyond, default=0.0):.2f} GiB more")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the fit or the validation; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("csv", type=Path)
    parser.add_argument("--leave-out", choices=sorted(PARTS))
    asked = parser.parse_args(arguments)
    rows = [r for r in sizing.read(asked.csv) if number(r, "measured_gib") or number(r, "measured_tokens")]
    if not asked.leave_out:
        _print_fit(rows)
        return 0
    print("constants of the code\n" + sizing.report(sizing.score(rows)))
    print(f"\nfitted without the scored {asked.leave_out}")
    print(sizing.report(held_out(rows, PARTS[asked.leave_out])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
