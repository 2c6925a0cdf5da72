"""Scores the throughput estimates on measured rows: ``python -m tests.benchmarks.throughput CSV``.

The CSV has the columns of ``tests/data/throughput.csv`` or more. Answers (``measured_*``,
``ttft_ms``, ``tpot_ms``, ``mfu``) and ``notes``, which repeat some, are taken off a row before
anything is predicted from it; they may be blank. ``--predictions OUT`` writes one line a row.
With ``--rename`` every model is one that nobody knows, of nearly the same size.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import itertools
import math
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from orchestrator.catalog import Accelerator, ModelFacts, accelerator, model, models
from orchestrator.catalog.parameters import parameters
from orchestrator.planner.sizing.formats import KV_ELEMENT_BYTES, weight_format
from orchestrator.planner.throughput import Measured, serving_throughput, training_throughput
from orchestrator.planner.throughput.factors import SERVING, TRAINING, ServingFactors, TrainingFactors
from orchestrator.planner.throughput.work import work
from orchestrator.units import GIB
from tests.benchmarks.sizing_rows import named_parameters, renamed

Row = Mapping[str, str]

ANSWERS = frozenset(
    {
        "measured_tokens_s_total",
        "measured_output_tokens_s",
        "measured_tokens_s_per_gpu",
        "ttft_ms",
        "tpot_ms",
        "mfu",
        "notes",
    }
)
TRAINS = "train_tokens_s"
UNSCORED = re.compile(r"not used in the fit|spec-decode|kv offload", re.IGNORECASE)
STACKS = {
    "megatron": "megatron",
    "nemo": "megatron",
    "transformers": "transformers",
    "xtuner": "transformers",
}
USD_HOUR = {
    "A100-80GB": 1.79,
    "H100-80GB": 3.99,
    "H200-141GB": 4.59,
    "B200-180GB": 6.79,
    "B300-288GB": 7.89,
    "L40S-48GB": 1.86,
    "RTX-PRO-6000-96GB": 3.36,
    "GB200-186GB": 27.04,
    "MI300X-192GB": 6.00,
}
"""Dollars an hour of one, on demand. A100 and H100: RunPod secure cloud, 2026-11-09
(datareceipts/data-receipts vendors.json); H200, B200, B300: the same, 2026-10-07
(api-evangelist/runpod plans-pricing.yml); L40S and RTX PRO 6000: AWS us-east-1, 2026-07-20
(aws/karpenter-provider-aws zz_generated.pricing_aws.go); GB200 and MI300X: Azure, 2026-06-18
(Azure/karpenter-provider-azure zz_generated.pricing.go), by the device."""


@dataclass(frozen=True, slots=True)
class Serving:
    """A serving row as the estimate takes it."""

    row: Row
    facts: ModelFacts
    accelerator: Accelerator
    load: Mapping[str, Any]

    def predict(self, factors: ServingFactors = SERVING) -> tuple[float, float]:
        """Return output and total tokens a second."""
        speed = serving_throughput(self.facts, self.accelerator, **self.load, factors=factors)
        return speed.output_tokens_s, speed.total_tokens_s


@dataclass(frozen=True, slots=True)
class Training:
    """A training row as the estimate takes it."""

    row: Row
    facts: ModelFacts
    accelerator: Accelerator
    run: Mapping[str, Any]

    def predict(self, factors: TrainingFactors = TRAINING) -> float:
        """Return trained tokens a second."""
        return training_throughput(self.facts, self.accelerator, **self.run, factors=factors).tokens_s


def read_rows(path: Path) -> tuple[list[Row], list[Row]]:
    """Return the rows without their answers, and the answers beside them."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    asked: list[Row] = [{key: value for key, value in row.items() if key not in ANSWERS} for row in rows]
    answers: list[Row] = [{key: row.get(key) or "" for key in ANSWERS} for row in rows]
    return asked, answers


def resized(rows: Iterable[Row]) -> list[Row]:
    """Return the rows as of models nobody knows: other names, and sizes 0.5 % off, which no other has.

    >>> resized([{"model_id": "a/b-7b", "params_b": "100", "active_params_b": ""}])
    [{'model_id': 'unknown/model-a', 'params_b': '99.5', 'active_params_b': ''}]
    """
    return [
        {**row, **{size: _off(row[size]) for size in ("params_b", "active_params_b")}}
        for row in renamed(rows)
    ]


