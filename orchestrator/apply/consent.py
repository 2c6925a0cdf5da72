"""What apply does only when its user said so: lose a volume, or a running task's work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from orchestrator.apply.fleets import FleetPlan
from orchestrator.apply.notes import loses_work
from orchestrator.apply.plans import Plan, RunPlan
from orchestrator.apply.sets import Deletion
from orchestrator.errors import UsageError
from orchestrator.frozen import frozen


@frozen
class Consent:
    """What a user allows beyond starting and updating.

    ``destroy`` lets volumes be deleted with what they hold, and hosts leave with their runs;
    ``replace`` lets a running task be stopped for its successor, and what it did be lost.
    """

    destroy: bool = False
    replace: bool = False

    def __or__(self, other: Consent) -> Consent:
        """Return what either allows.

        >>> Consent(destroy=True) | Consent(replace=True)
        Consent(destroy=True, replace=True)
        """
        return Consent(self.destroy or other.destroy, self.replace or other.replace)


NOTHING_LOST = Consent()


@frozen
class Loss:
    """What a plan loses, the option that allows it, and what its user could do instead."""

    what: str
    option: str
    instead: str


def losses(plans: Sequence[Plan], consent: Consent = NOTHING_LOST) -> Iterator[Loss]:
    """Yield what the plans lose that their user did not allow to be lost."""
    for plan in plans:
        if isinstance(plan, FleetPlan) and plan.lost and not consent.destroy:
            host, runs = next((host, runs) for host, runs in plan.leaving if runs)
            what = f"host {host!r} would leave fleet {plan.name!r} with runs on it: {', '.join(runs)}"
            yield Loss(what, "--allow-destroy", f"modelyard fleet drain {plan.name} {host} first")
        if isinstance(plan, Deletion) and plan.type == "volume" and not consent.destroy:
            what = f"volume {plan.name!r} would be deleted with what it holds"
            yield Loss(what, "--allow-destroy", "keep it in the files")
        if isinstance(plan, RunPlan) and loses_work(plan.action, plan.run) and not consent.replace:
            what = f"task {plan.name!r} is running and would be stopped and started anew"
            yield Loss(what, "--allow-replace", f"modelyard wait {plan.name} --for ended")


def require_consent(plans: Sequence[Plan], consent: Consent) -> None:
    """Refuse plans that lose what their user did not allow to be lost.

    Raises:
        UsageError: volumes would be deleted, running tasks replaced, or hosts let go with their runs; all
            of them.
    """
    found = list(losses(plans, consent))
    if not found:
        return
    options = " and ".join(dict.fromkeys(loss.option for loss in found))
    instead = ", or ".join(dict.fromkeys(loss.instead for loss in found))
    raise UsageError("\n".join(loss.what for loss in found), fix=f"add {options}, or {instead}")
