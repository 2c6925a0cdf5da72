"""GPUs that are attached to machines of N1, and what such a machine is called here; pure.

Compute Engine has no name for the two together. Ours is the machine's, then the GPU and how many:
``n1-standard-8+t4x1``; price lists of the catalog use it too.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from orchestrator.frozen import frozen
from orchestrator.units import GIB

MACHINES = "n1-standard-.*", "n1-highmem-.*"
"""Types that take GPUs; shared cores do not (cloud.google.com/compute/docs/gpus)."""

_NAME = re.compile(r"(n1-[a-z]+-\d+)\+([a-z0-9]+)x(\d+)")


@frozen
class Gpu:
    """A GPU that can be attached: its type in the API, its memory, and the largest machine for each count."""

    type: str
    gib: int
    most: Mapping[int, tuple[int, int]]
    """Processors and GB of the machine, by how many GPUs it has."""


GPUS: Mapping[str, Gpu] = {
    "t4": Gpu("nvidia-tesla-t4", 16, {1: (48, 312), 2: (48, 312), 4: (96, 624)}),
    "v100": Gpu("nvidia-tesla-v100", 16, {1: (12, 78), 2: (24, 156), 4: (48, 312), 8: (96, 624)}),
    "p100": Gpu("nvidia-tesla-p100", 16, {1: (16, 104), 2: (32, 208), 4: (64, 208)}),
    "p4": Gpu("nvidia-tesla-p4", 8, {1: (24, 156), 2: (48, 312), 4: (96, 624)}),
}
"""cloud.google.com/compute/docs/gpus, "N1 machine series". Four P100 have 96 processors in all but three
zones; the smaller limit holds in every one."""


def with_gpus(shape: Mapping[str, Any], there: Collection[str]) -> Iterator[dict[str, Any]]:
    """Yield the shape of an N1 machine with each number of each GPU that it takes.

    Args:
        shape: The machine's, without any.
        there: Types of GPUs that its zone has.

    >>> machine = {"instance_type": "n1-standard-8", "cpu": 8.0, "memory_bytes": 30 * GIB}
    >>> [each["instance_type"] for each in with_gpus(machine, {"nvidia-tesla-v100"})]
    ['n1-standard-8+v100x1', 'n1-standard-8+v100x2', 'n1-standard-8+v100x4', 'n1-standard-8+v100x8']
    """
    for name, gpu in GPUS.items():
        for count, (cpus, memory_gb) in gpu.most.items():
            fits = shape["cpu"] <= cpus and shape["memory_bytes"] <= memory_gb * GIB
            if gpu.type in there and fits:
                yield {
                    **shape,
                    "instance_type": f"{shape['instance_type']}+{name}x{count}",
                    "accelerator": gpu.type,
                    "vendor": "nvidia",
                    "count": count,
                    "vram_bytes": gpu.gib * GIB,
                }


def taken_apart(instance_type: str) -> tuple[str, str, int]:
    """Return a machine type as the API has it, and the GPUs that are attached to it.

    >>> taken_apart("n1-standard-8+t4x2"), taken_apart("g2-standard-4")
    (('n1-standard-8', 'nvidia-tesla-t4', 2), ('g2-standard-4', '', 0))
    """
    found = _NAME.fullmatch(instance_type)
    if found is None or found[2] not in GPUS:
        return instance_type, "", 0
    return found[1], GPUS[found[2]].type, int(found[3])


def put_together(machine_type: str, attached: Iterable[Mapping[str, Any]]) -> str:
    """Return what a machine with its attached GPUs is called here; the opposite of ``taken_apart``.

    >>> put_together("n1-standard-8", [{"acceleratorType": "…/nvidia-tesla-t4", "acceleratorCount": 2}])
    'n1-standard-8+t4x2'
    """
    if machine_type.startswith("n1-"):
        for one in attached:
            kind = str(one["acceleratorType"]).rpartition("/")[2]
            for name, gpu in GPUS.items():
                if gpu.type == kind:
                    return f"{machine_type}+{name}x{one['acceleratorCount']}"
    return machine_type
