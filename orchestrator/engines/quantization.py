"""Which quantization methods run on which device, and which precision a job can have there."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.catalog.values import Accelerator
from orchestrator.engines.job import ServingJob
from orchestrator.frozen import frozen

BF16_FROM = (8, 0)
"""Compute capability from which NVIDIA devices multiply bfloat16 (CUDA C++ programming guide)."""

_ALIASES = {
    "auto_awq": "awq",
    "awq_marlin": "awq",
    "auto_gptq": "gptq",
    "gptq_marlin": "gptq",
    "gptqmodel": "gptq",
    "intel/auto-round": "auto-round",
    "bnb": "bitsandbytes",
    "float-quantized": "compressed-tensors",
    "int-quantized": "compressed-tensors",
    "pack-quantized": "compressed-tensors",
    "nvfp4": "modelopt_fp4",
    "gpt_oss_mxfp4": "mxfp4",
}
_MADE_IN: Mapping[str, tuple[str, ...]] = {
    "fp8": ("fp8",),
    "fbgemm_fp8": ("fp8",),
    "modelopt_fp8": ("fp8",),
    "modelopt_fp4": ("fp4", "int4"),
    "mxfp4": ("fp4", "int4"),
}


@frozen
class Method:
    """Where one quantization method works, in one engine.

    ``runs`` is the lowest CUDA compute capability it loads on, ``native`` the lowest that also
    multiplies in its format; below that, and everywhere when ``native`` is None, weights are
    widened on the fly: memory is saved, arithmetic is not. None for ``runs`` is not on NVIDIA.
    ``gfx`` and ``gfx_native`` are the same for AMD, ``others`` the further families.
    """

    runs: tuple[int, int] | None
    native: tuple[int, int] | None = None
    gfx: frozenset[str] = frozenset()
    gfx_native: frozenset[str] = frozenset()
    others: frozenset[str] = frozenset()


@frozen
class Choice:
    """The method a job comes down to: ``None`` for plain weights; ``online`` when made at load."""

    method: str | None = None
    online: bool = False


def canonical(method: str | None) -> str | None:
    """Return the one name of a method that has several.

    >>> canonical("gptq_marlin"), canonical("fp8"), canonical(None)
    ('gptq', 'fp8', None)
    """
    return None if method is None else _ALIASES.get(method, method)


def choose(
    job: ServingJob, *, online: Mapping[str, str], engine: str, also: frozenset[str] = frozenset()
) -> Choice | str:
    """Return the method that gives ``job`` its precision, or the reason why there is none.

    Args:
        job: What the user or the planner asks for.
        online: What the engine can make of plain weights while loading, by precision.
        engine: Its name, for the reason.
        also: Further methods it can apply while loading, when the user names one.
    """
    made, named = canonical(job.model.quantization), canonical(job.quantization)
    if made is None:
        if named in also:
            return Choice(named, online=True)
        return _of_plain(job, named, online, engine)
    if named not in (None, made):
        return f"the weights of {job.source.id} are {made}, not {named}"
    if job.precision not in ("auto", *_precisions(job, made)):
        return f"{job.source.id} is published in {made}, {engine} makes no {job.precision} of that"
    return Choice(made)


def _precisions(job: ServingJob, made: str) -> tuple[str, ...]:
    if made in _MADE_IN:
        return _MADE_IN[made]
    bits = job.model.quantization_bits  # with its scales, so a little above 4 or 8
    if bits is None:
        return ("int4",) if made in ("awq", "gptq") else ("int4", "fp4", "int8", "fp8")
    return ("int4", "fp4") if bits < 6 else ("int8", "fp8")


def _of_plain(job: ServingJob, named: str | None, online: Mapping[str, str], engine: str) -> Choice | str:
    if named is not None:
        if named in online.values():
            return Choice(named, online=True)
        return f"the weights of {job.source.id} are not {named}; name a repository whose weights are"
    if job.precision in ("auto", "bf16", "fp16"):
        return Choice()
    if job.precision in online:
        return Choice(online[job.precision], online=True)
    return (
        f"{engine} makes no {job.precision} of plain weights; name a repository with {job.precision} weights"
    )


def refuses(
    name: str, methods: Mapping[str, Method], accelerator: Accelerator | None, engine: str
) -> str | None:
    """Say why ``engine`` cannot use the method ``name`` on this device, or None when it can."""
    method = methods.get(name)
    if method is None:
        return f"{engine} does not serve {name} weights"
    where = accelerator.name if accelerator else "a CPU"
    if _on(method, accelerator):
        return None
    if accelerator and accelerator.family == "cuda" and method.runs and accelerator.capability:
        needs, has = _dotted(method.runs), _dotted(accelerator.capability)
        return f"{engine} needs compute capability {needs} for {name}, {where} has {has}"
    return f"{engine} does not run {name} on {where}"


def _on(method: Method, accelerator: Accelerator | None) -> bool:
    if accelerator is None:
        return "cpu" in method.others
    if accelerator.family == "cuda":
        # an unknown capability is let through: the catalog lacks it for a few cards
        return method.runs is not None and (accelerator.capability or method.runs) >= method.runs
    if accelerator.family == "rocm":
        return (accelerator.gfx in method.gfx) if accelerator.gfx else bool(method.gfx)
    return accelerator.family in method.others


def widened(name: str, methods: Mapping[str, Method], accelerator: Accelerator | None) -> str | None:
    """Say that this device stores the format but does not multiply in it, or None when it does.

    Methods that are weight-only everywhere are no news and give None.
    """
    method = methods[name]
    if accelerator is None or method.native is None:
        return None
    if accelerator.family == "cuda" and (accelerator.capability or method.native) >= method.native:
        return None
    if accelerator.family == "rocm" and (accelerator.gfx is None or accelerator.gfx in method.gfx_native):
        return None
    if accelerator.family not in ("cuda", "rocm"):
        return None
    return f"{accelerator.name} holds {name} weights but multiplies in 16 bits: memory is saved, time is not"


def dtype(job: ServingJob) -> str | None:
    """Return the torch dtype of activations, ``bfloat16``, ``float16`` or ``auto``; None when impossible.

    Devices before compute capability 8.0 have no bfloat16, so there a job that does not ask for
    it gets ``float16``.
    """
    old = has_no_bf16(job.accelerator)
    if job.precision == "bf16":
        return None if old else "bfloat16"
    return "float16" if old or job.precision == "fp16" else "auto"


def has_no_bf16(accelerator: Accelerator | None) -> bool:
    """Tell whether an NVIDIA device is too old for bfloat16."""
    return bool(accelerator and accelerator.capability and accelerator.capability < BF16_FROM)


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"
