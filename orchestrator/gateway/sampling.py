"""From what the gateway and the engines tell to one sample of a service; nothing is made up."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.engines.exposition import EngineLoad
from orchestrator.frozen import frozen
from orchestrator.gateway.scaling import Sample


@frozen
class Told:
    """What one replica's engine told last, and what it had told before; None where it did not answer."""

    now: EngineLoad | None
    before: EngineLoad | None = None


def sample_of(
    at_s: float, *, waiting: int, outstanding: int, rps: float | None, engines: Sequence[Told] | None
) -> Sample:
    """Return a service's sample.

    What an engine does not tell is taken from the gateway where that knows it too; where one of
    several engines does not answer, the mean of the others stands for it.

    Args:
        at_s: When it was.
        waiting: Requests that wait at the gateway.
        outstanding: Requests that are with a replica.
        rps: Requests a second that arrived, None where that is not known yet.
        engines: One for each replica; None where they tell nothing.

    >>> busy, mute = Told(EngineLoad(queue=3.0, running=8.0)), Told(None)
    >>> sample_of(0.0, waiting=2, outstanding=30, rps=1.0, engines=[busy, mute]).queue
    8.0
    """
    if not engines:
        return Sample(at_s, float(waiting), float(outstanding), rps)
    loads = [told.now for told in engines if told.now is not None]
    queue = _sum([load.queue for load in loads], len(engines))
    running = _sum([load.running for load in loads], len(engines))
    caches = [load.kv_cache for load in loads if load.kv_cache is not None]
    return Sample(
        at_s,
        None if queue is None else waiting + queue,
        float(outstanding) if running is None else running,
        rps,
        sum(caches) / len(caches) if caches else None,
        _ttft_s(engines, is_idle=not waiting and not outstanding),
    )


def _sum(values: Sequence[float | None], count: int) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) * count / len(known) if known else None


def _ttft_s(engines: Sequence[Told], *, is_idle: bool) -> float | None:
    """Return the mean time to the first tokens since the engines told it before, 0 where nobody asks."""
    sum_s = count = 0.0
    for told in engines:
        if told.now is None or told.before is None:
            continue
        now, before = told.now, told.before
        if None in (now.ttft_sum_s, now.ttft_count, before.ttft_sum_s, before.ttft_count):
            continue
        more = (now.ttft_count or 0) - (before.ttft_count or 0)
        if more > 0:  # fewer than before: it was started anew
            count += more
            sum_s += (now.ttft_sum_s or 0) - (before.ttft_sum_s or 0)
    if count:
        return sum_s / count
    return 0.0 if is_idle else None
