"""Read an engine's load from what it tells in Prometheus' text format; other series are passed over."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence

from orchestrator.engines.job import Metrics
from orchestrator.frozen import frozen

_LABELS = r'(?:\{(?:[^"\n}]|"(?:[^"\\\n]|\\.)*")*\})?'


@frozen
class EngineLoad:
    """What one replica's engine tells; None is not told.

    ``queue`` and ``running`` are requests, ``kv_cache`` is a fraction from 0 to 1. ``ttft_sum_s``
    and ``ttft_count`` are those of its histogram since it started, ``steps`` is what grows while
    it generates.
    """

    queue: float | None = None
    running: float | None = None
    kv_cache: float | None = None
    ttft_sum_s: float | None = None
    ttft_count: float | None = None
    steps: float | None = None


def load_of(text: str, metrics: Metrics) -> EngineLoad:
    """Return what ``text`` tells under the names of ``metrics``.

    An engine of several ranks tells each series once for each: requests are summed, fractions
    averaged. Of several spellings the first that is there counts.

    >>> told = 'vllm:num_requests_waiting{engine="0"} 3.0\\nvllm:num_requests_waiting{engine="1"} 1.0\\n'
    >>> load_of(told, Metrics(queue=("vllm:num_requests_waiting",))).queue
    4.0
    """
    sums = tuple(f"{name}_sum" for name in metrics.ttft)
    counts = tuple(f"{name}_count" for name in metrics.ttft)
    wanted = (metrics.queue, metrics.running, metrics.kv_cache, sums, counts, metrics.steps)
    found = _values(text, tuple(sorted({name for names in wanted for name in names})))
    queue, running, kv_cache, ttft_sum_s, ttft_count, steps = (_first(found, names) for names in wanted)
    return EngineLoad(
        _sum(queue),
        _sum(running),
        sum(kv_cache) / len(kv_cache) if kv_cache else None,
        _sum(ttft_sum_s),
        _sum(ttft_count),
        _sum(steps),
    )


def _values(text: str, names: tuple[str, ...]) -> Mapping[str, Sequence[float]]:
    found: dict[str, list[float]] = {}
    for name, value in _pattern(names).findall(text) if names else ():
        try:
            found.setdefault(name, []).append(float(value))
        except ValueError:
            continue  # no number: as if it were not told
    return found


@functools.lru_cache(maxsize=64)
def _pattern(names: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(rf"^({'|'.join(map(re.escape, names))}){_LABELS}[ \t]+(\S+)", re.MULTILINE)


def _first(found: Mapping[str, Sequence[float]], names: Sequence[str]) -> Sequence[float]:
    return next((found[name] for name in names if name in found), ())


def _sum(values: Sequence[float]) -> float | None:
    # Not a number is what a gauge without a value is written as.
    return sum(values) if values and all(value == value for value in values) else None
