"""Volumes of EBS, as disks of machines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from backends.vm.disks import FORMATTED, VOLUME, Disk
from backends.vm.port import Vm
from orchestrator.errors import Rejected
from orchestrator.units import GIB

DEVICE = "/dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_{}"
"""Where a machine of the Nitro system has a volume, by its id without the dash
(docs.aws.amazon.com/ebs/latest/userguide/nvme-ebs-volumes.html)."""

LETTERS = "fghijklmnop"
"""For data volumes: /dev/sd[f-p] (docs.aws.amazon.com/ebs/latest/userguide/device_naming.html)."""

GONE = frozenset({"InvalidVolume.NotFound"})
FREE = frozenset({"InvalidVolume.NotFound", "InvalidAttachment.NotFound", "IncorrectState"})
"""Not there, or at no machine any more."""


class Ebs:
    """The volumes of one account.

    Args:
        backend: The backend's name, for errors.
        asking: Lends the client of a region.
        regions: Those of the configuration.
    """

    def __init__(
        self, backend: str, asking: Callable[[str], AbstractContextManager[Any]], regions: Sequence[str]
    ) -> None:
        self._backend = backend
        self._asking = asking
        self._regions = regions

    def make(self, *, size_bytes: int, zone: str | None, tags: Mapping[str, str]) -> Disk:
        """Make a volume (gp3) in a zone; None is the first zone of the first region.

        Raises:
            Rejected: the zone is in no configured region.
        """
        region = next((each for each in self._regions if zone is None or zone.startswith(each)), None)
        if region is None:
            raise Rejected(
                f"zone {zone} is in no configured region", backend=self._backend,
                fix=f"choose one of {', '.join(self._regions)}, or add its region to the backend",
            )  # fmt: skip
        words = [{"Key": key, "Value": value} for key, value in sorted(tags.items())]
        name = {"Key": "Name", "Value": f"modelyard {tags[VOLUME]}"}
        with self._asking(region) as ec2:
            if zone is None:
                zones = ec2.describe_availability_zones(Filters=[{"Name": "state", "Values": ["available"]}])
                zone = min(each["ZoneName"] for each in zones["AvailabilityZones"])
            made = ec2.create_volume(
                AvailabilityZone=zone, Size=-(-size_bytes // GIB), VolumeType="gp3",
                TagSpecifications=[{"ResourceType": "volume", "Tags": [*words, name]}],
            )  # fmt: skip
        return _disk({**made, "Tags": words}, region)

    def find(self, tags: Mapping[str, str]) -> Sequence[Disk]:
        """Return the named volumes with these tags, ordered by id; disks of machines are none."""
        filters = [{"Name": f"tag:{key}", "Values": [value]} for key, value in sorted(tags.items())]
        filters += [] if VOLUME in tags else [{"Name": "tag-key", "Values": [VOLUME]}]
        found: list[Disk] = []
        for region in self._regions:
            with self._asking(region) as ec2:
                for page in ec2.get_paginator("describe_volumes").paginate(Filters=filters):
                    found += [
                        _disk(one, region) for one in page["Volumes"]
                        if one["State"] not in ("deleting", "deleted")
                    ]  # fmt: skip
        return sorted(found, key=lambda disk: disk.id)

    def attach(self, disk: Disk, vm: Vm, *, number: int) -> None:
        """Begin to attach a volume.

        Raises:
            Rejected: the machine has as many as it takes.
        """
        if number >= len(LETTERS):
            raise Rejected(
                f"a machine takes {len(LETTERS)} volumes", backend=self._backend, fix="mount fewer volumes"
            )
        with self._asking(disk.region) as ec2:
            ec2.attach_volume(VolumeId=disk.id, InstanceId=vm.id, Device=f"/dev/sd{LETTERS[number]}")

    def detach(self, disk: Disk) -> None:
        """Begin to detach a volume."""
        self._unless(FREE, disk, "detach_volume", InstanceId=disk.machine)

    def tag(self, disk: Disk, tags: Mapping[str, str]) -> None:
        """Set tags of a volume."""
        with self._asking(disk.region) as ec2:
            words = [{"Key": key, "Value": value} for key, value in sorted(tags.items())]
            ec2.create_tags(Resources=[disk.id], Tags=words)

    def delete(self, disk: Disk) -> None:
        """Delete a volume."""
        self._unless(GONE, disk, "delete_volume")

    def _unless(self, codes: frozenset[str], disk: Disk, call: str, **more: Any) -> None:
        from botocore.exceptions import ClientError  # heavy: only where a call is made

        with self._asking(disk.region) as ec2:
            try:
                getattr(ec2, call)(VolumeId=disk.id, **more)
            except ClientError as error:
                if error.response["Error"]["Code"] not in codes:
                    raise


def _disk(volume: Mapping[str, Any], region: str) -> Disk:
    """Return a volume of DescribeVolumes as we see it."""
    tags = {tag["Key"]: tag["Value"] for tag in volume.get("Tags", ())}
    at = next((one for one in volume.get("Attachments", ()) if one["State"] != "detached"), None)
    return Disk(
        id=volume["VolumeId"],
        name=tags.get(VOLUME, ""),
        zone=volume["AvailabilityZone"],
        region=region,
        size_bytes=volume["Size"] * GIB,
        machine=at["InstanceId"] if at else "",
        is_attached=at is not None and at["State"] == "attached",
        is_formatted=FORMATTED in tags,
        device=DEVICE.format(volume["VolumeId"].replace("-", "")),
    )
