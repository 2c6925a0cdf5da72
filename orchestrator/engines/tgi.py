"""Text Generation Inference: ended upstream, kept for those who run it.

Its README says since 2025-12-11 that it is in maintenance and recommends vLLM and SGLang. Pinned
to 3.3.5; options as in its launcher's reference.
"""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.backend import Mount, Probe
from orchestrator.engines import arguments, checks, images, quantization, startup
from orchestrator.engines.arguments import Optioned, Rules, positive
from orchestrator.engines.job import Adapter, EngineLaunch, Metrics, Profile, ServingJob, Spelled
from orchestrator.engines.quantization import Choice, Method

PORT = 8080
DRAIN_MARGIN_S = 15
ENDED = "tgi has ended upstream and gets no new models or fixes: vllm and sglang serve the same API"

_CDNA = frozenset({"gfx90a", "gfx942"})

METHODS: Mapping[str, Method] = {
    "awq": Method((8, 0), gfx=_CDNA),
    "gptq": Method((8, 0), gfx=_CDNA),
    "fp8": Method((8, 0), (8, 9), frozenset({"gfx942"}), frozenset({"gfx942"}), frozenset({"gaudi"})),
    "compressed-tensors": Method((8, 0)),
    "eetq": Method((8, 0)),
    "exl2": Method((8, 0)),
    "marlin": Method((8, 0)),
    "bitsandbytes-nf4": Method((8, 0)),
    "bitsandbytes-fp4": Method((8, 0)),
    "bitsandbytes": Method((8, 0)),
}
"""The choices of ``--quantize`` in its launcher's reference."""
ONLINE: Mapping[str, str] = {"fp8": "fp8", "int8": "eetq", "int4": "bitsandbytes-nf4"}
ONLINE_NAMES = frozenset({"bitsandbytes", "bitsandbytes-fp4"})

METRICS = Metrics(queue=("tgi_queue_size",), running=("tgi_batch_current_size",))
"""It tells neither its use of the KV cache nor a time to the first token."""

ROUTES = ("/v1/chat/completions", "/v1/completions", "/generate", "/generate_stream", "/v1/models")

RULES = Rules(
    owned={
        "--model-id": "say model: in the spec",
        "--hostname": "the container has to listen on every address",
        "--port": "say port: in the spec",
        "--env": "it prints the environment, secrets included",
    },
    secret={
        "--api-key": "put API_KEY in env",
        "--ngrok-authtoken": "put NGROK_AUTHTOKEN in env",
    },
    fields={
        "--num-shard": ("tensor", positive),
        "--max-total-tokens": ("context_tokens", positive),
        "--max-batch-size": ("max_num_seqs", positive),
        "--cuda-memory-fraction": ("memory_utilization", float),
        "--quantize": ("quantization", str),
    },
)


class Tgi(Optioned):
    """The last images of TGI, one node, tensor parallelism only."""

    name = "tgi"
    versions = ("3.3.5",)
    rules = RULES
    spelled = Spelled(
        programs=(("text-generation-launcher",),),
        says={
            "--model-id": "model.id",
            "--revision": "model.revision",
            "--dtype": "model.precision",
            "--port": "port",
        },
        drops={"--sharded": "computed by the plan"},
        every_variable=True,
    )

    def refusal(self, job: ServingJob) -> str | None:
        """Say why it cannot serve ``job``, the user's options already read into it."""
        if why := checks.generates(job, self.name):
            return why
        if job.nodes > 1 or max(job.pipeline, job.data, job.expert) > 1:
            return "tgi spreads a model by tensor parallelism on one node only"
        if job.unprivileged:
            return "tgi's image has no user but root"
        if spaced := next((a for a in job.args if any(c.isspace() for c in a)), None):
            return f"args: tgi's entry script splits {spaced!r} at its spaces, use env"
        return (
            images.refuses(job, self.name)
            or checks.gfx(job, _CDNA, self.name)
            or checks.architecture(job, self.name, self.versions[0])
            or checks.world(job)
            or checks.divides(job)
            or checks.source(job, ("hub", "folder"), self.name)
            or _weights(job)
            or checks.kv_cache(job)
            or _named_apart(job)
            or checks.gated(job)
            or checks.context(job)
            or checks.utilization(job)
        )

    def launch(self, job: ServingJob, *, node_rank: int = 0) -> EngineLaunch:
        """Return the container of one replica of ``job``; ``node_rank`` is 0, TGI spans no nodes.

        What the plan decides goes by environment variable: the image's entry script splits its
        arguments at spaces.

        Raises:
            ValueError: TGI refuses ``job``; the message is the reason.
        """
        if node_rank:
            raise ValueError("tgi serves from one node")
        settled = self.accepted(job)
        words, told = settled.words(())
        return EngineLaunch(
            image=images.reference(job, self.name),
            command=words,
            env=arguments.overlay(_environment(job), job.env),
            secrets=job.secrets,
            caches=(Mount("tgi", "/data", "cache"),) if job.source.scheme == "hub" else (),
            shm_bytes=startup.shm_bytes(job),
            port=job.port or PORT,
            probe=Probe(
                port=job.port or PORT,
                path="/health",
                timeout_s=10.0,
                start_s=startup.start_s(job),
            ),
            metrics=METRICS,
            model_name=job.name,
            routes=ROUTES,
            stop_grace_s=float(job.drain_s + DRAIN_MARGIN_S),
            profile=Profile(writable=("/data", "/tmp", "/dev/shm")),
            warnings=(ENDED, *told, *_cautions(settled.job)),
        )


