"""What plans cost, and whether one that was saved still does: what was reviewed is what may be spent."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from orchestrator.apply.fleets import FleetPlan
from orchestrator.apply.plans import Plan, RunPlan, VolumePlan
from orchestrator.apply.sets import Deletion
from orchestrator.backend import Offer
from orchestrator.errors import PlanRefused, Unreachable
from orchestrator.frozen import frozen
from orchestrator.planner.plan import Choice
from orchestrator.reconcile import Template, Wanted
from orchestrator.reconcile.serving import price_of
from orchestrator.spec.models import Service, Spec
from orchestrator.units import format_usd

PLAN_AGAIN = "plan again, and review what changed"


@frozen
class Cost:
    """Dollars an hour: of what is up now, and of what would be, with the fewest replicas and the most."""

    now: float = 0.0
    least: float = 0.0
    most: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        """Return both together."""
        now, least, most = self.now + other.now, self.least + other.least, self.most + other.most
        return Cost(*(round(usd_hour, 6) for usd_hour in (now, least, most)))


def cost_of(plan: Plan, *, fleets: Collection[str] = ()) -> Cost:
    """Return what a plan's run or fleet costs, at the price that it was planned at.

    A fleet costs what its machines do, and what goes to one of ``fleets`` costs nothing more. A
    volume has no price.
    """
    if isinstance(plan, VolumePlan):
        return Cost()
    run = plan.run
    is_up = run is not None and run.wanted is Wanted.RUN and not run.state.is_final
    each = _rate_of(run.template, run.plan, fleets) if run and is_up else 0.0
    now = Cost(each * count_of(None, run.template)[0]) if run else Cost()
    if isinstance(plan, Deletion) or (plan.action == "unchanged" and not is_up):
        return now
    if plan.placed and plan.template:  # else it stays at the price that it was placed at
        each = _rate_of(plan.template, plan.serving, fleets)
    template = plan.template or (run.template if run else None)
    least, most = count_of(plan.spec, template) if template else (0, 0)
    return now + Cost(0.0, each * least, each * most)


def cost(plans: Sequence[Plan]) -> Cost:
    """Return what plans cost together, those that change nothing among them."""
    fleets = {plan.name for plan in plans if plan.type == "fleet"}
    return sum((cost_of(plan, fleets=fleets) for plan in plans), Cost())


def count_of(spec: Spec | None, template: Template) -> tuple[int, int]:
    """Return the fewest replicas and the most, or machines of a fleet; None: as many as there are."""
    if template.holding is not None:
        return template.holding.least, template.holding.most
    if not isinstance(spec, Service):
        return template.replicas, template.replicas
    least = spec.replicas.min or 0
    return least, spec.replicas.max or least


def _rate_of(template: Template, plan: str, fleets: Collection[str]) -> float:
    """Return what one replica costs, or one machine of a fleet."""
    shared = template.holding is None and not set(fleets).isdisjoint(template.backends[:1])
    return 0.0 if shared else price_of(plan)


def is_priced(plans: Sequence[Plan]) -> bool:
    """Say whether a plan rents anything, so that offers have to be asked for again."""
    return any(choice.price_usd_hour > 0 for plan in plans for choice in chosen(plan))


def check_prices(plans: Sequence[Plan], offers: Sequence[Offer], silent: Mapping[str, str]) -> None:
    """Refuse plans whose chosen machines are gone, or cost more than the plan said.

    The cap is the spec's ``max_price`` where it has one, else the planned price.

    Args:
        plans: What ``resume`` returned.
        offers: What every place offers now.
        silent: The places that did not answer, with the reason of each.

    Raises:
        PlanRefused: one of them is.
        Unreachable: a place did not answer, so that nobody knows.
    """
    now = {_kind(offer): offer for offer in offers}
    for plan in plans:
        for choice in chosen(plan):
            if not choice.price_usd_hour or (choice.offer.fleet and not choice.offer.own_usd_hour):
                continue  # what a fleet rents, it rents at its own cap; hosts of one's own have theirs here
            backend = choice.offer.backend
            if backend in silent:
                what = f"the price of {plan.name!r} cannot be checked: {silent[backend]}"
                raise Unreachable(what, backend=backend, fix="apply the plan again once it answers")
            name = f"{choice.offer.instance_type} on {backend}"
            offer = now.get(_kind(choice.offer))
            if offer is None:
                raise PlanRefused(f"{name}, chosen for {plan.name!r}, is no longer offered", fix=PLAN_AGAIN)
            offer = offer.with_disk(choice.offer.disk_bytes or 0)
            # a choice may be several machines, or a share of one: its price moves as the machine's does;
            # a rate that has not moved is 1 to the last bit, and 0.2 * 0.2 / 0.2 is more than 0.2
            costs = choice.price_usd_hour * (_rate(offer, choice) / _rate(choice.offer, choice))
            if costs > cap_usd_hour(plan, choice):
                what = f"{name} costs ${format_usd(costs)}/h for {plan.name!r}, more than the plan's"
                raise PlanRefused(f"{what} ${format_usd(cap_usd_hour(plan, choice))}/h", fix=PLAN_AGAIN)


def chosen(plan: Plan) -> tuple[Choice, ...]:
    """Return the offers a plan takes, none where it places nothing."""
    placed = plan.placed if isinstance(plan, RunPlan | FleetPlan) else None
    return tuple(choice for choice in placed.choices if choice.chosen) if placed else ()


def cap_usd_hour(plan: Plan, choice: Choice) -> float:
    """Return what a choice may cost at most: the spec's ``max_price``, else what it was planned at."""
    most = plan.spec.max_price if isinstance(plan, RunPlan | FleetPlan) else None
    return most or choice.price_usd_hour


def _rate(offer: Offer, choice: Choice) -> float:
    return offer.costs_usd_hour(count=choice.count or 1, nodes=choice.nodes)


def _kind(offer: Offer) -> tuple[object, ...]:
    """Return what tells one offer from another, apart from its price and how much of it is free.

    ``count`` is part of a machine that is rented whole; of a divisible one it is what nobody holds now.
    What an owner counts is the same for every machine of a place, which finds the one with room itself.
    """
    if offer.divisible and not offer.price_usd_hour:
        return offer.backend, offer.accelerator
    return (
        offer.backend, offer.region, offer.zone, offer.instance_type, offer.accelerator,
        None if offer.divisible else offer.count, offer.spot, offer.reservation,
    )  # fmt: skip
