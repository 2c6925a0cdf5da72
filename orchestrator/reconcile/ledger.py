"""What a pass over a run writes down: jobs as they will be, each change with its event."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Generic, TypeVar

from orchestrator.reconcile.steps import Record, Turn
from orchestrator.reconcile.values import Job, Run, RunEvent, RunState

Act = TypeVar("Act")


class Ledger(Generic[Act]):
    """The working state of one pass: the run and its jobs as they will be, actions as they come.

    ``Act`` are the actions that the pass may ask for; writing down is among them.
    """

    def __init__(self, run: Run, jobs: Sequence[Job], now: datetime) -> None:
        self.run = run
        self.jobs = {job.name: job for job in jobs}
        self.now = now
        self.actions: list[Act | Record | Turn] = []
        self.wake_at: datetime | None = None

    def _put(self, job: Job, cause: str | None) -> None:
        """Write a job down, with an event where there is a cause to tell."""
        before = self.jobs.get(job.name)
        self.jobs[job.name] = job
        event = None
        if cause is not None:
            was = word_of(before) if before else ""
            event = self._event(job.name, was, word_of(job), cause, job.message)
        self.actions.append(Record(job, event))

    def _turn(
        self,
        state: RunState,
        *,
        cause: str = "",
        reason: str = "",
        message: str = "",
        ready: int = 0,
        answered: bool = False,
    ) -> None:
        """Write the run down where anything of it is new, with an event where its state or reason is.

        That a reason is over is no event of its own.

        ``message`` is what the event says beside its cause, where no launch of the run says it;
        ``ready`` counts the replicas that answer, of whatever spec; ``answered`` says that one of
        the present spec does.
        """
        run = self.run
        fresh = replace(run, state=state, reason=reason, ready=ready, was_ready=run.was_ready or answered)
        if fresh == run:
            return
        self.run = fresh
        changed = state is not run.state or reason not in ("", run.reason)
        event = (
            self._event(run.name, run.state.value, state.value, cause or reason, message) if changed else None
        )
        self.actions.append(Turn(fresh, event))

    def _event(self, subject: str, before: str, after: str, cause: str, message: str = "") -> RunEvent:
        return RunEvent(
            self.run.id, self.run.name, self.now, subject, before, after, cause,
            action=f"{subject}:{after}", message=message,
        )  # fmt: skip


def word_of(job: Job) -> str:
    """Return the state of a job as events tell it: one that was asked to end is stopping until it has."""
    return "stopping" if job.stop_asked_at and not job.state.is_final else job.state.value
