"""A plan as Markdown, for a comment on the pull request that it belongs to."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from orchestrator.apply import Deletion, FleetPlan, Plan, RunPlan
from orchestrator.apply.consent import losses
from orchestrator.apply.planfile import reason_of
from orchestrator.apply.prices import cost_of
from orchestrator.errors import ModelyardError
from orchestrator.render.plans import cost_text, count_text, holds, plan_text, price_text, total_text


def plan_markdown(plans: Sequence[Plan]) -> str:
    """Return a table of what would be done and why, the whole plan folded below.

    Above it stand what is deleted, what apply has to be allowed, and the values that nobody gave.
    """
    return "\n".join(_lines(plans))


def error_markdown(error: ModelyardError) -> str:
    """Return an error in full, where a plan would have stood."""
    return "\n".join(["### Modelyard: no plan", "", *_fenced(str(error))])


def _lines(plans: Sequence[Plan]) -> Iterator[str]:
    yield f"### Modelyard: {count_text(plans)}{total_text(plans)}"
    yield ""
    changed = [plan for plan in plans if plan.action != "unchanged"]
    lost = [plan for plan in changed if isinstance(plan, Deletion)]
    if lost:
        yield f"> **Deletes** {', '.join(f'{plan.type} `{plan.name}`' for plan in lost)}"
        yield ""
    for loss in losses(plans):
        yield f"> **Needs** `{loss.option}`: {loss.what}"
        yield ""
    for problem in (p for plan in plans if isinstance(plan, RunPlan | FleetPlan) for p in plan.problems):
        yield f"> **Lacks** {problem.what} (`{problem.at}`)"
        yield ""
    if changed:
        fleets = {plan.name for plan in plans if plan.type == "fleet"}
        yield "| name | type | action | why | where | cost |"
        yield "|---|---|---|---|---|---|"
        yield from ("| " + " | ".join(map(_cell, _row(plan, fleets))) + " |" for plan in changed)
        yield ""
    yield "<details><summary>The whole plan</summary>"
    yield ""
    yield from _fenced(plan_text(plans))
    yield ""
    yield "</details>"


def _fenced(text: str) -> Iterator[str]:
    fence = "`" * max(3, _longest_fence(text) + 1)
    yield f"{fence}text"
    yield text
    yield fence


def _row(plan: Plan, fleets: Collection[str]) -> tuple[str, ...]:
    free = price_text(0) if isinstance(plan, RunPlan) and plan.placed else ""
    costs = cost_text(cost_of(plan, fleets=fleets)) or free
    return f"`{plan.name}`", plan.type, f"**{plan.action}**", reason_of(plan), _place(plan), costs


def _place(plan: Plan) -> str:
    if not isinstance(plan, RunPlan):
        return plan.backend
    chosen = next((c for c in plan.placed.choices if c.chosen), None) if plan.placed else None
    if chosen is None:
        return ""
    offer = chosen.offer
    where = f"{offer.backend} {offer.instance_type} ({holds(offer, chosen.count)})"
    return where + (f" × {chosen.nodes} nodes" if chosen.nodes > 1 else "")


def _cell(text: str) -> str:
    """Return text that cannot end its cell."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def _longest_fence(text: str) -> int:
    """Return how many backquotes stand together in ``text``, so that its fence can be longer.

    >>> _longest_fence("a ``b`` c"), _longest_fence("plain")
    (2, 0)
    """
    longest = run = 0
    for char in text:
        run = run + 1 if char == "`" else 0
        longest = max(longest, run)
    return longest
