"""EC2 as a provider of machines, on boto3."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from backends.aws.around import Around, interfaces
from backends.aws.ebs import Ebs
from backends.aws.refusals import GONE, explained, translated
from backends.aws.shapes import growth_of, is_block, offers_of, reserved_offer, shape_of
from backends.vm.cooling import where_of
from backends.vm.disks import Disk
from backends.vm.kept import cache_name, kept
from backends.vm.port import DEPLOYMENT, GANG, KEY, Belonging, KeySpent, Order, Vm
from orchestrator.backend import LABEL, Check, Offer, Rent
from orchestrator.errors import BackendError, Busy, NoCapacity, Rejected
from orchestrator.frozen import frozen
from orchestrator.units import GIB

SHAPES_S = 86_400
"""Instance types and their zones are read again after a day."""

SPOT_S = 300
"""Spot prices are read again after five minutes."""

STATES: Mapping[str, Literal["pending", "running", "ending", "ended"]] = {
    "pending": "pending", "running": "running", "shutting-down": "ending", "stopping": "ending",
    "stopped": "ending", "terminated": "ended",
}  # fmt: skip
"""A machine of ours is never stopped to be started again: it ends where it is powered off."""

MOST_NAMES = 100
"""A filter takes 200 values (DescribeInstanceTypeOfferings); instance types may be 100 in a call."""

CHANGED = "IdempotentParameterMismatch"
"""The same key with another request: a newer image, a later expiry. What was made first is meant."""

_CLIENTS = threading.Lock()

RUN = LABEL + "run"

SPENT = "IdempotentInstanceTerminated"


@frozen
class Settings:
    """What the configuration says of one account.

    ``image_name`` may hold ``*``; the newest image of that name and owner is taken. ``images`` are
    ids by region, which need no look. ``types`` are patterns of instance types.
    """

    regions: tuple[str, ...]
    types: tuple[str, ...]
    images: Mapping[str, str]
    image_owner: str
    image_name: Mapping[str, str]
    disk_bytes: int
    disk_usd_gib_month: float
    address_usd_hour: float
    reservations: tuple[str, ...] = ()
    subnets: tuple[str, ...] = ()
    security_groups: tuple[str, ...] = ()
    ssh_from: tuple[str, ...] = ("0.0.0.0/0",)
    public_address: bool = True
    profile: str | None = None
    endpoint_url: str | None = None


class Ec2:
    """Machines of one AWS account.

    Args:
        backend: The backend's name, for errors and offers.
        settings: What the configuration says.
        cache: Where instance types are kept.
    """

    def __init__(self, backend: str, settings: Settings, *, cache: Path) -> None:
        self._backend = backend
        self._settings = settings
        self._cache = cache
        self._lock = threading.RLock()
        self._images: dict[tuple[str, str], Mapping[str, Any]] = {}
        self._groups: dict[str, str] = {}
        self._around = Around(self._asking, settings.regions)
        self._ebs = Ebs(backend, self._asking, settings.regions)

    # -- offers ----------------------------------------------------------------------------------

    def offers(self) -> Sequence[Offer]:
        """Return every instance type of the settings in every zone that has it."""
        return [offer for region in self._settings.regions for offer in self._offers(region)]

    def _offers(self, region: str) -> Iterator[Offer]:
        disk = self._settings.disk_bytes
        growth = growth_of(self._settings.disk_usd_gib_month)
        beside = growth.usd_hour(disk) + self._settings.address_usd_hour
        types = self._kept(f"{region}-shapes", SHAPES_S, lambda: self._types(region))
        named = [shape["instance_type"] for shape, _ in types if shape["spot"]]
        spot = self._kept(f"{region}-spot", SPOT_S, lambda: self._spot_prices(region, named))
        for shape, zones in types:
            yield from offers_of(
                shape, zones, backend=self._backend, region=region, disk_bytes=disk, growth=growth,
                beside_usd_hour=beside, spot_usd_hour=spot.get(shape["instance_type"], {}),
            )  # fmt: skip
        shapes = {shape["instance_type"]: shape for shape, _ in types}
        for one in self._reserved(region):
            if (shape := shapes.get(one["InstanceType"])) is not None:
                yield reserved_offer(
                    shape,
                    one,
                    backend=self._backend,
                    region=region,
                    disk_bytes=disk,
                    growth=growth,
                    beside_usd_hour=beside,
                )

    def _reserved(self, region: str, only: str | None = None) -> Sequence[Mapping[str, Any]]:
        """Return the configured reservations that are open now; nobody is asked where none is configured."""
        wanted = {only} if only else set(self._settings.reservations)
        if not wanted:
            return []
        active = [{"Name": "state", "Values": ["active"]}]
        with self._asking(region) as ec2:
            found = _pages(ec2, "describe_capacity_reservations", "CapacityReservations", Filters=active)
            return [one for one in found if one["CapacityReservationId"] in wanted]

    def _kept(self, name: str, lasts_s: int, ask: Callable[[], Any]) -> Any:
        return kept(self._cache / cache_name(name, *sorted(self._settings.types)), lasts_s, ask)

    def _types(self, region: str) -> list[tuple[dict[str, Any], list[str]]]:
        wanted = [{"Name": "instance-type", "Values": list(self._settings.types)}]
        zones: dict[str, list[str]] = {}
        with self._asking(region) as ec2:
            described = _pages(ec2, "describe_instance_types", "InstanceTypes", Filters=wanted)
            shapes = sorted(filter(None, map(shape_of, described)), key=lambda shape: shape["instance_type"])
            for names in _some([shape["instance_type"] for shape in shapes]):
                for one in _pages(
                    ec2, "describe_instance_type_offerings", "InstanceTypeOfferings",
                    LocationType="availability-zone", Filters=[{"Name": "instance-type", "Values": names}],
                ):  # fmt: skip
                    zones.setdefault(one["InstanceType"], []).append(one["Location"])
        return [(shape, sorted(zones.get(shape["instance_type"], ()))) for shape in shapes]

    def _spot_prices(self, region: str, types: Sequence[str]) -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = {}
        since = datetime.now(UTC) - timedelta(hours=1)
        with self._asking(region) as ec2:
            for names in _some(types):
                for one in _pages(
                    ec2, "describe_spot_price_history", "SpotPriceHistory", StartTime=since,
                    ProductDescriptions=["Linux/UNIX"], InstanceTypes=names,
                ):  # fmt: skip
                    zones = found.setdefault(one["InstanceType"], {})
                    zones.setdefault(one["AvailabilityZone"], float(one["SpotPrice"]))  # newest first
        return found

    # -- machines --------------------------------------------------------------------------------

    def create(self, order: Order) -> Vm:
        """Run one instance, in one attempt: what is sold out is told, and the caller goes on."""
        rent = order.rent
        region = rent.region
        if region not in self._settings.regions:
            raise Rejected(f"region {region} is not configured", backend=self._backend, fix="plan again")
        where = where_of(rent)
        with translated(backend=self._backend, where=where):
            found = self._run(order, where)
        return self._reached(found, region)

    def _run(self, order: Order, where: str) -> Mapping[str, Any]:
        from botocore.exceptions import ClientError  # heavy: only where a call is made

        rent = order.rent
        request = self._request(order)
        try:
            answer = self._client(rent.region, once=True).run_instances(**request)
        except ClientError as error:
            said = error.response["Error"]
            if said["Code"] == SPENT:
                raise KeySpent from None
            if said["Code"] == CHANGED:
                return self._made_before(order, where)
            raise explained(
                said["Code"], said.get("Message", ""), backend=self._backend, where=where
            ) from None
        found: Mapping[str, Any] = answer["Instances"][0]
        return found

    def _made_before(self, order: Order, where: str) -> Mapping[str, Any]:
        """Return the instance that was made under a key, whatever else was asked for with it."""
        filters = [{"Name": "client-token", "Values": [order.key]}]
        with self._asking(order.rent.region) as ec2:
            pages = _pages(ec2, "describe_instances", "Reservations", Filters=filters)
            found = [one for reservation in pages for one in reservation["Instances"]]
        if not found:  # what was just made is not everywhere yet
            raise Busy(f"{where}: the machine is made and not listed yet", backend=self._backend)
        made: Mapping[str, Any] = found[0]
        return made

    def _request(self, order: Order) -> dict[str, Any]:
        rent, settings = order.rent, self._settings
        image = self._image(rent)
        tags = [{"Key": key, "Value": value} for key, value in sorted(order.tags.items())]
        if "Name" not in order.tags:
            launch = order.tags.get("modelyard.dev/launch", "")
            tags.append({"Key": "Name", "Value": f"modelyard {launch}"})
        request: dict[str, Any] = {
            "ImageId": image["ImageId"], "InstanceType": rent.instance_type, "MinCount": 1, "MaxCount": 1,
            "ClientToken": order.key, "UserData": order.user_data,
            "InstanceInitiatedShutdownBehavior": "terminate",
            "MetadataOptions": {"HttpTokens": "required", "HttpEndpoint": "enabled"},
            "NetworkInterfaces": self._interfaces(order),
            "BlockDeviceMappings": [
                {
                    "DeviceName": image.get("RootDeviceName", "/dev/sda1"),
                    "Ebs": {
                        "VolumeSize": -(-(rent.disk_bytes or settings.disk_bytes) // GIB),
                        "VolumeType": "gp3", "DeleteOnTermination": True,
                    },
                }
            ],
            "TagSpecifications": [
                {"ResourceType": kind, "Tags": tags} for kind in ("instance", "volume")
            ],
        }  # fmt: skip
        if rent.zone:
            request["Placement"] = {"AvailabilityZone": rent.zone}
        if rent.reservation:
            target = {"CapacityReservationId": rent.reservation}
            request["CapacityReservationSpecification"] = {"CapacityReservationTarget": target}
            for one in self._reserved(rent.region, rent.reservation):
                if is_block(one):
                    request["InstanceMarketOptions"] = {"MarketType": "capacity-block"}
                # it is close together as it was reserved, and to be had in its own group only
                if group := one.get("PlacementGroupArn", "").rpartition("/")[2]:
                    request.setdefault("Placement", {})["GroupName"] = group
        elif order.gang and self._shape(rent).get("cluster"):
            request.setdefault("Placement", {})["GroupName"] = self._around.placement_group(order)
        if rent.spot:
            request["InstanceMarketOptions"] = {
                "MarketType": "spot",
                "SpotOptions": {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"},
            }
        return request

    def _interfaces(self, order: Order) -> list[dict[str, Any]]:
        settings, rent = self._settings, order.rent
        groups = list(settings.security_groups) or [self._group(rent.region, order)]
        nodes = list(settings.security_groups)
        if order.gang and not nodes:
            nodes = [self._around.nodes_group(rent.region, order.tags[DEPLOYMENT])]
            groups += nodes
        first: dict[str, Any] = {"DeviceIndex": 0, "Groups": groups}
        subnet = self._subnet(rent)
        if subnet is not None:
            first["SubnetId"] = subnet
        cards = int(self._shape(rent).get("efa", 0)) if order.gang else 0
        if cards > 1 and subnet is None:  # several interfaces have each to name theirs
            first["SubnetId"] = self._default_subnet(rent)
        return interfaces(cards, first=first, nodes=nodes, public=settings.public_address)

    def _image(self, rent: Rent) -> Mapping[str, Any]:
        """Return the newest image of the configured name, or the one with the configured id."""
        arch = str(self._shape(rent)["arch"])
        with self._lock:
            known = self._images.get((rent.region, arch))
            if known is None:
                known = self._images[rent.region, arch] = self._find_image(rent.region, arch)
            return known

    def _find_image(self, region: str, arch: str) -> Mapping[str, Any]:
        settings = self._settings
        given = settings.images.get(region)
        name = settings.image_name[arch]
        ask: dict[str, Any] = {"ImageIds": [given]} if given else {
            "Owners": [settings.image_owner],
            "Filters": [
                {"Name": "name", "Values": [name]}, {"Name": "state", "Values": ["available"]},
            ],
        }  # fmt: skip
        with self._asking(region) as ec2:
            found = ec2.describe_images(**ask)["Images"]
        if not found:
            raise Rejected(
                f"no image {given or repr(name)} in {region}", backend=self._backend,
                fix="correct image_owner and image_name, or give images: {REGION: ami-…}",
            )  # fmt: skip
        newest: Mapping[str, Any] = max(found, key=lambda image: image.get("CreationDate", ""))
        return newest

    def _shape(self, rent: Rent) -> Mapping[str, Any]:
        for shape, _ in self._kept(f"{rent.region}-shapes", SHAPES_S, lambda: self._types(rent.region)):
            if shape["instance_type"] == rent.instance_type:
                found: Mapping[str, Any] = shape
                return found
        raise Rejected(
            f"{rent.instance_type} is not offered in {rent.region}", backend=self._backend, fix="see: offers"
        )

    def _subnet(self, rent: Rent) -> str | None:
        """Return the configured subnet of the machine's zone; without any, the zone's default one."""
        if not self._settings.subnets:
            return None
        with self._asking(rent.region) as ec2:
            found = ec2.describe_subnets(
                Filters=[{"Name": "subnet-id", "Values": list(self._settings.subnets)}]
            )["Subnets"]
        for subnet in found:
            if rent.zone in (None, subnet["AvailabilityZone"]):
                return str(subnet["SubnetId"])
        raise NoCapacity(f"no configured subnet is in {rent.zone}", backend=self._backend, fix="add one")

    def _default_subnet(self, rent: Rent) -> str:
        wanted = {"default-for-az": "true", "availability-zone": rent.zone or ""}
        with self._asking(rent.region) as ec2:
            filters = [{"Name": name, "Values": [value]} for name, value in wanted.items()]
            found = ec2.describe_subnets(Filters=filters)["Subnets"]
        if not found:
            raise NoCapacity(
                f"{rent.zone} has no default subnet",
                backend=self._backend,
                fix="give subnets to this backend",
            )
        return str(found[0]["SubnetId"])

    def _group(self, region: str, order: Order) -> str:
        """Return the security group of our deployment, made the first time: SSH in, everything out."""
        name = f"modelyard-{order.tags[DEPLOYMENT]}"
        with self._lock:
            if region not in self._groups:
                self._groups[region] = self._find_group(region, name, order.tags[DEPLOYMENT])
            return self._groups[region]

    def _find_group(self, region: str, name: str, deployment: str) -> str:
        from botocore.exceptions import ClientError

        with self._asking(region) as ec2:
            found = ec2.describe_security_groups(Filters=[{"Name": "group-name", "Values": [name]}])
            if found["SecurityGroups"]:
                return str(found["SecurityGroups"][0]["GroupId"])
            tags = [{"ResourceType": "security-group", "Tags": [{"Key": DEPLOYMENT, "Value": deployment}]}]
            try:
                made = ec2.create_security_group(
                    GroupName=name, Description="SSH to machines of modelyard", TagSpecifications=tags
                )["GroupId"]
            except ClientError as error:
                if error.response["Error"]["Code"] != "InvalidGroup.Duplicate":
                    raise
                return self._find_group(region, name, deployment)  # another process was faster
            ec2.authorize_security_group_ingress(
                GroupId=made,
                IpPermissions=[
                    {
                        "IpProtocol": "tcp", "FromPort": 22, "ToPort": 22,
                        "IpRanges": [{"CidrIp": cidr} for cidr in self._settings.ssh_from],
                    }
                ],
            )  # fmt: skip
            return str(made)

    def get(self, vm: Vm) -> Vm | None:
        """Return an instance as it is now."""
        found = self._instances(vm.region, [{"Name": "instance-id", "Values": [vm.id]}])
        return self._reached(found[0], vm.region) if found else None

    def list(self, tags: Mapping[str, str]) -> Sequence[Vm]:
        """Return all instances with these tags; EC2 lists ended ones for about an hour."""
        filters = [{"Name": f"tag:{key}", "Values": [value]} for key, value in sorted(tags.items())]
        return [vm for region in self._settings.regions for vm in self._describe(region, filters)]

    def _describe(self, region: str, filters: Sequence[Mapping[str, Any]]) -> Sequence[Vm]:
        public = self._settings.public_address
        return [_vm(one, region, public=public) for one in self._instances(region, filters)]

    def _instances(self, region: str, filters: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        with self._asking(region) as ec2:
            pages = _pages(ec2, "describe_instances", "Reservations", Filters=filters)
            return tuple(one for reservation in pages for one in reservation["Instances"])

    def _reached(self, instance: Mapping[str, Any], region: str) -> Vm:
        """Return an instance, with the public address that EC2 does not give to several interfaces."""
        vm = _vm(instance, region, public=self._settings.public_address)
        if vm.address is not None or not vm.is_alive or not vm.tags.get(GANG):
            return vm
        first = next(
            (one for one in instance["NetworkInterfaces"] if _is_first(one)), instance["NetworkInterfaces"][0]
        )
        ours = {word: vm.tags[word] for word in (DEPLOYMENT, GANG, KEY, RUN) if word in vm.tags}
        found = self._around.address(region, ours, first["NetworkInterfaceId"])
        return replace(vm, address=found)

    def belongings(self, tags: Mapping[str, str]) -> Sequence[Belonging]:
        """Return placement groups and addresses with these tags, in every region."""
        return self._around.belongings(tags)

    def discard(self, belonging: Belonging) -> bool:
        """Remove one of them; False while a machine that ends still holds it."""
        return self._around.discard(belonging)

    def tag(self, vm: Vm, tags: Mapping[str, str]) -> None:
        """Set tags of an instance."""
        with self._asking(vm.region) as ec2:
            ec2.create_tags(
                Resources=[vm.id], Tags=[{"Key": key, "Value": value} for key, value in sorted(tags.items())]
            )

    def terminate(self, vm: Vm) -> None:
        """Terminate an instance; its root disk, interfaces and addresses go with it."""
        from botocore.exceptions import ClientError

        with self._asking(vm.region) as ec2:
            try:
                ec2.terminate_instances(InstanceIds=[vm.id])
            except ClientError as error:
                if error.response["Error"]["Code"] not in GONE:
                    raise
        if vm.tags.get(GANG):
            self._around.release(vm.region, vm.tags[KEY])

    # -- disks -----------------------------------------------------------------------------------

    def make_disk(self, *, size_bytes: int, zone: str | None, tags: Mapping[str, str]) -> Disk:
        """Make a volume of EBS."""
        return self._ebs.make(size_bytes=size_bytes, zone=zone, tags=tags)

    def disks(self, tags: Mapping[str, str]) -> Sequence[Disk]:
        """Return all volumes of EBS with these tags, in every region."""
        return self._ebs.find(tags)

    def attach_disk(self, disk: Disk, vm: Vm, *, number: int) -> None:
        """Begin to attach a volume of EBS; it stays when its machine is terminated."""
        self._ebs.attach(disk, vm, number=number)

    def detach_disk(self, disk: Disk) -> None:
        """Begin to detach a volume of EBS."""
        self._ebs.detach(disk)

    def tag_disk(self, disk: Disk, tags: Mapping[str, str]) -> None:
        """Set tags of a volume of EBS."""
        self._ebs.tag(disk, tags)

    def delete_disk(self, disk: Disk) -> None:
        """Delete a volume of EBS."""
        self._ebs.delete(disk)

    # -- check -----------------------------------------------------------------------------------

    def check(self) -> Sequence[Check]:
        """Look at the credentials and the image of every region."""
        found: list[Check] = []
        for region in self._settings.regions:
            try:
                for arch in self._settings.image_name if region not in self._settings.images else ("x86",):
                    image = self._find_image(region, arch)
                    found.append(Check(f"{region}: has an image ({arch})", True, image["ImageId"]))
            except BackendError as error:
                found.append(Check.failed(f"{region}: answers and has an image", error))
        return found

    # -- calls -----------------------------------------------------------------------------------

    def _asking(self, region: str) -> Any:
        """Lend the client of a region; what botocore raises inside leaves as our errors."""
        return _Asking(self, region)

    def _client(self, region: str, *, once: bool = False) -> Any:
        """Return the client of a region; ``once`` for calls that are not repeated behind our back.

        botocore repeats what comes with HTTP 500, which is how EC2 says that a zone is sold out.
        """
        settings = self._settings
        with _CLIENTS:
            return _client(settings.profile, region, settings.endpoint_url, 1 if once else 4)


@functools.cache
def _client(profile: str | None, region: str, endpoint_url: str | None, attempts: int) -> Any:
    """Return a client, the same for all of a process: making one costs 0.3 s of CPU, using it is safe."""
    import boto3  # heavy: only where a call is made
    from botocore.config import Config

    retries = {"mode": "standard", "total_max_attempts": attempts}
    return boto3.Session(profile_name=profile).client(
        "ec2", region_name=region, endpoint_url=endpoint_url,
        config=Config(retries=retries, connect_timeout=10, read_timeout=60),
    )  # fmt: skip


class _Asking:
    def __init__(self, ec2: Ec2, region: str) -> None:
        self._ec2, self._region = ec2, region
        self._translated = translated(backend=ec2._backend, where=region)

    def __enter__(self) -> Any:
        with translated(backend=self._ec2._backend, where=self._region):
            client = self._ec2._client(self._region)
        self._translated.__enter__()
        return client

    def __exit__(self, *raised: Any) -> bool | None:
        return self._translated.__exit__(*raised)


def _pages(client: Any, call: str, key: str, **arguments: Any) -> Iterator[Mapping[str, Any]]:
    for page in client.get_paginator(call).paginate(**arguments):
        yield from page[key]


def _some(names: Sequence[str]) -> Iterator[list[str]]:
    """Yield names in lists that one filter takes."""
    for start in range(0, len(names), MOST_NAMES):
        yield list(names[start : start + MOST_NAMES])


def _is_first(interface: Mapping[str, Any]) -> bool:
    at = interface.get("Attachment") or {}
    return (at.get("DeviceIndex", 0), at.get("NetworkCardIndex", 0)) == (0, 0)


def _vm(instance: Mapping[str, Any], region: str, *, public: bool) -> Vm:
    """Return an instance of DescribeInstances as we see it.

    One with several interfaces gets its public address after it was made, and has none until then.
    """
    private = None if public and len(instance.get("NetworkInterfaces", ())) > 1 else "PrivateIpAddress"
    reason = (instance.get("StateReason") or {}).get("Code", "")
    return Vm(
        id=instance["InstanceId"],
        state=STATES.get(instance["State"]["Name"], "pending"),
        instance_type=instance["InstanceType"],
        region=region,
        zone=instance.get("Placement", {}).get("AvailabilityZone", ""),
        spot=instance.get("InstanceLifecycle") == "spot",
        address=instance.get("PublicIpAddress") or (instance.get(private) if private else None) or None,
        internal_ip=instance.get("PrivateIpAddress"),
        tags={tag["Key"]: tag["Value"] for tag in instance.get("Tags", ())},
        since=instance.get("LaunchTime"),
        preempted=reason in ("Server.SpotInstanceTermination", "Server.SpotInstanceShutdown"),
    )
