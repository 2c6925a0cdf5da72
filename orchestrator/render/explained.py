"""A plan's arithmetic, and what would admit the machines that were refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from orchestrator.apply import RunPlan
from orchestrator.errors import WhyNot
from orchestrator.planner.explain import Line, explain, explain_tuning
from orchestrator.render.table import columns, plural
from orchestrator.spec.models import Service
from orchestrator.units import format_usd

SHOWN = 12
"""Kinds of machine a person is shown; the rest is counted."""


def explained_text(plan: RunPlan) -> Iterator[str]:
    """Yield the arithmetic of a plan's served model, then the table of what was refused."""
    lines = _lines(plan)
    if lines:
        yield "  arithmetic"
        yield from columns([[line.what, line.value, line.how] for line in lines], indent="    ")
    why_not = plan.placed.why_not() if plan.placed else ()
    if why_not:
        yield "  why not"
        yield from _table(why_not)


def why_not_text(lines: Sequence[WhyNot]) -> str:
    """Return the table of what was refused, for an error that stands below it.

    >>> print(why_not_text([WhyNot("L4-24GB", 1, 2, 0.8, "too little device memory", "precision fp8")]))
    why not
        1 × L4-24GB  2 offers from $0.8/h  too little device memory  would do with precision fp8
    """
    return "\n".join(["why not", *_table(lines)])


def _table(lines: Sequence[WhyNot]) -> Iterator[str]:
    yield from columns([_cells(line) for line in lines[:SHOWN]], indent="    ")
    if (more := len(lines) - SHOWN) > 0:
        yield f"    and {plural(more, 'more kind')} of machine"


def _cells(line: WhyNot) -> list[str]:
    offers = f"{plural(line.offers, 'offer')} from ${format_usd(line.price_usd_hour)}/h"
    helps = f"would do with {line.change}" if line.change else ""
    return [line.machines, offers, line.reason, helps]


def explained_object(plan: RunPlan) -> dict[str, object]:
    """Return ``explained`` and ``why_not`` of a plan as JSON has them."""
    why_not = plan.placed.why_not() if plan.placed else ()
    return {
        "explained": [{"what": each.what, "value": each.value, "how": each.how} for each in _lines(plan)],
        "why_not": [
            {
                "accelerator": each.accelerator, "count": each.count, "nodes": each.nodes,
                "offers": each.offers, "price_usd_hour": each.price_usd_hour,
                "reason": each.reason, "change": each.change,
            }
            for each in why_not
        ],
    }  # fmt: skip


def _lines(plan: RunPlan) -> tuple[Line, ...]:
    if plan.placed is None:
        return ()
    best = plan.placed.choices[0]
    if plan.trained:
        return explain_tuning(plan.trained, best)
    if plan.served and isinstance(plan.spec, Service):
        return explain(plan.served, plan.spec.traffic, best)
    return ()
