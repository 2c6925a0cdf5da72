"""TPU machines of one project, over the TPU API (version 2); and both kinds of machine as one provider."""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from backends.gcp.compute import Compute
from backends.gcp.shapes import name_of
from backends.gcp.signing import Signing
from backends.gcp.slices import (
    GENERATIONS,
    GONE,
    gone_of,
    offers_of,
    slice_of,
    startup_script,
    taken_apart,
    vms_of,
)
from backends.vm.cooling import where_of
from backends.vm.kept import cache_name, kept
from backends.vm.labels import labels_of
from backends.vm.port import DEPLOYMENT, LAUNCH, NAMESPACE, Belonging, Order, Provider, Vm
from backends.vm.rest import Gone, Meaning, Refusal, Rest, Taken, by_status
from orchestrator.backend import LABEL, Check, Offer
from orchestrator.errors import BackendError, Busy, NoCapacity, Rejected
from orchestrator.frozen import frozen

SHAPES_S = 86_400
"""Kinds of slices and their zones are read again after a day."""

MADE_S = 60.0
"""How long the answer to a create is waited for; where it takes longer the boot's own limit holds."""

POLL_S = 1.0

FIXES: Mapping[Meaning, str] = {
    Meaning.SOLD_OUT: "allow another zone or kind of slice",
    Meaning.LIMIT: "ask for a higher quota of the TPU API (console: IAM & Admin, Quotas), or another zone",
    Meaning.EXPIRED: "sign in again: gcloud auth application-default login",
    Meaning.DENIED: "give the account roles/tpu.admin in the project, and enable its Cloud TPU API",
    Meaning.GONE: "plan again: see modelyard offers for what the zone has",
}

_STATUS: Mapping[str, Meaning] = {
    "ALREADY_EXISTS": Meaning.TAKEN, "NOT_FOUND": Meaning.GONE, "PERMISSION_DENIED": Meaning.DENIED,
    "UNAUTHENTICATED": Meaning.EXPIRED, "INVALID_ARGUMENT": Meaning.INVALID,
    "FAILED_PRECONDITION": Meaning.INVALID, "UNAVAILABLE": Meaning.LATER, "INTERNAL": Meaning.LATER,
    "ABORTED": Meaning.LATER, "DEADLINE_EXCEEDED": Meaning.LATER,
}  # fmt: skip
_CODES: Mapping[int, str] = {
    3: "INVALID_ARGUMENT", 4: "DEADLINE_EXCEEDED", 5: "NOT_FOUND", 6: "ALREADY_EXISTS",
    7: "PERMISSION_DENIED", 8: "RESOURCE_EXHAUSTED", 9: "FAILED_PRECONDITION", 10: "ABORTED", 13: "INTERNAL",
    14: "UNAVAILABLE", 16: "UNAUTHENTICATED",
}  # fmt: skip
"""github.com/googleapis/googleapis, google/rpc/code.proto."""


def meaning_of(status: str, message: str) -> Meaning:
    """Return what a status of the TPU API means; one status says that there is none, and limits and rates.

    >>> [meaning_of("RESOURCE_EXHAUSTED", text).name for text in (
    ...     'There is no more capacity in the zone "us-west4-a"; you can try in another zone',
    ...     "Quota limit 'TPUV6EPerProjectPerZoneForTPUAPI' has been exceeded. Limit: 0 in zone us-east5-a.",
    ...     "Quota exceeded for quota metric 'Requests' and limit 'Requests per minute'")]
    ['SOLD_OUT', 'LIMIT', 'LATER']
    """
    if "capacity" in message.lower() and status in (
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "UNAVAILABLE",
    ):
        return Meaning.SOLD_OUT
    if status == "RESOURCE_EXHAUSTED":
        return Meaning.LATER if "per minute" in message else Meaning.LIMIT
    return _STATUS.get(status, Meaning.INVALID)


