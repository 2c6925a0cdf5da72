"""Who answers what: services, their models and their ready replicas, as one value from the record."""

from __future__ import annotations

import functools
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from types import MappingProxyType
from typing import Any

from orchestrator.engines.job import Adapters, Metrics
from orchestrator.frozen import frozen
from orchestrator.gateway.limits import Rate
from orchestrator.gateway.scaling import Rule, rule_of
from orchestrator.reconcile.adapters import refused_in
from orchestrator.reconcile.serving import adapters_of, metrics_of, price_of, serving_of
from orchestrator.reconcile.values import Job, JobState, Run, Wanted
from orchestrator.spec.models import Service, spec_of

PATHS_OF_ANY_ENGINE = frozenset({"/v1/chat/completions", "/v1/completions"})
"""What every engine answers that serves a model, where the record does not say more."""

LEAST_OUTSTANDING = 256
"""Requests one replica is given at once at the least: vLLM's ``max_num_seqs`` on most devices
(vLLM 0.33 docs, engine arguments). More wait here, where another replica can still take them."""

FEW_STARTS = 5
"""Of the starts on record how many say how long the next one takes."""

_ESCAPES = re.compile(r"//|\\|%2e|%2f|%5c|%00|/\.{1,2}(?:/|$)", re.IGNORECASE)


@frozen
class Replica:
    """One replica that answers: its job's name, and where it listens.

    ``is_new`` is of the spec on record. ``adapters`` are those it serves by now, None where it serves
    all of its service's from its start.
    """

    name: str
    host: str
    port: int
    is_new: bool = field(default=True, compare=False)
    adapters: frozenset[str] | None = field(default=None, compare=False)


@frozen
class Scaled:
    """How many replicas a service is to have, and by what rule that changes."""

    rule: Rule
    replicas: int


@frozen
class ServiceRoute:
    """One service as the gateway sees it.

    ``models`` maps what clients call a model to what the engine does. ``paths`` are all that may
    be asked for, None where the program is the user's own. A service that is ``over`` will not
    come back by itself, so that nobody waits for it. ``most_outstanding`` requests are with one
    replica at once. ``scaled`` is None where its number of replicas does not follow the load.
    ``metrics`` is where its engine tells its load, None where it does not. ``canary`` percent of its
    requests are for replicas of the newer spec, while there are some of both. ``held`` replicas are
    held for it, ready or not, at ``price_usd_hour`` each. ``adapters`` are those of ``models`` that
    only replicas answer which have loaded them; ``base`` is the service whose replicas these are.
    ``by_prefix`` sends requests that begin alike to the same replica. ``refused`` are adapters that an
    engine did not load, so that nobody waits for one that no replica has. One that ``shares`` has its
    replicas in common with services that other keys open.
    """

    name: str
    replicas: tuple[Replica, ...] = ()
    models: Mapping[str, str] = field(default_factory=dict)
    paths: frozenset[str] | None = None
    auth: bool = True
    rates: tuple[Rate, ...] = ()
    over: bool = False
    most_outstanding: int = LEAST_OUTSTANDING
    created_s: int = 0
    scaled: Scaled | None = None
    metrics: Metrics | None = None
    canary: int = 0
    held: int = 0
    price_usd_hour: float = 0.0
    adapters: frozenset[str] = frozenset()
    base: str = ""
    by_prefix: bool = False
    refused: frozenset[str] = frozenset()
    shares: bool = False

    def model_called(self, name: str) -> str:
        """Return which of its models is called ``name``, by clients or by its engine; "" where none is."""
        if name in self.models:
            return name
        return next((model for model, called in self.models.items() if called == name), "")

    def lacks(self, adapter: str) -> bool:
        """Return whether an engine refused ``adapter``, and no replica has it."""
        return adapter in self.refused and not any(
            each.adapters is None or adapter in each.adapters for each in self.replicas
        )

    def allows(self, path: str) -> bool:
        """Return whether requests to ``path`` are passed on.

        Engines leave routes open beside the ones for requests that stop or change them; only what
        is spelled exactly as on the list passes. A program of the user's own gets any path that
        can be read in one way only.

        >>> ServiceRoute("chat", paths=frozenset({"/v1/completions"})).allows("/v1/load_lora_adapter")
        False
        >>> own = ServiceRoute("web")
        >>> own.allows("/a/b"), own.allows("/a/../b"), own.allows("/a/%2e%2e/b")
        (True, False, False)
        """
        if self.paths is not None:
            return path in self.paths
        return path.startswith("/") and _ESCAPES.search(path) is None


