"""Size a training run on one kind of device: states, what a step leaves behind, and the peak."""

from __future__ import annotations

import math
from dataclasses import replace

from orchestrator.catalog.parameters import Parameters
from orchestrator.catalog.values import Accelerator, ModelFacts
from orchestrator.frozen import frozen
from orchestrator.planner.sizing.adapters import adapter_parameters, adapter_targets
from orchestrator.planner.sizing.formats import weight_format
from orchestrator.planner.sizing.kv import kv_layout
from orchestrator.planner.sizing.parameters import count_parts, expert_layers
from orchestrator.planner.sizing.trainers import Optimizer, TrainerProfile, optimizer, trainer_profile
from orchestrator.planner.sizing.values import DeviceMemory, Measured, Size, TrainingJob, compares
from orchestrator.planner.sizing.weights import device_weight_bytes, published_format, weight_bytes
from orchestrator.units import GIB

STREAM_STATES = 13.5
"""16-bit values of the hidden size that one gated block keeps per token for its backward pass
(norm inputs and outputs, queries to output of attention, residuals). Fitted: torchtune's
Llama-3.2-3B table gives 13.9, litgpt's Llama-2-7B table 13.4."""

PARALLEL_STREAM_STATES = 8.5
"""The same in blocks without a gate, which run attention and feed-forward side by side on one
norm: litgpt's phi-1.5 table gives 7.6 to 9.7, Falcon-7B 8.7."""

COMPILED_STREAM_STATES = 7.0
"""The same after torch.compile fused the pointwise parts (torchtune's table, 51.0 and 42.9 GiB rows)."""

LOGIT_BYTES = 10
"""Bytes per token and vocabulary entry of an unfused loss: 16-bit logits, 32-bit copy, gradient."""

CHUNKS = 8
"""Pieces a chunked loss computes one after the other (torchtune, TRL)."""

SELECTIVE_SHARE = 0.42
"""Share of a block that selective checkpointing keeps (torchtitan's Llama-3.1-8B table)."""

LIVE_PARAMETERS = 1_500_000_000
"""Parameters ZeRO-3 keeps gathered or in buckets, 2 bytes each: 1e9 live and a 5e8 bucket are
DeepSpeed's defaults (EleutherAI cookbook, calc_transformer_mem.py)."""

MARGIN = 0.35
"""Share by which a training figure may be short: 95 % of the reference rows lie inside."""

NO_ROOM_TO_GENERATE = "the share that generates is less than 16-bit weights and one answer"
"""Why a device that holds the training itself holds no run that learns from its own answers."""


@frozen
class _States:
    """Bytes one device holds between steps."""

    weights: float
    adapter: float
    gradients: float
    optimizer: float
    reference: float


def size_training(facts: ModelFacts, device: Accelerator, job: TrainingJob) -> Size:
    """Return the memory of ``job`` on each of its devices, and whether it fits.

    Raises:
        ValueError: an unknown framework, optimizer or format, or a number below 1.

    >>> h100 = Accelerator("H100-80GB", "nvidia", "hopper", 80, round(79.19 * 2**30), "torch on an H100 SXM")
    >>> llama = ModelFacts("llama-3.1-8b", "LlamaForCausalLM", 32, 4096, 14336, 32, 8, 128, 128256)
    >>> size_training(llama, h100, TrainingJob(tuning="full")).fits
    False
    >>> size_training(llama, h100, TrainingJob(tuning="lora", rank=16)).fits
    True
    """
    _check(job)
    profile = trainer_profile(job.engine)
    visible = job.measured.visible_bytes or device.visible_bytes
    parts = count_parts(facts)
    states = _states(facts, parts, job, profile)
    activations, logits = _step(facts, job, profile)
    gathered = _gathered(facts, parts, job, profile)
    moving = profile.allocator * (activations + logits + gathered)
    held = states.weights + states.adapter + states.optimizer + states.reference
    if job.accumulates or job.sharding != "none":
        dynamic = states.gradients + moving
    else:
        # the first micro batch meets no gradients: they grow as its activations go
        dynamic = max(moving, states.gradients + gathered)
    rollout = job.rollout * visible
    peak = round(held + dynamic + profile.overhead_bytes + rollout)
    full, generating = round(peak * (1 + MARGIN)), _generating_bytes(facts, parts, job)
    short = max(full, generating) - visible
    reason = "too little device memory" if full >= generating else NO_ROOM_TO_GENERATE
    return Size(
        device=DeviceMemory(
            weights_bytes=round(states.weights + states.reference),
            activations_bytes=round(profile.allocator * (activations + gathered)),
            non_torch_bytes=profile.overhead_bytes,
            kv_cache_bytes=round(rollout),
            gradients_bytes=round(states.gradients),
            optimizer_bytes=round(states.optimizer),
            adapter_bytes=round(states.adapter),
            logits_bytes=round(profile.allocator * logits),
            peak_bytes=peak,
            visible_bytes=visible,
        ),
        fits=short <= 0,
        margin=MARGIN,
        reason="" if short <= 0 else reason,
        short_bytes=max(0, short),
        headroom_bytes=visible - peak,
        source=profile.source,
    )


