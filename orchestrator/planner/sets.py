"""Sets of accelerators for one model, without any place: what holds it, how fast, at whose price.

This is the planner's question without offers: every accelerator of the catalog can be had, and
what it costs is the cheapest row of the catalog's price list.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING

from orchestrator.catalog.values import Accelerator, ModelFacts, PriceRow
from orchestrator.engines import ServingJob as EngineJob
from orchestrator.engines import Source, engine, names
from orchestrator.engines.job import Precision
from orchestrator.errors import Refusal
from orchestrator.frozen import frozen
from orchestrator.planner.choose import (
    LEAST_CONTEXT,
    LOADABLE,
    TOO_LITTLE,
    Candidate,
    choose,
    is_slice,
    longest_context,
    once_per_kind,
)
from orchestrator.planner.parallelism import (
    MOST_NODES,
    OPEN,
    Degrees,
    Layout,
    indivisible,
    is_native,
    layout_for,
    runs,
    spread,
)
from orchestrator.planner.sizing.formats import weight_format
from orchestrator.planner.sizing.serving import serving_needs, size_serving
from orchestrator.planner.sizing.training import least_training_bytes, size_training
from orchestrator.planner.sizing.values import Measured, ServingJob, Sharding, Size, TrainingJob
from orchestrator.planner.sizing.weights import published_format
from orchestrator.planner.throughput.serving import serving_throughput
from orchestrator.planner.throughput.training import training_throughput
from orchestrator.planner.throughput.work import Work, work

if TYPE_CHECKING:  # a plan's module, of which a size needs a word
    from orchestrator.planner.plan import Sort

COUNTS = (1, 2, 4, 8, 16)
"""Accelerators of one machine that are tried."""

TRAINED = ("cuda", "rocm")
"""Families of accelerators that TRL and Axolotl train on (their installation guides)."""

INPUT_TOKENS, OUTPUT_TOKENS = 1500, 300
"""The load a speed is estimated for: what a spec's ``traffic`` is where it says nothing."""


_LOADED: Mapping[str, Precision] = {"fp8": "fp8", "int8": "int8"}
"""The formats of ``LOADABLE``, as engines are told them."""

_Counted = Callable[[str], Work]
"""What a model is as work per token, by format, counted once for all sets."""

_Prices = Mapping[tuple[str, int], PriceRow]
"""The cheapest row of each accelerator and count."""


@frozen
class Price:
    """What a set costs: one row of the price list, as often as there are machines."""

    row: PriceRow
    usd_hour: float


@frozen
class Speed:
    """What a set makes of a job: tokens a second with their range, and a request's waiting.

    ``tokens_s`` counts output tokens in serving, trained tokens in training; ``first_token_s``
    and ``each_token_s`` are None in training. ``cautions`` say why a figure deserves less trust.
    """

    tokens_s: float
    low: float
    high: float
    first_token_s: float | None = None
    each_token_s: float | None = None
    cautions: tuple[str, ...] = ()


@frozen
class AcceleratorSet:
    """``nodes`` machines of ``count`` accelerators each, and a job on all of them.

    ``size`` is for the fullest device. ``lowered`` says what is less than was published,
    ``shortened`` how a context that nobody stated is less than the model's.
    ``price`` is None where the list has none, ``speed`` where the catalog lacks figures.
    """

    accelerator: Accelerator
    nodes: int
    count: int
    job: ServingJob | TrainingJob
    size: Size
    speed: Speed | None = None
    price: Price | None = None
    lowered: str = ""
    shortened: str = ""

    @property
    def devices(self) -> int:
        """How many accelerators there are in all."""
        return self.nodes * self.count

    @property
    def usd_per_million_tokens(self) -> float | None:
        """Dollars for a million tokens that come out, or are trained; None where unknown."""
        if self.price is None or self.speed is None:
            return None
        return self.price.usd_hour / 3600 * 1e6 / self.speed.tokens_s