def _off(billions: str) -> str:
    return f"{float(billions) * 0.995:.6g}" if billions else ""


def number(row: Row, column: str, default: float) -> float:
    """Return a cell as a number, ``default`` where it is blank, 0 or no number."""
    try:
        return float(row.get(column) or default) or default
    except ValueError:
        return default


def facts_of(row: Row) -> ModelFacts:
    """Return the catalog's facts of the row's model, by its name or its exact size, or a stand-in."""
    name = row["model_id"]
    known = model(name)
    if known is not None:
        return known
    total = number(row, "params_b", named_parameters(name) or 7) * 1e9
    active = number(row, "active_params_b", named_active(name) or total / 1e9) * 1e9
    return same_size(total, active) or stand_in(name, total, active)


def named_active(name: str) -> float | None:
    """Return the billions of active parameters that a model's name states.

    >>> named_active("org/Model-30B-A3B-Instruct"), named_active("org/Model-8B")
    (3.0, None)
    """
    found = re.search(r"-A(\d+(?:\.\d+)?)B\b", name)
    return float(found[1]) if found else None


SAME_SIZE = 600_000
"""Parameters by which two counts of one shape may differ: as three decimals of billions round."""


def same_size(total: float, active: float) -> ModelFacts | None:
    """Return a catalog model of the same parameters: a finetune has the shapes of what it was made from.

    Both are mixtures or neither; what is counted as active differs by who counts.

    >>> found = same_size(70.554e9, 70.554e9)
    >>> found.layers, found.hidden
    (80, 8192)
    >>> same_size(70.7e9, 70.7e9) is None
    True
    """
    near = [
        (abs(count - total), name) for name, count, mixture in _sizes() if mixture == _sparse(total, active)
    ]
    off, name = min(near)
    return model(name) if off < SAME_SIZE else None


@cache
def _sizes() -> tuple[tuple[str, int, bool], ...]:
    found = ((name, model(name)) for name in models())
    return tuple(
        (name, facts.parameters or parameters(facts).total, bool(facts.experts))
        for name, facts in found
        if facts is not None
    )


def _sparse(total: float, active: float) -> bool:
    return active < 0.9 * total


def stand_in(name: str, total: float, active: float) -> ModelFacts:
    """Return the shape a model of ``total`` and ``active`` parameters usually has.

    A dense block has 12 hidden² parameters; how many layers there are, and all of a mixture, follow
    the power laws of the published models in the catalog (least squares of logarithms).

    >>> dense, mixture = stand_in("x", 8e9, 8e9), stand_in("x", 30e9, 3e9)
    >>> (dense.layers, dense.hidden), (mixture.experts, mixture.experts_per_token)
    ((36, 4352), (130, 7))
    """
    return _mixture(name, total, active) if _sparse(total, active) else _dense(name, total)


def _dense(name: str, total: float) -> ModelFacts:
    layers = max(8, round(19.5 * (total / 1e9) ** 0.29))
    hidden = max(2, round((total / (12 * layers)) ** 0.5 / 128)) * 128
    heads = hidden // 128
    return ModelFacts(
        name,
        "stand-in",
        layers=layers,
        hidden=hidden,
        intermediate=8 * hidden // 3,
        heads=heads,
        kv_heads=min(8, heads),
        head_dim=128,
        vocab=50_000,
        parameters=int(total),
    )


MIXTURE_KV_HEADS = 6
"""Heads of 128 whose keys and values a mixture keeps a layer: half of the published ones keep no
more than 4 (latent attention, windows, linear layers), a third 8."""


