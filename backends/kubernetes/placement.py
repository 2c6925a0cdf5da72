"""Where a pod may go: accelerators as resources, nodes by facts, taints that are tolerated."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from backends.kubernetes.settings import Pool, Settings
from orchestrator.backend import Resources
from orchestrator.errors import Rejected
from orchestrator.frozen import frozen

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

KARPENTER_NAMES: Mapping[str, str] = MappingProxyType({"RTX-PRO-6000-96GB": "rtx-pro-server-6000"})
"""``karpenter.k8s.aws/instance-gpu-name`` where it is not the model that the catalog's name begins with
(karpenter-provider-aws docs, instance types: g7e)."""

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


@frozen
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
    tolerations.append({"key": taint_of(resource), "operator": "Exists"})
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


def taint_of(resource: str) -> str:
    """Return the key of the taint that keeps others off: slices share that of whole GPUs."""
    return "nvidia.com/gpu" if resource.startswith("nvidia.com/") else resource


def is_slice(resources: Resources, *, nodes: int) -> bool:
    """Return whether the nodes of one replica have to be one TPU slice."""
    return resources.vendor == "google" and nodes > 1 and bool(resources.accelerators)


def is_tpu_machine(label: str, *, each: int, nodes: int, topology: str) -> bool:
    """Return whether pods ask for machines with such labels, ``each`` chips on each of ``nodes``.

    >>> is_tpu_machine("tpu-v5-lite-podslice", each=4, nodes=4, topology="4x4")
    True
    >>> is_tpu_machine("tpu-v5-lite-podslice", each=4, nodes=4, topology="2x8")
    False
    """
    return TPU_SLICES.get(label, {}).get(each * nodes) == topology and _has_host(label, each, nodes)


def _has_host(label: str, each: int, nodes: int) -> bool:
    return each <= CHIPS_OF_HOST.get(label, HOST) if nodes == 1 else each == HOST


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
    if not _has_host(label, each, nodes):
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
    name = resources.accelerator or ""
    model = KARPENTER_NAMES.get(name, name.partition("-")[0].lower())
    return [
        _expression("karpenter.k8s.aws/instance-gpu-name", "In", model),
        *_between("karpenter.k8s.aws/instance-gpu-memory", resources.vram_bytes / 2**20, NOMINAL_SLACK),
    ]


def _coreweave(resources: Resources) -> list[list[Json]]:
    """Return what CoreWeave says of its nodes: a model, with or without link and size, and GB."""
    names = coreweave_names(resources.accelerator or "")
    vram = _between("gpu.nvidia.com/vram", resources.vram_bytes / 2**30, NOMINAL_SLACK)
    return [[_expression(f"gpu.nvidia.com/{key}", "In", *names), *vram] for key in ("model", "class")]


_SIZED = re.compile(r"(?P<model>.+?)-(?P<size>\d+GB)(?:-(?P<link>.+))?")


def coreweave_names(accelerator: str) -> tuple[str, ...]:
    """Return what CoreWeave may call an accelerator of the catalog.

    >>> coreweave_names("RTX-A6000-48GB")[:2], coreweave_names("A100-80GB-PCIE")[1:]
    (('RTX_A6000', 'RTX_A6000_48GB'), ('A100_80GB', 'A100_PCIE_80GB', 'A100_PCIE'))
    """
    sized = _SIZED.fullmatch(accelerator)
    model, size, link = sized.group("model", "size", "link") if sized else (accelerator, "", None)
    model, link = model.replace("-", "_"), (link or "NVLINK").replace("-", "_")
    linked = f"{model}_{link}"
    return (model, f"{model}_{size}", f"{linked}_{size}", linked) if size else (model, linked)


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
    """Return whether a pool's machines have what is asked for, whichever name it is declared by."""
    if not pool.accelerator or pool.count < resources.accelerators:
        return False
    if pool.accelerator == resources.accelerator:
        return True
    near = abs(pool.vram_bytes - resources.vram_bytes) <= MEMORY_SLACK * resources.vram_bytes
    return near and _is_name_of(pool.accelerator, resources.accelerator or "")


_MAKERS = frozenset({"nvidia", "amd", "intel", "tesla", "geforce", "instinct"})


def _is_name_of(one: str, other: str) -> bool:
    """Return whether one name says what the other does, and no more or less than size and form of it.

    >>> _is_name_of("H100", "H100-80GB"), _is_name_of("NVIDIA-H100-80GB-HBM3", "H100-80GB")
    (True, True)
    >>> _is_name_of("L40", "L40S-48GB"), _is_name_of("RTX-A6000", "RTX-6000-ADA-48GB")
    (False, False)
    """
    first, second = (
        [word for word in re.split("[-_ ]+", name.casefold()) if word not in _MAKERS] for name in (one, other)
    )
    most = min(len(first), len(second))
    return most > 0 and first[:most] == second[:most]
