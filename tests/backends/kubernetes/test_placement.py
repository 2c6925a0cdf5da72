"""What a node offers, a pod asks for in words that this node answers to, and no other does."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.kubernetes.placement import AMD_DEVICES, GKE_LABELS, TPU_SLICES, placement
from backends.kubernetes.settings import Pool, Settings
from orchestrator.backend import Resources
from orchestrator.catalog.hardware import accelerator
from orchestrator.catalog.values import Accelerator
from tests.backends.kubernetes.rules import admits
from tests.backends.kubernetes.test_inventory import SITES, gfd, gpu_node, offers


def offered(site: str) -> tuple[Accelerator, Resources]:
    """Return the device of a site, and what a launch asks for that was planned for its offer."""
    labels, resource, _ = SITES[site]
    (offer,) = offers(gpu_node(labels, resource=resource))
    assert offer.accelerator is not None
    known = accelerator(offer.accelerator, memory_bytes=offer.vram_bytes)
    assert known is not None
    return known, Resources(
        accelerator=known.name, vendor=known.vendor, accelerators=8, vram_bytes=offer.vram_bytes,
        compute_capability=offer.compute_capability or known.capability,
    )  # fmt: skip


def as_drawn(site: str) -> Resources:
    """Return what is asked for where no offer was seen: the catalog's figures."""
    known, resources = offered(site)
    return Resources(
        accelerator=known.name, vendor=known.vendor, accelerators=resources.accelerators,
        vram_bytes=known.visible_bytes, compute_capability=known.capability,
    )  # fmt: skip


def labels_of(site: str) -> dict[str, str]:
    return {"kubernetes.io/hostname": site, **SITES[site][0]}


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("from_offer", [True, False], ids=["applied", "rendered"])
def test_pod_goes_where_it_was_planned(site: str, from_offer: bool) -> None:
    resources = offered(site)[1] if from_offer else as_drawn(site)
    assert admits(placement(resources, Settings(), nodes=1), labels_of(site))


INTERCHANGEABLE = [
    {"A100-80GB", "A100-80GB-PCIE"},  # no label but the product's name tells them apart
]


@pytest.mark.parametrize("site", SITES)
def test_pod_goes_to_no_other_device(site: str) -> None:
    known, resources = offered(site)
    where = placement(resources, Settings(), nodes=1)
    for other, (labels, resource, name) in SITES.items():
        same = name == known.name or any({name, known.name} <= pair for pair in INTERCHANGEABLE)
        if not same and resource in where.resources:
            assert not admits(where, {"kubernetes.io/hostname": other, **labels}), other


def test_evidence_that_is_missing_keeps_a_pod_away() -> None:
    where = placement(offered("gfd-h100")[1], Settings(), nodes=1)
    assert not admits(where, {"nvidia.com/gpu.present": "true"})


# --- whatever labels a node has: offered is schedulable


def coreweave(model: str, gib: int) -> dict[str, str]:
    return {"gpu.nvidia.com/model": model, "gpu.nvidia.com/class": model, "gpu.nvidia.com/vram": str(gib)}


def karpenter(name: str, mib: int) -> dict[str, str]:
    prefix = "karpenter.k8s.aws/instance-gpu-"
    return {prefix + "name": name, prefix + "memory": str(mib), prefix + "manufacturer": "nvidia"}


def gke(accelerator_label: str) -> dict[str, str]:
    return {"cloud.google.com/gke-accelerator": accelerator_label}


def amd(device: str, product: str, gib: int) -> dict[str, str]:
    said = {"device-id": device, "product-name": product, "vram": f"{gib}G"}
    older = {f"beta.amd.com/gpu.{key}.{value}": "8" for key, value in said.items()}
    return older | {f"amd.com/gpu.{key}": value for key, value in said.items()}


def tpu(kind: str, topology: str, pool: str = "") -> dict[str, str]:
    prefix = "cloud.google.com/gke-"
    return {f"{prefix}tpu-accelerator": kind, f"{prefix}tpu-topology": topology, f"{prefix}nodepool": pool}


