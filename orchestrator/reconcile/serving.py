"""What ``apply`` wrote down of the engine it chose, for whoever passes requests on or looks after it."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

from orchestrator.engines.job import Adapters, Metrics


# A plan outlives the many changes of its run's jobs.
@functools.lru_cache(maxsize=1024)
def serving_of(plan: str) -> Mapping[str, Any]:
    """Return what a run's plan says of its engine; nothing where the program is the user's own."""
    found = json.loads(plan).get("serving")
    return found if isinstance(found, dict) else {}


@functools.lru_cache(maxsize=1024)
def price_of(plan: str) -> float:
    """Return what the plan counted for one replica of a run, in dollars an hour; 0 where it costs nothing.

    >>> price_of('{"price_usd_hour": 1.5}'), price_of("{}")
    (1.5, 0.0)
    """
    return float(json.loads(plan).get("price_usd_hour") or 0.0)


@functools.lru_cache(maxsize=1024)
def least_grace_s(plan: str) -> float:
    """Return how long a run's engine takes to end in order, at least; 0 where the plan does not say.

    >>> least_grace_s('{"least_grace_s": 45.0}'), least_grace_s("{}")
    (45.0, 0.0)
    """
    return float(json.loads(plan).get("least_grace_s") or 0.0)


@functools.lru_cache(maxsize=1024)
def metrics_of(plan: str) -> Metrics | None:
    """Return where a run's engine tells its load, whichever of it the plan knew; None where it does not.

    >>> metrics_of('{"serving": {"metrics": {"path": "/m", "queue": ["waiting"]}}}').queue
    ('waiting',)
    """
    told = serving_of(plan).get("metrics")
    if not told:
        return None
    queue, running, kv_cache, ttft, steps = (
        tuple(map(str, told.get(name, ()))) for name in ("queue", "running", "kv_cache", "ttft", "steps")
    )
    return Metrics(str(told.get("path", Metrics().path)), queue, running, kv_cache, ttft, steps)


@functools.lru_cache(maxsize=1024)
def adapters_of(plan: str) -> Adapters | None:
    """Return how a run's engine takes adapters while it runs; None where it does not.

    >>> told = '{"load": "/l", "unload": "/u", "flag": "--lora", "slots": 2}'
    >>> adapters_of(f'{{"serving": {{"adapters": {told}}}}}').slots
    2
    """
    told = serving_of(plan).get("adapters")
    if not told:
        return None
    known = {name: told[name] for name in Adapters.__dataclass_fields__ if name in told}
    return Adapters(**known)
