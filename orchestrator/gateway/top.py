"""Services at a glance, from what a gateway tells of itself at two moments."""

from __future__ import annotations

import re
from collections.abc import Mapping

from orchestrator.frozen import frozen

_SAMPLE = re.compile(r"^modelyard_gateway_(\w+)\{([^}\n]*)\} (\S+)$", re.MULTILINE)
_SERVICE = re.compile(r'service="([^"]*)"')

Told = Mapping[tuple[str, str], float]
"""Sums over all labels but the service, by name and service."""


@frozen
class ServiceNow:
    """One service: its replicas, its load, and what it cost; rates are over the time between two looks.

    ``ttft_s`` is the mean of the streams that ended, None where none did.
    """

    name: str
    ready: int
    held: int
    waiting: int
    running: int
    requests_s: float
    tokens_s: float
    ttft_s: float | None
    usd_hour: float


def told_of(text: str) -> Told:
    """Return the samples of a gateway's exposition.

    >>> told_of('modelyard_gateway_failed_total{key="a",service="chat"} 2\\n')
    {('failed_total', 'chat'): 2.0}
    """
    found: dict[tuple[str, str], float] = {}
    for name, labels, value in _SAMPLE.findall(text):
        service = _SERVICE.search(labels)
        if service is not None and not name.endswith("_bucket"):
            key = name, service[1]
            found[key] = found.get(key, 0.0) + float(value)
    return found


def services(before: Told, now: Told, *, over_s: float) -> list[ServiceNow]:
    """Return every service, by name.

    Args:
        before: What the gateway told at the look before.
        now: What it tells.
        over_s: The seconds between the two.
    """

    def more(name: str, service: str) -> float:
        return max(0.0, now.get((name, service), 0.0) - before.get((name, service), 0.0))

    def of(name: str, service: str) -> float:
        return now.get((name, service), 0.0)

    found = []
    for service in sorted(service for name, service in now if name == "replicas"):
        streams = more("ttft_seconds_count", service)
        found.append(
            ServiceNow(
                service,
                int(of("replicas", service)),
                int(of("replicas_held", service)),
                int(of("waiting", service)),
                int(of("outstanding", service)),
                more("arrived_total", service) / over_s,
                more("output_tokens_total", service) / over_s,
                more("ttft_seconds_sum", service) / streams if streams else None,
                of("usd_per_hour", service),
            )
        )
    return found
