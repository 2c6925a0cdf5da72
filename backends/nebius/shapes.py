"""Platforms as Nebius describes them, and machines as it shows them; pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from backends.vm.labels import tags_of
from backends.vm.port import SYSTEM_BYTES, Vm
from orchestrator.backend import Growth, Offer
from orchestrator.units import GIB

BOOT_S = 180

GPUS: Mapping[str, str] = {
    "gpu-h100-sxm": "H100", "gpu-h200-sxm": "H200", "gpu-b200-sxm": "B200", "gpu-b200-sxm-a": "B200",
    "gpu-b300-sxm": "B300", "gpu-l40s-a": "L40S", "gpu-l40s-d": "L40S", "gpu-rtx6000": "RTX PRO 6000",
}  # fmt: skip
"""What the GPUs of a platform are (docs.nebius.com/compute/virtual-machines/types); those of others are
unknown here, and not offered."""

STATES: Mapping[int, Literal["pending", "running", "ending", "ended"]] = {
    1: "pending", 2: "running", 3: "pending", 4: "running", 5: "ending", 6: "ended", 7: "ending", 8: "ended",
}  # fmt: skip
"""``InstanceState``: 2 is a machine of which something is changed, 6 one that is powered off and still there,
8 one that could not be made."""

LIMIT_REACHED, DATA_FRESH = 4, 1
"""``AvailabilityLevel`` and ``DataState`` of the capacity advisor."""


def instance_type(platform: str, preset: str) -> str:
    """Return what we call a preset of a platform; platforms and presets have no ``_``.

    >>> instance_type("gpu-h100-sxm", "8gpu-128vcpu-1600gb")
    'gpu-h100-sxm_8gpu-128vcpu-1600gb'
    """
    return f"{platform}_{preset}"


def shapes_of(platform: Any) -> Iterator[dict[str, Any]]:
    """Yield what offers need of each preset of a platform; none of one with GPUs that we do not know."""
    name, spec = platform.metadata.name, platform.spec
    for preset in spec.presets:
        has = preset.resources
        shape: dict[str, Any] = {
            "instance_type": instance_type(name, preset.name),
            "cpu": float(has.vcpu_count),
            "memory_bytes": has.memory_gibibytes * GIB,
            "spot": platform.status.allowed_for_preemptibles,
        }
        if has.gpu_count:
            if name not in GPUS:
                return
            gpu = {
                "accelerator": GPUS[name], "vendor": "nvidia", "count": has.gpu_count,
                "vram_bytes": (spec.gpu_memory_gigabytes or spec.gpu_memory_gibibytes) * GIB,
            }  # fmt: skip
            shape |= gpu
        yield shape


def offers_of(
    shape: Mapping[str, Any],
    region: str,
    *,
    backend: str,
    disk_bytes: int,
    growth: Growth,
    prices: Mapping[str, float],
    free: Mapping[tuple[str, bool], int],
) -> Iterator[Offer]:
    """Yield a preset in one region, on demand and as spot.

    Args:
        shape: What ``shapes_of`` says of it.
        region: Where.
        backend: The backend's name.
        disk_bytes: The size of its disk, unless a larger one is asked for.
        growth: What more of it costs.
        prices: What it costs, disk included, by ``price_name``; the catalog is asked for others.
        free: How many can be had now, by instance type and whether it is spot, as far as that is known.
    """
    for spot in (False, True) if shape["spot"] else (False,):
        kind = str(shape["instance_type"])
        price = prices.get(price_name(kind, spot=spot))
        told = {"price_usd_hour": price} if price is not None else {"price_list": "nebius"}
        yield Offer(
            **{**shape, "spot": spot, **told}, backend=backend, region=region, boot_s=BOOT_S,
            disk_bytes=disk_bytes, growth=growth, fetches=True, system_bytes=SYSTEM_BYTES,
            available=free.get((kind, spot)),
        )  # fmt: skip


def price_name(kind: str, *, spot: bool) -> str:
    """Return the name under which the price of a kind of machine is kept."""
    return f"{kind} spot" if spot else kind


def free_of(advice: Any) -> Iterator[tuple[tuple[str, str, bool], int]]:
    """Yield region, instance type and kind of market of a piece of advice, and how many can be had now.

    Old data says nothing. A limit of the account's that is reached is no lack of machines: whoever asks
    for one is told which limit it is.
    """
    details = advice.spec.compute_instance
    kind = instance_type(details.platform, details.preset.name)
    for spot, told in ((False, advice.status.on_demand), (True, advice.status.preemptible)):
        if told.data_state == DATA_FRESH and told.availability_level != LIMIT_REACHED:
            yield (advice.spec.region, kind, spot), told.available


def vm_of(instance: Any, region: str) -> Vm:
    """Return an instance of the API's as we see it.

    A preemptible machine that is powered off was taken away: ``STOP`` is all that can be done with one
    (``PreemptibleSpec`` in instance.proto), and nothing else says that it was.
    """
    state = STATES.get(instance.status.state, "pending")
    spec, meta = instance.spec, instance.metadata
    network = next(iter(instance.status.network_interfaces), None)
    public = network.public_ip_address.address.partition("/")[0] if network is not None else ""
    private = network.ip_address.address.partition("/")[0] if network is not None else ""
    spot = spec.HasField("preemptible")
    return Vm(
        id=meta.id,
        state=state,
        instance_type=instance_type(spec.resources.platform, spec.resources.preset),
        region=region,
        spot=spot,
        address=public or private or None,
        internal_ip=private or None,
        tags=tags_of(dict(meta.labels)),
        since=datetime.fromtimestamp(meta.created_at.seconds, UTC) if meta.HasField("created_at") else None,
        preempted=spot and instance.status.state == 6,
        lingers=state == "ended",
    )
