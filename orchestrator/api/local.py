"""The answer of this very process: the record is opened, and places are asked, when there is a need."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from orchestrator.api.holdings import Holdings
from orchestrator.api.protocol import Found, Plans
from orchestrator.api.rehearsal import as_scaled
from orchestrator.apply import (
    NOTHING_LOST,
    Consent,
    Deletion,
    FleetPlan,
    RunPlan,
    VolumePlan,
    require_consent,
)
from orchestrator.apply.drift import Drift, drifts
from orchestrator.apply.recording import record
from orchestrator.backend import Backend, ZonedVolumes
from orchestrator.errors import UsageError
from orchestrator.reconcile import Wanted
from orchestrator.store.values import MAIN

if TYPE_CHECKING:  # the store imports SQLAlchemy, which a plan on a fresh machine does without
    from orchestrator.loop import Hooks


class Local(Holdings):
    """The answers of this process: nothing has to be started first."""

    def apply(
        self,
        plans: Plans,
        *,
        consent: Consent = NOTHING_LOST,
        variables: Mapping[str, str] | None = None,
        message: str = "",
    ) -> tuple[str, ...]:
        """Write down what the plans say; volumes are made first: a loop may start their runs at once.

        Args:
            plans: What was planned.
            consent: What may be lost.
            variables: Where the values of bare variables come from; None is this process's environment.
            message: What the events of it say.

        Raises:
            UsageError: the plans lose what ``consent`` does not allow to be lost.
        """
        require_consent(plans, consent)
        self._told = self.store.last_serial()
        fleets = [plan for plan in plans if isinstance(plan, FleetPlan) and plan.action != "unchanged"]
        self._require_ours(plans)
        if fleets:
            self.places.expect(())  # back to what is on record: hosts that leave are in no plan
        for fleet in fleets:
            for host, _ in fleet.leaving:
                self._clear(fleet.name, host)
        volumes = [plan for plan in plans if isinstance(plan, VolumePlan) and plan.action != "unchanged"]
        new = {plan.name for plan in fleets if plan.action == "create"}  # no places until they are on record
        before = [plan for plan in volumes if plan.backend not in new]
        names = record(
            [as_scaled(plan, self.places) if isinstance(plan, RunPlan) else plan for plan in plans],
            self.store, environ=self._environ if variables is None else variables,
            now=self._clock(), new_id=lambda: uuid.uuid4().hex, project=self._project or MAIN,
            message=message, prepare=lambda: self._make_volumes(before),
        )  # fmt: skip
        if fleets:
            self.places.refresh()
        self._make_volumes([plan for plan in volumes if plan not in before])
        return names

    def _make_volumes(self, plans: Sequence[VolumePlan]) -> None:
        for plan in plans:
            self._make_volume(plan)

    def _make_volume(self, plan: VolumePlan) -> None:
        place, spec = self.places[plan.backend], plan.spec
        if isinstance(place, ZonedVolumes):
            place.create_volume_in(plan.name, size_bytes=spec.size, zone=spec.availability_zone)
        else:
            place.create_volume(plan.name, size_bytes=spec.size)

    def finish_deletions(self, plans: Plans, *, hooks: Hooks | None = None) -> None:
        """See the runs off that the plans delete, then delete the plans' volumes.

        Runs that an earlier plan was to delete are seen off too, where it was cut short: they may
        still hold a volume.
        """
        deletions = [plan for plan in plans if isinstance(plan, Deletion)]
        leaving = [run.name for run in self.runs_on_record() if run.wanted is Wanted.DELETE]
        if deletions and leaving:
            self.follow(leaving, "deleted", hooks=hooks)
        for deletion in deletions:
            if deletion.type == "volume":
                self.delete_volume(deletion.name)
            elif deletion.type == "fleet":
                self.delete_fleet(deletion.name)

    def _require_ours(self, plans: Plans) -> None:
        """Refuse fleets and volumes that another project has, and runs that would mount such a volume."""
        fleets = {each.name for each in self.store.fleets() if not self._is_ours(each.project)}
        volumes = {each.name for each in self.store.volumes() if not self._is_ours(each.project)}
        for plan in plans:
            kind, taken = ("fleet", fleets) if isinstance(plan, FleetPlan) else ("volume", volumes)
            names = _mounted(plan) if isinstance(plan, RunPlan) else {plan.name}
            if strange := sorted(taken & names) if not isinstance(plan, Deletion) else []:
                raise UsageError(
                    f"another project has a {kind} called {strange[0]!r}", fix="choose another name for yours"
                )

    def drift(self) -> Found[Drift]:
        """Return where the places differ from the record, which is left as it is."""
        runs, jobs = self.store.runs(), self.store.jobs()
        theirs = {run.name for run in runs if not self._is_ours(run.project)}
        kept: dict[str, list[str]] = {}
        for volume in self.kept_volumes().values():
            kept.setdefault(volume.backend, []).append(volume.name)

        def ask(name: str, place: Backend) -> list[Drift]:
            held = {volume.name for volume in place.volumes()} if name in kept else set()
            volumes = [(name, volume) for volume in kept.get(name, ())]
            found = drifts(
                runs, jobs, instances={name: place.instances()}, volumes=volumes, held={name: held}
            )
            return [drift for drift in found if drift.run not in theirs]

        found = self._looked_through({**self.places, **{name: self.places[name] for name in kept}}, ask)
        return replace(found, items=tuple(sorted(found.items)))


def _mounted(plan: RunPlan) -> set[str]:
    """Return the names of the volumes that a run would mount."""
    if plan.template is None:
        return set()
    launches = (plan.template.launch, plan.template.follower or plan.template.launch)
    return {mount.source for launch in launches for mount in launch.mounts if mount.kind != "folder"}
