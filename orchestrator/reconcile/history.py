"""Which ended launches of a service the record can do without: what follows depends on them no longer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence

from orchestrator.reconcile.retry import failures_in_a_row
from orchestrator.reconcile.steps import ForgetJob
from orchestrator.reconcile.values import Job, Retry

KEPT = 20
"""Attempts at each replica that stay on record, for whoever looks."""
KEPT_FAILURES = 50
"""Failures in a row that stay where only their number counts: pauses grow no longer by then."""
MOST_AT_ONCE = 500
"""What one commit forgets at most: others wait for it."""


def outlived(
    jobs: Sequence[Job],
    *,
    policy: Retry,
    places: int,
    is_current: Callable[[Job], bool],
    is_gone: Callable[[Job], bool],
) -> list[ForgetJob]:
    """Return what to forget of a service's ended launches, oldest first; their events stay.

    The last attempts at each replica stay, and the failures in a row that the next pause, or the
    end of all trying, is counted from. Of a replica of which something may still be there all stay.

    Args:
        jobs: The record of the run's launches.
        policy: How failures are followed.
        places: Between how many places attempts go round.
        is_current: Whether a job is of the present spec.
        is_gone: Whether a job's place says that it is no longer there.
    """
    of_replica: dict[int, dict[int, list[Job]]] = defaultdict(lambda: defaultdict(list))
    for job in jobs:
        of_replica[job.replica][job.attempt].append(job)
    found: list[ForgetJob] = []
    for attempts in of_replica.values():
        if len(attempts) <= KEPT:
            continue
        needed = {*sorted(attempts)[-KEPT:], *_counted(attempts, policy, places, is_current)}
        old = [job for number in sorted(attempts) if number not in needed for job in attempts[number]]
        if all(job.state.is_final and is_gone(job) for job in old):
            found += [ForgetJob(job) for job in old]
    return found[:MOST_AT_ONCE]


def _counted(
    attempts: dict[int, list[Job]], policy: Retry, places: int, is_current: Callable[[Job], bool]
) -> Collection[int]:
    """Return the attempts that failed in a row and are counted."""
    tries = [job for number in sorted(attempts) for job in attempts[number] if is_current(job)]
    row = sorted({job.attempt for job in failures_in_a_row(tries, steady_s=policy.most_s)})
    by_number_alone = places == 1 and policy.duration_s is None
    return row[-KEPT_FAILURES:] if by_number_alone else row
