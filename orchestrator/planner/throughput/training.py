"""Training as a roofline: operations per token over what a stack reaches of the bf16 dense peak.

The peak is always that of bf16, so that a narrower format shows as a gain and not as another
peak. Host time per layer and sharded weights on the wire bound small micro batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from orchestrator.catalog.values import Accelerator, ModelFacts
from orchestrator.planner.throughput.device import bandwidth, by_architecture, peak_flops
from orchestrator.planner.throughput.factors import TRAINING, TrainingFactors
from orchestrator.planner.throughput.work import Work, work

Tuning = Literal["pretrain", "full", "lora", "qlora"]


@dataclass(frozen=True, slots=True)
class TrainingSpeed:
    """A training run's speed, all its accelerators together.

    ``low`` and ``high`` bound ``tokens_s``. ``flops_per_token`` is the model's own work,
    ``executed_flops_per_token`` with what checkpointing computes twice; ``mfu`` is the first over
    the bf16 dense peak.
    """

    tokens_s: float
    low: float
    high: float
    flops_per_token: float
    executed_flops_per_token: float
    mfu: float


def training_flops(
    model: Work, *, sequence_length: int, tuning: Tuning = "full", repeated: float = 0.0
) -> tuple[float, float]:
    """Return operations per trained token: of the products with weights, and of attention.

    Forward is 2 per parameter, backward 2 for activations and 2 for weights; frozen weights (LoRA)
    need no gradient of their own, and ``repeated`` forwards are computed again by checkpointing.
    Attention is causal and packed to ``sequence_length``.

    >>> from orchestrator.catalog import model
    >>> from orchestrator.planner.throughput.work import work
    >>> llama = work(model("meta-llama/Llama-3.1-8B-Instruct"))
    >>> products, attention = training_flops(llama, sequence_length=4096)
    >>> round(products / 1e9), round(attention / 1e9, 1)
    (45, 3.2)
    """
    products = (4 if tuning in ("lora", "qlora") else 6) + 2 * repeated
    return products * model.active, (3 + repeated) * model.attention_flops(sequence_length / 2)


@dataclass(frozen=True, slots=True)
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

    @property
    def tokens(self) -> int:
        """Return the tokens of one micro batch."""
        return self.sequence_length * self.micro_batch


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
    return 3 * held * (ranks - 1) / ranks / _wire_rate(run, run.count, factors)


def _tensor_s(run: _Run, factors: TrainingFactors) -> float:
    """Return the seconds of four all-reduces per layer, forward and backward, of 16-bit activations."""
    if run.tensor == 1:
        return 0.0
    volume = 2 * (run.tensor - 1) / run.tensor * run.tokens * run.facts.hidden * 2
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
    passes = 3 if run.checkpointing else 2
    return (
        factors.widen[method]
        * passes
        * 4.5
        * (run.model.dense + run.model.experts)
        / bandwidth(run.accelerator)
    )


def _micro_batch_s(run: _Run, factors: TrainingFactors) -> float:
    """Return the seconds of one micro batch, forward and backward."""
    compute, wire = _compute_s(run, factors), _gather_s(run, factors)
    host = factors.stacks[run.stack].layer_s * run.facts.layers / run.pipeline
    longer, shorter = max(compute, wire), min(compute, wire)
    return longer + factors.visible * shorter + _tensor_s(run, factors) + _widen_s(run, factors) + host


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
    if min(count, sequence_length, micro_batch, tensor, pipeline) < 1 or count % (tensor * pipeline):
        raise ValueError("counts and lengths are at least 1, and tensor x pipeline divides count")
    if stack not in factors.stacks:
        raise ValueError(f"unknown training stack {stack!r}; known are {', '.join(factors.stacks)}")
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
    )
    tokens_s = run.tokens * count / (tensor * pipeline) / _micro_batch_s(run, factors)
    needed, executed = (
        sum(training_flops(run.model, sequence_length=sequence_length, tuning=tuning, repeated=repeated))
        for repeated in (0.0, float(checkpointing))
    )
    return TrainingSpeed(
        tokens_s=tokens_s,
        low=tokens_s / factors.spread,
        high=tokens_s * factors.spread,
        flops_per_token=needed,
        executed_flops_per_token=executed,
        mfu=needed * tokens_s / count / peak_flops(accelerator),
    )
