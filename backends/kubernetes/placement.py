"""Where a pod may go: accelerators as resources, nodes by facts, taints that are tolerated."""

from __future__ import annotations

import math
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
"""Chips of a slice to its topology, by ``cloud.google.com/gke-tpu-accelerator``.

Source: AI-Hypercomputer/xpk, ``src/xpk/core/system_characteristics.py`` at 073d687.
"""

CHIPS_OF_HOST: Mapping[str, int] = MappingProxyType({"tpu-v5-lite-podslice": 8, "tpu-v6e-slice": 8})
"""The most chips of one machine, where that is not 4; machines of a slice of several have 4 each (the
same source, ``chips_per_vm``)."""

HOST = 4

SLICE = "cloud.google.com/gke-nodepool"
"""The label that the nodes of one slice of several machines share, and no others: GKE makes each a node
pool of its own (GKE docs, "About TPUs in GKE")."""

_TPU_LABELS = {
    "TPU-V4": "tpu-v4-podslice",
    "TPU-V5P": "tpu-v5p-slice",
    "TPU-V5E": "tpu-v5-lite-podslice",
    "TPU-V6E": "tpu-v6e-slice",
    "TPU-V7X": "tpu7x",
}

GKE_LABELS: Mapping[str, tuple[str, ...]] = {
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
"""``cloud.google.com/gke-accelerator`` of each.

Sources: skypilot-org/skypilot, ``sky/provision/kubernetes/utils.py`` at 6daea0f (T4 to H200);
AI-Hypercomputer/xpk, ``src/xpk/core/system_characteristics.py`` at 073d687 (A100 to GB200);
manifests of dcgm-exporter for GKE (RTX PRO 6000).
"""

AMD_DEVICES: Mapping[str, str] = MappingProxyType(
    {
        "738c": "MI100", "738e": "MI100", "7408": "MI250X", "740c": "MI250", "740f": "MI210",
        "74a0": "MI300A", "74a1": "MI300X", "74a2": "MI308X", "74a5": "MI325X", "74a9": "MI300X",
        "74b5": "MI300X", "74b9": "MI325X", "74bd": "MI300X", "75a0": "MI350X", "75a3": "MI355X",
    }
)  # fmt: skip
"""PCI device ids of AMD's Instinct line, virtual functions included (pci.ids 2026.08.22).

740c is both MI250X and MI250; the smaller of the two is named.
"""


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
    fabric = settings.fabric_of(resources.accelerator, nodes=nodes)
    selector = {**settings.node_selector, **(fabric.node_selector if fabric else {})}
    if not resources.accelerators:
        return Placement({}, selector, None, tuple(tolerations))
    resource = resource_of(resources, settings)
    tolerations.append({"key": _taint(resource), "operator": "Exists"})
    if resources.vendor == "google":
        selector |= _slice(resources, nodes)
        affinity = None
    else:
        affinity = _affinity(resources, settings)
    asked = {resource: str(resources.accelerators)}
    return Placement(asked, selector, affinity, tuple(tolerations))


def resource_of(resources: Resources, settings: Settings) -> str:
    """Return the extended resource that counts these accelerators.

    A MIG slice is counted by its profile, or as a GPU of its own with the strategy ``single``
    (NVIDIA/k8s-device-plugin, README, "MIG Support").

    Raises:
        Rejected: no device plugin that we know counts them.

    >>> slice = Resources(accelerator="H100-80GB-MIG-1g.10gb", vendor="nvidia", accelerators=1)
    >>> resource_of(slice, Settings()), resource_of(slice, Settings(mig="single"))
    ('nvidia.com/mig-1g.10gb', 'nvidia.com/gpu')
    """
    name = resources.accelerator or ""
    if resources.vendor == "nvidia" and "-MIG-" in name and settings.mig == "mixed":
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


def is_slice(resources: Resources, *, nodes: int) -> bool:
    """Return whether the nodes of one replica have to be one TPU slice."""
    return resources.vendor == "google" and nodes > 1 and bool(resources.accelerators)


def _slice(resources: Resources, nodes: int) -> dict[str, str]:
    label = _TPU_LABELS.get(resources.accelerator or "")
    each = resources.accelerators
    topologies = TPU_SLICES.get(label or "", {})
    if label is None or each * nodes not in topologies:
        sizes = ", ".join(map(str, topologies)) or "none"
        raise Rejected(
            f"there is no slice of {each * nodes} × {resources.accelerator}",
            fix=f"slices have {sizes} chips in all",
        )
    most = CHIPS_OF_HOST.get(label, HOST)
    if (each > most) if nodes == 1 else (each != HOST):
        raise Rejected(
            f"no machine of such a slice has {each} × {resources.accelerator}",
            fix=f"one machine has up to {most}; a slice of several has {HOST} on each: "
            f"set nodes to its chips divided by {HOST}",
        )
    return {
        "cloud.google.com/gke-tpu-accelerator": label,
        "cloud.google.com/gke-tpu-topology": topologies[each * nodes],
    }


def _affinity(resources: Resources, settings: Settings) -> Json | None:
    """Return an affinity to nodes whose labels state what the plan was made for.

    One term per labeller, any of which suffices: feature discovery labels a node when it is up,
    Karpenter and GKE know theirs before there is a node, so a pool at zero can grow.
    """
    by_vendor = {"nvidia": _nvidia, "amd": _amd}.get(resources.vendor or "nvidia")
    terms = by_vendor(resources, settings) if by_vendor else []
    terms += [_pool(pool) for pool in settings.pools if _is_of(pool, resources)]
    if not terms:
        return None
    required = {"nodeSelectorTerms": [{"matchExpressions": term} for term in terms]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}


def _expression(key: str, operator: str, *values: object) -> Json:
    found: Json = {"key": key, "operator": operator}
    return {**found, "values": [str(value) for value in values]} if values else found


def _between(key: str, mib: float, slack: float = MEMORY_SLACK) -> list[Json]:
    return [
        _expression(key, "Gt", int(mib * (1 - slack))),
        _expression(key, "Lt", int(mib * (1 + slack)) + 1),
    ]


def _nvidia(resources: Resources, settings: Settings) -> list[list[Json]]:
    if not resources.vram_bytes:
        return []
    if "-MIG-" in (resources.accelerator or ""):
        # with the strategy "mixed" the resource says the size, with "single" the labels do
        return [_discovered(resources)] if settings.mig == "single" else []
    found = [_discovered(resources), _karpenter(resources), *_coreweave(resources)]
    names = GKE_LABELS.get(resources.accelerator or "")
    return [*found, _gke(names)] if names else found


def _discovered(resources: Resources) -> list[Json]:
    """Return what GPU feature discovery says of such a node; shared devices are nobody's own."""
    term = _between("nvidia.com/gpu.memory", resources.vram_bytes / 2**20)
    term.append(_expression("nvidia.com/gpu.sharing-strategy", "NotIn", "time-slicing", "mps"))
    if resources.compute_capability:
        major, minor = resources.compute_capability
        term += [
            _expression("nvidia.com/gpu.compute.major", "In", major),
            _expression("nvidia.com/gpu.compute.minor", "In", minor),
        ]
    return term


def _gke(names: tuple[str, ...]) -> list[Json]:
    return [
        _expression("cloud.google.com/gke-accelerator", "In", *names),
        _expression("cloud.google.com/gke-gpu-partition-size", "DoesNotExist"),
        _expression("cloud.google.com/gke-gpu-sharing-strategy", "DoesNotExist"),
    ]


def _karpenter(resources: Resources) -> list[Json]:
    model = (resources.accelerator or "").partition("-")[0].lower()
    return [
        _expression("karpenter.k8s.aws/instance-gpu-name", "In", model),
        *_between("karpenter.k8s.aws/instance-gpu-memory", resources.vram_bytes / 2**20, NOMINAL_SLACK),
    ]


def _coreweave(resources: Resources) -> list[list[Json]]:
    """Return what CoreWeave says of its nodes: a model, with or without link and size, and GB."""
    model, _, size = (resources.accelerator or "").partition("-")
    names = (model, f"{model}_{size}", f"{model}_NVLINK_{size}")
    vram = _between("gpu.nvidia.com/vram", resources.vram_bytes / 2**30, NOMINAL_SLACK)
    return [[_expression(f"gpu.nvidia.com/{key}", "In", *names), *vram] for key in ("model", "class")]


def _amd(resources: Resources, _: Settings) -> list[list[Json]]:
    """Return what AMD's labeller says: the PCI id, else whole GiB; in its older form in the key.

    The labels without ``beta`` have a value only where all devices of a node are alike
    (ROCm/k8s-device-plugin, ``cmd/k8s-node-labeller``).
    """
    model = (resources.accelerator or "").partition("-")[0]
    ids = [device for device, name in AMD_DEVICES.items() if name == model]
    if ids:
        terms = [[_expression("amd.com/gpu.device-id", "In", *ids)]]
        return terms + [[_expression(f"beta.amd.com/gpu.device-id.{one}", "Exists")] for one in ids]
    if not resources.vram_bytes:
        return []
    size = f"{math.ceil(resources.vram_bytes / 2**30)}G"  # a little is kept from programs
    return [
        [_expression("amd.com/gpu.vram", "In", size)],
        [_expression(f"beta.amd.com/gpu.vram.{size}", "Exists")],
    ]


def _pool(pool: Pool) -> list[Json]:
    return [_expression(key, "In", value) for key, value in sorted(pool.labels.items())]


def _is_of(pool: Pool, resources: Resources) -> bool:
    return pool.accelerator == resources.accelerator and pool.count >= resources.accelerators
