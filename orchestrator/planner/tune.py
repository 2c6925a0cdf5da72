"""A model to tune and the offers there are: which accelerators, how the batch is cut, at what cost.

The same road as for a served model: offers are grouped by accelerator and count, each group is
sized once, and of those that hold the run the cheapest per trained token wins.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice

from orchestrator.backend import Mount, Offer
from orchestrator.catalog import Accelerator, ModelFacts, count_parameters
from orchestrator.engines import EngineLaunch, trainer
from orchestrator.engines.buckets import PACKAGES, is_bucket, scheme_of
from orchestrator.engines.nodes import HOME
from orchestrator.engines.tuning import Dataset, Tuned, TuningJob
from orchestrator.errors import NothingFits, Position, Refusal, WhyNot
from orchestrator.frozen import frozen
from orchestrator.planner.choose import TOO_LITTLE
from orchestrator.planner.choose_training import TrainingCandidate, TrainingMissed, choose_training
from orchestrator.planner.compose import environment
from orchestrator.planner.course import Course, Smaller, change_of, course_of, smaller_of
from orchestrator.planner.cpu import is_cpu, with_cpus
from orchestrator.planner.demand import Demand
from orchestrator.planner.groups import Groups, affordable, any_of, group, refusals, spanning
from orchestrator.planner.index import Matched, OfferIndex, OfferSet
from orchestrator.planner.match import OVER_PRICE
from orchestrator.planner.parallelism import MOST_NODES
from orchestrator.planner.plan import SHOWN, Choice, Placed, advise, backends_of, tries_of
from orchestrator.planner.sizing import Size, TrainingJob
from orchestrator.planner.sizing.values import GENERATES, Method, Tuning, kept_by_trainers
from orchestrator.planner.sources import data_source, model_source, output_mount, placed
from orchestrator.planner.throughput import TrainingSpeed, training_throughput
from orchestrator.planner.throughput.work import Work, work
from orchestrator.planner.why import by_price, over_price
from orchestrator.spec.forms import nearest
from orchestrator.spec.models import Task, Train
from orchestrator.spec.rules import Finding
from orchestrator.units import GIB

AUTO_TRAINER = "trl"
MOST_ADVISED = 16
"""Machines that are spoken of where fewer do not hold a run."""

_TUNINGS: Mapping[str, Tuning] = {"none": "full", "lora": "lora", "qlora": "qlora"}


@frozen
class Trained:
    """A model as the plan would tune it on one set of accelerators."""

    facts: ModelFacts
    engine: str
    version: str
    candidate: TrainingCandidate
    size: Size
    speed: TrainingSpeed | None
    """None where the catalog does not know how fast the accelerator is."""
    launch: EngineLaunch
    mounts: tuple[Mount, ...]
    method: str
    adapter: str
    batch_size: int
    course: Course
    rows: int | None
    epochs: float
    smaller: Smaller | None = None

    @property
    def parameters(self) -> int:
        """How many parameters the model has."""
        return self.facts.parameters or count_parameters(self.facts)


@frozen
class TuningQuestion:
    """What is asked: the model, the data, and what the spec says of how."""

    run: str
    facts: ModelFacts
    train: Train
    nodes: int | None
    """None leaves the number of machines to the plan."""
    image: str | None
    env: tuple[tuple[str, str], ...]
    secrets: tuple[tuple[str, str], ...]
    bare: bool = False
    """Whether it runs on machines that have the trainer installed, without images and mounts."""
    on_cpu: bool = False
    """Whether a machine without accelerators will do."""
    only_cpu: bool = False
    """Whether no other will: the spec asks for none."""
    resume: bool = False
    """Whether checkpoints that an earlier life of the run left are gone on from."""
    rows: int | None = None
    """Examples in the data set, where it could be counted."""

    @property
    def engine(self) -> str:
        """The program that trains."""
        return AUTO_TRAINER if self.train.engine == "auto" else self.train.engine

    @property
    def job(self) -> TrainingJob:
        """The question as sizing asks it; devices and micro batch are found there."""
        adapter = self.train.adapter
        method: Method = self.train.method
        tuning = _TUNINGS[adapter.type]
        state_dtype, loss_kernel = kept_by_trainers(tuning, method)
        return TrainingJob(
            engine=self.engine,
            tuning=tuning,
            method=method,
            sequence_length=self.train.sequence_length,
            state_dtype=state_dtype,
            loss_kernel=loss_kernel,
            rank=adapter.rank,
            targets=adapter.targets,
            reference=_reference(method, self.train.args),
        )

    @property
    def written(self) -> TuningJob:
        """What the spec says of the run, as its trainer is asked; devices and batch are found for it."""
        train, adapter = self.train, self.train.adapter
        home = HOME.lstrip("/") if self.bare else HOME
        places = placed(train, home=home, mounted=not self.bare)
        return TuningJob(
            model=self.facts,
            source=places.model,
            dataset=Dataset(train.dataset, places.data),
            output=places.output,
            bucket=train.output if train.output and is_bucket(train.output) else "",
            fetched=places.fetched,
            method=train.method,
            tuned=Tuned(adapter.type, adapter.rank, adapter.alpha, adapter.dropout, adapter.targets),
            sequence_tokens=train.sequence_length,
            epochs=train.epochs,
            resume=self.resume,
            merge=train.merge,
            report=train.report,
            home=home,
            image=self.image,
            args=dict(train.args),
            env=self.env,
            secrets=self.secrets,
        )

    def findings(self) -> tuple[Finding, ...]:
        """Return what is wrong with the spec wherever it would run."""
        return (*self._unknown_places(), *trainer(self.engine).findings(self.written))

    def _unknown_places(self) -> Iterator[Finding]:
        named = {"dataset": self.train.dataset, "output": self.train.output or ""}
        for field, text in named.items():
            if (scheme := scheme_of(text)) and not is_bucket(text):
                known = ", ".join(f"{each}://" for each in PACKAGES)
                fix = nearest(f"{scheme}://", {f"{each}://": f"{each}://" for each in PACKAGES})
                what = f"{scheme}:// is no kind of bucket: those are {known}"
                yield Finding(f"train.{field}", what, fix)

    def mounts(self) -> tuple[Mount, ...]:
        """Return what the container sees of this machine: model, data and output."""
        if self.bare:
            return ()
        _, model = model_source(self.train.model)
        _, data = data_source(self.train.dataset)
        output = output_mount(self.train.output, self.run)
        return (*model, *data, *([output] if output else []))


def _reference(method: Method, args: Mapping[str, object]) -> bool | None:
    """Return whether the trainer's own ``args`` ask for a reference in the run, None where they do not say.

    GRPO and RLOO have one with a ``beta`` above 0; DPO and KTO have none in the run where its probabilities
    are computed before it (TRL 1.16: GRPOConfig, DPOConfig, KTOConfig).
    """
    beta, before = args.get("beta"), args.get("precompute_ref_log_probs")
    if method in GENERATES and isinstance(beta, int | float):
        return beta > 0
    return False if method in ("dpo", "kto") and before is True else None


def tuning_question_of(
    spec: Task, facts: ModelFacts, *, bare: bool = False, resume: bool = False
) -> TuningQuestion:
    """Return what a training task asks; ``bare`` of machines that have its trainer installed.

    Raises:
        ValueError: the task trains nothing.
    """
    if spec.train is None:
        raise ValueError(f"task {spec.name!r} trains nothing")
    env, secrets = environment(spec.env)
    nodes = spec.nodes if isinstance(spec.nodes, int) else None
    gpu, only_cpu = spec.resources.gpu, spec.resources.asks_for_no_gpu
    return TuningQuestion(
        spec.name, facts, spec.train, nodes, spec.image, env, secrets,
        bare=bare, on_cpu=only_cpu if gpu else bare, only_cpu=only_cpu, resume=resume,
    )  # fmt: skip


@frozen
class _Fit:
    """One set of accelerators that holds the run, as the trainer would run it there."""

    candidate: TrainingCandidate
    written: TuningJob
    speed: TrainingSpeed | None
    course: Course


@frozen
class _Option:
    """One group of offers on which the run can take place."""

    fit: _Fit
    offers: OfferSet

    def choices(self) -> Iterator[tuple[int, Choice]]:
        """Yield the first offers of the group with their ranks: within it the cheapest is best."""
        candidate, speed = self.fit.candidate, self.fit.speed
        for place, offer in islice(self.cheapest(), SHOWN):
            price = self.cost(offer)
            cost = price / 3600 / speed.tokens_s * 1e6 if speed else None
            rate = speed.tokens_s if speed else None
            choice = Choice(
                offer,
                candidate.nodes,
                price,
                usd_per_million_tokens=cost,
                output_tokens_s=rate,
                count=candidate.count,
            )
            yield place, choice

    def cheapest(self) -> Iterator[tuple[int, Offer]]:
        """Yield the offers of the group with their ranks, cheapest first."""
        return self.offers.cheapest(self.cost)

    def cost(self, offer: Offer) -> float:
        """Return what the job costs by the hour on such machines."""
        candidate = self.fit.candidate
        return offer.costs_usd_hour(count=candidate.count, nodes=candidate.nodes)


def place_training(
    question: TuningQuestion,
    demand: Demand,
    index: OfferIndex,
    accelerators: Mapping[str, Accelerator],
    *,
    what: str,
    where: Position | None = None,
) -> tuple[Placed, Trained]:
    """Choose where a model is tuned, and how.

    Args:
        question: What is trained on which data.
        demand: What the spec says of machines and places; its accelerators narrow the choice.
        index: All offers.
        accelerators: The catalog's, by name.
        what: The spec in words.
        where: Its place in the source.

    Raises:
        NothingFits: no offer holds the run; carries the reasons, and what the largest set lacks.
    """
    asked = replace(demand, accelerator=any_of(demand.accelerator), nodes=1)
    index = index.roomy(asked)
    matched = index.match(asked)
    groups = group(matched.fitting, demand, accelerators, only_cpu=question.only_cpu)
    if question.on_cpu:
        found = with_cpus(groups, index.match(replace(demand, nodes=1)).fitting)
        accelerators = {**accelerators, **found}
    options, missed = _options(question, demand, groups, accelerators)
    refused = refusals(matched, groups.refused)

    def why_not() -> tuple[WhyNot, ...]:
        return by_price([*groups.dear, *_dearer(question, demand, matched, accelerators)])

    if not options:
        dearer = why_not()
        raise NothingFits(
            f"no offer fits {what}",
            needs=_needs(question),
            refused=refused,
            why_not=dearer,
            where=where,
            fix=_fix(question, missed, groups.declined, dearer) or _general(asked, matched, refused),
        )
    ranked = sorted(
        ((option, place, choice) for option in options for place, choice in option.choices()),
        key=lambda found: _rank(*found),
    )
    best, _, first = ranked[0]
    least = {
        (name, count): min(o.costs_usd_hour(count=count) for o in offers)
        for (name, count), offers in groups.offers.items()
    }
    choices = tuple(replace(c, chosen=c is first) for *_, c in ranked[:SHOWN])
    fitting = sum(len(option.offers) for option in options)
    tries = tries_of((offer for _, offer in best.cheapest()), demand)
    placed = Placed(
        choices, fitting, refused, backends_of(tries), tries, why_not,
        tries_usd_hour=tuple(map(best.cost, tries)),
    )  # fmt: skip
    smaller = smaller_of(
        question.facts, question.job, [(m, least[m.accelerator.name, m.count]) for m in missed],
        accelerators, batch_size=question.train.batch_size, below_usd_hour=first.price_usd_hour,
    )  # fmt: skip
    return placed, replace(_trained(question, best.fit), smaller=smaller)


def _options(
    question: TuningQuestion, demand: Demand, groups: Groups, accelerators: Mapping[str, Accelerator]
) -> tuple[list[_Option], list[TrainingMissed]]:
    """Size every group once; count the offers of those that do not hold the run by reason."""
    devices = sorted({name for name, _ in groups.offers})
    if not devices:
        return [], []
    found = choose_training(
        question.facts, question.job, [accelerators[name] for name in devices],
        batch_size=question.train.batch_size, counts=sorted({count for _, count in groups.offers}),
        max_nodes=question.nodes or MOST_NODES,
    )  # fmt: skip
    wanted = [c for c in found.candidates if question.nodes in (None, c.nodes)]
    fell = {
        (m.accelerator.name, m.count): m for m in reversed(found.missed) if m.nodes == (question.nodes or 1)
    }
    counted = work(question.facts)
    options: list[_Option] = []
    missed: list[TrainingMissed] = []
    for place, offers in groups.offers.items():
        left = offers
        refusal = fell[place].reason if place in fell else TOO_LITTLE
        for candidate in (c for c in wanted if (c.accelerator.name, c.count) == place):
            spanned = spanning(left, candidate.nodes, demand)
            able = affordable(spanned, count=candidate.count, nodes=candidate.nodes, demand=demand)
            if spanned and not able:
                refusal = OVER_PRICE
                groups.dear.append(_dear(candidate, spanned))
            fit = _fit_of(question, candidate, counted) if able else None
            if isinstance(fit, _Fit):
                options.append(_Option(fit, able))
                left -= able
            elif fit is not None:
                refusal = fit
                groups.declined[fit] += len(able)
        if left:
            groups.refused[refusal] += len(left)
            missed += [fell[place]] if place in fell else []
    return options, missed


def _fit_of(question: TuningQuestion, candidate: TrainingCandidate, counted: Work) -> _Fit | str:
    """Return the run on one set of accelerators, or why the trainer cannot run it there."""
    written = _written(question, candidate)
    reason = trainer(question.engine).refuses(written)
    if reason is not None:
        return f"{question.engine}: {reason}"
    speed = _speed(candidate, counted)
    course = course_of(question.train, rows=question.rows, speed=speed)
    return _Fit(candidate, replace(written, save_steps=course.save_steps), speed, course)


def _written_for(question: TuningQuestion, accelerator: Accelerator) -> TuningJob:
    """Return what the spec says of the run as its trainer is asked for one device of a kind."""
    device = None if is_cpu(accelerator) else accelerator
    return replace(
        question.written,
        accelerator=device,
        precision="fp32" if device is None else "bf16" if "bf16" in device.native else "fp16",
        micro_batch=question.train.batch_size,
    )


def _written(question: TuningQuestion, candidate: TrainingCandidate) -> TuningJob:
    job = candidate.job
    trained = _trained_parameters(question, candidate)
    return replace(
        _written_for(question, candidate.accelerator),
        count=candidate.count,
        nodes=candidate.nodes,
        micro_batch=job.micro_batch,
        accumulation=candidate.accumulation,
        checkpointing=job.checkpointing != "none",
        sharding=job.sharding,
        rollout_share=job.rollout,
        checkpoint_bytes=trained * 12,  # weights and two moments, in 32 bits
    )


def _trained_parameters(question: TuningQuestion, candidate: TrainingCandidate) -> int:
    """Return how many parameters a checkpoint holds: all, or those of the adapter."""
    if question.train.adapter.type == "none":
        return question.facts.parameters or count_parameters(question.facts)
    return candidate.size().device.adapter_bytes // 4


def _speed(candidate: TrainingCandidate, counted: Work) -> TrainingSpeed | None:
    if candidate.accelerator.bandwidth_gbs is None:
        return None
    job = candidate.job
    return training_throughput(
        candidate.facts,
        candidate.accelerator,
        count=job.devices,
        sequence_length=job.sequence_length,
        micro_batch=job.micro_batch,
        tuning="pretrain" if job.method == "pretrain" else job.tuning,
        checkpointing=job.checkpointing != "none",
        method=job.method,
        reference=job.reference,
        rollout_share=job.rollout,
        accumulation=candidate.accumulation,
        counted=counted,
    )


def _rank(option: _Option, place: int, choice: Choice) -> tuple[object, ...]:
    candidate = option.fit.candidate
    cost = choice.usd_per_million_tokens
    return (
        math.inf if cost is None else cost, choice.price_usd_hour, candidate.nodes, candidate.count,
        choice.offer.vram_bytes, place,
    )  # fmt: skip


def _trained(question: TuningQuestion, fit: _Fit) -> Trained:
    runner = trainer(question.engine)
    return Trained(
        facts=question.facts,
        engine=question.engine,
        version=runner.versions[0],
        candidate=fit.candidate,
        size=fit.candidate.size(),
        speed=fit.speed,
        launch=_launch(question, fit),
        mounts=question.mounts(),
        method=question.train.method,
        adapter=question.train.adapter.type,
        batch_size=question.train.batch_size,
        course=fit.course,
        rows=question.rows,
        epochs=question.train.epochs,
    )


def _launch(question: TuningQuestion, fit: _Fit) -> EngineLaunch:
    launch = trainer(question.engine).launch(fit.written)
    return launch.installed() if question.bare else launch


def _needs(question: TuningQuestion) -> str:
    train = question.train
    kind = "every weight" if train.adapter.type == "none" else train.adapter.type
    return (
        f"{train.method} of {question.facts.id}, {kind}, {train.batch_size} sequences "
        f"of {train.sequence_length} tokens a step"
    )


def _dearer(
    question: TuningQuestion, demand: Demand, matched: Matched, accelerators: Mapping[str, Accelerator]
) -> Iterator[WhyNot]:
    """Yield the groups that hold the run and are refused for their price alone."""
    groups = group(matched.over_price, demand, accelerators, only_cpu=question.only_cpu)
    options, _ = _options(question, replace(demand, max_price_usd_hour=None), groups, accelerators)
    return (_dear(option.fit.candidate, option.offers) for option in options)


def _dear(candidate: TrainingCandidate, offers: OfferSet) -> WhyNot:
    prices = [offer.costs_usd_hour(count=candidate.count, nodes=candidate.nodes) for offer in offers]
    return over_price(candidate.accelerator.name, candidate.count, prices, nodes=candidate.nodes)


def _general(demand: Demand, matched: Matched, refused: tuple[Refusal, ...]) -> str:
    if matched.over_price:
        return "what is over max_price does not hold it either: allow more places"
    return advise(demand, replace(matched, refused=refused))


def _fix(
    question: TuningQuestion,
    missed: list[TrainingMissed],
    declined: Counter[str],
    dearer: Sequence[WhyNot],
) -> str:
    """Return what the trainer asks for, the price, else what the set that lacks least would need."""
    said = max(declined, key=lambda said: (declined[said], said), default="")
    if said and sum(declined.values()) >= len(missed):
        return said
    if dearer and not said:
        least = min(dearer, key=lambda each: (each.price_usd_hour, each.accelerator, each.count))
        return f"{least.machines} would hold it with {least.change}"
    return "; ".join(dict.fromkeys(filter(None, (said, _lacking(question, missed)))))


def _lacking(question: TuningQuestion, missed: Sequence[TrainingMissed]) -> str:
    """Return what the set that lacks least would need, "" where memory is not what is missing."""
    short = [m for m in missed if m.short_bytes]
    short.sort(key=lambda m: (m.short_bytes, m.count, m.accelerator.name))
    if not short:
        return ""
    reasons = [trainer(question.engine).refuses(_written_for(question, m.accelerator)) for m in short]
    if None not in reasons:  # a smaller run would not take place there either
        return f"{question.engine}: {reasons[0]}"
    near = short[reasons.index(None)]
    machines = f"{near.nodes} × " if near.nodes > 1 else ""
    lacks = (
        f"{machines}{near.count} × {near.accelerator.name} lacks {near.short_bytes / GIB:.1f} GiB a device"
    )
    change = change_of(
        question.facts, question.job, near.accelerator,
        count=near.count, batch_size=question.train.batch_size, nodes=near.nodes,
    )  # fmt: skip
    found = [each for each in (_more_nodes(question, near), change) if each]
    if found:
        return f"{lacks}, would do with {', or with '.join(found)}"
    return f"{lacks}, and no smaller run that was tried does: allow larger accelerators"


def _more_nodes(question: TuningQuestion, near: TrainingMissed) -> str:
    """Return how many machines of several accelerators hold the run as it is, "" where too many would be."""
    if near.count == 1:
        return ""
    batch_size, most = question.train.batch_size, near.count * MOST_ADVISED
    held = choose_training(
        question.facts, question.job, [near.accelerator], batch_size=max(batch_size, most),
        counts=[near.count], max_nodes=MOST_ADVISED,
    ).candidates  # fmt: skip
    if not held:
        return ""
    nodes = min(each.nodes for each in held)
    devices = nodes * near.count  # of which each has an example of its own
    return f"nodes: {nodes}" + (f" and batch_size: {devices}" if devices > batch_size else "")
