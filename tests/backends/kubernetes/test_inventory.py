"""Nodes of every kind of site, and what is offered of them."""

from __future__ import annotations

from typing import Any

import pytest

from backends.kubernetes.devices import Devices
from backends.kubernetes.inventory import amount_of, facts_of, inventory
from backends.kubernetes.settings import Pool, Settings
from orchestrator.backend import Offer
from orchestrator.catalog.hardware import accelerator

MIB = 2**20


def node(name: str = "n1", labels: dict[str, str] | None = None, **allocatable: Any) -> dict[str, Any]:
    given = {"cpu": "96", "memory": "1Ti", "ephemeral-storage": "1Ti"}
    given |= {k.replace("__", "/").replace("_", "."): str(v) for k, v in allocatable.items()}
    return {
        "metadata": {"name": name, "labels": labels or {}},
        "spec": {},
        "status": {"allocatable": given, "conditions": [{"type": "Ready", "status": "True"}]},
    }


def gpu_node(labels: dict[str, str], count: int = 8, resource: str = "nvidia.com/gpu") -> dict[str, Any]:
    made = node(labels=labels)
    made["status"]["allocatable"][resource] = str(count)
    return made


def gfd(product: str, mib: int, major: int, minor: int, **more: str) -> dict[str, str]:
    labels = {"product": product, "memory": str(mib), "count": "8"}
    labels |= {"compute.major": str(major), "compute.minor": str(minor), **more}
    return {f"nvidia.com/gpu.{key}": value for key, value in labels.items()}


def pod(on: str, **requests: str) -> dict[str, Any]:
    asked = {k.replace("__", "/").replace("_", "."): v for k, v in requests.items()}
    return {
        "metadata": {"name": "p"},
        "spec": {"nodeName": on, "containers": [{"resources": {"requests": asked}}]},
        "status": {"phase": "Running"},
    }


def offers(*nodes: Any, pods: Any = (), settings: Settings | None = None) -> list[Offer]:
    return list(inventory(nodes, pods, settings or Settings(), backend="k8s").offers)


def why(*nodes: Any, settings: Settings | None = None) -> list[str]:
    return [one.why for one in inventory(nodes, (), settings or Settings(), backend="k8s").left_out]


