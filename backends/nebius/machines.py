"""Nebius' compute service as a provider of machines."""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from backends.nebius.channel import Calls
from backends.nebius.messages import BILLING, CAPACITY, COMMON, COMPUTE, IAM, VPC, message
from backends.nebius.refusals import read
from backends.nebius.shapes import free_of, offers_of, price_name, shapes_of, vm_of
from backends.vm.cooling import where_of
from backends.vm.kept import cache_name, kept
from backends.vm.labels import labels_of
from backends.vm.port import KeySpent, Order, Vm
from backends.vm.rest import Gone, Taken
from orchestrator.backend import Check, Growth, Offer, Rent
from orchestrator.errors import BackendError, Busy, Misconfigured, Rejected
from orchestrator.frozen import frozen
from orchestrator.units import GIB

KEPT_S = 86_400
"""Platforms and prices are read again after a day."""

MADE_S = 60.0
"""How long the answer to a create is waited for: one that there is no room for says so within seconds."""

POLL_S = 0.5

INSTANCES = COMPUTE + "InstanceService"
PLATFORMS = COMPUTE + "PlatformService"
OPERATIONS = COMMON + "OperationService"
SUBNETS = VPC + "SubnetService"
PROJECTS = IAM + "ProjectService"
ADVICE = CAPACITY + "ResourceAdviceService"
CALCULATOR = BILLING + "CalculatorService"

READ_WRITE, NETWORK_SSD, STOP, FAIL, FORBID, HOUR = 2, 1, 1, 1, 1, 2
"""Values of the enums ``AttachMode``, ``DiskType``, ``PreemptionPolicy``, ``InstanceRecoveryPolicy``,
``ReservationPolicy.Policy`` and ``FilterAggregationUnitValue``."""

PAGE = 100

MORE_GIB = 1024
"""By how much a disk is larger that is asked about beside those of the settings' size, to learn its price."""


@frozen
class Settings:
    """What the configuration says of one account; each project is in one region."""

    projects: tuple[str, ...]
    credentials_file: str | None
    image_family: str
    disk_bytes: int
    subnets: Mapping[str, str]
    public_address: bool
    url: str | None


@frozen
class Project:
    """A project of the account: its region, and the tenant that it belongs to."""

    id: str
    region: str
    tenant: str


