"""Score the sizing on rows of measured memory, beside what other tools would have said.

    python -m tests.benchmarks.sizing CSV [--predictions OUT] [--rows] [--rename]

CSV has the columns of a reference of measured rows; its answers may be blank and are read by
the scoring alone. OUT gets ``row_id,predicted_gib,predicted_tokens,lower_gib,upper_gib``.
With ``--rename`` every model is one that nobody knows: the rest of its row must do.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.planner.sizing.formats import weight_format
from orchestrator.planner.sizing.kv import kv_layout
from orchestrator.planner.sizing.parameters import count_parts
from orchestrator.planner.sizing.serving import default_batch, size_serving
from orchestrator.planner.sizing.training import size_training
from orchestrator.planner.sizing.values import ServingJob, Size
from orchestrator.planner.sizing.weights import device_weight_bytes, weight_bytes
from orchestrator.units import GIB
from tests.benchmarks.sizing_rows import (
    Row,
    certainty,
    device_of,
    facts_of,
    format_of,
    number,
    question,
    renamed,
    training_job,
    whole,
)

WEIGHTS_MARGIN = 0.06
"""Share by which weights alone may be short: loaded copies, padding, kernels' own layouts."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the sizing says of one row; None where the row asks for the other figure."""

    row_id: str
    gib: float | None = None
    tokens: int | None = None
    lower_gib: float | None = None
    upper_gib: float | None = None


def predict(row: Row) -> Prediction:
    """Return the prediction for a row, from its inputs alone."""
    asked = question(row)
    answer = _ANSWERS.get(asked["kind"])
    return answer(asked) if answer else Prediction(row["row_id"])


def _bounded(row: Row, gib: float, margin: float) -> Prediction:
    off = certainty(row)
    return Prediction(row["row_id"], gib, None, gib * (1 - margin) / off, gib * (1 + margin) * off)


def _weights(row: Row) -> Prediction:
    facts, name = facts_of(row), format_of(row)
    if not row["measure"].startswith("vllm") and not row["measure"].startswith("sglang"):
        return _bounded(row, weight_bytes(facts, name, loaded=False).total / GIB, WEIGHTS_MARGIN)
    tensor, pipeline = whole(row, "tp", 1), whole(row, "pp", 1)
    held = device_weight_bytes(
        facts, weight_bytes(facts, name), tensor=tensor, pipeline=pipeline, expert_ranks=tensor
    )
    return _bounded(row, held / GIB, WEIGHTS_MARGIN)


def _serving(row: Row) -> Size:
    words = row["engine"].lower().split()
    default = "transformers" if row["method"] == "generate" else "vllm"
    engine = words[0] if words and words[0] in _ENGINES else default
    version = next((w for w in words[1:] if w[0].isdigit()), _UNSTATED.get(engine))
    batch = default_batch(device_of(row), engine=engine, version=version)
    context = whole(row, "context")
    generated = 2048 if "generate 2048" in row["measure"] else 0
    job = ServingJob(
        engine=engine,
        engine_version=version,
        precision=format_of(row),
        kv_cache=row["kv_dtype"] if row.get("kv_dtype") in ("fp8", "fp32") else "16bit",
        context=context or None,
        concurrency=whole(row, "batch", 1),
        tensor=whole(row, "tp", 1),
        pipeline=whole(row, "pp", 1),
        memory_utilization=number(row, "gpu_mem_util") or None,
        # stated, so that the answer is the engine's own default and not a lower one that fits
        max_num_seqs=batch.max_num_seqs if engine in _POOLED else None,
        max_num_batched_tokens=max(1, context - generated) if engine == "transformers" else None,
    )
    return size_serving(facts_of(row), device_of(row), job)


_POOLED = ("vllm", "sglang", "tgi", "nim")
_ENGINES = (*_POOLED, "transformers", "litgpt")
_UNSTATED = {"vllm": "0.11", "transformers": "0"}
"""Versions taken where a row names none: most such rows are from 2024 and 2025."""