def read(status: int, body: Any) -> Refusal:
    """Return what the error of a request means (cloud.google.com/apis/design/errors)."""
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return Refusal(by_status(status), f"HTTP {status}")
    code, message = str(error.get("status") or f"HTTP {status}"), str(error.get("message", ""))
    known = code in _STATUS or code == "RESOURCE_EXHAUSTED"
    return Refusal(meaning_of(code, message) if known else by_status(status), code, message)


def failed(operation: Mapping[str, Any]) -> Refusal | None:
    """Return why an operation failed, None where it did not.

    >>> failed({"done": True, "error": {"code": 8, "message": "There is no more capacity in the zone"}})
    Refusal(meaning=<Meaning.SOLD_OUT: 'none to be had now'>, code='RESOURCE_EXHAUSTED', \
message='There is no more capacity in the zone')
    """
    error = operation.get("error")
    if not error:
        return None
    code, message = _CODES.get(int(error.get("code", 2)), "UNKNOWN"), str(error.get("message", ""))
    return Refusal(meaning_of(code, message), code, message)


@frozen
class Settings:
    """What the configuration says of TPU machines; ``generations`` are those that are rented."""

    generations: tuple[str, ...]
    regions: tuple[str, ...]
    runtimes: Mapping[str, str]
    network: str
    public_address: bool
    user: str
    url: str


