"""Replay loads through scaling rules: how long requests waited, and what the replicas cost.

    python -m tests.benchmarks.autoscaling

Every rule sees the same arrivals (a fixed seed), the same range of replicas and the same delays and
target, and decides every 10 seconds. A replica takes two minutes to come up, works on 16 requests at
once and takes 8 s for each; a request that waits for more than 10 s has missed. The peers' rules are
written from their sources: dstack's ``RPSAutoscaler`` (requests of the last minute over the target, rounded
up; held while the last change is younger than the delay), SkyPilot's ``RequestRateAutoscaler`` (the
same figure, once it has held on for the whole delay; 20 s between two looks). ``own 120`` and ``own 60``
are our rule with a shorter delay for shrinking.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from orchestrator.gateway.scaling import Rule, Sample, decide

START_S = 120
SERVICE_S = 8
SLOTS = 16
PATIENCE_S = 10
USD_HOUR = 2.5
RULE = Rule("rps", target=1.6, least=0, most=12, up_delay_s=60, down_delay_s=300, slots=SLOTS)


@dataclass
class Seen:
    """What a rule may look at: arrivals second by second, samples, and its own last changes."""

    arrivals: list[int] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    replicas: int = 1
    up_at_s: float = -math.inf
    changed_at_s: float = -math.inf


Decide = Callable[[Seen, float], int]


def own(down_delay_s: float) -> Decide:
    """Return what decides as the gateway does."""
    rule = replace(RULE, down_delay_s=down_delay_s)
    return lambda seen, now_s: decide(
        rule, seen.samples[-320:], replicas=seen.replicas, now_s=now_s, up_at_s=seen.up_at_s,
        changed_at_s=seen.changed_at_s,
    ).replicas  # fmt: skip


def _by_rate(seen: Seen) -> int:
    wanted = math.ceil(sum(seen.arrivals[-60:]) / 60 / RULE.target)
    return min(max(wanted, RULE.least), RULE.most)


def dstack(seen: Seen, now_s: float) -> int:
    """Decide as dstack does; from zero at once."""
    wanted = _by_rate(seen)
    since_s = now_s - seen.changed_at_s
    if wanted > seen.replicas and (seen.replicas == 0 or since_s >= RULE.up_delay_s):
        return wanted
    if wanted < seen.replicas and since_s >= RULE.down_delay_s:
        return wanted
    return seen.replicas


def skypilot() -> Decide:
    """Return what decides as SkyPilot does; it counts how often in a row it wanted to."""
    ups = downs = 0

    def look(seen: Seen, now_s: float) -> int:
        nonlocal ups, downs
        if now_s % 20:
            return seen.replicas
        wanted = _by_rate(seen)
        ups = ups + 1 if wanted > seen.replicas else 0
        downs = downs + 1 if wanted < seen.replicas else 0
        if (ups and seen.replicas == 0) or ups * 20 >= RULE.up_delay_s or downs * 20 >= RULE.down_delay_s:
            ups = downs = 0
            return wanted
        return seen.replicas

    return look


def replay(rates: Sequence[float], rule: Decide, *, seed: int = 7) -> tuple[int, int, float, float]:
    """Return the requests, those that missed, the longest wait in seconds, and replica-hours."""
    dice = random.Random(seed)
    seen, waiting = Seen(), deque[int]()
    ready_at: list[float] = [0.0]
    busy_until: list[int] = []
    missed, total, longest, held_s = 0, 0, 0, 0
    for now in range(len(rates)):
        count = _poisson(rates[now], dice)
        total += count
        seen.arrivals.append(count)
        waiting.extend([now] * count)
        busy_until = [end for end in busy_until if end > now]
        room = sum(at <= now for at in ready_at) * SLOTS - len(busy_until)
        while waiting and room > 0:
            wait = now - waiting.popleft()
            missed, longest, room = missed + (wait > PATIENCE_S), max(longest, wait), room - 1
            busy_until.append(now + SERVICE_S)
        held_s += len(ready_at)
        seen.samples.append(
            Sample(now, float(len(waiting)), float(len(busy_until)), sum(seen.arrivals[-10:]) / 10)
        )
        if now % 10 == 0:
            wanted = rule(seen, float(now))
            if wanted != seen.replicas:
                if wanted > seen.replicas:
                    ready_at += [now + START_S] * (wanted - seen.replicas)
                    seen.up_at_s = now
                # the newest go first: one that has not come up yet is no loss
                ready_at = sorted(ready_at)[:wanted]
                seen.replicas, seen.changed_at_s = wanted, now
    return total, missed + len(waiting), float(longest), held_s / 3600


def _poisson(mean: float, dice: random.Random) -> int:
    limit, count, product = math.exp(-mean), 0, dice.random()
    while product > limit:
        count, product = count + 1, product * dice.random()
    return count


def daily() -> list[float]:
    """Return a day in two hours: from nearly nothing to a peak and back, twice."""
    return [0.1 + 7 * max(0.0, math.sin(2 * math.pi * s / 3600)) for s in range(7200)]


def bursty() -> list[float]:
    """Return a quiet load with bursts of some minutes, now and then of seconds."""
    dice = random.Random(3)
    rates = [0.6] * 7200
    for _ in range(9):
        start, lasts, height = (
            dice.randrange(6800),
            dice.choice((15, 120, 300)),
            dice.choice((4.0, 8.0, 12.0)),
        )
        for second in range(start, min(7200, start + lasts)):
            rates[second] += height
    return rates


def steps() -> list[float]:
    """Return a load that doubles every ten minutes, then ends."""
    return [0.5 * 2 ** (s // 600) if s < 3000 else 0.0 for s in range(5400)]


def asleep() -> list[float]:
    """Return a few short uses with nothing in between."""
    return [2.0 if s % 2400 < 300 else 0.0 for s in range(7200)]


def main() -> None:
    """Print every rule on every load."""
    print(f"{'load':<8}{'rule':<10}{'requests':>9}{'missed':>8}{'longest s':>10}{'replica h':>10}{'$':>8}")
    for load in (daily, bursty, steps, asleep):
        rates = load()
        rules = (("own", own(RULE.down_delay_s)), ("own 120", own(120.0)), ("own 60", own(60.0)))
        for name, rule in (*rules, ("dstack", dstack), ("skypilot", skypilot())):
            total, missed, longest, hours = replay(rates, rule)
            print(
                f"{load.__name__:<8}{name:<10}{total:>9}{missed / total:>8.1%}{longest:>10.0f}"
                f"{hours:>10.1f}{hours * USD_HOUR:>8.2f}"
            )


if __name__ == "__main__":
    main()
