"""Training as a roofline: operations per token over what a stack reaches of the bf16 dense peak.

The peak is always that of bf16, so that a narrower format shows as a gain and not as another
peak. Host time per layer and sharded weights on the wire bound small micro batches. A method adds
its sequences, its forward passes without a gradient, and the answers it generates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

from orchestrator.catalog.values import Accelerator, ModelFacts
from orchestrator.frozen import frozen
from orchestrator.planner.sizing.kv import kv_layout
from orchestrator.planner.sizing.values import GENERATES, Method, compares
from orchestrator.planner.throughput.device import bandwidth, by_architecture, peak_flops
from orchestrator.planner.throughput.factors import TRAINING, TrainingFactors
from orchestrator.planner.throughput.serving import serving_throughput
from orchestrator.planner.throughput.work import Work, work

Tuning = Literal["pretrain", "full", "lora", "qlora"]

GENERATIONS = 8
"""Answers to one prompt that GRPO compares, and so the fewest that a step generates over all its
devices (TRL 1.16, GRPOConfig, ``num_generations``)."""

PPO_EPOCHS = 4
"""Times that PPO learns from each answer (TRL 0.24, PPOConfig, ``num_ppo_epochs``)."""

UNMEASURED_SPREAD = 2.0
"""Factor up and down of methods without a measured row: a guess, as for serving's ``other``."""

_MEASURED: frozenset[Method] = frozenset({"sft", "pretrain"})


@frozen
class Passes:
    """What a method does with one example: of a pair of answers both count.

    ``sequences`` are its sequences, each of which passes ``learned`` times forward and backward,
    and ``forwards`` times forward only, through a model of the policy's size. ``generates`` says
    that the sequences are answers the policy writes first.
    """

    sequences: int = 1
    learned: int = 1
    forwards: int = 0
    generates: bool = False

    @property
    def over_learning(self) -> float:
        """Return forward passes as a share of the passes that learn, which are three as long."""
        return self.forwards / (3 * self.learned)


ONE = Passes()
"""One sequence, once forward and backward: supervised tuning."""


def passes(method: Method, *, reference: bool | None = None, rollout_share: float = 0.0) -> Passes:
    """Return the passes of ``method`` over one example of its data.

    DPO, ORPO and reward models learn from pairs; DPO asks the reference about both. KTO asks the
    reference about its sequence and both models about a mismatched one, for the KL term. GRPO and RLOO
    computes the old probabilities again where another engine wrote the answer, and asks the
    reference where there is one (TRL 1.16: ``DPOTrainer``, ``KTOTrainer``, ``ORPOTrainer``,
    ``RewardTrainer``, ``GRPOTrainer``). PPO asks reference, reward and value model and learns
    policy and value ``PPO_EPOCHS`` times (arXiv 2203.02155, 3.5). The reward of GRPO is taken for
    a function that costs nothing.

    Args:
        method: How the model is tuned.
        reference: Whether a frozen model is asked in the run; None is the method's own way.
        rollout_share: Share of the device for an engine that generates; 0 leaves it to the trainer.

    >>> passes("sft"), passes("dpo").forwards, passes("dpo", reference=False).forwards
    (Passes(sequences=1, learned=1, forwards=0, generates=False), 1, 0)
    """
    asked = int(compares(method, reference))
    if method in ("dpo", "orpo", "reward"):
        return Passes(sequences=2, forwards=asked)
    if method == "kto":
        return Passes(forwards=1 + 2 * asked)
    if method in GENERATES:
        return Passes(forwards=int(rollout_share > 0) + asked, generates=True)
    if method == "ppo":
        return Passes(learned=2 * PPO_EPOCHS, forwards=2 + asked, generates=True)
    return ONE