class Tpu:
    """TPU slices of one project.

    Args:
        backend: The backend's name, for errors and offers.
        settings: What the configuration says.
        signing: Who asks.
        project: The project, when the configuration gives it.
        cache: Where kinds of slices are kept.
    """

    def __init__(
        self, backend: str, settings: Settings, *, signing: Signing, project: str | None, cache: Path
    ) -> None:
        self._backend = backend
        self._settings = settings
        self._signing = signing
        self._given = project
        self._cache = cache
        self._lock = threading.Lock()
        self._api = Rest(
            f"{settings.url.rstrip('/')}/v2", backend=backend, sign=signing.header, read=read, fixes=FIXES
        )

    @property
    def _project(self) -> str:
        return f"projects/{self._given or self._signing.project()}"

    # -- offers ----------------------------------------------------------------------------------

    def offers(self) -> Sequence[Offer]:
        """Return every kind of slice of the configured generations, zone by zone, a machine each."""
        return [
            offer for zone, kind in self._kinds() for offer in offers_of(kind, zone, backend=self._backend)
        ]

    def _kinds(self) -> list[tuple[str, str]]:
        settings = self._settings
        path = self._cache / cache_name("tpus", self._project, *settings.regions, *settings.generations)
        found = kept(path, SHAPES_S, lambda: sorted(self._ask_kinds()))
        return [(zone, kind) for zone, kind in found]

    def _ask_kinds(self) -> Iterator[tuple[str, str]]:
        for location in self._pages(f"/{self._project}/locations", "locations"):
            zone = location["locationId"]
            if zone.rsplit("-", 1)[0] not in self._settings.regions:
                continue
            for one in self._pages(f"/{self._project}/locations/{zone}/acceleratorTypes", "acceleratorTypes"):
                kind = slice_of(one["type"])
                if kind is not None and kind.generation in self._settings.generations:
                    yield zone, one["type"]

    def _pages(self, path: str, key: str) -> Iterator[Mapping[str, Any]]:
        more: dict[str, str] = {}
        while True:
            page = self._api.get(path, where=self._project, pageSize="500", **more)
            yield from page.get(key) or ()
            if not page.get("nextPageToken"):
                return
            more = {"pageToken": page["nextPageToken"]}

    # -- machines --------------------------------------------------------------------------------

    def create(self, order: Order) -> Vm:
        """Create the slice of an order, or of its gang, and return the machine of its rank."""
        rent, where = order.rent, where_of(order.rent)
        kind = slice_of(rent.instance_type)
        if kind is None or not rent.zone or rent.region not in self._settings.regions:
            raise Rejected(f"{where}: no slice of this project's", backend=self._backend, fix="plan it again")
        rank = int(order.tags.get(LABEL + "node", "0")) if kind.machines > 1 else 0
        if rank >= kind.machines or (kind.machines > 1) != bool(order.gang):
            raise Rejected(
                f"{where}: a slice of {kind.machines} machines for another number of nodes",
                backend=self._backend, fix=f"set nodes: {kind.machines}",
            )  # fmt: skip
        name, zone = self._name(order, kind.machines), f"/{self._project}/locations/{rent.zone}"
        try:
            operation = self._api.send(
                "POST", f"{zone}/nodes", self._node(order, kind.generation), where=where, nodeId=name
            )
        except Taken:  # the name is that of this key
            return self._there(zone, name, rank, where)
        if refusal := failed(self._done(operation, where)):
            self._discard(f"{zone}/nodes/{name}")  # what could not be made may be listed, in the way
            raise self._api.refused(refusal, where)
        return self._there(zone, name, rank, where)

    def _name(self, order: Order, machines: int) -> str:
        if machines == 1:
            return name_of(order.key)
        words = (order.tags.get(DEPLOYMENT, ""), order.tags.get(NAMESPACE, ""), order.gang)
        return name_of(hashlib.sha256("\0".join(words).encode()).hexdigest()[:32])

    def _there(self, zone: str, name: str, rank: int, where: str) -> Vm:
        """Return a machine of a slice that was made.

        Raises:
            NoCapacity: it has ended.
            Busy: it is being deleted: its name is not free yet.
        """
        try:
            found = vms_of(self._api.get(f"{zone}/nodes/{name}", where=where))[rank]
        except Gone:
            raise Busy(f"{where}: the slice is not listed", backend=self._backend) from None
        if found.state == "ending" or (found.state == "ended" and not found.lingers):
            raise Busy(f"{where}: an earlier slice of this launch ends", backend=self._backend)
        if found.state == "ended":
            self._discard(f"{zone}/nodes/{name}")
            raise NoCapacity(f"{where}: the slice ended as it was made", backend=self._backend)
        return found

    def _done(self, operation: Mapping[str, Any], where: str) -> Mapping[str, Any]:
        """Return an operation that has ended, or what it is when it takes long."""
        deadline, pause = time.monotonic() + MADE_S, threading.Event()
        while not operation.get("done") and time.monotonic() < deadline:
            operation = self._api.get(f"/{operation['name']}", where=where)
            if not operation.get("done"):
                pause.wait(POLL_S)
        return operation

    def _node(self, order: Order, generation: str) -> dict[str, Any]:
        settings = self._settings
        network: dict[str, Any] = {"enableExternalIps": settings.public_address}
        if "/subnetworks/" in settings.network:
            network["subnetwork"] = settings.network
        else:
            network["network"] = settings.network.rpartition("/")[2]
        body: dict[str, Any] = {
            "acceleratorType": order.rent.instance_type,
            "runtimeVersion": settings.runtimes.get(generation, GENERATIONS[generation].runtime),
            "networkConfig": network,
            "labels": labels_of(order.tags),
            "metadata": {
                "startup-script": startup_script(order.user_data, settings.user),
                "ssh-keys": f"{settings.user}:{order.public_key}",
            },
        }
        if order.rent.spot:
            body["schedulingConfig"] = {"spot": True}
        return body

    def get(self, vm: Vm) -> Vm | None:
        """Return a machine as it is now."""
        name, rank = taken_apart(vm.id)
        with contextlib.suppress(Gone):
            return vms_of(self._api.get(self._path(vm.zone, name), where=vm.id))[rank or 0]
        return None

    def list(self, tags: Mapping[str, str]) -> Sequence[Vm]:
        """Return all machines of slices with these tags, in every zone."""
        nodes = self._pages(f"/{self._project}/locations/-/nodes", "nodes")
        found = (vm for node in nodes if slice_of(node.get("acceleratorType", "")) for vm in vms_of(node))
        return [vm for vm in found if tags.items() <= vm.tags.items()]

    def tag(self, vm: Vm, tags: Mapping[str, str]) -> None:
        """Set labels of a slice; a machine of several that is let go of is done, and kept for nobody."""
        name, rank = taken_apart(vm.id)
        if rank is None:
            self._relabel(self._path(vm.zone, name), labels_of(tags), vm.id)
        elif tags.get(LAUNCH) == "":
            self.terminate(vm)

    def terminate(self, vm: Vm) -> None:
        """Delete a slice; of several machines the last that is done takes all with it."""
        name, rank = taken_apart(vm.id)
        path, kind = self._path(vm.zone, name), slice_of(vm.instance_type)
        with self._lock, contextlib.suppress(Gone):
            if rank is not None and kind is not None:
                node = self._api.get(path, where=vm.id)
                gone = gone_of(node.get("labels") or {}) | {rank}
                if len(gone) < kind.machines and STILL.get(node.get("state", "")):
                    self._relabel(path, {GONE: "_".join(map(str, sorted(gone)))}, vm.id)
                    return
            self._discard(path)

    def _relabel(self, path: str, labels: Mapping[str, str], where: str) -> None:
        now = self._api.get(path, where=where).get("labels") or {}
        operation = self._api.send(
            "PATCH", path, {"labels": {**now, **labels}}, where=where, updateMask="labels"
        )
        if refusal := failed(self._done(operation, where)):
            raise self._api.refused(refusal, where)

    def _discard(self, path: str) -> None:
        with contextlib.suppress(Gone):
            self._api.send("DELETE", path, where=path.rpartition("/")[2])

    def _path(self, zone: str, name: str) -> str:
        return f"/{self._project}/locations/{zone}/nodes/{name}"

    # -- check -----------------------------------------------------------------------------------

    def check(self) -> Sequence[Check]:
        """Look whether the API answers and the regions have slices of the configured generations."""
        try:
            found = {slice_.generation for _, kind in self._ask_kinds() if (slice_ := slice_of(kind))}
        except BackendError as error:
            return [Check.failed("the TPU API answers", error)]
        return [
            Check(f"has TPU {name}", name in found, "", "" if name in found else "add a region that has some")
            for name in self._settings.generations
        ]


