"""What engines say of a question: what they serve, and the job as they are told it."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.catalog import Accelerator
from orchestrator.engines import Adapter, Source, engine
from orchestrator.engines import ServingJob as EngineJob
from orchestrator.engines.job import KvDtype, Precision
from orchestrator.planner.choose import Candidate, Keeps, Makes, Takes, once_per_kind
from orchestrator.planner.cpu import is_cpu
from orchestrator.planner.parallelism import Layout
from orchestrator.planner.question import Question
from orchestrator.planner.sizing import ServingJob, Size
from orchestrator.planner.sources import adapter_source, model_source
from orchestrator.spec.models import Adapter as AdapterSpec


def maker(question: Question) -> Makes:
    """Return whether an engine makes a format that was not published, asked once per kind of device."""

    def makes(device: Accelerator, precision: str) -> bool:
        return _is_served(question, replace(_bare(question, device), precision=_precision(precision)))

    return once_per_kind(makes)


def taker(question: Question) -> Takes:
    """Return whether an engine serves the model cut so, asked once per kind of device and layout."""

    def takes(device: Accelerator, layout: Layout) -> bool:
        return _is_served(question, replace(
            _bare(question, device), count=layout.count, nodes=layout.nodes, tensor=layout.tensor,
            pipeline=layout.pipeline, data=layout.data, expert=layout.expert,
        ))  # fmt: skip

    return once_per_kind(takes)


def keeper(question: Question) -> Keeps:
    """Return whether an engine keeps the KV cache so, asked once per kind of device."""

    def keeps(device: Accelerator, kv_cache: KvDtype) -> bool:
        return _is_served(question, replace(_bare(question, device), kv_dtype=kv_cache))

    return once_per_kind(keeps)


def reader(question: Question) -> Makes:
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


def engine_for(question: Question, job: EngineJob) -> tuple[str | None, str]:
    """Return the first engine that serves ``job``, or None and why the first that was asked does not."""
    refusal = ""
    for name in question.engines:
        reason = engine(name).refuses(job)
        if reason is None:
            return name, ""
        refusal = refusal or f"{name}: {reason}"
    return None, refusal


def computed_in(question: Question, candidate: Candidate) -> str:
    """Return the format that is computed in: fp16 where 16 bits are left open and bf16 does not exist."""
    precision, native = candidate.needs.job.precision, candidate.accelerator.native
    open_16_bits = question.model.precision == "auto" and precision == "bf16"
    return "fp16" if open_16_bits and "bf16" not in native and "fp16" in native else precision


def exchanged(question: Question, candidate: Candidate) -> tuple[str, ...]:
    """Return what a reader should know of the format that is computed in, where it is another."""
    computed, published = computed_in(question, candidate), candidate.needs.job.precision
    if computed == published:
        return ()
    return (f"{computed} in place of {published}, which {candidate.accelerator.name} does not compute",)


def engine_job(question: Question, candidate: Candidate, job: ServingJob, size: Size) -> EngineJob:
    """Return a question on one set of accelerators, as its engine is told it."""
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