SITES: dict[str, tuple[dict[str, str], str, str]] = {
    "gfd-a100-40": (gfd("NVIDIA-A100-SXM4-40GB", 40960, 8, 0), "nvidia.com/gpu", "A100-40GB"),
    "gfd-a100-80": (gfd("NVIDIA-A100-SXM4-80GB", 81920, 8, 0), "nvidia.com/gpu", "A100-80GB"),
    "gfd-a100-pcie": (gfd("NVIDIA-A100-80GB-PCIe", 81920, 8, 0), "nvidia.com/gpu", "A100-80GB-PCIE"),
    "gfd-h100": (gfd("NVIDIA-H100-80GB-HBM3", 81559, 9, 0), "nvidia.com/gpu", "H100-80GB"),
    "gfd-h200": (gfd("NVIDIA-H200", 143771, 9, 0), "nvidia.com/gpu", "H200-141GB"),
    "gfd-l40s": (gfd("NVIDIA-L40S", 46068, 8, 9), "nvidia.com/gpu", "L40S-48GB"),
    "gfd-a6000": (gfd("NVIDIA-RTX-A6000", 49140, 8, 6), "nvidia.com/gpu", "RTX-A6000-48GB"),
    "gfd-6000-ada": (
        gfd("NVIDIA-RTX-6000-Ada-Generation", 49140, 8, 9), "nvidia.com/gpu", "RTX-6000-ADA-48GB",
    ),
    "gfd-a10": (gfd("NVIDIA-A10", 23028, 8, 6), "nvidia.com/gpu", "A10-24GB"),
    "gke-a100": ({"cloud.google.com/gke-accelerator": "nvidia-tesla-a100"}, "nvidia.com/gpu", "A100-40GB"),
    "gke-a100-80": ({"cloud.google.com/gke-accelerator": "nvidia-a100-80gb"}, "nvidia.com/gpu", "A100-80GB"),
    "karpenter-t4": (
        {"karpenter.k8s.aws/instance-gpu-name": "t4", "karpenter.k8s.aws/instance-gpu-memory": "16384"},
        "nvidia.com/gpu", "T4-16GB",
    ),
    "karpenter-a100": (
        {"karpenter.k8s.aws/instance-gpu-name": "a100", "karpenter.k8s.aws/instance-gpu-memory": "40960"},
        "nvidia.com/gpu", "A100-40GB",
    ),
    "coreweave": (
        {
            "gpu.nvidia.com/class": "H100", "gpu.nvidia.com/model": "H100_NVLINK_80GB",
            "gpu.nvidia.com/vram": "80",
            "cloud.google.com/gke-accelerator": "H100_NVLINK_80GB",
        },
        "nvidia.com/gpu", "H100-80GB",
    ),
    "amd": (
        {"amd.com/gpu.device-id": "74a1", "amd.com/gpu.vram": "192G", "amd.com/gpu.product-name": "x"},
        "amd.com/gpu", "MI300X-192GB",
    ),
    "amd-virtual": (
        {"beta.amd.com/gpu.device-id.74b5": "8"}, "amd.com/gpu", "MI300X-192GB",
    ),
    "amd-mi308x": (
        {"amd.com/gpu.device-id": "74a2", "amd.com/gpu.vram": "192G"}, "amd.com/gpu", "MI308X-192GB",
    ),
    "gke-h100-mega": (
        {"cloud.google.com/gke-accelerator": "nvidia-h100-mega-80gb"}, "nvidia.com/gpu", "H100-80GB",
    ),
    "amd-beta": (
        {"beta.amd.com/gpu.device-id.74a1": "8", "beta.amd.com/gpu.vram.192G": "8"},
        "amd.com/gpu", "MI300X-192GB",
    ),
    "tpu": (
        {
            "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
            "cloud.google.com/gke-tpu-topology": "2x4",
        },
        "google.com/tpu", "TPU-V5E",
    ),
}  # fmt: skip


@pytest.mark.parametrize("site", SITES)
def test_every_labeller_leads_to_the_right_device(site: str) -> None:
    labels, resource, wanted = SITES[site]
    (offer,) = offers(gpu_node(labels, resource=resource))
    assert offer.accelerator is not None
    known = accelerator(offer.accelerator, memory_bytes=offer.vram_bytes)
    assert known is not None
    assert known.name == wanted
    assert offer.count == 8
    assert abs(offer.vram_bytes / known.visible_bytes - 1) < 0.13


def test_driver_outranks_what_a_provisioner_calls_it() -> None:
    labels = gfd("NVIDIA-A100-SXM4-80GB", 81920, 8, 0)
    labels["cloud.google.com/gke-accelerator"] = "nvidia-tesla-a100"
    (offer,) = offers(gpu_node(labels))
    assert (offer.vram_bytes, offer.compute_capability) == (81920 * MIB, (8, 0))


