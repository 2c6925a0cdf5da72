"""Services as the gateway sees them, as columns or JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from orchestrator.render.table import table, to_json

if TYPE_CHECKING:
    from orchestrator.gateway.top import ServiceNow

HEADER = ("SERVICE", "REPLICAS", "WAITING", "RUNNING", "REQ/S", "TOKENS/S", "TTFT", "$/H", "$/M TOKENS")


def services_text(found: Sequence[ServiceNow]) -> str:
    """Return one line per service; ready of held replicas, and costs at the present rate."""
    return table(HEADER, [_row(each) for each in found]) if found else "no service"


def _row(each: ServiceNow) -> list[str]:
    price = f"{each.usd_hour / each.tokens_s / 3600 * 1e6:.2f}" if each.tokens_s and each.usd_hour else "-"
    return [
        each.name,
        f"{each.ready}/{each.held}",
        str(each.waiting),
        str(each.running),
        f"{each.requests_s:.1f}",
        f"{each.tokens_s:.0f}",
        "-" if each.ttft_s is None else f"{each.ttft_s:.2f}s",
        f"{each.usd_hour:.2f}",
        price,
    ]


def services_json(found: Sequence[ServiceNow]) -> str:
    """Return the services under ``modelyard/top/v1``."""
    return to_json("modelyard/top/v1", {"services": [asdict(each) for each in found]})
