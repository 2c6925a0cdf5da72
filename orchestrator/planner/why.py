"""Why a model is not served on some machines, what would help, and what in a spec contradicts itself."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from orchestrator.backend import Offer
from orchestrator.catalog.values import Accelerator, ModelFacts, PriceRow
from orchestrator.errors import WhyNot
from orchestrator.frozen import frozen
from orchestrator.planner.choose import Missed, contradictions
from orchestrator.planner.demand import AcceleratorDemand
from orchestrator.planner.match import OVER_PRICE
from orchestrator.planner.parallelism import OPEN, Degrees, Layout, indivisible, layout_for, spread
from orchestrator.planner.sets import AcceleratorSet, Price, serving_answer
from orchestrator.planner.sizing import Measured, ServingJob
from orchestrator.planner.sizing.weights import published_format
from orchestrator.units import exact_usd, format_usd


@frozen
class Fallen:
    """Offers of one accelerator and count on which the model is not served, and the first reason."""

    accelerator: str
    count: int
    offers: Collection[Offer]
    reason: str
    missed: Missed | None = None

    def why_not(self) -> WhyNot:
        """Return the group as a line of the table, with the smallest change that admits it."""
        change = self.missed.change() if self.missed else None
        price = min(offer.costs_usd_hour(count=self.count) for offer in self.offers)
        said = str(change) if change and change.field != "nodes" else ""  # no field of a service
        return WhyNot(self.accelerator, self.count, len(self.offers), price, self.reason, said)


def over_price(accelerator: str, count: int, prices: Sequence[float], *, nodes: int = 1) -> WhyNot:
    """Return the line of a group that holds the model and costs more than ``max_price``.

    >>> over_price("L4-24GB", 2, [1.6, 1.4]).change
    'max_price 1.4'
    """
    least = min(prices)
    change = f"max_price {exact_usd(least)}"
    return WhyNot(accelerator, count, len(prices), least, OVER_PRICE, change, nodes)


def by_price(lines: Iterable[WhyNot]) -> tuple[WhyNot, ...]:
    """Return the lines that name a change first, then the cheapest."""
    return tuple(sorted(lines, key=lambda w: (not w.change, w.price_usd_hour, w.accelerator, w.count)))


def elsewhere(
    facts: ModelFacts,
    job: ServingJob,
    wanted: AcceleratorDemand | None,
    accelerators: Mapping[str, Accelerator],
    rows: Sequence[PriceRow],
    *,
    most_usd_hour: float | None = None,
) -> str:
    """Return the cheapest row of the price list whose machines would hold the model, "" for none.

    A row that costs more than ``most_usd_hour`` would be refused as well, and is not named. One with
    another number of accelerators than ``wanted`` is named where no other will do, with that change.

    >>> from orchestrator.catalog import accelerators, model, prices
    >>> llama = model("meta-llama/Llama-3.1-8B-Instruct")
    >>> said = elsewhere(llama, ServingJob(context=8192), None, accelerators(), prices())
    >>> "price as of" in said
    True
    """
    devices = [d for d in accelerators.values() if wanted is None or _is_wanted(d, wanted)]
    if not devices or not rows:
        return ""
    # what was measured here says nothing about other machines
    found = serving_answer(facts, replace(job, measured=Measured()), devices, rows).sets.fitting
    priced = [
        (each, each.price)
        for each in found
        if each.price and (most_usd_hour is None or each.price.usd_hour <= most_usd_hour)
    ]
    if not priced:
        return ""
    asked = [pair for pair in priced if wanted is None or _has_asked(pair[0], wanted)]
    each, price = min(
        asked or priced, key=lambda pair: (pair[1].usd_hour, pair[0].accelerator.name, pair[0].count)
    )
    many = f"{each.nodes} × " if each.nodes > 1 else ""
    change = "" if asked else f" with gpu {each.accelerator.name}:{each.count}"
    return f"{many}{each.count} × {each.accelerator.name} would hold it{change}: {_price_text(price)}"


def _has_asked(each: AcceleratorSet, wanted: AcceleratorDemand) -> bool:
    """Return whether a set has the number of accelerators that is asked for, and their memory in total."""
    return wanted.count.holds(each.count) and wanted.has_total(each.accelerator.visible_bytes * each.count)


def _is_wanted(device: Accelerator, wanted: AcceleratorDemand) -> bool:
    named = not wanted.names or device.name in wanted.names
    made = not wanted.vendors or device.vendor in wanted.vendors
    newer = wanted.capability is None or (device.capability or (0, 0)) >= wanted.capability
    return named and made and newer and wanted.vram_bytes.holds(device.visible_bytes)


def _price_text(price: Price) -> str:
    row = price.row
    place = " ".join(part for part in (row.provider, row.region, row.instance_type) if part)
    return f"{place} at ${format_usd(price.usd_hour)}/h, price as of {row.as_of or 'no known day'}"


@frozen
class Objection:
    """What of a spec contradicts itself or its model, and the field that says it.

    ``fix`` is what to do where no machine helps, "" where another one may.
    """

    field: str
    text: str
    fix: str = ""


def objections(
    facts: ModelFacts,
    job: ServingJob,
    wanted: AcceleratorDemand | None,
    accelerators: Mapping[str, Accelerator],
    *,
    fixed: Degrees = OPEN,
) -> tuple[Objection, ...]:
    """Return what of a hand-written spec contradicts its model, each with its numbers.

    Args:
        facts: The model.
        job: What the spec asks, without degrees of parallelism.
        wanted: The accelerators it names. Only where every one of them contradicts is it said.
        accelerators: The catalog's, by name.
        fixed: Degrees of parallelism that the user's own arguments fix.

    >>> from orchestrator.catalog import accelerators, model
    >>> llama = model("meta-llama/Llama-3.1-70B-Instruct")
    >>> (found,) = objections(llama, ServingJob(precision="bf16", context=8192), None, accelerators(),
    ...                       fixed=Degrees(tensor=3))
    >>> found.field, found.text
    ('args', 'tensor 3: 64 attention heads do not divide by 3')
    """
    found: list[Objection] = []
    if job.context and facts.context and job.context > facts.context:
        text = f"a context of {job.context:,} is beyond the model's {facts.context:,}"
        found.append(Objection("model", text, f"ask for a context of {facts.context:,} at most"))
    precision = published_format(facts) if job.precision == "auto" else job.precision
    if fixed.tensor and (uncut := indivisible(facts, fixed.tensor, precision=precision)):
        fix = "leave tensor parallelism out of args: the plan finds it"
        found.append(Objection("args", f"tensor {fixed.tensor}: {uncut}", fix))
    bounded = replace(job, context=min(job.context or 1, facts.context or job.context or 1))
    each = [_on(facts, bounded, accelerators[n], wanted, fixed) for n in _named(wanted) if n in accelerators]
    if each and all(each):
        found += [Objection("model", text) for text in each[0]]
    return tuple(found)


def _named(wanted: AcceleratorDemand | None) -> list[str]:
    return sorted(wanted.names) if wanted else []


def _on(
    facts: ModelFacts,
    job: ServingJob,
    device: Accelerator,
    wanted: AcceleratorDemand | None,
    fixed: Degrees,
) -> tuple[str, ...]:
    """Return what contradicts on as many of a device as the spec allows on one machine."""
    asked = wanted.count.high if wanted and wanted.count.high is not None else device.max_per_node
    count = max(1, min(int(asked), device.max_per_node))
    layout = layout_for(facts, nodes=1, count=count, fixed=fixed)
    if not isinstance(layout, Layout):
        return (layout,)
    wider = spread(facts, layout) if fixed == OPEN else None
    if wider and not contradictions(facts, wider.cut(job), device):
        return ()
    return contradictions(facts, layout.cut(job), device)
