"""Instance types as EC2 describes them, and as offers; pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.backend import Offer
from orchestrator.units import GIB

MIB = 2**20
ARCHES: Mapping[str, str] = {"x86_64": "x86", "arm64": "arm"}
BOOT_S = 180

ASIDE = frozenset({"spot", "on_demand", "efa", "cluster"})
"""What is known of a type besides what an offer holds."""


def shape_of(described: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what an offer needs of an entry of DescribeInstanceTypes; None for what we cannot use.

    Parts of a GPU (``g6f``) are left out: EC2 counts them, and their drivers are others.
    """
    info = described.get("GpuInfo") or {}
    gpus = info.get("Gpus", [])
    if any(float(gpu.get("GpuPartitionSize") or 1) < 1 for gpu in gpus) or len(gpus) > 1:
        return None
    arches = described.get("ProcessorInfo", {}).get("SupportedArchitectures", [])
    arch = next((ARCHES[each] for each in arches if each in ARCHES), None)
    if arch is None or (not gpus and _has_other_accelerators(described)):
        return None
    shape: dict[str, Any] = {
        "instance_type": described["InstanceType"],
        "cpu": float(described["VCpuInfo"]["DefaultVCpus"]),
        "memory_bytes": described["MemoryInfo"]["SizeInMiB"] * MIB,
        "arch": arch,
        "spot": "spot" in described.get("SupportedUsageClasses", ()),
        "on_demand": "on-demand" in described.get("SupportedUsageClasses", ()),
        "efa": _efa_cards(described.get("NetworkInfo") or {}),
        "cluster": "cluster" in (described.get("PlacementGroupInfo") or {}).get("SupportedStrategies", ()),
    }
    for gpu in gpus:
        shape |= {
            "accelerator": gpu["Name"],
            "vendor": str(gpu.get("Manufacturer", "")).lower(),
            "count": gpu["Count"],
            "vram_bytes": gpu["MemoryInfo"]["SizeInMiB"] * MIB,
        }
    return shape


def _efa_cards(network: Mapping[str, Any]) -> int:
    """Return how many network cards of a type know EFA; 0 where it knows none."""
    if not network.get("EfaSupported"):
        return 0
    return min(
        int((network.get("EfaInfo") or {}).get("MaximumEfaInterfaces", 1)),
        int(network.get("MaximumNetworkCards", 1)),
    )


def _has_other_accelerators(described: Mapping[str, Any]) -> bool:
    others = ("InferenceAcceleratorInfo", "NeuronInfo", "FpgaInfo", "MediaAcceleratorInfo")
    return any(described.get(key) for key in others)


def offers_of(
    shape: Mapping[str, Any],
    zones: Iterable[str],
    *,
    backend: str,
    region: str,
    disk_bytes: int,
    disk_usd_hour: float,
    spot_usd_hour: Mapping[str, float],
) -> Iterable[Offer]:
    """Yield the offers of one instance type: each zone, on demand and as spot where it has a price.

    Args:
        shape: What ``shape_of`` returned.
        zones: Where it can be had.
        backend: The backend's name.
        region: The zones' region.
        disk_bytes: The size of the root disk.
        disk_usd_hour: What that disk costs.
        spot_usd_hour: The spot price now, by zone.
    """
    size = {key: value for key, value in shape.items() if key not in ASIDE}
    for zone in sorted(zones):
        common: dict[str, Any] = {
            **size, "backend": backend, "region": region, "zone": zone, "disk_bytes": disk_bytes,
            "boot_s": BOOT_S,
        }  # fmt: skip
        if shape["on_demand"]:
            yield Offer(**common, price_usd_hour=disk_usd_hour, price_list="aws")
        if shape["spot"] and zone in spot_usd_hour:
            yield Offer(**common, spot=True, price_usd_hour=round(disk_usd_hour + spot_usd_hour[zone], 6))


def reserved_offer(
    shape: Mapping[str, Any],
    reservation: Mapping[str, Any],
    *,
    backend: str,
    region: str,
    disk_bytes: int,
    disk_usd_hour: float,
) -> Offer:
    """Return the offer of a capacity reservation: as many as are free in it, for those who name it.

    What is in a capacity block was paid before; anything else costs what it does on demand.
    """
    size = {key: value for key, value in shape.items() if key not in ASIDE}
    return Offer(
        backend=backend, region=region, zone=reservation["AvailabilityZone"], disk_bytes=disk_bytes,
        boot_s=BOOT_S, price_usd_hour=disk_usd_hour, price_list="" if is_block(reservation) else "aws",
        reservation=reservation["CapacityReservationId"], available=reservation["AvailableInstanceCount"],
        **size,
    )  # fmt: skip


def is_block(reservation: Mapping[str, Any]) -> bool:
    """Say whether a reservation is a capacity block.

    >>> is_block({"ReservationType": "capacity-block"}), is_block({"ReservationType": "default"})
    (True, False)
    """
    return bool(reservation.get("ReservationType") == "capacity-block")


def disk_usd_hour(disk_bytes: int, usd_gib_month: float) -> float:
    """Return what a disk costs by the hour; AWS counts 730 hours a month.

    >>> disk_usd_hour(100 * GIB, 0.08)
    0.010959
    """
    return round(disk_bytes / GIB * usd_gib_month / 730, 6)
