"""What a cluster can give: offers from nodes, whoever labelled them, less what pods hold."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from backends.kubernetes.devices import NO_DEVICES, Device, Devices
from backends.kubernetes.placement import (
    AMD_DEVICES,
    KARPENTER_NAMES,
    RESOURCES,
    SLICE,
    is_tpu_machine,
    taint_of,
)
from backends.kubernetes.settings import Pool, Settings
from orchestrator.backend import Offer
from orchestrator.frozen import frozen

Json = dict[str, Any]

_SHARED = re.compile(r"-SHARED$", re.IGNORECASE)
_MIG_RESOURCE = re.compile(r"nvidia\.com/mig-(\d+g\.\d+gb)")

_AMD_GIB = {
    "MI100": 32, "MI210": 64, "MI250": 64, "MI250X": 64, "MI300A": 128, "MI300X": 192, "MI308X": 192,
    "MI325X": 256, "MI350X": 288, "MI355X": 288,
}  # fmt: skip
"""Of one device as ROCm counts them: half of an MI250 (ROCm docs, "Accelerator hardware
specifications"); asked only where the labeller does not say it."""

_TPU_GIB = {
    "tpu-v4-podslice": ("v4", 32), "tpu-v5-lite-podslice": ("v5e", 16), "tpu-v5p-slice": ("v5p", 95),
    "tpu-v6e-slice": ("v6e", 32), "tpu7x": ("tpu7x", 192),
}  # fmt: skip
"""Keys as in ``TPU_SLICES``; memory from Google's page on each, "System architecture"."""

_GKE_GIB = {
    "nvidia-tesla-t4": ("Tesla-T4", 16), "nvidia-tesla-v100": ("V100", 16), "nvidia-tesla-p100": ("P100", 16),
    "nvidia-l4": ("NVIDIA-L4", 24), "nvidia-tesla-a100": ("A100-40GB", 40),
    "nvidia-a100-80gb": ("A100-80GB", 80),
    "nvidia-h100-80gb": ("H100-80GB", 80), "nvidia-h100-mega-80gb": ("H100-80GB", 80),
    "nvidia-h200-141gb": ("H200-141GB", 141), "nvidia-b200": ("B200", 180), "nvidia-gb200": ("GB200", 186),
    "nvidia-rtx-pro-6000": ("RTX-PRO-6000", 96),
}  # fmt: skip
"""Keys as in ``GKE_LABELS``; CoreWeave's nodes carry the label with other values."""

_GKE_SHARING = "cloud.google.com/gke-gpu-sharing-strategy"
_GKE_SLICE = "cloud.google.com/gke-gpu-partition-size"


@frozen
class LeftOut:
    """A node that is not offered, or only in part, and why.

    ``offers`` is what it would be, with the reason; none where it is not for runs of this backend at all.
    """

    node: str
    why: str
    offers: tuple[Offer, ...] = ()


@frozen
class Inventory:
    """Offers of a cluster, and the nodes that were left out."""

    offers: tuple[Offer, ...]
    left_out: tuple[LeftOut, ...]


@frozen
class Facts:
    """What labels say of a node's accelerators; 0 and "" where nobody says it."""

    name: str = ""
    vendor: str = ""
    vram_bytes: int = 0
    capability: tuple[int, int] | None = None
    shared_by: int = 1
    unclear: str = ""
    """Why a labeller that knows the node says nothing of use."""
    is_sought: bool = False
    """Whether the labels that say it are those by which a pod chooses such a node."""
    lacks: str = ""
    """Which labels are not there, or say too little, for a pod to choose the node by them."""

    def filled(self, other: Facts) -> Facts:
        """Return these facts with what they lack taken from ``other``."""
        return Facts(
            self.name or other.name,
            self.vendor or other.vendor,
            self.vram_bytes or other.vram_bytes,
            self.capability or other.capability,
            max(self.shared_by, other.shared_by),
            self.unclear or other.unclear,
            self.is_sought or other.is_sought,
            self.lacks or other.lacks,
        )


def inventory(
    nodes: Sequence[Json],
    pods: Sequence[Json],
    settings: Settings,
    *,
    backend: str,
    devices: Devices = NO_DEVICES,
) -> Inventory:
    """Return what the cluster can give now.

    Args:
        nodes: All nodes.
        pods: All pods that have not ended, of everybody.
        settings: Which nodes may be used, and which pools exist on demand.
        backend: The backend's name, for the offers.
        devices: What dynamic resource allocation says, where the cluster has it.
    """
    held = _held(pods)
    offers: list[Offer] = []
    left_out: list[LeftOut] = []
    slices: dict[str, list[Offer]] = {}
    for node in sorted(nodes, key=lambda n: str(n["metadata"]["name"])):
        name = node["metadata"]["name"]
        if why := _unselected(node, settings):
            left_out.append(LeftOut(name, why))
            continue
        found, partly = _offers(node, held.get(name, {}), backend, settings, devices)
        if why := _refusal(node, settings):
            left_out.append(LeftOut(name, why, tuple(replace(one, unfit=why) for one in (*found, *partly))))
            continue
        left_out += [LeftOut(name, one.unfit, (one,)) for one in partly]
        for offer in found:
            if offer.nodes > 1:
                slices.setdefault((node["metadata"].get("labels") or {}).get(SLICE, name), []).append(offer)
            else:
                offers.append(offer)
    for name, machines in sorted(slices.items()):
        whole = _slice(machines)
        if whole is None:
            why = f"{len(machines)} of the {machines[0].nodes} machines of a slice"
            left_out.append(LeftOut(name, why, (replace(machines[0], unfit=why),)))
        else:
            offers.append(whole)
    offers += [_pool_offer(pool, backend) for pool in settings.pools]
    return Inventory(tuple(offers), tuple(left_out))


def _unselected(node: Json, settings: Settings) -> str:
    """Return which label a node lacks that the operator selects by, "" when it has them."""
    labels = node["metadata"].get("labels") or {}
    for key, value in settings.node_selector.items():
        if labels.get(key) != value:
            return f"no label {key}={value}"
    return ""


def _refusal(node: Json, settings: Settings) -> str:
    """Return why no pod of ours goes to a node now, "" when it may."""
    if node["spec"].get("unschedulable"):
        return "cordoned"
    conditions = {c["type"]: c["status"] for c in node["status"].get("conditions") or ()}
    if conditions.get("Ready") != "True":
        return "not ready"
    taints = _taints(node, settings)
    return next((phrase for key, phrase in taints.items() if key not in RESOURCES.values()), "")


def _taints(node: Json, settings: Settings) -> dict[str, str]:
    """Return the taints of a node that keep pods off, by key; what is tolerated everywhere is none.

    A resource's own is tolerated by pods that ask for the resource, and by no others.
    """
    return {
        taint["key"]: f"taint {taint['key']}={taint.get('value', '')}:{taint['effect']}"
        for taint in node["spec"].get("taints") or ()
        if taint["effect"] != "PreferNoSchedule"
        and not any(_tolerates(one, taint) for one in settings.tolerations)
    }


def _tolerates(toleration: Mapping[str, Any], taint: Json) -> bool:
    effect, key = toleration.get("effect"), toleration.get("key")
    if effect not in (None, "", taint["effect"]):
        return False
    if toleration.get("operator", "Equal") == "Exists":
        return not key or bool(key == taint["key"])
    return (key, toleration.get("value", "")) == (taint["key"], taint.get("value", ""))


def _held(pods: Iterable[Json]) -> dict[str, dict[str, float]]:
    """Return what pods hold of each node: requests, as the scheduler counts them."""
    found: dict[str, dict[str, float]] = {}
    for pod in pods:
        node = pod["spec"].get("nodeName")
        if node and pod["status"].get("phase") not in {"Succeeded", "Failed"}:
            sums = found.setdefault(node, {})
            for resource, amount in _requests(pod).items():
                sums[resource] = sums.get(resource, 0) + amount
    return found


def _requests(pod: Json) -> dict[str, float]:
    """Return a pod's requests: all containers at once, or the largest init container."""
    spec = pod["spec"]
    at_once: dict[str, float] = {}
    before: dict[str, float] = {}
    for container in spec["containers"]:
        _add(at_once, container)
    for container in spec.get("initContainers") or ():
        if container.get("restartPolicy") == "Always":  # a sidecar stays
            _add(at_once, container)
        else:
            asked: dict[str, float] = {}
            _add(asked, container)
            before = {k: max(before.get(k, 0), asked.get(k, 0)) for k in before | asked}
    for resource, amount in (spec.get("overhead") or {}).items():
        at_once[resource] = at_once.get(resource, 0) + amount_of(amount)
    return {k: max(at_once.get(k, 0), before.get(k, 0)) for k in at_once | before}


def _add(sums: dict[str, float], container: Json) -> None:
    given = container.get("resources") or {}
    for resource, amount in {**(given.get("limits") or {}), **(given.get("requests") or {})}.items():
        sums[resource] = sums.get(resource, 0) + amount_of(amount)


_SCALES = {
    "": 1.0, "n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18,
    **{f"{p}i": 2.0 ** (10 * i) for i, p in enumerate("KMGTPE", 1)},
}  # fmt: skip
_AMOUNT = re.compile(r"([0-9.]+(?:[eE][+-]?[0-9]+)?)([A-Za-z]*)")


def amount_of(text: str | float) -> float:
    """Return a quantity of Kubernetes as a number.

    >>> amount_of("250m"), amount_of("2Gi"), amount_of("8"), amount_of("1e3")
    (0.25, 2147483648.0, 8.0, 1000.0)

    Raises:
        ValueError: ``text`` is no quantity.
    """
    found = _AMOUNT.fullmatch(str(text))
    if not found or found[2] not in _SCALES:
        raise ValueError(f"expected a quantity, got {text!r}")
    return float(found[1]) * _SCALES[found[2]]


def _offers(
    node: Json, held: Mapping[str, float], backend: str, settings: Settings, devices: Devices
) -> tuple[list[Offer], list[Offer]]:
    """Return what one node offers: itself, or its accelerators; and what of it is not, with the reason."""
    meta, labels = node["metadata"], node["metadata"].get("labels") or {}
    whole = {k: amount_of(v) for k, v in (node["status"].get("allocatable") or {}).items()}
    free = {k: max(0.0, v - held.get(k, 0)) for k, v in whole.items()}
    published = devices.nodes.get(meta["name"], ())
    resource = RESOURCES["nvidia"]
    if published and not whole.get(resource) and resource in devices.extended:
        # no device plugin counts them: the scheduler turns requests into claims
        whole[resource] = float(len(published))
        free[resource] = float(sum(one.is_free for one in published))
    base = {
        "backend": backend,
        "instance_type": labels.get("node.kubernetes.io/instance-type") or meta["name"],
        "cpu": round(free.get("cpu", 0), 3),
        "memory_bytes": int(free.get("memory", 0)),
        "disk_bytes": int(free["ephemeral-storage"]) if "ephemeral-storage" in free else None,
        "region": labels.get("topology.kubernetes.io/region", ""),
        "zone": labels.get("topology.kubernetes.io/zone"),
        "arch": "arm" if labels.get("kubernetes.io/arch") == "arm64" else "x86",
        "spot": _is_spot(labels),
        "available": 1,
        "divisible": True,
        "fetches": settings.cache_claim is None,
    }
    taints = _taints(node, settings)
    offers: list[Offer] = []
    partly: list[Offer] = []
    for resource in sorted(whole):
        if not whole[resource] or not _is_accelerator(resource):
            continue
        labelled = facts_of(resource, labels)
        if not labelled.is_sought:
            labelled = _declared(labels, resource, settings.pools).filled(labelled)
        if resource == RESOURCES["google"] and not _is_asked_for(labels, int(whole[resource])):
            labelled = replace(labelled, is_sought=False, lacks=_NO_SUCH_SLICE)
        told = _published(published) if resource == RESOURCES["nvidia"] else Facts()
        facts = labelled.filled(told)
        why = _unusable(resource, facts, labelled, settings)
        why = why or next((phrase for key, phrase in taints.items() if key != taint_of(resource)), "")
        known: Json = {
            "accelerator": facts.name or None, "vendor": facts.vendor or _vendor_of(resource),
            "vram_bytes": facts.vram_bytes, "compute_capability": facts.capability, "kept": bool(taints),
        }  # fmt: skip
        if why:
            partly.append(Offer(**base, **known, count=int(free[resource]), unfit=why))
            continue
        if resource == RESOURCES["google"]:
            # a pod asks for a whole machine of a slice: its topology says how many chips there are
            count = int(whole[resource])
            known |= {"divisible": False, "available": int(free[resource] == count)}
            offers.append(Offer(**{**base, **known}, count=count, nodes=_machines(labels, count)))
        else:
            offers.append(Offer(**base, **known, count=int(free[resource])))
    if not offers and not taints:
        return [Offer(**base)], partly
    if not offers and not partly:
        partly = [Offer(**base, unfit=phrase) for phrase in list(taints.values())[:1]]
    return offers, partly


def _vendor_of(resource: str) -> str:
    """Return whose devices a resource counts.

    >>> _vendor_of("nvidia.com/gpu.shared"), _vendor_of("habana.ai/gaudi")
    ('nvidia', 'intel')
    """
    domain = resource.partition("/")[0]
    return next((v for v, counted in RESOURCES.items() if counted.startswith(f"{domain}/")), domain)


def _is_accelerator(resource: str) -> bool:
    return (
        resource in RESOURCES.values()
        or bool(_MIG_RESOURCE.fullmatch(resource))
        or resource.endswith(".shared")
        or resource.startswith("amd.com/")
    )


def _unusable(resource: str, facts: Facts, labelled: Facts, settings: Settings) -> str:
    if resource.endswith(".shared") or facts.shared_by > 1:
        return f"{resource} is shared by {max(2, facts.shared_by)} pods each: its memory is nobody's own"
    if resource.startswith("amd.com/") and resource not in RESOURCES.values():
        return f"{resource} counts parts of a device, whose memory no label tells"
    if not facts.name:
        return facts.unclear or f"no label tells which accelerator {resource} is"
    if not labelled.name:
        return f"{resource} is {facts.name} by its ResourceSlices alone, and pods choose nodes by labels"
    if not facts.vram_bytes and not _MIG_RESOURCE.fullmatch(resource):  # its name says its size
        return f"no label tells how much memory {facts.name} has"
    if resource == RESOURCES["nvidia"] and "-MIG-" in facts.name and settings.mig != "single":
        return f"{resource} counts slices {facts.name}: say mig: single for this backend"
    if _MIG_RESOURCE.fullmatch(resource) and settings.mig == "single":
        return f"{resource} counts slices by their profile: say mig: mixed for this backend"
    if not labelled.is_sought:
        return f"no pod would be sent to its {facts.name}: {labelled.lacks}"
    return ""


def _is_spot(labels: Mapping[str, str]) -> bool:
    return (
        labels.get("karpenter.sh/capacity-type") == "spot"
        or labels.get("cloud.google.com/gke-spot") == "true"
        or labels.get("eks.amazonaws.com/capacityType") == "SPOT"
        or labels.get("kubernetes.azure.com/scalesetpriority") == "spot"
    )


def facts_of(resource: str, labels: Mapping[str, str]) -> Facts:
    """Return what every labeller together says of a resource.

    The driver's own word comes first, after that of those by which a pod could choose the node: it has
    to be planned for a device by the name and the size that its pod will ask for.
    """
    if mig := _MIG_RESOURCE.fullmatch(resource):
        return _mig(mig[1], labels)
    if resource.startswith("nvidia.com/"):
        said = [labeller(labels) for labeller in (_gfd, _coreweave, _karpenter, _gke)]
        return functools.reduce(Facts.filled, sorted(said, key=lambda facts: not facts.is_sought))
    if resource.startswith("amd.com/"):
        return _amd(labels)
    if resource == "google.com/tpu":
        return _tpu(labels)
    return Facts()  # Gaudi's feature discovery labels its driver, not which Gaudi it is


def _gfd(labels: Mapping[str, str]) -> Facts:
    """Return what NVIDIA's feature discovery says; a time-sliced device has its suffix taken off."""
    prefix = "nvidia.com/gpu."
    product = labels.get(prefix + "product", "")
    if not product:
        return Facts()
    major, minor = labels.get(prefix + "compute.major", ""), labels.get(prefix + "compute.minor", "")
    shared = labels.get(prefix + "sharing-strategy", "none") != "none" or bool(_SHARED.search(product))
    memory_mib = _whole(labels.get(prefix + "memory", ""))
    capability = (int(major), int(minor)) if major.isdigit() and minor.isdigit() else None
    return Facts(
        name=_SHARED.sub("", product),
        vendor="nvidia",
        vram_bytes=memory_mib * 2**20,
        capability=capability,
        shared_by=max(2, _whole(labels.get(prefix + "replicas", ""))) if shared else 1,
        is_sought=bool(memory_mib and capability),
        lacks=f"no label {prefix}memory says MiB" if not memory_mib else
        f"no labels {prefix}compute.major and .minor" if not capability else "",
    )  # fmt: skip


def _whole(text: str) -> int:
    """Return the number that a label says, 0 where it says none: people write labels by hand.

    >>> _whole("81559"), _whole("80GiB")
    (81559, 0)
    """
    return int(text) if text.isdecimal() else 0


def _mig(profile: str, labels: Mapping[str, str]) -> Facts:
    """Return what is known of a slice of the strategy ``mixed``: it has labels of its own."""
    product = labels.get(f"nvidia.com/mig-{profile}.product") or labels.get("nvidia.com/gpu.product", "")
    memory_mib = _whole(labels.get(f"nvidia.com/mig-{profile}.memory", ""))
    whole = _gfd(labels)
    name = product if "-MIG-" in product else f"{_SHARED.sub('', product)}-MIG-{profile}" if product else ""
    return Facts(name, "nvidia", memory_mib * 2**20, whole.capability, is_sought=True)  # by its resource


def _coreweave(labels: Mapping[str, str]) -> Facts:
    model = labels.get("gpu.nvidia.com/model") or labels.get("gpu.nvidia.com/class", "")
    vram_gib = _whole(labels.get("gpu.nvidia.com/vram", ""))
    if not model:
        return Facts()
    name = model.replace("_NVLINK", "").replace("_", "-")
    # its older names, such as Tesla_V100_NVLINK, are none that the catalog's lead back to
    is_sought = bool(vram_gib) and model == model.upper()
    lacks = f"not by gpu.nvidia.com/model={model} and gpu.nvidia.com/vram={vram_gib}"
    return Facts(name, "nvidia", vram_gib * 2**30, is_sought=is_sought, lacks="" if is_sought else lacks)


def _karpenter(labels: Mapping[str, str]) -> Facts:
    prefix = "karpenter.k8s.aws/instance-gpu-"
    name, memory_mib = labels.get(prefix + "name", ""), _whole(labels.get(prefix + "memory", ""))
    if not name or labels.get(prefix + "manufacturer", "nvidia") != "nvidia":
        return Facts()
    is_spelt = name == name.lower() and ("-" not in name or name in KARPENTER_NAMES.values())
    is_sought = bool(memory_mib) and is_spelt
    lacks = "" if is_sought else f"not by {prefix}name={name} and {prefix}memory={memory_mib}"
    return Facts(name, "nvidia", memory_mib * 2**20, is_sought=is_sought, lacks=lacks)


def _gke(labels: Mapping[str, str]) -> Facts:
    """Return what GKE says; a node that shares or slices its GPUs has labels for that as well."""
    known = _GKE_GIB.get(labels.get("cloud.google.com/gke-accelerator", ""))
    if known is None:
        return Facts()
    if profile := labels.get(_GKE_SLICE):
        return Facts(f"{known[0]}-MIG-{profile}", "nvidia", lacks=f"not by {_GKE_SLICE}")
    clients = labels.get("cloud.google.com/gke-max-shared-clients-per-gpu", "")
    shared = max(2, int(clients) if clients.isdigit() else 2) if _GKE_SHARING in labels else 1
    return Facts(known[0], "nvidia", known[1] * 2**30, shared_by=shared, is_sought=shared == 1)


def _amd(labels: Mapping[str, str]) -> Facts:
    """Return what AMD's labeller says, in its new spelling or, value in the key, its older one."""
    kinds = _beta(labels, "device-id")
    if len(kinds) > 1:
        return Facts(unclear=f"one resource counts devices of {len(kinds)} kinds: {', '.join(kinds)}")
    device = labels.get("amd.com/gpu.device-id") or "".join(kinds)
    name = AMD_DEVICES.get(device) or labels.get("amd.com/gpu.product-name") or _first(labels, "product-name")
    size = re.fullmatch(r"(\d+)G", labels.get("amd.com/gpu.vram") or _first(labels, "vram"))
    vram_gib = int(size[1]) if size else _AMD_GIB.get(name, 0)
    lacks = ""
    if device not in AMD_DEVICES and (_is_numbered(name) or not size):
        lacks = "no label amd.com/gpu.device-id that Modelyard knows"
    return Facts(name, "amd", vram_gib * 2**30, is_sought=not lacks, lacks=lacks)


def _is_numbered(name: str) -> bool:
    """Return whether pods choose devices of such a name by their PCI id.

    >>> _is_numbered("AMD_Instinct_MI325_OAM"), _is_numbered("AMD_Radeon_RX_7900_XTX")
    (True, False)
    """
    models = re.findall(r"MI\d{2,}[A-Z]?", name)
    return any(known.startswith(model) for model in models for known in AMD_DEVICES.values())


def _beta(labels: Mapping[str, str], what: str) -> list[str]:
    """Return the values that the older spelling has in its keys: one for each kind of device."""
    prefix = f"beta.amd.com/gpu.{what}."
    return [key.removeprefix(prefix) for key in sorted(labels) if key.startswith(prefix)]


def _first(labels: Mapping[str, str], what: str) -> str:
    return next(iter(_beta(labels, what)), "")


def _tpu(labels: Mapping[str, str]) -> Facts:
    known = _TPU_GIB.get(labels.get("cloud.google.com/gke-tpu-accelerator", ""))
    return Facts(known[0], "google", known[1] * 2**30, is_sought=True) if known else Facts()


_NO_SUCH_SLICE = "no slice of its chips has the topology that its label says"


def _is_asked_for(labels: Mapping[str, str], count: int) -> bool:
    """Return whether a pod for ``count`` chips a machine selects what the labels of a TPU's node say."""
    return is_tpu_machine(
        labels.get("cloud.google.com/gke-tpu-accelerator", ""),
        each=count,
        nodes=_machines(labels, count),
        topology=labels.get("cloud.google.com/gke-tpu-topology", ""),
    )


def _machines(labels: Mapping[str, str], count: int) -> int:
    """Return how many machines a node's slice has, each with ``count`` chips.

    >>> _machines({"cloud.google.com/gke-tpu-topology": "4x4"}, 4)
    4
    """
    sides = labels.get("cloud.google.com/gke-tpu-topology", "").split("x")
    if not all(side.isdigit() for side in sides):
        return 1
    return max(1, math.prod(map(int, sides)) // count)


def _slice(machines: Sequence[Offer]) -> Offer | None:
    """Return a slice of several machines as one offer, None while some of them are not there.

    What is free of each counts; a slice of which anything is held is no longer free.
    """
    one = machines[0]
    if len(machines) < one.nodes:
        return None
    is_free = all(machine.available for machine in machines)
    return replace(
        one,
        cpu=min(machine.cpu for machine in machines),
        memory_bytes=min(machine.memory_bytes for machine in machines),
        available=len(machines) if is_free else 0,
    )


def _published(devices: Sequence[Device]) -> Facts:
    """Return what NVIDIA's driver publishes of a node's GPUs."""
    kinds = sorted({one.product for one in devices})
    if len(kinds) > 1:
        return Facts(unclear=f"one resource counts devices of {len(kinds)} kinds: {', '.join(kinds)}")
    for one in devices:
        return Facts(one.product, "nvidia", int(amount_of(one.memory)), one.capability)
    return Facts()


def _declared(labels: Mapping[str, str], resource: str, pools: Sequence[Pool]) -> Facts:
    """Return what the operator says of the nodes of a pool, where no labeller says enough."""
    for pool in pools:
        vendor = pool.vendor or "nvidia"
        is_its = RESOURCES.get(vendor) == resource and pool.labels.items() <= labels.items()
        if pool.accelerator and is_its:
            return Facts(pool.accelerator, vendor, pool.vram_bytes, is_sought=True)
    return Facts()


def _pool_offer(pool: Pool, backend: str) -> Offer:
    return Offer(
        backend=backend, instance_type=pool.name, cpu=pool.cpu, memory_bytes=pool.memory_bytes,
        accelerator=pool.accelerator, vendor=pool.vendor, count=pool.count, vram_bytes=pool.vram_bytes,
        spot=pool.spot, price_usd_hour=pool.price_usd_hour, boot_s=pool.boot_s, available=pool.most,
    )  # fmt: skip