@frozen
class Sets:
    """Sets that hold a job, best first, and how many fell for which reason."""

    fitting: tuple[AcceleratorSet, ...]
    refused: tuple[Refusal, ...]


def machines(device: Accelerator, devices: int) -> tuple[int, int]:
    """Return nodes, and accelerators on each, that make up ``devices`` with the fewest machines.

    Raises:
        ValueError: a slice of a device is asked for more than once.

    >>> from orchestrator.catalog import accelerator
    >>> [machines(accelerator("H100-80GB"), n) for n in (4, 16, 12, 9)]
    [(1, 4), (2, 8), (2, 6), (3, 3)]
    """
    if device.parent and devices > 1:
        raise ValueError(f"{device.name} is a slice of a device, and slices share no model")
    least = math.ceil(devices / device.max_per_node)
    nodes = next(n for n in range(least, devices + 1) if devices % n == 0)
    return nodes, devices // nodes


@frozen
class Answer:
    """The set that was asked about, whether it fits or not, and every set that holds the job."""

    asked: AcceleratorSet
    sets: Sets


def serving_answer(
    facts: ModelFacts,
    job: ServingJob,
    devices: Sequence[Accelerator],
    rows: Iterable[PriceRow],
    *,
    count: int | None = None,
    tensor: int | None = None,
    pipeline: int | None = None,
    sort: Sort = "price",
) -> Answer:
    """Return what a served model takes, and which sets of ``devices`` hold it.

    Args:
        facts: The model.
        job: What is asked; its degrees of parallelism are found here. A context of None is the
            model's own limit where that fits; where it does not, on the one device asked about or
            anywhere, it is the longest that fits. A precision of ``auto`` is lowered likewise.
        devices: Kinds of accelerator that can be had. A single one is asked about itself;
            of several the best set is, or the largest machine where none fits.
        rows: Prices.
        count: How many of a single accelerator; more than one machine holds are spread over machines.
            None is one, or the smallest slice where the accelerator comes in slices.
        tensor: Ranks that share every layer; None is the most that divides the model in a machine.
        pipeline: Stages; None is what the other degrees leave.
        sort: What the first set is best in.

    Raises:
        ValueError: the degrees do not multiply to ``count`` or do not divide the model, or a number
            is not one the sizing knows.
    """
    prices, counted = _cheapest(rows), cache(partial(work, facts))
    total = count or (tensor or 1) * (pipeline or 1)
    if len(devices) == 1 and not (count or tensor or pipeline):
        total = min(devices[0].topologies, default=1)
    whole = replace(job, context=job.context or facts.context)

    def on(device: Accelerator, accelerators: int) -> AcceleratorSet:
        held = _cut(facts, job, device, accelerators, fixed=Degrees(tensor, pipeline))
        return _finished(facts, held, prices, counted)

    if job.measured != Measured():
        # figures of one layout on one device say nothing about another
        one = on(devices[0], total)
        return Answer(one, Sets((one,) if one.size.fits else (), ()))
    if len(devices) == 1:
        sets = _serving_sets(facts, job, devices, prices, counted, sort)
        asked = on(devices[0], total)
        return Answer(asked, _led_by(asked, sets) if count or tensor or pipeline else sets)
    if tensor or pipeline:
        able = [d for d in devices if not (d.parent and total > 1) and runs(d, _precision(facts, job))]
        cut = [on(device, total) for device in able]
        refused = Counter(_counted_reason(each.size) for each in cut if not each.size.fits)
        refused["cannot be cut so"] = len(devices) - len(able)
        sets = _ranked([each for each in cut if each.size.fits], refused, sort)
    else:
        sets = _serving_sets(facts, whole, devices, prices, counted, sort)
        if not sets.fitting and job.context is None:
            sets = _serving_sets(facts, job, devices, prices, counted, sort)
    return Answer(sets.fitting[0] if sets.fitting else on(*_largest(devices, total)), sets)


def _led_by(asked: AcceleratorSet, sets: Sets) -> Sets:
    """Return the sets with the one that was asked about first, where it fits."""
    if not asked.size.fits:
        return sets
    others = (each for each in sets.fitting if (each.nodes, each.count) != (asked.nodes, asked.count))
    return replace(sets, fitting=(asked, *others))


