"""SGLang: a serving engine for CUDA, ROCm and CPU.

Options and figures are those of SGLang 0.5.23, from its documentation and its own parser.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from orchestrator.backend import Mount, Probe
from orchestrator.engines import arguments, checks, images, nodes, quantization, startup
from orchestrator.engines.arguments import Option, Optioned, Rules, option, positive
from orchestrator.engines.job import (
    Adapters,
    EngineLaunch,
    Metrics,
    Profile,
    ServingJob,
    Spelled,
)
from orchestrator.engines.quantization import Choice, Method

PORT = 30000
RENDEZVOUS_PORT = 20000
DRAIN_MARGIN_S = 15
"""Its drain looks every 5 s whether requests are left, and has no limit of its own."""
HEALTH_TIMEOUT_S = 30.0
"""``/health`` generates a token and gives up after 20 s itself."""

ADAPTERS = Adapters("/load_lora_adapter", "/unload_lora_adapter", "--lora-paths", called="{base}:{name}")
"""An adapter's name stands after the model's and a colon (SGLang docs, advanced_features/lora)."""
GFX = frozenset({"gfx942", "gfx950"})
_CPU = frozenset({"cpu"})

METHODS: Mapping[str, Method] = {
    "awq": Method((7, 5), gfx=GFX, others=_CPU),
    "gptq": Method((8, 0), gfx=GFX),
    "fp8": Method((8, 0), (8, 9), GFX, GFX, _CPU),
    "auto-round": Method((8, 0)),
    "compressed-tensors": Method((8, 0), gfx=GFX, others=_CPU),
    "w8a8_int8": Method((7, 5), (7, 5), others=_CPU),
    "w8a8_fp8": Method((8, 9), (8, 9), GFX, GFX),
    "mxfp4": Method((8, 0), (10, 0), GFX, frozenset({"gfx950"})),
    "mxfp8": Method((10, 0), (10, 0), frozenset({"gfx950"}), frozenset({"gfx950"})),
    "modelopt": Method((8, 9), (8, 9)),
    "modelopt_fp8": Method((8, 9), (8, 9)),
    "modelopt_fp4": Method((8, 0), (10, 0)),
    "nvfp4_online": Method((10, 0), (10, 0)),
    "quark": Method(None, None, GFX, GFX),
    "bitsandbytes": Method((7, 0)),
}
"""``get_min_capability`` of each method in SGLang 0.5.23; below 8.9 its fp8 widens through Marlin."""

ONLINE: Mapping[str, str] = {"fp8": "fp8"}
"""What plain weights are turned into while loading (its list of ``--quantization`` choices)."""
ONLINE_NAMES = frozenset({"mxfp8", "nvfp4_online"})

METRICS = Metrics(
    queue=("sglang:num_queue_reqs",),
    running=("sglang:num_running_reqs",),
    kv_cache=("sglang:token_usage",),
    ttft=("sglang:time_to_first_token_seconds",),
)

ROUTES = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/rerank",
    "/v1/score",
    "/v1/audio/transcriptions",
    "/v1/models",
)
"""Requests only: /flush_cache, /update_weights_from_disk, /pause_generation and /abort_request are
on the same port."""

POOLING_ROUTES = (
    "/v1/embeddings",
    "/v1/classify",
    "/classify",
    "/v1/rerank",
    "/v1/score",
    "/v1/models",
)
"""What a model answers with ``--is-embedding`` (SGLang 0.5.23, its http_server)."""

_PER_NODE = "nodes and ranks are set for each node"
RULES = Rules(
    owned={
        "--model-path": "say model: in the spec",
        "--host": "the container has to listen on every address",
        "--port": "say port: in the spec",
        "--config": "options in a file cannot be checked, write them here",
        "--nnodes": _PER_NODE,
        "--node-rank": _PER_NODE,
        "--dist-init-addr": _PER_NODE,
    },
    # its server reads no key from the environment, so keys are the gateway's
    secret={"--api-key": "let the gateway ask for one", "--admin-api-key": "let the gateway ask for one"},
    fields={
        "--tp-size": ("tensor", positive),
        "--pp-size": ("pipeline", positive),
        "--dp-size": ("data", positive),
        "--ep-size": ("expert", positive),
        "--max-running-requests": ("max_num_seqs", positive),
        "--context-length": ("context_tokens", positive),
        "--mem-fraction-static": ("memory_utilization", float),
        "--quantization": ("quantization", str),
        "--kv-cache-dtype": ("kv_dtype", arguments.kv_dtype),
        "--is-embedding": ("pools", lambda _: True),
    },
    beside=frozenset({"--speculative-draft-model-path"}),
)


class Sglang(Optioned):
    """SGLang's OpenAI server, one process group per replica."""

    name = "sglang"
    versions = ("0.5.23",)
    rules = RULES
    spelled = Spelled(
        programs=(("-m", "sglang.launch_server"), ("sglang", "serve")),
        says={
            "--model-path": "model.id",
            "--revision": "model.revision",
            "--dtype": "model.precision",
            "--lora-paths": "model.adapters",
            "--max-loras-per-batch": "model.max_adapters",
            "--port": "port",
        },
        drops={
            "--enable-lora": "said by adapters",
            "--max-lora-rank": "said by adapters",
            "--device": "the plan chose it",
        },
    )

    def refusal(self, job: ServingJob) -> str | None:
        """Say why it cannot serve ``job``, the user's options already read into it."""
        if job.unprivileged:
            return "sglang's image has no user but root"
        return (
            images.refuses(job, self.name)
            or checks.gfx(job, GFX, self.name)
            or checks.borrowed(job, self.name, self.versions[0])
            or checks.encodes(job)
            or checks.world(job)
            or checks.divides(job)
            or _spread(job)
            or checks.source(job, ("hub", "folder"), self.name)
            or _weights(job)
            or checks.kv_cache(job)
            or checks.gated(job)
            or checks.context(job)
            or _fraction(job)
            or checks.batch(job)
        )

    def launch(self, job: ServingJob, *, node_rank: int = 0) -> EngineLaunch:
        """Return the container of node ``node_rank`` of one replica of ``job``.

        Raises:
            ValueError: SGLang refuses ``job``; the message is the reason.
        """
        settled = self.accepted(job)
        words, told = settled.words(_options(job))
        command = ("python3", "-m", "sglang.launch_server", "--model-path", job.source.reference, *words)
        if job.nodes > 1:
            command = nodes.wrap(command)
        version = images.version(job, self.name, self.versions[0])
        leads = node_rank == 0
        return EngineLaunch(
            image=images.reference(job, self.name),
            entrypoint=command[:2],
            command=command[2:],
            env=arguments.overlay(_environment(job), job.env),
            secrets=job.secrets,
            caches=_caches(job, version),
            files=(nodes.entry_file(),) if job.nodes > 1 else (),
            shm_bytes=startup.shm_bytes(job),
            port=(job.port or PORT) if leads else 0,
            probe=_probe(job) if leads else None,
            metrics=METRICS,
            adapters=_run_time(job),
            model_name=job.name,
            routes=(POOLING_ROUTES if job.model.pools else ROUTES) if leads else (),
            stop_grace_s=float(job.drain_s + DRAIN_MARGIN_S),
            profile=Profile(writable=("/root/.cache", "/root/.triton", "/tmp", "/dev/shm")),
            warnings=(*told, *_cautions(settled.job)),
        )