def test_evidence_of_several_labellers_is_merged() -> None:
    labels = {"gpu.nvidia.com/vram": "80", "gpu.nvidia.com/model": "H100"}
    labels |= {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3", "nvidia.com/gpu.compute.major": "9"}
    facts = facts_of("nvidia.com/gpu", {**labels, "nvidia.com/gpu.compute.minor": "0"})
    assert (facts.name, facts.vram_bytes, facts.capability) == ("H100", 80 * 2**30, (9, 0))


@pytest.mark.parametrize(
    "more",
    [{"sharing-strategy": "time-slicing", "replicas": "4"}, {"sharing-strategy": "mps", "replicas": "2"}],
)
def test_shared_device_is_not_offered_as_a_whole_one(more: dict[str, str]) -> None:
    shared = gpu_node(gfd("NVIDIA-L4-SHARED", 23034, 8, 9, **more), count=4)
    assert [o.accelerator for o in offers(shared)] == [None]
    assert "shared" in why(shared)[0]


def test_slice_of_the_strategy_mixed_is_its_own_device() -> None:
    labels = gfd("NVIDIA-A100-SXM4-40GB", 40960, 8, 0)
    labels |= {"nvidia.com/mig-1g.5gb.product": "NVIDIA-A100-SXM4-40GB-MIG-1g.5gb"}
    labels |= {"nvidia.com/mig-1g.5gb.memory": "4864"}
    (offer,) = offers(gpu_node(labels, count=7, resource="nvidia.com/mig-1g.5gb"))
    assert offer.accelerator is not None
    known = accelerator(offer.accelerator)
    assert known is not None
    assert (known.name, offer.count, offer.vram_bytes) == ("A100-40GB-MIG-1g.5gb", 7, 4864 * MIB)


def test_slice_of_the_strategy_single_is_no_whole_device() -> None:
    slices = gpu_node(gfd("NVIDIA-A100-SXM4-40GB-MIG-1g.5gb", 4864, 8, 0), count=56)
    assert [o.count for o in offers(slices)] == [0]
    assert "mig: single" in why(slices)[0]
    (offer,) = offers(slices, settings=Settings(mig="single"))
    assert (offer.accelerator, offer.vram_bytes) == ("NVIDIA-A100-SXM4-40GB-MIG-1g.5gb", 4864 * MIB)


def test_two_kinds_in_one_node_are_two_offers() -> None:
    both = gpu_node(gfd("NVIDIA-A100-SXM4-40GB", 40960, 8, 0))
    both["status"]["allocatable"]["nvidia.com/mig-1g.5gb"] = "7"
    assert [(o.accelerator, o.count) for o in offers(both)] == [
        ("NVIDIA-A100-SXM4-40GB", 8),
        ("NVIDIA-A100-SXM4-40GB-MIG-1g.5gb", 7),
    ]


def h100(name: str, **attributes: Any) -> dict[str, Any]:
    told = {"type": "gpu", "productName": "NVIDIA H100 80GB HBM3", **attributes}
    return {
        "name": name,
        "attributes": {
            **{key: {"string": value} for key, value in told.items()},
            "cudaComputeCapability": {"version": "9.0.0"},
        },
        "capacity": {"memory": {"value": "81559Mi"}},
    }


def sliced(*devices: Any, node: str = "n1") -> dict[str, Any]:
    return {
        "spec": {"driver": "gpu.nvidia.com", "nodeName": node, "pool": {"name": node}, "devices": devices}
    }


EXTENDED = {"spec": {"extendedResourceName": "nvidia.com/gpu"}}


def claim(*devices: str) -> dict[str, Any]:
    results = [{"driver": "gpu.nvidia.com", "pool": "n1", "device": one} for one in devices]
    return {"status": {"allocation": {"devices": {"results": results}}}}


def test_resource_slices_are_counted_where_no_plugin_counts() -> None:
    slices = [sliced(h100("gpu-0"), h100("gpu-1")), sliced(h100("gpu-2"), h100("mig", type="mig"))]
    told = Devices.of(slices, [EXTENDED], [claim("gpu-1"), {}])
    bare = node(labels=gfd("NVIDIA-H100-80GB-HBM3", 81559, 9, 0))
    (offer,) = inventory([bare], (), Settings(), backend="k8s", devices=told).offers
    assert (offer.accelerator, offer.count) == ("NVIDIA-H100-80GB-HBM3", 2)
    unasked = Devices.of(slices, [], [])
    (offer,) = inventory([bare], (), Settings(), backend="k8s", devices=unasked).offers
    assert offer.count == 0  # no class lets a pod ask by resource


def test_resource_slices_fill_in_what_the_labels_lack() -> None:
    told = Devices.of([sliced(h100("gpu-0"))], [], [])
    named = gpu_node({"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"})
    (offer,) = inventory([named], (), Settings(), backend="k8s", devices=told).offers
    assert (offer.count, offer.compute_capability) == (8, (9, 0))


def test_device_that_no_label_names_is_left_out_whatever_its_slices_say() -> None:
    told = Devices.of([sliced(h100("gpu-0"))], [], [])
    found = inventory([gpu_node({})], (), Settings(), backend="k8s", devices=told)
    assert [o.count for o in found.offers] == [0]
    assert "ResourceSlices alone" in found.left_out[0].why
    pool = Pool("h", {"pool": "h"}, 96, 2**40, "H100-80GB", "nvidia", 8, 85_029_027_840, most=0)
    declared = inventory(
        [gpu_node({"pool": "h"})], (), Settings(pools=(pool,)), backend="k8s", devices=told
    ).offers
    assert [o.count for o in declared] == [8, 8]


def test_two_kinds_under_one_resource_are_left_out() -> None:
    both = gpu_node({"beta.amd.com/gpu.device-id.74a1": "4", "beta.amd.com/gpu.device-id.74a5": "4"},
                    resource="amd.com/gpu")  # fmt: skip
    assert [o.count for o in offers(both)] == [0]
    assert why(both) == ["one resource counts devices of 2 kinds: 74a1, 74a5"]


@pytest.mark.parametrize(
    ("label", "says"),
    [
        ({"cloud.google.com/gke-gpu-partition-size": "1g.5gb"}, "how much memory A100-40GB-MIG-1g.5gb"),
        ({"cloud.google.com/gke-gpu-sharing-strategy": "time-sharing"}, "shared by 2"),
    ],
)
def test_gpus_that_gke_slices_or_shares_are_no_whole_ones(label: dict[str, str], says: str) -> None:
    cut = gpu_node({"cloud.google.com/gke-accelerator": "nvidia-tesla-a100", **label})
    assert [o.count for o in offers(cut)] == [0]
    assert says in why(cut)[0]


def test_parts_of_a_device_are_no_whole_ones() -> None:
    """AMD's plugin counts partitions by their mode, and its labels go on saying the memory of a whole one."""
    labels, _, _ = SITES["amd"]
    parted = gpu_node(labels, 64, "amd.com/cpx_nps4")
    assert [(one.accelerator, one.count) for one in offers(parted)] == [(None, 0)]
    assert why(parted) == ["amd.com/cpx_nps4 counts parts of a device, whose memory no label tells"]
    whole = gpu_node(labels, 8, "amd.com/gpu")
    whole["status"]["allocatable"]["amd.com/cpx_nps4"] = "0"
    assert [one.count for one in offers(whole)] == [8]
    assert why(whole) == []


def test_unlabelled_device_is_left_out_with_the_reason() -> None:
    assert why(gpu_node({})) == ["no label tells which accelerator nvidia.com/gpu is"]
    assert [o.count for o in offers(gpu_node({}))] == [0]


@pytest.mark.parametrize(
    ("labels", "resource", "says"),
    [
        (
            {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3", "nvidia.com/gpu.memory": "81559"},
            "nvidia.com/gpu", "no labels nvidia.com/gpu.compute.major and .minor",
        ),
        (
            {**gfd("NVIDIA-L4", 0, 8, 9), "nvidia.com/gpu.memory": "24GB"},
            "nvidia.com/gpu", "no label tells how much memory NVIDIA-L4 has",
        ),
        (
            {"amd.com/gpu.product-name": "AMD_Instinct_MI325_OAM", "amd.com/gpu.vram": "256G"},
            "amd.com/gpu", "no label amd.com/gpu.device-id that Modelyard knows",
        ),
        (
            {"cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
             "cloud.google.com/gke-tpu-topology": "4x1x1"},
            "google.com/tpu", "no slice of its chips has the topology",
        ),
        (
            {"gpu.nvidia.com/model": "Tesla_V100_NVLINK", "gpu.nvidia.com/vram": "16"},
            "nvidia.com/gpu", "not by gpu.nvidia.com/model=Tesla_V100_NVLINK",
        ),
        (gfd("NVIDIA-A100-SXM4-40GB", 40960, 8, 0), "nvidia.com/mig-1g.5gb", "say mig: mixed"),
    ],
)  # fmt: skip
def test_node_that_no_pod_would_choose_is_left_out(labels: dict[str, str], resource: str, says: str) -> None:
    """A plan that has it would wait for ever: pods select by fewer labels than name a device."""
    single = Settings(mig="single")
    assert [o.accelerator for o in offers(gpu_node(labels, 4, resource), settings=single)] == [None]
    (reason,) = why(gpu_node(labels, 4, resource), settings=single)
    assert says in reason


def test_label_that_is_no_number_leaves_other_nodes_as_they_are() -> None:
    """Somebody labelled a node by hand; the whole inventory once ended with it."""
    odd = gpu_node({**gfd("NVIDIA-L4", 0, 8, 9, replicas="two"), "nvidia.com/gpu.memory": "24GB"})
    odd["status"]["allocatable"]["nvidia.com/mig-1g.5gb"] = "1"
    odd["metadata"]["labels"]["nvidia.com/mig-1g.5gb.memory"] = "5 GB"
    well = gpu_node(SITES["gfd-h100"][0])
    well["metadata"]["name"] = "n2"
    assert ("NVIDIA-H100-80GB-HBM3", 8) in [(o.accelerator, o.count) for o in offers(odd, well)]


def test_operator_may_say_what_no_label_does() -> None:
    pool = Pool("gaudi", {"pool": "g"}, 96, 2**40, "GAUDI3-128GB", "intel", 8, 128 * 2**30, most=0)
    found = offers(gpu_node({"pool": "g"}, resource="habana.ai/gaudi"), settings=Settings(pools=(pool,)))
    assert [(o.accelerator, o.available) for o in found] == [("GAUDI3-128GB", 1), ("GAUDI3-128GB", 0)]


def test_what_pods_hold_is_taken_off() -> None:
    holder = pod("n1", cpu="500m", memory="1Gi", nvidia_com__gpu="3")
    (offer,) = offers(gpu_node(SITES["gfd-h100"][0]), pods=[holder, pod("other", cpu="4")])
    assert (offer.count, offer.cpu, offer.memory_bytes) == (5, 95.5, 2**40 - 2**30)


def test_pod_that_ended_holds_nothing() -> None:
    ended = pod("n1", nvidia_com__gpu="3")
    ended["status"]["phase"] = "Succeeded"
    (offer,) = offers(gpu_node(SITES["gfd-h100"][0]), pods=[ended])
    assert offer.count == 8


def test_init_container_counts_where_it_is_larger_and_a_sidecar_beside() -> None:
    holder = pod("n1", cpu="2")
    holder["spec"]["initContainers"] = [
        {"resources": {"requests": {"cpu": "5"}}},
        {"restartPolicy": "Always", "resources": {"requests": {"cpu": "1"}}},
    ]
    (offer,) = offers(node(), pods=[holder])
    assert offer.cpu == 91


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"spec": {"unschedulable": True}}, "cordoned"),
        ({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}, "not ready"),
        (
            {"spec": {"taints": [{"key": "team", "value": "b", "effect": "NoSchedule"}]}},
            "taint team=b:NoSchedule",
        ),
    ],
)
def test_node_that_takes_no_pod_of_ours_is_left_out(change: dict[str, Any], reason: str) -> None:
    closed = node() | change
    assert offers(closed) == []
    assert why(closed) == [reason]