def _counted_reason(size: Size) -> str:
    """Return a reason as it is counted: every lack of memory is one."""
    return TOO_LITTLE if size.short_bytes else size.reason


def _largest(devices: Iterable[Accelerator], total: int) -> tuple[Accelerator, int]:
    """Return the accelerator with the most memory in one machine, and how many there are in it."""
    best = max(devices, key=lambda d: (d.visible_bytes * d.max_per_node, d.name))
    return best, max(total, 1 if best.parent else best.max_per_node)


def _precision(facts: ModelFacts, job: ServingJob) -> str:
    return published_format(facts) if job.precision == "auto" else job.precision


def _cut(
    facts: ModelFacts,
    job: ServingJob,
    device: Accelerator,
    devices: int,
    *,
    fixed: Degrees,
) -> AcceleratorSet:
    """Return a model on exactly these accelerators: the first format and layout that fits, else as asked.

    Raises:
        ValueError: the model cannot be cut so.
    """
    nodes, count = machines(device, devices)
    first = _precision(facts, job)
    layout = layout_for(facts, nodes=nodes, count=count, precision=first, fixed=fixed)
    if isinstance(layout, str):
        raise ValueError(layout)
    wider = spread(facts, layout) if fixed == OPEN else None
    cut = replace(layout.cut(job), precision=first)
    whole = replace(cut, context=job.context or facts.context)
    asked = AcceleratorSet(device, nodes, count, whole, size_serving(facts, device, whole))
    if why := _refused(facts, device, layout, whole):
        # no memory would help, so that none is short
        return replace(asked, size=replace(asked.size, fits=False, reason=why, short_bytes=0))
    for precision in (first, *_lower(facts, job, device, layout)):
        for way in (each for each in (layout, wider) if each):
            if way is wider and _refused(facts, device, way, whole):
                continue
            if held := _opened(facts, asked, replace(way.cut(job), precision=precision)):
                return replace(held, lowered=_less(precision, first))
    return asked


def _opened(facts: ModelFacts, asked: AcceleratorSet, job: ServingJob) -> AcceleratorSet | None:
    """Return a job that fits a set, with the longest context where none was stated; None for none."""
    least = job.context or min(LEAST_CONTEXT, facts.context or LEAST_CONTEXT)
    needs = serving_needs(facts, replace(job, context=least))
    if not needs.on(asked.accelerator).fits:
        return None
    if job.context or not facts.context:
        return replace(asked, job=job, size=size_serving(facts, asked.accelerator, job))
    context = longest_context(facts, needs, asked.accelerator, most=facts.context)
    opened = replace(job, context=context)
    size = size_serving(facts, asked.accelerator, opened)
    return replace(asked, job=opened, size=size, shortened=_shorter(facts, opened))


def _lower(facts: ModelFacts, job: ServingJob, device: Accelerator, layout: Layout) -> Iterator[str]:
    """Yield the formats an engine makes of published weights where none was asked, best first."""
    if job.precision != "auto" or weight_format(published_format(facts)).bits < 16:
        return
    if job.measured != Measured():
        return  # what was measured are the weights as they are
    for precision in LOADABLE:
        cut = not indivisible(facts, layout.tensor, precision=precision)
        if cut and is_native(device, precision) and _makes(facts, job.engine, device, precision):
            yield precision


def _makes(facts: ModelFacts, name: str, device: Accelerator, precision: str) -> bool:
    """Return whether an engine makes a format of published weights; one that is not ours may."""
    if name not in names():
        return True
    return engine(name).refuses(_engine_job(facts, device, precision=_LOADED[precision])) is None


def _less(precision: str, first: str) -> str:
    return "" if precision == first else f"{precision} instead of {first}, which does not fit"


