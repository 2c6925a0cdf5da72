"""Sizes as Azure lists them, and machines as it shows them; pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any

from backends.vm.port import SYSTEM_BYTES, Vm
from orchestrator.backend import LABEL, Growth, Offer
from orchestrator.units import GIB

BOOT_S = 240

GPUS: tuple[tuple[str, str, int], ...] = (
    (r"NC\d+as_T4_v3", "T4", 16),
    (r"NC\d+s_v3", "V100-PCIE-16GB", 16),
    (r"NV(36|72)adm?s_A10_v5", "A10", 24),
    (r"NC\d+ads_A100_v4", "A100-80GB-PCIE", 80),
    (r"ND96asr_A100_v4|ND96asr_v4", "A100-40GB", 40),
    (r"ND96amsr_A100_v4", "A100-80GB", 80),
    (r"NC\d+adi?s_H100_v5", "H100-NVL", 94),
    (r"ND96isr?_(noIB_)?H100_v5", "H100-80GB", 80),
    (r"ND96isr_H200_v5", "H200-141GB", 141),
    (r"ND128isr_NDR_GB200_v6", "GB200-186GB", 186),
)
"""The GPU of each family of sizes, and its memory; the API tells how many a size has, and not which
(learn.microsoft.com/azure/virtual-machines/sizes/gpu-accelerated). Sizes with
a part of a GPU are left out."""


def gpu_of(size: str) -> tuple[str, int] | None:
    """Return the GPU of a size, and its memory in GB.

    >>> gpu_of("Standard_NC24ads_A100_v4"), gpu_of("Standard_NV6ads_A10_v5"), gpu_of("Standard_D8s_v5")
    (('A100-80GB-PCIE', 80), None, None)
    """
    bare = size.removeprefix("Standard_")
    return next(((name, gb) for known, name, gb in GPUS if re.fullmatch(known, bare)), None)


def shapes_of(skus: Sequence[Mapping[str, Any]], types: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield what an offer needs of each size that is known here, or that a pattern of the user's names."""
    for sku in skus:
        if sku.get("resourceType") != "virtualMachines" or not _is_allowed(sku):
            continue
        said = {each["name"]: each["value"] for each in sku.get("capabilities") or ()}
        gpu, count = gpu_of(sku["name"]), int(float(said.get("GPUs", "0")))
        if (count and not gpu) or not (gpu or any(fnmatchcase(sku["name"], each) for each in types)):
            continue
        shape: dict[str, Any] = {
            "instance_type": sku["name"],
            "cpu": float(said.get("vCPUs", "0")),
            "memory_bytes": int(float(said.get("MemoryGB", "0")) * GIB),
            "arch": "arm" if said.get("CpuArchitectureType") == "Arm64" else "x86",
            "spot": said.get("LowPriorityCapable") == "True",
        }
        if gpu:
            shape |= {"accelerator": gpu[0], "vendor": "nvidia", "count": count, "vram_bytes": gpu[1] * GIB}
        yield shape


def _is_allowed(sku: Mapping[str, Any]) -> bool:
    """Say whether the subscription may have a size in the region; some zones may do without it."""
    return not any(each.get("type") == "Location" for each in sku.get("restrictions") or ())


def offers_of(
    shape: Mapping[str, Any],
    region: str,
    *,
    backend: str,
    disk_bytes: int,
    growth: Growth,
    address_usd_hour: float,
) -> Iterator[Offer]:
    """Yield a size in one region, on demand and as spot; the catalog has the prices."""
    size = {key: value for key, value in shape.items() if key != "spot"}
    for spot in (False, True) if shape["spot"] else (False,):
        yield Offer(
            backend, region=region, spot=spot, disk_bytes=disk_bytes, growth=growth, fetches=True,
            system_bytes=SYSTEM_BYTES,
            price_usd_hour=round(growth.usd_hour(disk_bytes) + address_usd_hour, 6),
            price_list="azure", boot_s=BOOT_S, **size,
        )  # fmt: skip


def vm_of(machine: Mapping[str, Any], address: str | None, internal_ip: str | None) -> Vm:
    """Return a machine of the API's as we see it; its instance view says whether it has power.

    A machine that powers itself off is stopped, and paid for as before; one that was evicted is
    deallocated, and its disk is paid for. Neither comes back.
    """
    said = machine["properties"]
    codes = {each["code"] for each in (said.get("instanceView") or {}).get("statuses") or ()}
    spot = said.get("priority") == "Spot"
    ended = bool(codes & {"PowerState/stopped", "PowerState/deallocated"})
    state = said.get("provisioningState", "")
    made = said.get("timeCreated")
    return Vm(
        id=machine["name"],
        state="ending" if state == "Deleting" or "PowerState/deallocating" in codes
        else "ended" if ended or state == "Failed"
        else "running" if "PowerState/running" in codes
        else "pending",
        instance_type=said["hardwareProfile"]["vmSize"],
        region=machine["location"],
        spot=spot,
        address=address or internal_ip,
        internal_ip=internal_ip,
        tags=tags_of(machine.get("tags") or {}),
        since=datetime.fromisoformat(made) if made else None,
        preempted=spot and bool(codes & {"PowerState/deallocated", "PowerState/deallocating"}),
        lingers=ended or state == "Failed",
    )  # fmt: skip


def azure_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Return tags under names that Azure takes: it takes no slash in them, and has some for itself.

    >>> azure_tags({LABEL + "run": "chat", "ex.org/Team": "a", "azure": "b"})
    {'modelyard-run': 'chat', 'ex.org-Team': 'a', 'x-azure': 'b'}
    """
    return {_azure_name(key): value for key, value in tags.items()}


_OWNED = ("modelyard", "azure", "microsoft", "windows")
"""How no name of the user's own may begin (learn.microsoft.com/azure/azure-resource-manager/management,
"Use tags to organize your Azure resources")."""


def _azure_name(key: str) -> str:
    if key.startswith(LABEL):
        return "modelyard-" + key.removeprefix(LABEL)
    name = key.replace("/", "-")
    return f"x-{name}" if name.lower().startswith(_OWNED) else name


def tags_of(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the tags that are ours, under their own names."""
    ours = {
        key.removeprefix("modelyard-"): value for key, value in tags.items() if key.startswith("modelyard-")
    }
    return {LABEL + key: value for key, value in ours.items()}
