"""A model to serve and the offers there are: which set of accelerators, which engine, at what cost.

Offers are first matched by what the spec says of places, prices and machines. What remains is
grouped by accelerator and count, each group is sized once, and of those that hold the model the
cheapest per token wins: as published before anything lowered, then dollars per million tokens,
then the smaller set.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field, replace
from itertools import islice

from orchestrator.backend import Mount, Offer
from orchestrator.catalog import Accelerator, ModelFacts, PriceRow, count_parameters
from orchestrator.engines import Adapter, EngineLaunch, Kind, Source, Stated, engine, kind_of
from orchestrator.engines import ServingJob as EngineJob
from orchestrator.engines.job import KvDtype, Precision, room_for
from orchestrator.errors import NothingFits, Position, WhyNot
from orchestrator.frozen import frozen
from orchestrator.planner.choose import (
    TOO_LITTLE,
    Candidate,
    Change,
    Choices,
    Keeps,
    Makes,
    Takes,
    choose,
    once_per_kind,
)
from orchestrator.planner.compose import environment
from orchestrator.planner.cost import token_cost
from orchestrator.planner.cpu import ENGINES as CPU_ENGINES
from orchestrator.planner.cpu import is_cpu, with_cpus
from orchestrator.planner.demand import AcceleratorDemand, Demand
from orchestrator.planner.groups import Groups, affordable, any_of, group, refusals, spanning
from orchestrator.planner.index import Matched, OfferIndex, OfferSet
from orchestrator.planner.match import OVER_PRICE
from orchestrator.planner.parallelism import Degrees, Layout
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
from orchestrator.planner.sizing import Measured, ServingJob, Size, serving_needs
from orchestrator.planner.sizing.weights import published_format, weight_bytes
from orchestrator.planner.sources import adapter_source, model_source
from orchestrator.planner.throughput import Ceiling, Throughput, serving_ceiling, serving_throughput
from orchestrator.planner.throughput.work import Work, work
from orchestrator.planner.why import Fallen, Objection, by_price, elsewhere, objections, over_price
from orchestrator.spec.models import Adapter as AdapterSpec
from orchestrator.spec.models import Model, Service, Traffic
from orchestrator.units import format_bytes

AUTO_ENGINES = ("vllm", "sglang", "transformers")
"""Engines that ``auto`` tries, in this order; NIM needs a licence, and TGI has ended upstream."""

LEAST_CONTEXT = 4096
"""Tokens a request can hold at least where the spec states no context."""

MOST_NODES = 4
"""Machines that one replica may span."""


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
class Question:
    """What is asked: the model, the load, and what the spec says of how."""

    facts: ModelFacts
    model: Model
    traffic: Traffic
    engine: str = "auto"
    version: str | None = None
    args: tuple[str, ...] = ()
    served_name: str | None = None
    image: str | None = None
    env: tuple[tuple[str, str], ...] = ()
    secrets: tuple[tuple[str, str], ...] = ()
    port: int | None = None
    bare: bool = False
    """Whether it runs on machines that have the engine installed, without images and mounts."""
    only_cpu: bool = False
    """Whether the spec asks for no accelerator, which is more than to name none."""

    @property
    def engines(self) -> tuple[str, ...]:
        """Engines to ask, in this order."""
        return AUTO_ENGINES if self.engine == "auto" else (self.engine,)

    @property
    def request_tokens(self) -> int:
        """Tokens that a typical request takes up: its prompt and, where there is one, its answer."""
        return self.traffic.input_tokens + (0 if self.facts.pools else self.traffic.output_tokens)

    @property
    def input_tokens(self) -> int:
        """Tokens of a typical prompt, none of which is beyond what a model that pools takes."""
        asked, longest = self.traffic.input_tokens, self.facts.context
        return min(asked, longest) if self.facts.pools and longest else asked

    @property
    def stated(self) -> Stated:
        """What the user's arguments say of the job, read as the first engine that knows them does."""
        said = (engine(name).states(self.args) for name in self.engines) if self.args else ()
        return next((found for found in said if found != Stated()), Stated())

    @property
    def degrees(self) -> Degrees:
        """Degrees of parallelism that the user's arguments fix."""
        stated = self.stated
        return Degrees(stated.tensor, stated.pipeline, stated.data)

    @property
    def job(self) -> ServingJob:
        """The question as sizing asks it; degrees of parallelism are found there.

        What the user's arguments say is asked as well: the engine will be told it.
        """
        measured, stated = self.model.measured, self.stated
        contexts = [c for c in (self.model.context, stated.context_tokens) if c]
        return ServingJob(
            engine="vllm" if self.engine == "auto" else self.engine,
            engine_version=self.version,
            precision=self.model.quantization or self.model.precision,
            kv_cache=(stated.kv_dtype or "auto") if self.model.kv_cache == "auto" else self.model.kv_cache,
            context=max(contexts, default=None),
            memory_utilization=stated.memory_utilization,
            max_num_seqs=stated.max_num_seqs,
            max_num_batched_tokens=stated.max_num_batched_tokens,
            concurrency=self.traffic.concurrency,
            adapters=self.model.max_adapters or len(self.model.adapters),
            adapter_rank=room_for(adapter.rank for adapter in self.model.adapters),
            measured=Measured(
                weights_bytes=measured.weights,
                activations_bytes=measured.activations,
                non_torch_bytes=measured.non_torch,
                graphs_bytes=measured.graphs,
            )
            if measured
            else Measured(),
        )

    def objections(
        self, wanted: AcceleratorDemand | None, accelerators: Mapping[str, Accelerator]
    ) -> tuple[Objection, ...]:
        """Return what of the spec contradicts itself or its model, each with its numbers.

        ``wanted`` are the accelerators it names, ``accelerators`` the catalog's by name.
        """
        against = [Objection("args", text) for text in self._against_args()]
        against += [Objection("traffic", text) for text in self._against_traffic()]
        return tuple(against) + objections(self.facts, self.job, wanted, accelerators, fixed=self.degrees)

    def unread_args(self) -> str | None:
        """Say why no engine can be given the user's arguments, None where one can."""
        own = self.image is not None
        said = [engine(name).objects(self.args, version=self.version, own_image=own) for name in self.engines]
        return None if None in said else said[0]

    def _against_args(self) -> Iterator[str]:
        stated, model, load = self.stated, self.model, self.traffic
        longest, asked = stated.context_tokens, self.request_tokens
        at_once, kept = stated.max_num_seqs, {stated.kv_dtype or "auto", model.kv_cache} - {"auto"}
        if longest and model.context and longest < model.context:
            yield f"args hold requests of {longest:,} tokens, fewer than the context of {model.context:,}"
        elif longest and longest < asked:
            yield f"args hold requests of {longest:,} tokens, fewer than the traffic's {asked:,}"
        if at_once and at_once < load.concurrency:
            yield f"args run {at_once:,} requests at once, fewer than the traffic's {load.concurrency:,}"
        if len(kept) > 1:
            yield f"args keep the KV cache in {stated.kv_dtype}, kv_cache says {model.kv_cache}"

    def _against_traffic(self) -> Iterator[str]:
        """Yield what of a stated load no request can be; what args hold is told of them."""
        said = self.traffic.model_fields_set & {"input_tokens", "output_tokens"}
        longest, asked = self.model.context or self.facts.context, self.request_tokens
        if said and longest and longest < asked and not (self.facts.pools or self.stated.context_tokens):
            whose = "a context of" if self.model.context else "the model's"
            yield f"requests of {asked:,} tokens are beyond {whose} {longest:,}"

    def mounts(self) -> tuple[Mount, ...]:
        """Return what the container sees of this machine: a local model and local adapters."""
        if self.bare:
            return ()
        _, model = model_source(self.model)
        adapters = [mount for each in self.model.adapters for mount in adapter_source(each)[1]]
        return (*model, *adapters)


