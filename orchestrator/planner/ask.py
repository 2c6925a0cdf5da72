"""From a spec's resources to a demand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from orchestrator.backend import Can
from orchestrator.planner.demand import AcceleratorDemand, Demand, Span
from orchestrator.planner.sources import VOLUME
from orchestrator.spec.models import DevEnvironment, Fleet, Gpu, Model, Service, Task
from orchestrator.spec.values import ByteRange, IntRange

Work = Task | Service | DevEnvironment
"""The documents that run containers."""

Names = Callable[[str], Sequence[str]]
"""From an accelerator's name as a user writes it to the catalog names it may mean."""


def demand_of(spec: Work, *, places: Mapping[str, frozenset[Can]], names: Names) -> Demand:
    """Return what one node of ``spec`` needs.

    Args:
        spec: A document that runs containers.
        places: Every configured backend and what it can do, preferred ones first.
        names: Spells accelerators as the catalog does.
    """
    return replace(
        _machine(spec, places=places, names=names),
        nodes=_nodes(spec),
        needs=_needs(spec, bare=runs_bare(spec, places)),
        fleets=frozenset(spec.fleets),
        ordered=isinstance(spec, Task) and spec.startup_order != "any" and spec.nodes != 1,
    )


def fleet_demand(spec: Fleet, *, places: Mapping[str, frozenset[Can]], names: Names) -> Demand:
    """Return what each machine of a fleet has to have."""
    return replace(_machine(spec, places=places, names=names), needs={Can.HOLD: "nodes"})


def _machine(spec: Work | Fleet, *, places: Mapping[str, frozenset[Can]], names: Names) -> Demand:
    """Return what a document says of a machine, and of where it may be."""
    resources = spec.resources
    return Demand(
        cpu=_span(resources.cpu.count) if resources.cpu else Span(),
        memory_bytes=_span(resources.memory),
        disk_bytes=_span(resources.disk),
        arch=resources.cpu.arch if resources.cpu else None,
        accelerator=_accelerator(resources.gpu, names) if resources.gpu else None,
        places=places,
        backends=frozenset(spec.backends),
        regions=frozenset(spec.regions),
        zones=frozenset(spec.availability_zones),
        instance_types=frozenset(spec.instance_types),
        reservation=spec.reservation,
        spot=spec.spot_policy,
        max_price_usd_hour=spec.max_price,
    )


def _nodes(spec: Work) -> int:
    return spec.nodes if isinstance(spec, Task) and isinstance(spec.nodes, int) else 1


def _accelerator(gpu: Gpu, names: Names) -> AcceleratorDemand | None:
    if gpu.count.max == 0:
        return None
    from orchestrator.catalog.hardware import tpu_slice  # brings the catalog in, which names are read from

    found: set[str] = set()
    count = _span(gpu.count)
    for name in gpu.name:
        generation, chips = tpu_slice(name) or (name, None)
        # a name that means nothing stays as it is: it matches nothing, rather than everything
        found |= set(names(generation)) or {name}
        count = Span(chips, chips) if chips else count
    return AcceleratorDemand(
        names=frozenset(found),
        vendors=frozenset({gpu.vendor} if gpu.vendor else ()),
        count=count,
        vram_bytes=_span(gpu.memory),
        total_vram_bytes=_span(gpu.total_memory),
        capability=gpu.compute_capability,
        as_written=_written(gpu),
    )


def _written(gpu: Gpu) -> str:
    """Return the accelerators as one would write them, for plans and errors."""
    parts: list[str] = [gpu.vendor] if gpu.vendor else []
    if gpu.name:
        parts.append(",".join(gpu.name))
    parts.extend(str(r.canonical()) for r in (gpu.memory, gpu.count) if r is not None)
    total = f", {gpu.total_memory.canonical()} in total" if gpu.total_memory else ""
    return ":".join(parts) + total


def runs_bare(spec: Work, places: Mapping[str, frozenset[Can]]) -> bool:
    """Return whether a spec names only places that run what they have installed, without images.

    >>> here = {"docker": frozenset({Can.IMAGES}), "process": frozenset({Can.BARE})}
    >>> runs_bare(Task(name="a", commands=["true"], backends=["process"]), here)
    True
    """
    named = [places[name] for name in spec.backends if name in places]
    return bool(named) and all(Can.BARE in can and Can.IMAGES not in can for can in named)


def _needs(spec: Work, *, bare: bool) -> dict[Can, str]:
    """Return each capability the spec uses, with the field that asks for it.

    A spec that names its commands runs without its image where it says that the place does not
    matter: naming a backend that runs bare commands is saying so.
    """
    needs: dict[Can, str] = {}
    runs_commands = bool(getattr(spec, "commands", ())) or isinstance(spec, DevEnvironment)
    model = model_word(spec)
    if spec.image and not (runs_commands and spec.backends):
        needs[Can.IMAGES] = "image"
    if model and not bare:
        needs[Can.IMAGES] = model
    if not spec.image and not model:
        needs[Can.BARE] = "a spec that names none"
    if spec.privileged:
        needs[Can.PRIVILEGED] = "privileged"
    if spec.ports or isinstance(spec, Service):
        needs[Can.PORTS] = "port" if isinstance(spec, Service) else "ports"
    if any(mount.name and not mount.optional for mount in spec.volumes):
        needs[Can.VOLUMES] = "volumes"
    if any(mount.instance_path and not mount.optional for mount in spec.volumes):
        needs[Can.MOUNTS] = "volumes"
    if _nodes(spec) > 1:
        needs[Can.NODES] = "nodes"
    for field, path in () if bare else _local(spec):
        needs[Can.MOUNTS if path.startswith("/") else Can.VOLUMES] = field
    return needs


def _local(spec: Work) -> Iterator[tuple[str, str]]:
    """Yield what an engine reads and writes of the place itself: absolute folders, or a named volume."""
    if isinstance(spec, Service) and spec.model:
        yield from (("model", each) for each in _folders(spec.model))
    if isinstance(spec, Task) and spec.train:
        yield from (("train.model", each) for each in _folders(spec.train.model))
        if spec.train.dataset.startswith("/"):
            yield "train.dataset", spec.train.dataset
        if spec.train.output:
            yield "train.output", spec.train.output


def _folders(model: Model) -> list[str]:
    ids = (model.id, *(adapter.id for adapter in model.adapters))
    return [each for each in ids if each.startswith(("/", VOLUME))]


def model_word(spec: Work) -> str:
    """Return the field by which a spec asks for an engine, "" where it brings its own commands.

    >>> model_word(Task(name="a", commands=["true"]))
    ''
    """
    if isinstance(spec, Service) and spec.model and not spec.commands:
        return "model"
    return "train" if isinstance(spec, Task) and spec.train else ""


def _span(given: IntRange | ByteRange | object) -> Span:
    low, high = getattr(given, "min", None), getattr(given, "max", None)
    return Span(low, high)
