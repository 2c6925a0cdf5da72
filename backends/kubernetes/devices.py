"""What dynamic resource allocation publishes of a cluster's GPUs, and which of them are taken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from typing import Any

from orchestrator.frozen import frozen

Json = dict[str, Any]

DRIVER = "gpu.nvidia.com"


@frozen
class Device:
    """A whole GPU as its driver describes it, spelt as GPU feature discovery spells it.

    ``product`` has ``-`` for each blank (NVIDIA/k8s-dra-driver-gpu, attribute ``productName``).
    """

    product: str
    memory: str
    capability: tuple[int, int] | None
    is_free: bool


@frozen
class Devices:
    """The GPUs of each node, by node; ``extended`` names the resources that pods may ask them by."""

    nodes: Mapping[str, Sequence[Device]] = field(default_factory=dict)
    extended: frozenset[str] = frozenset()

    @classmethod
    def of(cls, slices: Sequence[Json], classes: Sequence[Json], claims: Sequence[Json]) -> Devices:
        """Return what these ResourceSlices, DeviceClasses and ResourceClaims of ``v1`` say."""
        taken = set(_taken(claims))
        found: dict[str, list[Device]] = {}
        for spec in (one["spec"] for one in slices):
            node = spec.get("nodeName")
            if spec.get("driver") == DRIVER and node:
                pool = (spec.get("pool") or {}).get("name", "")
                for given in spec.get("devices") or ():
                    device = _device(given, is_free=(DRIVER, pool, given.get("name", "")) not in taken)
                    if device:
                        found.setdefault(node, []).append(device)
        names = (one["spec"].get("extendedResourceName") for one in classes)
        return cls(found, frozenset(name for name in names if name))


NO_DEVICES = Devices()
"""Where the cluster has no dynamic resource allocation, or does not let us see it."""


def _taken(claims: Sequence[Json]) -> Iterator[tuple[str, str, str]]:
    """Yield driver, pool and name of each device that a claim was given."""
    for claim in claims:
        devices = ((claim.get("status") or {}).get("allocation") or {}).get("devices") or {}
        for result in devices.get("results") or ():
            yield result["driver"], result["pool"], result["device"]


def _device(given: Json, *, is_free: bool) -> Device | None:
    """Return a whole GPU, None for a slice of one, or one that a virtual machine is given."""
    attributes = {
        key.rpartition("/")[2]: next(iter(value.values()))
        for key, value in (given.get("attributes") or {}).items()
    }
    product = "-".join(str(attributes.get("productName", "")).split())
    if attributes.get("type", "gpu") != "gpu" or not product:
        return None
    capability = str(attributes.get("cudaComputeCapability", "")).split(".")
    known = len(capability) >= 2 and capability[0].isdigit() and capability[1].isdigit()
    return Device(
        product,
        ((given.get("capacity") or {}).get("memory") or {}).get("value", "0"),
        (int(capability[0]), int(capability[1])) if known else None,
        is_free,
    )
