"""Fleets of rented machines: how many there are, who may start there, and what goes back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.backend import FLEET, Instance, Launch, Phase, Rent, Resources
from orchestrator.reconcile import Job, JobState, Retry, Run, RunState, Template, Wanted, fleets
from orchestrator.reconcile.decide import Pass
from orchestrator.reconcile.fleets import Gate, Guest, gate_of, reconcile_fleet
from orchestrator.reconcile.steps import Observed, Record, Release, Start, Step, Stop, Turn
from orchestrator.reconcile.values import Holding

T0 = datetime(2026, 11, 29, 12, tzinfo=UTC)
L4 = Rent("g6", "us-east-1", "us-east-1a", price_usd_hour=0.8, accelerator="L4-24GB", accelerators=4, cpu=8)
H100 = Rent("p5", "us-east-1", "us-east-1b", price_usd_hour=30.0, accelerator="H100-80GB", accelerators=8)
EVERY = Retry(frozenset({"no-capacity", "interruption", "error"}))


def pool(
    least: int, most: int, *, blocks: int = 1, idle_s: int | None = 60, rents: Sequence[Rent] = (L4,)
) -> Run:
    launch = Launch("pool-0-0-0", "pool", spec_hash="h", options=((FLEET, "pool"),))
    template = Template(
        launch, ("aws",) * len(rents), replicas=least, retry=EVERY, rents=tuple(rents), idle_s=0,
        holding=Holding(least, most, blocks, idle_s),
    )  # fmt: skip
    return Run("id-pool", "pool", "fleet", "{}", "h", template, T0 - timedelta(hours=1))


def up(replica: int, *, message: str = "", since_s: float = 0, rent: Rent = L4, attempt: int = 0) -> Job:
    name = f"pool-{replica}-0-{attempt}"
    return Job(
        "id-pool", name, replica, 0, attempt, "h", "aws", JobState.READY, T0 - timedelta(minutes=30),
        ready_at=T0 - timedelta(seconds=since_s), machine=f"i-{replica}", address="10.0.0.1", rent=rent,
        message=message,
    )  # fmt: skip


def seen(*jobs: Job) -> Observed:
    return Observed({"aws": [
        Instance(job.name, "pool", job.replica, 0, job.attempt, "h", Phase.RUNNING, machine=job.machine,
                 address=job.address, rented=True)
        for job in jobs
    ]})  # fmt: skip


def guest(name: str, machine: str = "", *, at_s: float = 0, **needs: object) -> Guest:
    state = JobState.RUNNING if machine else JobState.PROVISIONING
    job = Job(f"id-{name}", f"{name}-0-0-0", 0, 0, 0, "g", "pool", state, T0 + timedelta(seconds=at_s))
    return Guest(replace(job, machine=machine), Resources(**needs))  # type: ignore[arg-type]


def step(
    run: Run,
    jobs: Sequence[Job],
    guests: Sequence[Guest] = (),
    *,
    at_s: float = 1,
    observed: Observed | None = None,
) -> tuple[Step, Gate]:
    found = seen(*jobs) if observed is None else observed
    return reconcile_fleet(run, jobs, found, guests, now=T0 + timedelta(seconds=at_s))


def started(made: Step) -> list[str]:
    return [action.job.name for action in made.actions if isinstance(action, Start)]


def stopping(made: Step) -> list[str]:
    return [
        a.job.name
        for a in made.actions
        if isinstance(a, Record) and a.job.stop_asked_at and not a.job.state.is_final
    ]


def test_the_least_are_rented_and_no_more() -> None:
    made, _ = step(pool(2, 4), [])
    assert started(made) == ["pool-0-0-0", "pool-1-0-0"]


def test_tags_that_change_are_borne_by_the_next_machine_and_end_none() -> None:
    run = pool(2, 4)
    tagged = replace(run.template.launch, tags=(("team", "a"),))
    made, _ = step(replace(run, template=replace(run.template, launch=tagged)), [up(0)])
    assert (started(made), stopping(made)) == (["pool-1-0-0"], [])
    assert [a.launch.tags for a in made.actions if isinstance(a, Start)] == [(("team", "a"),)]


def test_a_second_pass_rents_nothing() -> None:
    first, _ = step(pool(2, 4), [])
    jobs = [action.job for action in first.actions if isinstance(action, Record)]
    asked = frozenset(job.name for job in jobs)
    again, _ = step(pool(2, 4), jobs, observed=Observed({"aws": []}, busy=asked))
    assert started(again) == []


def test_a_launch_that_finds_no_room_is_a_reason_for_one_more() -> None:
    made, gate = step(pool(1, 2), [up(0)], [guest("a", "i-0"), guest("b")])
    assert started(made) == ["pool-1-0-0"]
    assert (gate.admitted, gate.refused) == ({}, {})


def test_a_launch_that_finds_room_starts_there() -> None:
    made, gate = step(pool(1, 2), [up(0)], [guest("a")])
    assert started(made) == []
    assert gate.admitted == {"a-0-0-0": "i-0"}


def test_nobody_starts_on_a_machine_that_is_up_only_since_this_pass() -> None:
    job = replace(up(0), state=JobState.PROVISIONING, ready_at=None)
    _, gate = step(pool(1, 1), [job], [guest("a")])
    assert (gate.admitted, gate.refused) == ({}, {})


def test_two_launches_share_one_machine_as_its_blocks_go() -> None:
    guests = [guest(n, accelerator="L4-24GB", accelerators=2) for n in "abc"]
    made, gate = step(pool(1, 3, blocks=2), [up(0)], guests)
    assert sorted(gate.admitted) == ["a-0-0-0", "b-0-0-0"]
    assert started(made) == ["pool-1-0-0"]


def test_what_is_on_its_way_is_counted_on() -> None:
    coming = replace(up(1), state=JobState.PROVISIONING, machine="", ready_at=None)
    busy = Observed({"aws": []}, busy=frozenset({"pool-0-0-0", "pool-1-0-0"}))
    made, gate = step(pool(1, 4), [up(0), coming], [guest("a", "i-0"), guest("b")], observed=busy)
    assert started(made) == []
    assert (gate.admitted, gate.refused) == ({}, {})


def test_at_its_most_a_fleet_refuses_and_says_so() -> None:
    made, gate = step(pool(1, 1), [up(0)], [guest("a", "i-0"), guest("b")])
    assert started(made) == []
    assert gate.refused == {"b-0-0-0": "fleet pool has no room: 1 of 1 machines are in use"}


def test_a_machine_is_rented_that_can_hold_the_launch() -> None:
    made, _ = step(pool(0, 2, rents=(L4, H100)), [], [guest("a", accelerator="H100-80GB", accelerators=8)])
    (begun,) = [action for action in made.actions if isinstance(action, Start)]
    assert begun.job.rent == H100
    _, gate = step(pool(0, 2), [], [guest("a", accelerator="H100-80GB", accelerators=8)])
    assert gate.refused == {"a-0-0-0": "fleet pool rents no machine that could hold it"}


def _refused(
    replica: int, attempt: int, rent: Rent, *, reason: str = "no-capacity", at_s: float = 0.5
) -> Job:
    return Job(
        "id-pool", f"pool-{replica}-0-{attempt}", replica, 0, attempt, "h", "aws", JobState.FAILED, T0,
        reason=reason, message="sold out", finished_at=T0 + timedelta(seconds=at_s), rent=rent,
    )  # fmt: skip


def test_kinds_are_tried_in_the_plans_order_and_then_the_launch_is_refused() -> None:
    run = pool(0, 2, rents=(L4, replace(L4, zone="us-east-1b")))
    one = _refused(0, 0, L4)
    made, gate = step(run, [one], [guest("a")], observed=Observed({"aws": []}))
    assert started(made) == ["pool-0-0-1"]
    assert gate.refused == {}
    two = _refused(0, 1, replace(L4, zone="us-east-1b"))
    made, gate = step(run, [one, two], [guest("a")], observed=Observed({"aws": []}))
    assert started(made) == []
    assert "fleet pool gets no machine" in gate.refused["a-0-0-0"]


def test_who_comes_later_has_machines_asked_for_again_at_once() -> None:
    made, gate = step(
        pool(0, 2), [_refused(0, 0, L4)], [guest("a", at_s=0.8)], observed=Observed({"aws": []})
    )
    assert started(made) == ["pool-0-0-1"]
    assert gate.refused == {}


def test_a_limit_of_the_account_is_asked_about_again_and_ends_no_fleet() -> None:
    job = _refused(0, 0, L4, reason="quota")
    made, _ = step(pool(1, 2), [job], observed=Observed({"aws": []}))
    assert started(made) == []
    assert made.wake_at == T0 + timedelta(seconds=300.5)
    (turned,) = [action.run for action in made.actions if isinstance(action, Turn)]
    assert (turned.state, "sold out; tries again at 2026-11-29T12:05:00Z" in turned.reason) == (
        RunState.QUEUED, True,
    )  # fmt: skip
    later, _ = step(pool(1, 2), [job], observed=Observed({"aws": []}), at_s=301)
    assert started(later) == ["pool-0-0-1"]


def test_an_idle_machine_above_the_least_goes_back_when_its_time_is_over() -> None:
    jobs = [up(0, since_s=100), up(1, since_s=100), up(2, since_s=10, message="idle")]
    made, _ = step(pool(0, 3), jobs)
    assert stopping(made) == ["pool-0-0-0", "pool-1-0-0"]
    assert made.wake_at == T0 + timedelta(seconds=50)
    made, _ = step(pool(2, 3), jobs)
    assert stopping(made) == ["pool-1-0-0"]  # the newest of those that may


def test_a_machine_that_is_used_does_not_go_back() -> None:
    jobs = [up(0, since_s=100), up(1, since_s=100)]
    made, _ = step(pool(0, 2), jobs, [guest("a", "i-1")])
    assert stopping(made) == ["pool-0-0-0"]


def test_idle_time_begins_when_the_last_launch_has_left() -> None:
    made, _ = step(pool(0, 1), [up(0, since_s=3_600, message="used by a")])
    assert stopping(made) == []
    (told,) = [a for a in made.actions if isinstance(a, Record)]
    assert (told.job.message, told.job.ready_at) == ("idle", T0 + timedelta(seconds=1))


def test_a_machine_goes_back_empty() -> None:
    leaving = replace(up(0), stop_asked_at=T0, stop_cause="idle, and above the least")
    run = pool(0, 1)
    used, gate = step(run, [leaving], [guest("a", "i-0"), guest("b")])
    assert not any(isinstance(action, Stop) for action in used.actions)
    assert gate.admitted == {}
    on_the_way, _ = step(run, [leaving], [guest("b")])
    assert not any(isinstance(action, Stop) for action in on_the_way.actions)
    empty, _ = step(run, [leaving])
    assert [action.name for action in empty.actions if isinstance(action, Stop)] == ["pool-0-0-0"]


def test_a_lost_machine_is_replaced() -> None:
    gone = Instance(
        "pool-0-0-0", "pool", 0, 0, 0, "h", Phase.EXITED, reason="lost", machine="i-0", finished_at=T0
    )
    made, _ = step(pool(1, 1), [up(0)], observed=Observed({"aws": [gone]}), at_s=5)
    assert started(made) == ["pool-0-0-1"]


def test_a_machine_that_is_taken_away_is_replaced_before_it_is_gone() -> None:
    holder = up(0, message="used by a")
    told = Observed({"aws": [replace(seen(holder).instances["aws"][0], leave="drain", message="i-0 goes")]})
    made, gate = step(pool(1, 1), [holder], [guest("b")], observed=told)
    assert (stopping(made), started(made)) == (["pool-0-0-0"], ["pool-1-0-0"])
    assert gate == Gate()  # it waits for the new one

    asked = next(a.job for a in made.actions if isinstance(a, Record) and a.job.name == holder.name)
    gone = Observed({"aws": [replace(told.instances["aws"][0], phase=Phase.EXITED, reason="stopped")]})
    ended, _ = step(pool(1, 1), [asked], observed=gone)
    assert [(a.job.state, a.job.reason) for a in ended.actions if isinstance(a, Record)][:1] == [
        (JobState.FAILED, "preempted")
    ]


def test_a_machine_of_which_nothing_is_known_is_not_replaced() -> None:
    made, _ = step(pool(1, 2), [up(0)], observed=Observed({"aws": None}))
    assert started(made) == []
    pending = Instance("pool-0-0-0", "pool", 0, 0, 0, "h", Phase.PENDING, machine="i-0", rented=True)
    made, gate = step(pool(1, 2), [up(0)], [guest("a")], observed=Observed({"aws": [pending]}))
    assert started(made) == []  # it was up: what another process sees of it does not make it boot
    assert gate.admitted == {"a-0-0-0": "i-0"}


def test_a_machine_that_has_ended_is_given_back_at_once() -> None:
    ended = Instance(
        "pool-0-0-0", "pool", 0, 0, 0, "h", Phase.EXITED, reason="stopped", machine="i-0", rented=True
    )
    job = replace(up(0), state=JobState.STOPPED, finished_at=T0)
    made, _ = step(pool(0, 1), [job], observed=Observed({"aws": [ended]}))
    assert Release("aws", "pool-0-0-0", 0) in made.actions


def test_a_fleet_that_is_deleted_takes_nobody_in_and_stops_its_machines() -> None:
    run = replace(pool(1, 1), wanted=Wanted.DELETE)
    made, gate = step(run, [up(0)], [guest("b")])
    assert stopping(made) == ["pool-0-0-0"]
    assert gate.refused == {"b-0-0-0": "fleet pool is being deleted"}


def test_who_only_looks_on_says_the_same() -> None:
    run, jobs, guests = pool(1, 1), [up(0)], [guest("a", "i-0"), guest("b")]
    _, gate = step(run, jobs, guests)
    assert gate_of(run, jobs, guests, now=T0 + timedelta(seconds=1)) == gate


# Planted faults -----------------------------------------------------------------------------------


class CountsNobody(fleets._FleetPass):
    """Takes every machine for empty."""

    def _on(self, holder: Job) -> list[Guest]:
        return []


class TrustsAnything(fleets._FleetPass):
    """Lets launches start on machines that are on their way."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self._up = set(self.jobs)