@frozen
class Routes:
    """Every service by name, and which of them serves a model; ``serial`` is the record's."""

    services: Mapping[str, ServiceRoute] = field(default_factory=dict)
    by_model: Mapping[str, str] = field(default_factory=dict)
    serial: int = 0

    @property
    def all_ask(self) -> bool:
        """Whether no service can be used without a key."""
        return all(service.auth for service in self.services.values())

    def of_model(self, model: str) -> ServiceRoute | None:
        """Return the service that serves ``model``, a base model or an adapter."""
        name = self.by_model.get(model)
        return self.services[name] if name is not None else None


def make_routes(services: Sequence[ServiceRoute], *, serial: int = 0) -> Routes:
    """Return the routes to ``services``.

    Where two serve a model of one name, it is the older one's: a service that is added takes
    nothing away from one that works.

    >>> old = ServiceRoute("b", models={"llama": "llama"}, created_s=1)
    >>> new = ServiceRoute("a", models={"llama": "llama", "sql": "sql"}, created_s=2)
    >>> dict(make_routes([new, old]).by_model)
    {'llama': 'b', 'sql': 'a'}
    """
    bases = {service.base for service in services if service.base}
    services = [replace(s, shares=True) if s.base or s.name in bases else s for s in services]
    by_model: dict[str, str] = {}
    for service in sorted(services, key=lambda s: (s.over, s.created_s, s.name)):
        for model in service.models:
            by_model.setdefault(model, service.name)
    ordered = sorted(services, key=lambda s: s.name)
    return Routes(MappingProxyType({s.name: s for s in ordered}), MappingProxyType(by_model), serial)


def routes_of(runs: Sequence[Run], jobs: Sequence[Job], *, serial: int = 0) -> Routes:
    """Return the routes that the record gives: ready replicas that were not asked to stop.

    Args:
        runs: Every run; those that are no services are passed over.
        jobs: The jobs of all of them.
        serial: The record's newest event when they were read.
    """
    of_run: dict[str, list[Job]] = {}
    for job in jobs:
        of_run.setdefault(job.run_id, []).append(job)
    own = [run for run in runs if run.type == "service"]
    services = {run.name: _service(run, of_run.get(run.id, ())) for run in own if not run.template.base}
    bases = {run.name: run for run in own}
    for run in own:
        if run.template.base:
            base = services.get(run.template.base)
            services[run.name] = _based(run, base, bases[base.name].plan if base else "{}")
    return make_routes(list(services.values()), serial=serial)


def _based(run: Run, base: ServiceRoute | None, plan: str) -> ServiceRoute:
    """Return a service that another one's replicas serve: its own name, keys and limits, their replicas."""
    spec, serving = _spec(run.spec), serving_of(plan)
    takes = adapters_of(plan) or Adapters("", "", "")
    name = str(serving.get("model_name") or "")
    models = {a.name: takes.called.format(base=name, name=a.name) for a in run.template.adapters}
    over = run.wanted is not Wanted.RUN or run.state.is_final or base is None or base.over
    return ServiceRoute(
        run.name,
        () if base is None or over else base.replicas,
        models=MappingProxyType(models),
        paths=frozenset() if base is None else base.paths,
        auth=spec.auth,
        rates=tuple(_rates(spec)),
        over=over,
        most_outstanding=LEAST_OUTSTANDING if base is None else base.most_outstanding,
        created_s=int(run.created_at.timestamp()) if run.created_at else 0,
        adapters=frozenset(models),
        base=run.template.base,
        by_prefix=spec.affinity == "prefix",
        refused=frozenset() if base is None else base.refused,
    )