def _weights(job: ServingJob) -> str | None:
    chosen = quantization.choose(job, online=ONLINE, engine="tgi", also=ONLINE_NAMES)
    if isinstance(chosen, str):
        return chosen
    if chosen.method and (why := quantization.refuses(chosen.method, METHODS, job.accelerator, "tgi")):
        return why
    if chosen.method == "exl2" and job.tensor > 1:
        return "tgi cannot split exl2 weights"
    if job.kv_dtype == "fp8" and job.family != "cuda":
        return f"tgi has no fp8 KV cache on {job.family}"
    return None


def _named_apart(job: ServingJob) -> str | None:
    apart = next((a for a in job.adapters if a.source.scheme == "hub" and a.name != a.source.id), None)
    return f"tgi names adapters of the hub by their id, say name: {apart.source.id}" if apart else None


def _adapter(adapter: Adapter) -> str:
    if adapter.source.scheme != "hub":
        return f"{adapter.name}={adapter.source.reference}"
    return adapter.source.id + (f"@{adapter.source.revision}" if adapter.source.revision else "")


def _environment(job: ServingJob) -> tuple[tuple[str, str], ...]:
    chosen = quantization.choose(job, online=ONLINE, engine="tgi", also=ONLINE_NAMES)
    kind = quantization.dtype(job)
    online = isinstance(chosen, Choice) and chosen.online
    values: dict[str, object] = {
        "MODEL_ID": job.source.reference,
        "REVISION": job.source.revision if job.source.scheme == "hub" else None,
        "HOSTNAME": "0.0.0.0",
        "PORT": job.port or PORT,
        "NUM_SHARD": job.tensor if job.accelerator else None,
        # it takes a dtype or a quantization, not both
        "QUANTIZE": chosen.method if isinstance(chosen, Choice) and online else None,
        "DTYPE": kind if not online and kind != "auto" else None,
        "KV_CACHE_DTYPE": "fp8_e4m3fn" if job.kv_dtype == "fp8" else None,
        "MAX_TOTAL_TOKENS": job.context_tokens,
        "MAX_INPUT_TOKENS": job.context_tokens - 1 if job.context_tokens else None,
        "MAX_BATCH_SIZE": job.max_num_seqs,
        "MAX_BATCH_PREFILL_TOKENS": job.max_num_batched_tokens,
        "CUDA_MEMORY_FRACTION": f"{startup.utilization(job, 1.0):.4g}" if job.accelerator else None,
        "LORA_ADAPTERS": ",".join(map(_adapter, job.adapters)) or None,
        "GRACEFUL_TERMINATION_TIMEOUT": job.drain_s,
        "USAGE_STATS": "off",
        "HF_HUB_OFFLINE": "1" if job.fetch_bytes == 0 or job.source.scheme == "folder" else None,
    }
    return tuple((name, str(value)) for name, value in values.items() if value is not None)


def _cautions(job: ServingJob) -> tuple[str, ...]:
    chosen = quantization.choose(job, online=ONLINE, engine="tgi", also=ONLINE_NAMES)
    told = None
    if isinstance(chosen, Choice) and chosen.method:
        told = quantization.widened(chosen.method, METHODS, job.accelerator)
    return (told,) if told else ()


ENGINE = Tgi()
