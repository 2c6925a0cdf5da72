"""Machine types as Compute Engine describes them, and machines as it shows them; pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any, Literal

from backends.gcp.attached import MACHINES, put_together
from backends.vm.labels import tags_of
from backends.vm.port import SYSTEM_BYTES, Vm
from orchestrator.backend import Growth, Offer
from orchestrator.units import GIB

MIB = 2**20
BOOT_S = 150
SPOT_ADDRESS = 0.5
"""What the address of a spot machine costs of that of another (cloud.google.com/vpc/network-pricing)."""

GPUS_GB: Mapping[str, int] = {
    "nvidia-l4": 24, "nvidia-tesla-a100": 40, "nvidia-a100-80gb": 80, "nvidia-h100-80gb": 80,
    "nvidia-h100-mega-80gb": 80, "nvidia-h200-141gb": 141, "nvidia-b200": 180, "nvidia-gb200": 186,
    "nvidia-rtx-pro-6000": 96,
}  # fmt: skip
"""Memory of the GPUs that machine types come with; the API does not tell it
(cloud.google.com/compute/docs/gpus)."""

FAMILIES = "a2-.*", "a3-.*", "a4-.*", "a4x-.*", "g2-.*", "g4-.*"
"""Machine types that come with GPUs."""

HYPERDISK_ONLY = ("a3-ultragpu", "a4-", "a4x-", "g4-")
"""Machine types that take no persistent disk (cloud.google.com/compute/docs/disks/hyperdisks)."""

STATES: Mapping[str, Literal["pending", "running", "ending", "ended"]] = {
    "PENDING": "pending", "PROVISIONING": "pending", "STAGING": "pending", "RUNNING": "running",
    "REPAIRING": "running", "PENDING_STOP": "ending", "STOPPING": "ending", "SUSPENDING": "ending",
    "DEPROVISIONING": "ending", "SUSPENDED": "ended", "STOPPED": "ended", "TERMINATED": "ended",
}  # fmt: skip
"""``TERMINATED`` is a machine that is powered off and still there, with its disk."""


def pattern(types: tuple[str, ...]) -> str:
    """Return the expression that matches the families with GPUs, those that take some, and a user's.

    >>> pattern(("n2-standard-*",))
    '(a2-.*|a3-.*|a4-.*|a4x-.*|g2-.*|g4-.*|n1-standard-.*|n1-highmem-.*|n2-standard-.*)'
    """
    own = [re.escape(each).replace(r"\*", ".*").replace(r"\-", "-") for each in types]
    return f"({'|'.join([*FAMILIES, *MACHINES, *own])})"


def is_named(types: tuple[str, ...], instance_type: str) -> bool:
    """Say whether a user's own patterns name a type.

    >>> is_named(("n1-standard-*",), "n1-standard-8"), is_named(("n2-*",), "n1-standard-8")
    (True, False)
    """
    return any(fnmatchcase(instance_type, each) for each in types)


def shape_of(machine_type: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what an offer needs of a machine type; None for one with accelerators we do not know.

    >>> shape_of({"name": "g2-standard-4", "guestCpus": 4, "memoryMb": 16384, "accelerators": [
    ...     {"guestAcceleratorType": "nvidia-l4", "guestAcceleratorCount": 1}]})["accelerator"]
    'nvidia-l4'
    """
    shape: dict[str, Any] = {
        "instance_type": machine_type["name"],
        "cpu": float(machine_type["guestCpus"]),
        "memory_bytes": machine_type["memoryMb"] * MIB,
        "arch": "arm" if machine_type.get("architecture") == "ARM64" else "x86",
    }
    accelerators = machine_type.get("accelerators") or []
    if not accelerators:
        return shape
    kind = accelerators[0]["guestAcceleratorType"]
    if len(accelerators) > 1 or kind not in GPUS_GB:
        return None
    return shape | {
        "accelerator": kind,
        "vendor": "nvidia",
        "count": accelerators[0]["guestAcceleratorCount"],
        "vram_bytes": GPUS_GB[kind] * GIB,
    }


def offers_of(
    shape: Mapping[str, Any],
    zone: str,
    *,
    backend: str,
    disk_bytes: int,
    growth: Growth,
    address_usd_hour: float,
    reserved: Mapping[str, int],
) -> Iterator[Offer]:
    """Yield a machine type in one zone: on demand, as spot, and what is free in each reservation.

    The catalog has the prices; what is reserved costs what it does on demand.
    """
    common: dict[str, Any] = {
        **shape, "backend": backend, "region": zone.rsplit("-", 1)[0], "zone": zone, "boot_s": BOOT_S,
        "disk_bytes": disk_bytes, "growth": growth, "fetches": True, "system_bytes": SYSTEM_BYTES,
        "price_list": "gcp",
    }  # fmt: skip
    disk_usd_hour = growth.usd_hour(disk_bytes)
    on_demand = round(disk_usd_hour + address_usd_hour, 6)
    yield Offer(**common, price_usd_hour=on_demand)
    yield Offer(**common, spot=True, price_usd_hour=round(disk_usd_hour + address_usd_hour * SPOT_ADDRESS, 6))
    for name, free in sorted(reserved.items()):
        yield Offer(**common, reservation=name, available=free, price_usd_hour=on_demand)


def vm_of(instance: Mapping[str, Any]) -> Vm:
    """Return an instance of the API's as we see it."""
    state = STATES.get(instance["status"], "pending")
    zone = instance["zone"].rsplit("/", 1)[-1]
    network = (instance.get("networkInterfaces") or [{}])[0]
    public = next((each["natIP"] for each in network.get("accessConfigs") or () if each.get("natIP")), None)
    spot = (instance.get("scheduling") or {}).get("provisioningModel") == "SPOT"
    made = instance.get("creationTimestamp")
    return Vm(
        id=instance["name"],
        state=state,
        instance_type=put_together(
            instance["machineType"].rsplit("/", 1)[-1], instance.get("guestAccelerators") or ()
        ),
        region=zone.rsplit("-", 1)[0],
        zone=zone,
        spot=spot,
        address=public or network.get("networkIP"),
        internal_ip=network.get("networkIP"),
        tags=tags_of(instance.get("labels") or {}),
        since=datetime.fromisoformat(made) if made else None,
        lingers=state == "ended",
    )


def name_of(key: str) -> str:
    """Return the name of the machine of a key: names are unique in a project and zone.

    >>> name_of("0123456789abcdef" * 2)
    'modelyard-0123456789abcdef0123456789abcdef'
    """
    return f"modelyard-{key}"
