"""What apply does only when its user said so: lose a volume, or a running task's work."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.apply.fleets import FleetPlan
from orchestrator.apply.planning import Plan, RunPlan, loses_work
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


def require_consent(plans: Sequence[Plan], consent: Consent) -> None:
    """Refuse plans that lose what their user did not allow to be lost.

    Raises:
        UsageError: a volume would be deleted, a running task replaced, or a host let go with its runs.
    """
    for plan in plans:
        if isinstance(plan, FleetPlan) and plan.lost and not consent.destroy:
            host, runs = next((host, runs) for host, runs in plan.leaving if runs)
            raise UsageError(
                f"host {host!r} would leave fleet {plan.name!r} with runs on it: {', '.join(runs)}",
                fix=f"modelyard fleet drain {plan.name} {host} first, or add --allow-destroy to lose them",
            )
        if isinstance(plan, Deletion) and plan.type == "volume" and not consent.destroy:
            raise UsageError(
                f"volume {plan.name!r} would be deleted with what it holds",
                fix="add --allow-destroy, or keep it in the files",
            )
        if isinstance(plan, RunPlan) and loses_work(plan.action, plan.run) and not consent.replace:
            raise UsageError(
                f"task {plan.name!r} is running and would be stopped and started anew",
                fix=f"add --allow-replace, or modelyard wait {plan.name} --for ended",
            )