STILL: Mapping[str, bool] = {"READY": True, "CREATING": True, "STARTING": True, "REPAIRING": True}
"""States of a slice whose other machines may still work."""


class Both:
    """Machines of Compute Engine and of the TPU API, told apart by their types.

    Args:
        compute: The first.
        tpu: The second.
    """

    def __init__(self, compute: Compute, tpu: Provider) -> None:
        self._compute = compute
        self._tpu = tpu

    def _of(self, kind: _Kind) -> Provider:
        return self._tpu if re.match(r"v\d", kind.instance_type) else self._compute

    def offers(self) -> Sequence[Offer]:
        """Return what both have."""
        return [*self._compute.offers(), *self._tpu.offers()]

    def create(self, order: Order) -> Vm:
        """Create a machine where its type is."""
        return self._of(order.rent).create(order)

    def get(self, vm: Vm) -> Vm | None:
        """Return a machine as it is now."""
        return self._of(vm).get(vm)

    def list(self, tags: Mapping[str, str]) -> Sequence[Vm]:
        """Return all machines with these tags."""
        return [*self._compute.list(tags), *self._tpu.list(tags)]

    def tag(self, vm: Vm, tags: Mapping[str, str]) -> None:
        """Set tags of a machine."""
        self._of(vm).tag(vm, tags)

    def terminate(self, vm: Vm) -> None:
        """End a machine."""
        self._of(vm).terminate(vm)

    def belongings(self, tags: Mapping[str, str]) -> Sequence[Belonging]:
        """Return what was made besides machines, which is for those of Compute Engine."""
        return self._compute.belongings(tags)

    def discard(self, belonging: Belonging) -> bool:
        """Remove it."""
        return self._compute.discard(belonging)

    def check(self) -> Sequence[Check]:
        """Look at both."""
        return [*self._compute.check(), *self._tpu.check()]


class _Kind(Protocol):
    @property
    def instance_type(self) -> str: ...
