"""Reasons that several engines share for refusing a job; each returns a phrase or None."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping

from orchestrator.engines import architectures, images, quantization
from orchestrator.engines.job import UNKNOWN_RANK, Fetched, ServingJob
from orchestrator.engines.quantization import Choice, Method
from orchestrator.units import GIB

TRANSFORMERS = "5.23.0"
"""vLLM and SGLang run what they have no code for through this library's."""
_HEADS = re.compile(
    r"(For(Sequence|Token)Classification|ForRewardModeling|RewardModel|ForTextEncoding|Model)$"
)
_GENERATOR_ENDS = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")
VOCAB_PADDING = 64
"""vLLM and SGLang pad the vocabulary to a multiple of this before they split it."""


def source(job: ServingJob, schemes: Container[str], engine: str) -> str | None:
    """Say that the engine cannot load weights from where they are."""
    if job.source.path is None and job.source.id.startswith("."):
        return f"{job.source.id} is a folder of this machine and has no path in the container, mount it"
    if job.source.scheme in schemes:
        return None
    return f"{engine} does not load from {job.source.scheme}://, mount it as a folder"


def architecture(job: ServingJob, engine: str, version: str) -> str | None:
    """Say that the engine has no code for this kind of model."""
    name, known = job.model.architecture, architectures.load(engine, version)
    if name in known.served:
        return None
    if not name:
        return "the model's config.json has no 'architectures': add its class, such as LlamaForCausalLM"
    return f"{engine} {version} {'no longer serves' if name in known.ended else 'does not serve'} {name}"


def encodes(job: ServingJob) -> str | None:
    """Say that an encoder is asked to generate."""
    if job.model.bidirectional and not job.model.pools:
        return f"{job.model.architecture} is an encoder and generates nothing"
    return None


def generates(job: ServingJob, engine: str) -> str | None:
    """Say that the engine only generates, and this model pools."""
    if not job.model.pools:
        return None
    return f"{engine} only generates, and {job.model.id} answers with vectors or scores: vllm serves it"


def converted(job: ServingJob, engine: str, version: str) -> str | None:
    """Say as ``borrowed`` that there is no code, where a model that pools may be a generator's without head.

    vLLM looks for the generator by its name (0.33.0, ``_normalize_arch`` in models/registry.py).
    """
    name, served = job.model.architecture, architectures.load(engine, version).served
    if job.model.pools and any(f"{_HEADS.sub('', name)}{end}" in served for end in _GENERATOR_ENDS):
        return None
    return borrowed(job, engine, version)


def borrowed(job: ServingJob, engine: str, version: str) -> str | None:
    """Say that neither the engine nor transformers has code for this kind of model."""
    name, known = job.model.architecture, architectures.load(engine, version)
    if name in architectures.load("transformers", TRANSFORMERS).served and name not in known.ended:
        return None
    return architecture(job, engine, version)


def borrows(job: ServingJob, engine: str, version: str) -> str | None:
    """Say that the engine runs this model through transformers, at its speed."""
    served = architectures.load(engine, version).served
    if job.model.architecture in served or (converted(job, engine, version) is None and job.model.pools):
        return None
    return f"{engine} has no code for {job.model.architecture}, it runs through transformers and is slower"


def staged(job: ServingJob, engine: str, version: str) -> str | None:
    """Say that the engine cannot cut this kind of model into pipeline stages."""
    name = job.model.architecture
    if job.pipeline == 1 or name not in architectures.load(engine, version).whole:
        return None
    return f"{engine} {version} does not cut {name} into pipeline stages"


def gated(job: Fetched) -> str | None:
    """Say that a gated model's token is missing, where weights still have to be fetched."""
    if not job.model.gated_access or job.source.scheme != "hub" or job.fetch_bytes == 0:
        return None
    if "HF_TOKEN" in {name for name, _ in (*job.secrets, *job.env)}:
        return None
    return f"{job.source.id} is gated and needs HF_TOKEN in env"


def unpinned(job: ServingJob, engine: str) -> str | None:
    """Say that adapters of the hub come at their newest revision, whatever is asked for."""
    asked = next((a for a in job.adapters if a.source.scheme == "hub" and a.source.revision), None)
    return f"{engine} takes adapter {asked.name} at its newest revision" if asked else None


