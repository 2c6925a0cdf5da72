"""How many replicas a service should have: up at once, down slowly, and not at all without data."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from typing import Literal

from orchestrator.frozen import frozen
from orchestrator.spec.models import Service

Metric = Literal["queue", "running", "rps", "kv_cache", "ttft"]

STALE_S = 30.0
"""A sample older than this says nothing about now."""
TOLERANCE = 0.1
"""Of the target, by which a load may pass it before that changes anything (as Kubernetes' HPA has it)."""
UP_WINDOW_S = 10.0
"""What arrivals are counted over: one burst of a second is no load."""
SURE_WINDOWS_S = (10, 20, 40)
"""Over which arrivals are compared: a short one sees a rise early, a long one is less often wrong."""
DOUBT = 0.5
"""Standard deviations of what arrives by chance that are taken off before replicas are added."""
STEADY_S = 40
"""Over which the load is averaged before replicas are taken away."""
BACKLOG = 1.5
"""In how many times the start of a replica what waits is to be worked off."""
HELD = 1 / 3
"""Of the time that a replica takes to come, how long one is held that is not needed now."""
HELD_OF_USE = 0.1
"""Of the time for which the number has stood, the same: what was needed for long is soon needed again."""
LEAST_HELD_S, MOST_HELD_S = 10.0, 300.0
START_S = 60.0
"""How long a replica takes to come, where none has been seen to."""


@frozen
class Sample:
    """What was seen of a service at one moment, over all its replicas; None is not known.

    ``queue`` waits at the gateway and in the engines, ``running`` is worked on, ``rps`` arrives a
    second. ``kv_cache`` (0 to 1) and ``ttft_s`` are means over the replicas.
    """

    at_s: float
    queue: float | None = None
    running: float | None = None
    rps: float | None = None
    kv_cache: float | None = None
    ttft_s: float | None = None

    def value(self, metric: Metric) -> float | None:
        """Return what is watched."""
        return {
            "queue": self.queue, "running": self.running, "rps": self.rps, "kv_cache": self.kv_cache,
            "ttft": self.ttft_s,
        }[metric]  # fmt: skip

    @property
    def is_idle(self) -> bool:
        """Whether nobody wants anything; what is not known is no proof of that."""
        return self.queue == 0 and self.running == 0 and not self.rps


@frozen
class Rule:
    """When a service grows and shrinks.

    Args:
        metric: What is watched.
        target: Its value to keep per replica: requests, requests a second, a fraction, seconds.
        least: Replicas at the least; 0 lets the service sleep.
        most: Replicas at the most.
        up_delay_s: Least time between two increases; None is half of what a replica takes to come.
        down_delay_s: Least time from any change to a decrease, and how long the load has to have
            been low; None follows from how long a replica takes to come and how long it was needed.
        slots: Requests that one replica works on at once: ``traffic.concurrency``.
        start_s: How long a replica takes to come.
    """

    metric: Metric
    target: float
    least: int = 1
    most: int = 1
    up_delay_s: float | None = None
    down_delay_s: float | None = None
    slots: int = 16
    start_s: float = START_S

    @property
    def up_pause_s(self) -> float:
        """Least time between two increases."""
        return self.start_s / 2 if self.up_delay_s is None else self.up_delay_s

    @property
    def watched_s(self) -> float:
        """How far back a decision may look."""
        return max(
            STALE_S, 60.0, (MOST_HELD_S if self.down_delay_s is None else self.down_delay_s) + STEADY_S
        )

    def held_s(self, since_up_s: float) -> float:
        """Return how long replicas are held that the load does without, ``since_up_s`` after the last rise.

        >>> Rule("rps", 1.0, start_s=120.0).held_s(0.0), Rule("rps", 1.0, start_s=120.0).held_s(1800.0)
        (40.0, 180.0)
        """
        if self.down_delay_s is not None:
            return self.down_delay_s
        held_s = max(HELD * self.start_s, HELD_OF_USE * min(since_up_s, MOST_HELD_S / HELD_OF_USE))
        return min(max(held_s, LEAST_HELD_S), MOST_HELD_S)


def rule_of(spec: Service) -> Rule | None:
    """Return the rule of a spec, None where its number of replicas is fixed."""
    if spec.scaling is None:
        return None
    scaling, least = spec.scaling, spec.replicas.min or 0
    return Rule(
        scaling.metric,
        float(scaling.target),
        least,
        max(least, spec.replicas.max or 0),
        None if scaling.scale_up_delay is None else float(scaling.scale_up_delay),
        None if scaling.scale_down_delay is None else float(scaling.scale_down_delay),
        slots=spec.traffic.concurrency,
    )


@frozen
class Scale:
    """How many replicas there should be, and why."""

    replicas: int
    reason: str


def decide(
    rule: Rule,
    samples: Sequence[Sample],
    *,
    replicas: int,
    now_s: float,
    up_at_s: float = -math.inf,
    changed_at_s: float = -math.inf,
) -> Scale:
    """Return how many replicas the service should have.

    Args:
        rule: The spec's.
        samples: What was seen, oldest first; to shrink, it has to go back by ``down_delay_s``.
        replicas: How many there are, those that start included.
        now_s: The time, on the samples' clock.
        up_at_s: When replicas were last added.
        changed_at_s: When their number last changed.

    >>> rule = Rule("rps", target=2.0, least=0, most=8)
    >>> decide(rule, [Sample(0.0, queue=0, running=4, rps=9.0)], replicas=1, now_s=1.0)
    Scale(replicas=5, reason='9 rps over 2 a replica')
    >>> decide(rule, [], replicas=3, now_s=1.0)
    Scale(replicas=3, reason='nothing is known')
    """
    if not rule.least <= replicas <= rule.most:
        return Scale(min(max(replicas, rule.least), rule.most), "outside the spec's range")
    seen = _Seen([sample for sample in samples if now_s - rule.watched_s <= sample.at_s <= now_s])
    fresh = [sample for sample in seen.samples if now_s - STALE_S <= sample.at_s]
    if replicas == 0:
        return _wake(rule, fresh)
    wanted, reason = _now(rule, seen, fresh, replicas)
    if wanted is None:
        return Scale(replicas, reason)
    wanted = min(max(wanted, rule.least, 1), rule.most)
    if wanted > replicas:
        if now_s - up_at_s < rule.up_pause_s:
            return Scale(replicas, "replicas were added a short while ago")
        return Scale(wanted, reason)
    held_s = rule.held_s(now_s - up_at_s)
    since_s = now_s - changed_at_s
    if rule.down_delay_s is not None and since_s < held_s:
        return Scale(replicas, "the number changed a short while ago")
    scale = _shrink(rule, seen, replicas, now_s, held_s)
    if rule.down_delay_s is None and 0 < scale.replicas < wanted:
        # a mean that reaches back to before a rise is low; what would be added again at once stays
        return Scale(wanted, scale.reason if wanted < replicas else reason)
    return scale


class _Seen:
    """Samples, oldest first, and what arrived over any time up to now."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples
        self._at_s = [sample.at_s for sample in samples]

    def since(self, at_s: float) -> Sequence[Sample]:
        """Return the samples after ``at_s``."""
        return self.samples[bisect.bisect_right(self._at_s, at_s) :]

    def rps(self, at_s: float, window_s: int) -> float | None:
        """Return the mean of what arrived in the window before ``at_s``, as far as it was seen.

        A sample is a mean over ``UP_WINDOW_S`` already; one in each of them is enough.
        """
        values: list[float] = []
        for back_s in range(0, window_s, int(UP_WINDOW_S)):
            place = bisect.bisect_right(self._at_s, at_s - back_s) - 1
            if place < 0:
                break
            value = self.samples[place].rps
            if value is None:
                return None
            values.append(value)
        return sum(values) / len(values) if values else None


def _wake(rule: Rule, fresh: Sequence[Sample]) -> Scale:
    """From zero at the first request, which waits: with no delay, and with as many as it takes."""
    waiting = fresh[-1].queue if fresh else None
    if not waiting:
        return Scale(0, "nobody asks")
    wanted = math.ceil(waiting / max(1, rule.slots))
    return Scale(min(max(1, wanted), rule.most), f"{waiting:g} wait")


def _now(rule: Rule, seen: _Seen, fresh: Sequence[Sample], replicas: int) -> tuple[int | None, str]:
    """Return the replicas that the load of the last moments takes, None where it is not known."""
    if not fresh:
        return None, "nothing is known"
    load = _sure_rps(seen, fresh[-1].at_s) if rule.metric == "rps" else _mean(rule, fresh)
    if fresh[-1].value(rule.metric) is None or load is None:
        return None, f"{rule.metric} is not known"
    told = f"{load:.3g} {rule.metric} over {rule.target:g} a replica"
    if rule.metric == "rps" and fresh[-1].queue:
        # What waits already has to be worked off beside what arrives.
        load += _backlog_rps(rule, fresh[-1])
        told += f", {fresh[-1].queue:g} wait"
    return _replicas_for(rule, load, fresh[-1].running or 0, replicas), told


def _mean(rule: Rule, fresh: Sequence[Sample]) -> float | None:
    window = [sample.value(rule.metric) for sample in fresh if sample.at_s > fresh[-1].at_s - UP_WINDOW_S]
    values = [value for value in window if value is not None]
    return sum(values) / len(values) if values else None


def _sure_rps(seen: _Seen, at_s: float) -> float | None:
    """Return what surely arrives a second: the most that any window says, less what chance may add.

    Of requests that come by themselves a second more or fewer do by the root of their number.
    """
    found = []
    for window_s in SURE_WINDOWS_S:
        rps = seen.rps(at_s, window_s)
        if rps is None:
            return None
        found.append(max(0.0, rps - DOUBT * math.sqrt(rps / window_s)))
    steady = seen.rps(at_s, 60)
    return None if steady is None else max(*found, steady)


def _backlog_rps(rule: Rule, sample: Sample) -> float:
    return (sample.queue or 0) / max(LEAST_HELD_S, BACKLOG * rule.start_s)


def _replicas_for(rule: Rule, load: float, running: float, replicas: int) -> int:
    """Return how many replicas bring the metric to its target, or near enough."""
    if rule.metric in ("kv_cache", "ttft"):
        ratio = load / rule.target
        return replicas if abs(ratio - 1) <= TOLERANCE else math.ceil(replicas * ratio)
    wanted = math.ceil(load / rule.target - TOLERANCE)
    if rule.metric == "queue":
        # An empty queue says nothing of how busy the replicas are: what runs has to keep its place.
        busy = math.ceil(running / rule.slots)
        wanted = max(busy, replicas + wanted - 1 if load > rule.target * replicas else busy)
    return wanted


def _shrink(rule: Rule, seen: _Seen, replicas: int, now_s: float, held_s: float) -> Scale:
    """Take replicas away where the highest load of the time they are held did without them."""
    held = seen.since(now_s - held_s)
    if not held or seen.samples[0].at_s > now_s - held_s:
        return Scale(replicas, "the load has not been seen for long enough")
    if rule.least == 0 and all(sample.is_idle for sample in held):
        return Scale(0, f"nobody asked for {held_s:.0f} s")
    if any(sample.value(rule.metric) is None for sample in held):
        return Scale(replicas, f"{rule.metric} was not known all the time")
    if rule.metric == "rps":
        # Where a user says how long, nothing before it counts; else the means may begin earlier.
        last_s = held_s if rule.down_delay_s is None else max(0.0, held_s - STEADY_S)
        steps = range(0, int(last_s) + 1, int(UP_WINDOW_S))
        known = [rps for back_s in steps if (rps := seen.rps(now_s - back_s, STEADY_S)) is not None]
        highest = max(known, default=0.0)
        if held[-1].queue is None or held[-1].queue:
            return Scale(replicas, "requests wait")
    else:
        highest = max(sample.value(rule.metric) or 0.0 for sample in held)
    running = max(sample.running or 0 for sample in (held[-1:] if rule.down_delay_s is None else held))
    wanted = _replicas_for(rule, highest, running, replicas)
    # A replica that drains takes its requests nowhere: the others have to have room for new ones.
    wanted = max(wanted, rule.least, 1, math.ceil(running / rule.slots))
    if wanted >= replicas:
        return Scale(replicas, "the load takes as many")
    return Scale(wanted, f"at most {highest:.3g} {rule.metric} for {held_s:.0f} s")
