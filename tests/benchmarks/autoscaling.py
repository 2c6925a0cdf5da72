"""Replay loads through scaling rules: how long requests waited, and what the replicas cost.

    python -m tests.benchmarks.autoscaling

Every rule sees the same arrivals (fixed seeds), the same range of replicas and the same target, and
decides every 10 seconds. A replica takes two minutes to come up, works on 16 requests at once and takes
8 s for each; a request that waits for more than 10 s has missed. The peers' rules are written from their
sources: dstack's ``RPSAutoscaler`` (requests of the last minute over the target, rounded up; held while the
last change is younger than the delay), SkyPilot's ``RequestRateAutoscaler`` (the same figure, once it has
held on for the whole delay; 20 s between two looks). Both are given a queue while no replica is there, which
neither has, and stand twice: with 60 s between increases and 300 s before a decrease, and ``shipped``, with
the delays of a spec that names none (dstack 300 and 600 s, its ``ScalingSpec``; SkyPilot 300 and 1,200 s, its
``sky/serve/constants.py``). ``own`` has no delays in its spec either: they follow from how long a replica
takes to come. ``own 300`` has 60 and 300 s. ``foresees`` is no rule but what it would cost to know all that
comes: each replica is there for what needs it, and held over a gap that is shorter than its start.

No rule can be level with both peers on every load (``EITHER_WAY``): a service that is used steadily falls
silent. dstack's rule lets it sleep after a minute, since nothing has changed for long; SkyPilot's holds it
for its whole delay. Who comes back just before that is served at once by SkyPilot's, so that a rule which is
no later has to hold as long, or to start a replica for nobody; where nobody comes back it then cost more than
dstack's. Until then both look the same, and there was nothing to save: one replica was needed all the time.

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
RATE_S = 60
"""Over which the peers count requests."""
SAME_DELAYS_S = (60, 300)
DSTACK_S, SKYPILOT_S = (300, 600), (300, 1200)
"""What each has where a spec names no delays: up, then down."""
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
    wanted = math.ceil(sum(seen.arrivals[-RATE_S:]) / RATE_S / RULE.target)
    return min(max(wanted, RULE.least), RULE.most)


def dstack(delays_s: tuple[int, int] = SAME_DELAYS_S) -> Decide:
    """Return what decides as dstack does; from zero at once."""
    up_s, down_s = delays_s

    def look(seen: Seen, now_s: float) -> int:
        wanted = _by_rate(seen)
        since_s = now_s - seen.changed_at_s
        if wanted > seen.replicas and (seen.replicas == 0 or since_s >= up_s):
            return wanted
        return wanted if wanted < seen.replicas and since_s >= down_s else seen.replicas

    return look


def skypilot(delays_s: tuple[int, int] = SAME_DELAYS_S) -> Decide:
    """Return what decides as SkyPilot does; it counts how often in a row it wanted to."""
    up_s, down_s = delays_s
    ups = downs = 0

    def look(seen: Seen, now_s: float) -> int:
        nonlocal ups, downs
        if now_s % 20:
            return seen.replicas
        wanted = _by_rate(seen)
        ups = ups + 1 if wanted > seen.replicas else 0
        downs = downs + 1 if wanted < seen.replicas else 0
        if (ups and seen.replicas == 0) or ups * 20 >= up_s or downs * 20 >= down_s:
            ups = downs = 0
            return wanted
        return seen.replicas

    return look


def foresees(rates: Sequence[float], seed: int) -> Decide:
    """Return what has the replicas that what comes will need once they are up, held over short gaps."""
    came = arrivals(rates, seed)
    sums = [0]
    for count in came:
        sums.append(sums[-1] + count)
    per_replica = PATIENCE_S * SLOTS / SERVICE_S
    needs = [
        math.ceil((sums[min(s + PATIENCE_S, len(came))] - sums[s]) / per_replica) for s in range(len(came))
    ]

    def look(seen: Seen, now_s: float) -> int:
        now = int(now_s)
        ahead = max(needs[now : now + START_S + 2 * PATIENCE_S], default=0)
        busy = math.ceil(sum(seen.arrivals[-SERVICE_S:]) / SLOTS)
        return min(RULE.most, max(ahead, busy if seen.samples[-1].queue == 0 else seen.replicas))

    return look


def arrivals(rates: Sequence[float], seed: int) -> list[int]:
    """Return how many requests come in each second."""
    dice = random.Random(seed)
    return [_poisson(rate, dice) for rate in rates]


def replay(rates: Sequence[float], rule: Decide, *, seed: int = 7) -> tuple[int, int, float, float]:
    """Return the requests, those that missed, the longest wait in seconds, and replica-hours."""
    seen, waiting = Seen(), deque[list[int]]()
    ready_at: list[float] = [0.0]
    ending = [0] * (len(rates) + SERVICE_S)
    queued = busy = missed = total = longest = held_s = 0
    for now, count in enumerate(arrivals(rates, seed)):
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
        if now % 10 == 0 and now >= RATE_S:  # before, a mean over it would find a new service idle
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


def new_loads(seeds: Sequence[int] = (900, 901, 902)) -> Mapping[str, Load]:
    """Return loads of every family, of seeds that no constant was chosen on and none was compared by."""
    dice, found = random.Random(900), dict[str, Load]()
    for seed in seeds:
        family: Mapping[str, Sequence[float]] = {
            "daily": daily(),
            "bursty": bursty(seed),
            "often": bursty(seed, *_OFTEN),
            "long": bursty(seed, 4, 0.3, (600, 900), (3.0, 6.0)),
            "walk": walk(seed),
            "saw": saw(dice.randrange(900, 2401, 300)),
            "asleep": asleep(dice.randrange(1200, 3600, 100), dice.randrange(150, 700, 50), 3.0),
            "steps": steps(),
            "office": office(),
            "flat": [dice.choice([1.0, 2.0, 5.0])] * 7200,
            "half": half_day(),
        }
        found |= {f"{kind} {seed}": (rates, seed) for kind, rates in family.items()}
    return found


SILENCE_S = 200
EITHER_WAY: Mapping[str, Load] = {
    "comes back": ([0.9] * 1800 + [0.0] * SILENCE_S + [0.9] * 600, 3),
    "does not": ([0.9] * 1800 + [0.0] * (SILENCE_S + 600), 3),
}
"""A load that falls silent, and what may come of it: until somebody comes back they are one."""


def compare(name: str, loads: Mapping[str, Load]) -> None:
    """Print every rule on some loads, their sums, and on how many ours is no worse than its peers."""
    sums: dict[str, tuple[int, int, float]] = {}
    verdicts = {kind: [0, 0, 0] for kind in ("", " shipped")}
    for load, (rates, seed) in loads.items():
        found = {}
        delayed = replace(RULE, up_delay_s=SAME_DELAYS_S[0], down_delay_s=SAME_DELAYS_S[1])
        rules = {
            "own": own(), "own 300": own(delayed), "dstack": dstack(), "skypilot": skypilot(),
            "dstack shipped": dstack(DSTACK_S), "skypilot shipped": skypilot(SKYPILOT_S),
            "foresees": foresees(rates, seed),
        }  # fmt: skip
        for rule, decides in rules.items():
            total, missed, _, hours = replay(rates, decides, seed=seed)
            found[rule] = missed / total, hours
            before = sums.get(rule, (0, 0, 0.0))
            sums[rule] = before[0] + total, before[1] + missed, before[2] + hours
        for kind, verdict in verdicts.items():
            level = [is_level(found["own"], found[peer + kind]) for peer in ("dstack", "skypilot")]
            worse = [is_level(found[peer + kind], found["own"]) for peer in ("dstack", "skypilot")]
            verdict[0] += all(level)
            verdict[1] += sum(level)
            verdict[2] += sum(w and not m for w, m in zip(worse, level, strict=True))
        print(f"{load:<12}{_row(found.values())}", flush=True)
    print(f"{name:<12}{_row((missed / total, hours) for total, missed, hours in sums.values())}")
    for kind, (both, pairs, worse) in verdicts.items():
        print(
            f"  beside the peers{kind}: level or better in both with both on {both} of {len(loads)}, "
            f"with one on {pairs} of {2 * len(loads)} pairs; worse in one and better in none: {worse}"
        )


def is_level(ours: tuple[float, float], theirs: tuple[float, float]) -> bool:
    """Return whether no more was late and no more was paid."""
    return ours[0] <= theirs[0] and ours[1] <= theirs[1]


def _row(found: Iterable[tuple[float, float]]) -> str:
    return "".join(f"{missed:>8.1%}{hours:>6.2f} h" for missed, hours in found)


def main() -> None:
    """Print every rule on every load."""
    names = ("own", "own 300", "dstack", "skypilot", "d. shipped", "s. shipped", "foresees")
    print(f"{'load':<12}" + "".join(f"{name:>16}" for name in names))
    for name, loads in (("shown", SHOWN), ("chosen on", CHOSEN_ON), ("unseen", UNSEEN), ("new", new_loads())):
        compare(name, loads)
    compare("either way", EITHER_WAY)


if __name__ == "__main__":
    main()