def _serve_peak(row: Row) -> Prediction:
    size = _serving(row)
    bytes_ = size.device.non_kv_bytes if "non_kv" in row["measure"] else size.device.peak_bytes
    return _bounded(row, bytes_ / GIB, size.margin)


def _kv_tokens(row: Row) -> Prediction:
    pool, off = number(row, "kv_pool_gib"), certainty(row)
    if pool:
        layout = kv_layout(
            facts_of(row),
            tensor=whole(row, "tp", 1),
            pipeline=whole(row, "pp", 1),
            element_bytes={"fp8": 1, "fp32": 4}.get(row["kv_dtype"], 2),
        )
        shapes = 1.0 if whole(row, "layers") else off
        tokens = layout.admitted_tokens(pool * GIB, block=16)
        return Prediction(row["row_id"], pool, tokens, pool / shapes, pool * shapes)
    size = _serving(row)
    # an engine that printed a count had started, which takes a pool of one request at the least
    tokens = size.kv_cache_tokens or max(16, whole(row, "context"))
    held = size.device.kv_cache_bytes / GIB
    swing = ((1 + size.margin) * off - 1) * size.device.non_kv_bytes / GIB
    return Prediction(row["row_id"], held, tokens, max(0.0, held - swing), held + swing)


def _train_peak(row: Row) -> Prediction:
    job = training_job(row)
    size = size_training(facts_of(row), device_of(row), job)
    devices = job.devices if "sum" in row["measure"] else 1
    return _bounded(row, devices * size.device.peak_bytes / GIB, size.margin)


_ANSWERS: dict[str, Callable[[Row], Prediction]] = {
    "inference_weights": _weights,
    "serve_peak": _serve_peak,
    "kv_cache_tokens": _kv_tokens,
    "train_peak": _train_peak,
}


@dataclass(frozen=True, slots=True)
class Scored:
    """A prediction beside what was measured."""

    row: Row
    group: str
    prediction: Prediction
    error: float
    safe: bool


def group_of(row: Row) -> str:
    """Return the name under which a row is scored: its kind, and the method or engine within it."""
    kind, measure = row["kind"], row["measure"]
    if kind == "serve_peak":
        return "serve_peak vllm" if "non_kv" in measure else "serve_peak generate"
    if kind == "train_peak":
        return "train_peak " + row["method"].replace("full_fp32master", "full")
    return kind


def score(rows: Iterable[Row]) -> list[Scored]:
    """Return every row that has an answer with its relative error, and whether it was safe.

    Safe means that the measured bytes stay under the upper bound; for tokens, that at least as
    many are admitted as the lower bound of the pool would hold.
    """
    scored = []
    for row in rows:
        said = predict(row)
        tokens, gib = number(row, "measured_tokens"), number(row, "measured_gib")
        if row["kind"] == "kv_cache_tokens" and tokens and said.tokens is not None:
            least = said.tokens * (said.lower_gib or 0) / said.gib if said.gib else 0.0
            scored.append(Scored(row, group_of(row), said, said.tokens / tokens - 1, tokens >= least))
        elif gib and said.gib is not None:
            scored.append(
                Scored(row, group_of(row), said, said.gib / gib - 1, gib <= (said.upper_gib or 0.0))
            )
    return scored


def _kaito(row: Row) -> float | None:
    """KAITO's estimate: file size x 1.02, 2.3 GiB and 5 % of the weights a GPU holds."""
    if row["kind"] == "train_peak" or row["kind"] == "kv_cache_tokens":
        return None
    held = _naive_weights(row) * 1.02
    return held if row["kind"] == "inference_weights" else held * 1.05 + 2.3


def _gpustack(row: Row) -> float | None:
    """GPUStack's estimate: 1.2 x weights + 2 GiB over the replica."""
    if row["kind"] in ("kv_cache_tokens", "inference_weights"):
        return None
    devices = max(1, whole(row, "tp", 1) * whole(row, "pp", 1))
    return 1.2 * _naive_weights(row) + 2 / devices if row["kind"] == "serve_peak" else None


