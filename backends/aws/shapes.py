"""Instance types as EC2 describes them, and as offers; pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from backends.vm.port import SYSTEM_BYTES
from orchestrator.backend import Growth, Offer

MIB = 2**20
ARCHES: Mapping[str, str] = {"x86_64": "x86", "arm64": "arm"}
BOOT_S = 180
HOURS_A_MONTH = 730
MOST_DISK_BYTES = 16 * 2**40
"""As much as a disk of type gp3 took in every region before it was allowed more
(docs.aws.amazon.com/ebs/latest/userguide/general-purpose.html)."""

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
    growth: Growth,
    beside_usd_hour: float,
    spot_usd_hour: Mapping[str, float],
) -> Iterable[Offer]:
    """Yield the offers of one instance type: each zone, on demand and as spot where it has a price.

    Args:
        shape: What ``shape_of`` returned.
        zones: Where it can be had.
        backend: The backend's name.
        region: The zones' region.
        disk_bytes: The size of the root disk, unless a larger one is asked for.
        growth: What more of it costs.
        beside_usd_hour: What is paid beside the machine: its disk and its address.
        spot_usd_hour: The spot price now, by zone.
    """
    common = _common(shape, backend=backend, region=region, disk_bytes=disk_bytes, growth=growth)
    for zone in sorted(zones):
        if shape["on_demand"]:
            yield Offer(**common, zone=zone, price_usd_hour=round(beside_usd_hour, 6), price_list="aws")
        if shape["spot"] and zone in spot_usd_hour:
            price = round(beside_usd_hour + spot_usd_hour[zone], 6)
            yield Offer(**common, zone=zone, spot=True, price_usd_hour=price)


def _common(
    shape: Mapping[str, Any], *, backend: str, region: str, disk_bytes: int, growth: Growth
) -> dict[str, Any]:
    size = {key: value for key, value in shape.items() if key not in ASIDE}
    return {
        **size, "backend": backend, "region": region, "disk_bytes": disk_bytes, "growth": growth,
        "fetches": True, "system_bytes": SYSTEM_BYTES, "boot_s": BOOT_S,
    }  # fmt: skip


def reserved_offer(
    shape: Mapping[str, Any],
    reservation: Mapping[str, Any],
    *,
    backend: str,
    region: str,
    disk_bytes: int,
    growth: Growth,
    beside_usd_hour: float,
) -> Offer:
    """Return the offer of a capacity reservation: as many as are free in it, for those who name it.

    What is in a capacity block was paid before; anything else costs what it does on demand.
    """
    return Offer(
        **_common(shape, backend=backend, region=region, disk_bytes=disk_bytes, growth=growth),
        zone=reservation["AvailabilityZone"], price_usd_hour=round(beside_usd_hour, 6),
        price_list="" if is_block(reservation) else "aws",
        reservation=reservation["CapacityReservationId"], available=reservation["AvailableInstanceCount"],
    )  # fmt: skip


def is_block(reservation: Mapping[str, Any]) -> bool:
    """Say whether a reservation is a capacity block.

    >>> is_block({"ReservationType": "capacity-block"}), is_block({"ReservationType": "default"})
    (True, False)
    """
    return bool(reservation.get("ReservationType") == "capacity-block")


def growth_of(usd_gib_month: float) -> Growth:
    """Return what a disk costs by the GiB and hour; AWS counts 730 hours a month.

    >>> round(growth_of(0.08).usd_hour(100 * 2**30), 6)
    0.010959
    """
    return Growth(usd_gib_month / HOURS_A_MONTH, most_bytes=MOST_DISK_BYTES)
