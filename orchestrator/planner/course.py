"""How a training run goes: its steps, how long and dear they are, and what a smaller set would need."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from orchestrator.catalog import Accelerator, ModelFacts
from orchestrator.frozen import frozen
from orchestrator.planner.choose_training import TrainingMissed, choose_training
from orchestrator.planner.sizing import TrainingJob
from orchestrator.planner.throughput import TrainingSpeed
from orchestrator.spec.models import Train

CHECKPOINT_EVERY_S = 600.0
"""How long the work is that an interruption may cost, where the spec names no ``save_steps``."""
FEWEST_SAVE_STEPS, MOST_SAVE_STEPS = 10, 500
"""Bounds of what is chosen for it; 500 is transformers' own default (TrainingArguments)."""


@frozen
class Course:
    """Steps of a run, and the time of each; None where the data or the device is not known.

    ``step_s`` takes every sequence for as long as it may be: shorter ones, unpacked, take less.
    """

    steps: int | None
    save_steps: int
    step_s: float | None
    is_asked: bool = False
    """Whether ``args`` say how many steps there are."""

    @property
    def hours(self) -> float | None:
        """How long the run takes at most, starts and checkpoints aside."""
        return None if self.steps is None or self.step_s is None else self.steps * self.step_s / 3600


def course_of(train: Train, *, rows: int | None, speed: TrainingSpeed | None) -> Course:
    """Return the course of a run on one set of accelerators.

    >>> from orchestrator.spec.models import Model
    >>> course_of(Train(model=Model(id="m"), dataset="d", batch_size=16, epochs=3), rows=100, speed=None)
    Course(steps=21, save_steps=500, step_s=None, is_asked=False)
    """
    step_s = train.batch_size * train.sequence_length / speed.tokens_s if speed else None
    asked = _asked_steps(train)
    steps = _steps(train, rows) if asked is None else asked
    return Course(steps, _save_steps(train.args, step_s), step_s, is_asked=asked is not None)


def _asked_steps(train: Train) -> int | None:
    most = train.args.get("max_steps")
    return most if isinstance(most, int) and most > 0 else None


def _steps(train: Train, rows: int | None) -> int | None:
    # the last batch of an epoch is short, and a step all the same
    return None if rows is None else math.ceil(math.ceil(rows / train.batch_size) * train.epochs)


def _save_steps(args: Mapping[str, object], step_s: float | None) -> int:
    asked = args.get("save_steps")
    if isinstance(asked, int) and asked > 0:
        return asked
    if step_s is None:
        return MOST_SAVE_STEPS
    return min(MOST_SAVE_STEPS, max(FEWEST_SAVE_STEPS, round(CHECKPOINT_EVERY_S / step_s)))


@frozen
class Smaller:
    """A cheaper set of accelerators that does not hold the run, and the change with which it would."""

    accelerator: str
    count: int
    price_usd_hour: float
    short_bytes: int
    change: str
    """Such as ``adapter: qlora``; "" where none of those that are tried is enough."""


def smaller_of(
    facts: ModelFacts,
    job: TrainingJob,
    missed: Sequence[tuple[TrainingMissed, float]],
    accelerators: Mapping[str, Accelerator],
    *,
    batch_size: int,
    below_usd_hour: float,
) -> Smaller | None:
    """Return of the sets that cost less than the chosen one the nearest, and what it would need.

    Args:
        facts: The model.
        job: The run as asked.
        missed: Sets on one machine that do not hold it, each with what it costs by the hour.
        accelerators: Devices by name.
        batch_size: Sequences of one step.
        below_usd_hour: What the chosen set costs.
    """
    cheaper = [(each, price) for each, price in missed if each.short_bytes and price < below_usd_hour]
    if not cheaper:
        return None
    near, price = min(cheaper, key=lambda m: (m[0].short_bytes, m[1], m[0].accelerator.name))
    device = accelerators[near.accelerator.name]
    change = change_of(facts, job, device, count=near.count, batch_size=batch_size)
    return Smaller(device.name, near.count, price, near.short_bytes, change)


def change_of(
    facts: ModelFacts, job: TrainingJob, device: Accelerator, *, count: int, batch_size: int, nodes: int = 1
) -> str:
    """Return the first change with which so many devices hold a run, "" where none that is tried does."""
    for change, changed in _changes(job, device):
        found = choose_training(
            facts, changed, [device], batch_size=batch_size, counts=[count], max_nodes=nodes
        )
        if any(each.nodes == nodes for each in found.candidates):
            return change
    return ""


def _changes(job: TrainingJob, device: Accelerator) -> list[tuple[str, TrainingJob]]:
    """Return what could make a run smaller, the least first, with the run it makes."""
    lengths = [n for n in (job.sequence_length // 2, job.sequence_length // 4) if n >= 256]
    found = [(f"sequence_length: {n}", replace(job, sequence_length=n)) for n in lengths]
    if job.tuning == "full":
        found.append(("adapter: lora", replace(job, tuning="lora", state_dtype="bf16")))
    if job.tuning != "qlora" and device.family in ("cuda", "rocm"):
        small = replace(job, tuning="qlora", state_dtype="bf16")
        found.append(("adapter: qlora", small))
        found += [
            (f"adapter: qlora and sequence_length: {n}", replace(small, sequence_length=n)) for n in lengths
        ]
    return found
