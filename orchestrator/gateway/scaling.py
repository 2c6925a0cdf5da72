"""How many replicas a service should have: up at once, down slowly, and not at all without data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from orchestrator.spec.models import Service

Metric = Literal["queue", "running", "rps", "kv_cache", "ttft"]

STALE_S = 30.0
"""A sample older than this says nothing about now."""
TOLERANCE = 0.1
"""Of the target, within which a measured intensity changes nothing (as Kubernetes' HPA has it)."""
BACKLOG_S = 60.0
"""In which requests that wait are to be worked off."""
UP_WINDOW_S = 10.0
"""Over which the load is averaged before replicas are added: one burst of a second is no load."""


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class Rule:
    """When a service grows and shrinks.

    Args:
        metric: What is watched.
        target: Its value to keep per replica: requests, requests a second, a fraction, seconds.
        least: Replicas at the least; 0 lets the service sleep.
        most: Replicas at the most.
        up_delay_s: Least time between two increases.
        down_delay_s: Least time from any change to a decrease, and how long the load has to have
            been low.
        slots: Requests that one replica works on at once: ``traffic.concurrency``.
    """

    metric: Metric
    target: float
    least: int = 1
    most: int = 1
    up_delay_s: float = 300.0
    down_delay_s: float = 600.0
    slots: int = 16


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
        float(scaling.scale_up_delay),
        float(scaling.scale_down_delay),
        slots=spec.traffic.concurrency,
    )


@dataclass(frozen=True, slots=True)
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
    fresh = [sample for sample in samples if now_s - STALE_S <= sample.at_s <= now_s]
    if replicas == 0:
        return _wake(rule, fresh)
    wanted, reason = _now(rule, fresh, replicas)
    if wanted is None:
        return Scale(replicas, reason)
    wanted = min(max(wanted, rule.least, 1), rule.most)
    if wanted > replicas:
        if now_s - up_at_s < rule.up_delay_s:
            return Scale(replicas, "replicas were added a short while ago")
        return Scale(wanted, reason)
    return _shrink(rule, samples, replicas, now_s, changed_at_s)


def _wake(rule: Rule, fresh: Sequence[Sample]) -> Scale:
    """From zero at the first request, which waits: with no delay, and with as many as it takes."""
    waiting = fresh[-1].queue if fresh else None
    if not waiting:
        return Scale(0, "nobody asks")
    wanted = math.ceil(waiting / max(1, rule.slots))
    return Scale(min(max(1, wanted), rule.most), f"{waiting:g} wait")


def _now(rule: Rule, fresh: Sequence[Sample], replicas: int) -> tuple[int | None, str]:
    """Return the replicas that the load of the last moments takes, None where it is not known."""
    if not fresh:
        return None, "nothing is known"
    last_s = fresh[-1].at_s
    window = [sample.value(rule.metric) for sample in fresh if sample.at_s > last_s - UP_WINDOW_S]
    values = [value for value in window if value is not None]
    if fresh[-1].value(rule.metric) is None or not values:
        return None, f"{rule.metric} is not known"
    load = sum(values) / len(values)
    told = f"{load:g} {rule.metric} over {rule.target:g} a replica"
    if rule.metric == "rps" and fresh[-1].queue:
        # What waits already has to be worked off beside what arrives.
        load += fresh[-1].queue / BACKLOG_S
        told += f", {fresh[-1].queue:g} wait"
    return _replicas_for(rule, load, fresh[-1].running or 0, replicas), told


def _replicas_for(rule: Rule, load: float, running: float, replicas: int) -> int:
    """Return how many replicas bring the metric to its target."""
    if rule.metric in ("kv_cache", "ttft"):
        ratio = load / rule.target
        return replicas if abs(ratio - 1) <= TOLERANCE else math.ceil(replicas * ratio)
    wanted = math.ceil(load / rule.target - 1e-9)
    if rule.metric == "queue":
        # An empty queue says nothing of how busy the replicas are: what runs has to keep its place.
        busy = math.ceil(running / rule.slots)
        wanted = max(busy, replicas + wanted - 1 if load > rule.target * replicas else busy)
    return wanted


def _shrink(rule: Rule, samples: Sequence[Sample], replicas: int, now_s: float, changed_at_s: float) -> Scale:
    """Take replicas away where the highest load of the whole delay did without them."""
    if now_s - changed_at_s < rule.down_delay_s:
        return Scale(replicas, "the number changed a short while ago")
    seen = [sample for sample in samples if sample.at_s > now_s - rule.down_delay_s]
    if not seen or min(sample.at_s for sample in samples) > now_s - rule.down_delay_s:
        return Scale(replicas, "the load has not been seen for long enough")
    if rule.least == 0 and all(sample.is_idle for sample in seen):
        return Scale(0, f"nobody asked for {rule.down_delay_s:g} s")
    values = [sample.value(rule.metric) for sample in seen]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return Scale(replicas, f"{rule.metric} was not known all the time")
    running = max(sample.running or 0 for sample in seen)
    wanted = _replicas_for(rule, max(known), running, replicas)
    # A replica that drains takes its requests nowhere: the others have to have room for new ones.
    wanted = max(wanted, rule.least, 1, math.ceil(running / rule.slots))
    if wanted >= replicas:
        return Scale(replicas, "the load takes as many")
    return Scale(wanted, f"at most {max(known):g} {rule.metric} for {rule.down_delay_s:g} s")
