"""Azure: virtual machines that are rented for a launch, over SSH and Docker."""

from __future__ import annotations

from collections.abc import Sequence

from backends.azure.machines import Settings, VirtualMachines
from backends.vm import RentedMachines, boot
from backends.vm.options import cache_folder, networks, size_bytes, words
from orchestrator.errors import ConfigError

IMAGE = "microsoft-dsvm:ubuntu-hpc:2204:latest"
"""Microsoft's own image with NVIDIA's driver, Docker and the container toolkit
(learn.microsoft.com/azure/virtual-machines/azure-hpc-vm-images)."""

DISK_USD_GIB_MONTH = 0.075
"""StandardSSD_LRS in East US, azure.microsoft.com/pricing/details/managed-disks; set
``disk_usd_gib_month`` where it differs."""

ADDRESS_USD_HOUR = 0.005
"""A static address of the Standard SKU, as machines get it: azure.microsoft.com/pricing/details/ip-addresses
(as c3x.dev/resources/azure/azurerm_public_ip has it)."""


NOTICE = boot.Notice(
    "curl -sf -m 2 -H Metadata:true "
    "'http://169.254.169.254/metadata/scheduledevents?api-version=2020-07-01' | grep -q '\"Preempt\"'",
    22,
)
"""Half a minute before a spot machine is evicted
(learn.microsoft.com/azure/virtual-machines/linux/scheduled-events)."""


class Azure(RentedMachines):
    """Runs each launch on a virtual machine of Azure's that is rented for it.

    Args:
        name: The backend's name in the configuration.
        subscription: The id of the subscription that pays.
        resource_group: The group that holds all that is made; it has to be there.
        regions: Where machines are rented.
        instance_types: Patterns of sizes, added to all with GPUs that are known here.
        image: The image, as ``publisher:offer:sku:version`` or the id of one's own. It brings Docker,
            and the driver where there are GPUs.
        user: Who logs in on that image.
        port: Its SSH port.
        disk: The size of a machine's disk, such as ``200GiB``.
        disk_usd_gib_month: What a GiB of it costs a month; it is part of every price.
        address_usd_hour: What a public address costs an hour; it is part of every price of machines that
            get one.
        subnets: Ids of subnets by region; default: a network of our own, made where it is missing.
        ssh_from: The networks that the security group of our own lets in.
        public_address: Whether machines get a public address.
        identity_file: The private key for the machines; default: one is made for this user.
        deployment: Tells our machines from others' of the group, and has to be the same for all that
            share a record; default: one is made for this user.
        namespace: Begins the names of containers.
        abandoned_after: How long a machine stays up after it last heard of us.
        boot_timeout: How long a machine may take until its engine answers.
        timeout_s: How long one answer of an engine may take.
        endpoint_url: Another address of the Resource Manager's API.
        login_url: Another address to sign in at.

    Raises:
        ConfigError: an option has no such value.
    """

    def __init__(
        self,
        name: str = "azure",
        *,
        subscription: str = "",
        resource_group: str = "modelyard",
        regions: Sequence[str] = ("eastus",),
        instance_types: Sequence[str] = (),
        image: str = IMAGE,
        user: str = "ubuntu",
        port: int = 22,
        disk: str = "200GiB",
        disk_usd_gib_month: float = DISK_USD_GIB_MONTH,
        address_usd_hour: float = ADDRESS_USD_HOUR,
        subnets: dict[str, str] | None = None,
        ssh_from: Sequence[str] = ("0.0.0.0/0",),
        public_address: bool = True,
        identity_file: str | None = None,
        deployment: str | None = None,
        namespace: str = "modelyard",
        abandoned_after: str = "1d",
        boot_timeout: str = "15m",
        timeout_s: float = 30.0,
        endpoint_url: str = "https://management.azure.com",
        login_url: str = "https://login.microsoftonline.com",
    ) -> None:
        if not image.startswith("/") and image.count(":") != 3:
            raise ConfigError(
                f"backend {name!r}: image: expected publisher:offer:sku:version or an id, got {image!r}"
            )
        settings = Settings(
            subscription=subscription,
            group=resource_group,
            regions=words(name, "regions", regions, least=1),
            types=words(name, "instance_types", instance_types),
            image=image,
            user=user,
            disk_bytes=size_bytes(name, "disk", disk),
            disk_usd_gib_month=disk_usd_gib_month,
            address_usd_hour=address_usd_hour if public_address else 0.0,
            subnets=dict(subnets or {}),
            ssh_from=networks(name, "ssh_from", ssh_from),
            public_address=public_address,
            url=endpoint_url,
            login_url=login_url,
        )
        super().__init__(
            name,
            VirtualMachines(name, settings, cache=cache_folder(name)),
            user=user,
            port=port,
            identity_file=identity_file,
            deployment=deployment,
            namespace=namespace,
            abandoned_after=abandoned_after,
            boot_timeout=boot_timeout,
            timeout_s=timeout_s,
            prepare=[boot.TOOLKIT],
            notice=NOTICE,
        )