def test_what_is_left_out_is_the_offer_it_would_be_with_the_reason() -> None:
    closed = gpu_node(SITES["gfd-h100"][0]) | {"spec": {"unschedulable": True}}
    (left,) = inventory([closed], (), Settings(), backend="k8s").left_out
    (offer,) = left.offers
    assert (offer.accelerator, offer.count, offer.unfit) == ("NVIDIA-H100-80GB-HBM3", 8, "cordoned")
    (left,) = inventory(SLICE[:3], (), Settings(), backend="k8s").left_out
    assert [(o.nodes, o.unfit) for o in left.offers] == [(4, "3 of the 4 machines of a slice")]
    elsewhere = Settings(node_selector={"pool": "gpu"})  # not this backend's at all
    assert [o.offers for o in inventory([closed], (), elsewhere, backend="k8s").left_out] == [()]


def test_tolerated_taint_is_none() -> None:
    tainted = gpu_node(SITES["gfd-h100"][0])
    tainted["spec"]["taints"] = [
        {"key": "team", "value": "a", "effect": "NoSchedule"},
        {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"},
    ]
    settings = Settings(tolerations=({"key": "team", "operator": "Equal", "value": "a"},))
    assert [o.count for o in offers(tainted, settings=settings)] == [8]
    assert offers(tainted) == []


GPU_TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}