def _service(run: Run, jobs: Sequence[Job]) -> ServiceRoute:
    spec, serving = _spec(run.spec), serving_of(run.plan)
    over = run.wanted is not Wanted.RUN or run.state.is_final
    takes = adapters_of(run.plan)
    replicas = [
        each for job in jobs
        if run.wanted is Wanted.RUN and (each := _replica(run, job, loads=takes is not None))
    ]  # fmt: skip
    return ServiceRoute(
        run.name,
        tuple(replicas),
        models=_models(spec, serving, takes),
        paths=_paths(spec, serving),
        auth=spec.auth,
        rates=tuple(_rates(spec)),
        over=over,
        most_outstanding=max(LEAST_OUTSTANDING, 4 * spec.traffic.concurrency),
        created_s=int(run.created_at.timestamp()) if run.created_at else 0,
        scaled=None if over else _scaled(run, spec, jobs),
        metrics=metrics_of(run.plan),
        canary=run.template.canary if len({r.is_new for r in replicas}) > 1 else 0,
        held=len({(job.replica, job.attempt) for job in jobs if not job.state.is_final}),
        price_usd_hour=price_of(run.plan),
        adapters=frozenset(a.name for a in spec.model.adapters) if spec.model and takes else frozenset(),
        by_prefix=spec.affinity == "prefix",
        refused=refused_in(run.reason),
    )


def _scaled(run: Run, spec: Service, jobs: Sequence[Job]) -> Scaled | None:
    rule = rule_of(spec)
    if rule is None or run.template.scaling is not None:  # its place scales it
        return None
    came_s = [(job.ready_at - job.created_at).total_seconds() for job in jobs if job.ready_at]
    start_s = statistics.median(came_s[-FEW_STARTS:]) if came_s else rule.start_s
    return Scaled(replace(rule, start_s=start_s), run.template.replicas)


def _replica(run: Run, job: Job, *, loads: bool) -> Replica | None:
    """Return where a job answers, None where no new request may go to it."""
    if job.state is not JobState.READY or job.stop_asked_at is not None or job.node != 0:
        return None
    launch = run.made_from(job.spec_hash, job.node) or run.template.launch
    where = job.ports.get(launch.ports[0].container) if launch.ports else None
    if where is None:
        return None
    adapters = frozenset(told.partition("@")[0] for told in job.adapters) if loads else None
    return Replica(job.name, *where, job.spec_hash == run.spec_hash, adapters)


def _models(spec: Service, serving: Mapping[str, Any], takes: Adapters | None) -> Mapping[str, str]:
    if spec.model is None:
        return {}
    name = str(serving.get("model_name") or spec.model.id)
    called = takes.called if takes else "{name}"
    adapters = {a.name: called.format(base=name, name=a.name) for a in spec.model.adapters}
    return MappingProxyType({spec.model.id: name, **adapters})


def _paths(spec: Service, serving: Mapping[str, Any]) -> frozenset[str] | None:
    if spec.model is None or spec.commands:
        return None
    return frozenset(serving.get("routes") or PATHS_OF_ANY_ENGINE)


def _rates(spec: Service) -> list[Rate]:
    return [
        Rate(limit.prefix, float(limit.rps), limit.burst, (limit.key.header or "").lower())
        for limit in spec.rate_limits
    ]


# A spec outlives the many changes of its run's jobs.
@functools.lru_cache(maxsize=1024)
def _spec(text: str) -> Service:
    spec = spec_of(json.loads(text))
    assert isinstance(spec, Service)
    return spec
