"""The decision how many replicas: bounded, monotonic, slow to shrink, and mute without data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orchestrator.gateway.scaling import Metric, Rule, Sample, decide
from tests.benchmarks.autoscaling import EITHER_WAY, Decide, Seen, dstack, is_level, replay, skypilot

METRICS = st.sampled_from(["queue", "running", "rps", "kv_cache", "ttft"])
LOADS = st.sampled_from([0.0, 0.5, 1.0, 3.0, 10.0, 40.0])
RULES = st.builds(
    Rule,
    metric=METRICS,
    target=st.sampled_from([0.5, 1.0, 4.0]),
    least=st.integers(0, 2),
    most=st.integers(2, 12),
    up_delay_s=st.sampled_from([None, 0.0, 30.0]),
    down_delay_s=st.sampled_from([None, 60.0, 120.0]),
    slots=st.sampled_from([4, 16]),
)


def seen(*loads: float | None, every_s: float = 10.0, now_s: float = 1000.0) -> list[Sample]:
    """Return samples in which every metric has these values, the last one at ``now_s``."""
    first = now_s - every_s * (len(loads) - 1)
    return [Sample(first + at * every_s, load, load, load, load, load) for at, load in enumerate(loads)]


SEEN = st.lists(st.one_of(LOADS, st.none()), max_size=20).map(lambda loads: seen(*loads))


@settings(max_examples=300, deadline=None)
@given(RULES, SEEN, st.integers(0, 14), st.sampled_from([0.0, 990.0]))
def test_the_spec_bounds_what_is_decided(
    rule: Rule, samples: list[Sample], replicas: int, at_s: float
) -> None:
    scale = decide(rule, samples, replicas=replicas, now_s=1000.0, up_at_s=at_s, changed_at_s=at_s)
    assert rule.least <= scale.replicas <= rule.most
    assert scale.reason


@settings(max_examples=200, deadline=None)
@given(RULES, SEEN, st.integers(1, 12))
def test_nothing_is_scaled_without_data(rule: Rule, samples: list[Sample], replicas: int) -> None:
    replicas = min(max(replicas, rule.least), rule.most)
    late = decide(rule, samples, replicas=replicas, now_s=1000.0 + 31.0)
    blind = decide(rule, [*samples, Sample(1000.0)], replicas=replicas, now_s=1000.0)
    assert (late.replicas, blind.replicas) == (replicas, replicas)


@settings(max_examples=300, deadline=None)
@given(RULES, st.lists(LOADS, min_size=15, max_size=20), st.integers(1, 12), LOADS)
def test_more_load_never_means_fewer_replicas(
    rule: Rule, loads: list[float], replicas: int, more: float
) -> None:
    replicas = min(max(replicas, rule.least), rule.most)
    light = decide(rule, seen(*loads), replicas=replicas, now_s=1000.0).replicas
    heavy = decide(rule, seen(*(load + more for load in loads)), replicas=replicas, now_s=1000.0).replicas
    assert heavy >= light


@settings(max_examples=300, deadline=None)
@given(RULES, SEEN, st.integers(0, 12))
def test_right_after_a_change_nothing_shrinks_and_nothing_grows_again(
    rule: Rule, samples: list[Sample], replicas: int
) -> None:
    rule = replace(rule, up_delay_s=30.0)
    first = decide(rule, samples, replicas=replicas, now_s=1000.0)
    if first.replicas == replicas:
        return
    up_at_s = 1000.0 if first.replicas > replicas else 0.0
    second = decide(
        rule, samples, replicas=first.replicas, now_s=1001.0, up_at_s=up_at_s, changed_at_s=1000.0
    )
    if first.replicas > replicas:
        assert second.replicas == first.replicas
    else:
        assert second.replicas >= first.replicas


@settings(max_examples=200, deadline=None)
@given(RULES, st.lists(LOADS, min_size=15, max_size=20), st.integers(1, 12))
@example(Rule("rps", 100.0, 0, 8, slots=1, down_delay_s=100.0), [4.0] * 20, 8)
def test_what_runs_keeps_its_place(rule: Rule, loads: list[float], replicas: int) -> None:
    replicas = min(max(replicas, rule.least), rule.most)
    samples = [replace(sample, queue=0.0) for sample in seen(*loads)]
    scale = decide(rule, samples, replicas=replicas, now_s=1000.0)
    since_s = 0.0 if rule.down_delay_s is None else rule.down_delay_s
    in_delay = [s.running or 0 for s in seen(*loads) if s.at_s >= 1000.0 or s.at_s > 1000.0 - since_s]
    if scale.replicas < replicas:
        assert scale.replicas * rule.slots >= max(in_delay)


def test_replicas_are_added_at_once_and_all_of_them() -> None:
    calm = [replace(sample, queue=0.0) for sample in seen(*[1.0] * 60, 12.0)]
    assert decide(Rule("rps", 2.0, 1, 8), calm, replicas=1, now_s=1000.0).replicas == 6


def test_what_waits_is_worked_off_beside_what_arrives() -> None:
    waiting = [replace(sample, queue=240.0) for sample in seen(*[2.0] * 60)]
    assert decide(Rule("rps", 2.0, 1, 8), waiting, replicas=1, now_s=1000.0).replicas == 3


def test_one_low_moment_takes_nothing_away() -> None:
    rule = Rule("rps", 1.0, 1, 8, down_delay_s=100.0)
    assert decide(rule, seen(*[5.0] * 9, 0.0, 0.0), replicas=5, now_s=1000.0).replicas == 5
    assert decide(rule, seen(5.0, *[0.0] * 10), replicas=5, now_s=1000.0).replicas == 1


@pytest.mark.parametrize(("waiting", "replicas"), [(0.0, 0), (1.0, 1), (16.0, 1), (17.0, 2), (1000.0, 4)])
def test_from_zero_the_first_request_wakes_it_whatever_the_delays(waiting: float, replicas: int) -> None:
    rule = Rule("rps", 2.0, 0, 4)
    sample = Sample(1000.0, queue=waiting)
    scale = decide(rule, [sample], replicas=0, now_s=1000.0, up_at_s=999.0, changed_at_s=999.0)
    assert scale.replicas == replicas


@pytest.mark.parametrize("metric", ["queue", "running", "rps", "kv_cache", "ttft"])
def test_to_zero_only_when_nobody_wants_anything(metric: Metric) -> None:
    rule = Rule(metric, 2.0, 0, 4, down_delay_s=100.0)
    assert decide(rule, seen(*[0.0] * 12), replicas=2, now_s=1000.0).replicas == 0
    running = [replace(sample, running=1.0) for sample in seen(*[0.0] * 12)]
    assert decide(rule, running, replicas=2, now_s=1000.0).replicas >= 1
    unknown = [replace(sample, running=None) for sample in seen(*[0.0] * 12)]
    assert decide(rule, unknown, replicas=2, now_s=1000.0).replicas >= 1


def test_an_empty_queue_takes_no_busy_replica_away() -> None:
    rule = Rule("queue", 4.0, 1, 8, down_delay_s=100.0, slots=16)
    busy = [replace(sample, queue=0.0, running=60.0) for sample in seen(*[0.0] * 12)]
    assert decide(rule, busy, replicas=4, now_s=1000.0).replicas == 4


@pytest.mark.parametrize(("since_s", "replicas"), [(30.0, 4), (100.0, 1)])
def test_without_a_delay_a_replica_is_held_for_a_third_of_what_one_takes_to_come(
    since_s: float, replicas: int
) -> None:
    rule = Rule("rps", 2.0, 1, 8, start_s=120.0)
    samples = [Sample(float(at), 0.0, 2.0, 8.0 if at < 1000 - since_s else 0.5) for at in range(700, 1001)]
    assert decide(rule, samples, replicas=4, now_s=1000.0, up_at_s=900.0).replicas == replicas


def test_what_was_needed_for_long_is_held_for_longer() -> None:
    rule = Rule("rps", 2.0, 1, 8, start_s=60.0)
    samples = [Sample(float(at), 0.0, 2.0, 8.0 if at < 900 else 0.5) for at in range(600, 1001)]
    assert decide(rule, samples, replicas=4, now_s=1000.0, up_at_s=800.0).replicas == 1
    assert decide(rule, samples, replicas=4, now_s=1000.0, up_at_s=-2000.0).replicas == 4


def test_a_quick_start_asks_for_little_patience_and_a_slow_one_for_more() -> None:
    calm = [Sample(float(at), 0.0, 0.0, 8.0 if at < 970 else 0.0) for at in range(600, 1001)]
    zero = [
        decide(Rule("rps", 2.0, 0, 8, start_s=s), calm, replicas=4, now_s=1000.0, up_at_s=990.0).replicas
        for s in (30.0, 300.0)
    ]
    assert zero == [0, 4]


def test_what_a_rise_has_added_is_not_taken_away_by_the_calm_before_it() -> None:
    rule = Rule("rps", 20.0, 0, 2, start_s=2.0)
    rising = [Sample(float(at), 0.0, 1.0, max(0.0, (at - 994) * 4.6)) for at in range(960, 1001)]
    added = decide(rule, rising, replicas=1, now_s=1000.0)
    again = decide(rule, rising, replicas=added.replicas, now_s=1000.0, up_at_s=999.0, changed_at_s=999.0)
    assert (added.replicas, again.replicas) == (2, 2)


@settings(max_examples=300, deadline=None)
@given(RULES, st.lists(LOADS, min_size=15, max_size=20), st.integers(1, 12))
def test_what_was_taken_away_is_not_added_again_at_once(
    rule: Rule, loads: list[float], replicas: int
) -> None:
    rule = replace(rule, metric="rps", up_delay_s=0.0, down_delay_s=None)
    replicas = min(max(replicas, rule.least), rule.most)
    samples = [replace(sample, queue=0.0, running=0.0) for sample in seen(*loads)]
    fewer = decide(rule, samples, replicas=replicas, now_s=1000.0, up_at_s=980.0).replicas
    if fewer < replicas:
        assert decide(rule, samples, replicas=fewer, now_s=1000.0, up_at_s=980.0).replicas == fewer


def test_what_chance_may_add_adds_no_replica() -> None:
    noisy = [Sample(float(at), 0.0, 2.0, 1.9 if at % 40 else 2.4) for at in range(900, 1001)]
    assert decide(Rule("rps", 2.0, 1, 8), noisy, replicas=1, now_s=1000.0).replicas == 1


def test_nothing_is_taken_away_while_requests_wait() -> None:
    waiting = [Sample(float(at), 3.0, 2.0, 0.5) for at in range(700, 1001)]
    assert decide(Rule("rps", 2.0, 1, 8), waiting, replicas=4, now_s=1000.0).replicas == 4


def test_near_the_target_nothing_moves() -> None:
    rule = Rule("kv_cache", 0.8, 1, 8, down_delay_s=100.0)
    assert decide(rule, seen(*[0.86] * 12), replicas=4, now_s=1000.0).replicas == 4
    assert decide(rule, seen(*[0.96] * 12), replicas=4, now_s=1000.0).replicas == 5


# Beside peers ------------------------------------------------------------------------------------


def holding(lasts_s: int, again_s: int | None = None) -> Decide:
    """Return what lets a replica go ``lasts_s`` after a request, and starts one unasked at ``again_s``."""

    def look(seen: Seen, now_s: float) -> int:
        silent_s = next((s for s, count in enumerate(reversed(seen.arrivals)) if count), 0)
        return int(silent_s <= lasts_s or (again_s is not None and silent_s >= again_s))

    return look


def beside(decides: Mapping[str, Decide]) -> bool:
    """Return whether what decides is level with SkyPilot where the load comes back, else with dstack."""
    found = []
    for (load, (rates, seed)), peer in zip(EITHER_WAY.items(), (skypilot(), dstack()), strict=True):
        results = [replay(rates, each, seed=seed) for each in (decides[load], peer)]
        ours, theirs = ((missed / total, hours) for total, missed, _, hours in results)
        found.append(is_level(ours, theirs))
    return all(found)


@pytest.mark.parametrize("lasts_s", range(0, 320, 20))
def test_no_rule_is_level_with_both_peers_whatever_comes(lasts_s: int) -> None:
    starts = (None, *range(lasts_s + 20, 300, 60))
    for again_s in starts:
        assert not beside(dict.fromkeys(EITHER_WAY, holding(lasts_s, again_s)))


def test_what_is_told_what_comes_is_level_with_both() -> None:
    assert beside(dict(zip(EITHER_WAY, (holding(320), holding(40)), strict=True)))
