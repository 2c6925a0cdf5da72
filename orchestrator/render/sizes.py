"""What a model takes in device memory, for a person in ten seconds and for a machine in full."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import date
from math import isfinite

from orchestrator.catalog import ModelFacts, as_of, count_parameters, is_stale
from orchestrator.catalog.pricing import STALE_DAYS
from orchestrator.planner.parallelism import Layout
from orchestrator.planner.sets import AcceleratorSet, Answer
from orchestrator.planner.sizing import ServingJob, Size, TrainingJob
from orchestrator.planner.sizing.profiles import CURRENT
from orchestrator.planner.sizing.weights import published_format
from orchestrator.render.table import plural, table, to_json
from orchestrator.units import GIB, format_bytes, format_figure, format_usd

SHOWN = 8
"""Sets a person is shown; the rest is counted."""

_SHOWN_REASONS = 4


def size_text(facts: ModelFacts, answer: Answer, *, today: date) -> str:
    """Return the receipt: the job, the memory of one device, the speed, and the sets that fit.

    Args:
        facts: The model.
        answer: What was found.
        today: The day that the age of prices is counted to.
    """
    return "\n".join([*_head(facts, answer.asked), *_sets(answer, today)])


def _head(facts: ModelFacts, asked: AcceleratorSet) -> Iterator[str]:
    job, size = asked.job, asked.size
    model = f"{facts.id} · {parameters_text(facts.parameters or count_parameters(facts))}"
    if isinstance(job, ServingJob):
        how = asked.lowered or ("as published" if published_format(facts) == job.precision else "as asked")
        yield f"model    {model} · {job.precision} ({how})"
        cut = f" (of the model's {facts.context:,})" if asked.shortened else ""
        context = f"{job.context:,} tokens{cut} × {job.concurrency} at once"
        version = job.engine_version or CURRENT.get(job.engine, "")
        yield f"job      {context} · {job.engine} {version}".rstrip()
    else:
        yield f"model    {model}"
        yield f"job      {_training_text(job)}"
    yield f"on       {set_text(asked)} · {_verdict(asked)}"
    cache = "KV cache" if isinstance(job, ServingJob) else "rollout"
    yield f"memory   {memory_text(size, cache)}"
    if isinstance(job, ServingJob):
        yield f"holds    {_held_text(size)}"
    if asked.speed:
        yield f"speed    {_speed_text(asked)}"
        yield from (f"caution  {caution}" for caution in asked.speed.cautions)


def _held_text(size: Size) -> str:
    if not isfinite(size.max_concurrency):
        return "any number of requests: this model keeps nothing of their tokens"
    return (
        f"{size.kv_cache_tokens:,} tokens · {size.max_concurrency:.1f} such requests at once · "
        f"one alone up to {size.longest_request_tokens:,} tokens"
    )


def _training_text(job: TrainingJob) -> str:
    tuned = job.tuning if job.tuning == "full" else f"{job.tuning} rank {job.rank}"
    return (
        f"{job.method} · {tuned} · {job.sequence_length:,} tokens × {job.micro_batch} at once · "
        f"{job.optimizer} · {job.engine}"
    )


def set_text(each: AcceleratorSet) -> str:
    """Return a set in words: machines, accelerators, and how the model lies on them."""
    many = f"{each.nodes} × {each.count}" if each.nodes > 1 else f"{each.count}"
    how = layout_text(each)
    return f"{many} × {each.accelerator.name}" + (f" ({how})" if how else "")


def layout_text(each: AcceleratorSet) -> str:
    """Return how the job lies on the accelerators of a set, "" on a single one."""
    if each.devices == 1:
        return ""
    job = each.job
    if isinstance(job, TrainingJob):
        return "copies" if job.sharding == "none" else job.sharding
    return str(Layout(each.nodes, each.count, job.tensor, job.pipeline, job.data, job.expert))


def _verdict(asked: AcceleratorSet) -> str:
    size, job = asked.size, asked.job
    if not size.fits:
        short = f", {format_bytes(size.short_bytes)} short" if size.short_bytes else ""
        return f"does not fit: {size.reason}{short}"
    what = ""
    if isinstance(job, ServingJob) and asked.shortened:
        what = f" {job.context:,} tokens a request in {job.precision}"
    elif asked.lowered:
        what = f" in {job.precision}"
    return f"fits{what}, with a margin of {size.margin:.0%}"


def parameters_text(count: int) -> str:
    """Return a number of parameters in billions, or trillions where those need four digits.

    >>> parameters_text(8_030_261_248), parameters_text(1_026_408_232_448)
    ('8.03 B', '1.03 T')
    """
    billions = count / 1e9
    return f"{billions / 1000:.3g} T" if billions >= 999.5 else f"{billions:.3g} B"


def memory_text(size: Size, cache: str = "KV cache") -> str:
    """Return the memory of the fullest device by part, in GiB; ``cache`` is what the pool is called."""
    device = size.device
    parts = (
        ("weights", device.weights_bytes), (cache, device.kv_cache_bytes),
        ("adapters", device.adapter_bytes), ("gradients", device.gradients_bytes),
        ("optimizer", device.optimizer_bytes), ("activations", device.activations_bytes),
        ("logits", device.logits_bytes), ("graphs", device.graphs_bytes),
        ("other", device.non_torch_bytes),
    )  # fmt: skip
    told = " · ".join(f"{name} {value / GIB:.1f}" for name, value in parts if value)
    return f"{device.peak_bytes / GIB:.1f} of {device.visible_bytes / GIB:.1f} GiB a device: {told}"


def _speed_text(asked: AcceleratorSet) -> str:
    speed = asked.speed
    if speed is None:
        return ""
    what = "output tokens/s" if speed.first_token_s is not None else "tokens/s trained"
    if speed.first_token_s is not None and speed.each_token_s is None:
        what = "input tokens/s"
    text = f"about {speed.tokens_s:,.0f} {what} ({speed.low:,.0f} to {speed.high:,.0f})"
    if speed.first_token_s is not None and speed.each_token_s is not None:
        first = format_figure(speed.first_token_s, 2)
        text += f" · first token {first} s, then {speed.each_token_s * 1000:.0f} ms each"
    elif speed.first_token_s is not None:
        text += f" · an answer in {format_figure(speed.first_token_s, 2)} s"
    return text


def _sets(answer: Answer, today: date) -> Iterator[str]:
    fitting = answer.sets.fitting
    if not fitting:
        yield "sets     none fits"
    else:
        yield ""
        yield table(_COLUMNS, [_cells(each) for each in fitting[:SHOWN]])
        if (more := len(fitting) - SHOWN) > 0:
            yield f"and {plural(more, 'more set')} that fit" + ("s" if more == 1 else "")
        yield from _price_note(fitting[:SHOWN], today)
    if refused := answer.sets.refused:
        reasons = [f"{r.offers:,} {r.reason}" for r in refused[:_SHOWN_REASONS]]
        total = sum(r.offers for r in refused)
        rest = len(refused) - _SHOWN_REASONS
        tail = f" · {plural(rest, 'more reason')}" if rest > 0 else ""
        yield f"refused  {plural(total, 'set')}: {' · '.join(reasons)}{tail}"


_COLUMNS = ("SET", "LAYOUT", "FORMAT", "USED", "TOKENS/S", "PRICE", "$/M TOKENS", "WHERE")


def _cells(each: AcceleratorSet) -> list[str]:
    many = f"{each.nodes} × " if each.nodes > 1 else ""
    price, cost = each.price, each.usd_per_million_tokens
    used = each.size.device.peak_bytes / each.size.device.visible_bytes
    return [
        f"{many}{each.count} × {each.accelerator.name}",
        layout_text(each) or "one device",
        _format(each),
        f"{used:.0%}",
        f"{each.speed.tokens_s:,.0f}" if each.speed else "-",
        f"${format_usd(price.usd_hour)}/h" if price else "-",
        format_usd(cost, 3) if cost else "-",
        f"{price.row.provider} {price.row.instance_type}" if price else "-",
    ]


def _format(each: AcceleratorSet) -> str:
    """Return what the weights are kept in, and the context where it was cut.

    It is the base's own format where a run says nothing else.
    """
    if isinstance(each.job, TrainingJob) and each.job.precision == "auto":
        return "nf4" if each.job.tuning == "qlora" else "as published"
    if isinstance(each.job, ServingJob) and each.shortened:
        return f"{each.job.precision}, {each.job.context:,} tokens"
    return each.job.precision


def _price_note(shown: Sequence[AcceleratorSet], today: date) -> Iterator[str]:
    """Yield the oldest day of the prices shown, and how many of them are old or carry none."""
    rows = [each.price.row for each in shown if each.price]
    if not rows:
        return
    undated = sum(row.as_of is None for row in rows)
    old = sum(is_stale(row, today) for row in rows) - undated
    day = as_of(rows)
    if day is None:
        yield f"price of no known day: none of {len(rows)} is dated"
        return
    told = [f"{old} of {len(rows)} older than {STALE_DAYS} days"] if old else []
    told += [f"{undated} of {len(rows)} undated"] if undated else []
    yield f"price as of {day}" + (f" ({', '.join(told)})" if told else "")


def size_json(facts: ModelFacts, answer: Answer) -> str:
    """Return the answer as ``modelyard/size/v1``; ``device`` is the fullest device of the asked set."""
    asked = answer.asked
    size, job = asked.size, asked.job
    body: dict[str, object] = {
        "model": {
            "id": facts.id,
            "architecture": facts.architecture,
            "parameters": facts.parameters or count_parameters(facts),
            "source": facts.source,
        },
        "job": "serving" if isinstance(job, ServingJob) else "training",
        "accelerator": asked.accelerator.name,
        "nodes": asked.nodes,
        "count": asked.count,
        **_degrees(job),
        "precision": job.precision,
        "context_tokens": job.context if isinstance(job, ServingJob) else None,
        "lowered": _lowered(asked),
        "device": asdict(size.device),
        "kv_cache_tokens": size.kv_cache_tokens,
        "longest_request_tokens": size.longest_request_tokens,
        "max_concurrency": size.max_concurrency if isfinite(size.max_concurrency) else None,
        "fits": size.fits,
        "margin": size.margin,
        "reason": size.reason,
        "short_bytes": size.short_bytes,
        "headroom_bytes": size.headroom_bytes,
        "sets": [_set_object(each) for each in answer.sets.fitting],
        "refused": [{"reason": r.reason, "sets": r.offers} for r in answer.sets.refused],
    }
    return to_json("modelyard/size/v1", body)


def _degrees(job: ServingJob | TrainingJob) -> dict[str, object]:
    copies = job.data if isinstance(job, ServingJob) else job.devices // job.tensor // job.pipeline
    return {"tensor": job.tensor, "pipeline": job.pipeline, "data": copies, "expert": job.expert}


def _lowered(each: AcceleratorSet) -> str:
    return "; ".join(text for text in (each.lowered, each.shortened) if text)


def _set_object(each: AcceleratorSet) -> dict[str, object]:
    speed, price, device = each.speed, each.price, each.size.device
    job = each.job
    row = price.row if price else None
    return {
        "accelerator": each.accelerator.name,
        "nodes": each.nodes,
        "count": each.count,
        **_degrees(job),
        "sharding": job.sharding if isinstance(job, TrainingJob) else None,
        "precision": job.precision,
        "context_tokens": job.context if isinstance(job, ServingJob) else None,
        "lowered": _lowered(each),
        "peak_bytes": device.peak_bytes,
        "visible_bytes": device.visible_bytes,
        "kv_cache_tokens": each.size.kv_cache_tokens,
        "tokens_s": speed.tokens_s if speed else None,
        "tokens_s_low": speed.low if speed else None,
        "tokens_s_high": speed.high if speed else None,
        "cautions": list(speed.cautions) if speed else [],
        "price_usd_hour": price.usd_hour if price else None,
        "usd_per_million_tokens": each.usd_per_million_tokens,
        "provider": row.provider if row else None,
        "region": row.region if row else None,
        "instance_type": row.instance_type if row else None,
        "price_as_of": row.as_of.isoformat() if row and row.as_of else None,
    }