@frozen
class TrainingSpeed:
    """A training run's speed, all its accelerators together.

    ``tokens_s`` counts the tokens of one sequence of each example, so that examples times their
    length over it is the run's time; a pair counts once. ``low`` and ``high`` bound it.
    ``flops_per_token`` is the models' own work in the passes of training,
    ``executed_flops_per_token`` with what checkpointing computes twice; ``mfu`` is the first over
    the bf16 dense peak. ``cautions`` say in a phrase each why the figures deserve less trust.
    """

    tokens_s: float
    low: float
    high: float
    flops_per_token: float
    executed_flops_per_token: float
    mfu: float
    cautions: tuple[str, ...] = ()


def training_flops(
    model: Work,
    *,
    sequence_length: int,
    tuning: Tuning = "full",
    repeated: float = 0.0,
    way: Passes = ONE,
) -> tuple[float, float]:
    """Return operations per trained token: of the products with weights, and of attention.

    Forward is 2 per parameter, backward 2 for activations and 2 for weights; frozen weights (LoRA)
    need no gradient of their own, and ``repeated`` forwards are computed again by checkpointing.
    ``way`` is the method's, whose passes without a gradient take 2. Attention is causal and packed
    to ``sequence_length``.

    >>> from orchestrator.catalog import model
    >>> from orchestrator.planner.throughput.work import work
    >>> llama = work(model("meta-llama/Llama-3.1-8B-Instruct"))
    >>> products, attention = training_flops(llama, sequence_length=4096)
    >>> round(products / 1e9), round(attention / 1e9, 1)
    (45, 3.2)
    """
    learned = way.sequences * way.learned
    forwards = way.sequences * way.forwards
    products = learned * ((4 if tuning in ("lora", "qlora") else 6) + 2 * repeated) + 2 * forwards
    attention = learned * (3 + repeated) + forwards
    return products * model.active, attention * model.attention_flops(sequence_length / 2)


@frozen
class _Run:
    """One training run's shape: the inputs of a micro batch."""

    facts: ModelFacts
    model: Work
    accelerator: Accelerator
    count: int
    tensor: int
    pipeline: int
    stack: str
    weight_format: str
    tuning: Tuning
    sequence_length: int
    micro_batch: int
    checkpointing: bool
    way: Passes
    rollout_share: float
    at_once: int

    @property
    def tokens(self) -> int:
        """Return the tokens of one micro batch, of a pair those of one sequence."""
        return self.sequence_length * self.micro_batch

    @property
    def moves(self) -> float:
        """Return how often a micro batch does what one pass forward and backward does."""
        return self.way.learned * (1 + self.way.over_learning)


def _compute_s(run: _Run, factors: TrainingFactors) -> float:
    """Return the seconds of one micro batch's products on the ranks that share the model."""
    share = factors.stacks[run.stack].flops
    share *= by_architecture(run.accelerator, factors.silicon)
    share *= run.facts.hidden / (run.facts.hidden + factors.width_half)
    rate = peak_flops(run.accelerator, "bf16") * share * run.tensor * run.pipeline
    products, attention = training_flops(
        run.model,
        sequence_length=run.sequence_length,
        tuning=run.tuning,
        repeated=factors.recompute if run.checkpointing else 0.0,
        way=run.way,
    )
    routed = run.model.experts * run.model.expert_share / run.model.active
    products *= 1 + routed * (1 / factors.experts_flops - 1)
    gain = factors.format_speed.get(f"{run.stack} {run.weight_format}", 1.0)
    return run.tokens * (products / gain + attention / factors.attention_flops) / rate


def _gather_s(run: _Run, factors: TrainingFactors) -> float:
    """Return the seconds of gathering weights twice and scattering gradients once, in 16 bits."""
    ranks = run.count // (run.tensor * run.pipeline)
    if ranks <= 1 or run.tuning in ("lora", "qlora") or not factors.stacks[run.stack].gathers:
        return 0.0
    held = 2 * (run.model.dense + run.model.experts) / (run.tensor * run.pipeline)
    return run.moves * 3 * held * (ranks - 1) / ranks / _wire_rate(run, run.count, factors)