def question_of(spec: Service, facts: ModelFacts, *, bare: bool = False) -> Question:
    """Return what a service asks; ``bare`` of machines that have its engine installed.

    Raises:
        ValueError: the service names no model.
    """
    if spec.model is None:
        raise ValueError(f"service {spec.name!r} names no model")
    env, secrets = environment(spec.env)
    only_cpu = spec.resources.asks_for_no_gpu
    named = "transformers" if only_cpu and spec.engine == "auto" else spec.engine
    asked = Question(
        facts, spec.model, spec.traffic, named, spec.engine_version, arguments(spec.args),
        image=spec.image, env=env, secrets=secrets, bare=bare, only_cpu=only_cpu,
        port=spec.port.container_port if spec.port else None,
    )  # fmt: skip
    return replace(asked, facts=asked.stated.of(facts))


def arguments(args: Mapping[str, object]) -> tuple[str, ...]:
    """Return a mapping of arguments as an engine's command line takes them.

    >>> arguments({"max-model-len": 8192, "enforce_eager": True, "seed": None})
    ('--max-model-len', '8192', '--enforce-eager')
    >>> arguments({"enable_prefix_caching": False, "limit_mm_per_prompt": {"image": 2}})
    ('--no-enable-prefix-caching', '--limit-mm-per-prompt', '{"image": 2}')
    """
    words: list[str] = []
    for name, value in args.items():
        flag = flag_of(name)
        if value is True:
            words.append(flag)
        elif value is False:
            words.append(f"--no-{flag[2:]}")
        elif isinstance(value, list):
            words += [flag, *map(_word, value)]
        elif value is not None:
            words += [flag, _word(value)]
    return tuple(words)


