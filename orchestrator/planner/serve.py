"""A model to serve and the offers there are: which set of accelerators, which engine, at what cost.

Offers are first matched by what the spec says of places, prices and machines. What remains is
grouped by accelerator and count, each group is sized once, and of those that hold the model the
cheapest per token wins: as published before anything lowered, then dollars per million tokens,
then the smaller set.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field, replace
from itertools import islice

from orchestrator.backend import Mount, Offer
from orchestrator.catalog import Accelerator, ModelFacts, PriceRow, count_parameters
from orchestrator.engines import EngineLaunch, Kind, engine, kind_of
from orchestrator.errors import NothingFits, Position, WhyNot
from orchestrator.frozen import frozen
from orchestrator.planner.choose import (
    TOO_LITTLE,
    Candidate,
    Change,
    Choices,
    choose,
)
from orchestrator.planner.cost import token_cost
from orchestrator.planner.cpu import ENGINES as CPU_ENGINES
from orchestrator.planner.cpu import is_cpu, with_cpus
from orchestrator.planner.demand import Demand
from orchestrator.planner.engines import (
    computed_in,
    engine_for,
    engine_job,
    exchanged,
    keeper,
    maker,
    reader,
    taker,
)
from orchestrator.planner.groups import Groups, affordable, any_of, group, refusals, spanning
from orchestrator.planner.index import Matched, OfferIndex, OfferSet
from orchestrator.planner.match import OVER_PRICE
from orchestrator.planner.parallelism import MOST_NODES, Layout
from orchestrator.planner.plan import (
    NEEDS_ACCELERATORS,
    SHOWN,
    Choice,
    Placed,
    Sort,
    advise,
    backends_of,
    tries_of,
)
from orchestrator.planner.question import Question, needs_text
from orchestrator.planner.sizing import ServingJob, Size, serving_needs
from orchestrator.planner.throughput import Ceiling, Throughput, serving_ceiling, serving_throughput
from orchestrator.planner.throughput.work import Work, work
from orchestrator.planner.why import Fallen, by_price, elsewhere, over_price


@frozen
class Served:
    """A model as the plan would serve it on one set of accelerators."""

    facts: ModelFacts
    engine: str
    version: str
    layout: Layout
    job: ServingJob
    size: Size
    speed: Throughput | None
    """None where the catalog does not know how fast the accelerator is."""
    launch: EngineLaunch
    accelerator: Accelerator
    follower: EngineLaunch | None = None
    """The container of every node but the first, where one replica spans several."""
    mounts: tuple[Mount, ...] = ()
    """Local folders that the model and its adapters are read from."""
    lowered: str = ""
    notes: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """How many parameters the model has."""
        return self.facts.parameters or count_parameters(self.facts)


@frozen
class _Fit:
    """One set of accelerators that holds the model, and the engine that would serve it there."""

    candidate: Candidate
    engine: str
    job: ServingJob
    size: Size
    counted: Work

    def ceiling(self, question: Question) -> Ceiling | None:
        """Return what its speed cannot surpass, None where the catalog does not know its bandwidth."""
        if self.candidate.accelerator.bandwidth_gbs is None:
            return None
        return serving_ceiling(
            question.facts,
            self.candidate.accelerator,
            input_tokens=question.input_tokens,
            output_tokens=question.traffic.output_tokens,
            concurrency=question.traffic.concurrency,
            tensor=self.candidate.layout.tensor,
            pipeline=self.candidate.layout.pipeline,
            data=self.candidate.layout.data,
            expert=self.candidate.layout.expert,
            weight_format=self.job.precision,
            engine=self.engine,
            engine_version=question.version,
            counted=self.counted,
        )

    def speed(self, question: Question) -> Throughput | None:
        """Return how fast it serves, None where the catalog does not know its bandwidth."""
        if self.candidate.accelerator.bandwidth_gbs is None:
            return None
        return serving_throughput(
            question.facts,
            self.candidate.accelerator,
            input_tokens=question.input_tokens,
            output_tokens=question.traffic.output_tokens,
            concurrency=question.traffic.concurrency,
            tensor=self.candidate.layout.tensor,
            pipeline=self.candidate.layout.pipeline,
            data=self.candidate.layout.data,
            expert=self.candidate.layout.expert,
            weight_format=self.job.precision,
            kv_dtype="bf16" if self.job.kv_cache == "auto" else self.job.kv_cache,
            engine=self.engine,
            engine_version=question.version,
            kv_cache_tokens=self.size.kv_cache_tokens,
            max_sequences=self.size.max_num_seqs or None,
            counted=self.counted,
        )

    def served(self, question: Question, speed: Throughput | None) -> Served:
        """Write out the containers; only the chosen set needs them."""
        runner, nodes = engine(self.engine), self.candidate.layout.nodes
        job, size = self.candidate.settled()
        job = replace(job, precision=computed_in(question, self.candidate))
        written = engine_job(question, self.candidate, job, size)
        launch = runner.launch(written)
        return Served(
            facts=question.facts,
            engine=self.engine,
            version=question.version or runner.versions[0],
            layout=self.candidate.layout,
            job=job,
            size=size,
            speed=speed,
            launch=launch,
            accelerator=self.candidate.accelerator,
            follower=runner.launch(written, node_rank=1) if nodes > 1 else None,
            mounts=question.mounts(),
            lowered=self.candidate.lowered,
            notes=(*exchanged(question, self.candidate), *launch.warnings),
        )


@frozen
class _Option:
    """One group of offers on which the model can be served."""

    fit: _Fit
    offers: OfferSet

    def priced(self) -> Iterator[tuple[int, Offer, float]]:
        """Yield the first offers of the group with their ranks and prices: within it the cheapest is best."""
        return ((place, offer, self.cost(offer)) for place, offer in islice(self.cheapest(), SHOWN))

    def cheapest(self) -> Iterator[tuple[int, Offer]]:
        """Yield the offers of the group with their ranks, cheapest first."""
        return self.offers.cheapest(self.cost)

    def cost(self, offer: Offer) -> float:
        """Return what one replica costs by the hour on such machines."""
        layout = self.fit.candidate.layout
        return offer.costs_usd_hour(count=layout.count, nodes=layout.nodes)

    def floor(self, question: Question, *, sort: Sort) -> tuple[object, ...]:
        """Return a sort key that none of its choices comes before, without computing how fast it is."""
        (_, _, least), most = next(self.priced()), self.fit.ceiling(question)
        usd = least / 3600 * 1e6 / most.output_tokens_s if most else 0.0
        candidate = self.fit.candidate
        return bool(candidate.lowered), _aim(most, usd, sort=sort), least, candidate.layout.devices

    def ranked(self, question: Question, *, sort: Sort) -> Iterator[_Ranked]:
        """Yield the first offers of the group, each with the sort key of its speed and price."""
        layout, speed = self.fit.candidate.layout, self.fit.speed(question)
        for place, offer, price in self.priced():
            choice = Choice(
                offer,
                layout.nodes,
                price,
                usd_per_million_tokens=token_cost(speed, price_usd_hour=price).output_usd if speed else None,
                output_tokens_s=speed.output_tokens_s if speed else None,
                reads=question.facts.pools,
                count=layout.count,
                lowered=self.fit.job.precision if self.fit.candidate.lowered else "",
            )
            yield _Ranked(_rank(self, speed, place, choice, sort=sort), self, speed, choice)


@frozen
class _Ranked:
    """One offer of a group with its sort key, and how fast it serves."""

    key: tuple[object, ...]
    option: _Option
    speed: Throughput | None
    choice: Choice


def _best(question: Question, options: Sequence[_Option], *, sort: Sort) -> list[_Ranked]:
    """Return the first choices of all options, in their order.

    How fast a group serves is the dearest answer: only groups whose floor comes before the last
    choice that would be shown are asked for it.
    """
    floors = sorted((each.floor(question, sort=sort), at) for at, each in enumerate(options))
    found: list[_Ranked] = []
    for floor, at in floors:
        if len(found) == SHOWN and found[-1].key < floor:
            break
        found = sorted([*found, *options[at].ranked(question, sort=sort)], key=_key)[:SHOWN]
    return found


def _key(ranked: _Ranked) -> tuple[object, ...]:
    return ranked.key


def place_model(
    question: Question,
    demand: Demand,
    index: OfferIndex,
    accelerators: Mapping[str, Accelerator],
    *,
    what: str,
    where: Position | None = None,
    sort: Sort = "price",
    prices: Sequence[PriceRow] = (),
) -> tuple[Placed, Served]:
    """Choose where a model is served, and how.

    Args:
        question: What is served at which load.
        demand: What the spec says of machines and places; its accelerators narrow the choice.
        index: All offers.
        accelerators: The catalog's, by name.
        what: The spec in words.
        where: Its place in the source.
        sort: What the best offer is best in.
        prices: The price list, to name what would do where nothing here does.

    Raises:
        NothingFits: no offer holds the model; carries the reasons, and the nearest change.
    """
    asked = replace(demand, accelerator=any_of(demand.accelerator), nodes=1, spans=True)
    index = index.roomy(asked)
    matched = index.match(asked)
    groups = group(matched.fitting, demand, accelerators, only_cpu=question.only_cpu)
    if question.engine in CPU_ENGINES and demand.accelerator is None:
        accelerators = {**accelerators, **with_cpus(groups, index.match(replace(demand, nodes=1)).fitting)}
    options = _options(question, demand, groups, accelerators)

    def dearer() -> list[WhyNot]:
        return [*groups.dear, *_dearer(question, demand, matched, accelerators)]

    def why_not() -> tuple[WhyNot, ...]:
        fallen = [each for each in groups.fallen if each.reason != OVER_PRICE]
        return by_price([*(each.why_not() for each in fallen), *dearer()])

    if not options:
        wanted = demand.accelerator
        objected = question.objections(wanted, accelerators)
        job = replace(question.job, context=question.model.context or question.least_context)
        # where an engine or the model itself said no, machines are not what is missing
        stuck = next((each.fix for each in objected if each.fix), "")
        near = (
            ""
            if groups.declined or stuck
            else elsewhere(
                question.facts, job, wanted, accelerators, prices, most_usd_hour=demand.max_price_usd_hour
            )
        )
        raise NothingFits(
            f"no offer fits {what}",
            needs="; ".join([needs_text(question), *(each.text for each in objected)]),
            refused=refusals(matched, groups.refused),
            why_not=why_not(),
            where=where,
            fix=stuck or _fix(question, groups, dearer(), matched, asked),
            elsewhere=near,
        )
    ranked = _best(question, options, sort=sort)
    best = ranked[0]
    choices = tuple(replace(each.choice, chosen=each is best) for each in ranked)
    fitting = sum(len(option.offers) for option in options)
    refused = refusals(matched, groups.refused)
    tries = tries_of((offer for _, offer in best.option.cheapest()), demand)
    costs = tuple(map(best.option.cost, tries))
    placed = Placed(choices, fitting, refused, backends_of(tries), tries, why_not, costs)
    return placed, best.option.fit.served(question, best.speed)


def _dearer(
    question: Question, demand: Demand, matched: Matched, accelerators: Mapping[str, Accelerator]
) -> Iterator[WhyNot]:
    """Yield the groups that hold the model and are refused for their price alone."""
    groups = group(matched.over_price, demand, accelerators, only_cpu=question.only_cpu)
    for option in _options(question, replace(demand, max_price_usd_hour=None), groups, accelerators):
        yield _dear(option.fit.candidate, option.offers)


def _dear(candidate: Candidate, offers: OfferSet) -> WhyNot:
    layout = candidate.layout
    prices = [o.costs_usd_hour(count=layout.count, nodes=layout.nodes) for o in offers]
    return over_price(candidate.accelerator.name, layout.count, prices, nodes=layout.nodes)


def _options(
    question: Question, demand: Demand, groups: Groups, accelerators: Mapping[str, Accelerator]
) -> list[_Option]:
    """Size every group once; count the offers of those that do not hold the model by reason."""
    devices = sorted({name for name, _ in groups.offers})
    counts = sorted({count for _, count in groups.offers})
    if not devices:
        return []
    found = choose(
        question.facts, question.job, [accelerators[name] for name in devices],
        counts=counts, max_nodes=MOST_NODES, least_context=question.least_context, makes=maker(question),
        takes=taker(question), keeps=keeper(question), reads=reader(question),
        fixed=question.degrees, slices=groups.slices,
    )  # fmt: skip
    fell = {(m.accelerator.name, m.count): m for m in reversed(found.missed) if m.nodes == 1}
    best = _by_place(found)
    formats = {candidate.needs.job.precision for candidate in found.candidates}
    known = _Known({each: work(question.facts, each) for each in formats})
    options: list[_Option] = []
    for place, offers in groups.offers.items():
        left = offers
        refusal = fell[place].reason if place in fell else TOO_LITTLE
        for candidate in best.get(place, ()):
            layout = candidate.layout
            joined = (place[0], layout.nodes, place[1]) in groups.slices
            spanned = spanning(left, layout.nodes, demand, joined=joined)
            able = affordable(spanned, count=layout.count, nodes=layout.nodes, demand=demand)
            if spanned and not able:
                refusal = OVER_PRICE
                groups.dear.append(_dear(candidate, spanned))
            fit = _fit_of(question, candidate, known) if able else None
            if isinstance(fit, _Fit):
                options.append(_Option(fit, able))
                left -= able
            elif fit is not None and not (layout.nodes > 1 and place in fell):
                refusal = fit
                groups.declined[fit] += len(able)
        if left:
            groups.refused[refusal] += len(left)
            groups.fallen.append(Fallen(*place, left, refusal, fell.get(place)))
    return options


def _by_place(found: Choices) -> dict[tuple[str, int], list[Candidate]]:
    """Return for each accelerator and count the best candidate of each number of nodes, fewest first."""
    best: dict[tuple[str, int], dict[int, Candidate]] = {}
    for each in found.candidates:
        place = (each.accelerator.name, each.layout.count)
        best.setdefault(place, {}).setdefault(each.layout.nodes, each)
    return {place: [of[nodes] for nodes in sorted(of)] for place, of in best.items()}


@frozen
class _Known:
    """What is known of one question so far, by all that can tell the answers apart."""

    counted: Mapping[str, Work]
    sizes: dict[tuple[Layout, str, str, tuple[int, bool]], Size] = field(default_factory=dict)
    engines: dict[tuple[Kind, Layout, str, int, int], str] = field(default_factory=dict)
    """The engine for every job that one took; a refusal names the device, so that it is asked for again."""

    def size(self, candidate: Candidate) -> Size:
        """Return the memory of a candidate, the same object for devices that sizing cannot tell apart."""
        needs, device = candidate.needs, candidate.accelerator
        of = candidate.layout, needs.job.engine, needs.job.precision, needs.sees(device)
        found = self.sizes.get(of)
        if found is None:
            found = self.sizes[of] = needs.on(device)
        return found


def _fit_of(question: Question, candidate: Candidate, known: _Known) -> _Fit | str:
    """Return the model on one set of accelerators, or why no engine serves it there."""
    job, size = candidate.needs.job, known.size(candidate)
    if (computed := computed_in(question, candidate)) != job.precision:
        job = replace(job, precision=computed)
    device = None if is_cpu(candidate.accelerator) else candidate.accelerator
    asked = kind_of(device), candidate.layout, computed, size.max_num_seqs, size.max_num_batched_tokens
    name = known.engines.get(asked)
    if name is None:
        name, refusal = engine_for(question, engine_job(question, candidate, job, size))
        if name is None:
            return refusal
        known.engines[asked] = name
    if name != job.engine:  # which was sized as the first that is asked: another has laws of its own
        sized = serving_needs(question.facts, replace(candidate.needs.job, engine=name))
        candidate = replace(candidate, needs=sized)
        job, size = replace(job, engine=name), known.size(candidate)
        if not size.fits:
            return TOO_LITTLE
    return _Fit(candidate, name, job, size, known.counted[candidate.needs.job.precision])


def _rank(
    option: _Option, speed: Throughput | None, place: int, choice: Choice, *, sort: Sort
) -> tuple[object, ...]:
    """Return the sort key: nothing lowered first, then what was asked for, then the rank of the offer."""
    offer, candidate = choice.offer, option.fit.candidate
    return (
        bool(candidate.lowered), _aim(speed, choice.usd_per_million_tokens or 0.0, sort=sort),
        choice.price_usd_hour, candidate.layout.devices, offer.vram_bytes, place, candidate.layout.count,
    )  # fmt: skip


def _aim(speed: Throughput | Ceiling | None, usd_per_million_tokens: float, *, sort: Sort) -> float:
    """Return what the best offer has the least of, infinite where nothing is known of its speed."""
    match sort:
        case _ if speed is None:
            return math.inf
        case "throughput":
            return -speed.output_tokens_s
        case "latency":
            return speed.ttft_s + speed.tpot_s * 100
        case "price":
            return usd_per_million_tokens


def _fix(
    question: Question, groups: Groups, dearer: Sequence[WhyNot], matched: Matched, demand: Demand
) -> str:
    """Return what to change: what engines ask for, the price, else what the largest set lacks."""
    if question.only_cpu and question.engine not in CPU_ENGINES:
        return "serve a small model from a CPU with engine: transformers, or leave gpu: 0 out"
    if groups.declined:
        return max(groups.declined, key=lambda said: (groups.declined[said], said))
    if dearer:
        near = min(dearer, key=lambda each: (each.price_usd_hour, each.accelerator, each.count))
        return f"{near.machines} would hold it with {near.change}"
    missed = [each.missed for each in groups.fallen if each.missed]
    by_room = sorted(
        missed, key=lambda m: (-m.accelerator.visible_bytes * m.count * m.nodes, m.accelerator.name)
    )
    for each in by_room:
        change: Change | None = each.change()
        if change is not None and change.field != "nodes":  # which is no field of a service
            return f"{each.count} × {each.accelerator.name} would hold it with {change}"
    if missed:
        best = by_room[0]
        name = f"{best.count} × {best.accelerator.name}"
        if best.reason.startswith("no "):
            return f"{name} has {best.reason}: name other accelerators, or weights in another format"
        return f"the largest set offered, {name}, is too small: allow more places"
    if matched.over_price:
        return "what is over max_price does not hold it either: allow more places"
    general = advise(demand, replace(matched, refused=refusals(matched, groups.refused)))
    pools = question.facts.pools  # which no engine for CPUs serves
    if not pools and general == NEEDS_ACCELERATORS:
        return f"{general}, or serve a small model from a CPU with engine: transformers"
    return general
