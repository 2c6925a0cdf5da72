"""``transformers serve``: a small server for CPUs and small cards, one device each.

Options and routes are those of transformers 5.23.0. It has no image of its own that is
versioned: a general image gets it by pip at the start.
"""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.backend import Mount, Probe
from orchestrator.engines import arguments, checks, images, quantization, startup
from orchestrator.engines.arguments import Option, Optioned, Rules, option
from orchestrator.engines.job import EngineLaunch, Profile, ServingJob, Spelled
from orchestrator.engines.quantization import Choice, Method

PORT = 8000
TORCH = "2.13.0"
DRAIN_MARGIN_S = 15
INSTALL_S = 300.0
"""For pip in a fresh container: about 1.5 GB with torch for CPUs (measured 98 s), cached after."""

_CPU_TORCH = f"--extra-index-url https://download.pytorch.org/whl/cpu 'torch=={TORCH}+cpu'"
SETUP: Mapping[str, str] = {
    "cpu": f"pip install -q {_CPU_TORCH} 'transformers[serving]=={{version}}' accelerate",
    "cuda": "pip install -q 'transformers[serving]=={version}' accelerate bitsandbytes",
}

METHODS: Mapping[str, Method] = {
    "bnb-8bit": Method((7, 5)),
    "bnb-4bit": Method((7, 5)),
    "bitsandbytes": Method((7, 5)),
}
ONLINE: Mapping[str, str] = {"int8": "bnb-8bit", "int4": "bnb-4bit"}
"""What ``--quantization`` knows; bitsandbytes is made for NVIDIA here."""

ROUTES = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/audio/transcriptions",
)
"""Requests only: /load_model and /reset are on the same port, and there are no keys. /v1/models lists
the hub's cache and not the model that is served, and fails where there is no cache."""

RULES = Rules(
    owned={
        "--host": "the container has to listen on every address",
        "--port": "say port: in the spec",
        "--device": "the plan chose it",
        "--install-completion": "it is for shells",
        "--show-completion": "it is for shells",
    },
    secret={},
    fields={
        "--quantization": ("quantization", str),
        "--cb-max-memory-percent": ("memory_utilization", float),
    },
)


class Transformers(Optioned):
    """transformers' own server; requests are answered one after another on a CPU."""

    name = "transformers"
    versions = ("5.23.0",)
    rules = RULES
    spelled = Spelled(
        programs=(("transformers", "serve"),),
        first=True,
        says={"--dtype": "model.precision", "--port": "port"},
    )

    def refusal(self, job: ServingJob) -> str | None:
        """Say why it cannot serve ``job``, the user's options already read into it."""
        if why := checks.generates(job, self.name):
            return why
        count = job.count if job.accelerator else 1
        if max(count, job.nodes, job.tensor, job.pipeline, job.data, job.expert) > 1:
            return "transformers serves from one device"
        if job.adapters:
            return "transformers serves no adapters beside the base, merge them first"
        if job.kv_dtype == "fp8":
            return "transformers has no fp8 KV cache"
        return (
            images.refuses(job, self.name)
            or checks.architecture(job, self.name, self.versions[0])
            or checks.source(job, ("hub", "folder"), self.name)
            or _weights(job)
            or checks.gated(job)
            or checks.context(job)
            or checks.utilization(job)
        )

    def launch(self, job: ServingJob, *, node_rank: int = 0) -> EngineLaunch:
        """Return the container of one replica of ``job``; ``node_rank`` is 0, it spans no nodes.

        Raises:
            ValueError: it refuses ``job``; the message is the reason.
        """
        if node_rank:
            raise ValueError("transformers serves from one device")
        settled = self.accepted(job)
        words, told = settled.words(_options(job))
        setup = "" if job.image else SETUP[job.family].format(version=job.version or self.versions[0])
        start_s = startup.start_s(job, compiles=False) + (INSTALL_S if setup else 0.0)
        return EngineLaunch(
            image=images.reference(job, self.name),
            entrypoint=("transformers", "serve"),
            command=(_model(job), *words),
            setup=setup,
            env=arguments.overlay(_environment(job), job.env),
            secrets=job.secrets,
            caches=_caches(job, pip=bool(setup)),
            shm_bytes=startup.shm_bytes(job),
            port=job.port or PORT,
            probe=Probe(port=job.port or PORT, path="/health", timeout_s=10.0, start_s=start_s),
            model_name=_model(job),
            routes=ROUTES,
            stop_grace_s=float(job.drain_s + DRAIN_MARGIN_S),
            profile=Profile(writable=("/root/.cache", "/tmp", "/usr/local", "/opt")),
            warnings=(*told, *_cautions(job)),
        )


def _weights(job: ServingJob) -> str | None:
    chosen = quantization.choose(job, online=ONLINE, engine="transformers")
    if isinstance(chosen, str):
        return chosen
    if chosen.method and (
        why := quantization.refuses(chosen.method, METHODS, job.accelerator, "transformers")
    ):
        return why
    if quantization.dtype(job) is None:
        return f"{job.accelerator.name if job.accelerator else 'a CPU'} has no bf16, ask for precision fp16"
    return None


def _model(job: ServingJob) -> str:
    """Return the model as the server is pinned to it: requests under any other name get a 400."""
    revision = job.source.revision if job.source.scheme == "hub" else None
    return job.source.reference + (f"@{revision}" if revision else "")


def _options(job: ServingJob) -> list[Option]:
    chosen = quantization.choose(job, online=ONLINE, engine="transformers")
    parts = [option("--host", "0.0.0.0"), option("--port", job.port or PORT)]
    parts.append(option("--device", "cuda:0" if job.accelerator else "cpu"))
    parts.append(option("--dtype", quantization.dtype(job)))
    if isinstance(chosen, Choice) and chosen.online:
        parts.append(option("--quantization", chosen.method))
    return parts + (_batching(job) if job.accelerator else [])


def _batching(job: ServingJob) -> list[Option]:
    parts = [option("--continuous-batching")]
    if job.memory_utilization:
        parts.append(option("--cb-max-memory-percent", f"{job.memory_utilization:.4g}"))
    if job.max_num_batched_tokens:
        parts.append(option("--cb-max-batch-tokens", job.max_num_batched_tokens))
    return parts


def _environment(job: ServingJob) -> tuple[tuple[str, str], ...]:
    parts = [("HF_HOME", "/root/.cache/huggingface")]
    if job.fetch_bytes == 0 or job.source.scheme == "folder":
        parts.append(("HF_HUB_OFFLINE", "1"))
    return tuple(parts)


def _caches(job: ServingJob, *, pip: bool) -> tuple[Mount, ...]:
    hub = Mount("huggingface", "/root/.cache/huggingface", "cache")
    wheels = Mount("pip", "/root/.cache/pip", "cache")
    return ((hub,) if job.source.scheme == "hub" else ()) + ((wheels,) if pip else ())


def _cautions(job: ServingJob) -> tuple[str, ...]:
    told = ["transformers tells no metrics: it is scaled by what the gateway sees of its load"]
    if job.context_tokens:
        told.append(f"transformers does not hold requests to a context of {job.context_tokens}")
    if job.accelerator is None and (job.max_num_seqs or 1) > 1:
        told.append("transformers answers one request after another on a CPU")
    return tuple(told)


ENGINE = Transformers()
