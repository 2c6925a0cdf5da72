"""What the gateway tells of itself: Prometheus' text format, and one JSON line for each request."""

from __future__ import annotations

import itertools
import json
import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from orchestrator.engines.exposition import EngineLoad
from orchestrator.frozen import frozen
from orchestrator.gateway.routes import Replica
from orchestrator.gateway.usage import Account, Tokens

if TYPE_CHECKING:
    from orchestrator.gateway.server.gateway import Desk


@frozen
class Told:
    """One request that is over; never what it said or was answered."""

    key: str
    service: str
    model: str
    method: str
    path: str
    client: str
    status: int
    duration_s: float
    first_byte_s: float
    """Not a number where nothing was answered by a replica."""
    tokens: Tokens | None

    def line(self) -> str:
        """Return the request as a line of an access log.

        >>> Told("ci", "chat", "llama", "POST", "/v1/completions", "::1", 200, 1.25, 0.5, None).line()[:46]
        '{"key": "ci", "service": "chat", "model": "lla'
        """
        first = None if math.isnan(self.first_byte_s) else round(self.first_byte_s, 6)
        told = {
            "key": self.key, "service": self.service, "model": self.model, "method": self.method,
            "path": self.path, "client": self.client, "status": self.status,
            "duration_s": round(self.duration_s, 6), "first_byte_s": first,
            "prompt_tokens": self.tokens.prompt if self.tokens else None,
            "output_tokens": self.tokens.output if self.tokens else None,
        }  # fmt: skip
        return json.dumps(told)


WAITS_S = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0, 600.0)
"""Upper bounds of the buckets for waiting: from a replica that is idle to one that has to be started."""
TOKENS_S = (0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 2.0)
"""The same for the time between two tokens."""


class Histogram:
    """Counts values in buckets; cheap enough for every request."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count one value.

        >>> waits = Histogram((1.0, 2.0))
        >>> for value in (0.5, 1.0, 1.5, 9.0):
        ...     waits.add(value)
        >>> waits.counts
        [2, 1, 1]
        """
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


def exposition(
    desks: Mapping[str, Desk],
    accounts: Mapping[tuple[str, str], Account],
    refused: Mapping[int, int],
    engines: Mapping[str, Mapping[Replica, EngineLoad]],
) -> str:
    """Return the counters in Prometheus' text format; labels are names from the record alone."""
    own = sorted(desks.items())
    sums = sorted(accounts.items())
    by_key = [(f'key="{key}",service="{service}"', account) for (key, service), account in sums]
    lines = [
        *_family("waiting", "gauge", "Requests that wait for a replica.",
                 ((f'service="{name}"', len(desk.waiting)) for name, desk in own)),
        *_family("outstanding", "gauge", "Requests that are with a replica.",
                 ((f'service="{name}"', sum(lane.outstanding for lane in desk.lanes)) for name, desk in own)),
        *_family("replicas", "gauge", "Replicas that answer.",
                 ((f'service="{name}"', len(desk.lanes)) for name, desk in own)),
        *_family("arrived_total", "counter", "Requests that were let in.",
                 ((f'service="{name}"', desk.arrived) for name, desk in own)),
        *_family("requests_total", "counter", "Requests that are over.",
                 ((labels, account.requests) for labels, account in by_key)),
        *_family("failed_total", "counter", "Requests that ended with an error.",
                 ((labels, account.failed) for labels, account in by_key)),
        *_family("untold_total", "counter", "Requests whose answer did not say what they used.",
                 ((labels, account.untold) for labels, account in by_key)),
        *_family("prompt_tokens_total", "counter", "Tokens of prompts.",
                 ((labels, account.prompt_tokens) for labels, account in by_key)),
        *_family("output_tokens_total", "counter", "Tokens of answers.",
                 ((labels, account.output_tokens) for labels, account in by_key)),
        *_family("refused_total", "counter", "Requests that reached no service.",
                 ((f'status="{status}"', count) for status, count in sorted(refused.items()))),
        *_family("replicas_wanted", "gauge", "Replicas that a service that scales is to have.",
                 ((f'service="{name}"', desk.service.scaled.replicas) for name, desk in own
                  if desk.service.scaled)),
        *_family("replicas_held", "gauge", "Replicas that are held, ready or not.",
                 ((f'service="{name}"', desk.service.held) for name, desk in own)),
        *_family("usd_per_hour", "gauge", "What the replicas that are held cost.",
                 ((f'service="{name}"', desk.service.held * desk.service.price_usd_hour)
                  for name, desk in own)),
        *_family("cost_usd_total", "counter", "What the replicas have cost since the gateway started.",
                 ((f'service="{name}"', round(desk.cost_usd, 9)) for name, desk in own)),
        *_family("usd_per_million_tokens", "gauge", "That cost over the tokens of answers since then.",
                 ((f'service="{name}"', round(1e6 * desk.cost_usd / output, 6)) for name, desk in own
                  if (output := sum(a.output_tokens for (_, of), a in sums if of == name)))),
        *_histogram("queue_seconds", "Time until a replica was found for a request.",
                    ((name, desk.queue_s) for name, desk in own)),
        *_histogram("ttft_seconds", "Time to the first token of a stream, with all that it waited.",
                    ((name, desk.ttft_s) for name, desk in own)),
        *_histogram("inter_token_seconds", "Mean time between the tokens of one stream that says how many.",
                    ((name, desk.token_s) for name, desk in own)),
        *_engine_family("queue", "Requests that wait in the engine.", engines, lambda load: load.queue),
        *_engine_family("running", "Requests that the engine works on.", engines, lambda load: load.running),
        *_engine_family("kv_cache", "Fraction of the KV cache in use.", engines, lambda load: load.kv_cache),
    ]  # fmt: skip
    return "".join(lines)


def _histogram(name: str, text: str, found: Iterable[tuple[str, Histogram]]) -> list[str]:
    full = f"modelyard_gateway_{name}"
    lines = [f"# HELP {full} {text}\n", f"# TYPE {full} histogram\n"]
    for service, histogram in found:
        sums = list(itertools.accumulate(histogram.counts))
        for bound, count in zip((*map(str, histogram.bounds), "+Inf"), sums, strict=True):
            lines.append(f'{full}_bucket{{service="{service}",le="{bound}"}} {count}\n')
        lines.append(f'{full}_sum{{service="{service}"}} {histogram.total:.9g}\n')
        lines.append(f'{full}_count{{service="{service}"}} {sums[-1]}\n')
    return lines


def _engine_family(
    name: str,
    text: str,
    engines: Mapping[str, Mapping[Replica, EngineLoad]],
    value: Callable[[EngineLoad], float | None],
) -> list[str]:
    """Return what engines tell, each under its service and its replica's number.

    While one attempt of a replica replaces another, the newer one speaks for it.
    """
    samples = {
        f'service="{service}",replica="{replica.name.rsplit("-", 3)[1]}"': told
        for service, loads in sorted(engines.items())
        for replica, load in sorted(loads.items(), key=lambda item: item[0].name)
        if (told := value(load)) is not None
    }
    return _family(f"engine_{name}", "gauge", text, samples.items())


def _family(name: str, kind: str, text: str, samples: Iterable[tuple[str, float]]) -> list[str]:
    full = f"modelyard_gateway_{name}"
    head = [f"# HELP {full} {text}\n", f"# TYPE {full} {kind}\n"]
    return head + [f"{full}{{{labels}}} {value}\n" for labels, value in samples]
