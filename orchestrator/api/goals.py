"""How far a run has come, and whether that is where its user wants it."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.api.protocol import Goal
from orchestrator.reconcile import Job, JobState, Run, RunState
from orchestrator.reconcile.values import GIVEN_UP, ROLLING

_UP = frozenset({RunState.RUNNING, RunState.READY})
_ACCEPTED = _UP | {RunState.STARTING}


def has_reached(run: Run, goal: Goal) -> bool:
    """Return whether a run has come to ``goal``, or to an end from which it will not."""
    if goal == "deleted":
        return False
    if run.type == "fleet" and run.reason and goal in ("settled", "accepted"):
        return True  # it asks again for ever, and nobody has to wait for that
    if run.state.is_final or run.reason.startswith("rollout failed") or _is_alone(run):
        return True
    if goal != "ended" and run.reason.startswith(GIVEN_UP):
        return True
    match goal:
        case "accepted":
            return run.state in _ACCEPTED
        case "started":
            return run.state in _UP
        case "ready":
            return run.state is RunState.READY or (run.type == "task" and run.state is RunState.RUNNING)
        case "settled":
            return run.state is RunState.READY
        case _:
            return False


def has_missed(run: Run, goal: Goal) -> bool:
    """Return whether a run came to an end that is not ``goal``.

    A task that succeeded was ready on the way.
    """
    if run.state is RunState.FAILED:
        return True
    if goal == "ended":
        return False
    return (
        run.state is RunState.STOPPED or run.reason.startswith(("rollout failed", GIVEN_UP)) or _is_alone(run)
    )


def _is_alone(run: Run) -> bool:
    """Return whether the service whose replicas a run needs does not run."""
    return bool(run.template.base) and run.state is RunState.QUEUED and bool(run.reason)


def has_arrived(run: Run, jobs: Sequence[Job], goal: Goal) -> bool:
    """Return whether a run has come to ``goal``; to be settled, no launch of an older spec may be left."""
    if not has_reached(run, goal) or goal != "settled" or run.state.is_final:
        return has_reached(run, goal)
    live = [job for job in jobs if not job.state.is_final]
    wanted = {adapter.told for adapter in run.template.adapters}
    return (bool(run.reason) and not run.reason.startswith(ROLLING)) or all(
        job.spec_hash == run.spec_hash
        and not job.stop_asked_at
        and (job.node > 0 or job.state is not JobState.READY or wanted <= set(job.adapters))
        for job in live
    )
