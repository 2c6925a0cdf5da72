"""Nebius: machines of its compute service that are rented for a launch, over SSH and Docker."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from ipaddress import ip_address
from urllib.parse import urlsplit

from backends.nebius.machines import NebiusMachines, Settings
from backends.vm import RentedMachines, boot
from backends.vm.options import cache_folder, size_bytes, words
from orchestrator.errors import ConfigError

IMAGE_FAMILY = "ubuntu24.04-cuda13.0"
"""Nebius' own image with driver and Docker (docs.nebius.com/compute/storage/boot-disk-images)."""

FORWARDING: tuple[str, ...] = (
    "sh",
    "-c",
    "sed -i 's/^#\\{0,1\\} *AllowTcpForwarding.*/AllowTcpForwarding yes/' /etc/ssh/sshd_config && "
    "systemctl reload ssh",
)
"""Lets ports through SSH, which the image forbids; ours are reached in no other way."""


class Nebius(RentedMachines):
    """Runs each launch on a machine of Nebius' compute service that is rented for it.

    Args:
        name: The backend's name in the configuration.
        projects: Ids of the projects that pay, one for each region where machines are rented.
        credentials_file: Credentials of a service account as ``nebius iam auth-public-key generate`` writes
            them; default: the token in ``NEBIUS_IAM_TOKEN``.
        image_family: The family of the image. It brings Docker, and the driver where there are GPUs.
        user: Who logs in on that image.
        port: Its SSH port.
        disk: The size of a machine's disk, such as ``200GiB``.
        subnets: Ids of subnets by region; default: the default one of each project.
        public_address: Whether machines get a public address.
        identity_file: The private key for the machines; default: one is made for this user.
        deployment: Tells our machines from others' of the projects, and has to be the same for all that
            share a record; default: one is made for this user.
        namespace: Begins the names of containers.
        abandoned_after: How long a machine stays up after it last heard of us.
        boot_timeout: How long a machine may take until its engine answers.
        timeout_s: How long one answer of an engine may take.
        endpoint_url: Another address of the API, ``http://127.0.0.1:…`` for one on this machine.

    Raises:
        ConfigError: an option has no such value, or grpcio is not installed.
    """

    def __init__(
        self,
        name: str = "nebius",
        *,
        projects: Sequence[str] = (),
        credentials_file: str | None = None,
        image_family: str = IMAGE_FAMILY,
        user: str = "ubuntu",
        port: int = 22,
        disk: str = "200GiB",
        subnets: dict[str, str] | None = None,
        public_address: bool = True,
        identity_file: str | None = None,
        deployment: str | None = None,
        namespace: str = "modelyard",
        abandoned_after: str = "1d",
        boot_timeout: str = "15m",
        timeout_s: float = 30.0,
        endpoint_url: str | None = None,
    ) -> None:
        missing = [each for each in ("grpc", "google.protobuf") if not _is_there(each)]
        if missing:
            raise ConfigError(
                f"backend {name!r} needs packages that are not installed: grpcio and protobuf",
                fix="pip install 'modelyard[nebius]'",
            )
        settings = Settings(
            projects=words(name, "projects", projects),
            credentials_file=credentials_file,
            image_family=image_family,
            disk_bytes=size_bytes(name, "disk", disk),
            subnets=dict(subnets or {}),
            public_address=public_address,
            url=_loopback(name, endpoint_url),
        )
        super().__init__(
            name,
            NebiusMachines(name, settings, cache=cache_folder(name)),
            user=user,
            port=port,
            identity_file=identity_file,
            deployment=deployment,
            namespace=namespace,
            abandoned_after=abandoned_after,
            boot_timeout=boot_timeout,
            timeout_s=timeout_s,
            prepare=[FORWARDING, boot.TOOLKIT],
        )


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it would be in
        return False


def _loopback(name: str, url: str | None) -> str | None:
    """Return an address in plain text, which has to be this machine's: every call carries a token."""
    if url is None:
        return None
    parts = urlsplit(url)
    try:
        is_ours = parts.scheme == "http" and ip_address(parts.hostname or "").is_loopback
    except ValueError:
        is_ours = False
    if not is_ours:
        raise ConfigError(
            f"backend {name!r}: endpoint_url: expected http:// and a loopback address, got {url!r}",
            fix="leave it out: Nebius' own addresses are known",
        )
    return url
