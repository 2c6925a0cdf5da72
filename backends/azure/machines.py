"""Azure's virtual machines as a provider, over the Resource Manager's REST API."""

from __future__ import annotations

import base64
import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from backends.azure.refusals import FIXES, failed, read
from backends.azure.shapes import azure_tags, offers_of, shapes_of, vm_of
from backends.azure.signing import Signing
from backends.vm.cooling import where_of
from backends.vm.kept import cache_name, kept
from backends.vm.port import KeySpent, Order, Vm
from backends.vm.rest import Gone, Rest, Taken
from orchestrator.backend import Check, Growth, Offer
from orchestrator.errors import BackendError, Busy, Misconfigured, Rejected
from orchestrator.frozen import frozen
from orchestrator.units import GIB

COMPUTE, NETWORK, SKUS, TAGS = "2024-07-01", "2024-05-01", "2021-07-01", "2021-04-01"
"""Versions of the APIs that are spoken."""

SHAPES_S = 86_400
"""Sizes are read again after a day."""

MADE_S = 90.0
"""How long the answer to a create is waited for: an allocation that fails says so within a minute."""

KNOWN_S = 15.0
"""How long the Resource Manager may say that there is no machine which was just asked for
(learn.microsoft.com/azure/azure-resource-manager/troubleshooting/error-not-found)."""

POLL_S = 0.5

HOURS_A_MONTH = 730

MOST_DISK_BYTES = 4095 * GIB
"""Of the disk that a machine boots from (learn.microsoft.com/azure/virtual-machines/managed-disks-overview).
Sizes between powers of two are paid for as the next one
(azure.github.io/PSRule.Rules.Azure, "Azure.VM.DiskSizeAlignment")."""


@frozen
class Settings:
    """What the configuration says of one resource group; ``types`` are patterns of sizes."""

    subscription: str
    group: str
    regions: tuple[str, ...]
    types: tuple[str, ...]
    image: str
    user: str
    disk_bytes: int
    disk_usd_gib_month: float
    address_usd_hour: float
    subnets: Mapping[str, str]
    ssh_from: tuple[str, ...]
    public_address: bool
    url: str
    login_url: str


