"""Kinds of pod as RunPod's catalog describes them, and pods as its API shows them; pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import field
from datetime import datetime
from typing import Any

from orchestrator.backend import LABEL, Growth, Offer, Rent
from orchestrator.frozen import frozen
from orchestrator.units import GIB

GB = 10**9
BOOT_S = 120

LABELS = "MODELYARD_POD"
"""The variable of a pod that says whose it is: pods have neither tags nor labels."""

DEPLOYMENT, NAMESPACE, KEY = "deployment", "namespace", "key"

COUNTS = (1, 2, 4, 8)
"""GPUs in one pod that are offered, up to what the catalog says is the most."""

LEAST_CPU, LEAST_MEMORY_BYTES = 2.0, 8 * GB
"""What a pod has for each GPU at least: the API says no more of it (docs.runpod.io/api-reference/pods,
defaults of ``minVCPUPerGPU`` and ``minRAMPerGPU``)."""

SHARES: Mapping[str, tuple[float, int]] = {
    "NVIDIA A100 80GB PCIe": (8.0, 117 * GIB),
    "NVIDIA B200": (28.0, 283 * GIB),
    "NVIDIA B300 SXM6 AC": (32.0, 251 * GIB),
    "NVIDIA H100 80GB HBM3": (20.0, 125 * GIB),
    "NVIDIA H200": (24.0, 276 * GIB),
}
"""CPUs and memory that come with each GPU, as runpod.io/pricing has them (read on 2026-10-07 and
2026-11-09; the rows of the catalog name who read them)."""

ENDED = ("EXITED", "ERROR")
"""A pod that stands still; nothing of it is paid for but a volume, and ours have none."""


@frozen
class Pod:
    """A pod of ours: its container's state, its labels, and where its ports are reached."""

    id: str
    status: str
    labels: Mapping[str, str]
    instance_type: str
    region: str
    created_at: datetime | None = None
    started_at: datetime | None = None
    ports: Mapping[int, tuple[str, int]] = field(default_factory=dict)
    registry: str | None = None

    @property
    def is_alive(self) -> bool:
        """Say whether it is there: also one that stands still keeps its launch's end."""
        return self.status != "TERMINATED"

    @property
    def launch(self) -> str:
        """Return the name of its launch."""
        return self.labels.get("launch", "")


def gpu_offers(
    gpu: Mapping[str, Any],
    *,
    count: int,
    community: bool,
    backend: str,
    disk_bytes: int,
    growth: Growth,
) -> Iterator[Offer]:
    """Yield a kind of GPU, ``count`` in a pod, in each data centre that has it.

    One that is nowhere to be had is there once, as sold out.
    """
    cloud = "community" if community else "secure"
    if not gpu[cloud] or count > gpu["maxCount"][cloud] or not gpu["price"][cloud]:
        return
    cpu, memory = SHARES.get(gpu["id"], (LEAST_CPU, LEAST_MEMORY_BYTES))
    shape: dict[str, Any] = {
        "instance_type": gpu_type(gpu["id"], count), "cpu": cpu * count, "memory_bytes": memory * count,
        "accelerator": gpu["id"], "vendor": gpu["manufacturer"].lower(), "count": count,
        "vram_bytes": gpu["memory"] * GIB, "growth": growth,
        "price_usd_hour": gpu["price"][cloud] * count + growth.usd_hour(disk_bytes),
    }  # fmt: skip
    yield from _placed(shape, gpu, backend=backend, disk_bytes=disk_bytes, everywhere=community and cloud)


def cpu_offers(cpu: Mapping[str, Any], *, backend: str, disk_bytes: int, growth: Growth) -> Iterator[Offer]:
    """Yield a kind of CPU with each number of them that it comes in, in each data centre.

    How large a disk each takes is not told, so that none is asked for beyond the configured one.
    """
    vcpus = 2
    while vcpus <= cpu["vcpu"]["max"]:
        if vcpus >= cpu["vcpu"]["min"]:
            shape: dict[str, Any] = {
                "instance_type": f"{cpu['id']}:{vcpus}", "cpu": float(vcpus),
                "memory_bytes": int(cpu["ramGbPerVcpu"] * vcpus * GB),
                "price_usd_hour": cpu["price"]["securePerVcpu"] * vcpus + growth.usd_hour(disk_bytes),
            }  # fmt: skip
            yield from _placed(shape, cpu, backend=backend, disk_bytes=disk_bytes, everywhere="")
        vcpus *= 2