def _tensor_s(run: _Run, factors: TrainingFactors) -> float:
    """Return the seconds of four all-reduces per layer, forward and backward, of 16-bit activations."""
    if run.tensor == 1:
        return 0.0
    # two of the four belong to a forward
    tokens = run.tokens * run.way.sequences * (run.way.learned + run.way.forwards / 2)
    volume = 2 * (run.tensor - 1) / run.tensor * tokens * run.facts.hidden * 2
    return 4 * run.facts.layers / run.pipeline * volume / _wire_rate(run, run.tensor, factors)


def _wire_rate(run: _Run, ranks: int, factors: TrainingFactors) -> float:
    """Return the bytes a second that reach one accelerator from its peers among ``ranks``."""
    network = factors.network_gbs * 1e9
    link = run.accelerator.link_gbs
    if ranks > run.accelerator.max_per_node or link is None:
        return network
    return max(link / 2 * factors.link * 1e9, network)


def _widen_s(run: _Run, factors: TrainingFactors) -> float:
    """Return the seconds of widening frozen 4-bit weights in every pass: 0.5 bytes in, 2 out, 2 in."""
    if run.tuning != "qlora":
        return 0.0
    method = "gptq" if run.weight_format.startswith("gptq") else "other"
    learned = 3 if run.checkpointing else 2
    return (
        factors.widen[method]
        * (run.way.learned * learned + run.way.forwards)
        * 4.5
        * (run.model.dense + run.model.experts)
        / bandwidth(run.accelerator)
    )


def _generate_s(run: _Run) -> float:
    """Return the seconds in which the ranks that share the model write a micro batch's answers.

    An engine beside the trainer is vLLM with its share of the device, else the trainer generates
    by itself. Prompts are not counted: their length is not known, and they are read once a group.
    """
    if not run.way.generates:
        return 0.0
    made = serving_throughput(
        run.facts,
        run.accelerator,
        input_tokens=0,
        output_tokens=run.sequence_length,
        concurrency=run.at_once,
        tensor=run.tensor,
        pipeline=run.pipeline,
        engine="vllm" if run.rollout_share else "transformers",
        kv_cache_tokens=_cache_tokens(run) if run.rollout_share else None,
    )
    return run.tokens / made.output_tokens_s


def _cache_tokens(run: _Run) -> float:
    """Return the tokens that the engine which generates holds beside its weights, one answer at least."""
    ranks = run.tensor * run.pipeline
    free = run.rollout_share * run.accelerator.visible_bytes - run.model.held_bytes / ranks
    layout = kv_layout(run.facts, tensor=run.tensor, element_bytes=2.0)
    answer = layout.request_bytes(run.sequence_length) / run.pipeline
    return run.sequence_length * max(1.0, free / answer if answer else run.at_once)


def _micro_batch_s(run: _Run, factors: TrainingFactors) -> float:
    """Return the seconds of one micro batch: its answers written, its passes forward and backward."""
    compute, wire = _compute_s(run, factors), _gather_s(run, factors)
    host = run.moves * factors.stacks[run.stack].layer_s * run.facts.layers / run.pipeline
    longer, shorter = max(compute, wire), min(compute, wire)
    learning = longer + factors.visible * shorter + _tensor_s(run, factors) + _widen_s(run, factors) + host
    return learning + _generate_s(run)


def _cautions(method: Method, way: Passes) -> Iterator[str]:
    """Yield what makes this estimate weaker than others."""
    if method not in _MEASURED:
        yield f"no measured row stands behind the speed of {method}"
    if way.generates:
        free = "prompt and reward" if method in GENERATES else "prompt"
        yield f"every answer is taken to be as long as it may be, and its {free} to cost nothing"