def _shorter(facts: ModelFacts, job: ServingJob) -> str:
    """Say how a context is less than the model's, "" where it is not."""
    if not facts.context or not job.context or job.context >= facts.context:
        return ""
    return f"a context of {job.context:,} instead of {facts.context:,}, which does not fit"


def _refused(facts: ModelFacts, device: Accelerator, layout: Layout, job: ServingJob) -> str | None:
    """Say why a job cannot run on a device whatever its memory, None when it can."""
    if not runs(device, job.precision):
        return f"{device.name} neither computes nor widens {job.precision}"
    if not is_slice(device, layout.devices):
        return f"{device.name} comes in slices of {', '.join(map(str, sorted(device.topologies)))}"
    if job.context and facts.context and job.context > facts.context:
        return f"a context of {job.context} is beyond the model's {facts.context}"
    return _engine_refuses(facts, device, layout, job)


def _serving_sets(
    facts: ModelFacts,
    job: ServingJob,
    devices: Sequence[Accelerator],
    prices: _Prices,
    counted: _Counted,
    sort: Sort,
) -> Sets:
    """Return every set that holds a served model; several machines only where one is too few."""

    def takes(device: Accelerator, layout: Layout) -> bool:
        return _engine_refuses(facts, device, layout, job) is None

    found = choose(
        facts, job, devices, counts=COUNTS, max_nodes=MOST_NODES, least_context=LEAST_CONTEXT,
        makes=once_per_kind(partial(_makes, facts, job.engine)), takes=once_per_kind(takes),
    )  # fmt: skip
    refused = Counter(m.reason for m in found.missed if m.nodes == 1)
    fitting: list[AcceleratorSet] = []
    for candidate in _fewest_machines(found.candidates):
        layout, device = candidate.layout, candidate.accelerator
        if why := _refused(facts, device, layout, candidate.needs.job):
            refused[why] += 1
            continue
        settled, size = candidate.settled()
        held = AcceleratorSet(
            device, layout.nodes, layout.count, settled, size, lowered=candidate.lowered,
            shortened=_shorter(facts, settled) if job.context is None else "",
        )  # fmt: skip
        fitting.append(_finished(facts, held, prices, counted))
    return _ranked(fitting, refused, sort)


def _fewest_machines(candidates: Sequence[Candidate]) -> Iterator[Candidate]:
    """Yield candidates on the least number of machines that holds their accelerator's set."""
    least: dict[str, int] = {}
    for each in candidates:
        name, nodes = each.accelerator.name, each.layout.nodes
        least[name] = min(nodes, least.get(name, nodes))
    return (each for each in candidates if each.layout.nodes == least[each.accelerator.name])


def _engine_refuses(facts: ModelFacts, device: Accelerator, layout: Layout, job: ServingJob) -> str | None:
    """Say why the engine does not serve a job there, None where it does or is no engine of ours."""
    if job.engine not in names():
        return None
    placed = replace(
        _engine_job(facts, device), count=layout.count, nodes=layout.nodes,
        tensor=layout.tensor, pipeline=layout.pipeline, data=layout.data, expert=layout.expert,
        context_tokens=job.context,
    )  # fmt: skip
    return engine(job.engine).refuses(placed)


def _engine_job(facts: ModelFacts, device: Accelerator, *, precision: Precision = "auto") -> EngineJob:
    """Return a model on one device, as engines are asked about it."""
    # whether there is a token to fetch it with is no question of size
    secrets = (("HF_TOKEN", "HF_TOKEN"), ("NGC_API_KEY", "NGC_API_KEY"))
    return EngineJob(facts, Source(facts.id), device, precision=precision, secrets=secrets)


