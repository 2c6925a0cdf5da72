"""Machines that are rented for a launch: tried in the plan's order, and given back before the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.backend import Instance, Launch, Phase, Rent, Resources
from orchestrator.errors import NoCapacity
from orchestrator.reconcile import Job, JobState, Retry, Run, Template, Wanted
from orchestrator.reconcile.decide import reconcile, start_failed
from orchestrator.reconcile.retry import Again, GiveUp, next_attempt
from orchestrator.reconcile.steps import Action, Observed, Record, Release, Start, Turn

T0 = datetime(2026, 11, 1, tzinfo=UTC)
ZONES = tuple(Rent("g6.xlarge", "us-east-1", f"us-east-1{zone}", price_usd_hour=0.8) for zone in "abc")
WEST = Rent("g6.xlarge", "us-west-2", "us-west-2a", price_usd_hour=0.9)
PLACES = (*(("aws", zone) for zone in ZONES), ("aws", WEST), ("docker", None))
ALWAYS = Retry(frozenset({"no-capacity", "interruption", "error"}))


def failed(at: int, reason: str, *, after_s: float = 0.0) -> Job:
    backend, rent = PLACES[at]
    ended = T0 + timedelta(seconds=after_s)
    return Job(
        "1", f"sft-0-0-{at}", 0, 0, at, "a", backend, JobState.FAILED, T0,
        reason=reason, finished_at=ended, rent=rent,
    )  # fmt: skip


def after(*failures: Job, policy: Retry = ALWAYS) -> Again | GiveUp:
    return next_attempt(failures, policy=policy, places=PLACES, limit=None)


def test_sold_out_zones_send_a_launch_down_the_plans_order() -> None:
    assert after(failed(0, "no-capacity")) == Again(T0, 1)
    assert after(*(failed(at, "no-capacity") for at in range(3))) == Again(T0, 3)
    assert after(*(failed(at, "no-capacity") for at in range(4)), policy=Retry()) == Again(T0, 4)


def test_a_limit_of_the_account_is_not_met_again_in_the_same_region() -> None:
    assert after(failed(0, "quota")) == Again(T0, 3)
    assert after(failed(0, "no-capacity"), failed(1, "quota")) == Again(T0, 3)


def test_a_round_of_nothing_but_limits_is_the_end() -> None:
    rounds = (failed(0, "quota"), failed(3, "quota"), failed(4, "quota"))
    assert after(*rounds) == GiveUp("")


def test_a_whole_round_without_capacity_pauses_and_begins_anew() -> None:
    verdict = after(*(failed(at, "no-capacity") for at in range(5)))
    assert isinstance(verdict, Again)
    assert verdict.backend == 0
    assert 1.5 <= (verdict.at - T0).total_seconds() <= 2.5

    twice = after(*(failed(at, "no-capacity") for at in (*range(5), *range(5))))
    assert isinstance(twice, Again)
    assert 3.0 <= (twice.at - T0).total_seconds() <= 5.0


def test_an_interruption_goes_on_with_the_kind_after_the_one_that_was_taken_away() -> None:
    for reason in ("preempted", "lost"):
        verdict = after(failed(0, "no-capacity"), failed(1, reason))
        assert isinstance(verdict, Again)
        assert verdict.backend == 2
    only = Retry(frozenset({"interruption"}))
    assert isinstance(after(failed(1, "preempted"), policy=only), Again)
    last = after(failed(3, "preempted"))
    assert isinstance(last, Again)
    assert last.backend == 4


def test_after_an_interruption_every_other_place_is_asked_before_the_pause() -> None:
    taken = failed(2, "preempted")
    asked = [3, 4, 0, 1]
    for at, onward in zip(asked, [4, 0, 1, 2], strict=True):
        refused = [failed(each, "no-capacity") for each in asked[: asked.index(at) + 1]]
        assert after(taken, *refused) == Again(T0, onward)
    verdict = after(taken, *(failed(each, "no-capacity") for each in [*asked, 2]))
    assert isinstance(verdict, Again)
    assert verdict.backend == 0
    assert verdict.at > T0


def test_a_container_of_ones_own_machine_starts_where_it_was() -> None:
    verdict = after(failed(4, "lost"))
    assert isinstance(verdict, Again)
    assert verdict.backend == 0


# A run and its machine ---------------------------------------------------------------------------


def a_run(*, wanted: Wanted = Wanted.RUN, idle_s: int | None = 300) -> Run:
    launch = Launch("sft-0-0-0", "sft", spec_hash="a", resources=Resources(accelerators=1))
    backends = tuple(backend for backend, _ in PLACES)
    rents = tuple(rent for _, rent in PLACES)
    template = Template(launch, backends, rents=rents, idle_s=idle_s, retry=ALWAYS)
    return Run("1", "sft", "task", "{}", "a", template, T0, wanted=wanted)


def step(run: Run, jobs: Sequence[Job], *seen: Instance) -> Sequence[Action]:
    return reconcile(run, jobs, Observed({"aws": seen, "docker": ()}), now=T0).actions


def ended(*, rented: bool) -> Instance:
    return Instance(
        "sft-0-0-0", "sft", 0, 0, 0, "a", Phase.EXITED, exit_code=0, machine="i-1", rented=rented
    )  # fmt: skip


def a_job(state: JobState) -> Job:
    return Job("1", "sft-0-0-0", 0, 0, 0, "a", "aws", state, T0, rent=ZONES[0])


def test_a_refused_start_is_told_while_it_is_followed() -> None:
    record = start_failed(a_job(JobState.PROVISIONING), NoCapacity("sold out"), now=T0)
    assert record is not None
    assert record.event is not None
    assert record.event.action == "sft-0-0-0:failed"


def test_the_machine_and_its_price_are_written_down_before_it_is_asked_for() -> None:
    actions = step(a_run(), ())
    records = [a for a in actions if isinstance(a, Record)]
    (start,) = [a for a in actions if isinstance(a, Start)]
    assert records[0].job.rent == ZONES[0]
    assert records[0].event is not None
    assert records[0].event.cause == "applied: aws, g6.xlarge in us-east-1a at $0.8/h"
    assert start.launch.rent == ZONES[0]
    assert actions.index(records[0]) < actions.index(start)


def test_a_launch_takes_all_accelerators_of_the_machine_it_is_rented() -> None:
    rent = replace(WEST, accelerator="L4-24GB", vendor="nvidia", accelerators=4, vram_bytes=24)
    given = a_run().template.at(0, 0, 1, rent).resources
    assert (given.accelerators, given.accelerator, given.vram_bytes) == (4, "L4-24GB", 24)


def test_a_machine_is_given_back_once_the_end_is_on_record() -> None:
    actions = step(a_run(), [a_job(JobState.RUNNING)], ended(rented=True))
    kinds = [type(a) for a in actions]
    assert kinds == [Record, Release]
    assert isinstance(actions[0], Record)
    assert actions[0].job.machine == "i-1"
    assert actions[1] == Release("aws", "sft-0-0-0", 300)


def test_a_run_has_no_end_while_its_machine_is_paid_for() -> None:
    paying = step(a_run(), [a_job(JobState.SUCCEEDED)], ended(rented=True))
    assert [type(a) for a in paying] == [Release]
    over = step(a_run(), [a_job(JobState.SUCCEEDED)], ended(rented=False))
    assert [a.run.state.value for a in over if isinstance(a, Turn)] == ["succeeded"]


@pytest.mark.parametrize("wanted", [Wanted.STOP, Wanted.DELETE])
def test_a_stopped_run_gives_its_machine_back_first(wanted: Wanted) -> None:
    run = a_run(wanted=wanted, idle_s=None)
    assert list(step(run, [a_job(JobState.STOPPED)], ended(rented=True))) == [
        Release("aws", "sft-0-0-0", None)
    ]


def test_a_node_whose_machine_is_rented_before_its_turn_starts_in_its_turn() -> None:
    run = a_run()
    run = replace(run, template=replace(run.template, nodes=2, order="master-first"))
    jobs = [
        Job("1", f"sft-0-{node}-0", 0, node, 0, "a", "aws", state, T0, rent=ZONES[0])
        for node, state in enumerate((JobState.STARTING, JobState.PROVISIONING))
    ]

    def seen(master: Phase) -> list[Instance]:
        return [
            Instance(f"sft-0-{node}-0", "sft", 0, node, 0, "a", phase, rented=True)
            for node, phase in enumerate((master, Phase.PENDING))
        ]

    def started(master: Phase) -> set[str]:
        return {action.launch.name for action in step(run, jobs, *seen(master)) if isinstance(action, Start)}

    assert started(Phase.PENDING) == {"sft-0-0-0"}
    assert started(Phase.RUNNING) == {"sft-0-1-0"}