def flag_of(name: str) -> str:
    """Return the option that a key of ``args`` means.

    >>> flag_of("max_model_len"), flag_of("--seed")
    ('--max-model-len', '--seed')
    """
    return "--" + name.lstrip("-").replace("_", "-")


def _word(value: object) -> str:
    return json.dumps(value) if isinstance(value, dict | list) else str(value)


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
        job = replace(job, precision=_computed(question, self.candidate))
        written = _engine_job(question, self.candidate, job, size)
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
            notes=(*_exchanged(question, self.candidate), *launch.warnings),
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
        job = replace(question.job, context=question.model.context or _least_context(question))
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
        counts=counts, max_nodes=MOST_NODES, least_context=_least_context(question), makes=_maker(question),
        takes=_taker(question), keeps=_keeper(question), reads=_reader(question),
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


def _maker(question: Question) -> Makes:
    """Return whether an engine makes a format that was not published, asked once per kind of device."""

    def makes(device: Accelerator, precision: str) -> bool:
        return _is_served(question, replace(_bare(question, device), precision=_precision(precision)))

    return once_per_kind(makes)


def _taker(question: Question) -> Takes:
    """Return whether an engine serves the model cut so, asked once per kind of device and layout."""

    def takes(device: Accelerator, layout: Layout) -> bool:
        return _is_served(question, replace(
            _bare(question, device), count=layout.count, nodes=layout.nodes, tensor=layout.tensor,
            pipeline=layout.pipeline, data=layout.data, expert=layout.expert,
        ))  # fmt: skip

    return once_per_kind(takes)


def _keeper(question: Question) -> Keeps:
    """Return whether an engine keeps the KV cache so, asked once per kind of device."""

    def keeps(device: Accelerator, kv_cache: KvDtype) -> bool:
        return _is_served(question, replace(_bare(question, device), kv_dtype=kv_cache))

    return once_per_kind(keeps)


def _reader(question: Question) -> Makes:
    """Return whether an engine serves weights made in 4 bits, asked once per kind of device."""

    def reads(device: Accelerator, _precision: str) -> bool:
        bare = _bare(question, device)
        made = (replace(question.facts, quantization=method) for method in ("awq", "gptq"))
        return any(_is_served(question, replace(bare, model=each)) for each in made)

    return once_per_kind(reads)


def _bare(question: Question, device: Accelerator) -> EngineJob:
    return EngineJob(
        question.facts, model_source(question.model)[0], device,
        image=question.image, version=question.version, secrets=question.secrets,
    )  # fmt: skip


def _is_served(question: Question, job: EngineJob) -> bool:
    return any(engine(name).refuses(job) is None for name in question.engines)


