"""Carry plans out for a project: within its limits, whoever sent them."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.api import Plans
from orchestrator.apply import Consent, RunPlan
from orchestrator.server.limits import require_limits
from orchestrator.server.site import Site


def named_in_audit(plans: Plans) -> tuple[str, str]:
    """Return what the audit log says of plans that are carried out: what they change, and its spec hashes."""
    changed = [plan for plan in plans if plan.action != "unchanged"]
    hashes = ",".join(plan.spec_hash[:16] for plan in changed if isinstance(plan, RunPlan))
    return ",".join(plan.name for plan in changed)[:500], hashes[:2_000]


def carry_out(
    site: Site,
    project: str,
    plans: Plans,
    consent: Consent,
    variables: Mapping[str, str],
    *,
    message: str = "",
) -> tuple[str, ...]:
    """Write down what plans say, within the project's limits; return the runs that changed.

    Args:
        site: The server's share of the world.
        project: Whose runs they are.
        plans: What would be done.
        consent: What may be lost.
        variables: Where the values of bare variables come from.
        message: What the events of it say, such as the commit.

    Raises:
        Denied: a limit would be passed.
    """
    api = site.api(project)
    limits = site.store.access.project(project)
    require_limits(
        limits, api.record_of(None).values(), plans,
        offers=lambda: api.offers().offers, jobs=site.store.jobs_of,
    )  # fmt: skip
    names = api.apply(plans, consent=consent, variables=variables, message=message)
    site.wrote()
    return names
