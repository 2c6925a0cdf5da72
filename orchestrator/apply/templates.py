"""What of a spec goes into the template of its run, and what may change in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from orchestrator.apply.adapters import loadable
from orchestrator.backend import Can, Launch, Scaling
from orchestrator.engines.job import Adapters, relisted
from orchestrator.planner.ask import Work
from orchestrator.reconcile import Retry, Run, Template
from orchestrator.reconcile.serving import adapters_of, least_grace_s, metrics_of
from orchestrator.spec.models import DevEnvironment, Rollout, Service, Task
from orchestrator.spec.parts import IN_PLACE, Change

if TYPE_CHECKING:
    from orchestrator.engines.job import Metrics

NO_LIMIT_S = 10 * 365 * 86_400.0
"""For how long a container is given that has no limit to stop in."""


def updated(
    template: Template,
    spec: Work,
    *,
    least_grace_s: float = 0.0,
    kept: int = 0,
    metrics: Metrics | None = None,
    takes: Adapters | None = None,
) -> Template:
    """Return ``template`` with what a spec may change in place.

    An engine that drains its requests is given at least as long as it takes for that. Of a service
    that scales, ``kept`` replicas are kept, as far as the spec's range goes: what the load took
    before, it takes after. ``metrics`` are what its engine tells of its load, for places that scale
    by it themselves. ``takes`` is how its engine takes adapters while it runs: those that run load and
    drop what changed, those that start begin with all of them.
    """
    launch: Launch = replace(template.launch, stop_grace_s=max(least_grace_s, _grace_s(spec)))
    follower = template.follower and replace(template.follower, stop_grace_s=launch.stop_grace_s)
    adapters = template.adapters
    if takes and isinstance(spec, Service) and spec.model:
        adapters = loadable(spec.model.adapters, bare=launch.image is None)
        named = [f"{adapter.name}={adapter.path}" for adapter in adapters]
        launch = replace(launch, command=relisted(launch.command, takes.flag, named))
        follower = follower and replace(follower, command=relisted(follower.command, takes.flag, named))
    replicas = replicas_kept(spec, kept) if isinstance(spec, Service) else 1
    rollout = spec.rollout if isinstance(spec, Service) else Rollout()
    return replace(
        template, launch=launch, follower=follower, adapters=adapters, replicas=replicas,
        canary=rollout.weight or 0,
        rollback=rollout.rollback == "auto", retry=_retry(spec),
        max_duration_s=spec.max_duration, idle_s=spec.idle_duration,
        order=spec.startup_order if isinstance(spec, Task) else "any",
        ends_with_master=isinstance(spec, Task) and spec.stop_criteria == "master-done",
        scaling=_scaling(spec, metrics) if template.scales else None,
    )  # fmt: skip


def in_place(run: Run, spec: Work, *, scales: bool) -> Template:
    """Return the template of a run with what ``spec`` changes of it in place.

    ``scales`` says whether its places scale with controllers of their own by now.
    """
    return updated(
        replace(run.template, scales=scales), spec,
        least_grace_s=least_grace_s(run.plan), kept=run.template.replicas,
        metrics=metrics_of(run.plan), takes=adapters_of(run.plan),
    )  # fmt: skip


def all_scale(backends: Sequence[str], places: Mapping[str, frozenset[Can]]) -> bool:
    """Return whether each of these places scales with controllers of its own."""
    return all(Can.SCALES in places.get(name, ()) for name in backends)


def scales_now(template: Template, places: Mapping[str, frozenset[Can]]) -> bool:
    """Return whether the places of a run scale by themselves by now; as before where one is not known."""
    known = all(places.get(name) for name in template.backends)
    return all_scale(template.backends, places) if known else template.scales


def rescaled(run: Run, spec: Work, places: Mapping[str, frozenset[Can]]) -> tuple[Change, ...]:
    """Return who scales a service where that is another than before, which no field of its spec says."""
    if not isinstance(spec, Service) or spec.scaling is None:
        return ()
    by_place = _scaling(spec, metrics_of(run.plan)) if scales_now(run.template, places) else None
    place = ", ".join(run.template.backends)
    before, now = (f"by {place}" if each else "by the gateway" for each in (run.template.scaling, by_place))
    return () if before == now else (Change("scaling", before, now, IN_PLACE),)


def _scaling(spec: Work, metrics: Metrics | None) -> Scaling | None:
    """Return how a service scales by what its engine tells; None where it does not, or cannot.

    Requests a second are the gateway's to count, and a histogram is no number of a replica.
    """
    if not isinstance(spec, Service) or spec.scaling is None:
        return None
    series: Sequence[str] = ()
    if spec.scaling.metric in ("queue", "running", "kv_cache"):
        series = getattr(metrics, spec.scaling.metric, ())
    if not series:
        return None
    least = spec.replicas.min or 0
    return Scaling(least, spec.replicas.max or least, series[0], float(spec.scaling.target))


def replicas_kept(spec: Service, kept: int) -> int:
    """Return how many replicas there are, before the load has its say.

    >>> service = Service.model_validate({"name": "chat", "replicas": "1..4", "port": 80})
    >>> replicas_kept(service, 0), replicas_kept(service, 3), replicas_kept(service, 9)
    (1, 3, 4)
    """
    least = spec.replicas.min or 0
    return max(least, min(kept, spec.replicas.max or least))


def _grace_s(spec: Work) -> float:
    return NO_LIMIT_S if spec.stop_duration is None else float(spec.stop_duration)


def _retry(spec: Work) -> Retry:
    """Return when an attempt is followed by another; what is kept up is, unless the spec says when."""
    if spec.retry:
        return Retry(frozenset(spec.retry.on_events), spec.retry.duration)
    if isinstance(spec, Service | DevEnvironment):
        return Retry(frozenset({"no-capacity", "interruption", "error"}), attempts=3)
    return Retry()
