"""Where a pod may go: accelerators as resources, nodes by facts, taints that are tolerated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from backends.kubernetes.settings import Pool, Settings
from orchestrator.backend import Resources
from orchestrator.errors import Rejected

Json = dict[str, Any]

RESOURCES: Mapping[str, str] = MappingProxyType(
    {
        "nvidia": "nvidia.com/gpu",
        "amd": "amd.com/gpu",
        "intel": "habana.ai/gaudi",
        "google": "google.com/tpu",
    }
)
"""What the device plugin of each vendor counts."""

MEMORY_SLACK = 0.04
"""Drivers report up to this much more or less than another driver does of the same device."""

NOMINAL_SLACK = 0.12
"""EC2 states some devices by their nominal memory: 16384 MiB for a T4, whose driver says 15360."""

_2D = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_3D = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4"}

TPU_SLICES: Mapping[str, Mapping[int, str]] = MappingProxyType(
    {
        "tpu-v4-podslice": _3D,
        "tpu-v5p-slice": _3D,
        "tpu-v5-lite-podslice": _2D,
        "tpu-v6e-slice": _2D,
        "tpu7x": _3D,
    }
)
"""Chips of a slice to its topology (GKE docs, "About TPUs in GKE", read 2026-11)."""

_TPU_LABELS = {
    "TPU-V4": "tpu-v4-podslice",
    "TPU-V5P": "tpu-v5p-slice",
    "TPU-V5E": "tpu-v5-lite-podslice",
    "TPU-V6E": "tpu-v6e-slice",
    "TPU-V7X": "tpu7x",
}

_GKE_LABELS = {
    "T4-16GB": ("nvidia-tesla-t4",),
    "V100-16GB": ("nvidia-tesla-v100",),
    "P100-16GB": ("nvidia-tesla-p100",),
    "L4-24GB": ("nvidia-l4",),
    "A100-40GB": ("nvidia-tesla-a100",),
    "A100-80GB": ("nvidia-a100-80gb",),
    "H100-80GB": ("nvidia-h100-80gb", "nvidia-h100-mega-80gb"),
    "H200-141GB": ("nvidia-h200-141gb",),
    "B200-180GB": ("nvidia-b200",),
    "GB200-186GB": ("nvidia-gb200",),
    "RTX-PRO-6000-96GB": ("nvidia-rtx-pro-6000",),
}
"""``cloud.google.com/gke-accelerator`` of each (GKE docs, "About GPUs in GKE", read 2026-11)."""


@dataclass(frozen=True, slots=True)
class Placement:
    """What a pod spec says about where it may go."""

    resources: Mapping[str, str]
    node_selector: Mapping[str, str]
    affinity: Json | None
    tolerations: tuple[Json, ...]


def placement(resources: Resources, settings: Settings, *, nodes: int) -> Placement:
    """Return where a pod with these resources may go.

    Raises:
        Rejected: the cluster cannot be asked for such accelerators.
    """
    tolerations = [dict(one) for one in settings.tolerations]
    selector = dict(settings.node_selector)
    if not resources.accelerators:
        return Placement({}, selector, None, tuple(tolerations))
    resource = resource_of(resources)
    tolerations.append({"key": _taint(resource), "operator": "Exists"})
    if resources.vendor == "google":
        selector |= _slice(resources, nodes)
        affinity = None
    else:
        affinity = _affinity(resources, settings)
    asked = {resource: str(resources.accelerators)}
    return Placement(asked, selector, affinity, tuple(tolerations))


def resource_of(resources: Resources) -> str:
    """Return the extended resource that counts these accelerators.

    A MIG slice is counted by its profile (NVIDIA device plugin, strategy ``mixed``).

    Raises:
        Rejected: no device plugin that we know counts them.

    >>> resource_of(Resources(accelerator="H100-80GB-MIG-1g.10gb", vendor="nvidia", accelerators=1))
    'nvidia.com/mig-1g.10gb'
    """
    name = resources.accelerator or ""
    if resources.vendor == "nvidia" and "-MIG-" in name:
        return "nvidia.com/mig-" + name.rpartition("-MIG-")[2]
    found = RESOURCES.get(resources.vendor or "nvidia")
    if found is None:
        raise Rejected(
            f"Kubernetes has no resource that we know for {resources.vendor} accelerators",
            fix=f"known vendors: {', '.join(RESOURCES)}",
        )
    return found


def _taint(resource: str) -> str:
    """Return the key of the taint that keeps others off: slices share that of whole GPUs."""
    return "nvidia.com/gpu" if resource.startswith("nvidia.com/") else resource


def _slice(resources: Resources, nodes: int) -> dict[str, str]:
    label = _TPU_LABELS.get(resources.accelerator or "")
    chips = resources.accelerators * nodes
    topologies = TPU_SLICES.get(label or "", {})
    if label is None or chips not in topologies:
        sizes = ", ".join(map(str, topologies)) or "none"
        raise Rejected(
            f"there is no slice of {chips} × {resources.accelerator}", fix=f"slices have {sizes} chips in all"
        )
    return {
        "cloud.google.com/gke-tpu-accelerator": label,
        "cloud.google.com/gke-tpu-topology": topologies[chips],
    }


def _affinity(resources: Resources, settings: Settings) -> Json | None:
    """Return an affinity to nodes whose labels state what the plan was made for.

    One term per labeller, any of which suffices: feature discovery labels a node when it is up,
    Karpenter and GKE know theirs before there is a node, so a pool at zero can grow.
    """
    terms = [t for t in (_discovered(resources), _karpenter(resources), _gke(resources)) if t]
    terms += [_pool(pool) for pool in settings.pools if _is_of(pool, resources)]
    if not terms:
        return None
    required = {"nodeSelectorTerms": [{"matchExpressions": term} for term in terms]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}


def _expression(key: str, operator: str, *values: object) -> Json:
    return {"key": key, "operator": operator, "values": [str(value) for value in values]}


def _between(key: str, mib: float, slack: float = MEMORY_SLACK) -> list[Json]:
    return [
        _expression(key, "Gt", int(mib * (1 - slack))),
        _expression(key, "Lt", int(mib * (1 + slack)) + 1),
    ]


def _discovered(resources: Resources) -> list[Json]:
    """Return what GPU feature discovery, or AMD's node labeller, says of such a node."""
    if not resources.vram_bytes:
        return []
    if resources.vendor == "amd":
        # the labeller writes whole GiB, as 192G (ROCm/k8s-device-plugin, cmd/k8s-node-labeller)
        return [_expression("amd.com/gpu.vram", "In", f"{round(resources.vram_bytes / 2**30)}G")]
    if resources.vendor != "nvidia" or "-MIG-" in (resources.accelerator or ""):
        return []  # a slice's resource says its size
    term = _between("nvidia.com/gpu.memory", resources.vram_bytes / 2**20)
    if resources.compute_capability:
        major, minor = resources.compute_capability
        term += [
            _expression("nvidia.com/gpu.compute.major", "In", major),
            _expression("nvidia.com/gpu.compute.minor", "In", minor),
        ]
    return term


def _karpenter(resources: Resources) -> list[Json]:
    if resources.vendor != "nvidia" or not resources.vram_bytes or "-MIG-" in (resources.accelerator or ""):
        return []
    model = (resources.accelerator or "").partition("-")[0].lower()
    return [
        _expression("karpenter.k8s.aws/instance-gpu-name", "In", model),
        *_between("karpenter.k8s.aws/instance-gpu-memory", resources.vram_bytes / 2**20, NOMINAL_SLACK),
        _expression("karpenter.k8s.aws/instance-gpu-count", "Gt", resources.accelerators - 1),
    ]


def _gke(resources: Resources) -> list[Json]:
    names = _GKE_LABELS.get(resources.accelerator or "")
    return [_expression("cloud.google.com/gke-accelerator", "In", *names)] if names else []


def _pool(pool: Pool) -> list[Json]:
    return [_expression(key, "In", value) for key, value in sorted(pool.labels.items())]


def _is_of(pool: Pool, resources: Resources) -> bool:
    return pool.accelerator == resources.accelerator and pool.count >= resources.accelerators