def least_training_bytes(facts: ModelFacts, job: TrainingJob) -> int | None:
    """Return the least device memory on which ``job`` fits, None where none does.

    An engine that generates takes a share of any device, which leaves nothing when the share
    and its margin fill it.
    """
    nothing = Accelerator("none", "nvidia", "", 0, 0, "a device without memory")
    # a measured device would stand in for the one asked about
    peak = size_training(facts, nothing, replace(job, measured=Measured())).device.peak_bytes
    left = 1 - job.rollout * (1 + MARGIN)
    generating = _generating_bytes(facts, count_parts(facts), job)
    return max(math.ceil(peak * (1 + MARGIN) / left), generating) if left > 0 else None


def _check(job: TrainingJob) -> None:
    for name in ("sequence_length", "micro_batch", "devices", "tensor", "pipeline", "expert", "rank"):
        if getattr(job, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(job, name)}")
    if job.devices % (job.tensor * job.pipeline):
        raise ValueError(
            f"{job.devices} devices cannot be cut into tensor {job.tensor} x pipeline {job.pipeline}"
        )
    if not 0 <= job.rollout < 1:
        raise ValueError(f"rollout share must be at least 0 and below 1, got {job.rollout}")


def _generating_bytes(facts: ModelFacts, parts: Parameters, job: TrainingJob) -> int:
    """Return the least device whose share holds the generating engine: 16-bit weights, one answer.

    The engine has its own copy of the policy, whatever the trainer freezes, quantizes or shards;
    its tensor and pipeline degrees are the trainer's (TRL 1.16, vLLM integration, colocate).
    """
    if not job.rollout:
        return 0
    answer = kv_layout(facts, tensor=job.tensor, element_bytes=2.0).request_bytes(job.sequence_length)
    copy = 2.0 * parts.total / job.tensor
    return math.ceil((copy + answer) / job.pipeline / job.rollout)


def _states(facts: ModelFacts, parts: Parameters, job: TrainingJob, profile: TrainerProfile) -> _States:
    shards = job.devices // (job.tensor * job.pipeline)
    base = _base_bytes(facts, job)
    everything = job.sharding in ("zero3", "fsdp")
    # 4- and 8-bit bases stay whole on each device (axolotl's GLM-4.7-Flash examples: 24 GiB on
    # one device, 29 on each of two under FSDP)
    quantized = job.tuning != "full" and base < 1.5 * parts.total / (job.tensor * job.pipeline)
    spread_weights = shards if everything and not quantized else 1
    spread_gradients = shards if everything or job.sharding == "zero2" else 1
    spread_optimizer = shards if job.sharding != "none" else 1
    keeps = optimizer(job.optimizer)
    width = 4 if job.state_dtype == "fp32" else 2
    if job.tuning == "full":
        trained = parts.total / (job.tensor * job.pipeline)
        weight = weight_format(job.precision).bits / 8
        gradient = weight if job.sharding in ("none", "fsdp") or weight == 4 else 4.0
        master = 4.0 if job.state_dtype == "fp32" and weight < 4 else 0.0
        adapter = 0.0
    else:
        targets = adapter_targets(job.targets)
        trained = adapter_parameters(facts, job.rank, targets) / (job.tensor * job.pipeline)
        weight = 4.0 if profile.adapter_fp32 else 2.0
        width = round(weight)
        gradient, master = weight, 0.0
        adapter = trained * weight
    gradients = trained * gradient
    if job.optimizer_in_backward:
        # each is used up at once; the largest lives alone
        gradients = gradient * max(trained / max(1, facts.layers), min(trained, parts.embedding))
    kept = trained * (_state_bytes(keeps, width) + master) * keeps.on_device
    if job.offload in ("optimizer", "all"):
        kept, gradients = 0.0, 0.0
    return _States(
        weights=base / spread_weights,
        adapter=adapter / (1 if job.tuning == "full" else spread_weights),
        gradients=gradients / spread_gradients,
        optimizer=kept / spread_optimizer,
        reference=_extra_models(parts, job, keeps, width) / spread_weights,
    )


def _state_bytes(keeps: Optimizer, width: int) -> float:
    return keeps.states * width + keeps.fixed_bytes


def _base_bytes(facts: ModelFacts, job: TrainingJob) -> float:
    """Return the bytes of the weights a step computes with, on one device before sharding."""
    name = job.base_format or (published_format(facts) if job.precision == "auto" else job.precision)
    if job.tuning == "qlora" and job.base_format is None:
        name = "nf4"
    sized = weight_bytes(facts, name)
    if name in _LOADED_QUANTIZED and facts.experts and not job.quantizes_experts:
        sized = replace(sized, experts=2.0 * count_parts(facts).experts)
    ranks = max(job.expert, job.tensor)
    return device_weight_bytes(facts, sized, tensor=job.tensor, pipeline=job.pipeline, expert_ranks=ranks)


