"""NVIDIA NIM: vLLM behind NVIDIA's proxy, in the image that serves any model.

Settings are those of NIM LLM 2.1 (docs.nvidia.com/nim/large-language-models). Options on its
command line are vLLM's and win over its environment variables and profiles.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from orchestrator.backend import Mount, Probe
from orchestrator.engines import arguments, checks, images, startup, vllm
from orchestrator.engines.arguments import Option, Optioned, option
from orchestrator.engines.job import EngineLaunch, Metrics, Profile, ServingJob, Spelled

PORT = 8000
CACHE = "/opt/nim/.cache"
REGISTRY_USER = "$oauthtoken"
KEY = "NGC_API_KEY"
SHM_BYTES = 16 * 10**9
"""What NVIDIA's examples give every container, one GPU or many."""
DRAIN_MARGIN_S = 15

METRICS = Metrics(
    path="/v1/metrics",
    queue=vllm.METRICS.queue,
    running=vllm.METRICS.running,
    kv_cache=vllm.METRICS.kv_cache,
    ttft=vllm.METRICS.ttft,
    steps=vllm.METRICS.steps,
)


class Nim(Optioned):
    """The model-free NIM container: NVIDIA devices, one node."""

    name = "nim"
    versions = ("2.1.6",)
    rules = vllm.RULES
    parser = ("vllm", vllm.Vllm.versions)
    spelled = Spelled(
        says=vllm.SPELLED.says,
        drops=vllm.SPELLED.drops,
        variables={
            "NIM_MODEL_PATH": "--model",
            "NIM_MODEL_NAME": "--model",
            "NIM_MAX_MODEL_LEN": "--max-model-len",
            "NIM_TENSOR_PARALLEL_SIZE": "--tensor-parallel-size",
            "NIM_PIPELINE_PARALLEL_SIZE": "--pipeline-parallel-size",
            "NIM_SERVER_PORT": "--port",
        },
        images="nvcr.io/nim/",
    )

    def refusal(self, job: ServingJob) -> str | None:
        """Say why it cannot serve ``job``, the user's options already read into it."""
        if job.family != "cuda":
            return f"nim runs on NVIDIA devices only, not on {job.family}"
        if job.nodes > 1:
            return "nim serves from one node"
        if why := checks.generates(job, self.name):
            return why
        if KEY not in {name for name, _ in (*job.secrets, *job.env)}:
            return f"nim needs {KEY} in env to be pulled and to start"
        return vllm.refusal(job, "nim") or _adapters(job)

    def launch(self, job: ServingJob, *, node_rank: int = 0) -> EngineLaunch:
        """Return the container of one replica of ``job``; ``node_rank`` is 0, NIM spans no nodes.

        Raises:
            ValueError: NIM refuses ``job``; the message is the reason.
        """
        if node_rank:
            raise ValueError("nim serves from one node")
        settled = self.accepted(job)
        words, told = settled.words(_options(job))
        secrets = dict(job.secrets)
        return EngineLaunch(
            image=images.reference(job, self.name),
            command=words,
            env=arguments.overlay(_environment(job), job.env),
            secrets=job.secrets,
            registry=(REGISTRY_USER, secrets[KEY]) if KEY in secrets else None,
            caches=(Mount("nim", CACHE, "cache"),),
            shm_bytes=SHM_BYTES,
            port=job.port or PORT,
            probe=Probe(
                port=job.port or PORT,
                path="/v1/health/ready",
                timeout_s=10.0,
                start_s=startup.start_s(job),
            ),
            metrics=METRICS,
            model_name=job.name,
            routes=vllm.ROUTES,
            stop_grace_s=float(job.drain_s + DRAIN_MARGIN_S),
            profile=Profile(writable=(CACHE, "/tmp", "/dev/shm")),
            warnings=(*told, *vllm.cautions(settled.job)),
        )


def _adapters(job: ServingJob) -> str | None:
    folders = {_folder(a.source.path) for a in job.adapters}
    if not folders:
        return None
    named = all(a.source.path and PurePosixPath(a.source.path).name == a.name for a in job.adapters)
    if len(folders) == 1 and named:
        return None
    return "nim reads adapters from one folder, each in a sub-folder of its name; mount them so"


def _folder(path: str | None) -> str:
    return str(PurePosixPath(path).parent) if path else ""


def _options(job: ServingJob) -> list[Option]:
    ours = {"--served-model-name", "--host", "--port", "--revision", "--load-format", "--shutdown-timeout"}
    lora = {"--lora-modules", "--max-loras"}
    kept = [o for o in vllm.options(job) if o.name not in ours | lora]
    # a length that vLLM picks by itself is for NIM's profile to pick
    return [o for o in kept if o != option("--max-model-len", "auto")]


def _environment(job: ServingJob) -> tuple[tuple[str, str], ...]:
    parts = [
        ("NIM_MODEL_PATH", _model_path(job)),
        ("NIM_SERVED_MODEL_NAME", job.name),
        ("NIM_SERVER_PORT", str(job.port or PORT)),
        ("NIM_CACHE_PATH", CACHE),
        ("NIM_JSONL_LOGGING", "1"),
    ]
    if job.adapters:
        parts.append(("NIM_PEFT_SOURCE", _folder(job.adapters[0].source.path)))
    if job.fetch_bytes == 0:
        parts.append(("NIM_DISABLE_MODEL_DOWNLOAD", "1"))
    return tuple(parts)


def _model_path(job: ServingJob) -> str:
    if job.source.scheme != "hub":
        return job.source.reference
    revision = f":{job.source.revision}" if job.source.revision else ""
    return f"hf://{job.source.id}{revision}"


ENGINE = Nim()
