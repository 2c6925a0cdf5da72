"""Which sets of accelerators hold a training run, with micro batch, accumulation and sharding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from orchestrator.catalog.values import Accelerator, ModelFacts
from orchestrator.frozen import frozen
from orchestrator.planner.choose import SLICE, TOO_LITTLE
from orchestrator.planner.sizing.training import least_training_bytes, size_training
from orchestrator.planner.sizing.values import Sharding, Size, TrainingJob

MOST_MICRO_BATCH = 16
"""Sequences at once beyond which a device is no faster and only fuller."""


@frozen
class TrainingCandidate:
    """A set of accelerators that holds the run, and the run as it would be there.

    One step takes ``micro_batch`` × ``accumulation`` sequences on each device.
    """

    accelerator: Accelerator
    nodes: int
    count: int
    facts: ModelFacts
    job: TrainingJob
    accumulation: int

    def size(self) -> Size:
        """Return the memory of the run on each of these devices."""
        return size_training(self.facts, self.accelerator, self.job)


@frozen
class TrainingMissed:
    """A set of accelerators that does not hold the run, and the first reason."""

    accelerator: Accelerator
    nodes: int
    count: int
    reason: str
    short_bytes: int = 0


@frozen
class TrainingChoices:
    """Candidates, best first, and what fell, in the order of accelerators and counts."""

    candidates: tuple[TrainingCandidate, ...]
    missed: tuple[TrainingMissed, ...]


@frozen
class _Option:
    """A way to run on a number of devices, and the device memory it takes."""

    job: TrainingJob
    accumulation: int
    least_bytes: int


def choose_training(
    facts: ModelFacts,
    job: TrainingJob,
    accelerators: Sequence[Accelerator],
    *,
    batch_size: int,
    counts: Sequence[int] = (1, 2, 4, 8),
    max_nodes: int = 4,
    sharded: Sharding = "fsdp",
) -> TrainingChoices:
    """Return every set of accelerators that holds ``job``, and why each other one does not.

    Copies of the whole model are preferred to a sharded one, and the largest micro batch that
    fits to a smaller one with more accumulation.

    Args:
        facts: The model.
        job: What is asked; devices, micro batch, accumulation and, unless it names one, sharding
            are found here.
        accelerators: Kinds of device that can be had; their order does not matter.
        batch_size: Sequences of one optimizer step over all devices.
        counts: Devices per node that can be had.
        max_nodes: Nodes the run may span; full nodes only beyond the first.
        sharded: How the framework shards where copies do not fit.

    Raises:
        ValueError: as ``size_training``, or a batch below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch size must be at least 1, got {batch_size}")
    devices = sorted(accelerators, key=lambda a: (a.visible_bytes, a.name))
    candidates: list[TrainingCandidate] = []
    missed: list[TrainingMissed] = []
    for nodes in range(1, max_nodes + 1):
        for count in sorted(set(counts)):
            here = [d for d in devices if _can_be_had(d, counts, nodes=nodes, count=count)]
            options = _options(facts, job, batch_size, devices=nodes * count, sharded=sharded)
            for device in here:
                found = _place(facts, device, options, nodes, count, batch_size)
                if isinstance(found, TrainingCandidate):
                    candidates.append(found)
                else:
                    missed.append(found)
    missed.sort(key=lambda m: (m.nodes, m.count, m.accelerator.name))
    return TrainingChoices(tuple(sorted(candidates, key=_preference)), tuple(missed))


def _can_be_had(device: Accelerator, counts: Sequence[int], *, nodes: int, count: int) -> bool:
    most = max((c for c in counts if c <= device.max_per_node), default=0)
    return count <= most and (nodes == 1 or count == most)


def _options(
    facts: ModelFacts, job: TrainingJob, batch_size: int, *, devices: int, sharded: Sharding
) -> list[_Option]:
    """Return the ways to run on ``devices``, preferred ones first; none when the batch does not divide."""
    if batch_size % devices:
        return []
    each = batch_size // devices
    ways: tuple[Sharding, ...] = (
        (job.sharding,) if job.sharding != "none" or devices == 1 else ("none", sharded)
    )
    options = []
    for sharding in ways:
        for micro in range(min(each, MOST_MICRO_BATCH), 0, -1):
            if each % micro == 0:
                run = replace(
                    job, devices=devices, sharding=sharding, micro_batch=micro, accumulates=each > micro
                )
                least = least_training_bytes(facts, run)
                if least is not None:
                    options.append(_Option(run, each // micro, least))
    return options


def _place(
    facts: ModelFacts,
    device: Accelerator,
    options: Sequence[_Option],
    nodes: int,
    count: int,
    batch_size: int,
) -> TrainingCandidate | TrainingMissed:
    if device.parent and nodes * count > 1:
        return TrainingMissed(device, nodes, count, SLICE)
    if batch_size % (nodes * count):
        reason = f"a batch of {batch_size} does not divide over {nodes * count} devices"
        return TrainingMissed(device, nodes, count, reason)
    for option in options:
        if option.least_bytes <= device.visible_bytes:
            return TrainingCandidate(device, nodes, count, facts, option.job, option.accumulation)
    least = min((o.least_bytes for o in options), default=device.visible_bytes)
    return TrainingMissed(device, nodes, count, TOO_LITTLE, max(0, least - device.visible_bytes))


def _preference(candidate: TrainingCandidate) -> tuple[object, ...]:
    device = candidate.accelerator
    return (
        candidate.nodes,
        candidate.count,
        candidate.job.sharding != "none",
        device.visible_bytes,
        device.name,
    )
