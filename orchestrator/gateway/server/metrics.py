"""What the gateway tells of itself: Prometheus' text format, and one JSON line for each request."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.gateway.usage import Account, Tokens

if TYPE_CHECKING:
    from orchestrator.gateway.server.gateway import Desk


@dataclass(frozen=True, slots=True)
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


def exposition(
    desks: Mapping[str, Desk], accounts: Mapping[tuple[str, str], Account], refused: Mapping[int, int]
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
    ]  # fmt: skip
    return "".join(lines)


def _family(name: str, kind: str, text: str, samples: Iterable[tuple[str, int]]) -> list[str]:
    full = f"modelyard_gateway_{name}"
    head = [f"# HELP {full} {text}\n", f"# TYPE {full} {kind}\n"]
    return head + [f"{full}{{{labels}}} {value}\n" for labels, value in samples]