def _least_context(question: Question) -> int:
    """Return the tokens a request must be able to hold where the spec states no context."""
    return max(LEAST_CONTEXT, question.request_tokens)


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
    if (computed := _computed(question, candidate)) != job.precision:
        job = replace(job, precision=computed)
    device = None if is_cpu(candidate.accelerator) else candidate.accelerator
    asked = kind_of(device), candidate.layout, computed, size.max_num_seqs, size.max_num_batched_tokens
    name = known.engines.get(asked)
    if name is None:
        name, refusal = _engine_for(question, _engine_job(question, candidate, job, size))
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


def _engine_for(question: Question, job: EngineJob) -> tuple[str | None, str]:
    """Return the first engine that serves ``job``, or None and why the first that was asked does not."""
    refusal = ""
    for name in question.engines:
        reason = engine(name).refuses(job)
        if reason is None:
            return name, ""
        refusal = refusal or f"{name}: {reason}"
    return None, refusal


def _computed(question: Question, candidate: Candidate) -> str:
    """Return the format that is computed in: fp16 where 16 bits are left open and bf16 does not exist."""
    precision, native = candidate.needs.job.precision, candidate.accelerator.native
    open_16_bits = question.model.precision == "auto" and precision == "bf16"
    return "fp16" if open_16_bits and "bf16" not in native and "fp16" in native else precision


def _exchanged(question: Question, candidate: Candidate) -> tuple[str, ...]:
    computed, published = _computed(question, candidate), candidate.needs.job.precision
    if computed == published:
        return ()
    return (f"{computed} in place of {published}, which {candidate.accelerator.name} does not compute",)


def _engine_job(question: Question, candidate: Candidate, job: ServingJob, size: Size) -> EngineJob:
    layout, model = candidate.layout, question.model
    default = size.memory_utilization if job.memory_utilization else None
    return EngineJob(
        model=question.facts,
        source=Source(model.id, model.revision) if question.bare else model_source(model)[0],
        accelerator=None if is_cpu(candidate.accelerator) else candidate.accelerator,
        count=layout.count,
        nodes=layout.nodes,
        tensor=layout.tensor,
        pipeline=layout.pipeline,
        data=layout.data,
        expert=layout.expert,
        precision=_precision(job.precision),
        quantization=model.quantization,
        kv_dtype=model.kv_cache,
        kv_cache_bytes=size.device.kv_cache_bytes,
        context_tokens=job.context,
        max_num_seqs=size.max_num_seqs or None,
        max_num_batched_tokens=size.max_num_batched_tokens or None,
        memory_utilization=default,
        adapters=tuple(_adapter(question, each) for each in model.adapters),
        adapter_slots=model.max_adapters or 0,
        served_name=question.served_name,
        port=question.port,
        image=question.image,
        version=question.version,
        args=question.args,
        env=question.env,
        secrets=question.secrets,
        load_bytes=size.device.weights_bytes * layout.devices,
    )


def _adapter(question: Question, adapter: AdapterSpec) -> Adapter:
    here = Source(adapter.id, adapter.revision)
    return Adapter(adapter.name, here if question.bare else adapter_source(adapter)[0], adapter.rank)


def _precision(name: str) -> Precision:
    """Return a format as engines are told it; the spelling of a checkpoint is its own affair.

    >>> _precision("fp8"), _precision("fp8_block128")
    ('fp8', 'auto')
    """
    known: tuple[Precision, ...] = ("auto", "bf16", "fp16", "fp8", "int8", "int4", "fp4")
    return next((precision for precision in known if precision == name), "auto")


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


def needs_text(question: Question) -> str:
    """Return what the model needs in a phrase: its weights, and the tokens it must hold at once."""
    job = question.job
    tokens = (job.context or question.request_tokens) * job.concurrency
    precision = published_format(question.facts) if job.precision == "auto" else job.precision
    weights = round(weight_bytes(question.facts, precision).total)
    cache = "" if question.facts.bidirectional else f", and a KV cache of {tokens:,} tokens"
    return f"{format_bytes(weights)} of weights{cache}"


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