def _mixture(name: str, total: float, active: float) -> ModelFacts:
    """Return a mixture: the expert's width is a multiple of 256, which kernels ask for anyway."""
    all_b, active_b = total / 1e9, active / 1e9
    layers = max(4, round(15.8 * all_b**0.164 * active_b**0.116))
    hidden = max(2, round(1520 * active_b**0.402 / 128)) * 128
    heads = max(1, round(10.2 * all_b**0.181 * active_b**0.242))
    share = 0.69 * (active / total) ** 1.12
    width = max(1, round(3220 * all_b**-0.713 * active_b**1.252 / 256)) * 256
    # what is not active is the experts that do not work; the largest share published is 0.985
    routed = min((total - active) / (1 - share), 0.975 * total)
    experts = max(2, round(routed / (layers * 3 * hidden * width)))
    return ModelFacts(
        name,
        "stand-in",
        layers=layers,
        hidden=hidden,
        intermediate=8 * hidden // 3,
        heads=heads,
        kv_heads=min(MIXTURE_KV_HEADS, heads),
        head_dim=128,
        vocab=128_000,
        parameters=int(total),
        experts=experts,
        experts_per_token=max(1, round(share * experts)),
        expert_intermediate=width,
        feed_forwards=("experts",) * layers,
    )


def accelerator_of(row: Row) -> Accelerator:
    """Return the catalog's accelerator for the row's spelling, such as ``A100-80G``.

    Raises:
        ValueError: there is none.
    """
    name = row["gpu"]
    sized = re.fullmatch(r"(.+?)[-_ ]?\b(\d+)\s*G(?:i?B)?", name)
    stem, memory = (sized[1], int(sized[2]) * GIB) if sized else (name, None)
    # "A100/A800-80GB" is either of the two
    named = (accelerator(each.strip(), memory_bytes=memory) for each in stem.split("/"))
    found = accelerator(name) or next((each for each in named if each is not None), None)
    if found is None:
        raise ValueError(f"no accelerator is called {name!r}")
    return found


def format_of(name: str) -> str:
    """Return the weight format that a row's spelling means; by its bits where nobody spells it so.

    >>> format_of("gptq-int8"), format_of("awq-int4"), format_of("w4a8"), format_of("mxfp8")
    ('gptq_int8', 'awq_int4', 'int4', 'fp8')
    """
    inside: list[str] = re.findall(r"bf16|fp16|fp8|int8|int4|nf4", name)
    for spelling in (name, name.replace("-", "_"), *inside):
        with contextlib.suppress(ValueError):
            weight_format(spelling)
            return spelling
    bits = re.search(r"\d+", name)
    return {"4": "int4", "8": "int8"}.get(bits[0], "bf16") if bits else "bf16"


