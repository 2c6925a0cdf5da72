"""The replicas of services: what their probes say, whether they still work, and which adapters they serve."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import TYPE_CHECKING

from orchestrator.backend import Instance, Phase
from orchestrator.loop.adapters import Tender
from orchestrator.loop.probes import Prober
from orchestrator.loop.pulse import Pulse
from orchestrator.reconcile import Job, JobState, Run, Wanted
from orchestrator.reconcile.serving import adapters_of, metrics_of
from orchestrator.reconcile.values import Adapter, Loaded

if TYPE_CHECKING:  # it imports SQLAlchemy, which a plan on a fresh machine does without
    from orchestrator.store.records import Store

Found = Mapping[str, Sequence[Instance] | None]
"""The instances of a run by backend; None where a backend does not answer."""


class Replicas:
    """Asks the replicas of services what no backend knows of them.

    Args:
        store: The record.
        pool: Where questions wait for their answers.
        wake: Called when an answer changes something.
    """

    def __init__(self, store: Store, pool: Executor, wake: Callable[[], None]) -> None:
        self._store = store
        self._prober = Prober(pool, time.monotonic, wake)
        self._pulse = Pulse(pool, time.monotonic, wake)
        self._tender = Tender(pool, time.monotonic, wake)
        self._active: Sequence[Run] = ()

    def begin(self, active: Sequence[Run]) -> None:
        """Take up the runs of a pass: all that are not over, those that others drive too."""
        self._active = active

    def forget(self, alive: Collection[str]) -> None:
        """Keep nothing of launches that are over."""
        for each in (self._prober, self._pulse, self._tender):
            each.forget(alive)

    def next_s(self) -> Iterator[float]:
        """Yield how soon something is to be asked again."""
        yield from (s for e in (self._prober, self._pulse, self._tender) if (s := e.next_s()) is not None)

    def probed(
        self, seen: Sequence[Instance] | None, run: Run, jobs: Mapping[str, Job]
    ) -> Sequence[Instance] | None:
        """Return instances with what their probes say, where their backend does not probe."""
        return None if seen is None else [self._asked(i, run, jobs.get(i.name)) for i in seen]

    def _asked(self, instance: Instance, run: Run, job: Job | None) -> Instance:
        """Ask an instance what its own spec asks: during a rollout that may be an older one."""
        if instance.phase is not Phase.RUNNING or instance.ready is not None:
            return instance
        was_ready = job is not None and job.state is JobState.READY
        launch = run.made_from(job.spec_hash if job else run.spec_hash, instance.node)
        if launch is None:  # what it is to be asked is not on record any more, how it answered is
            return replace(instance, ready=was_ready)
        if not (probes := launch.probes()):
            return instance
        if instance.silent_since is not None:
            self._prober.excuse(instance.name)  # the way to it is cut: what it answers, nobody hears
            return instance
        return replace(instance, ready=self._prober.is_ready(instance, probes, before=was_ready))

    def sick(self, run: Run, jobs: Sequence[Job], found: Found) -> Mapping[str, str]:
        """Return which replicas that were ready do their work no longer, and what shows it."""
        ready = {job.name for job in jobs if job.ready_at and may_tell(job)}
        if run.type != "service" or run.wanted is not Wanted.RUN or not ready:
            return {}
        metrics, ports = metrics_of(run.plan), run.template.launch.ports
        sick: dict[str, str] = {}
        heard = (i for seen in found.values() for i in seen or () if i.silent_since is None)
        for instance in (i for i in heard if i.name in ready):
            why = self._prober.silence(instance.name)
            if why is None and metrics and metrics.steps and ports and not instance.node:
                why = self._pulse.sick(instance, metrics, ports[0].container)
            if why is not None:
                sick[instance.name] = why
        return sick

    def troubles(self, jobs: Sequence[Job]) -> Mapping[str, str]:
        """Return what launches that were never ready said last to their probes."""
        young = (job.name for job in jobs if job.ready_at is None and not job.state.is_final)
        return {name: said for name in young if (said := self._prober.trouble(name))}

    def loaded(self, run: Run, jobs: Sequence[Job], found: Found) -> Mapping[str, Loaded]:
        """Return the adapters that each replica serves, where its engine takes them while it runs."""
        takes, ports = adapters_of(run.plan), run.template.launch.ports
        if takes is None or not ports or run.type != "service" or run.wanted is not Wanted.RUN:
            return {}
        wanted = self._adapters(run)
        ready = {
            job.name: job.adapters
            for job in jobs
            if job.ready_at and not job.node and may_tell(job) and job.spec_hash == run.spec_hash
        }
        loaded = {name: last for name in ready if (last := self._tender.last(name)) is not None}
        for instance in (i for seen in found.values() for i in seen or () if i.name in ready):
            if instance.phase is Phase.RUNNING and instance.ready is not False:
                told = self._tender.look(instance, takes, wanted, ready[instance.name], ports[0].container)
                if told is not None:
                    loaded[instance.name] = told
        return loaded

    def _adapters(self, run: Run) -> tuple[Adapter, ...]:
        """Return what a run's replicas are to serve: its own adapters, and those of services based on it."""
        own = {adapter.name: adapter for adapter in run.template.adapters}
        for other in sorted(self._active, key=lambda each: (each.created_at or each.since, each.name)):
            if other.template.base == run.name and other.wanted is Wanted.RUN:
                own |= {a.name: a for a in other.template.adapters if a.name not in own}
        return tuple(own.values())

    def lacks(self, run: Run) -> tuple[str, bool]:
        """Return what the base of a service does not do for it, and whether it has none that runs.

        The first is "" where the base serves all of its adapters.
        """
        base = next((each for each in self._active if each.name == run.template.base), None)
        if base is None or base.type != "service" or base.wanted is not Wanted.RUN:
            return f"service {run.template.base} does not run: apply it", True
        return self._unserved(run, base), False

    def _unserved(self, run: Run, base: Run) -> str:
        jobs = self._store.jobs(base.id)
        serving = [
            job for job in jobs if job.state is JobState.READY and not job.stop_asked_at and not job.node
        ]
        if base.template.replicas and not serving:
            return f"service {base.name} is not ready"
        for adapter in run.template.adapters if serving else ():
            count = sum(adapter.told in job.adapters for job in serving)
            if count < len(serving):
                return f"{count} of {len(serving)} replicas of {base.name} serve adapter {adapter.name}"
        return ""


def may_tell(job: Job) -> bool:
    """Return whether the end of a job would be its own."""
    return not job.state.is_final and job.stop_asked_at is None