_LOADED_QUANTIZED = frozenset({"nf4", "nf4-dq", "int8"})
"""Formats bitsandbytes makes while it loads; it converts linear modules, and experts that are
one stacked tensor stay as they are (axolotl's Kimi-Linear example: 98.7 GiB for 49 B)."""


def _extra_models(parts: Parameters, job: TrainingJob, keeps: Optimizer, width: int) -> float:
    """Return the bytes of the models beside the policy: reference, reward, value.

    A model with an adapter is its own reference when the adapter is switched off. DPO and KTO
    keep a frozen copy of a fully trained model, PPO a reference, a reward model and a value model
    that is trained too; GRPO keeps a reference only when it is asked for (TRL's beta is 0 by
    default).
    """
    copy = 2.0 * parts.total / (job.tensor * job.pipeline)
    frozen = copy if job.tuning == "full" and compares(job.method, job.reference) else 0.0
    if job.method != "ppo":
        return frozen
    trained = copy / 2 * (2.0 + _state_bytes(keeps, width)) if job.tuning == "full" else 0.0
    return frozen + 2 * copy + trained


def _step(facts: ModelFacts, job: TrainingJob, profile: TrainerProfile) -> tuple[float, float]:
    """Return the bytes of activations and of logits at the peak of one micro batch."""
    tokens = job.tokens
    layers = math.ceil(facts.layers / job.pipeline)
    block = _block_bytes(facts, job, profile) * tokens
    boundary = 2 * facts.hidden * tokens
    if job.checkpointing == "none":
        kept, live = layers * block, 0.0
    elif job.checkpointing == "selective":
        kept, live = layers * (SELECTIVE_SHARE * block + boundary), block * (1 - SELECTIVE_SHARE)
    else:
        kept, live = layers * boundary, block
    if job.offload in ("activations", "all"):
        kept = 2 * boundary
    logits = _logits(facts, job, tokens)
    if job.checkpointing == "none":
        return kept, logits
    # a recomputed layer lives after the logits are gone; the larger of the two decides
    return (kept, logits) if logits >= live else (kept + live, 0.0)


def _block_bytes(facts: ModelFacts, job: TrainingJob, profile: TrainerProfile) -> float:
    """Return the bytes per token that one layer keeps for its backward pass."""
    h = facts.hidden
    states = STREAM_STATES if facts.gated else PARALLEL_STREAM_STATES
    if job.compiled:
        states = min(states, COMPILED_STREAM_STATES)
    targets = adapter_targets(job.targets)
    # the product enters the last matrix; it is kept only where that matrix learns
    products = 3 if facts.gated else 1
    if job.tuning == "full" or "down" in targets:
        products += 1
    routed = expert_layers(facts)
    inner = float(facts.intermediate)
    dispatched = 0.0
    if routed:
        shared = facts.shared_experts * (facts.shared_intermediate or facts.expert_intermediate)
        inner = facts.experts_per_token * facts.expert_intermediate + shared
        dispatched = 2 * facts.experts_per_token * h * 2
    stream = 2 * states * h / (job.tensor if profile.sequence_parallel else 1)
    width = (2 * products * inner + dispatched) / job.tensor + stream
    return width + (_dropout_bytes(facts, targets, inner) if job.tuning != "full" else 0.0)


def _dropout_bytes(facts: ModelFacts, targets: frozenset[str], inner: float) -> float:
    """Return what adapters' dropout keeps: a 16-bit copy and a mask byte of each target's input."""
    entering = {"q": 1, "k": 1, "v": 1, "o": 1, "gate": 1, "up": 1}
    h = sum(facts.hidden for t in targets if t in entering)
    return 3 * (h + (inner if "down" in targets else 0))


def _logits(facts: ModelFacts, job: TrainingJob, tokens: int) -> float:
    if job.method == "reward" or job.loss_kernel == "fused":
        return 0.0
    full = tokens * facts.vocab * LOGIT_BYTES / job.tensor
    return full / CHUNKS if job.loss_kernel == "chunked" else full


def _gathered(facts: ModelFacts, parts: Parameters, job: TrainingJob, profile: TrainerProfile) -> float:
    """Return what a run holds whole, in 16 bits, for the layers it is in."""
    if job.tuning == "qlora" and profile.quantizes_head:
        return 2 * 2.0 * parts.embedding
    layer = 2.0 * (parts.total - parts.embedding - parts.head) / max(1, facts.layers)
    table = 2.0 * parts.embedding
    if job.sharding == "zero3":
        return min(2.0 * LIVE_PARAMETERS, 2.0 * parts.total)
    if job.sharding == "fsdp":
        return 2 * max(layer, table) / job.tensor
    if job.sharding in ("zero1", "zero2"):
        trained = parts.total if job.tuning == "full" else 0
        return min(GIB, 2.0 * trained)
    return 0.0