def layout_of(row: Row) -> tuple[int, int, int]:
    """Return tensor, pipeline and data parallelism of a serving row.

    Data-parallel attention counts its ranks twice, in ``tp`` and in ``dp``. Devices that no column
    explains hold layers one after the other (transformers' ``device_map``), or share them where
    the row leaves ``tp`` blank and an engine does that.

    >>> layout_of({"n_gpus": "8", "engine": "vLLM"}), layout_of({"tp": "4", "engine": "vLLM"})
    ((8, 1, 1), (4, 1, 1))
    """
    tensor, pipeline, data = (max(int(number(row, key, 1)), 1) for key in ("tp", "pp", "dp"))
    count = max(int(number(row, "n_gpus", tensor * pipeline * data)), 1)
    if not number(row, "tp", 0) and not row.get("engine", "").lower().startswith("transformers"):
        tensor = max(count // (pipeline * data), 1)
    if tensor * data > count:
        tensor = max(count // data, 1)
    return tensor, max(count // (tensor * data), 1), data


def serving(row: Row) -> Serving:
    """Return a serving row as the estimate takes it."""
    engine, _, version = row["engine"].partition(" ")
    tensor, pipeline, data = layout_of(row)
    concurrency = None if row["concurrency_or_batch"] == "max" else number(row, "concurrency_or_batch", 1)
    stored = format_of(row["weight_format"])
    cache = row.get("kv_dtype") or "16bit"
    if cache == "unstated":  # NVIDIA's fp8 and nvfp4 checkpoints name an fp8 cache (hf_quant_config.json)
        cache = "fp8" if stored in ("fp8", "nvfp4") else "16bit"
    load = {
        "input_tokens": number(row, "input_tokens", 64),
        "output_tokens": max(number(row, "output_tokens", 1), 1),
        "concurrency": concurrency,
        "tensor": tensor,
        "pipeline": pipeline,
        "data": data,
        "expert": data,
        "weight_format": stored,
        "kv_dtype": cache if cache in KV_ELEMENT_BYTES else "16bit",
        "engine": engine.lower(),
        "engine_version": version or None,
        # dozens of requests and more at an infinite rate are one burst; a few are kept in flight
        "burst": row.get("request_rate") == "inf" and concurrency is not None and concurrency >= 64,
    }
    facts = facts_of(row)
    return Serving(row, facts, accelerator_of(row), {**load, "counted": work(facts, stored)})


def training(row: Row) -> Training:
    """Return a training row as the estimate takes it; checkpointing is on where memory asks for it."""
    facts, device = facts_of(row), accelerator_of(row)
    engine = row["engine"].lower()
    stack = next((stack for name, stack in STACKS.items() if engine.startswith(name)), "fsdp")
    count, tensor, pipeline = (int(number(row, key, 1)) for key in ("n_gpus", "tp", "pp"))
    length, micro = int(number(row, "seq_len", 2048)), int(number(row, "micro_batch", 1))
    method = row["method"].lower()
    tuning = next((name for name in ("qlora", "lora", "pretrain") if name in method), "full")
    # Adam in mixed precision takes 16 bytes a parameter, a layer keeps 34 an activation (arXiv 2205.05198)
    states = 16 * (facts.parameters or 0) / count
    kept = 34 * facts.layers * facts.hidden * length * micro / tensor / pipeline
    full = states + kept > 0.92 * device.visible_bytes
    run = {
        "count": count,
        "sequence_length": length,
        "micro_batch": micro,
        "tensor": tensor,
        "pipeline": pipeline,
        "tuning": tuning,
        "weight_format": row["weight_format"].removesuffix("-rowwise"),
        "checkpointing": {"fsdp": full, "megatron": False, "transformers": True}[stack],
        "stack": stack,
        "counted": work(facts),
    }
    return Training(row, facts, device, run)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What is written for a row; output is None for training, and all is where facts are missing."""

    row_id: str
    output_tokens_s: float | None = None
    tokens_s_total: float | None = None
    tokens_s_per_gpu: float | None = None


def predict(row: Row) -> Prediction:
    """Return the estimate for a row without its answers.

    A row whose accelerator or its bandwidth nobody knows is named on stderr and left blank.
    """
    try:
        output, total = (None, training(row).predict()) if row["kind"] == TRAINS else serving(row).predict()
    except ValueError as error:
        print(f"{row['row_id']}: {error}", file=sys.stderr)
        return Prediction(row["row_id"])
    return Prediction(row["row_id"], output, total, total / max(number(row, "n_gpus", 1), 1))


def answer_of(row: Row, answers: Row) -> float | None:
    """Return what was measured, in the unit the row is scored in; None for a row that is not scored."""
    if UNSCORED.search(answers["notes"]) or number(row, "request_rate", math.inf) < math.inf:
        return None
    column = "measured_tokens_s_total" if row["kind"] == TRAINS else "measured_output_tokens_s"
    measured = number(answers, column, 0)
    return measured if measured > 0 else None


@dataclass(frozen=True, slots=True)
class Scored:
    """A row with its prediction and what was measured."""

    row: Row
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """Return the logarithm of predicted over measured."""
        return math.log(self.predicted / self.measured)


def score(rows: Sequence[Row], answers: Sequence[Row], predictions: Sequence[Prediction]) -> list[Scored]:
    """Return the rows that have an answer."""
    scored = []
    for row, given, made in zip(rows, answers, predictions, strict=True):
        measured = answer_of(row, given)
        value = made.tokens_s_total if row["kind"] == TRAINS else made.output_tokens_s
        if measured is not None and value is not None:
            scored.append(Scored(row, value, measured))
    return scored


def median_error(errors: Iterable[float]) -> float:
    """Return the median of ``|predicted / measured - 1|`` over logarithmic errors."""
    return statistics.median(abs(math.exp(error) - 1) for error in errors)


def within(errors: Sequence[float], factor: float) -> float:
    """Return the share of logarithmic errors within a factor up or down."""
    return sum(abs(error) <= math.log(factor) for error in errors) / len(errors)


def from_neighbours(scored: Sequence[Scored]) -> list[float]:
    """Return the errors of serving rows that are each predicted from the nearest other measured row."""
    cases = [serving(each.row) for each in _served(scored)]
    rows = [_measured(case, each.measured) for case, each in zip(cases, _served(scored), strict=True)]
    found = []
    for case, own in zip(cases, rows, strict=True):
        others = [row for row in rows if row is not own]
        speed = serving_throughput(case.facts, case.accelerator, **case.load, measured=others)
        if speed.measured:
            found.append(math.log(speed.output_tokens_s / own.output_tokens_s))
    return found


def _served(scored: Sequence[Scored]) -> list[Scored]:
    return [each for each in scored if each.row["kind"] != TRAINS]


def _measured(case: Serving, output_tokens_s: float) -> Measured:
    keys = ("engine", "weight_format", "input_tokens", "output_tokens", "concurrency")
    return Measured(
        model=case.facts.id,
        accelerator=case.accelerator.name,
        output_tokens_s=output_tokens_s,
        source=case.row["row_id"],
        **{key: case.load[key] for key in (*keys, "tensor", "pipeline", "data")},
    )


def pair_order(scored: Sequence[Scored]) -> tuple[int, int]:
    """Return how many pairs of accelerators come out in the right order by dollars a token, of how many.

    A pair is two serving rows of one source that differ in the accelerator, and in how many of it,
    only; pairs within 5 % of each other are left out.
    """
    same: dict[tuple[str, ...], list[tuple[str, float, float]]] = defaultdict(list)
    keys = ("kind", "source", "model_id", "weight_format", "engine", "input_tokens", "output_tokens")
    for each in scored:
        name = accelerator_of(each.row).name
        if each.row["kind"] == TRAINS or name not in USD_HOUR:
            continue
        dollars = USD_HOUR[name] * number(each.row, "n_gpus", 1)
        setup = (*(each.row[key] for key in keys), each.row["concurrency_or_batch"])
        same[setup].append((name, dollars / each.measured, dollars / each.predicted))
    right = total = 0
    for runs in same.values():
        for (one, paid, thought), (other, other_paid, other_thought) in itertools.combinations(runs, 2):
            if one != other and abs(math.log(paid / other_paid)) > math.log(1.05):
                total += 1
                right += (paid < other_paid) == (thought < other_thought)
    return right, total


def report(scored: Sequence[Scored]) -> list[str]:
    """Return the lines that are printed."""
    lines = []
    for title, errors in (
        ("serving", [each.error for each in _served(scored)]),
        ("from the nearest measured row", from_neighbours(scored)),
        ("training", [each.error for each in scored if each.row["kind"] == TRAINS]),
    ):
        if errors:
            bias = math.exp(statistics.median(errors))
            lines.append(
                f"{title:<30} {len(errors):>4} rows  median error {median_error(errors):6.1%}  "
                f"within 1.5x {within(errors, 1.5):6.1%}  within 2x {within(errors, 2):6.1%}  bias {bias:.2f}"
            )
    right, total = pair_order(scored)
    if total:
        lines.append(
            f"order of accelerators by $ per token right in {right} of {total} pairs ({right / total:.1%})"
        )
    return lines


def write(path: Path, predictions: Iterable[Prediction]) -> None:
    """Write one line a row."""
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(
            ["row_id", "predicted_output_tokens_s", "predicted_tokens_s_total", "predicted_tokens_s_per_gpu"]
        )
        for each in predictions:
            values = (each.output_tokens_s, each.tokens_s_total, each.tokens_s_per_gpu)
            out.writerow([each.row_id, *("" if value is None else f"{value:.6g}" for value in values)])


def main() -> None:
    """Predict every row, write and score."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("csv", type=Path)
    parser.add_argument("--predictions", type=Path)
    parser.add_argument("--rename", action="store_true", help="give every model a name nobody knows")
    arguments = parser.parse_args()
    rows, answers = read_rows(arguments.csv)
    if arguments.rename:
        rows = resized(rows)
    predictions = [predict(row) for row in rows]
    if arguments.predictions:
        write(arguments.predictions, predictions)
    print("\n".join(report(score(rows, answers, predictions)) or ["no answers to score"]))


if __name__ == "__main__":
    main()