def training_answer(
    facts: ModelFacts,
    job: TrainingJob,
    devices: Sequence[Accelerator],
    rows: Iterable[PriceRow],
    *,
    count: int | None = None,
    sharding: Sharding | None = None,
    sort: Sort = "price",
) -> Answer:
    """Return what a training run takes at its micro batch, and which sets of ``devices`` hold it.

    Args:
        facts: The model.
        job: What is asked; how many devices there are is found here.
        devices: As for ``serving_answer``.
        rows: Prices.
        count: How many of a single accelerator.
        sharding: How the run is sharded; None is copies where they fit, else FSDP.
        sort: What the first set is best in; a run has no latency, which then is throughput.

    Raises:
        ValueError: as ``size_training``.
    """
    prices, counted = _cheapest(rows), cache(partial(work, facts))
    sort = "throughput" if sort == "latency" else sort
    total = count or job.tensor * job.pipeline

    def on(device: Accelerator, accelerators: int) -> AcceleratorSet:
        held = _trained(facts, job, device, accelerators, sharding)
        if device.family not in TRAINED:  # no memory would help, so that none is short
            why = f"{job.engine} does not train on {device.family}"
            held = replace(held, size=replace(held.size, fits=False, reason=why, short_bytes=0))
        return _finished(facts, held, prices, counted)

    able = [d for d in devices if d.family in TRAINED]
    sets = _training_sets(facts, job, able, prices, counted, sharding, sort)
    if len(devices) == 1:
        return Answer(on(devices[0], total), sets)
    return Answer(sets.fitting[0] if sets.fitting else on(*_largest(able, total)), sets)


def _trained(
    facts: ModelFacts, job: TrainingJob, device: Accelerator, devices: int, sharding: Sharding | None
) -> AcceleratorSet:
    """Return a run on exactly these accelerators: the first way that fits, else the last."""
    nodes, count = machines(device, devices)
    ways = [replace(job, devices=devices, sharding=way) for way in _ways(devices, sharding)]
    sizes = [(run, size_training(facts, device, run)) for run in ways]
    run, size = next(((run, size) for run, size in sizes if size.fits), sizes[-1])
    return AcceleratorSet(device, nodes, count, run, size)


def _ways(devices: int, sharding: Sharding | None) -> tuple[Sharding, ...]:
    """Return the shardings to try, preferred ones first."""
    if sharding:
        return (sharding,)
    return ("none", "fsdp") if devices > 1 else ("none",)


def _training_sets(
    facts: ModelFacts,
    job: TrainingJob,
    devices: Sequence[Accelerator],
    prices: _Prices,
    counted: _Counted,
    sharding: Sharding | None,
    sort: Sort,
) -> Sets:
    refused: Counter[str] = Counter()
    fitting: list[AcceleratorSet] = []
    held: set[str] = set()
    for nodes in range(1, MOST_NODES + 1):
        spanned = {d.name for d in devices if d.name not in held}
        for count in COUNTS:
            options = list(_options(facts, job, nodes * count, sharding))
            for device in (d for d in devices if _is_machine(d, nodes, count, spanned)):
                run = next((r for r, least in options if least <= device.visible_bytes), None)
                if run is None:
                    refused[TOO_LITTLE] += nodes == 1
                    continue
                held.add(device.name)
                one = AcceleratorSet(device, nodes, count, run, size_training(facts, device, run))
                fitting.append(_finished(facts, one, prices, counted))
    return _ranked(fitting, refused, sort)


def _is_machine(device: Accelerator, nodes: int, count: int, spanned: set[str]) -> bool:
    """Return whether there are such machines: full ones where there are several, slices only alone."""
    if device.parent and nodes * count > 1:
        return False
    most = max(c for c in COUNTS if c <= device.max_per_node)
    return count <= most if nodes == 1 else count == most and device.name in spanned


def _options(
    facts: ModelFacts, job: TrainingJob, devices: int, sharding: Sharding | None
) -> Iterator[tuple[TrainingJob, int]]:
    """Yield the run on so many devices, with the least memory of each, preferred ones first."""
    if devices % (job.tensor * job.pipeline):
        return
    for way in _ways(devices, sharding):
        run = replace(job, devices=devices, sharding=way)
        least = least_training_bytes(facts, run)
        if least is not None:
            yield run, least


