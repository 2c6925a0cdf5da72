"""Places that offer a bit of everything, to plan specs against without asking anyone."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.apply import RunPlan, VolumePlan, World, plan_documents
from orchestrator.backend import Can, Offer
from orchestrator.catalog.hardware import accelerators, candidates, known_names
from orchestrator.facts import resolve
from orchestrator.spec.load import Document, read
from orchestrator.units import GIB

ABLE = frozenset(Can)


def offers() -> tuple[Offer, ...]:
    """Return one, two, four and eight of every accelerator in the catalog, a slice, and machines without."""
    own = {"cpu": 64, "memory_bytes": 512 * GIB, "disk_bytes": 2048 * GIB, "divisible": True}
    found = [Offer(name, "vm", **own) for name in ("docker", "process")]
    for device in accelerators().values():
        for count in (1, 2, 4, 8):
            found.append(
                Offer(
                    "cloud",
                    f"{count}x-{device.name}",
                    cpu=16 * count,
                    memory_bytes=128 * GIB * count,
                    accelerator=device.name,
                    vendor=device.vendor,
                    count=count,
                    vram_bytes=device.visible_bytes,
                    compute_capability=device.capability,
                    price_usd_hour=round(count * device.visible_bytes / GIB / 40, 2),
                )
            )
            if (device.name, count) == ("TPU-V5E", 4):
                found.append(replace(found[-1], instance_type="v5litepod-16", nodes=4))
    return tuple(found)


def world() -> World:
    """Return a world with no runs, where every place can do everything."""
    return World(
        runs={},
        volumes={},
        places=dict.fromkeys(("docker", "process", "cloud", "onprem", "aws"), ABLE),
        offers=offers,
        names=lambda name: [device.name for device in candidates(name)],
        facts=lambda model: resolve(model.id, offline=True),
    )


def plan_everywhere(text: str, *, file: str = "<text>") -> tuple[RunPlan | VolumePlan, ...]:
    """Load ``text`` and plan every document in it that holds no machines."""
    documents = read(text, file=file, known_accelerators=known_names(), env={"HF_TOKEN": "x"})
    return plan_documents([d for d in documents if not is_fleet(d)], world())


def is_fleet(document: Document) -> bool:
    """Return whether a document describes machines rather than work."""
    return document.spec.type == "fleet"
