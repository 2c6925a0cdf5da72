"""TPU slices: their names, their machines, and nodes of the TPU API as we see them; pure.

A slice is one node of the API with one machine or several. A machine of several is a worker: all
are made at once and end at once, so that what ends before the others is written down as gone until
the last one has.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, Literal

from backends.vm.labels import tags_of
from backends.vm.port import LAUNCH, Vm
from orchestrator.backend import LABEL, Offer
from orchestrator.frozen import frozen
from orchestrator.units import GIB

BOOT_S = 300
DISK_BYTES = 100 * GIB
"""Of every machine (docs.cloud.google.com/tpu/docs/attach-durable-block-storage)."""

GONE = "modelyard-gone"
"""Label of a slice: the ranks of its workers that are done, separated by ``_``."""


@frozen
class Generation:
    """What the API calls it, its runtime, its memory, and its machines by the chips that they have."""

    prefix: str
    runtime: str
    gib: int
    cores: int
    """TensorCores of a chip, where slices are named by them; else 1."""
    machines: Mapping[int, tuple[int, int]]
    """Processors and GB of a machine, by its chips."""


GENERATIONS: Mapping[str, Generation] = {
    "v4": Generation("v4", "tpu-ubuntu2204-base", 32, 2, {4: (240, 407)}),
    "v5e": Generation("v5litepod", "v2-alpha-tpuv5-lite", 16, 1, {1: (24, 48), 4: (112, 192), 8: (224, 384)}),
    "v5p": Generation("v5p", "v2-alpha-tpuv5", 95, 2, {4: (208, 448)}),
    "v6e": Generation("v6e", "v2-alpha-tpuv6e", 32, 1, {1: (44, 176), 4: (180, 720), 8: (180, 1440)}),
}
"""Runtimes: docs.cloud.google.com/tpu/docs/runtimes. Machines: those of GKE's node pools, which are the
same (docs.cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus). Memory: the pages of each
generation, docs.cloud.google.com/tpu/docs/v4 and its like."""

STATES: Mapping[str, Literal["pending", "running", "ending", "ended"]] = {
    "CREATING": "pending", "STARTING": "pending", "READY": "running", "RESTARTING": "running",
    "REIMAGING": "running", "REPAIRING": "running", "STOPPING": "ending", "DELETING": "ending",
    "STOPPED": "ended", "PREEMPTED": "ended", "TERMINATED": "ended",
}  # fmt: skip
"""docs.cloud.google.com/tpu/docs/reference/rest/v2/projects.locations.nodes, State. What has ended is there,
and in the way of another of its name, until it is deleted."""


@frozen
class Slice:
    """A kind of slice: its generation, and how many chips on how many machines."""

    generation: str
    chips: int
    machines: int

    @property
    def each(self) -> int:
        """Return the chips of one machine."""
        return self.chips // self.machines


def slice_of(accelerator_type: str) -> Slice | None:
    """Return what an accelerator type of the API is; None for one that we do not know.

    Slices of v5e and v6e above 8 chips have machines of 4
    (docs.cloud.google.com/tpu/docs/v6e, "VM types"), and v4 and v5p have no others.

    >>> slice_of("v5litepod-8"), slice_of("v6e-16"), slice_of("v5p-8")
    (Slice(generation='v5e', chips=8, machines=1), Slice(generation='v6e', chips=16, machines=4), \
Slice(generation='v5p', chips=4, machines=1))
    >>> slice_of("v2-8") is None and slice_of("n1-standard-8") is None
    True
    """
    found = re.fullmatch(r"(v\d[a-z]*)-(\d+)", accelerator_type)
    for name, generation in GENERATIONS.items():
        if found is None or generation.prefix != found[1]:
            continue
        chips, left = divmod(int(found[2]), generation.cores)
        if not left and chips in generation.machines:
            return Slice(name, chips, 1)
        if not left and chips and chips % 4 == 0:
            return Slice(name, chips, chips // 4)
    return None


def offers_of(accelerator_type: str, zone: str, *, backend: str) -> Iterator[Offer]:
    """Yield a kind of slice in a zone, on demand and as spot; each offer is one of its machines.

    The catalog has the prices, of whole slices.
    """
    kind = slice_of(accelerator_type)
    if kind is None:
        return
    generation = GENERATIONS[kind.generation]
    cpus, memory_gb = generation.machines[kind.each]
    for spot in (False, True):
        yield Offer(
            backend=backend, instance_type=accelerator_type, cpu=float(cpus), memory_bytes=memory_gb * 10**9,
            region=zone.rsplit("-", 1)[0], zone=zone, accelerator=generation.prefix, vendor="google",
            count=kind.each, vram_bytes=generation.gib * GIB, spot=spot, price_list="gcp", boot_s=BOOT_S,
            nodes=kind.machines, disk_bytes=DISK_BYTES, fetches=True,
        )  # fmt: skip


def startup_script(user_data: str, user: str) -> str:
    """Return a cloud-config of ours as the script that a TPU machine runs at each boot.

    >>> startup_script('#cloud-config\\n{"bootcmd": [["echo", "a b"]], "runcmd": [["true"]]}', "me")
    "#!/bin/sh\\nid -u me >/dev/null 2>&1 || useradd -m -s /bin/bash me\\necho 'a b'\\ntrue\\n"
    """
    config = json.loads(user_data.partition("\n")[2])
    name = shlex.quote(user)
    lines = [f"id -u {name} >/dev/null 2>&1 || useradd -m -s /bin/bash {name}"]
    lines += [shlex.join(command) for command in (*config["bootcmd"], *config["runcmd"])]
    return "\n".join(("#!/bin/sh", *lines, ""))


def gone_of(labels: Mapping[str, str]) -> set[int]:
    """Return the ranks of the workers that are done."""
    return {int(rank) for rank in labels.get(GONE, "").split("_") if rank}


def vms_of(node: Mapping[str, Any]) -> list[Vm]:
    """Return the machines of a node of the API; each of several has its rank in its name.

    Its launch is that of its rank: what a label of the node says is whose order made it.
    """
    _, _, _, zone, _, name = node["name"].split("/")
    labels: Mapping[str, str] = node.get("labels") or {}
    kind = slice_of(node["acceleratorType"])
    state = STATES.get(node.get("state", ""), "pending")
    made = node.get("createTime")
    common = Vm(
        id=name,
        state=state,
        instance_type=node["acceleratorType"],
        region=zone.rsplit("-", 1)[0],
        zone=zone,
        spot=bool((node.get("schedulingConfig") or {}).get("spot")),
        tags=tags_of({key: value for key, value in labels.items() if key != GONE}),
        since=datetime.fromisoformat(made) if made else None,
        preempted=node.get("state") == "PREEMPTED",
        lingers=state == "ended",
    )
    ends: list[Mapping[str, Any]] = list(node.get("networkEndpoints") or ())
    if kind is None or kind.machines == 1:
        return [_at(common, ends, 0)]
    return [_worker(common, ends, rank, gone_of(labels)) for rank in range(kind.machines)]


def _worker(node: Vm, ends: list[Mapping[str, Any]], rank: int, gone: set[int]) -> Vm:
    tags = dict(node.tags)
    words = [tags.get(LABEL + word, "") for word in ("run", "replica", "attempt")]
    tags |= {LABEL + "node": str(rank), LAUNCH: f"{words[0]}-{words[1]}-{rank}-{words[2]}"}
    worker = replace(_at(node, ends, rank), id=f"{node.id}-w{rank}", tags=tags)
    return replace(worker, state="ended", lingers=False, address=None) if rank in gone else worker


def _at(vm: Vm, ends: list[Mapping[str, Any]], rank: int) -> Vm:
    """Return a machine with the addresses of its end of the network, once it has one."""
    if rank >= len(ends):
        return vm
    inside = ends[rank].get("ipAddress") or None
    outside = (ends[rank].get("accessConfig") or {}).get("externalIp") or None
    return replace(vm, internal_ip=inside, address=outside or inside)


def taken_apart(machine: str) -> tuple[str, int | None]:
    """Return the node that a machine is of, and its rank there.

    >>> taken_apart("modelyard-ab-w3"), taken_apart("modelyard-ab")
    (('modelyard-ab', 3), ('modelyard-ab', None))
    """
    found = re.fullmatch(r"(.+)-w(\d+)", machine)
    return (found[1], int(found[2])) if found else (machine, None)