def test_taint_of_the_resource_keeps_a_node_for_pods_that_ask_for_it() -> None:
    """Only they tolerate it: a pod without accelerators that was planned there would wait for ever."""
    tainted = gpu_node(SITES["gfd-h100"][0]) | {"spec": {"taints": [GPU_TAINT]}}
    assert [(o.count, o.kept) for o in offers(tainted)] == [(8, True)]
    assert [o.kept for o in offers(gpu_node(SITES["gfd-h100"][0]))] == [False]
    everywhere = Settings(tolerations=({"key": "nvidia.com/gpu", "operator": "Exists"},))
    assert [o.kept for o in offers(tainted, settings=everywhere)] == [False]


@pytest.mark.parametrize("resource", ["cpu", "amd.com/gpu"])
def test_taint_of_another_resource_is_tolerated_by_nobody(resource: str) -> None:
    tainted = gpu_node(SITES["amd"][0], 8, resource) | {"spec": {"taints": [GPU_TAINT]}}
    assert offers(tainted) == []
    assert why(tainted) == ["taint nvidia.com/gpu=present:NoSchedule"]


def test_node_selector_of_the_backend_limits_what_is_offered() -> None:
    nodes = node("a", {"pool": "gpu"}), node("b", {})
    assert [o.instance_type for o in offers(*nodes, settings=Settings(node_selector={"pool": "gpu"}))] == [
        "a"
    ]