NVIDIA = [
    gfd("NVIDIA-A100-SXM4-40GB", 40960, 8, 0)
    | coreweave("A100_NVLINK", 40) | karpenter("a100", 40960) | gke("nvidia-tesla-a100"),
    gfd("NVIDIA-A100-80GB-PCIe", 81920, 8, 0) | coreweave("A100_PCIE_80GB", 80) | karpenter("a100", 81920),
    gfd("NVIDIA-H100-80GB-HBM3", 81559, 9, 0)
    | coreweave("H100_NVLINK_80GB", 80) | karpenter("h100", 81920) | gke("nvidia-h100-mega-80gb"),
    gfd("Tesla-T4", 15360, 7, 5) | karpenter("t4", 16384) | gke("nvidia-tesla-t4"),
    gfd("NVIDIA-A10G", 23028, 8, 6) | karpenter("a10g", 24576),
    gfd("NVIDIA-RTX-A6000", 49140, 8, 6) | coreweave("RTX_A6000", 48),
    gfd("Quadro-RTX-5000", 16384, 7, 5) | coreweave("Quadro_RTX_5000", 16),
    gfd("NVIDIA-L40S", 46068, 8, 9) | coreweave("L40S", 48) | karpenter("l40s", 49152),
    gfd("NVIDIA-RTX-PRO-6000-Blackwell-Server-Edition", 97887, 12, 0)
    | karpenter("rtx-pro-server-6000", 98304) | gke("nvidia-rtx-pro-6000"),
    gfd("NVIDIA-FUTURE-9", 300000, 20, 0) | coreweave("FUTURE_9", 293) | karpenter("future", 300000),
    gfd("NVIDIA-H100-80GB-HBM3-MIG-1g.10gb", 9856, 9, 0) | gke("nvidia-h100-80gb"),
    *(gke(label) for labels in GKE_LABELS.values() for label in labels),
]  # fmt: skip
MACHINES: list[tuple[str, dict[str, str]]] = [
    *((resource, labels) for labels in NVIDIA for resource in ("nvidia.com/gpu", "nvidia.com/mig-1g.10gb")),
    *(("amd.com/gpu", amd(device, f"AMD_Instinct_{name}", 192)) for device, name in AMD_DEVICES.items()),
    ("amd.com/gpu", amd("74b6", "AMD_Instinct_MI300X_OAM", 192)),
    ("amd.com/gpu", amd("744c", "AMD_Radeon_RX_7900_XTX", 24)),
    *(("google.com/tpu", tpu(kind, shape, "p")) for kind in TPU_SLICES for shape in ("1x1", "2x4", "2x2x1")),
]
ODD = ("", "none", "80GB", "4")


@st.composite
def labelled(draw: st.DrawFn) -> tuple[str, dict[str, str]]:
    """Return a machine with some of the labels that each labeller would give it, or an odd one among them."""
    resource, labels = draw(st.sampled_from(MACHINES))
    keys = draw(st.sets(st.sampled_from(sorted(labels))))
    kept = {key: value for key, value in labels.items() if key in keys}
    if kept and draw(st.booleans()):
        kept[draw(st.sampled_from(sorted(kept)))] = draw(st.sampled_from(ODD))
    kept |= {"pool": "x"} if draw(st.booleans()) else {}
    return resource, kept


POOL = Pool("x", {"pool": "x"}, 96, 2**40, "H100", "nvidia", 8, 85_520_809_984, most=0)


@given(
    labelled(),
    st.sampled_from([1, 4, 8]),
    st.sampled_from(["mixed", "single"]),
    st.sampled_from([(), (POOL,)]),
)
def test_what_is_offered_a_pod_of_its_plan_is_admitted_to(
    machine: tuple[str, dict[str, str]], count: int, mig: Any, pools: tuple[Pool, ...]
) -> None:
    resource, labels = machine
    settings = Settings(mig=mig, pools=pools)
    node = gpu_node({"kubernetes.io/hostname": "n1", **labels}, count, resource)
    for offer in offers(node, settings=settings):
        if not offer.accelerator or not offer.available:
            continue
        known = accelerator(offer.accelerator, memory_bytes=offer.vram_bytes or None)
        resources = Resources(
            accelerator=known.name if known else offer.accelerator,
            vendor=known.vendor if known else offer.vendor,
            accelerators=offer.count, vram_bytes=offer.vram_bytes,
            compute_capability=offer.compute_capability or (known.capability if known else None),
        )  # fmt: skip
        where = placement(resources, settings, nodes=offer.nodes)
        assert where.resources == {resource: str(count)}
        assert admits(where, node["metadata"]["labels"])