class VirtualMachines:
    """Machines of one resource group.

    Args:
        backend: The backend's name, for errors and offers.
        settings: What the configuration says.
        cache: Where sizes are kept.
    """

    def __init__(self, backend: str, settings: Settings, *, cache: Path) -> None:
        self._backend = backend
        self._settings = settings
        self._cache = cache
        self._api = Rest(
            settings.url, backend=backend, sign=Signing(backend, settings.login_url).header, read=read,
            fixes=FIXES,
        )  # fmt: skip
        self._addresses: dict[str, tuple[str | None, str | None]] = {}
        self._networks: dict[str, str] = {}

    # -- offers ----------------------------------------------------------------------------------

    def offers(self) -> Sequence[Offer]:
        """Return every size of the settings in every region that lets us have it, also as spot."""
        settings = self._settings
        price = settings.disk_usd_gib_month / HOURS_A_MONTH
        growth = Growth(price, most_bytes=MOST_DISK_BYTES, doubles=True)
        return [
            offer
            for region in settings.regions
            for shape in self._shapes(region)
            for offer in offers_of(
                shape,
                region,
                backend=self._backend,
                disk_bytes=settings.disk_bytes,
                growth=growth,
                address_usd_hour=settings.address_usd_hour,
            )
        ]

    def _shapes(self, region: str) -> list[dict[str, Any]]:
        settings = self._settings
        path = self._cache / cache_name(f"{settings.subscription}-{region}", *settings.types)
        found: list[dict[str, Any]] = kept(path, SHAPES_S, lambda: self._ask_shapes(region))
        return found

    def _ask_shapes(self, region: str) -> list[dict[str, Any]]:
        url = f"/subscriptions/{self._subscription()}/providers/Microsoft.Compute/skus"
        listed = self._pages(url, where=region, **{"api-version": SKUS, "$filter": f"location eq '{region}'"})
        found = shapes_of(list(listed), self._settings.types)
        return sorted(found, key=lambda shape: shape["instance_type"])

    def _pages(self, path: str, *, where: str, **query: str) -> Iterator[Mapping[str, Any]]:
        while path:
            page = self._api.get(path, where=where, **query)
            yield from page.get("value") or ()
            path, query = _below(page.get("nextLink") or ""), {}

    # -- machines --------------------------------------------------------------------------------

    def create(self, order: Order) -> Vm:
        """Make one machine under the key's name, and wait until it is known whether there is room."""
        rent = order.rent
        if rent.region not in self._settings.regions:
            raise Rejected(
                f"{where_of(rent)}: the region is not configured", backend=self._backend,
                fix="add it to regions of this backend, or plan again",
            )  # fmt: skip
        name = f"modelyard-{order.key}"
        machine = self._look(name)
        if machine is None:
            subnet = self._subnet(rent.region)
            with contextlib.suppress(Taken):  # another process was faster
                self._api.send(
                    "PUT", self._path(name), self._machine(order, subnet), where=where_of(rent),
                    **{"api-version": COMPUTE},
                )  # fmt: skip
            machine = self._made(name, where_of(rent))
        vm = self._vm(machine)
        if vm.state in ("ending", "ended"):
            self.terminate(vm)
            raise KeySpent
        return vm

    def _made(self, name: str, where: str) -> Mapping[str, Any]:
        """Return a machine once its making has ended, or as it is when that takes long.

        What Azure could not make stays as a machine that failed: it is deleted, and its reason told. One
        that was just asked for may not be known everywhere yet.

        Raises:
            Busy: it is not known, so that nobody can say whether it is there.
        """
        began, pause = time.monotonic(), threading.Event()
        while True:
            machine, waited_s = self._look(name), time.monotonic() - began
            if machine is None:
                if waited_s > KNOWN_S:
                    raise Busy(f"{where}: the machine is asked for and not known yet", backend=self._backend)
                pause.wait(POLL_S)
                continue
            said = machine["properties"]
            refusal = failed((said.get("instanceView") or {}).get("statuses") or [])
            if refusal is not None:
                self._delete(name)
                raise self._api.refused(refusal, where)
            if said.get("provisioningState") != "Creating" or waited_s > MADE_S:
                return machine
            pause.wait(POLL_S)

    def _machine(self, order: Order, subnet: str) -> dict[str, Any]:
        settings, rent = self._settings, order.rent
        parts = settings.image.split(":")
        image = (
            {"id": settings.image}
            if settings.image.startswith("/")
            else dict(zip(("publisher", "offer", "sku", "version"), parts, strict=True))
        )
        address: dict[str, Any] = {"subnet": {"id": subnet}, "primary": True}
        if settings.public_address:
            address["publicIPAddressConfiguration"] = {
                "name": "public", "sku": {"name": "Standard"},
                "properties": {"deleteOption": "Delete", "publicIPAllocationMethod": "Static"},
            }  # fmt: skip
        card = {
            "primary": True, "deleteOption": "Delete",
            "ipConfigurations": [{"name": "main", "properties": address}],
        }  # fmt: skip
        key = {"path": f"/home/{settings.user}/.ssh/authorized_keys", "keyData": order.public_key}
        properties: dict[str, Any] = {
            "hardwareProfile": {"vmSize": rent.instance_type},
            "storageProfile": {
                "imageReference": image,
                "osDisk": {
                    "createOption": "FromImage", "deleteOption": "Delete",
                    "diskSizeGB": -(-(rent.disk_bytes or settings.disk_bytes) // GIB),
                    "managedDisk": {"storageAccountType": "StandardSSD_LRS"},
                },
            },
            "osProfile": {
                "computerName": f"m-{order.key[:12]}", "adminUsername": settings.user,
                "customData": base64.b64encode(order.user_data.encode()).decode(),
                "linuxConfiguration": {
                    "disablePasswordAuthentication": True, "ssh": {"publicKeys": [key]},
                },
            },
            "networkProfile": {
                "networkApiVersion": "2022-11-01",
                "networkInterfaceConfigurations": [{"name": "card", "properties": card}],
            },
        }  # fmt: skip
        if rent.spot:
            # it stays, without power, until we have seen that it was taken away: then it is deleted
            properties |= {
                "priority": "Spot",
                "evictionPolicy": "Deallocate",
                "billingProfile": {"maxPrice": -1},
            }
        return {"location": rent.region, "tags": azure_tags(order.tags), "properties": properties}

    def _subnet(self, region: str) -> str:
        """Return the subnet of a region: the configured one, or that of a network of our own.

        Both are made by name, so that making them twice changes nothing.
        """
        settings = self._settings
        if region in settings.subnets:
            return settings.subnets[region]
        if region not in self._networks:
            group = f"{self._group()}/providers/Microsoft.Network"
            guard, network = (f"{group}/{kind}/modelyard-{region}" for kind in (
                "networkSecurityGroups", "virtualNetworks",
            ))  # fmt: skip
            rule = {
                "priority": 100, "direction": "Inbound", "access": "Allow", "protocol": "Tcp",
                "sourceAddressPrefixes": list(settings.ssh_from), "sourcePortRange": "*",
                "destinationAddressPrefix": "*", "destinationPortRange": "22",
            }  # fmt: skip
            rules = {"securityRules": [{"name": "ssh", "properties": rule}]}
            subnet = {"addressPrefix": "10.117.0.0/16", "networkSecurityGroup": {"id": guard}}
            whole = {
                "addressSpace": {"addressPrefixes": ["10.117.0.0/16"]},
                "subnets": [{"name": "machines", "properties": subnet}],
            }
            version = {"api-version": NETWORK}
            try:
                self._api.get(network, where=region, **version)
            except Gone:
                for path, properties in ((guard, rules), (network, whole)):
                    body = {"location": region, "properties": properties}
                    self._api.send("PUT", path, body, where=region, **version)
            self._networks[region] = f"{network}/subnets/machines"
        return self._networks[region]

    def get(self, vm: Vm) -> Vm | None:
        """Return a machine as it is now."""
        machine = self._look(vm.id)
        return None if machine is None else self._vm(machine)

    def list(self, tags: Mapping[str, str]) -> Sequence[Vm]:
        """Return all machines of the group with these tags, in every region."""
        url = f"{self._group()}/providers/Microsoft.Compute/virtualMachines"
        wanted = azure_tags(tags).items()
        listed = self._pages(url, where=self._settings.group, **{"api-version": COMPUTE})
        names = [one["name"] for one in listed if wanted <= (one.get("tags") or {}).items()]
        # whether one has power is told one by one
        return [self._vm(one) for name in names if (one := self._look(name)) is not None]

    def _look(self, name: str) -> Mapping[str, Any] | None:
        query = {"api-version": COMPUTE, "$expand": "instanceView"}
        try:
            found: Mapping[str, Any] = self._api.get(self._path(name), where=name, **query)
        except Gone:
            return None
        return found

    def _vm(self, machine: Mapping[str, Any]) -> Vm:
        """Return a machine with its addresses, which are told in two other places."""
        name = machine["name"]
        if name not in self._addresses:
            cards = machine["properties"].get("networkProfile", {}).get("networkInterfaces") or ()
            found = self._address(cards[0]["id"]) if cards else (None, None)
            if not found[1]:
                return vm_of(machine, None, None)
            self._addresses[name] = found
        return vm_of(machine, *self._addresses[name])

    def _address(self, card: str) -> tuple[str | None, str | None]:
        version = {"api-version": NETWORK}
        try:
            first = self._api.get(card, where=card, **version)["properties"]["ipConfigurations"][0][
                "properties"
            ]
            public = first.get("publicIPAddress")
            if public is None:
                return None, first.get("privateIPAddress")
            told = self._api.get(public["id"], where=public["id"], **version)["properties"]
        except Gone:
            return None, None
        address = told.get("ipAddress")
        return address, first.get("privateIPAddress") if address else None

    def tag(self, vm: Vm, tags: Mapping[str, str]) -> None:
        """Set tags of a machine; its others stay."""
        body = {"operation": "Merge", "properties": {"tags": azure_tags(tags)}}
        path = f"{self._path(vm.id)}/providers/Microsoft.Resources/tags/default"
        self._api.send("PATCH", path, body, where=vm.id, **{"api-version": TAGS})

    def terminate(self, vm: Vm) -> None:
        """Delete a machine; its disk, card and address go with it."""
        self._delete(vm.id)
        self._addresses.pop(vm.id, None)

    def _delete(self, name: str) -> None:
        with contextlib.suppress(Gone):
            query = {"api-version": COMPUTE, "forceDeletion": "true"}
            self._api.send("DELETE", self._path(name), where=name, **query)

    # -- check -----------------------------------------------------------------------------------

    def check(self) -> Sequence[Check]:
        """Look at the credentials, the group, and the limits of each region."""
        found: list[Check] = []
        for region in self._settings.regions:
            path = (
                f"/subscriptions/{self._settings.subscription}/providers/Microsoft.Compute/locations/{region}"
            )
            try:
                self._api.get(self._group(), where=self._settings.group, **{"api-version": TAGS})
                usages = list(self._pages(f"{path}/usages", where=region, **{"api-version": COMPUTE}))
                found.append(_quotas(region, usages))
            except BackendError as error:
                found.append(Check.failed(f"{region}: answers", error))
        return found

    def _subscription(self) -> str:
        if not self._settings.subscription:
            raise Misconfigured(
                f"backend {self._backend!r}: subscription is missing", backend=self._backend,
                fix="see: az account show --query id",
            )  # fmt: skip
        return self._settings.subscription

    def _group(self) -> str:
        return f"/subscriptions/{self._subscription()}/resourceGroups/{self._settings.group}"

    def _path(self, name: str) -> str:
        return f"{self._group()}/providers/Microsoft.Compute/virtualMachines/{name}"


def _below(link: str) -> str:
    """Return a link to the next page without its host, which may be spelled with its port.

    >>> _below("https://management.azure.com:443/subscriptions/0/skus?api-version=1&$skiptoken=a%2Bb")
    '/subscriptions/0/skus?api-version=1&$skiptoken=a%2Bb'
    """
    return urlunsplit(("", "", *urlsplit(link)[2:4], ""))


def _quotas(region: str, usages: Sequence[Mapping[str, Any]]) -> Check:
    """Say which families with GPUs a region's limits allow."""
    limits = {one["name"]["value"]: one["limit"] for one in usages}
    gpus = {
        name: limit for name, limit in limits.items() if name.lower().startswith(("standardnc", "standardnd"))
    }
    some = [f"{name} {limit}" for name, limit in sorted(gpus.items()) if limit]
    if gpus and not some:
        return Check(
            f"{region}: has a quota of GPUs", False, "the quota of every family with GPUs is 0 there",
            "ask for one (portal: Quotas), or use another region",
        )  # fmt: skip
    return Check(f"{region}: answers", True, ", ".join(some))