class RentsForEver(fleets._FleetPass):
    """Counts on nothing that is on its way."""

    def _held(self) -> list[Job]:
        return [job for job in super()._held() if job.state is JobState.READY]


class ForgetsTheKind(fleets._FleetPass):
    """Rents the first kind of machine for everybody."""

    def _begin(self, replica: int, backend: int, stale: list[Job], *, cause: str) -> None:
        self._wishes = {}
        super()._begin(replica, backend, stale, cause=cause)


class HasDrainedAtOnce(fleets._FleetPass):
    """Ends machines with whoever is there."""

    def _has_drained(self, job: Job) -> bool:
        return True


class BelievesPending(fleets._FleetPass):
    """Takes what little is known of a machine for a boot."""

    def _settle_alive(self, job: Job, instance: Instance) -> None:
        Pass._settle_alive(self, job, instance)


@pytest.mark.parametrize(
    ("twin", "test"),
    [
        (CountsNobody, test_a_launch_that_finds_no_room_is_a_reason_for_one_more),
        (CountsNobody, test_a_machine_that_is_used_does_not_go_back),
        (TrustsAnything, test_nobody_starts_on_a_machine_that_is_up_only_since_this_pass),
        (RentsForEver, test_what_is_on_its_way_is_counted_on),
        (ForgetsTheKind, test_a_machine_is_rented_that_can_hold_the_launch),
        (HasDrainedAtOnce, test_a_machine_goes_back_empty),
        (BelievesPending, test_a_machine_of_which_nothing_is_known_is_not_replaced),
    ],
)
def test_a_broken_twin_is_caught(
    twin: type[fleets._FleetPass], test: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleets, "_FleetPass", twin)
    with pytest.raises(AssertionError):
        test()  # type: ignore[operator]
