"""Sized jobs for the engine tests: a few models and devices, and everything they combine to."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from orchestrator.catalog import accelerators
from orchestrator.catalog.values import Accelerator, ModelFacts
from orchestrator.engines import Adapter, ServingJob, Source
from orchestrator.engines.job import KvDtype, Precision

# dimensions as in each model's config.json on the hub
LLAMA_8B = ModelFacts(
    "meta-llama/Llama-3.1-8B-Instruct",
    "LlamaForCausalLM",
    32,
    4096,
    14336,
    32,
    8,
    128,
    128256,
    context=131072,
)
LLAMA_405B = ModelFacts(
    "meta-llama/Llama-3.1-405B-Instruct",
    "LlamaForCausalLM",
    126,
    16384,
    53248,
    128,
    8,
    128,
    128256,
    context=131072,
)
QWEN_AWQ = ModelFacts(
    "Qwen/Qwen3-8B-AWQ",
    "Qwen3ForCausalLM",
    36,
    4096,
    12288,
    32,
    8,
    128,
    151936,
    context=40960,
    quantization="awq",
    quantization_bits=4.16,
)
QWEN_MOE = ModelFacts(
    "Qwen/Qwen3-30B-A3B",
    "Qwen3MoeForCausalLM",
    48,
    2048,
    6144,
    32,
    4,
    128,
    151936,
    context=40960,
    experts=128,
    experts_per_token=8,
    expert_intermediate=768,
)
DEEPSEEK = ModelFacts(
    "deepseek-ai/DeepSeek-V3",
    "DeepseekV3ForCausalLM",
    61,
    7168,
    18432,
    128,
    128,
    128,
    129280,
    context=163840,
    attention="mla",
    experts=256,
    experts_per_token=8,
    expert_intermediate=2048,
    quantization="fp8",
    quantization_bits=8.0,
)
GEMMA = ModelFacts(
    "google/gemma-3-27b-it",
    "Gemma3ForConditionalGeneration",
    62,
    5376,
    21504,
    32,
    16,
    128,
    262144,
    context=131072,
    gated_access=True,
)
GPT_OSS = ModelFacts(
    "openai/gpt-oss-20b",
    "GptOssForCausalLM",
    24,
    2880,
    2880,
    64,
    8,
    64,
    201088,
    context=131072,
    experts=32,
    experts_per_token=4,
    expert_intermediate=2880,
    quantization="mxfp4",
    quantization_bits=4.25,
)
BGE_M3 = ModelFacts(
    "BAAI/bge-m3",
    "XLMRobertaModel",
    24,
    1024,
    4096,
    16,
    16,
    64,
    250002,
    tied=True,
    context=8192,
    gated=False,
    pools=True,
    bidirectional=True,
)
QWEN_EMBEDDING = replace(QWEN_AWQ, id="Qwen/Qwen3-Embedding-8B", quantization=None, pools=True, tied=True)
MODELS = (LLAMA_8B, LLAMA_405B, QWEN_AWQ, QWEN_MOE, DEEPSEEK, GEMMA, GPT_OSS, BGE_M3, QWEN_EMBEDDING)

T4, A100, L4, H100, B200 = (
    accelerators()[n] for n in ("T4-16GB", "A100-80GB", "L4-24GB", "H100-80GB", "B200-180GB")
)
MI300X, MI210, TPU, GAUDI = (
    accelerators()[n] for n in ("MI300X-192GB", "MI210-64GB", "TPU-V6E", "GAUDI3-128GB")
)
DEVICES = (None, T4, A100, L4, H100, B200, MI300X, MI210, TPU, GAUDI)

PRECISIONS: tuple[Precision, ...] = ("auto", "bf16", "fp16", "fp8", "int8", "int4", "fp4")
KEYS = (("HF_TOKEN", "secrets.HF_TOKEN"), ("NGC_API_KEY", "secrets.NGC_API_KEY"))
ADAPTERS = (
    Adapter("sql", Source("org/sql-lora"), rank=16),
    Adapter("sum", Source("sum", path="/adapters/sum")),
)


def job(model: ModelFacts = LLAMA_8B, accelerator: Accelerator | None = H100, **changes: Any) -> ServingJob:
    """Return a job of one device with a context of 8192 unless ``changes`` say otherwise."""
    sized = ServingJob(model, Source(model.id), accelerator, context_tokens=8192, secrets=KEYS)
    return replace(sized, **changes)


def shapes(model: ModelFacts, accelerator: Accelerator | None) -> Iterator[dict[str, int]]:
    """Yield ways to spread ``model``: one device, a node, experts spread in two ways, two nodes."""
    yield {}
    if accelerator is None:
        return
    yield {"count": 4, "tensor": 4}
    yield {"count": 4, "tensor": 2, "data": 2}
    if model.experts:
        yield {"count": 8, "tensor": 8, "expert": 8}
        yield {"count": 8, "data": 8, "expert": 8}
    yield {"count": 8, "nodes": 2, "tensor": 8, "pipeline": 2}
    yield {"count": 8, "nodes": 2, "tensor": 8, "data": 2}


def every_job(
    models: Iterable[ModelFacts], devices: Sequence[Accelerator | None] = DEVICES
) -> Iterator[ServingJob]:
    """Yield model × device × precision × shape, each with every option in turn."""
    kinds: tuple[KvDtype, ...] = ("bf16", "fp8")
    for model, device, precision in itertools.product(models, devices, PRECISIONS):
        for shape in shapes(model, device):
            plain = job(model, device, precision=precision, **shape)
            yield plain
            yield replace(plain, source=replace(plain.source, revision="0" * 40), max_num_seqs=256)
        context = min(32768, model.context or 32768)
        yield job(model, device, precision=precision, context_tokens=context, max_num_batched_tokens=8192)
        yield job(
            model, device, precision=precision, context_tokens=None, adapters=ADAPTERS[:1], max_num_seqs=16
        )
        for kind in kinds:
            yield job(model, device, precision=precision, kv_dtype=kind, memory_utilization=0.85)
        if device:
            free = device.visible_bytes // 2
            yield job(model, device, precision=precision, free_bytes=free, fetch_bytes=0, unprivileged=True)
        yield job(model, device, precision=precision, source=Source("./tuned", path="/models/tuned"))
        yield job(model, device, precision=precision, source=Source("s3://bucket/model"))


def few_jobs(model: ModelFacts) -> Iterator[ServingJob]:
    """Yield ``model`` on H100s in every shape, with its whole context, and with an fp8 KV cache."""
    for shape in shapes(model, H100):
        yield job(model, H100, context_tokens=model.context, **shape)
    yield job(model, H100, precision="fp8", kv_dtype="fp8", max_num_seqs=64)