class NebiusMachines:
    """Machines of some projects.

    Args:
        backend: The backend's name, for errors and offers.
        settings: What the configuration says.
        cache: Where platforms and prices are kept.
    """

    def __init__(self, backend: str, settings: Settings, *, cache: Path) -> None:
        self._backend = backend
        self._settings = settings
        self._cache = cache
        self._calls = Calls(backend, credentials_file=settings.credentials_file, url=settings.url)
        self._known: dict[str, Project] = {}

    # -- offers ----------------------------------------------------------------------------------

    def offers(self) -> Sequence[Offer]:
        """Return every preset in the region of each project, on demand and as spot where it can be."""
        found: list[Offer] = []
        for project in self._projects():
            kept = self._kept(project)
            free = self._free(project)
            for shape in kept["shapes"]:
                found += offers_of(
                    shape,
                    project.region,
                    backend=self._backend,
                    disk_bytes=self._settings.disk_bytes,
                    growth=Growth(kept["disk_usd_gib_hour"]),
                    prices=kept["prices"],
                    free=free,
                )
        return found

    def _free(self, project: Project) -> Mapping[tuple[str, bool], int]:
        """Return how many of each kind the capacity advisor sees free; nothing where it may not be asked."""
        request = message(CAPACITY + "ListResourceAdviceRequest")(parent_id=project.tenant, page_size=PAGE)
        found: Counter[tuple[str, bool]] = Counter()
        try:
            advised = self._calls.pages(
                ADVICE, request, CAPACITY + "ListResourceAdviceResponse", where=project.region
            )
            for advice in advised:  # one for each fabric of a region
                for (region, kind, spot), count in free_of(advice):
                    if region == project.region:
                        found[kind, spot] += count
        except BackendError:
            return {}
        return dict(found)

    def _kept(self, project: Project) -> Mapping[str, Any]:
        """Return shapes and prices of a project's region, as they were read at most a day ago."""
        settings = self._settings
        words = (project.id, str(settings.disk_bytes), settings.image_family, str(MORE_GIB))
        path = self._cache / cache_name("region", *words)
        found: Mapping[str, Any] = kept(
            path, KEPT_S, lambda: self._ask(project),
            holds=lambda answer: bool(answer["prices"]),  # who was not answered asks again, and not tomorrow
        )  # fmt: skip
        return found

    def _ask(self, project: Project) -> Mapping[str, Any]:
        request = message(COMPUTE + "ListPlatformsRequest")(parent_id=project.id, page_size=PAGE)
        platforms = self._calls.pages(
            PLATFORMS, request, COMPUTE + "ListPlatformsResponse", where=project.region
        )
        shapes = sorted(
            (shape for each in platforms for shape in shapes_of(each)), key=lambda each: each["instance_type"]
        )
        prices, more = self._prices(project, shapes)
        return {"shapes": shapes, "prices": prices, "disk_usd_gib_hour": more}

    def _prices(
        self, project: Project, shapes: Sequence[Mapping[str, Any]]
    ) -> tuple[Mapping[str, float], float]:
        """Return what a machine of each shape costs by the hour with its disk, and what a GiB more does.

        Nebius' calculator is asked about the very requests that we would make, and about the first with
        a larger disk. Where it may not be asked, the catalog's prices are all there are, without disks.
        """
        kinds = [
            Rent(shape["instance_type"], project.region, spot=spot)
            for shape in shapes
            for spot in ((False, True) if shape["spot"] else (False,))
        ]
        if not kinds:
            return {}, 0.0
        large = replace(kinds[0], disk_bytes=self._settings.disk_bytes + MORE_GIB * GIB)
        request = message(BILLING + "EstimateBatchRequest")(currency="usd")
        request.filter_aggregation_unit.filter_aggregation_unit_values.append(HOUR)
        for rent in (*kinds, large):
            asked = self._request(project, "estimate", rent, {})
            spec = request.resource_specs.add().spec
            spec.type_url = f"type.googleapis.com/{COMPUTE}CreateInstanceRequest"
            spec.value = asked.SerializeToString()
        try:
            answer = self._calls.look(
                CALCULATOR, "EstimateBatch", request, BILLING + "EstimateBatchResponse", where=project.region
            )
        except BackendError:
            return {}, 0.0
        costs = [each for each in answer.resource_costs if each.aggregation_unit.unit.lower() == "hour"]
        if len(costs) != len(kinds) + 1:  # which is which is said by their order alone
            return {}, 0.0
        usd_hour = [float(each.general.total.cost) for each in costs]
        prices = {
            price_name(rent.instance_type, spot=rent.spot): round(each, 6)
            for rent, each in zip(kinds, usd_hour, strict=False)
        }
        return prices, max(0.0, usd_hour[-1] - usd_hour[0]) / MORE_GIB

    # -- machines --------------------------------------------------------------------------------

    def create(self, order: Order) -> Vm:
        """Create the instance of the key's name, and wait until it is known whether there is room."""
        rent = order.rent
        where = where_of(rent)
        project = self._project_of(rent)
        found = self._by_name(project, name_of(order.key))
        if found is not None:
            return self._usable(found, where)
        request = self._request(project, name_of(order.key), rent, order.tags)
        request.spec.cloud_init_user_data = order.user_data
        network = request.spec.network_interfaces[0]
        network.subnet_id = self._subnet(project)
        try:
            operation = self._calls.change(
                INSTANCES, "Create", request, COMMON + "Operation", where=where, key=request_id(order.key)
            )
        except Taken:  # somebody was faster
            pass
        else:
            operation = self._done(operation, where)
            status = operation.status
            if operation.HasField("status") and status.code:
                # one that could not be made stays, and its disk is paid for
                self._delete(operation.resource_id)
                raise self._calls.refused(read(status.code, status.message, status.details), where)
        made = self._by_name(project, name_of(order.key))
        if made is None:
            raise KeySpent
        return self._usable(made, where)

    def _usable(self, vm: Vm, where: str) -> Vm:
        """Return the instance of a key where it is of use.

        Raises:
            KeySpent: it has ended; one that is only powered off is deleted.
            Busy: it is being deleted, and its name is not free yet.
        """
        if vm.is_alive:
            return vm
        if vm.state == "ended":
            self.terminate(vm)
            raise KeySpent
        raise Busy(f"{where}: an earlier machine of this launch ends", backend=self._backend)

    def _request(self, project: Project, name: str, rent: Rent, tags: Mapping[str, str]) -> Any:
        """Return the request for an instance, as far as it decides the price."""
        settings = self._settings
        platform, _, preset = rent.instance_type.partition("_")
        request = message(COMPUTE + "CreateInstanceRequest")()
        request.metadata.parent_id, request.metadata.name = project.id, name
        request.metadata.labels.update(labels_of(tags))
        spec = request.spec
        spec.resources.platform, spec.resources.preset = platform, preset
        # powering itself off is how a machine that is abandoned ends: it must not be started again
        spec.recovery_policy = FAIL
        network = spec.network_interfaces.add(name="eth0")
        network.ip_address.SetInParent()
        if settings.public_address:
            network.public_ip_address.SetInParent()
        disk = spec.boot_disk
        disk.attach_mode = READ_WRITE
        disk.managed_disk.name = name
        disk.managed_disk.labels.update(labels_of(tags))
        disk.managed_disk.spec.size_gibibytes = -(-(rent.disk_bytes or settings.disk_bytes) // GIB)
        disk.managed_disk.spec.type = NETWORK_SSD
        disk.managed_disk.spec.source_image_family.image_family = settings.image_family
        if rent.spot:
            spec.preemptible.on_preemption = STOP
        spec.reservation_policy.policy = FORBID  # what is reserved is for those who ask for it
        return request

    def _done(self, operation: Any, where: str) -> Any:
        """Return an operation that has ended, or what it is when it takes long."""
        deadline = time.monotonic() + MADE_S
        pause = threading.Event()
        while not operation.HasField("status") and time.monotonic() < deadline:
            pause.wait(POLL_S)
            request = message(COMMON + "GetOperationRequest")(id=operation.id)
            operation = self._calls.look(OPERATIONS, "Get", request, COMMON + "Operation", where=where)
        return operation

    def _by_name(self, project: Project, name: str) -> Vm | None:
        request = message(COMMON + "GetByNameRequest")(parent_id=project.id, name=name)
        try:
            found = self._calls.look(INSTANCES, "GetByName", request, COMPUTE + "Instance", where=name)
        except Gone:
            return None
        return vm_of(found, project.region)

    def _read(self, vm: Vm) -> Any:
        request = message(COMPUTE + "GetInstanceRequest")(id=vm.id)
        return self._calls.look(INSTANCES, "Get", request, COMPUTE + "Instance", where=vm.id)

    def get(self, vm: Vm) -> Vm | None:
        """Return an instance as it is now."""
        try:
            return vm_of(self._read(vm), vm.region)
        except Gone:
            return None

    def list(self, tags: Mapping[str, str]) -> Sequence[Vm]:
        """Return all instances with these labels, in every project."""
        return [vm for vm in self._all() if tags.items() <= vm.tags.items()]

    def _all(self) -> Iterator[Vm]:
        for project in self._projects():
            request = message(COMPUTE + "ListInstancesRequest")(parent_id=project.id, page_size=PAGE)
            for one in self._calls.pages(
                INSTANCES, request, COMPUTE + "ListInstancesResponse", where=project.region
            ):
                yield vm_of(one, project.region)

    def tag(self, vm: Vm, tags: Mapping[str, str]) -> None:
        """Set labels of an instance, on top of those it has now.

        An update replaces what it names and keeps what it leaves out; labels are replaced as a whole. What
        was read is written back with its version, so that two who change it at once do not undo each other.
        """
        now = self._read(vm)
        request = message(COMPUTE + "UpdateInstanceRequest")(metadata=now.metadata, spec=now.spec)
        request.metadata.labels.update(labels_of(tags))
        operation = self._calls.change(INSTANCES, "Update", request, COMMON + "Operation", where=vm.id)
        operation = self._done(operation, vm.id)
        if operation.HasField("status") and operation.status.code:
            status = operation.status
            raise self._calls.refused(read(status.code, status.message, status.details), vm.id)

    def terminate(self, vm: Vm) -> None:
        """Delete an instance; its disk is managed and its address dynamic: they go with it."""
        self._delete(vm.id)

    def _delete(self, machine: str) -> None:
        request = message(COMPUTE + "DeleteInstanceRequest")(id=machine)
        try:
            self._calls.change(INSTANCES, "Delete", request, COMMON + "Operation", where=machine)
        except Gone:
            return

    # -- where things are ------------------------------------------------------------------------

    def _projects(self) -> Sequence[Project]:
        return [self._project(each) for each in self._wanted()]

    def _wanted(self) -> Sequence[str]:
        """Return the ids of the projects.

        Raises:
            Misconfigured: there are none.
        """
        if not self._settings.projects:
            raise Misconfigured(
                f"backend {self._backend!r}: projects: there are none", backend=self._backend,
                fix="give the id of one project for each region: nebius iam project list",
            )  # fmt: skip
        return self._settings.projects

    def _project(self, name: str) -> Project:
        if name not in self._known:
            request = message(IAM + "GetProjectRequest")(id=name)
            found = self._calls.look(PROJECTS, "Get", request, IAM + "Container", where=name)
            region = found.status.region or found.spec.region
            self._known[name] = Project(name, region, found.metadata.parent_id)
        return self._known[name]

    def _project_of(self, rent: Rent) -> Project:
        for project in self._projects():
            if project.region == rent.region:
                return project
        raise Rejected(
            f"{where_of(rent)}: no configured project is in that region", backend=self._backend,
            fix="add one to projects of this backend, or plan again",
        )  # fmt: skip

    def _subnet(self, project: Project) -> str:
        """Return the subnet of a project's machines: the configured one, or the project's default.

        Raises:
            Rejected: there is none.
        """
        given = self._settings.subnets.get(project.region)
        if given:
            return given
        request = message(VPC + "ListSubnetsRequest")(parent_id=project.id, page_size=PAGE)
        found = list(self._calls.pages(SUBNETS, request, VPC + "ListSubnetsResponse", where=project.region))
        # every new project has one of that name (docs.nebius.com/vpc/networking/default)
        found.sort(key=lambda one: (not one.metadata.name.startswith("default"), one.metadata.name))
        if not found:
            raise Rejected(
                f"{project.region}: project {project.id} has no subnet", backend=self._backend,
                fix="make one (nebius vpc subnet create), or name it under subnets of this backend",
            )  # fmt: skip
        return str(found[0].metadata.id)

    # -- check -----------------------------------------------------------------------------------

    def check(self) -> Sequence[Check]:
        """Look at the credentials, and at the region, the platforms and the network of each project."""
        found: list[Check] = []
        for name in self._settings.projects or ("projects",):
            try:
                self._wanted()
                project = self._project(name)
                kinds = self._kept(project)["shapes"]
                subnet = self._subnet(project)
            except BackendError as error:
                found.append(Check.failed(f"{name}: answers", error))
            else:
                told = f"{project.region}: {len(kinds)} kinds of machine, subnet {subnet}"
                found.append(Check(f"{name}: answers", True, told))
        return found


def name_of(key: str) -> str:
    """Return the name of the machine of a key: names are unique in a project.

    >>> name_of("0123456789abcdef" * 2)
    'modelyard-0123456789abcdef0123456789abcdef'
    """
    return f"modelyard-{key}"


def request_id(key: str) -> str:
    """Return what makes a create of a key count once."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, key))
