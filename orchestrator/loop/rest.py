"""Runs at rest: what was decided of them holds until something about them changes, or their time comes.

Deciding is most of a pass over many runs, and of nearly all of them nothing has changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from datetime import datetime

from orchestrator.backend import Instance, Phase
from orchestrator.frozen import frozen
from orchestrator.reconcile import Job, Run, Wanted
from orchestrator.reconcile.steps import Observed
from orchestrator.reconcile.values import Loaded


@frozen
class Rest:
    """A run of which a pass wanted nothing, with all that it was decided from."""

    run: Run
    jobs: Sequence[Job]
    instances: Mapping[str, Sequence[Instance] | None]
    wake_at: datetime | None
    loaded: Mapping[str, Loaded] = field(default_factory=dict)

    def holds(self, run: Run, jobs: Sequence[Job], observed: Observed, now: datetime) -> bool:
        """Return whether nothing that it was decided from is another by now."""
        return (
            (self.wake_at is None or now < self.wake_at)
            and self.run == run
            and self.jobs == tuple(jobs)
            and self.instances == observed.instances
            and self.loaded == observed.loaded
            and is_quiet(run, jobs, observed)
        )


def is_quiet(run: Run, jobs: Sequence[Job], observed: Observed) -> bool:
    """Return whether a run, its jobs and its instances are all that a decision about it depends on.

    Everything of it runs, and nothing is under way, asked to stop, sick, or waits for another.
    """
    if run.wanted is not Wanted.RUN or observed.sick or observed.ahead or observed.ask_again:
        return False
    names = {job.name for job in jobs}
    for seen in observed.instances.values():
        if seen is None or any(instance.phase is not Phase.RUNNING for instance in seen):
            return False
        names.update(instance.name for instance in seen)
    if not observed.busy.isdisjoint(names):
        return False
    return not any(job.stop_asked_at and not job.state.is_final for job in jobs)