def _spread(job: ServingJob) -> str | None:
    if job.expert > 1 and not job.model.experts:
        return "the model has no experts to spread"
    if job.expert > 1 and job.tensor % job.expert:
        return f"experts over {job.expert} devices do not divide tensor {job.tensor}"
    if job.data > 1 and job.nodes > 1:
        return "sglang repeats a model inside one node only, use replicas"
    return None


def _weights(job: ServingJob) -> str | None:
    chosen = quantization.choose(job, online=ONLINE, engine="sglang", also=ONLINE_NAMES)
    if isinstance(chosen, str):
        return chosen
    if chosen.method and (why := quantization.refuses(chosen.method, METHODS, job.accelerator, "sglang")):
        return why
    if quantization.dtype(job) is None:
        return f"{job.accelerator.name if job.accelerator else 'a CPU'} has no bf16, ask for precision fp16"
    return None


def _fraction(job: ServingJob) -> str | None:
    # a fraction of what is free at the start, so nothing that others hold can contradict it
    use = job.memory_utilization
    return None if use is None or 0 < use < 1 else f"memory utilization {use:g} is not a fraction of 1"


def _options(job: ServingJob) -> list[Option]:
    chosen = quantization.choose(job, online=ONLINE, engine="sglang", also=ONLINE_NAMES)
    parts = [option("--served-model-name", job.name)]
    parts += [option("--host", "0.0.0.0"), option("--port", job.port or PORT)]
    if job.source.revision and job.source.scheme == "hub":
        parts.append(option("--revision", job.source.revision))
    parts.append(option("--dtype", quantization.dtype(job)))
    if isinstance(chosen, Choice) and chosen.online:
        parts.append(option("--quantization", chosen.method))
    if job.accelerator is None:
        parts.append(option("--device", "cpu"))
    if job.model.pools:
        parts.append(option("--is-embedding"))
    if job.model.bidirectional:  # nothing of a prompt is kept, it is read whole (SGLang docs, rerank_models)
        parts += [option("--disable-radix-cache"), option("--attention-backend", "triton")]
    return [*parts, *_memory(job), *_parallel(job), *_adapters(job), option("--enable-metrics")]