def test_pool_at_zero_is_offered_as_declared() -> None:
    pool = Pool("h100", {"pool": "h"}, 96, 2**40, "H100-80GB", "nvidia", 8, 85_029_027_840, most=4, spot=True)
    (offer,) = offers(settings=Settings(pools=(pool,)))
    assert (offer.instance_type, offer.count, offer.available, offer.spot) == ("h100", 8, 4, True)
    assert not offer.divisible


@pytest.mark.parametrize("text", ["", "GPU", "1Q", "--1"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="quantity"):
        amount_of(text)


# --- slices of TPUs


def slice_node(name: str, pool: str, *, topology: str = "4x4", chips: int = 4) -> dict[str, Any]:
    labels = {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": topology,
        "cloud.google.com/gke-nodepool": pool,
    }
    made = gpu_node(labels, chips, "google.com/tpu")
    made["metadata"]["name"] = name
    return made


SLICE = [slice_node(f"a{number}", "a") for number in range(4)]


def held(on: str, chips: int) -> dict[str, Any]:
    made = pod(on)
    made["spec"]["containers"][0]["resources"]["requests"]["google.com/tpu"] = str(chips)
    return made


def test_machines_of_a_slice_are_one_offer() -> None:
    (offer,) = offers(*SLICE)
    assert (offer.accelerator, offer.count, offer.nodes, offer.available) == ("v5e", 4, 4, 4)
    assert not offer.divisible


def test_slice_of_which_a_machine_is_held_is_not_free() -> None:
    (offer,) = offers(*SLICE, pods=[held("a2", 4)])
    assert offer.available == 0


def test_slice_that_lacks_a_machine_is_left_out() -> None:
    assert offers(*SLICE[:3]) == []
    assert why(*SLICE[:3]) == ["3 of the 4 machines of a slice"]


def test_two_slices_are_two_offers() -> None:
    others = [slice_node(f"b{number}", "b") for number in range(4)]
    assert [offer.available for offer in offers(*SLICE, *others)] == [4, 4]


def test_machine_that_is_a_slice_of_its_own_is_taken_whole() -> None:
    alone = slice_node("c", "c", topology="2x4", chips=8)
    (offer,) = offers(alone)
    assert (offer.count, offer.nodes, offer.available, offer.divisible) == (8, 1, 1, False)
    assert [one.available for one in offers(alone, pods=[held("c", 8)])] == [0]
