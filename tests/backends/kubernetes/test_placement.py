"""What a node offers, a pod asks for in words that this node answers to, and no other does."""

from __future__ import annotations

import pytest

from backends.kubernetes.placement import placement
from backends.kubernetes.settings import Settings
from orchestrator.backend import Resources
from orchestrator.catalog.hardware import accelerator
from orchestrator.catalog.values import Accelerator
from tests.backends.kubernetes.rules import admits
from tests.backends.kubernetes.test_inventory import SITES, gpu_node, offers


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