def _memory(job: ServingJob) -> list[Option]:
    parts = []
    if job.context_tokens:
        parts.append(option("--context-length", job.context_tokens))
    if job.memory_utilization and job.accelerator:
        parts.append(option("--mem-fraction-static", f"{job.memory_utilization:.4g}"))
    if job.kv_dtype != "auto":
        parts.append(option("--kv-cache-dtype", {"bf16": "bfloat16", "fp8": "fp8_e4m3"}[job.kv_dtype]))
    if job.max_num_seqs:
        parts.append(option("--max-running-requests", job.max_num_seqs))
    if job.model.bidirectional:
        parts.append(option("--chunked-prefill-size", -1))
    elif job.max_num_batched_tokens:
        parts.append(option("--chunked-prefill-size", job.max_num_batched_tokens))
    return parts


def _parallel(job: ServingJob) -> list[Option]:
    degrees = {
        "--tp-size": job.tensor,
        "--pp-size": job.pipeline,
        "--dp-size": job.data,
        "--ep-size": job.expert,
    }
    parts = [option(name, degree) for name, degree in degrees.items() if degree > 1]
    if job.nodes > 1:
        parts += [option("--nnodes", job.nodes), option("--node-rank", nodes.RANK)]
        parts.append(option("--dist-init-addr", f"{nodes.MASTER}:{RENDEZVOUS_PORT}"))
    return parts


def _run_time(job: ServingJob) -> Adapters | None:
    """Return how adapters are taken at run time, None beside copies that share the requests."""
    if not job.slots or job.data > 1 or job.states_own(ADAPTERS.flag):
        return None
    return replace(ADAPTERS, slots=job.slots, rank=job.adapter_rank)


def _adapters(job: ServingJob) -> list[Option]:
    if not job.slots:
        return []
    parts = [option("--enable-lora"), option("--max-loras-per-batch", job.slots)]
    if job.adapters:
        parts.append(option("--lora-paths", *(f"{a.name}={a.source.reference}" for a in job.adapters)))
    # written out: it would read them from the adapters listed, and refuse larger ones later
    return [*parts, option("--max-lora-rank", job.adapter_rank), option("--lora-target-modules", "all")]


def _environment(job: ServingJob) -> tuple[tuple[str, str], ...]:
    parts = [("HF_HOME", "/root/.cache/huggingface")]
    if job.fetch_bytes == 0 or job.source.scheme == "folder":
        parts.append(("HF_HUB_OFFLINE", "1"))
    if job.nodes > 1:
        parts += [*nodes.ENV, ("SGLANG_HOST_IP", nodes.OWN)]
    return tuple(parts)


def _caches(job: ServingJob, version: str) -> tuple[Mount, ...]:
    hub = Mount("huggingface", "/root/.cache/huggingface", "cache")
    compiled = Mount(f"sglang-{version}-{job.family}", "/root/.cache/flashinfer", "cache")
    return (hub, compiled) if job.source.scheme == "hub" else (compiled,)


def _probe(job: ServingJob) -> Probe:
    return Probe(
        port=job.port or PORT,
        path="/health",
        timeout_s=HEALTH_TIMEOUT_S,
        interval_s=10.0,
        start_s=startup.start_s(job),
    )


def _cautions(job: ServingJob) -> tuple[str, ...]:
    chosen = quantization.choose(job, online=ONLINE, engine="sglang", also=ONLINE_NAMES)
    return checks.cautions(job, "sglang", Sglang.versions[0], chosen=chosen, methods=METHODS)


ENGINE = Sglang()
