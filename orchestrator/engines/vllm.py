"""vLLM: the default engine, on CUDA, ROCm, TPU, Gaudi and CPU.

Options and figures are those of vLLM 0.33.0, from its documentation and its own parser.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

from orchestrator.backend import Mount, Probe
from orchestrator.engines import arguments, checks, images, nodes, quantization, startup
from orchestrator.engines.arguments import Option, Optioned, Rules, option, positive
from orchestrator.engines.job import (
    UNKNOWN_RANK,
    Adapters,
    EngineLaunch,
    Metrics,
    Profile,
    ServingJob,
    Spelled,
)
from orchestrator.engines.quantization import Choice, Method
from orchestrator.units import GIB

PORT = 8000
MEMORY_UTILIZATION = 0.92
"""The engine's default, written out: it was 0.90 in older releases."""
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
ADAPTERS = Adapters("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "--lora-modules")
"""Open where ``VLLM_ALLOW_RUNTIME_LORA_UPDATING`` is set (vLLM docs, features/lora)."""
DRAIN_MARGIN_S = 15
"""What the engine needs to end after its drain (KServe 0.19 leaves as much, kserve pull 5496)."""

GFX = frozenset(
    "gfx90a gfx942 gfx950 gfx1100 gfx1101 gfx1150 gfx1151 gfx1200 gfx1201".split()  # noqa: SIM905
)
"""What the ROCm image is built for (vLLM docs, installation/gpu)."""
_FP8_GFX = frozenset({"gfx942", "gfx950", "gfx1200", "gfx1201"})
_CDNA3_ON = frozenset({"gfx942", "gfx950"})
_OFF_GPU = frozenset({"cpu", "gaudi", "xpu"})
_XPU = frozenset({"xpu"})

METHODS: Mapping[str, Method] = {
    "awq": Method((7, 5), gfx=GFX, others=_OFF_GPU),
    "gptq": Method((7, 5), gfx=GFX, others=_OFF_GPU),
    "auto-round": Method((7, 5), gfx=GFX, others=frozenset({"cpu", "xpu"})),
    "fp8": Method((7, 5), (8, 9), _FP8_GFX, _FP8_GFX, frozenset({"gaudi", "tpu", "xpu"})),
    "fbgemm_fp8": Method((8, 0), (8, 9), _FP8_GFX, _FP8_GFX),
    # its scheme may be int8, native from 7.5, or fp8, from 8.9: no claim is made
    "compressed-tensors": Method((7, 5), gfx=GFX, others=frozenset({"cpu", "gaudi", "tpu", "xpu"})),
    "experts_int8": Method((8, 0)),
    "mxfp4": Method((8, 0), (10, 0), _CDNA3_ON, frozenset({"gfx950"}), frozenset({"tpu", "xpu"})),
    "modelopt": Method((8, 0), (8, 9), _FP8_GFX, _FP8_GFX),
    "modelopt_fp8": Method((8, 0), (8, 9), _FP8_GFX, _FP8_GFX),
    "modelopt_fp4": Method((7, 5), (10, 0), _CDNA3_ON),
    "quark": Method((7, 0), (8, 9), GFX, _FP8_GFX),
    "torchao": Method((7, 5), gfx=GFX),
    "fp8_per_tensor": Method((7, 5), (8, 9), _FP8_GFX, _FP8_GFX, _XPU),
    "fp8_per_block": Method((7, 5), (8, 9), _FP8_GFX, _FP8_GFX, _XPU),
    "fp8_per_channel": Method((7, 5), (8, 9), _FP8_GFX, _FP8_GFX),
    "int8_per_channel_weight_only": Method((7, 5)),
    "nvfp4_per_token": Method((7, 5), (10, 0)),
    "mxfp8": Method((7, 5), (10, 0), frozenset({"gfx950"}), frozenset({"gfx950"})),
}
"""``get_min_capability`` of each method in vLLM 0.33.0; on AMD and Intel the lists in ``platforms/``.
GGUF and bitsandbytes left the core: they need plugins that the image does not have."""

ONLINE: Mapping[str, str] = {"fp8": "fp8", "int8": "int8_per_channel_weight_only"}
"""What plain weights are turned into while loading, by precision."""
ONLINE_NAMES = frozenset(
    "experts_int8 fp8_per_tensor fp8_per_block fp8_per_channel nvfp4_per_token mxfp8".split()  # noqa: SIM905
)

METRICS = Metrics(
    queue=("vllm:num_requests_waiting",),
    running=("vllm:num_requests_running",),
    kv_cache=("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
    ttft=("vllm:time_to_first_token_seconds",),
    steps=("vllm:iteration_tokens_total_count",),
)

ROUTES = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/audio/transcriptions",
    "/v1/audio/translations",
    "/v1/models",
)
"""Requests only. Beside them the server answers /pause, /update_weights, /v1/load_lora_adapter and
more, most of them without a key (vLLM docs, usage/security)."""

POOLING_ROUTES = (
    "/v1/embeddings",
    "/v2/embed",
    "/pooling",
    "/classify",
    "/score",
    "/v1/score",
    "/rerank",
    "/v1/rerank",
    "/v2/rerank",
    "/v1/models",
)
"""What a model that pools answers (vLLM 0.33.0, entrypoints/pooling): each by its task, others get a 404."""


def _stretched(overrides: str) -> int | None:
    """Return the context of a model whose config is overridden so, None where that leaves it as it is.

    YaRN has ``factor`` times what the model was trained on (vLLM's ``_get_and_verify_max_len``).

    >>> _stretched('{"rope_scaling": {"type": "yarn", "factor": 4, "original_max_position_embeddings": 100}}')
    400
    """
    try:
        said = json.loads(overrides)
    except ValueError:
        return None  # the engine says what it makes of it
    if not isinstance(said, dict):
        return None
    rope = said.get("rope_scaling") or said.get("rope_parameters")
    if isinstance(rope, dict) and rope.get("rope_type", rope.get("type")) == "yarn":
        factor, trained = rope.get("factor"), rope.get("original_max_position_embeddings")
        if isinstance(factor, int | float) and isinstance(trained, int):
            return int(factor * trained)
    longest = said.get("max_position_embeddings")
    return longest if isinstance(longest, int) else None


_PER_NODE = "nodes and ranks are set for each node"
RULES = Rules(
    owned={
        "--model": "say model: in the spec",
        "--host": "the container has to listen on every address",
        "--port": "say port: in the spec",
        "--config": "options in a file cannot be checked, write them here",
        "--headless": _PER_NODE,
        "--nnodes": _PER_NODE,
        "--node-rank": _PER_NODE,
        "--master-addr": _PER_NODE,
    },
    secret={"--api-key": "put VLLM_API_KEY in env", "--hf-token": "put HF_TOKEN in env"},
    fields={
        "--tensor-parallel-size": ("tensor", positive),
        "--pipeline-parallel-size": ("pipeline", positive),
        "--data-parallel-size": ("data", positive),
        "--max-num-seqs": ("max_num_seqs", positive),
        "--max-num-batched-tokens": ("max_num_batched_tokens", positive),
        "--max-model-len": ("context_tokens", lambda v: None if v in ("auto", "-1") else positive(v)),
        "--gpu-memory-utilization": ("memory_utilization", float),
        "--quantization": ("quantization", str),
        "--kv-cache-dtype": ("kv_dtype", arguments.kv_dtype),
        "--runner": ("pools", lambda v: {"pooling": True, "generate": False}.get(v)),
        "--hf-overrides": ("longest_tokens", _stretched),
    },
    beside=frozenset({"--speculative-config"}),
)

SPELLED = Spelled(
    programs=(("vllm", "serve"), ("-m", "vllm.entrypoints.openai.api_server")),
    first=True,
    says={
        "--model": "model.id",
        "--revision": "model.revision",
        "--dtype": "model.precision",
        "--lora-modules": "model.adapters",
        "--max-loras": "model.max_adapters",
        "--port": "port",
    },
    drops={
        "--enable-lora": "said by adapters",
        "--max-lora-rank": "said by adapters",
        "--distributed-executor-backend": "the plan starts the processes",
    },
)
"""How people start it (vLLM docs, cli/serve, and the module that was the way before)."""

_FLOAT16_UNSTABLE = ("Gemma2", "Gemma3", "Glm4For")
"""Architectures that vLLM refuses in float16 (its config/model.py)."""


class Vllm(Optioned):
    """vLLM's OpenAI server, one process group per replica."""

    name = "vllm"
    versions = ("0.33.0",)
    rules = RULES
    spelled = SPELLED

    def refusal(self, job: ServingJob) -> str | None:
        """Say why it cannot serve ``job``, the user's options already read into it."""
        return refusal(job)

    def launch(self, job: ServingJob, *, node_rank: int = 0) -> EngineLaunch:
        """Return the container of node ``node_rank`` of one replica of ``job``.

        Raises:
            ValueError: vLLM refuses ``job``; the message is the reason.
        """
        settled = self.accepted(job)
        words, told = settled.words(options(job))
        command = ("vllm", "serve", job.source.reference, *words)
        if _is_slice(job):
            command = nodes.gathered(command)
        elif job.nodes > 1:
            command = nodes.wrap(command, followers=("--headless",))
        version = images.version(job, self.name, self.versions[0])
        leads = node_rank == 0
        return EngineLaunch(
            image=images.reference(job, self.name),
            entrypoint=command[:2],
            command=command[2:],
            env=arguments.overlay(environment(job), job.env),
            secrets=job.secrets,
            caches=caches(job, f"vllm-{version}"),
            files=(nodes.entry_file(),) if job.nodes > 1 else (),
            shm_bytes=startup.shm_bytes(job),
            port=(job.port or PORT) if leads else 0,
            probe=probe(job) if leads else None,
            metrics=METRICS,
            adapters=adapters(job),
            model_name=job.name,
            routes=routes(job) if leads else (),
            stop_grace_s=float(job.drain_s + DRAIN_MARGIN_S),
            profile=profile(job),
            warnings=(*told, *cautions(settled.job)),
        )


def refusal(job: ServingJob, engine: str = "vllm") -> str | None:
    """Say why vLLM cannot serve ``job``, the user's options already read into it."""
    return (
        images.refuses(job, engine)
        or checks.gfx(job, GFX, engine)
        or checks.converted(job, "vllm", Vllm.versions[0])
        or checks.encodes(job)
        or checks.world(job)
        or checks.divides(job)
        or checks.staged(job, "vllm", Vllm.versions[0])
        or _experts(job)
        or checks.source(job, ("hub", "folder", "s3", "gs"), engine)
        or _weights(job, engine)
        or checks.kv_cache(job)
        or _fp8_cache(job, engine)
        or checks.gated(job)
        or checks.context(job)
        or checks.utilization(job)
        or checks.batch(job)
        or _ranks(job)
    )


def _experts(job: ServingJob) -> str | None:
    if job.expert == 1:
        return None
    if not job.model.experts:
        return "the model has no experts to spread"
    spread = job.tensor * job.data
    return None if job.expert == spread else f"experts are spread over {spread} devices, not {job.expert}"


def _weights(job: ServingJob, engine: str) -> str | None:
    chosen = quantization.choose(job, online=ONLINE, engine=engine, also=ONLINE_NAMES)
    if isinstance(chosen, str):
        return chosen
    if chosen.method and (why := quantization.refuses(chosen.method, METHODS, job.accelerator, engine)):
        return why
    kind = quantization.dtype(job)
    if kind is None:
        return f"{job.accelerator.name if job.accelerator else 'a CPU'} has no bf16, ask for precision fp16"
    if kind == "float16" and job.model.architecture.startswith(_FLOAT16_UNSTABLE):
        return f"{job.model.architecture} is unstable in fp16 and {engine} refuses it"
    return f"{engine} runs mxfp4 with bf16 only" if (kind, chosen.method) == ("float16", "mxfp4") else None


def _fp8_cache(job: ServingJob, engine: str) -> str | None:
    device = job.accelerator
    if job.kv_dtype == "fp8" and device and device.gfx and device.gfx not in _FP8_GFX:
        return f"{engine} has no fp8 KV cache on {device.gfx} ({device.name})"
    return None


def _ranks(job: ServingJob) -> str | None:
    largest = max((a.rank or 0 for a in job.adapters), default=0)
    return f"an adapter of rank {largest} is above {LORA_RANKS[-1]}" if largest > LORA_RANKS[-1] else None


def options(job: ServingJob) -> list[Option]:
    """Return the options that the plan decides, before the user's own."""
    chosen = quantization.choose(job, online=ONLINE, engine="vllm", also=ONLINE_NAMES)
    parts = [option("--served-model-name", job.name)]
    parts += [option("--host", "0.0.0.0"), option("--port", job.port or PORT)]
    if job.source.revision and job.source.scheme == "hub":
        parts.append(option("--revision", job.source.revision))
    if job.source.scheme in ("s3", "gs"):
        parts.append(option("--load-format", "runai_streamer"))
    if job.model.pools:
        parts.append(option("--runner", "pooling"))
    parts.append(option("--dtype", quantization.dtype(job)))
    if isinstance(chosen, Choice) and chosen.online:
        parts.append(option("--quantization", chosen.method))
    drain = option("--shutdown-timeout", job.drain_s)
    return [*parts, *memory_options(job), *parallel_options(job), *_adapters(job), drain]


def memory_options(job: ServingJob) -> list[Option]:
    """Return the options that say how much memory is for what."""
    parts = [option("--max-model-len", job.context_tokens or "auto")]
    if job.accelerator:
        use = startup.utilization(job, MEMORY_UTILIZATION)
        parts.append(option("--gpu-memory-utilization", f"{use:.4g}"))
    if job.kv_dtype != "auto":
        parts.append(option("--kv-cache-dtype", {"bf16": "bfloat16", "fp8": "fp8"}[job.kv_dtype]))
    if job.max_num_seqs:
        parts.append(option("--max-num-seqs", job.max_num_seqs))
    if job.max_num_batched_tokens:
        parts.append(option("--max-num-batched-tokens", job.max_num_batched_tokens))
    return parts


def parallel_options(job: ServingJob) -> list[Option]:
    """Return the options that spread the model over accelerators and nodes."""
    degrees = {
        "--tensor-parallel-size": job.tensor,
        "--pipeline-parallel-size": job.pipeline,
        "--data-parallel-size": job.data,
    }
    parts = [option(name, degree) for name, degree in degrees.items() if degree > 1]
    if job.expert > 1:
        parts.append(option("--enable-expert-parallel"))
    if _is_slice(job):
        parts.append(option("--distributed-executor-backend", "ray"))
    elif job.nodes > 1:
        parts += [option("--nnodes", job.nodes), option("--node-rank", nodes.RANK)]
        parts.append(option("--master-addr", nodes.MASTER))
    return parts


def _adapters(job: ServingJob) -> list[Option]:
    if not job.slots:
        return []
    named = [f"{a.name}={a.source.reference}" for a in job.adapters]
    return [
        option("--enable-lora"),
        option("--max-loras", job.slots),
        option("--max-lora-rank", _room(job)),
        *([option("--lora-modules", *named)] if named else []),
    ]


def _room(job: ServingJob) -> int:
    needed = max((a.rank or UNKNOWN_RANK for a in job.adapters), default=UNKNOWN_RANK)
    return next(rank for rank in LORA_RANKS if rank >= needed)


def adapters(job: ServingJob) -> Adapters | None:
    """Return how adapters are taken at run time, None where the user's own arguments list them."""
    if not job.slots or job.states_own(ADAPTERS.flag):
        return None
    return replace(ADAPTERS, slots=job.slots, rank=_room(job))


def environment(job: ServingJob) -> tuple[tuple[str, str], ...]:
    """Return the variables the engine needs; none of them differs from replica to replica.

    vLLM's compile cache is keyed by most ``VLLM_*`` variables, so values that change would
    empty it (dynamo issue 10695).
    """
    home = home_of(job)
    parts = [("HF_HOME", f"{home}/.cache/huggingface"), ("VLLM_CACHE_ROOT", f"{home}/.cache/vllm")]
    parts += [("VLLM_NO_USAGE_STATS", "1"), ("VLLM_ENGINE_READY_TIMEOUT_S", f"{startup.start_s(job):.0f}")]
    if job.slots:
        parts.append(("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "True"))
    if job.fetch_bytes == 0 or job.source.scheme == "folder":
        parts.append(("HF_HUB_OFFLINE", "1"))
    if job.accelerator is None and job.kv_cache_bytes:
        parts.append(("VLLM_CPU_KVCACHE_SPACE", str(-(-job.kv_cache_bytes // GIB))))
    if job.nodes > 1:
        parts += [*nodes.ENV, ("VLLM_HOST_IP", nodes.OWN)]
    if _is_slice(job):
        parts.append(("TPU_MULTIHOST_BACKEND", "ray"))
    return tuple(parts)


def _is_slice(job: ServingJob) -> bool:
    """Return whether the nodes are one slice of TPUs, which are gathered by Ray.

    vLLM for TPUs has no other way over machines (tpu-inference PRs 278 and 2893; the example of
    LeaderWorkerSet, docs/examples/vllm/TPU).
    """
    return job.nodes > 1 and job.family == "tpu"


def home_of(job: ServingJob) -> str:
    """Return the home folder inside the container."""
    return "/home/vllm" if job.unprivileged else "/root"


def profile(job: ServingJob) -> Profile:
    """Return the user: root, or the prepared user 2000 of group 0 (vLLM docs, deployment/docker)."""
    writable = (f"{home_of(job)}/.cache", "/tmp", "/dev/shm")
    return Profile("2000:0" if job.unprivileged else None, writable)


def caches(job: ServingJob, name: str) -> tuple[Mount, ...]:
    """Return the volumes that save the next start: weights, and what was compiled by this version.

    48 s against 79 s from boot to ready on an A10 (vllm pull 49782).
    """
    home = home_of(job)
    hub = Mount("huggingface", f"{home}/.cache/huggingface", "cache")
    compiled = Mount(f"{name}-{job.family}", f"{home}/.cache/vllm", "cache")
    return (hub, compiled) if job.source.scheme == "hub" else (compiled,)


def routes(job: ServingJob) -> tuple[str, ...]:
    """Return the request paths: a model either generates or pools, and has the routes of that alone."""
    return POOLING_ROUTES if job.model.pools else ROUTES


def probe(job: ServingJob) -> Probe:
    """Return the probe: the server answers only once the model is loaded.

    Ten seconds and three failures, since a saturated engine answers late (gonka pull 1421 counts
    eight false restarts a day at 2 s).
    """
    return Probe(port=job.port or PORT, path="/health", timeout_s=10.0, start_s=startup.start_s(job))


def cautions(job: ServingJob) -> tuple[str, ...]:
    """Return what a reader of the plan should know about this job on vLLM."""
    chosen = quantization.choose(job, online=ONLINE, engine="vllm", also=ONLINE_NAMES)
    return checks.cautions(job, "vllm", Vllm.versions[0], chosen=chosen, methods=METHODS)


ENGINE = Vllm()
