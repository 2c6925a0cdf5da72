"""The arithmetic behind a plan of a model, line by line: memory, speed and cost."""

from __future__ import annotations

from orchestrator.catalog import Accelerator
from orchestrator.frozen import frozen
from orchestrator.planner.plan import Choice
from orchestrator.planner.serve import Served
from orchestrator.planner.sizing import explain_serving, explain_training
from orchestrator.planner.sizing.formats import KV_ELEMENT_BYTES
from orchestrator.planner.sizing.kv import kv_layout
from orchestrator.planner.throughput.device import peak_flops, product_format
from orchestrator.planner.throughput.work import work
from orchestrator.planner.tune import Trained
from orchestrator.spec.models import Traffic
from orchestrator.units import format_bytes, format_figure, format_usd


@frozen
class Line:
    """One line of a receipt: what it is, what comes out, and how."""

    what: str
    value: str
    how: str


def explain(served: Served, traffic: Traffic, choice: Choice) -> tuple[Line, ...]:
    """Return the arithmetic of memory, speed and cost of the chosen offer.

    Speeds stand beside what the data sheet alone would give, so that a reader sees how much the
    stated factors take off.
    """
    return (*_memory(served), *_speed(served, traffic), *_cost(served, choice))


def explain_tuning(trained: Trained, choice: Choice) -> tuple[Line, ...]:
    """Return the arithmetic of a training run on the chosen offer: memory, speed and cost."""
    candidate, speed = trained.candidate, trained.speed
    steps = explain_training(trained.facts, candidate.accelerator, candidate.job)
    memory = tuple(Line(step.what, format_bytes(step.size_bytes), step.how) for step in steps)
    if speed is None:
        return memory
    reached = f"{speed.mfu:.0%} of the data sheet's peak, {speed.flops_per_token / 1e9:,.1f} GFLOP a token"
    pace = f"{speed.low:,.0f} to {speed.high:,.0f} in four of five cases; {reached}"
    cautions = (Line("caution", "", caution) for caution in speed.cautions)
    lines = (*memory, Line("trained", f"{speed.tokens_s:,.0f} tokens/s", pace), *cautions)
    cost = choice.usd_per_million_tokens
    if not cost:
        return lines
    how = f"${format_usd(choice.price_usd_hour)}/h / 3,600 s / {speed.tokens_s:,.0f} tokens/s x 10^6"
    return (*lines, Line("cost", f"${format_usd(cost, 3)}/M tokens", how))


def _memory(served: Served) -> tuple[Line, ...]:
    steps = explain_serving(served.facts, served.accelerator, served.job)
    return tuple(Line(step.what, format_bytes(step.size_bytes), step.how) for step in steps)


def _speed(served: Served, traffic: Traffic) -> tuple[Line, ...]:
    speed, device, job = served.speed, served.accelerator, served.job
    if speed is None or device.bandwidth_gbs is None:
        return ()
    counted = work(served.facts, job.precision)
    ranks = job.tensor  # stages work one after the other on a token
    layout = kv_layout(served.facts, element_bytes=KV_ELEMENT_BYTES[job.kv_cache], grouped=False)
    context = traffic.input_tokens + (0 if served.facts.pools else traffic.output_tokens // 2)
    weights = counted.dense_bytes + counted.expert_bytes * min(1.0, counted.expert_share * speed.sequences)
    cache = layout.request_bytes(context) * speed.sequences
    least_s = (weights + cache) / (device.bandwidth_gbs * 1e9 * ranks)
    flop = 2 * counted.active * traffic.input_tokens
    format_ = product_format(device, job.precision)
    peak = peak_flops(device, format_) * ranks
    sheet = f"{device.bandwidth_gbs:,.0f} GB/s" + (f" × {ranks}" if ranks > 1 else "")
    at = f"{peak / 1e12:,.0f} TFLOP/s in {_told(device, format_)}"
    prompt = f"{format_figure(flop / peak, 2)} s for {flop / 1e12:,.1f} TFLOP at {at}"
    range_ = f"{speed.low:,.0f} to {speed.high:,.0f} in four of five cases, bound by {speed.bound_by}"
    cautions = tuple(Line("caution", "", caution) for caution in speed.cautions)
    if served.facts.pools:
        return (
            Line("answer", f"{format_figure(speed.ttft_s, 2)} s", prompt),
            Line("input", f"{speed.output_tokens_s:,.0f} tokens/s", range_),
            *cautions,
        )
    return (
        Line(
            "a pass reads", format_bytes(round(weights + cache)),
            f"{format_bytes(round(weights))} of weights, {format_bytes(round(cache))} of KV cache "
            f"({speed.sequences:.0f} requests at {context:,} tokens)",
        ),
        Line("each token", f"{speed.tpot_s * 1e3:.1f} ms", f"{least_s * 1e3:.1f} ms at {sheet}"),
        Line("first token", f"{format_figure(speed.ttft_s, 2)} s", prompt),
        Line(
            "output", f"{speed.output_tokens_s:,.0f} tokens/s",
            range_ + (f"; measured: {speed.measured}" if speed.measured else ""),
        ),
        *cautions,
    )  # fmt: skip


def _told(device: Accelerator, format_: str) -> str:
    """Return the format that is multiplied in: all of 16 bits go as bf16, which not every device has."""
    is_other = format_ == "bf16" and "bf16" not in device.native and "fp16" in device.native
    return "fp16" if is_other else format_


def _cost(served: Served, choice: Choice) -> tuple[Line, ...]:
    cost, speed = choice.usd_per_million_tokens, served.speed
    if not cost or speed is None:
        return ()
    how = f"${format_usd(choice.price_usd_hour)}/h / 3,600 s / {speed.output_tokens_s:,.0f} tokens/s x 10^6"
    return (Line("cost", f"${format_usd(cost, 3)}/M tokens", how),)