def _cheapest(rows: Iterable[PriceRow]) -> _Prices:
    """Return the cheapest row on demand of each accelerator and count; equal prices by name.

    A row that nobody dated, or whose source is weak, counts only where there is no better one.
    """
    found: dict[tuple[str, int], PriceRow] = {}
    priced = [r for r in rows if r.accelerator and r.on_demand_usd_hour]
    for row in sorted(priced, key=lambda r: (not r.is_sure, r.on_demand_usd_hour or 0.0, r.name)):
        found.setdefault((row.accelerator or "", row.count), row)
    return found


def _finished(facts: ModelFacts, held: AcceleratorSet, prices: _Prices, counted: _Counted) -> AcceleratorSet:
    """Add price and speed to a set."""
    row = prices.get((held.accelerator.name, held.count))
    price = Price(row, (row.on_demand_usd_hour or 0.0) * held.nodes) if row else None
    speed = _speed(facts, held, counted) if held.size.fits else None
    return replace(held, price=price, speed=speed)


def _speed(facts: ModelFacts, held: AcceleratorSet, counted: _Counted) -> Speed | None:
    if held.accelerator.bandwidth_gbs is None:
        return None
    if isinstance(held.job, ServingJob):
        return _serving_speed(facts, held.job, held, counted)
    return _training_speed(facts, held.job, held, counted)


def _serving_speed(facts: ModelFacts, job: ServingJob, held: AcceleratorSet, counted: _Counted) -> Speed:
    made = 0 if facts.pools else min(OUTPUT_TOKENS, max(1, (job.context or OUTPUT_TOKENS) // 4))
    found = serving_throughput(
        facts, held.accelerator,
        input_tokens=min(INPUT_TOKENS, (job.context or INPUT_TOKENS + made) - made),
        output_tokens=max(1, made),
        concurrency=job.concurrency, tensor=job.tensor, pipeline=job.pipeline,
        data=job.data, expert=job.expert,
        weight_format=job.precision, kv_dtype="bf16" if job.kv_cache == "auto" else job.kv_cache,
        engine=job.engine, engine_version=job.engine_version,
        kv_cache_tokens=held.size.kv_cache_tokens or None, max_sequences=held.size.max_num_seqs or None,
        counted=counted(job.precision),
    )  # fmt: skip
    each_s = None if facts.pools else found.tpot_s
    return Speed(found.output_tokens_s, found.low, found.high, found.ttft_s, each_s, cautions=found.cautions)


def _training_speed(facts: ModelFacts, job: TrainingJob, held: AcceleratorSet, counted: _Counted) -> Speed:
    found = training_throughput(
        facts, held.accelerator, count=held.devices, sequence_length=job.sequence_length,
        micro_batch=job.micro_batch, tuning=job.tuning, checkpointing=job.checkpointing == "full",
        method=job.method, reference=job.reference, rollout_share=job.rollout,
        counted=counted("bf16"),
    )  # fmt: skip
    return Speed(found.tokens_s, found.low, found.high, cautions=found.cautions)


def _ranked(fitting: Iterable[AcceleratorSet], refused: Counter[str], sort: Sort) -> Sets:
    by_count = sorted((Refusal(r, n) for r, n in refused.items() if n), key=lambda r: (-r.offers, r.reason))
    return Sets(tuple(sorted(fitting, key=lambda each: _rank(each, sort))), tuple(by_count))


def _rank(each: AcceleratorSet, sort: Sort) -> tuple[object, ...]:
    """Return the sort key: nothing lowered first, then the asked measure, then price and size."""
    speed, cost = each.speed, each.usd_per_million_tokens
    first = math.inf
    if sort == "price":
        first = math.inf if cost is None else cost
    elif speed and sort == "throughput":
        first = -speed.tokens_s
    elif speed:
        first = (speed.first_token_s or 0.0) + OUTPUT_TOKENS * (speed.each_token_s or 0.0)
    hourly = each.price.usd_hour if each.price else math.inf
    return (
        bool(each.lowered), bool(each.shortened), first, hourly, each.devices,
        each.accelerator.visible_bytes, each.accelerator.name, each.nodes,
    )  # fmt: skip
