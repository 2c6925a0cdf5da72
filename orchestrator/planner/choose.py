"""Which sets of accelerators hold a served model, why the others do not, and what would help."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import field, replace
from typing import TypeVar

from orchestrator.catalog.values import Accelerator, ModelFacts
from orchestrator.engines import Kind, kind_of
from orchestrator.engines.job import KvDtype
from orchestrator.frozen import frozen
from orchestrator.planner.parallelism import (
    OPEN,
    Degrees,
    Layout,
    indivisible,
    is_native,
    layout_for,
    layout_over,
    runs,
    spread,
)
from orchestrator.planner.sizing.formats import weight_format
from orchestrator.planner.sizing.serving import ServingNeeds, serving_needs
from orchestrator.planner.sizing.values import ServingJob, Size
from orchestrator.planner.sizing.weights import published_format
from orchestrator.units import format_bytes

LOADABLE = ("fp8", "int8")
"""Formats an engine makes of 16-bit weights while it loads them, best quality first; 4-bit
weights have to be made beforehand (vLLM docs, quantization: online formats)."""

LEAST_CONTEXT = 4096
"""Tokens a request must be able to hold where no context is stated, or all the model can."""

STEP = 1024
"""Contexts are cut in steps of this many tokens."""

Makes = Callable[[Accelerator, str], bool]
"""Whether an engine makes a format of 16-bit weights on a device."""

Takes = Callable[[Accelerator, Layout], bool]
"""Whether an engine serves the model cut so on a device."""

Keeps = Callable[[Accelerator, KvDtype], bool]
"""Whether an engine keeps the KV cache in a format on a device."""

T = TypeVar("T", bound=Hashable)


def once_per_kind(can: Callable[[Accelerator, T], bool]) -> Callable[[Accelerator, T], bool]:
    """Return ``can`` asked once for each kind of device, which is all that an engine decides by."""
    known: dict[tuple[Kind, T], bool] = {}

    def asked(device: Accelerator, what: T) -> bool:
        kind = (kind_of(device), what)
        if kind not in known:
            known[kind] = can(device, what)
        return known[kind]

    return asked


def _all_can(_device: Accelerator, _what: object) -> bool:
    """Stand in where nobody asks engines."""
    return True


@frozen
class Change:
    """One change to a spec: the field, and the value that would admit a set of accelerators."""

    field: str
    value: str

    def __str__(self) -> str:
        return f"{self.field} {self.value}"


@frozen
class Candidate:
    """A set of accelerators that holds the model, and the job as it would run there.

    ``lowered`` says in words what is less than was published, and why. With ``open_context``
    nobody stated a context, and ``needs`` is for the least of it.
    """

    accelerator: Accelerator
    layout: Layout
    needs: ServingNeeds
    facts: ModelFacts
    open_context: bool = False
    lowered: str = ""

    def settled(self) -> tuple[ServingJob, Size]:
        """Return the job with its context filled in, and its size here.

        A context that nobody stated is what the model allows, cut to what fits.
        """
        job = self.needs.job
        if not self.open_context or self.facts.context is None:
            return job, self.needs.on(self.accelerator)
        context = longest_context(self.facts, self.needs, self.accelerator, most=self.facts.context)
        needs = _with_context(self.facts, self.needs, context)
        return needs.job, needs.on(self.accelerator)


@frozen
class Missed:
    """A set of accelerators that does not hold the model: the first reason, and what would help."""

    accelerator: Accelerator
    nodes: int
    count: int
    reason: str
    helps: Callable[[], Change | None] = field(repr=False, compare=False)

    def change(self) -> Change | None:
        """Return the smallest change that would admit this set, None where none was found."""
        return self.helps()


@frozen
class Choices:
    """Candidates, best first, and what fell, in the order of accelerators and counts."""

    candidates: tuple[Candidate, ...]
    missed: tuple[Missed, ...]


def choose(
    facts: ModelFacts,
    job: ServingJob,
    accelerators: Sequence[Accelerator],
    *,
    counts: Sequence[int] = (1, 2, 4, 8),
    max_nodes: int = 2,
    least_context: int = LEAST_CONTEXT,
    makes: Makes = _all_can,
    takes: Takes = _all_can,
    keeps: Keeps = _all_can,
    reads: Makes = _all_can,
    fixed: Degrees = OPEN,
    slices: Collection[tuple[str, int, int]] = (),
) -> Choices:
    """Return every set of accelerators that holds ``job``, and why each other one does not.

    Args:
        facts: The model.
        job: What is asked; its degrees of parallelism are found here. ``precision`` ``auto``
            means as published, else the best that an engine makes itself, that fits and that
            the device computes natively. A ``context`` of None is what fits, at least
            ``least_context``.
        accelerators: Kinds of device that can be had; their order does not matter.
        counts: Devices per node that can be had.
        max_nodes: Nodes one replica may span.
        least_context: Tokens a request must be able to hold where ``job`` states no context.
        makes: Whether an engine makes a format that was not published, on a device.
        takes: Whether an engine serves the model on a device as a layout cuts it.
        keeps: Whether an engine keeps the KV cache in a format, on a device.
        reads: Whether an engine serves weights that were made in a format beforehand, on a device.
        fixed: Degrees of parallelism that are not to be found here.
        slices: Machines that are one and can be had, as accelerator, nodes and devices of each.

    Raises:
        ValueError: as ``serving_needs``.
    """
    asked = _Asked(
        facts, job, tuple(sorted(set(counts))), max_nodes, least_context, makes, takes, keeps, reads, fixed
    )
    devices = sorted(accelerators, key=lambda a: (a.visible_bytes, a.name))
    candidates: list[Candidate] = []
    missed: list[Missed] = []
    done: set[tuple[str, int]] = set()  # more machines than hold it are never better
    for nodes in range(1, max([max_nodes, *(nodes for _, nodes, _ in slices)]) + 1):
        for count in asked.counts:
            joined = [d for d in devices if (d.name, nodes, count) in slices]
            held, fell = asked.on(joined, nodes=nodes, count=count, joined=True)
            candidates += held
            missed += fell
            here = [
                d for d in devices
                if (d.name, count) not in done and asked.is_worth_asking(d, nodes=nodes, count=count)
            ]  # fmt: skip
            held, fell = asked.on(here, nodes=nodes, count=count)
            done |= {(each.accelerator.name, count) for each in held}
            candidates += held
            missed += fell
    return Choices(tuple(sorted(candidates, key=_preference)), tuple(sorted(missed, key=_name)))


def _preference(candidate: Candidate) -> tuple[object, ...]:
    layout, device = candidate.layout, candidate.accelerator
    return (
        layout.nodes,
        bool(candidate.lowered),
        layout.devices,
        layout.pipeline,
        device.visible_bytes,
        device.name,
    )


def _name(missed: Missed) -> tuple[object, ...]:
    return missed.nodes, missed.count, missed.accelerator.name


def is_slice(device: Accelerator, devices: int) -> bool:
    """Return whether so many devices can be had together; only TPUs come in fixed shapes.

    >>> from orchestrator.catalog import accelerator
    >>> [n for n in range(1, 17) if is_slice(accelerator("TPU-V5P"), n)]
    [4, 8, 16]
    """
    return not device.topologies or devices in device.topologies


TOO_LITTLE = "too little device memory"
SLICE = "a slice of a device shares no model with others"


class _Asked:
    """One question and its parts that no device changes, computed when first needed."""

    def __init__(
        self,
        facts: ModelFacts,
        job: ServingJob,
        counts: tuple[int, ...],
        max_nodes: int,
        least_context: int,
        makes: Makes,
        takes: Takes,
        keeps: Keeps,
        reads: Makes,
        fixed: Degrees,
    ) -> None:
        self.facts = facts
        self.makes = makes
        self.reads = reads
        self.takes = takes
        self.keeps = keeps
        self.fixed = fixed
        self.counts = counts
        self.max_nodes = max_nodes
        most = facts.context or least_context
        self.job = job if job.context else replace(job, context=min(least_context, most))
        self.states_context = job.context is not None
        published = published_format(facts)
        self.first = published if job.precision == "auto" else job.precision
        plain = weight_format(self.first).bits >= 16
        self.others = LOADABLE if job.precision == "auto" and plain else ()
        self._needs: dict[tuple[Layout, str, str], ServingNeeds] = {}
        self._runs: dict[str, bool] = {}
        self._most: dict[int, int] = {}

    def is_worth_asking(self, device: Accelerator, *, nodes: int, count: int) -> bool:
        """Return whether machines of ``count`` such devices exist, full ones where there are several.

        A second node adds to full ones: half-filled machines would pay for a network with nothing.
        Where devices are sold in slices of fixed shapes, only those exist.
        """
        if not is_slice(device, nodes * count):
            return False
        if nodes > 1 and (device.topologies or nodes > self.max_nodes):
            return False  # machines of a slice are asked for as what they are
        most = self.most(device)
        return count <= most and (nodes == 1 or count == most)

    def most(self, device: Accelerator) -> int:
        """Return the most devices of the kind that one machine has."""
        found = self._most.get(device.max_per_node)
        if found is None:
            found = max((c for c in self.counts if c <= device.max_per_node), default=0)
            self._most[device.max_per_node] = found
        return found

    def on(
        self, devices: Sequence[Accelerator], *, nodes: int, count: int, joined: bool = False
    ) -> tuple[list[Candidate], list[Missed]]:
        """Sort devices, given by rising memory, into those that hold the model and those that do not.

        ``joined`` nodes are one slice.
        """
        candidates: list[Candidate] = []
        missed: list[Missed] = []
        left = list(devices)
        if nodes * count > 1:
            missed += [self._missed(d, nodes, count, SLICE) for d in left if d.parent]
            left = [d for d in left if not d.parent]
        for precision, layout in self._ways(nodes, count, joined=joined):
            able = [d for d in left if self._computes(d, precision)]
            if layout.data > 1 and self.fixed == OPEN:  # else the engine itself says why not
                able = [d for d in able if self.takes(d, layout)]
            if not able:
                continue
            needs = self.needs(layout, precision)
            # more memory never turns a fit into a refusal, so the fitting ones are the last ones
            start = bisect_left(range(len(able)), True, key=lambda i: needs.on(able[i]).fits)
            lowered = self._lowered(precision)
            candidates += [
                Candidate(d, layout, needs, self.facts, not self.states_context, lowered)
                for d in able[start:]
            ]
            held = {d.name for d in able[start:]}
            left = [d for d in left if d.name not in held]
        uncut = self.layout(nodes, count, self.first, joined=joined)
        full = TOO_LITTLE if isinstance(uncut, Layout) else uncut
        for device in left:
            reason = full if self.runs(device) else f"no {self.first}"
            missed.append(self._missed(device, nodes, count, reason))
        return candidates, missed

    def layout(self, nodes: int, count: int, precision: str, *, joined: bool = False) -> Layout | str:
        """Return how the replica lies on these devices, or why it cannot."""
        lay = layout_over if joined else layout_for
        return lay(self.facts, nodes=nodes, count=count, precision=precision, fixed=self.fixed)

    def _ways(self, nodes: int, count: int, *, joined: bool) -> Iterator[tuple[str, Layout]]:
        """Yield formats and layouts, the preferred first; data ranks only where tensors do not fit."""
        for precision in (self.first, *self.others):
            layout = self.layout(nodes, count, precision, joined=joined)
            if isinstance(layout, str):
                continue
            yield precision, layout
            if self.fixed == OPEN and (wider := spread(self.facts, layout)):
                yield precision, wider

    def runs(self, device: Accelerator) -> bool:
        """Return whether the device can serve the asked format at all."""
        if device.name not in self._runs:
            self._runs[device.name] = runs(device, self.first)
        return self._runs[device.name]

    def needs(self, layout: Layout, precision: str, kv_cache: str | None = None) -> ServingNeeds:
        """Return what a replica needs in a layout and format, the same object when asked again."""
        key = (layout, precision, kv_cache or self.job.kv_cache)
        if key not in self._needs:
            job = replace(layout.cut(self.job), precision=precision, kv_cache=key[2])
            self._needs[key] = serving_needs(self.facts, job)
        return self._needs[key]

    def _computes(self, device: Accelerator, precision: str) -> bool:
        if precision == self.first:
            return self.runs(device)
        return is_native(device, precision) and self.makes(device, precision)

    def _lowered(self, precision: str) -> str:
        return "" if precision == self.first else f"{precision} instead of {self.first}, which does not fit"

    def _missed(self, device: Accelerator, nodes: int, count: int, reason: str) -> Missed:
        def helps() -> Change | None:
            return next(self._changes(device, nodes, count), None)

        return Missed(device, nodes, count, reason, helps)

    def _changes(self, device: Accelerator, nodes: int, count: int) -> Iterator[Change]:
        """Yield changes that would admit a set, the least intrusive first."""
        joined = nodes > 1 and bool(device.topologies)
        layout = self.layout(nodes, count, self.first, joined=joined)
        if isinstance(layout, Layout) and not (device.parent and layout.devices > 1):
            yield from self._same_devices(device, layout)
        for more in (c for c in self.counts if count < c <= device.max_per_node and not device.parent):
            if self._holds(device, nodes=nodes, count=more):
                yield Change("gpu", f"{device.name}:{more}")
        most = self.most(device)
        for machines in range(nodes + 1, self.max_nodes + 1):
            alone = not device.parent and not device.topologies  # slices are what they are
            if alone and self._holds(device, nodes=machines, count=most):
                yield Change("nodes", str(machines))

    def _same_devices(self, device: Accelerator, layout: Layout) -> Iterator[Change]:
        lacks = not self.runs(device)
        taken = not lacks and self.takes(device, layout)
        if taken:
            if self.states_context and self.job.context:
                needs = self.needs(layout, self.first)
                most = min(self.job.context, self.facts.context or self.job.context)
                shorter = longest_context(self.facts, needs, device, most=most)
                if shorter:
                    yield Change("context", str(shorter))
            halved = self.job.kv_cache == "auto" and self.needs(layout, self.first, "fp8").on(device).fits
            if halved and self.keeps(device, "fp8"):
                yield Change("kv_cache", "fp8")
        for precision in ("bf16", "fp8", "int8", "int4"):
            less = weight_format(precision).bits < weight_format(self.first).bits
            helps = (less or lacks) and runs(device, precision)
            if helps and self.needs(layout, precision).on(device).fits:
                # engines make fp8 and int8 while they load; most want 4-bit weights made beforehand
                beforehand = weight_format(precision).bits < 8 <= weight_format(self.first).bits
                # where neither holds, it is not the format alone that an engine says no to
                if beforehand and (taken or lacks) and self.reads(device, precision):
                    yield Change("model", f"made in {precision}")
                elif self.makes(device, precision):
                    yield Change("precision", precision)

    def _holds(self, device: Accelerator, *, nodes: int, count: int) -> bool:
        layout = self.layout(nodes, count, self.first)
        if isinstance(layout, str) or not self.runs(device) or not is_slice(device, nodes * count):
            return False
        return self.needs(layout, self.first).on(device).fits and self.takes(device, layout)


def longest_context(facts: ModelFacts, needs: ServingNeeds, device: Accelerator, *, most: int) -> int:
    """Return the longest context up to ``most`` that fits, in steps of 1,024 tokens; 0 for none.

    ``most`` itself counts too, so that a model's own limit is never rounded down.
    """

    def fits(context: int) -> bool:
        return _with_context(facts, needs, context).on(device).fits

    if fits(most):
        return most
    steps = range(1, (most - 1) // STEP + 1)
    return STEP * bisect_left(steps, True, key=lambda n: not fits(STEP * n))


def _with_context(facts: ModelFacts, needs: ServingNeeds, context: int) -> ServingNeeds:
    if needs.reads_in_chunks:
        return needs.with_context(context)
    return serving_needs(facts, replace(needs.job, context=context))


def contradictions(facts: ModelFacts, job: ServingJob, device: Accelerator) -> tuple[str, ...]:
    """Return what of a hand-written job cannot work on ``device``, each with its numbers.

    >>> from orchestrator.catalog import accelerator, model
    >>> llama = model("meta-llama/Llama-3.1-70B-Instruct")
    >>> contradictions(llama, ServingJob(precision="bf16", context=8192), accelerator("RTX4090"))
    ('131.4 GiB of weights on a device of 23.6 GiB',)
    """
    found: list[str] = []
    precision = published_format(facts) if job.precision == "auto" else job.precision
    if not runs(device, precision):
        found.append(f"{device.name} neither computes nor widens {precision}")
    uncut = indivisible(facts, job.tensor, precision=precision)
    if uncut:
        found.append(f"tensor {job.tensor}: {uncut}")
    if job.context and facts.context and job.context > facts.context:
        found.append(f"context {job.context} is beyond the model's {facts.context}")
    size = serving_needs(facts, job).on(device)
    if size.device.weights_bytes >= device.visible_bytes:
        weights, visible = format_bytes(size.device.weights_bytes), format_bytes(device.visible_bytes)
        found.append(f"{weights} of weights on a device of {visible}")
    elif not size.fits:
        found.append(f"{size.reason}: {format_bytes(size.short_bytes)} short on {device.name}")
    return tuple(found)
