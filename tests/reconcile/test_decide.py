"""What one pass decides, case by case."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from backends.sim import Script
from orchestrator.backend import Port
from orchestrator.engines.failures import Failure, Kind
from orchestrator.reconcile import JobState, Retry, Wanted
from orchestrator.reconcile.decide import reconcile
from orchestrator.reconcile.steps import Observed, Record, Start, Stop
from tests.reconcile.world import ANSWERS, PATIENT, World


def reconcile_wake(world: World) -> datetime:
    """Return when the next pass over ``chat`` is due."""
    run = world.runs["chat"]
    seen = {name: tuple(place.instances()) for name, place in world.places.items()}
    step = reconcile(run, list(world.jobs[run.id].values()), Observed(seen), now=world.clock())
    assert step.wake_at is not None
    return step.wake_at


def names(world: World, run: str = "chat") -> list[str]:
    return sorted(i.name for i in world.alive(run))


def test_a_service_comes_up_and_rests() -> None:
    world = World()
    world.apply(replicas=2)
    world.settle()
    assert names(world) == ["chat-0-0-0", "chat-1-0-0"]
    assert world.state() == "ready"
    assert world.step() == []


def test_a_task_that_ends_well_has_succeeded() -> None:
    world = World(scripts={"sft": Script(run_s=5)})
    world.apply("sft", type="task")
    world.settle()
    assert world.state("sft") == "succeeded"
    assert world.job("sft-0-0-0").exit_code == 0


def test_a_start_is_written_down_before_it_is_asked_for() -> None:
    world = World()
    world.apply()
    actions = world.decide()
    assert world.job("chat-0-0-0").state.value == "provisioning"
    assert [type(a) for a in actions if isinstance(a, Start)] == [Start]
    assert names(world) == []


def test_a_failed_task_is_not_retried_unless_the_spec_says_so() -> None:
    world = World(scripts={"sft": Script(run_s=1, exit_code=3)})
    world.apply("sft", type="task")
    world.settle()
    assert world.state("sft") == "failed"
    assert world.runs["sft"].reason == "sft-0-0-0: exit code 3"
    assert world.started() == {"sft-0-0-0": 1}


def test_retries_end_with_the_duration() -> None:
    world = World(scripts={"sft": Script(run_s=1, exit_code=3)})
    world.apply("sft", type="task", retry=Retry(frozenset({"error"}), duration_s=30, first_s=4))
    world.settle()
    assert world.state("sft") == "failed"
    assert 2 <= len(world.started()) <= 4
    last = max(world.started())
    assert world.runs["sft"].reason == f"sft-0-0-0 to {last}: exit code 3 (retry.duration is over)"


def test_a_run_ends_with_the_reason_of_every_attempt() -> None:
    scripts = [Script(refuse="no-capacity"), Script(run_s=1, exit_code=3), Script(run_s=1, exit_code=3)]
    world = World(scripts={f"sft-0-0-{n}": script for n, script in enumerate(scripts)})
    world.apply("sft", type="task", retry=Retry(PATIENT.on, attempts=3, first_s=1))
    world.settle()
    reason = world.runs["sft"].reason
    assert reason.startswith("sft-0-0-0: ")
    assert reason.endswith("; sft-0-0-1 to sft-0-0-2: exit code 3 (3 attempts failed)")


def test_a_run_that_is_tried_again_says_why_and_when() -> None:
    world = World(scripts={"chat-0-0-0": Script(run_s=1, exit_code=3)})
    world.apply(retry=PATIENT)
    world.step()
    world.step()
    world.clock.advance(1)
    world.step()
    due = reconcile_wake(world)
    assert world.runs["chat"].reason == f"chat-0-0-0: exit code 3; tries again at {due:%Y-%m-%dT%H:%M:%SZ}"
    assert [e.after for e in world.events if e.cause == world.runs["chat"].reason] == ["queued"]
    world.settle()
    assert (world.state(), world.runs["chat"].reason) == ("ready", "")


def test_a_launch_that_is_to_end_is_stopping_until_it_has() -> None:
    world = World(scripts={"chat": Script(stubborn=True)})
    world.apply()
    world.settle()
    world.want("chat", Wanted.STOP)
    world.settle()
    told = [(e.before, e.after) for e in world.events if e.subject == "chat-0-0-0"]
    assert told[-2:] == [("ready", "stopping"), ("stopping", "stopped")]


def test_an_interruption_is_another_event_than_an_error() -> None:
    world = World(scripts={"sft": Script(run_s=1, exit_code=3, reason="preempted")})
    world.apply("sft", type="task", retry=Retry(frozenset({"error"})))
    world.settle()
    assert world.state("sft") == "failed"
    assert "retry does not name interruption" in world.runs["sft"].reason


def test_a_place_without_capacity_sends_the_launch_to_the_next_at_once() -> None:
    world = World(scripts={"chat-0-0-0": Script(refuse="no-capacity")})
    world.apply()
    world.step()
    world.step()
    assert [i.name for i in world.places["far"].instances()] == ["chat-0-0-1"]


def test_no_capacity_anywhere_waits_before_the_next_round() -> None:
    world = World(scripts={"chat": Script(refuse="no-capacity")})
    world.apply(retry=PATIENT)
    for _ in range(4):
        world.step()
    assert sum(isinstance(a, Start) for a in world.asked) == 2
    world.clock.advance(2)
    world.step()
    assert sum(isinstance(a, Start) for a in world.asked) == 3


def test_a_launch_that_never_can_start_is_not_asked_for_again() -> None:
    world = World(scripts={"chat": Script(refuse="rejected")})
    world.apply(retry=PATIENT)
    world.settle()
    assert world.state() == "failed"
    assert sum(isinstance(a, Start) for a in world.asked) == 1


def test_an_unreachable_place_changes_nothing() -> None:
    world = World()
    world.apply()
    world.settle()
    world.places["near"].unreachable = True
    world.clock.advance(3600)
    assert world.step() == []
    assert world.state() == "ready"


def test_what_another_process_left_pending_is_asked_for_again_and_only_once() -> None:
    world = World(scripts={"chat": Script(boot_s=30)})
    world.apply()
    world.step()
    run = world.runs["chat"]
    jobs = list(world.jobs[run.id].values())
    seen = {name: list(place.instances()) for name, place in world.places.items()}
    mine = Observed(seen, asked=frozenset({"chat-0-0-0"}))
    assert any(isinstance(a, Start) for a in reconcile(run, jobs, Observed(seen), now=world.clock()).actions)
    assert not any(isinstance(a, Start) for a in reconcile(run, jobs, mine, now=world.clock()).actions)


def test_a_lost_answer_does_not_start_twice() -> None:
    world = World(scripts={"chat": Script(lost_answer=True)})
    world.apply()
    world.settle()
    assert world.started() == {"chat-0-0-0": 1}


def test_a_container_that_is_gone_is_an_interruption() -> None:
    world = World()
    world.apply(retry=PATIENT)
    world.settle()
    world.places["near"].remove("chat-0-0-0")
    world.settle()
    assert world.job("chat-0-0-0").reason == "lost"
    assert names(world) == ["chat-0-0-1"]


def test_one_nodes_failure_ends_the_gang_and_names_the_node() -> None:
    world = World(scripts={"sft-0-1-0": Script(run_s=5, exit_code=1)})
    world.apply("sft", type="task", nodes=3)
    world.settle()
    assert world.state("sft") == "failed"
    assert world.runs["sft"].reason == "sft-0-1-0: exit code 1"
    assert {world.job(f"sft-0-{n}-0").reason for n in (0, 2)} == {"node-failed"}
    assert world.alive() == []


def test_a_failed_gang_is_retried_whole() -> None:
    world = World(scripts={"sft-0-1-0": Script(run_s=5, exit_code=1), "sft": Script(run_s=20)})
    world.apply("sft", type="task", nodes=2, retry=PATIENT)
    world.settle()
    assert world.state("sft") == "succeeded"
    assert sorted(world.started()) == ["sft-0-0-0", "sft-0-0-1", "sft-0-1-0", "sft-0-1-1"]


def test_a_replacement_is_ready_before_the_old_one_is_stopped() -> None:
    world = World(scripts={"chat-0-0-1": Script(boot_s=30, ready_s=30)})
    world.apply(surge=True)
    world.settle()
    world.apply(spec_hash="b", surge=True)
    world.step()
    world.step()
    assert names(world) == ["chat-0-0-0", "chat-0-0-1"]
    world.settle()
    assert names(world) == ["chat-0-0-1"]


def test_without_room_the_old_one_is_stopped_first() -> None:
    world = World()
    world.apply()
    world.settle()
    world.apply(spec_hash="b")
    alive = [len(names(world)) for _ in range(6) if world.step() or True]
    assert max(alive) == 1
    world.settle()
    assert names(world) == ["chat-0-0-1"]


def test_a_rollout_that_fails_keeps_the_old_replicas() -> None:
    world = World(scripts={f"chat-0-0-{n}": Script(run_s=0, exit_code=1, ready_s=1e6) for n in range(1, 9)})
    world.apply(surge=True, retry=Retry(PATIENT.on, attempts=3, first_s=1))
    world.settle()
    world.apply(spec_hash="b", surge=True, retry=Retry(PATIENT.on, attempts=3, first_s=1))
    world.settle()
    assert names(world) == ["chat-0-0-0"]
    assert world.state() == "ready"
    why = "rollout failed: chat-0-0-1 to chat-0-0-3: exit code 1 (3 attempts failed)"
    assert (world.runs["chat"].reason, world.runs["chat"].ready) == (why, 1)
    assert not world.runs["chat"].was_ready  # no replica of this spec was


def test_replicas_of_the_older_spec_count_as_ready_while_they_serve() -> None:
    world = World(scripts={"chat-0-0-1": Script(boot_s=30, ready_s=30)})
    world.apply(surge=True)
    world.settle()
    world.apply(spec_hash="b", surge=True)
    world.step()
    assert (world.state(), world.runs["chat"].ready) == ("provisioning", 1)
    world.settle()
    assert (world.state(), world.runs["chat"].ready) == ("ready", 1)


@pytest.mark.parametrize("surge", [True, False])
def test_a_spec_that_does_not_work_costs_one_replica(surge: bool) -> None:
    world = World()
    world.apply(replicas=3, surge=surge, retry=Retry(PATIENT.on, attempts=2))
    world.settle()
    world.scripts["chat"] = Script(run_s=0, exit_code=1)
    world.apply(replicas=3, spec_hash="b", surge=surge, retry=Retry(PATIENT.on, attempts=2))
    world.settle()
    begun = {job.name for job in world.jobs["id-chat-0"].values() if job.spec_hash == "b"}
    assert begun == {"chat-0-0-1", "chat-0-0-2"}
    assert len(names(world)) == (3 if surge else 2)
    assert world.runs["chat"].reason.startswith("rollout failed: chat-0-0-1 to chat-0-0-2: exit code 1")


@pytest.mark.parametrize(("surge", "most"), [(True, 2), (False, 1)])
def test_replicas_are_replaced_one_first_then_a_quarter_at_once(surge: bool, most: int) -> None:
    world = World(scripts={"chat": Script(boot_s=5)})
    world.apply(replicas=8, surge=surge)
    world.settle()
    world.apply(replicas=8, spec_hash="b", surge=surge)
    at_once, least = [], 8
    for _ in range(120):
        world.step()
        jobs = [job for job in world.jobs["id-chat-0"].values() if not job.state.is_final]
        at_once.append(sum(job.spec_hash == "b" and job.state is not JobState.READY for job in jobs))
        least = min(least, sum(job.state is JobState.READY for job in jobs))
        world.clock.advance(1)
    assert {i.spec_hash for i in world.alive("chat")} == {"b"}
    assert len(names(world)) == 8
    assert max(at_once) == most
    assert least >= (8 if surge else 7)


def test_a_replica_that_does_not_answer_is_replaced_without_waiting_for_others() -> None:
    world = World(scripts={"chat": Script(ready_s=1000)})
    world.apply(replicas=2, probe=ANSWERS)
    world.step()
    world.scripts["chat"] = Script(ready_s=0)
    world.apply(replicas=2, spec_hash="b", probe=ANSWERS, surge=True)
    world.step()
    begun = {job.name for job in world.jobs["id-chat-0"].values() if job.spec_hash == "b"}
    assert begun == {"chat-0-0-1", "chat-1-0-1"}


def test_a_canary_stands_beside_what_serves_until_it_is_promoted_or_taken_back() -> None:
    for promoted in (True, False):
        world = World()
        world.apply(replicas=3, surge=True)
        world.settle()
        world.apply(replicas=3, spec_hash="b", surge=True, canary=10)
        world.settle()
        assert names(world) == ["chat-0-0-0", "chat-0-0-1", "chat-1-0-0", "chat-2-0-0"]
        told = "canary: 10 % of requests for the new spec"
        assert (world.state(), world.runs["chat"].reason) == ("ready", told)
        world.apply(replicas=3, spec_hash="b" if promoted else "a", surge=True)
        world.settle()
        assert {i.spec_hash for i in world.alive("chat")} == {"b" if promoted else "a"}
        assert len(names(world)) == 3
        assert (world.state(), world.runs["chat"].reason) == ("ready", "")


def test_a_canary_that_does_not_work_costs_nothing_that_serves() -> None:
    world = World()
    world.apply(replicas=2, surge=True, retry=Retry(PATIENT.on, attempts=2))
    world.settle()
    world.scripts["chat"] = Script(run_s=0, exit_code=1)
    world.apply(replicas=2, spec_hash="b", surge=True, canary=10, retry=Retry(PATIENT.on, attempts=2))
    world.settle()
    assert names(world) == ["chat-0-0-0", "chat-1-0-0"]
    assert world.runs["chat"].reason.startswith("rollout failed: ")


def test_without_room_a_canary_takes_nothing_away() -> None:
    world = World()
    world.apply(replicas=2)
    world.settle()
    world.apply(replicas=2, spec_hash="b", canary=10)
    world.settle()
    assert names(world) == ["chat-0-0-0", "chat-1-0-0"]
    assert world.runs["chat"].reason == "there is no room for a canary: remove rollout.weight"


@pytest.mark.parametrize("surge", [True, False])
def test_a_rollout_that_fails_is_rolled_back_where_the_spec_says_so(surge: bool) -> None:
    world = World()
    world.apply(replicas=2, surge=surge)
    world.settle()
    world.scripts |= {f"chat-0-0-{at}": Script(run_s=0, exit_code=1) for at in (1, 2)}
    retry = Retry(PATIENT.on, attempts=2)
    world.apply(replicas=2, spec_hash="b", surge=surge, rollback=True, retry=retry)
    world.settle()
    assert {i.spec_hash for i in world.alive("chat")} == {"a"}
    assert len(names(world)) == 2
    run = world.runs["chat"]
    assert (world.state(), run.spec_hash, run.ready) == ("ready", "a", 2)
    assert run.reason == "rollout failed: chat-0-0-1 to chat-0-0-2: exit code 1 (2 attempts failed)"
    assert [e.cause for e in world.events if e.subject == "chat" and "back" in e.cause] == ["rolled back"]
    assert world.step() == []


def test_what_never_worked_is_not_put_back() -> None:
    world = World(scripts={"chat": Script(run_s=0, exit_code=1)})
    retry = Retry(PATIENT.on, attempts=2)
    world.apply(replicas=1, surge=True, retry=retry)
    world.step()
    world.apply(replicas=1, spec_hash="b", surge=True, rollback=True, retry=retry)
    world.settle()
    assert (world.state(), world.runs["chat"].spec_hash) == ("failed", "b")


def test_a_hung_replica_is_replaced_and_every_next_time_later() -> None:
    world = World()
    world.apply(replicas=1, retry=PATIENT)
    world.settle()
    pauses = []
    for attempt in range(3):
        world.sick = {f"chat-0-0-{attempt}": "3 requests run and no step was made for 300 s"}
        world.step()
        ended = world.clock()
        world.step()
        job = world.job(f"chat-0-0-{attempt}")
        assert (job.state, job.reason) == (JobState.FAILED, "hung")
        assert job.message.startswith("3 requests run")
        while f"chat-0-0-{attempt + 1}" not in names(world):
            world.clock.advance(0.25)
            world.step()
        pauses.append((world.clock() - ended).total_seconds())
        world.sick = {}
        world.step()
    assert pauses == sorted(pauses)
    assert pauses[2] > 2 * pauses[0]


@pytest.mark.parametrize(("kind", "attempts"), [("config", 1), ("denied", 1), ("device-memory", 3)])
def test_what_output_says_an_engine_ended_of_is_told_and_not_tried_again_in_vain(
    kind: Kind, attempts: int
) -> None:
    world = World(scripts={"chat": Script(run_s=0, exit_code=1)})
    world.words = {f"chat-0-0-{at}": Failure(kind, "what the engine said") for at in range(3)}
    world.apply(replicas=1, retry=Retry(PATIENT.on, attempts=3))
    world.settle()
    assert world.state() == "failed"
    assert len(world.started()) == attempts
    assert "what the engine said" in world.runs["chat"].reason


def test_scaling_to_zero_only_stops() -> None:
    world = World()
    world.apply(replicas=3)
    world.settle()
    world.asked.clear()
    world.apply(replicas=0)
    world.settle()
    assert names(world) == []
    assert not any(isinstance(a, Start) for a in world.asked)
    assert world.state() == "ready"


def test_the_last_replica_that_answers_is_not_scaled_away() -> None:
    world = World(scripts={"chat-0-0-0": Script(ready_s=500)})
    world.apply(replicas=2, probe=ANSWERS, retry=PATIENT)
    world.scripts["chat-1-0-0"] = Script(ready_s=0)
    world.step()
    world.clock.advance(5)
    world.step()
    assert world.job("chat-1-0-0").state is JobState.READY
    world.apply(replicas=1, probe=ANSWERS, retry=PATIENT)
    world.step()
    assert world.job("chat-1-0-0").stop_asked_at is None
    world.clock.advance(40)
    world.scripts["chat-0-0-1"] = Script(ready_s=0)
    world.settle()
    assert names(world) == ["chat-0-0-1"]


def test_a_replica_that_hands_over_leaves_the_routes_and_ends_its_requests_first() -> None:
    world = World()
    world.apply(replicas=2, ports=(Port(80),))
    world.settle()
    world.apply(replicas=1, ports=(Port(80),))
    world.serving["chat-1-0-0"] = 3
    assert not any(isinstance(a, Stop) for a in world.step())
    assert world.job("chat-1-0-0").stop_cause == "scaled down"
    world.clock.advance(5)
    assert not any(isinstance(a, Stop) for a in world.step())
    world.serving.clear()
    assert [a.name for a in world.step() if isinstance(a, Stop)] == ["chat-1-0-0"]


def test_requests_that_do_not_end_hold_a_replica_for_its_grace_and_no_longer() -> None:
    world = World()
    world.apply(replicas=1, ports=(Port(80),))
    world.settle()
    world.apply(replicas=0, ports=(Port(80),))
    world.serving["chat-0-0-0"] = 1
    world.step()
    world.clock.advance(world.runs["chat"].template.launch.stop_grace_s)
    assert any(isinstance(a, Stop) for a in world.step())


def test_scaled_down_and_up_again_starts_anew() -> None:
    world = World()
    for replicas in (2, 1, 2):
        world.apply(replicas=replicas)
        world.settle()
    assert names(world) == ["chat-0-0-0", "chat-1-0-1"]


def test_a_stop_ends_what_runs_and_is_final() -> None:
    world = World()
    world.apply(replicas=2)
    world.settle()
    world.want("chat", Wanted.STOP)
    world.settle()
    assert world.alive() == []
    assert world.state() == "stopped"


def test_a_stopped_task_is_stopped_and_not_done_even_if_it_exits_with_0() -> None:
    world = World(scripts={"sft": Script(stop_code=0)})
    world.apply("sft", type="task")
    world.settle()
    world.want("sft", Wanted.STOP)
    world.settle()
    assert world.state("sft") == "stopped"


def test_a_delete_leaves_nothing() -> None:
    world = World()
    world.apply(replicas=2)
    world.settle()
    world.want("chat", Wanted.DELETE)
    world.settle()
    assert world.runs == {}
    assert [i for p in world.places.values() for i in p.instances()] == []
    assert world.events[-1].after == "deleted"


def test_a_delete_waits_for_a_place_that_does_not_answer() -> None:
    world = World()
    world.apply()
    world.settle()
    world.want("chat", Wanted.DELETE)
    world.places["near"].unreachable = True
    for _ in range(3):
        world.step()
    assert "chat" in world.runs
    world.places["near"].unreachable = False
    world.settle()
    assert world.runs == {}


def test_a_task_over_its_time_has_failed_and_says_why() -> None:
    world = World()
    world.apply("sft", type="task", max_duration_s=100)
    world.step()
    world.step()
    world.clock.advance(101)
    world.settle()
    assert world.state("sft") == "failed"
    assert world.runs["sft"].reason == "sft-0-0-0: ran for 100 s"


def test_a_pass_says_when_to_look_again() -> None:
    world = World()
    world.apply("sft", type="task", max_duration_s=100)
    world.step()
    world.step()
    run = world.runs["sft"]
    found = Observed({name: list(place.instances()) for name, place in world.places.items()})
    step = reconcile(run, list(world.jobs[run.id].values()), found, now=world.clock())
    assert step.wake_at is not None
    assert (step.wake_at - world.clock()).total_seconds() == 100


def test_a_service_that_never_answers_fails_with_the_port() -> None:
    world = World(scripts={"chat": Script(ready_s=1e6)})
    world.apply(probe=ANSWERS, retry=Retry(PATIENT.on, attempts=1))
    world.settle()
    assert world.state() == "failed"
    assert "no answer on port 8000 within 60 s" in world.runs["chat"].reason


def test_a_service_that_answers_badly_fails_with_what_it_says() -> None:
    world = World(scripts={"chat": Script(ready_s=1e6)})
    world.apply(probe=ANSWERS, retry=Retry(PATIENT.on, attempts=1))
    world.step()
    world.step()
    run = world.runs["chat"]
    found = {name: list(place.instances()) for name, place in world.places.items()}
    said = "GET /health on port 8000 says 503"
    step = reconcile(
        run,
        list(world.jobs[run.id].values()),
        Observed(found, troubles={"chat-0-0-0": said}),
        now=world.clock() + timedelta(hours=1),
    )
    stopped = [a.job.message for a in step.actions if isinstance(a, Record) and a.job.stop_asked_at]
    assert stopped == [f"{said} after 60 s"]


def test_a_record_that_was_lost_is_rebuilt_from_what_runs() -> None:
    world = World()
    world.apply(replicas=2)
    world.settle()
    world.runs.clear()
    world.jobs.clear()
    world.apply(replicas=2)
    world.settle()
    assert set(world.started().values()) == {1}
    assert names(world) == ["chat-0-0-0", "chat-1-0-0"]
    assert world.state() == "ready"


def test_a_finished_task_found_again_is_not_run_again() -> None:
    world = World(scripts={"sft": Script(run_s=1)})
    world.apply("sft", type="task")
    world.settle()
    world.runs.clear()
    world.jobs.clear()
    world.apply("sft", type="task")
    world.settle()
    assert world.state("sft") == "succeeded"
    assert world.started() == {"sft-0-0-0": 1}


def test_only_the_last_ended_launches_are_kept() -> None:
    world = World(scripts={f"chat-0-0-{n}": Script(run_s=0, exit_code=1) for n in range(5)})
    world.apply(retry=PATIENT)
    world.settle(tick_s=20)
    kept = sorted(i.name for p in world.places.values() for i in p.instances())
    assert kept == ["chat-0-0-3", "chat-0-0-4", "chat-0-0-5"]


def test_nothing_of_another_run_is_touched() -> None:
    world = World()
    world.apply("chat")
    world.apply("embed")
    world.settle()
    world.want("chat", Wanted.DELETE)
    world.asked.clear()
    world.settle()
    touched = {a.name for a in world.asked if isinstance(a, Stop)}
    assert touched == {"chat-0-0-0"}
    assert world.state("embed") == "ready"


@pytest.mark.parametrize("kind", ["service", "dev-environment"])
def test_what_is_kept_up_must_not_end(kind: str) -> None:
    world = World(scripts={"chat-0-0-0": Script(run_s=1, exit_code=0)})
    world.apply(type=kind, retry=PATIENT)
    world.settle()
    assert names(world) == ["chat-0-0-1"]
    assert world.job("chat-0-0-0").message == f"a {kind} must not end"


def test_stopped_training_is_interrupted_whatever_its_exit_code() -> None:
    for code in (0, 1, 143):
        world = World(scripts={"sft": Script(stop_code=code)})
        world.apply("sft", type="task", resumes=True)
        world.settle()
        world.want("sft", Wanted.STOP)
        world.settle()
        assert (world.state("sft"), world.job("sft-0-0-0").reason) == ("stopped", "interrupted")


def test_training_out_of_time_is_interrupted_early_enough_to_save() -> None:
    world = World()
    run = world.apply("sft", type="task", resumes=True, max_duration_s=100)
    assert run.template.runs_for_s() == 90  # a launch may take 10 s to stop
    world.settle()
    world.clock.advance(90)
    world.settle()
    job = world.job("sft-0-0-0")
    assert (job.state.value, job.reason, job.message) == ("stopped", "interrupted", "ran for 90 s")
    assert (world.state("sft"), world.started()) == ("stopped", {"sft-0-0-0": 1})
    assert "apply --resume goes on" in world.runs["sft"].reason


def test_training_that_a_signal_from_outside_ended_is_an_interruption() -> None:
    retry = Retry(frozenset({"interruption"}), duration_s=30, first_s=4)
    world = World(scripts={"sft-0-0-0": Script(run_s=1, exit_code=143), "sft": Script(run_s=5)})
    world.apply("sft", type="task", resumes=True, retry=retry)
    world.settle()
    assert world.job("sft-0-0-0").reason == "preempted"
    assert (world.state("sft"), world.started()) == ("succeeded", {"sft-0-0-0": 1, "sft-0-0-1": 1})


def test_a_life_of_training_is_told_from_the_one_before() -> None:
    world = World()
    template = world.apply("sft", type="task", resumes=True).template
    first, second = template.begun(world.clock()), template.begun(world.clock() + timedelta(seconds=1))
    assert first.at(0, 0, 0).env != second.at(0, 0, 1).env
    assert dict(first.at(0, 1, 3).env)["MODELYARD_RUN_SINCE"] == world.clock().isoformat()
    other = world.apply("eval", type="task").template
    assert other.begun(world.clock()) == other


NODES = {"type": "task", "nodes": 3}


def test_a_task_that_ends_with_its_master_stops_the_others_and_has_succeeded() -> None:
    world = World(scripts={"mpi-0-0-0": Script(run_s=5)})
    world.apply("mpi", ends_with_master=True, **NODES)  # type: ignore[arg-type]  # words
    world.settle()
    assert world.state("mpi") == "succeeded"
    ended = {job.name: (job.state.value, job.stop_cause) for job in world.jobs[world.runs["mpi"].id].values()}
    assert ended == {
        "mpi-0-0-0": ("succeeded", ""), "mpi-0-1-0": ("stopped", "master-done"),
        "mpi-0-2-0": ("stopped", "master-done"),
    }  # fmt: skip
    assert world.started() == {"mpi-0-0-0": 1, "mpi-0-1-0": 1, "mpi-0-2-0": 1}


def test_without_it_the_end_of_the_master_alone_is_not_the_tasks() -> None:
    world = World(scripts={"mpi-0-0-0": Script(run_s=5)})
    world.apply("mpi", **NODES)  # type: ignore[arg-type]  # words
    for _ in range(9):
        world.step()
        world.clock.advance(1)
    assert world.state("mpi") == "running"


def test_a_node_that_fails_before_the_master_is_done_fails_the_task() -> None:
    world = World(scripts={"mpi-0-0-0": Script(run_s=50), "mpi-0-1-0": Script(run_s=5, exit_code=3)})
    world.apply("mpi", ends_with_master=True, **NODES)  # type: ignore[arg-type]  # words
    world.settle()
    assert world.state("mpi") == "failed"
    assert world.runs["mpi"].reason == "mpi-0-1-0: exit code 3"


@pytest.mark.parametrize(
    ("order", "first", "then"),
    [
        ("any", {0, 1, 2}, set()),
        ("master-first", {0}, {1, 2}),
        ("workers-first", {1, 2}, {0}),
    ],
)
def test_nodes_start_in_the_order_that_was_asked_for(order: str, first: set[int], then: set[int]) -> None:
    world = World(scripts={"mpi": Script(boot_s=5, run_s=60)})
    world.apply("mpi", order=order, **NODES)  # type: ignore[arg-type]  # words

    def started() -> set[int]:
        return {int(name.split("-")[2]) for name in world.started()}

    for _ in range(3):
        world.step()
    assert started() == first
    assert {job.node for job in world.jobs[world.runs["mpi"].id].values()} == {0, 1, 2}
    world.clock.advance(6)
    for _ in range(3):
        world.step()
    assert started() == first | then
    world.settle()
    assert world.state("mpi") == "succeeded"
    assert set(world.started().values()) == {1}


def test_nodes_that_wait_for_one_that_fails_are_never_started() -> None:
    world = World(scripts={"mpi-0-0-0": Script(refuse="rejected")})
    world.apply("mpi", order="master-first", **NODES)  # type: ignore[arg-type]  # words
    world.settle()
    assert world.state("mpi") == "failed"
    assert world.started() == {}