def cautions(
    job: ServingJob, engine: str, version: str, *, chosen: Choice | str, methods: Mapping[str, Method]
) -> tuple[str, ...]:
    """Return what a reader of a plan should know of a job on an engine, whose options are of ``version``.

    ``chosen`` is the method that gives the job its precision, of those in ``methods``.
    """
    told = [
        images.other_version(job, engine, version),
        borrows(job, engine, version),
        unpinned(job, engine),
    ]
    if isinstance(chosen, Choice) and chosen.method:
        told.append(quantization.widened(chosen.method, methods, job.accelerator))
    if any(adapter.rank is None for adapter in job.adapters):
        told.append(f"the rank of an adapter is unknown, {UNKNOWN_RANK} is assumed")
    return tuple(each for each in told if each)


def world(job: ServingJob) -> str | None:
    """Say that the degrees of parallelism do not make up the accelerators."""
    wanted, have = job.tensor * job.pipeline * job.data, job.count * job.nodes
    if job.accelerator is None or wanted == have:
        return None
    degrees = f"tensor {job.tensor} x pipeline {job.pipeline} x data {job.data}"
    return f"{degrees} is {wanted} accelerators, not {have}"


def divides(job: ServingJob) -> str | None:
    """Say that the model cannot be cut this way."""
    model, tensor = job.model, job.tensor
    if model.heads % tensor:
        return f"{model.heads} attention heads do not divide by tensor {tensor}"
    if model.attention != "mla" and model.kv_heads and model.kv_heads % tensor and tensor % model.kv_heads:
        return f"{model.kv_heads} KV heads neither divide by tensor {tensor} nor can be repeated over it"
    padded = -(-model.vocab // VOCAB_PADDING) * VOCAB_PADDING
    if padded % tensor:
        return f"a vocabulary of {padded} does not divide by tensor {tensor}"
    if job.pipeline > model.layers:
        return f"pipeline {job.pipeline} is more than the model's {model.layers} layers"
    return None


def context(job: ServingJob) -> str | None:
    """Say that the context is beyond what the model was made for."""
    longest = job.model.context
    if job.context_tokens is None or longest is None or job.context_tokens <= longest:
        return None
    return f"a context of {job.context_tokens} is beyond the model's {longest}"


def utilization(job: ServingJob) -> str | None:
    """Say that the fraction of device memory is none, or is more than what is free."""
    use, device = job.memory_utilization, job.accelerator
    if use is None:
        return None
    if not 0 < use <= 1:
        return f"memory utilization {use:g} is not a fraction of 1"
    if device is None or job.free_bytes is None or use * device.visible_bytes <= job.free_bytes:
        return None
    wanted, free = use * device.visible_bytes / GIB, job.free_bytes / GIB
    return f"memory utilization {use:g} is {wanted:.1f} GiB, {free:.1f} GiB are free"


def batch(job: ServingJob) -> str | None:
    """Say that fewer tokens are batched than sequences are decoded at once, or than an encoder reads."""
    seqs, tokens = job.max_num_seqs, job.max_num_batched_tokens
    prompt = job.context_tokens or job.model.context or 0
    if job.model.bidirectional and tokens and tokens < prompt:
        return f"{tokens} batched tokens are fewer than a prompt of {prompt}, which an encoder reads whole"
    if not seqs or not tokens or tokens >= seqs:
        return None
    return f"{tokens} batched tokens are fewer than {seqs} sequences at once"


def kv_cache(job: ServingJob) -> str | None:
    """Say that the KV cache cannot be held in this format on this device beside these activations."""
    device = job.accelerator
    if job.kv_dtype == "auto":
        return None
    kind = quantization.dtype(job)
    halves = kind == "float16" or (kind == "auto" and job.model.dtype in ("fp16", "float16"))
    if job.kv_dtype == "bf16" and halves:
        return "a KV cache in bf16 does not go with fp16 activations, leave kv_cache at auto"
    # FlashInfer, which reads fp8 before 8.9, begins at 8.0 (vLLM 0.33.0, its attention backends)
    if device and device.capability and device.capability < (8, 0):
        return f"a KV cache in {job.kv_dtype} needs compute capability 8.0, {device.name} has less"
    return None


def gfx(job: ServingJob, built_for: Container[str], engine: str) -> str | None:
    """Say that the engine's image is not built for this AMD device."""
    device = job.accelerator
    if device is None or device.family != "rocm" or device.gfx is None or device.gfx in built_for:
        return None
    return f"{engine} is not built for {device.gfx} ({device.name})"
