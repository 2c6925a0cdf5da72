"""What training frameworks and optimizers do with device memory, as data with sources."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.frozen import frozen
from orchestrator.units import GIB


@frozen
class Optimizer:
    """States per trained parameter: how many of the state's own type, and bytes of fixed types.

    ``on_device`` is the share of them that stays in device memory.
    """

    states: int
    fixed_bytes: float
    source: str
    on_device: float = 1.0


OPTIMIZERS: Mapping[str, Optimizer] = {
    "adamw": Optimizer(2, 0.0, "torch.optim.AdamW: two moments"),
    "adamw_8bit": Optimizer(0, 2.0, "bitsandbytes docs, 8-bit optimizers: two moments of 1 byte"),
    "paged_adamw": Optimizer(2, 0.0, "bitsandbytes docs: paged to host memory", on_device=0.0),
    "paged_adamw_8bit": Optimizer(0, 2.0, "bitsandbytes docs: paged to host memory", on_device=0.0),
    "adafactor": Optimizer(0, 0.02, "transformers docs: row and column sums"),
    "lion": Optimizer(1, 0.0, "Lion, arXiv 2302.06675: one moment"),
    "muon": Optimizer(1, 0.0, "torch.optim.Muon: one momentum"),
    "sgd": Optimizer(0, 0.0, "torch.optim.SGD without momentum"),
}
"""Optimizers by the name of what they keep."""


def optimizer(name: str) -> Optimizer:
    """Return the optimizer that a framework's name means.

    Raises:
        ValueError: the name holds none that is known.

    >>> optimizer("adamw_bnb_8bit").fixed_bytes, optimizer("paged_adamw_32bit").on_device
    (2.0, 0.0)
    """
    text = name.lower()
    if "adam" in text and "adafactor" not in text:
        kind = "adamw_8bit" if "8bit" in text or "8-bit" in text else "adamw"
        return OPTIMIZERS[f"paged_{kind}" if "paged" in text else kind]
    for kind in ("adafactor", "lion", "muon", "sgd"):
        if kind in text:
            return OPTIMIZERS[kind]
    raise ValueError(f"unknown optimizer {name!r}; known are {', '.join(OPTIMIZERS)}")


@frozen
class TrainerProfile:
    """How a framework holds a run: what it adds, and how far its allocator rounds up.

    ``allocator`` multiplies what comes and goes (activations, logits); ``overhead_bytes`` is
    there from the start. ``adapter_fp32`` frameworks keep adapters in 32 bits.
    ``quantizes_head`` ones widen the head again for its forward and its backward pass.
    ``sequence_parallel`` ones divide the stream of a tensor-parallel group as well.
    """

    engine: str
    allocator: float
    overhead_bytes: int
    adapter_fp32: bool
    source: str
    quantizes_head: bool = False
    sequence_parallel: bool = False


_PROFILES = (
    TrainerProfile("trl", 1.15, 3 * GIB // 2, True, "as peft: the same trainer"),
    TrainerProfile("axolotl", 1.15, GIB, True, "axolotl examples, README figures of 2025 and 2026"),
    TrainerProfile("peft", 1.15, GIB, True, "peft method_comparison/MetaMathQA results"),
    TrainerProfile("ms-swift", 1.15, 3 * GIB // 2, True, "ms-swift examples: max_memory_reserved as printed"),
    TrainerProfile("llama-factory", 1.15, 3 * GIB // 2, True, "GLM-4 finetune/README.md"),
    TrainerProfile("hf-trainer", 1.15, 2 * GIB, True, "Qwen README.md, finetuning profile"),
    TrainerProfile(
        "litgpt",
        1.0,
        0,
        False,
        "litgpt tutorials/resource-tables.md: allocated, not reserved",
        quantizes_head=True,
    ),
    TrainerProfile("torchtune", 1.0, 0, False, "torchtune README.md: active memory"),
    TrainerProfile("torchtitan", 1.05, GIB // 2, False, "torchtitan benchmarks: reserved memory"),
    TrainerProfile(
        "megatron", 1.15, 3 * GIB // 2, False, "ms-swift examples/megatron", sequence_parallel=True
    ),
)


def trainer_profile(engine: str) -> TrainerProfile:
    """Return the profile of a framework.

    Raises:
        ValueError: it has none.

    >>> trainer_profile("torchtune").adapter_fp32
    False
    """
    for profile in _PROFILES:
        if profile.engine == engine:
            return profile
    raise ValueError(f"unknown trainer {engine!r}; known are {', '.join(p.engine for p in _PROFILES)}")