def _naive(row: Row) -> float | None:
    """Parameters x bytes; in training 16 (full) or the frozen base and nothing else."""
    if row["kind"] == "kv_cache_tokens":
        return None
    base = _naive_weights(row)
    if row["kind"] == "train_peak" and "full" in row["method"]:
        return base * 8 / max(1, whole(row, "n_gpus", 1) // max(1, whole(row, "tp", 1)))
    return base


def _naive_weights(row: Row) -> float:
    asked = question(row)
    total = count_parts(facts_of(asked)).total
    cut = max(1, whole(row, "tp", 1) * whole(row, "pp", 1)) if row["kind"] != "train_peak" else 1
    return total * weight_format(format_of(row)).bits / 8 / cut / GIB


PEERS: dict[str, Callable[[Row], float | None]] = {"KAITO": _kaito, "GPUStack": _gpustack, "naive": _naive}
"""Other tools' published formulas, computed on the same rows."""


def report(scored: Sequence[Scored]) -> str:
    """Return a table of the errors by group, with the peers' beside."""
    groups: dict[str, list[Scored]] = defaultdict(list)
    for each in scored:
        groups[each.group].append(each)
    head = f"{'group':<22}{'rows':>5}{'MAPE':>8}{'median':>8}{'bias':>8}{'worst':>8}{'safe':>7}"
    lines = [head + "".join(f"{name:>10}" for name in PEERS)]
    for name, members in sorted(groups.items()):
        lines.append(_line(name, members))
    safe = sum(s.safe for s in scored) / max(1, len(scored))
    lines.append(f"{'all':<22}{len(scored):>5}{'safe side':>16} {safe:.1%}")
    return "\n".join(lines)


def _line(name: str, members: Sequence[Scored]) -> str:
    sizes = [abs(m.error) for m in members]
    cells = [
        statistics.fmean(sizes),
        statistics.median(sizes),
        statistics.fmean(m.error for m in members),
        max(sizes),
    ]
    text = f"{name:<22}{len(members):>5}" + "".join(f"{c:>8.1%}" for c in cells)
    text += f"{sum(m.safe for m in members) / len(members):>7.0%}"
    for peer in PEERS.values():
        said = [(peer(m.row), number(m.row, "measured_gib")) for m in members]
        errors = [abs(p / measured - 1) for p, measured in said if p is not None and measured]
        text += f"{statistics.fmean(errors):>10.1%}" if errors else f"{'-':>10}"
    return text


def read(path: Path) -> list[Row]:
    """Return the rows of a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: Iterable[Row]) -> None:
    """Write the predictions of ``rows``."""
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["row_id", "predicted_gib", "predicted_tokens", "lower_gib", "upper_gib"])
        for said in map(predict, rows):
            cells = (said.gib, said.lower_gib, said.upper_gib)
            gib, lower, upper = ("" if c is None else f"{c:.4f}" for c in cells)
            tokens = "" if said.tokens is None else said.tokens
            # the pool of a token row is no answer of that row
            out.writerow([said.row_id, "" if said.tokens is not None else gib, tokens, lower, upper])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("csv", type=Path)
    parser.add_argument("--predictions", type=Path)
    parser.add_argument("--rows", action="store_true", help="print every row, worst last")
    parser.add_argument("--rename", action="store_true", help="give every model a name nobody knows")
    asked = parser.parse_args(arguments)
    rows = renamed(read(asked.csv)) if asked.rename else read(asked.csv)
    if asked.predictions:
        write(asked.predictions, rows)
    scored = score(rows)
    if asked.rows:
        for s in sorted(scored, key=lambda s: (s.group, abs(s.error))):
            measured = s.row["measured_gib"] or s.row["measured_tokens"]
            said = s.prediction.tokens if s.prediction.tokens is not None else round(s.prediction.gib or 0, 2)
            name = f"{s.group:<20} {s.row['row_id']}"
            print(f"{name} {s.error:>+7.1%} {said:>10} {measured:>10} {s.row['model_id']}")
    print(report(scored) if scored else "no answers in this file: nothing to score")
    return 0


if __name__ == "__main__":
    sys.exit(main())
