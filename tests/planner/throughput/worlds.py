"""Models, accelerators and loads small in number and far apart, for properties to meet in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

from hypothesis import strategies as st

from orchestrator.catalog.values import Accelerator, ModelFacts
from orchestrator.planner.throughput import Throughput

SMALL = ModelFacts("small", "Llama", 16, 2048, 8192, 32, 8, 64, 128_256, tied=True, context=131_072)
LARGE = ModelFacts("large", "Llama", 80, 8192, 28_672, 64, 8, 128, 128_256, context=131_072)
MIXTURE = ModelFacts(
    "mixture",
    "Qwen3Moe",
    48,
    2048,
    6144,
    32,
    4,
    128,
    151_936,
    experts=128,
    experts_per_token=8,
    expert_intermediate=768,
)
WINDOWED = ModelFacts(
    "windowed",
    "Gemma3",
    12,
    3840,
    15_360,
    16,
    8,
    256,
    262_144,
    tied=True,
    layer_kinds=("sliding",) * 10 + ("full",) * 2,
    sliding_window=1024,
)
LATENT = ModelFacts(
    "latent",
    "DeepseekV3",
    27,
    2048,
    10_944,
    16,
    16,
    128,
    102_400,
    attention="mla",
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
)

HOPPER = Accelerator(
    "hopper",
    "nvidia",
    "Hopper",
    80,
    85_000_000_000,
    "made up",
    bandwidth_gbs=3350,
    tflops={"bf16": 989.5, "fp8": 1979},
    native=frozenset({"bf16", "fp8"}),
    capability=(9, 0),
    link_gbs=900,
)
AMPERE = Accelerator(
    "ampere",
    "nvidia",
    "Ampere",
    80,
    85_000_000_000,
    "made up",
    bandwidth_gbs=2039,
    tflops={"bf16": 312},
    native=frozenset({"bf16"}),
    capability=(8, 0),
    link_gbs=600,
)
CARD = Accelerator(
    "card",
    "nvidia",
    "Ada",
    24,
    24_000_000_000,
    "made up",
    bandwidth_gbs=1008,
    tflops={"bf16": 165.2, "fp8": 330.3},
    native=frozenset({"bf16", "fp8"}),
    capability=(8, 9),
)
STRANGER = Accelerator("stranger", "google", "TPU v5p", 95, 100_000_000_000, "made up", bandwidth_gbs=2765)


class Estimate(Protocol):
    """What is under test: ``serving_throughput``, or a broken twin of it."""

    def __call__(self, facts: ModelFacts, accelerator: Accelerator, **load: Any) -> Throughput:
        """Return the speed of a replica at a load."""


@dataclass(frozen=True, slots=True)
class World:
    """One model on one kind of accelerator under one load."""

    facts: ModelFacts
    accelerator: Accelerator
    load: dict[str, Any]

    def but(self, **changed: Any) -> World:
        """Return the same world with another load."""
        return replace(self, load={**self.load, **changed})

    def on(self, **changed: Any) -> World:
        """Return the same world on a changed accelerator."""
        return replace(self, accelerator=replace(self.accelerator, **changed))

    def ask(self, estimate: Estimate) -> Throughput:
        """Return the answer of ``estimate``."""
        return estimate(self.facts, self.accelerator, **self.load)


worlds = st.builds(
    World,
    st.sampled_from([SMALL, LARGE, MIXTURE, WINDOWED, LATENT]),
    st.sampled_from([HOPPER, AMPERE, CARD, STRANGER]),
    st.fixed_dictionaries(
        {
            "input_tokens": st.sampled_from([0, 128, 2000, 30_000]),
            "output_tokens": st.sampled_from([1, 200, 4000]),
            "concurrency": st.sampled_from([1, 3, 16, 300]),
            "tensor": st.sampled_from([1, 2, 8]),
            "pipeline": st.sampled_from([1, 2, 5]),
            "data": st.sampled_from([1, 2]),
            "expert": st.sampled_from([1, 2]),
            "weight_format": st.sampled_from(["bf16", "fp8", "awq", "mxfp4", "nvfp4"]),
            "kv_dtype": st.sampled_from(["bf16", "fp8"]),
            "engine": st.sampled_from(["vllm", "sglang", "nim", "transformers", "unheard-of"]),
            "burst": st.booleans(),
        }
    ),
)
