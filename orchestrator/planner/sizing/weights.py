"""How many bytes the weights take on each device."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import fields, replace

from orchestrator.catalog.parameters import Parameters
from orchestrator.catalog.values import ModelFacts
from orchestrator.errors import ModelError
from orchestrator.frozen import frozen
from orchestrator.planner.sizing.formats import FORMATS, Scope, WeightFormat, is_known, weight_format
from orchestrator.planner.sizing.parameters import count_parts, expert_layers, speculative_parameters
from orchestrator.planner.sizing.stages import split_layers


@frozen
class WeightBytes:
    """Bytes of each part in a format, over the whole replica, before anything divides them."""

    embedding: float
    head: float
    attention: float
    dense: float
    experts: float
    shared: float
    other: float
    vision: float

    @property
    def total(self) -> float:
        """All parts together."""
        return self.embedding + self.head + self.layers + self.vision

    @property
    def layers(self) -> float:
        """What the layers hold."""
        return self.attention + self.dense + self.experts + self.shared + self.other


def published_format(facts: ModelFacts) -> str:
    """Return the name of the format the published weights are in.

    Raises:
        ModelError: nobody here knows how many bytes the quantization takes.

    >>> published_format(ModelFacts("m", "LlamaForCausalLM", 1, 8, 8, 1, 1, 8, 8, quantization="awq"))
    'awq'
    """
    name = facts.quantization or facts.dtype
    bits = facts.quantization_bits
    if name == "fp8" and facts.architecture.startswith("DeepseekV4"):
        # its experts are in fp4: 155 GiB on the hub for 284 B parameters, 805 for 1,573 B
        return "fp8_fp4"
    if name in ("gptq", "compressed-tensors") and bits == 8:
        return "gptq_int8" if name == "gptq" else "int8"
    if name == "exl2" and bits is not None:
        return f"exl2-{bits:g}bpw"
    if is_known(name):
        return name
    if facts.quantization is not None:
        raise ModelError(
            f"the bytes of {facts.id}'s weights are not known: quantization {name!r}",
            fix=f"use weights in one of {', '.join(sorted(FORMATS))}",
        )
    return "bf16"


def weight_bytes(facts: ModelFacts, precision: str, *, loaded: bool = True) -> WeightBytes:
    """Return the bytes of each part in ``precision``.

    Where the bytes the index names are known and the format is the published one, the parts
    are brought to that sum. ``loaded`` tells the bytes in an engine, with its kernels' padding,
    from the bytes on disk, with the multi-token-prediction layers.

    >>> llama = ModelFacts("llama-3.1-8b", "LlamaForCausalLM", 32, 4096, 14336, 32, 8, 128, 128256)
    >>> [round(weight_bytes(llama, name).total / 2**30, 2) for name in ("bf16", "fp8")]
    [14.96, 8.46]
    """
    fmt = weight_format(precision)
    as_published = weight_format(published_format(facts)).name == fmt.name
    if as_published and facts.quantization_bits and fmt.bits < fmt.rest_bits == 16:
        fmt = replace(fmt, bits=facts.quantization_bits)  # the group size of this very checkpoint
    sized = _by_scope(count_parts(facts), fmt, facts)
    if facts.weights_bytes is not None and as_published:
        known = facts.weights_bytes - (_speculative_bytes(facts, fmt) if loaded else 0)
        return _scaled(sized, max(0.0, known) / sized.total)
    if not loaded:
        return replace(sized, experts=sized.experts + _speculative_bytes(facts, fmt))
    if fmt.pad_experts > 1 and facts.expert_intermediate:
        width = facts.expert_intermediate
        padded = math.ceil(width / fmt.pad_experts) * fmt.pad_experts
        return replace(sized, experts=sized.experts * padded / width)
    return sized


def _speculative_bytes(facts: ModelFacts, fmt: WeightFormat) -> float:
    # int4 checkpoints leave the speculative layers in 16 bits; fp8 ones convert them too
    bits = fmt.bits if fmt.bits >= 8 or fmt.rest_bits < 16 else fmt.rest_bits
    return speculative_parameters(facts) * bits / 8


_LINEAR = frozenset({"attention", "mixer", "dense", "experts", "shared"})
_SCOPES: Mapping[Scope, frozenset[str]] = {
    "all": _LINEAR | {"embedding", "head", "other", "vision"},
    "linear": _LINEAR,
    "experts": frozenset({"experts"}),
}
_SKIP_PATTERNS = {
    "attention": re.compile(r"self_attn|\.attention"),
    "mixer": re.compile(r"linear_attn|mamba|mixer"),
    "shared": re.compile(r"shared_expert"),
    "dense": re.compile(r"mlp(\*|$|\\?\.\(?(gate[_|]|up|down))"),
}
"""Modules a published config leaves in 16 bits, by the part of the model they are."""


def _skipped_share(facts: ModelFacts, part: str) -> float:
    """Return the share of a part's layers that the published weights leave in 16 bits.

    A pattern speaks of every layer, a name with a layer's number of that one.

    >>> skips = ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj", "model.layers.*.mlp*")
    >>> mixed = ModelFacts("m", "LlamaForCausalLM", 4, 8, 8, 1, 1, 8, 8, quantization_skips=skips)
    >>> _skipped_share(mixed, "attention"), _skipped_share(mixed, "dense"), _skipped_share(mixed, "shared")
    (0.25, 1.0, 0.0)
    """
    pattern = _SKIP_PATTERNS.get(part)
    if pattern is None or not facts.quantization_skips:
        return 0.0
    named = [skip for skip in facts.quantization_skips if pattern.search(skip)]
    numbers = {found[1] for skip in named if (found := re.search(r"layers\.(\d+)\.", skip))}
    everywhere = any(not re.search(r"layers\.\d+\.", skip) for skip in named)
    return 1.0 if everywhere else min(1.0, len(numbers) / facts.layers)


def _by_scope(parts: Parameters, fmt: WeightFormat, facts: ModelFacts) -> WeightBytes:
    inside = _SCOPES[fmt.scope_for(experts=bool(facts.experts))]

    def held(part: str, count: int) -> float:
        if part not in inside:
            # embeddings, norms and towers never go below 16 bits
            return count * (fmt.rest_bits if part in _LINEAR else max(fmt.rest_bits, 16.0)) / 8
        skipped = _skipped_share(facts, part)
        return count * (skipped * fmt.rest_bits + (1 - skipped) * fmt.bits) / 8

    return WeightBytes(
        embedding=held("embedding", parts.embedding),
        head=held("head", parts.head),
        attention=held("attention", parts.attention) + held("mixer", parts.mixer),
        dense=held("dense", parts.dense),
        experts=held("experts", parts.experts),
        shared=held("shared", parts.shared),
        other=held("other", parts.other + parts.router),
        vision=held("vision", parts.vision),
    )


def _scaled(sized: WeightBytes, factor: float) -> WeightBytes:
    return WeightBytes(*(getattr(sized, f.name) * factor for f in fields(sized)))


def device_weight_bytes(
    facts: ModelFacts, sized: WeightBytes, *, tensor: int, pipeline: int, expert_ranks: int
) -> float:
    """Return the bytes on one device of the heaviest pipeline stage.

    Tensor parallelism divides matrices, embeddings and head; experts are spread over
    ``expert_ranks``; a vision tower stays whole on the first stage. With tied embeddings the
    last stage keeps a copy of them.

    >>> llama = ModelFacts("llama-3.1-8b", "LlamaForCausalLM", 32, 4096, 14336, 32, 8, 128, 128256)
    >>> sized = weight_bytes(llama, "bf16")
    >>> held = [device_weight_bytes(llama, sized, tensor=1, pipeline=n, expert_ranks=1) for n in (1, 2, 4)]
    >>> [round(each / 2**30, 2) for each in held]
    [14.96, 7.48, 4.23]
    """
    if pipeline == 1:
        layers = (sized.layers - sized.experts) / tensor + sized.experts / expert_ranks
        return layers + (sized.embedding + sized.head) / tensor + sized.vision
    per_layer = _layer_bytes(facts, sized, tensor=tensor, expert_ranks=expert_ranks)
    stages = split_layers(facts.layers, pipeline)
    starts = [sum(stages[:i]) for i in range(pipeline)]
    held = [sum(per_layer[a : a + n]) for a, n in zip(starts, stages, strict=True)]
    held[0] += sized.embedding / tensor + sized.vision
    held[-1] += (sized.head or sized.embedding) / tensor
    return max(held)


def _layer_bytes(
    facts: ModelFacts, sized: WeightBytes, *, tensor: int, expert_ranks: int
) -> tuple[float, ...]:
    feeds = facts.feeds()
    routed = expert_layers(facts)
    plain = sum(1 for feed in feeds if feed in ("dense", "both"))
    common = (sized.attention + sized.other) / facts.layers / tensor
    dense = sized.dense / plain / tensor if plain else 0.0
    moe = (sized.experts / expert_ranks + sized.shared / tensor) / routed if routed else 0.0
    each = {"dense": dense, "experts": moe, "both": dense + moe, "none": 0.0}
    return tuple(common + each[feed] for feed in feeds)
