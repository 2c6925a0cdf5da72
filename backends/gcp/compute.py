"""Compute Engine as a provider of machines, over its REST API (version 1)."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from backends.gcp.attached import GPUS, taken_apart, with_gpus
from backends.gcp.compact import Compact
from backends.gcp.refusals import FIXES, failed, read
from backends.gcp.shapes import (
    HYPERDISK_ONLY,
    is_named,
    name_of,
    offers_of,
    pattern,
    shape_of,
    vm_of,
)
from backends.gcp.signing import Signing
from backends.vm.cooling import where_of
from backends.vm.kept import cache_name, kept
from backends.vm.labels import labels_of
from backends.vm.port import Belonging, KeySpent, Order, Vm
from backends.vm.rest import Gone, Rest, Taken
from orchestrator.backend import Check, Growth, Offer
from orchestrator.errors import BackendError, Busy, Misconfigured, Rejected
from orchestrator.frozen import frozen
from orchestrator.units import GIB

SHAPES_S = 86_400
"""Machine types and their zones are read again after a day."""

MADE_S = 60.0
"""How long the answer to an insert is waited for: one that is sold out says so within seconds."""

HOURS_A_MONTH = 730

MOST_DISK_BYTES = 64 * 2**40
"""Of a balanced disk, persistent or hyper (docs.cloud.google.com/compute/docs/disks)."""

TAKES_GPUS = ("n1-standard-", "n1-highmem-")


@frozen
class Settings:
    """What the configuration says of one project; ``types`` are patterns of machine types."""

    project: str | None
    regions: tuple[str, ...]
    types: tuple[str, ...]
    reservations: tuple[str, ...]
    credentials_file: str | None
    image: str
    disk_bytes: int
    disk_usd_gib_month: float
    address_usd_hour: float
    network: str
    public_address: bool
    url: str


class Compute:
    """Machines of one project.

    Args:
        backend: The backend's name, for errors and offers.
        settings: What the configuration says.
        cache: Where machine types are kept.
    """

    def __init__(self, backend: str, settings: Settings, *, cache: Path) -> None:
        self._backend = backend
        self._settings = settings
        self._cache = cache
        self._signing = Signing(backend, settings.credentials_file)
        self._api = Rest(
            f"{settings.url.rstrip('/')}/compute/v1/projects", backend=backend, sign=self._signing.header,
            read=read, fixes=FIXES,
        )  # fmt: skip
        self._compact = Compact(self._api, self._project, pages=self._pages, finish=self._finish)

    # -- offers ----------------------------------------------------------------------------------

    def offers(self) -> Sequence[Offer]:
        """Return every machine type of the settings in every zone that has it, on demand and as spot."""
        settings = self._settings
        growth = Growth(settings.disk_usd_gib_month / HOURS_A_MONTH, most_bytes=MOST_DISK_BYTES)
        types = self._types()
        reserved = self._reserved({(zone, shape["instance_type"]) for zone, shape in types})
        return [
            offer
            for zone, shape in types
            for offer in offers_of(
                shape,
                zone,
                backend=self._backend,
                disk_bytes=settings.disk_bytes,
                growth=growth,
                address_usd_hour=settings.address_usd_hour,
                reserved=reserved.get((zone, shape["instance_type"]), {}),
            )
        ]

    def _reserved(self, known: Collection[tuple[str, str]]) -> dict[tuple[str, str], dict[str, int]]:
        """Return how many machines are free in each configured reservation, by zone and type.

        Nobody is asked where none is configured.
        """
        found: dict[tuple[str, str], dict[str, int]] = {}
        if not self._settings.reservations:
            return found
        for where, scope in self._pages("/aggregated/reservations", maxResults="500"):
            for one in scope.get("reservations") or ():
                said = one.get("specificReservation") or {}
                kind = (
                    where.removeprefix("zones/"),
                    said.get("instanceProperties", {}).get("machineType", ""),
                )
                if one["name"] in self._settings.reservations and one["status"] == "READY" and kind in known:
                    free = int(said.get("count", 0)) - int(said.get("inUseCount", 0))
                    found.setdefault(kind, {})[one["name"]] = free
        return found

    def _types(self) -> list[tuple[str, dict[str, Any]]]:
        """Return zones and the shapes they have, as they were read at most a day ago."""
        settings = self._settings
        path = self._cache / cache_name("types", self._project(), *settings.regions, pattern(settings.types))

        def ask() -> list[tuple[str, dict[str, Any]]]:
            return sorted(self._ask_types(), key=lambda each: (each[0], each[1]["instance_type"]))

        return [(zone, shape) for zone, shape in kept(path, SHAPES_S, ask)]

    def _ask_types(self) -> Iterator[tuple[str, dict[str, Any]]]:
        settings = self._settings
        wanted = f'name eq "{pattern(settings.types)}"'
        gpus = self._ask_gpus()
        for where, scope in self._pages("/aggregated/machineTypes", filter=wanted, maxResults="500"):
            zone = where.removeprefix("zones/")
            if zone.rsplit("-", 1)[0] in settings.regions:
                for machine_type in scope.get("machineTypes") or ():
                    shape = shape_of(machine_type)
                    if shape is None or machine_type.get("deprecated"):
                        continue
                    takes_gpus = shape["instance_type"].startswith(TAKES_GPUS)
                    if not takes_gpus or is_named(settings.types, shape["instance_type"]):
                        yield zone, shape
                    if takes_gpus:
                        yield from ((zone, each) for each in with_gpus(shape, gpus.get(zone, ())))

    def _ask_gpus(self) -> dict[str, list[str]]:
        """Return the types of GPUs that can be attached in each zone."""
        wanted = " OR ".join(f'(name = "{gpu.type}")' for gpu in GPUS.values())
        scopes = self._pages("/aggregated/acceleratorTypes", filter=wanted, maxResults="500")
        return {
            where.removeprefix("zones/"): [one["name"] for one in scope.get("acceleratorTypes") or ()]
            for where, scope in scopes
        }

    def _pages(self, path: str, **query: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield the scopes of an aggregated list with what is in them, page by page."""
        more: dict[str, str] = {}
        while True:
            page = self._api.get(f"/{self._project()}{path}", where=self._project(), **query, **more)
            yield from (page.get("items") or {}).items()
            if not page.get("nextPageToken"):
                return
            more = {"pageToken": page["nextPageToken"]}

    # -- machines --------------------------------------------------------------------------------

    def create(self, order: Order) -> Vm:
        """Insert one instance under the key's name, and wait until it is known whether there is room."""
        rent = order.rent
        if rent.region not in self._settings.regions or not rent.zone:
            raise Rejected(
                f"{where_of(rent)}: the region is not configured",
                backend=self._backend,
                fix="add it to regions of this backend, or plan again",
            )
        # a request id makes an insert that is sent twice within an hour count once
        request = str(uuid.uuid5(uuid.NAMESPACE_OID, order.key))
        where = where_of(rent)
        zone = f"/{self._project()}/zones/{rent.zone}"
        body = self._instance(order)
        if policy := self._compact.of(order):
            body["resourcePolicies"] = [policy]
        try:
            operation = self._api.send("POST", f"{zone}/instances", body, where=where, requestId=request)
        except Taken:  # the name is that of this key
            return self._alive(order)
        self._finish(operation, zone, where)
        return self._alive(order)

    def _done(self, operation: Mapping[str, Any], scope: str, where: str) -> Mapping[str, Any]:
        """Return an operation that has ended, or what it is when it takes long.

        An instance is listed while its operation goes on; the boot's own limit holds after that.
        """
        deadline = time.monotonic() + MADE_S
        pause = threading.Event()
        while operation["status"] != "DONE" and time.monotonic() < deadline:
            # "wait" answers once it is done, or after two minutes at most
            operation = self._api.send("POST", f"{scope}/operations/{operation['name']}/wait", where=where)
            if operation["status"] != "DONE":
                pause.wait(0.2)
        return operation

    def _alive(self, order: Order) -> Vm:
        """Return the instance of an order's key.

        Raises:
            KeySpent: it has ended; one that is only powered off is deleted.
            Busy: it is being deleted: its name is not free yet.
        """
        rent = order.rent
        wanted = Vm(name_of(order.key), "pending", rent.instance_type, rent.region, zone=rent.zone or "")
        found = self.get(wanted)
        if found is None:
            raise KeySpent
        if found.is_alive:
            return found
        if found.state == "ended":
            self.terminate(found)
            raise KeySpent
        raise Busy(f"{where_of(rent)}: an earlier machine of this launch ends", backend=self._backend)

    def _instance(self, order: Order) -> dict[str, Any]:
        settings, rent = self._settings, order.rent
        disk_gib = -(-(rent.disk_bytes or settings.disk_bytes) // GIB)
        disk = "hyperdisk-balanced" if rent.instance_type.startswith(HYPERDISK_ONLY) else "pd-balanced"
        network: dict[str, Any] = {
            "subnetwork" if "/subnetworks/" in settings.network else "network": settings.network
        }
        if settings.public_address:
            network["accessConfigs"] = [{"type": "ONE_TO_ONE_NAT", "name": "External NAT"}]
        scheduling: dict[str, Any] = {
            "automaticRestart": False, "onHostMaintenance": "TERMINATE",
            # it stays until we have seen that it was taken away: then it is deleted
            **({"provisioningModel": "SPOT", "instanceTerminationAction": "STOP"} if rent.spot else {}),
        }  # fmt: skip
        machine_type, gpu, gpus = taken_apart(rent.instance_type)
        body: dict[str, Any] = {
            "name": name_of(order.key),
            "machineType": f"zones/{rent.zone}/machineTypes/{machine_type}",
            "labels": labels_of(order.tags),
            "scheduling": scheduling,
            "networkInterfaces": [network],
            "disks": [
                {
                    "boot": True, "autoDelete": True,
                    "initializeParams": {
                        "sourceImage": settings.image, "diskSizeGb": str(disk_gib),
                        "diskType": f"zones/{rent.zone}/diskTypes/{disk}",
                        "labels": labels_of(order.tags),
                    },
                }
            ],
            "metadata": {
                "items": [
                    {"key": "user-data", "value": order.user_data},
                    {"key": "block-project-ssh-keys", "value": "TRUE"},
                ]
            },
        }  # fmt: skip
        if gpus:
            kind = f"zones/{rent.zone}/acceleratorTypes/{gpu}"
            body["guestAccelerators"] = [{"acceleratorType": kind, "acceleratorCount": gpus}]
        if rent.reservation:
            body["reservationAffinity"] = {
                "consumeReservationType": "SPECIFIC_RESERVATION",
                "key": "compute.googleapis.com/reservation-name", "values": [rent.reservation],
            }  # fmt: skip
        return body

    def get(self, vm: Vm) -> Vm | None:
        """Return an instance as it is now."""
        try:
            path = f"/{self._project()}/zones/{vm.zone}/instances/{vm.id}"
            return self._told(vm_of(self._api.get(path, where=vm.id)))
        except Gone:
            return None

    def list(self, tags: Mapping[str, str]) -> Sequence[Vm]:
        """Return all instances with these tags, in every zone of the project."""
        wanted = " AND ".join(f'(labels.{key} = "{each}")' for key, each in sorted(labels_of(tags).items()))
        scopes = self._pages("/aggregated/instances", filter=wanted, maxResults="500")
        found = [vm_of(one) for _, scope in scopes for one in scope.get("instances") or ()]
        return [self._told(vm) for vm in found if tags.items() <= vm.tags.items()]

    def _told(self, vm: Vm) -> Vm:
        """Say of a spot machine that has ended whether it was taken away."""
        if not vm.spot or vm.state not in ("ending", "ended"):
            return vm
        path = f"/{self._project()}/zones/{vm.zone}/operations"
        wanted = 'operationType = "compute.instances.preempted"'
        found = self._api.get(path, where=vm.zone, filter=wanted).get("items") or ()
        ends = f"/instances/{vm.id}"
        return replace(vm, preempted=any(one.get("targetLink", "").endswith(ends) for one in found))

    def tag(self, vm: Vm, tags: Mapping[str, str]) -> None:
        """Set labels of an instance, on top of those it has now."""
        path = f"/{self._project()}/zones/{vm.zone}/instances/{vm.id}"
        now = self._api.get(path, where=vm.id)
        labels = {**(now.get("labels") or {}), **labels_of(tags)}
        body = {"labels": labels, "labelFingerprint": now["labelFingerprint"]}
        operation = self._api.send("POST", f"{path}/setLabels", body, where=vm.id)
        self._finish(operation, f"/{self._project()}/zones/{vm.zone}", vm.id)

    def terminate(self, vm: Vm) -> None:
        """Delete an instance; its disk and address go with it."""
        path = f"/{self._project()}/zones/{vm.zone}/instances/{vm.id}"
        with contextlib.suppress(Gone):
            self._api.send("DELETE", path, where=vm.id)  # it goes on by itself, and frees the name at its end

    def _finish(self, operation: Mapping[str, Any], scope: str, where: str) -> None:
        """Wait for an operation under the path of its zone or region, and raise what it failed of."""
        if refusal := failed(self._done(operation, scope, where)):
            raise self._api.refused(refusal, where)

    # -- what is made besides machines -----------------------------------------------------------

    def belongings(self, tags: Mapping[str, str]) -> Sequence[Belonging]:
        """Return placement policies with these tags, in every region."""
        return self._compact.belongings(tags)

    def discard(self, belonging: Belonging) -> bool:
        """Remove a placement policy; False while a machine that ends still holds it."""
        return self._compact.discard(belonging)

    # -- check -----------------------------------------------------------------------------------

    def check(self) -> Sequence[Check]:
        """Look at the credentials, the regions and their quotas of GPUs."""
        found: list[Check] = []
        for region in self._settings.regions:
            try:
                told = self._api.get(f"/{self._project()}/regions/{region}", where=region)
                found.append(_quotas(region, told.get("quotas") or ()))
            except BackendError as error:
                found.append(Check.failed(f"{region}: answers", error))
        return found

    def _project(self) -> str:
        """Return the project.

        Raises:
            Misconfigured: neither the configuration nor the credentials name one.
        """
        project = self._settings.project or self._signing.project()
        if not project:
            raise Misconfigured(
                f"backend {self._backend!r}: the credentials name no project", backend=self._backend,
                fix="give project in the configuration",
            )  # fmt: skip
        return project


def _quotas(region: str, quotas: Sequence[Mapping[str, Any]]) -> Check:
    """Say which GPUs a region's quotas allow; those of the newest kinds are not told there."""
    gpus = {
        q["metric"]: q["limit"] for q in quotas if "GPUS" in q["metric"] and "COMMITTED" not in q["metric"]
    }
    some = [f"{name} {limit:g}" for name, limit in sorted(gpus.items()) if limit]
    if gpus and not some:
        return Check(
            f"{region}: has a quota of GPUs", False, "every quota of GPUs is 0 there",
            "ask for one (console: IAM & Admin, Quotas), or use another region",
        )  # fmt: skip
    return Check(f"{region}: answers", True, ", ".join(some))
