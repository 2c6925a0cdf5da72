"""The arithmetic behind a size, line by line, for a person to check."""

from __future__ import annotations

from orchestrator.catalog.values import Accelerator, ModelFacts
from orchestrator.frozen import frozen
from orchestrator.planner.sizing.formats import weight_format
from orchestrator.planner.sizing.parameters import count_parts
from orchestrator.planner.sizing.serving import ServingNeeds, serving_needs
from orchestrator.planner.sizing.training import LOGIT_BYTES, MARGIN, size_training
from orchestrator.planner.sizing.values import DeviceMemory, ServingJob, Size, TrainingJob
from orchestrator.planner.sizing.weights import published_format
from orchestrator.units import format_bytes


@frozen
class Step:
    """One line of a receipt: what it is, how it comes about, and the bytes on one device."""

    what: str
    how: str
    size_bytes: int

    def __str__(self) -> str:
        return f"{self.what:<13} {format_bytes(self.size_bytes):>10}  {self.how}"


def explain_serving(facts: ModelFacts, device: Accelerator, job: ServingJob) -> tuple[Step, ...]:
    """Return the arithmetic of ``size_serving``, from visible memory to what is left for requests.

    >>> from orchestrator.catalog import accelerator, model
    >>> llama = model("meta-llama/Llama-3.1-8B-Instruct")
    >>> steps = explain_serving(llama, accelerator("H100"), ServingJob(context=8192, concurrency=16))
    >>> print(steps[1])
    weights           15 GiB  8.03 B parameters in bf16, as the index of its files counts them
    """
    needs = serving_needs(facts, job)
    size = needs.on(device)
    memory = size.device
    steps = [
        Step("visible", f"what {device.name} shows a program", memory.visible_bytes),
        Step("weights", _weights(facts, job), memory.weights_bytes),
        Step("activations", _activations(facts, size), memory.activations_bytes),
        Step("non-torch", f"context, NCCL and kernels, as {job.engine} logs it", memory.non_torch_bytes),
    ]
    if memory.graphs_bytes:
        side = "inside" if needs.profile.graphs == "inside" else "outside"
        steps.append(Step("graphs", f"CUDA graphs, {side} the budget", memory.graphs_bytes))
    if memory.adapter_bytes:
        steps.append(Step("adapters", f"{job.adapters} of rank {job.adapter_rank}", memory.adapter_bytes))
    return (*steps, *_cache(needs, size, memory))


def _cut(job: ServingJob | TrainingJob) -> str:
    cuts = [f"tensor {job.tensor}"] if job.tensor > 1 else []
    cuts += [f"pipeline {job.pipeline}, fullest stage"] if job.pipeline > 1 else []
    cuts += [f"experts over {job.expert}"] if job.expert > 1 else []
    return ", cut by " + ", ".join(cuts) if cuts else ""


def _weights(facts: ModelFacts, job: ServingJob) -> str:
    if job.measured.weights_bytes is not None:
        return "measured"
    name = published_format(facts) if job.precision == "auto" else job.precision
    known = facts.weights_bytes is not None and name == published_format(facts)
    kept = f"in {weight_format(name).name}" + (", as the index of its files counts them" if known else "")
    return f"{count_parts(facts).total / 1e9:.2f} B parameters {kept}{_cut(job)}"


def _activations(facts: ModelFacts, size: Size) -> str:
    if facts.pools:
        return f"a pass over {size.max_num_batched_tokens} tokens of {size.max_num_seqs} sequences at most"
    return (
        f"the larger of sampling {size.max_num_seqs} sequences from {facts.vocab} entries and a pass "
        f"over {size.max_num_batched_tokens} tokens"
    )


def _cache(needs: ServingNeeds, size: Size, memory: DeviceMemory) -> tuple[Step, ...]:
    each = needs.layout.request_bytes(needs.context)
    asked = f"{needs.job.concurrency} requests of {needs.context} tokens"
    if needs.profile.base == "none":
        return (Step("KV cache", f"{asked}, taken as they come", memory.kv_cache_bytes),)
    share = f"{size.memory_utilization:.0%} of visible memory"
    if needs.bidirectional:
        return (
            Step("margin", f"{size.margin:.0%} of it", round(size.margin * memory.non_kv_bytes)),
            Step("headroom", "left outside the budget; no KV cache is kept", size.headroom_bytes),
        )
    return (
        Step("KV cache", f"left of {share}: {size.kv_cache_tokens} tokens admitted", memory.kv_cache_bytes),
        Step("needed", f"{asked}, {format_bytes(round(each))} each", size.wanted_bytes),
        Step("margin", f"{size.margin:.0%} of what is not cache", round(size.margin * memory.non_kv_bytes)),
        Step("headroom", "left outside the budget", size.headroom_bytes),
    )


def explain_training(facts: ModelFacts, device: Accelerator, job: TrainingJob) -> tuple[Step, ...]:
    """Return the arithmetic of ``size_training``: what stays, what a step adds, and the peak.

    >>> from orchestrator.catalog import accelerator, model
    >>> llama = model("meta-llama/Llama-3.1-8B-Instruct")
    >>> print(explain_training(llama, accelerator("H100"), TrainingJob(tuning="lora"))[0])
    weights           15 GiB  8.03 B parameters
    """
    memory = size_training(facts, device, job).device
    total = f"{count_parts(facts).total / 1e9:.2f} B parameters"
    base = f" in {job.base_format or 'nf4'}" if job.tuning == "qlora" else ""
    states = f", states in {job.state_dtype}" if job.tuning == "full" else ""
    shared = f", shared by {job.devices} ({job.sharding})" if job.sharding != "none" else ""
    steps = (
        Step("weights", f"{total}{base}{_cut(job)}{shared}", memory.weights_bytes),
        Step("adapter", f"rank {job.rank} on {', '.join(job.targets)}", memory.adapter_bytes),
        Step("gradients", f"of what is trained{shared}", memory.gradients_bytes),
        Step("optimizer", f"{job.optimizer}{states}{shared}", memory.optimizer_bytes),
        Step(
            "activations", f"{job.tokens} tokens, {job.checkpointing} checkpointing", memory.activations_bytes
        ),
        Step(
            "logits",
            f"{job.tokens} x {facts.vocab} x {LOGIT_BYTES} B, {job.loss_kernel} loss",
            memory.logits_bytes,
        ),
        Step("generation", f"{job.rollout:.0%} for the engine that generates", memory.kv_cache_bytes),
        Step("overhead", f"context and allocator of {job.engine}", memory.non_torch_bytes),
    )
    peak = Step("peak", f"and {MARGIN:.0%} margin", memory.peak_bytes)
    return (*(s for s in steps if s.size_bytes), peak)
