"""What places hold beside runs: machines, volumes, fleets and what nobody owns; and secrets."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

from orchestrator.api.opened import why_silent
from orchestrator.api.protocol import FleetView, Found, Item, Orphan, Stray
from orchestrator.api.runs import Runs
from orchestrator.apply import require_unused
from orchestrator.backend import (
    Backend,
    Check,
    Host,
    HostKeeper,
    Instance,
    Leave,
    Machine,
    Phase,
    Renter,
    Volume,
    keeper_of_groups,
)
from orchestrator.errors import BackendError, Misconfigured, ModelyardError, NotFound, UsageError
from orchestrator.reconcile import Job, Run, Wanted
from orchestrator.spec.interpolation import is_secret_name
from orchestrator.store.urls import shown_url
from orchestrator.store.values import Cordon, SecretName

if TYPE_CHECKING:  # the store imports SQLAlchemy, which a plan on a fresh machine does without
    from orchestrator.loop import Hooks

Place = TypeVar("Place", bound=Backend)

GRACE = timedelta(minutes=10)
"""A machine this young may be somebody's who is just about to write it down."""

ORPHAN_GRACE_S = 10.0
"""How long what nobody owns has to end."""


class Holdings(Runs):
    """All that is looked after beside runs."""

    def check(self) -> list[tuple[str, Check]]:
        """Look whether every configured place is usable."""
        return [
            (
                name,
                check
                if check.ok or self.places.is_required(name)
                else replace(check, ok=True, detail=f"no, and no configuration asks for it: {check.detail}"),
            )
            for name, backend in self._open_places()
            for check in backend.check()
        ]

    def diagnose(self) -> list[tuple[str, Check]]:
        """Look whether this installation, its record and every place are well."""
        found: list[tuple[str, Check]] = []
        try:
            runs = self.store.runs()
            found.append(("record", Check("opens", True, f"{len(runs)} runs at {shown_url(self._url)}")))
        except ModelyardError as error:
            found.append(("record", Check.failed("opens", error)))
        where = str(self._config) if self._config else "none: docker where an engine answers, else process"
        found.append(("config", Check("is read", True, where)))
        return found + self.check()

    def orphans(self) -> Found[Orphan]:
        """Return instances that carry our labels and belong to no run on record."""
        known = {run.name for run in self.store.runs()}

        def ask(name: str, place: Backend) -> list[Orphan]:
            return [Orphan(name, i) for i in _instances(place) if i.run not in known]

        return self._looked_through(self.places, ask)

    def _looked_through(
        self, places: Mapping[str, Place], ask: Callable[[str, Place], Sequence[Item]]
    ) -> Found[Item]:
        """Return what places say to a question, and those of which nothing is known."""
        found: list[Item] = []
        silent: dict[str, BackendError] = {}
        for name, place in places.items():
            try:
                found += ask(name, place)
            except BackendError as error:
                if self._is_missed(name, error):
                    silent[name] = error
        codes = {error.exit_code for error in silent.values()}
        code = BackendError.exit_code if len(codes) > 1 else next(iter(codes), 0)
        if code == Misconfigured.exit_code and len(silent) < len(self.places):
            code = BackendError.exit_code  # one of many: the configuration did for the others
        return Found(tuple(found), {name: why_silent(name, e) for name, e in silent.items()}, code)

    def remove_orphans(self, orphans: Sequence[Orphan]) -> None:
        """Stop those that run, and remove them all."""
        for orphan in orphans:
            backend = self.places[orphan.backend]
            if orphan.instance.phase is not Phase.EXITED:
                backend.stop(orphan.instance.name, grace_s=ORPHAN_GRACE_S)
            backend.remove(orphan.instance.name)
        for name, run in sorted({(orphan.backend, orphan.instance.run) for orphan in orphans}):
            if keeper := keeper_of_groups(self.places[name]):
                keeper.delete_group(run, grace_s=ORPHAN_GRACE_S)

    def strays(self) -> Found[Stray]:
        """Return machines that are paid for and serve no run on record, ordered by place and id."""
        renters = {name: place for name, place in self.places.items() if isinstance(place, Renter)}
        if not renters:
            return Found(())
        runs = {run.name: run for run in self.store.runs()}
        jobs = {job.name: job for job in self.store.jobs()}
        now = self._clock()

        def ask(name: str, renter: Renter) -> list[Stray]:
            return [
                Stray(name, machine, why)
                for machine in renter.machines()
                if (why := why_stray(machine, runs.get(machine.run), jobs.get(machine.launch), now=now))
            ]

        return self._looked_through(renters, ask)

    def terminate(self, strays: Sequence[Stray]) -> None:
        """End them, and all that belongs to them."""
        for stray in strays:
            backend = self.places[stray.backend]
            assert isinstance(backend, Renter)  # none else has machines
            backend.terminate(stray.machine.id)

    def volumes(self) -> list[tuple[str, Volume]]:
        """Return every volume on record with its backend, as the backend has it."""
        held: dict[str, dict[str, Volume]] = {}
        found: list[tuple[str, Volume]] = []
        for volume in self.kept_volumes().values():
            if volume.backend not in held:
                held[volume.backend] = {v.name: v for v in self.places[volume.backend].volumes()}
            found.append((volume.backend, held[volume.backend].get(volume.name, Volume(volume.name))))
        return found

    def delete_volume(self, name: str) -> None:
        """Delete a volume and what it holds."""
        volume = self.kept_volumes().get(name)
        if volume is None:
            raise NotFound(f"no volume {name!r}", fix="modelyard volume list")
        backend = self.places[volume.backend]
        self._let_go(name, backend)
        backend.delete_volume(name)
        self.store.forget_volume(name)

    def _let_go(self, volume: str, backend: Backend) -> None:
        """Remove what ended while its run had a volume that it has no more: it would hold it for ever."""
        holders = {each for found in backend.volumes() if found.name == volume for each in found.used_by}
        if not holders:
            return
        mounting = {
            run.name
            for run in self.store.runs()
            if any((m.kind, m.source) == ("volume", volume) for m in run.template.launch.mounts)
        }
        for instance in backend.instances():
            if instance.name in holders and instance.run not in mounting and instance.phase is Phase.EXITED:
                backend.remove(instance.name)

    def fleets(self, name: str | None = None) -> list[FleetView]:
        """Return every fleet by name, or one, with its hosts as they are at this moment.

        Raises:
            NotFound: there is no such fleet.
        """
        keepers = {
            place: backend
            for place, backend in self._open_places()
            if isinstance(backend, HostKeeper) and name in (None, place)
        }
        if name is not None and not keepers:
            raise NotFound(f"no fleet {name!r}", fix="modelyard fleet list")
        if not keepers:
            return []
        self._settle()
        on, applied = self._on(keepers), {fleet.name for fleet in self.store.fleets()}
        holding = {run.name: run for run in self.store.runs() if run.type == "fleet"}
        return [
            self._rented(place, self.places[place], on.get(place, {}), holding[place])
            if place in holding
            else FleetView(place, tuple(backend.hosts()), on.get(place, {}), place in applied)
            for place, backend in sorted(keepers.items())
        ]

    def _rented(self, name: str, backend: Backend, on: Mapping[str, tuple[str, ...]], run: Run) -> FleetView:
        """Return a fleet of rented machines: those that are up, and those on their way."""
        assert isinstance(backend, HostKeeper)  # asked for above
        up = tuple(backend.hosts())
        known, holding = {host.name for host in up}, run.template.holding
        assert holding is not None  # every fleet's run has it
        coming = tuple(
            Host(job.machine or job.name, "booting", rent=job.rent)
            for job in self.store.jobs(run.id)
            if not job.state.is_final and (not job.machine or job.machine not in known)
        )
        nodes = str(holding.most) if holding.least == holding.most else f"{holding.least}..{holding.most}"
        return FleetView(name, (*up, *coming), on, nodes=nodes, note=run.reason)

    def delete_fleet(self, name: str) -> None:
        """Let go of a fleet's hosts, and end those that it rents; what ended there goes with its output.

        Raises:
            NotFound, UsageError: as for ``end_fleet``.
        """
        if self.end_fleet(name):
            self.follow([name], "deleted")
            self.places.refresh()

    def end_fleet(self, name: str) -> bool:
        """Let go of a fleet's hosts; return whether it rents them, and is gone once they have ended.

        Raises:
            NotFound: no spec asked for it.
            UsageError: runs or volumes are on it.
        """
        known = self.fleet_records().get(name)
        if known is None or not self._is_ours(known.fleet.project):
            configured = name in self.places and self._may_use(name)
            fix = "take it out of the configuration" if configured else "modelyard fleet list"
            raise NotFound(f"no fleet {name!r} was applied", fix=fix)
        require_unused(known)
        if volumes := sorted(v.name for v in self.store.volumes() if v.backend == name):
            raise UsageError(
                f"fleet {name!r} keeps volumes: {', '.join(volumes)}",
                fix=f"modelyard volume delete {volumes[0]}",
            )
        if name in self.places:
            self._clear(name)
        if any(run.name == name and run.type == "fleet" for run in self.store.runs()):
            self._turn_to([name], Wanted.DELETE)  # with the last of the run goes the fleet
            return True
        self.store.forget_fleet(name)
        self.places.refresh()
        return False

    def _clear(self, place: str, host: str | None = None) -> None:
        """Remove what is on a host that leaves, or on all of a place; one that is silent keeps it."""
        backend = self.places[place]
        try:
            for instance in backend.instances():
                if host in (None, instance.machine):
                    backend.remove(instance.name)
        except BackendError:
            return

    def cordon(self, fleet: str, host: str, *, reason: str = "", leave: Leave = "") -> None:
        """Let nothing new start on a host; with ``leave`` also move away what is there.

        Raises:
            NotFound: there is no such fleet, or no such host in it.
        """
        self._require_host(fleet, host)
        self.store.put_cordon(Cordon(fleet, host, self._clock(), reason, leave))
        self.places.refresh()

    def uncordon(self, fleet: str, host: str) -> None:
        """Let launches start on a host again.

        Raises:
            NotFound: there is no such fleet, or no such host in it.
        """
        self._require_host(fleet, host)
        self.store.forget_cordon(fleet, host)
        self.places.refresh()

    def _require_host(self, fleet: str, host: str) -> None:
        backend = self.places[fleet] if fleet in self.places and self._may_use(fleet) else None
        if not isinstance(backend, HostKeeper):
            raise NotFound(f"no fleet {fleet!r}", fix="modelyard fleet list")
        names = backend.host_names()
        if host not in names:
            near = difflib.get_close_matches(host, names, 1)
            fix = f"did you mean {near[0]!r}?" if near else f"modelyard fleet show {fleet} lists them"
            raise NotFound(f"fleet {fleet!r} has no host {host!r}", fix=fix)

    def emptied(
        self, fleet: str, host: str, *, hooks: Hooks | None = None, timeout_s: float | None = None
    ) -> bool:
        """Drive runs until none has a launch on a host; False when time ran out."""
        with self._loop(hooks) as loop:
            return loop.drive(lambda: not self._on([fleet]).get(fleet, {}).get(host), timeout_s=timeout_s)

    def secrets(self) -> list[SecretName]:
        """Return the names of the secrets, when each was last set and what it goes with."""
        return self.store.secrets.of(self._project).list()

    def set_secret(self, name: str, value: str) -> None:
        """Keep a secret, encrypted.

        Raises:
            UsageError: there is nothing in it, or no spec could name it.
        """
        if not is_secret_name(name.rpartition("/")[2]):
            fix = "letters, digits, '_' and '-', not beginning with a digit"
            raise UsageError(f"{name!r} is no name of a secret", fix=fix)
        if not value:
            fix = f"for example: modelyard secret set {name} < FILE"
            raise UsageError(f"secret {name}: an empty value", fix=fix)
        self.store.secrets.of(self._project).set(name, value, now=self._clock())

    def delete_secret(self, name: str) -> None:
        """Forget a secret."""
        self.store.secrets.of(self._project).delete(name)


