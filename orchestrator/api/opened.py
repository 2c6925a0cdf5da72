"""The record and the places, opened when there is a need, and what a plan asks of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from orchestrator.api.planning import Planner
from orchestrator.api.protocol import Offers, Plans, Rehearsal
from orchestrator.api.rehearsal import rehearse
from orchestrator.apply import FleetRecord
from orchestrator.backend import Backend, Can, HeldMachine, Offer, Rent
from orchestrator.catalog.hardware import accelerator
from orchestrator.errors import AuthFailed, BackendError, Misconfigured, NotFound, Unreachable, UsageError
from orchestrator.places import Places, Recorded, fleet_place, read_mirrors, read_places, rented_place
from orchestrator.planner.mirrors import Mirrors
from orchestrator.reconcile import JobState, Run
from orchestrator.spec.models import Fleet, spec_of
from orchestrator.store import (
    current_deployment,
    current_fleets,
    current_runs,
    current_secrets,
    open_store,
)
from orchestrator.store.urls import sqlite_path
from orchestrator.store.values import MAIN, Cordon
from orchestrator.store.values import Fleet as KeptFleet
from orchestrator.store.values import Volume as KeptVolume

if TYPE_CHECKING:  # the store imports SQLAlchemy, which a plan on a fresh machine does without
    from orchestrator.store.records import Store


class Opened(Planner):
    """The record, opened when it is first needed, and the places, built when they are first asked.

    A plan that changes nothing touches neither.

    Args:
        url: Where the record is.
        config: The configuration of places, None for the defaults.
        environ: Where the values of bare variables come from.
        clock: The time, in UTC.
        project: Whose runs, volumes and secrets are seen and made; None sees all, and makes them in
            the project ``main``.
        wishes: Options of backends that this command asks for, whatever is configured.
    """

    def __init__(
        self,
        url: str,
        *,
        config: Path | None,
        environ: Mapping[str, str] = os.environ,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        project: str | None = None,
        wishes: Mapping[str, object] = MappingProxyType({}),
    ) -> None:
        super().__init__(environ=environ, clock=clock)
        self._wishes = wishes
        self._url = url
        self._config = config
        self._project = project
        self._told: int | None = None
        """The last event before what this process asked for; what follows is told."""

    @cached_property
    def places(self) -> Places:
        """The configured backends."""
        configured = [replace(place, wishes=self._wishes) for place in read_places(self._config)]
        return Places(configured, recorded=self._recorded_places)

    def _recorded_places(self) -> Recorded:
        if "store" in self.__dict__ or sqlite_path(self._url) is None:  # a server is not asked twice
            fleets, cordons = self.store.fleets(), self.store.cordons()
        else:
            fleets, cordons = current_fleets(self._url)
        return recorded_places(fleets, cordons, wishes=self._wishes, machines=self._machines)

    def _machines(self, fleet: str) -> Sequence[HeldMachine]:
        return machines_of(self.store, fleet)

    @cached_property
    def store(self) -> Store:
        """The record."""
        return open_store(self._url, secret_key=self._environ.get("MODELYARD_SECRET_KEY"))

    def close(self) -> None:
        """Let go of the record, where it was opened."""
        if "store" in self.__dict__:
            self.store.close()

    @property
    def has_asked(self) -> bool:
        """Whether this process wrote down that something shall be, or shall end."""
        return self._told is not None

    def rehearse(self, plans: Plans) -> Mapping[str, Rehearsal]:
        """Return what clusters say of plans that are theirs to keep, by run; writes nothing."""
        return rehearse(plans, self.places)

    def record_id(self) -> str:
        """Return which record it is and whose part: ``<deployment>/<project>``, "" before it is made."""
        open_now = "store" in self.__dict__
        deployment = self.store.deployment if open_now else current_deployment(self._url)
        return deployment and f"{deployment}/{self._project or MAIN}"

    def record_of(self, names: Collection[str] | None) -> Mapping[str, Run]:
        """Return the runs on record by name: those of ``names``, or all; asks no place.

        Raises:
            UsageError: a name is taken by a run of another project.
        """
        found = {run.name: run for run in self._all_runs()}
        for name in names or ():
            if name in found and not self._is_ours(found[name].project):
                raise UsageError(
                    f"another project has a run called {name!r}", fix="choose another name for yours"
                )
        return {name: run for name, run in found.items() if self._is_ours(run.project)}

    def _all_runs(self) -> Sequence[Run]:
        return self.store.runs() if "store" in self.__dict__ else current_runs(self._url)

    def kept_volumes(self) -> Mapping[str, KeptVolume]:
        """Return the volumes on record by name."""
        return {v.name: v for v in self.store.volumes() if self._is_ours(v.project)}

    def secret_names(self) -> Collection[str]:
        """Return the names of the secrets on record."""
        if self._project in (None, MAIN) and "store" not in self.__dict__:
            return {name for name in current_secrets(self._url) if ":" not in name}
        return {each.name for each in self.store.secrets.of(self._project).list()}

    def abilities(self) -> Mapping[str, frozenset[Can]]:
        """Return what each place is able to do, preferred ones first."""
        return {name: backend.can for name, backend in self._open_places()}

    def _open_places(self) -> list[tuple[str, Backend]]:
        """Return the places that this project may use."""
        return [(name, self.places[name]) for name in self.places if self._may_use(name)]

    def _may_use(self, place: str) -> bool:
        return self.places.is_open_to(place, self._project)

    def fleet_records(self) -> Mapping[str, FleetRecord]:
        """Return the fleets on record by name, with who is on them.

        Those of other projects are among them: a name is taken across projects.
        """
        fleets = self.store.fleets()
        on = self._on([fleet.name for fleet in fleets]) if fleets else {}
        active = self.store.active_runs() if fleets else []
        return {
            fleet.name: FleetRecord(
                fleet,
                on.get(fleet.name, {}),
                tuple(run.name for run in active if fleet.name in run.template.backends),
            )
            for fleet in fleets
        }

    def _on(self, places: Collection[str]) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
        """Return the runs with a launch that has not ended, by place and host."""
        found: dict[str, dict[str, set[str]]] = {}
        for job in self.store.jobs():
            if job.backend in places and not job.state.is_final:
                run = job.name.rsplit("-", 3)[0]
                found.setdefault(job.backend, {}).setdefault(job.machine, set()).add(run)
        return {p: {host: tuple(sorted(runs)) for host, runs in on.items()} for p, on in found.items()}

    def expect(self, fleets: Sequence[Fleet]) -> frozenset[str]:
        """Count on the hosts of fleets that are about to be applied; return the names it could."""
        own = [replace(fleet_place(each), wishes=self._wishes) for each in fleets if each.ssh_config]
        own += [rented_place(each, self._machines(each.name)) for each in fleets if not each.ssh_config]
        return self.places.expect(own)

    def mirrors(self) -> Mirrors:
        """Return where images and models are had from, as the configuration says."""
        return read_mirrors(self._config)

    def offers(self) -> Offers:
        """Return what every place offers now, with accelerators spelled as the catalog does."""
        found: list[Offer] = []
        silent: dict[str, str] = {}
        denied: frozenset[str] = frozenset()
        wrong: frozenset[str] = frozenset()
        for name, backend in self._open_places():
            try:
                found += [self._priced(_spelled(offer)) for offer in backend.offers()]
            except BackendError as error:
                if self._is_missed(name, error):
                    silent[name] = why_silent(name, error)
                if isinstance(error, AuthFailed):
                    denied |= {name}
                if isinstance(error, Misconfigured):
                    wrong |= {name}
        return Offers(tuple(found), silent, denied, wrong)

    def _is_missed(self, place: str, error: BackendError) -> bool:
        """Return whether anybody has to hear of it: what is tried unasked may not be there."""
        return self.places.is_required(place) or not isinstance(error, Unreachable)

    def _priced(self, offer: Offer) -> Offer:
        """Return an offer with what its machine costs, and what the owner counts for one of his own."""
        if offer.price_list:
            offer = _listed(offer)
        own = self.places.price_usd_hour(offer.backend, offer.accelerator)
        return replace(offer, own_usd_hour=own) if own else offer

    def _is_ours(self, project: str) -> bool:
        return self._project in (None, project)


def recorded_places(
    fleets: Sequence[KeptFleet],
    cordons: Sequence[Cordon],
    *,
    wishes: Mapping[str, object],
    machines: Callable[[str], Sequence[HeldMachine]],
) -> Recorded:
    """Return what the record says of places, as places take it; ``machines`` are those a fleet holds."""
    held: dict[str, dict[str, dict[str, str]]] = {}
    for cordon in cordons:
        held.setdefault(cordon.place, {})[cordon.host] = {"reason": cordon.reason, "leave": cordon.leave}
    places = []
    for fleet in fleets:
        spec = spec_of(json.loads(fleet.spec))
        assert isinstance(spec, Fleet)  # the table holds no other type
        if spec.ssh_config:
            places.append(replace(fleet_place(spec, project=fleet.project), wishes=wishes))
        else:
            places.append(rented_place(spec, machines(spec.name), project=fleet.project))
    return Recorded(tuple(places), held)


def machines_of(store: Store, fleet: str) -> Sequence[HeldMachine]:
    """Return the machines of a fleet that are up, as the record has them."""
    try:
        run = store.run(fleet)
    except NotFound:
        return ()
    return [
        HeldMachine(
            job.machine, job.backend, job.name, job.address, job.rent or Rent(""),
            leaving=job.stop_asked_at is not None,
        )
        for job in store.jobs(run.id)
        if job.state is JobState.READY and job.machine and job.address
    ]  # fmt: skip


def _spelled(offer: Offer) -> Offer:
    """Return an offer with its accelerator's catalog name, where the catalog knows it."""
    known = (
        accelerator(offer.accelerator, memory_bytes=offer.vram_bytes or None) if offer.accelerator else None
    )
    if known is None:
        return offer
    capability = offer.compute_capability or known.capability
    return replace(offer, accelerator=known.name, vendor=known.vendor, compute_capability=capability)


def _listed(offer: Offer) -> Offer:
    """Return an offer with the catalog's price added, as it was where the catalog has none."""
    from orchestrator.catalog.pricing import listed  # only for places whose machines are rented

    price = listed(offer.price_list, offer.region, offer.instance_type, spot=offer.spot)
    if price is None:
        return offer
    each = price / offer.nodes  # machines that are one have one price
    return replace(offer, price_usd_hour=round(offer.price_usd_hour + each, 6), price_list="")


def why_silent(place: str, error: BackendError) -> str:
    """Return why nothing is known of a place, without its name, and what to do about it.

    >>> why_silent("lab", BackendError("backend 'lab': no kubeconfig", fix="set KUBECONFIG"))
    'no kubeconfig (set KUBECONFIG)'
    """
    return error.line.removeprefix(f"backend {place!r}: ")
