"""AWS: machines of EC2 that are rented for a launch, over SSH and Docker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import ClassVar

from backends.aws.ec2 import Ec2, Settings
from backends.vm import RentedMachines, boot
from backends.vm.options import cache_folder, networks, size_bytes, words
from orchestrator.backend import Can
from orchestrator.errors import ConfigError

IMAGE_NAMES: Mapping[str, str] = {
    "x86": "Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04) *",
    "arm": "Deep Learning ARM64 Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04) *",
}
"""AWS's own images with driver, Docker and NVIDIA's container toolkit
(docs.aws.amazon.com/dlami/latest/devguide, release notes of gpubaseossarm64-ul2204 and its like)."""

GP3_USD_GIB_MONTH = 0.08
"""us-east-1, aws.amazon.com/ebs/pricing; set ``disk_usd_gib_month`` where it differs."""

ADDRESS_USD_HOUR = 0.005
"""Every region, aws.amazon.com/vpc/pricing, "Public IPv4 Address" (read on 2026-10-16 by
ChiefGyk3D/Clouds-Against-Humanity, wiki, "Provider AWS Cost Lesson")."""


NOTICE = boot.Notice(
    "T=$(curl -sf -m 2 -X PUT http://169.254.169.254/latest/api/token "
    "-H 'X-aws-ec2-metadata-token-ttl-seconds: 60') && curl -sf -m 2 -o /dev/null "
    '-H "X-aws-ec2-metadata-token: $T" http://169.254.169.254/latest/meta-data/spot/instance-action',
    100,
)
"""Two minutes before a spot machine is taken away its metadata has a page that it lacks until then
(docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html)."""


class Aws(RentedMachines):
    """Runs each launch on an EC2 instance that is rented for it.

    Args:
        name: The backend's name in the configuration.
        regions: Where machines are rented.
        instance_types: Patterns of instance types, added to all with GPUs (``g*``, ``p*``).
        profile: The profile of AWS's configuration; default: what its tools would use.
        image_name: The image's name, with ``*``; the newest is taken. Default: AWS's Deep Learning
            Base image. The image brings Docker, and the driver where there are GPUs.
        image_owner: Its owner: ``amazon``, ``self`` or an account's number.
        images: Image ids by region, in place of the name.
        user: Who logs in on that image.
        port: Its SSH port.
        disk: The size of a machine's disk, such as ``200GiB``.
        disk_usd_gib_month: What a GiB of it costs a month; it is part of every price.
        address_usd_hour: What a public address costs an hour; it is part of every price of machines that
            get one.
        reservations: Ids of capacity reservations and capacity blocks that specs may name.
        subnets: Where machines get their addresses; default: the default subnet of each zone.
        security_groups: Their security groups; default: one is made that lets SSH in.
        ssh_from: The networks that this group lets in.
        public_address: Whether machines get a public address.
        identity_file: The private key for the machines; default: one is made for this user.
        deployment: Tells our machines from others' of the account, and has to be the same for all
            that share a record; default: one is made for this user.
        namespace: Begins the names of containers.
        abandoned_after: How long a machine stays up after it last heard of us.
        boot_timeout: How long a machine may take until its engine answers.
        timeout_s: How long one answer of an engine may take.
        endpoint_url: Another address of EC2's API.

    Raises:
        ConfigError: an option has no such value, or boto3 is not installed.
    """

    can: ClassVar[frozenset[Can]] = RentedMachines.can | {Can.NODES, Can.VOLUMES}

    def __init__(
        self,
        name: str = "aws",
        *,
        regions: Sequence[str] = ("us-east-1",),
        instance_types: Sequence[str] = (),
        profile: str | None = None,
        image_name: str | None = None,
        image_owner: str = "amazon",
        images: Mapping[str, str] | None = None,
        user: str = "ubuntu",
        port: int = 22,
        disk: str = "200GiB",
        disk_usd_gib_month: float = GP3_USD_GIB_MONTH,
        address_usd_hour: float = ADDRESS_USD_HOUR,
        reservations: Sequence[str] = (),
        subnets: Sequence[str] = (),
        security_groups: Sequence[str] = (),
        ssh_from: Sequence[str] = ("0.0.0.0/0",),
        public_address: bool = True,
        identity_file: str | None = None,
        deployment: str | None = None,
        namespace: str = "modelyard",
        abandoned_after: str = "1d",
        boot_timeout: str = "10m",
        timeout_s: float = 30.0,
        endpoint_url: str | None = None,
    ) -> None:
        if find_spec("boto3") is None:  # it is imported with the first call
            raise ConfigError(
                f"backend {name!r} needs a package that is not installed: boto3",
                fix="pip install 'modelyard[aws]'",
            )
        settings = Settings(
            regions=words(name, "regions", regions, least=1),
            types=("g*", "p*", *words(name, "instance_types", instance_types)),
            images=dict(images or {}),
            image_owner=image_owner,
            image_name=IMAGE_NAMES if image_name is None else dict.fromkeys(IMAGE_NAMES, image_name),
            disk_bytes=size_bytes(name, "disk", disk),
            disk_usd_gib_month=disk_usd_gib_month,
            address_usd_hour=address_usd_hour if public_address else 0.0,
            reservations=words(name, "reservations", reservations),
            subnets=words(name, "subnets", subnets),
            security_groups=words(name, "security_groups", security_groups),
            ssh_from=networks(name, "ssh_from", ssh_from),
            public_address=public_address,
            profile=profile,
            endpoint_url=endpoint_url,
        )
        super().__init__(
            name,
            Ec2(name, settings, cache=cache_folder(name)),
            user=user,
            port=port,
            identity_file=identity_file,
            deployment=deployment,
            namespace=namespace,
            abandoned_after=abandoned_after,
            boot_timeout=boot_timeout,
            timeout_s=timeout_s,
            notice=NOTICE,
        )