def _instances(place: Backend) -> Sequence[Instance]:
    """Return what a place holds; what ended of a group that goes on is as its group is.

    A cluster starts it again, and it goes with the whole of its group only. A group of which nothing was
    started, or is left, is there under its own name.
    """
    found = place.instances()
    keeper = keeper_of_groups(place)
    if keeper is None:
        return found
    groups = keeper.groups()
    going = {g.name: g.phase for g in groups}
    bare = going.keys() - {i.run for i in found}
    return [
        *(replace(i, phase=going.get(i.run, i.phase)) if i.phase is Phase.EXITED else i for i in found),
        *(Instance(g.name, g.name, 0, 0, 0, g.spec_hash, g.phase) for g in groups if g.name in bare),
    ]


def why_stray(machine: Machine, run: Run | None, job: Job | None, *, now: datetime) -> str | None:
    """Say why a machine serves nobody; None where it serves a run, or is kept for the next."""
    if machine.since is not None and now - machine.since < GRACE:
        return None
    if not machine.launch:
        over = machine.expires_at is not None and now - machine.expires_at > GRACE
        return "kept longer than it should be" if over else None
    if run is None:
        return f"no run {machine.run!r} is on record"
    if job is None:
        return f"no launch {machine.launch!r} is on record"
    return f"run {run.name!r} has ended" if run.state.is_final else None
