"""Google Cloud: machines of Compute Engine that are rented for a launch, over SSH and Docker."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import ClassVar

from backends.gcp import tpu
from backends.gcp.compute import Compute, Settings
from backends.gcp.signing import Signing
from backends.gcp.slices import GENERATIONS
from backends.vm import RentedMachines, boot
from backends.vm.options import cache_folder, size_bytes, words
from backends.vm.port import Provider
from orchestrator.backend import Can
from orchestrator.errors import ConfigError

IMAGE = "projects/deeplearning-platform-release/global/images/family/common-cu129-ubuntu-2204-nvidia-580"
"""Google's own image with driver and Docker (docs.cloud.google.com/deep-learning-vm/docs/images)."""

PD_BALANCED_USD_GIB_MONTH = 0.1
"""us-central1, cloud.google.com/compute/disks-image-pricing; set ``disk_usd_gib_month`` where it differs."""

ADDRESS_USD_HOUR = 0.005
"""In use on a machine on demand, and half of it on a spot machine: cloud.google.com/vpc/network-pricing (read
on 2026-10-16 by ChiefGyk3D/Clouds-Against-Humanity, wiki, "Provider GCP Cost Lesson")."""

NOTICE = boot.Notice(
    "curl -sf -m 2 -H 'Metadata-Flavor: Google' "
    "http://169.254.169.254/computeMetadata/v1/instance/preempted | grep -q TRUE",
    22,
)
"""Half a minute before a spot machine is taken away
(cloud.google.com/compute/docs/instances/preemptible, "Preemption process")."""

_LABEL = re.compile(r"[a-z0-9_-]{1,63}")


class Gcp(RentedMachines):
    """Runs each launch on a machine of Compute Engine that is rented for it.

    Args:
        name: The backend's name in the configuration.
        project: The project that pays; default: that of the credentials.
        regions: Where machines are rented.
        instance_types: Patterns of machine types, added to all that come with GPUs.
        reservations: Names of reservations that specs may name.
        tpus: Generations of TPU that are rented too: ``v4``, ``v5e``, ``v5p``, ``v6e``.
        tpu_runtimes: Runtime versions by generation, in place of Google's for it.
        credentials_file: Credentials as Google writes them; default: the application default ones.
        image: The image: a family's or an image's path. It brings Docker, and the driver where there
            are GPUs. Default: Google's Deep Learning VM.
        user: Who logs in on that image.
        port: Its SSH port.
        disk: The size of a machine's disk, such as ``200GiB``.
        disk_usd_gib_month: What a GiB of it costs a month; it is part of every price.
        address_usd_hour: What a public address costs an hour; it is part of every price of machines that
            get one.
        network: The network, or subnetwork, that machines are in; it has to let SSH in.
        public_address: Whether machines get a public address.
        identity_file: The private key for the machines; default: one is made for this user.
        deployment: Tells our machines from others' of the project, and has to be the same for all
            that share a record; default: one is made for this user.
        namespace: Begins the names of containers.
        abandoned_after: How long a machine stays up after it last heard of us.
        boot_timeout: How long a machine may take until its engine answers.
        timeout_s: How long one answer of an engine may take.
        endpoint_url: Another address of Compute Engine's API.
        tpu_endpoint_url: Another address of the TPU API.

    Raises:
        ConfigError: an option has no such value, or google-auth is not installed.
    """

    can: ClassVar[frozenset[Can]] = RentedMachines.can | {Can.NODES}

    def __init__(
        self,
        name: str = "gcp",
        *,
        project: str | None = None,
        regions: Sequence[str] = ("us-central1",),
        instance_types: Sequence[str] = (),
        reservations: Sequence[str] = (),
        tpus: Sequence[str] = (),
        tpu_runtimes: Mapping[str, str] | None = None,
        credentials_file: str | None = None,
        image: str = IMAGE,
        user: str = "ubuntu",
        port: int = 22,
        disk: str = "200GiB",
        disk_usd_gib_month: float = PD_BALANCED_USD_GIB_MONTH,
        address_usd_hour: float = ADDRESS_USD_HOUR,
        network: str = "global/networks/default",
        public_address: bool = True,
        identity_file: str | None = None,
        deployment: str | None = None,
        namespace: str = "modelyard",
        abandoned_after: str = "1d",
        boot_timeout: str = "10m",
        timeout_s: float = 30.0,
        endpoint_url: str = "https://compute.googleapis.com",
        tpu_endpoint_url: str = "https://tpu.googleapis.com",
    ) -> None:
        if find_spec("google") is None or find_spec("google.auth") is None:
            raise ConfigError(
                f"backend {name!r} needs a package that is not installed: google-auth",
                fix="pip install 'modelyard[gcp]'",
            )
        for option, value in (("deployment", deployment), ("namespace", namespace)):
            if value is not None and not _LABEL.fullmatch(value):
                raise ConfigError(
                    f"backend {name!r}: {option}: expected small letters, digits, - and _, got {value!r}",
                    fix="Google's labels take nothing else",
                )
        settings = Settings(
            project=project,
            regions=words(name, "regions", regions, least=1),
            types=words(name, "instance_types", instance_types),
            reservations=words(name, "reservations", reservations),
            credentials_file=credentials_file,
            image=image,
            disk_bytes=size_bytes(name, "disk", disk),
            disk_usd_gib_month=disk_usd_gib_month,
            address_usd_hour=address_usd_hour if public_address else 0.0,
            network=network,
            public_address=public_address,
            url=endpoint_url,
        )
        compute = Compute(name, settings, cache=cache_folder(name))
        provider: Provider = compute
        generations = words(name, "tpus", tpus)
        for each in (*generations, *(tpu_runtimes or {})):
            if each not in GENERATIONS:
                raise ConfigError(
                    f"backend {name!r}: tpus: expected some of {', '.join(GENERATIONS)}, got {each!r}"
                )
        if generations:  # nobody else has the TPU API enabled
            rented = tpu.Settings(
                generations=generations, regions=settings.regions, runtimes=dict(tpu_runtimes or {}),
                network=network, public_address=public_address, user=user, url=tpu_endpoint_url,
            )  # fmt: skip
            signing = Signing(name, credentials_file)
            slices = tpu.Tpu(name, rented, signing=signing, project=project, cache=cache_folder(name))
            provider = tpu.Both(compute, slices)
        super().__init__(
            name,
            provider,
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