def _placed(
    shape: dict[str, Any], kind: Mapping[str, Any], *, backend: str, disk_bytes: int, everywhere: str | bool
) -> Iterator[Offer]:
    shape["price_usd_hour"] = round(shape["price_usd_hour"], 6)
    common: dict[str, Any] = {
        **shape, "backend": backend, "disk_bytes": disk_bytes, "fetches": True, "boot_s": BOOT_S,
    }  # fmt: skip
    if everywhere:  # hosts of the community are not chosen by data centre
        gone = kind.get("availability") == "NONE"
        yield Offer(**common, region=str(everywhere), available=0 if gone else None)
        return
    centres = {each["id"]: each["availability"] for each in kind.get("dataCenters") or ()}
    for region, level in sorted(centres.items()):
        yield Offer(**common, region=region, available=0 if level == "NONE" else None)
    if not centres:
        yield Offer(**common, region="", available=0)


def gpu_type(gpu: str, count: int) -> str:
    """Return what we call a pod with ``count`` of a GPU.

    >>> gpu_type("NVIDIA H200", 1), gpu_type("NVIDIA H200", 8)
    ('NVIDIA H200', 'NVIDIA H200 x8')
    """
    return gpu if count == 1 else f"{gpu} x{count}"


def asked_for(rent: Rent) -> dict[str, Any]:
    """Return the part of a request that says what is rented.

    >>> asked_for(Rent("NVIDIA H200 x8", "US-KS-2", accelerator="H200-141GB", accelerators=8))
    {'gpu': {'id': 'NVIDIA H200', 'count': 8}, 'cloud': 'SECURE', 'dataCenterIds': ['US-KS-2']}
    >>> asked_for(Rent("cpu5c:4", "US-KS-2"))
    {'cpu': {'id': 'cpu5c', 'vcpuCount': 4}, 'cloud': 'SECURE', 'dataCenterIds': ['US-KS-2']}
    """
    where: dict[str, Any] = {"cloud": "SECURE", "dataCenterIds": [rent.region]}
    if rent.region == "community":
        where = {"cloud": "COMMUNITY"}
    if cpu := re.fullmatch(r"(\w+):(\d+)", rent.instance_type):
        return {"cpu": {"id": cpu[1], "vcpuCount": int(cpu[2])}, **where}
    many = re.fullmatch(r"(.+) x(\d+)", rent.instance_type)
    gpu = {"id": many[1], "count": int(many[2])} if many else {"id": rent.instance_type, "count": 1}
    return {"gpu": gpu, **where}


def pod_of(found: Mapping[str, Any]) -> Pod | None:
    """Return a pod of the API's as we see it; None for one that nobody of ours made, or that is gone."""
    labels = labels_of(found.get("env") or {})
    if labels is None or found["status"] == "TERMINATED":
        return None
    if gpu := found.get("gpu"):
        kind = gpu_type(gpu["id"], gpu.get("count", 1))
    else:
        kind = f"{found['cpu']['id']}:{found['cpu']['vcpuCount']}"
    live = (found.get("runtime") or {}).get("ports") or ()
    return Pod(
        id=found["id"],
        status=found["status"],
        labels=labels,
        instance_type=kind,
        region="community" if found["cloud"] == "COMMUNITY" else found.get("dataCenterId") or "",
        created_at=_time(found.get("createdAt")),
        started_at=_time(found.get("startedAt")),
        ports={
            each["private"]: (each["ip"], each["public"])
            for each in live
            if each.get("type") == "tcp" and each.get("ip") and each.get("public")
        },
        registry=found.get("registry"),
    )


def labels_of(env: Mapping[str, str]) -> dict[str, str] | None:
    """Return the labels in a pod's variables, None where there are none."""
    try:
        found = json.loads(env[LABELS])
    except (KeyError, ValueError):
        return None
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else None


def labels_text(labels: Mapping[str, str], **ours: str) -> str:
    """Return labels of ours as the value of a pod's variable: nobody else looks there.

    >>> labels_of({LABELS: labels_text({LABEL + "run": "sft", "run": "theirs", "key": "theirs"}, key="k")})
    {'key': 'k', 'run': 'sft'}
    """
    plain = {key.removeprefix(LABEL): value for key, value in labels.items() if key.startswith(LABEL)}
    return json.dumps({**ours, **plain}, separators=(",", ":"))


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