def training_throughput(
    facts: ModelFacts,
    accelerator: Accelerator,
    *,
    count: int,
    sequence_length: int,
    micro_batch: int = 1,
    tensor: int = 1,
    pipeline: int = 1,
    tuning: Tuning = "full",
    weight_format: str = "bf16",
    checkpointing: bool = False,
    stack: str = "transformers",
    method: Method = "sft",
    reference: bool | None = None,
    rollout_share: float = 0.0,
    accumulation: int = 1,
    counted: Work | None = None,
    factors: TrainingFactors = TRAINING,
) -> TrainingSpeed:
    """Return how many tokens a second ``count`` accelerators train.

    Args:
        facts: The model.
        accelerator: Every device of the run.
        count: Devices over all machines.
        sequence_length: Tokens of one packed sequence.
        micro_batch: Sequences one data-parallel rank holds at once.
        tensor: Ranks that share every layer.
        pipeline: Stages that share the layers.
        tuning: What is trained: all weights (``full``, ``pretrain``), or adapters beside frozen
            16-bit (``lora``) or 4-bit ones (``qlora``).
        weight_format: Format products run in, or how frozen weights are stored.
        checkpointing: Whether activations are computed again in the backward pass.
        stack: ``transformers`` (TRL, Axolotl), ``fsdp`` (torchtitan and alike) or ``megatron``.
        method: How the model is tuned; ``passes`` says what it costs.
        reference: Whether a frozen model is asked in the run; None is the method's own way.
        rollout_share: Share of each device for an engine that generates (GRPO).
        accumulation: Micro batches of a step, whose answers are generated at once.
        counted: What ``work`` says of the model in 16 bits, for callers that ask many times.
        factors: What stacks reach of the data sheets.

    Raises:
        ValueError: a count or length is below 1, the ranks do not divide ``count``, there is no
            such stack, or the catalog lacks the accelerator's figures.

    >>> from orchestrator.catalog import accelerator, model
    >>> llama, device = model("meta-llama/Llama-3.1-8B-Instruct"), accelerator("H100")
    >>> slow = training_throughput(llama, device, count=8, sequence_length=4096, tuning="full")
    >>> fast = training_throughput(llama, device, count=8, sequence_length=4096, tuning="lora")
    >>> slow.tokens_s < fast.tokens_s
    True
    """
    if min(count, sequence_length, micro_batch, tensor, pipeline, accumulation) < 1 or count % (
        tensor * pipeline
    ):
        raise ValueError("counts and lengths are at least 1, and tensor x pipeline divides count")
    if stack not in factors.stacks:
        raise ValueError(f"unknown training stack {stack!r}; known are {', '.join(factors.stacks)}")
    way = passes(method, reference=reference, rollout_share=rollout_share)
    run = _Run(
        facts=facts,
        model=counted or work(facts),
        accelerator=accelerator,
        count=count,
        tensor=tensor,
        pipeline=pipeline,
        stack=stack,
        weight_format=weight_format,
        tuning=tuning,
        sequence_length=sequence_length,
        micro_batch=micro_batch,
        checkpointing=checkpointing,
        way=way,
        rollout_share=rollout_share,
        at_once=max(micro_batch * accumulation, math.ceil(GENERATIONS * tensor * pipeline / count)),
    )
    tokens_s = run.tokens * count / (tensor * pipeline) / _micro_batch_s(run, factors)
    needed, executed = (
        sum(
            training_flops(
                run.model, sequence_length=sequence_length, tuning=tuning, repeated=repeated, way=way
            )
        )
        for repeated in (0.0, float(checkpointing))
    )
    spread = factors.spread if method in _MEASURED else UNMEASURED_SPREAD
    return TrainingSpeed(
        tokens_s=tokens_s,
        low=tokens_s / spread,
        high=tokens_s * spread,
        flops_per_token=needed,
        executed_flops_per_token=executed,
        mfu=needed * tokens_s / count / peak_flops(accelerator),
        cautions=tuple(_cautions(method, way)),
    )
