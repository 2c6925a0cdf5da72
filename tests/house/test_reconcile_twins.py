"""Broken twins of the reconciler: random histories must catch every one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from orchestrator.backend import Instance, Phase
from orchestrator.reconcile import Job, JobState, Run, RunEvent, RunState, decide
from orchestrator.reconcile.decide import Pass, reconcile
from orchestrator.reconcile.precedence import Claim
from orchestrator.reconcile.steps import Forget, Observed, Remove
from orchestrator.store import open_store
from tests.loop import test_queue
from tests.reconcile import test_decide
from tests.reconcile.histories import Broken, play_all

HISTORIES, STEPS = 60, 60


class UnknownIsGone(Pass):
    """Takes a place that does not answer for one that is empty."""

    def __init__(self, run: object, jobs: Sequence[Job], observed: Observed, now: object) -> None:
        seen = {name: found or () for name, found in observed.instances.items()}
        super().__init__(run, jobs, Observed(seen, observed.busy), now)  # type: ignore[arg-type]


class StartsTheLostAgain(Pass):
    """Starts a launch that vanished under the same name, in place of a new attempt."""

    def _settle_absent(self, job: Job) -> None:
        self._start(job)


class AdoptsNothing(Pass):
    """Leaves alone what runs under our name and is not on record."""

    def adopt(self) -> None:
        return


class LetsTheGangStand(Pass):
    """Does not end the other nodes when one has failed."""

    def _keep_attempt(self, attempt: list[Job], stale: list[Job]) -> None:
        for job in attempt:
            if not job.state.is_final:
                self._keep_limits(job)


class DoesNotWaitForTheOld(Pass):
    """Starts a successor beside the old one where there is no room for both."""

    def _begin(self, replica: int, backend: int, stale: list[Job], *, cause: str) -> None:
        super()._begin(replica, backend, [], cause=cause)


class ForgetsTooEarly(Pass):
    """Drops a run from the record while its launches are still there."""

    def take_down(self) -> None:
        self.actions.append(Forget(self.run, self._event(self.run.name, "", "deleted", "asked to delete")))


class NeverStops(Pass):
    """Writes down that a launch shall stop and does not ask its place."""

    def _is_known(self, job: Job) -> bool:
        return super()._is_known(job) and job.stop_asked_at is None


class KeepsTheOldSpec(Pass):
    """Takes a launch of an older spec for one of the present."""

    def _is_current(self, job: Job) -> bool:
        return not job.state.is_final or job.created_at >= self.run.since


class SweepsTheLiving(Pass):
    """Removes what still runs along with what has ended."""

    def _clean(self) -> None:
        for name, job in self.jobs.items():
            if name in self.seen and self.seen[name].phase is Phase.RUNNING and job.attempt > 1:
                self.actions.append(Remove(job.backend, name))


class ReusesNames(Pass):
    """Numbers attempts by what is live, so that a name comes back."""

    def _begin(self, replica: int, backend: int, stale: list[Job], *, cause: str) -> None:
        every, self.jobs = self.jobs, {n: j for n, j in self.jobs.items() if not j.state.is_final}
        super()._begin(replica, backend, stale, cause=cause)
        self.jobs = every | self.jobs


class GivesNoReason(Pass):
    """Fails a run without saying why."""

    def _turn(self, state: RunState, *, cause: str = "", reason: str = "", **rest: Any) -> None:
        super()._turn(state, cause=cause, **rest)


class TellsTheOldState(Pass):
    """Tells the end of a launch as if nobody had asked it to end."""

    def _event(self, subject: str, before: str, *rest: Any, **more: Any) -> RunEvent:
        return super()._event(subject, "running" if before == "stopping" else before, *rest, **more)


class IgnoresExits(Pass):
    """Does not notice that a launch has ended."""

    def _settle_exited(self, job: Job, instance: Instance) -> None:
        return


TWINS = [
    UnknownIsGone, StartsTheLostAgain, AdoptsNothing, LetsTheGangStand, DoesNotWaitForTheOld, ForgetsTooEarly,
    NeverStops, KeepsTheOldSpec, SweepsTheLiving, ReusesNames, GivesNoReason, IgnoresExits, TellsTheOldState,
]  # fmt: skip


@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.__name__)
def test_histories_catch_a_broken_twin(twin: type[Pass], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decide, "Pass", twin)
    with pytest.raises(Broken):
        play_all(range(HISTORIES), STEPS, reconcile)


class ScalesTheHealthyAway(Pass):
    """Stops what is above the number, whoever answers."""

    def _scale_down(self) -> None:
        for job in self._live():
            if job.replica >= self.run.template.replicas:
                self._ask_stop(job, "scaled down")


class CutsRequests(Pass):
    """Tells a replica to end as soon as another one stands in for it."""

    def _has_drained(self, job: Job) -> bool:
        return True


class RollsAllAtOnce(Pass):
    """Replaces every replica without seeing whether the first one works."""

    def _may_roll(self, replica: int, stale: list[Job]) -> bool:
        return True


class BelievesTheHung(Pass):
    """Keeps a replica that says it is well."""

    def __init__(self, run: Run, jobs: Sequence[Job], observed: Observed, now: datetime) -> None:
        super().__init__(run, jobs, replace(observed, sick={}), now)


class TriesInVain(Pass):
    """Does not heed what a launch said it ended of."""

    def __init__(self, run: Run, jobs: Sequence[Job], observed: Observed, now: datetime) -> None:
        super().__init__(run, jobs, replace(observed, words={}), now)


class PromotesAtOnce(Pass):
    """Takes a canary for a rollout."""

    def __init__(self, run: Run, jobs: Sequence[Job], observed: Observed, now: datetime) -> None:
        super().__init__(replace(run, template=replace(run.template, canary=0)), jobs, observed, now)


class NeverPutsBack(Pass):
    """Leaves a spec that does not work in place, whatever the spec says."""

    def __init__(self, run: Run, jobs: Sequence[Job], observed: Observed, now: datetime) -> None:
        super().__init__(replace(run, template=replace(run.template, rollback=False)), jobs, observed, now)


CASES = [
    (
        NeverPutsBack,
        lambda: test_decide.test_a_rollout_that_fails_is_rolled_back_where_the_spec_says_so(False),
    ),
    (PromotesAtOnce, test_decide.test_without_room_a_canary_takes_nothing_away),
    (RollsAllAtOnce, lambda: test_decide.test_a_spec_that_does_not_work_costs_one_replica(True)),
    (BelievesTheHung, test_decide.test_a_hung_replica_is_replaced_and_every_next_time_later),
    (
        TriesInVain,
        lambda: test_decide.test_what_output_says_an_engine_ended_of_is_told_and_not_tried_again_in_vain(
            "config", 1
        ),
    ),
    (ScalesTheHealthyAway, test_decide.test_the_last_replica_that_answers_is_not_scaled_away),
    (
        CutsRequests,
        test_decide.test_a_replica_that_hands_over_leaves_the_routes_and_ends_its_requests_first,
    ),
]


@pytest.mark.parametrize(("twin", "test"), CASES, ids=[twin.__name__ for twin, _ in CASES])
def test_a_case_catches_a_broken_twin(
    twin: type[Pass], test: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decide, "Pass", twin)
    with pytest.raises((AssertionError, KeyError, StopIteration)):
        test()


def test_nodes_that_start_all_at_once_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decide.Pass, "_has_its_turn", lambda self, job: True)
    with pytest.raises(AssertionError):
        test_decide.test_nodes_start_in_the_order_that_was_asked_for("master-first", {0}, {1, 2})


def test_an_end_of_the_master_that_nobody_heeds_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        decide.Pass, "_is_done", lambda self, attempt: all(j.state is JobState.SUCCEEDED for j in attempt)
    )
    with pytest.raises(AssertionError):
        test_decide.test_a_task_that_ends_with_its_master_stops_the_others_and_has_succeeded()


def test_a_run_that_yields_to_nobody_is_caught(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Claim, "goes_before", lambda self, priority, places, now: False)
    with open_store(f"sqlite:///{tmp_path}/state.db") as store, pytest.raises(AssertionError):
        test_queue.test_who_waits_is_told_for_whom(store, tmp_path)
