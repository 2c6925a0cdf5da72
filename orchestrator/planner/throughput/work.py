"""What one token costs a model: weights read, products made, KV cache kept. No device, no engine."""

from __future__ import annotations

import re
from dataclasses import dataclass

from orchestrator.catalog.values import ModelFacts

# Bits a weight takes with its scales: 16-bit scale per 128 weights (and a 4-bit zero for AWQ and
# GPTQ), 8-bit scale per 32 (OCP MX v1.0, 5.2) or per 16 (NVFP4).
_WEIGHT_BITS = {
    "fp32": 32.0,
    "bf16": 16.0,
    "fp16": 16.0,
    "fp8": 8.0,
    "mxfp8": 8.25,
    "int8": 8.125,
    "gptq-int8": 8.125,
    "int4": 4.156,
    "awq": 4.156,
    "gptq": 4.156,
    "awq-int4": 4.156,
    "gptq-int4": 4.156,
    "nf4": 4.127,
    "mxfp4": 4.25,
    "nvfp4": 4.5,
}
_BPW = re.compile(r".*?(\d+(?:\.\d+)?)bpw")


def weight_bits(weight_format: str) -> float:
    """Return the bits one weight takes in ``weight_format``, its scales included.

    Raises:
        ValueError: no such format is known.

    >>> weight_bits("bf16"), weight_bits("mxfp4"), weight_bits("exl2-2.5bpw")
    (16.0, 4.25, 2.5)
    """
    if found := _BPW.fullmatch(weight_format):
        return float(found[1])
    try:
        return _WEIGHT_BITS[weight_format]
    except KeyError:
        raise ValueError(f"no weight format is called {weight_format!r}") from None


@dataclass(frozen=True, slots=True)
class Work:
    """A model as work per token.

    ``dense`` parameters multiply every token; ``experts`` are all routed experts', of which a
    token takes ``expert_share``. ``head`` is the part of ``dense`` that makes logits, ``table``
    the input embedding: kept, not multiplied.
    """

    dense: float
    head: float
    experts: float
    expert_share: float
    table: float
    layers: int
    hidden: int

    @property
    def active(self) -> float:
        """Return the parameters one token multiplies."""
        return self.dense + self.experts * self.expert_share


def work(facts: ModelFacts) -> Work:
    """Return what one token costs ``facts``.

    >>> llama = ModelFacts("llama-3.1-8b", "Llama", 32, 4096, 14336, 32, 8, 128, 128256, parameters=8030261248)
    >>> round(work(llama).active / 1e9, 2)
    7.5
    """
    matrices = 3 if facts.gated else 2
    width = facts.expert_intermediate or facts.intermediate
    routed = (facts.layers - facts.dense_layers) * facts.experts * matrices * facts.hidden * width
    total = facts.parameters or _counted(facts, routed)
    table = facts.vocab * facts.hidden
    # Models that route in every second layer only say so in no field we hold: the total bounds it.
    experts = min(float(routed), 0.97 * (total - table))
    kept = 0 if facts.tied else table
    return Work(
        dense=max(total - experts - kept, float(table)),
        head=float(table),
        experts=experts,
        expert_share=facts.experts_per_token / facts.experts if facts.experts else 0.0,
        table=float(kept),
        layers=facts.layers,
        hidden=facts.hidden,
    )


def _counted(facts: ModelFacts, routed: int) -> int:
    """Return the parameters by shape, where nobody counted them: attention, feed-forward, embeddings."""
    heads = facts.hidden * facts.head_dim * 2 * (facts.heads + facts.kv_heads)
    matrices = 3 if facts.gated else 2
    plain = facts.dense_layers if facts.experts else facts.layers
    shared = (facts.layers - plain) * facts.shared_experts * (facts.shared_intermediate or facts.expert_intermediate)
    forward = matrices * facts.hidden * (plain * facts.intermediate + shared)
    return facts.layers * heads + forward + routed + facts.vocab * facts.hidden * (1 if facts.tied else 2)


def weight_bytes(model: Work, weight_format: str) -> tuple[float, float]:
    """Return the bytes of the dense weights and of all routed experts in ``weight_format``.

    Output heads stay in 16 bits under every method that makes weights narrower, and MXFP4
    checkpoints narrow experts only (gpt-oss model card).

    >>> weight_bytes(Work(10.0, 2.0, 100.0, 0.1, 0.0, 1, 1), "mxfp4")
    (20.0, 53.125)
    """
    bits = weight_bits(weight_format)
    narrow = 16.0 if weight_format == "mxfp4" else bits
    dense = (model.dense - model.head) * narrow + model.head * max(bits, 16.0)
    return dense / 8, model.experts * bits / 8


def kv_elements(facts: ModelFacts) -> int:
    """Return the elements one token leaves in one layer's KV cache."""
    if facts.attention == "mla":
        return (facts.kv_lora_rank or 0) + (facts.qk_rope_head_dim or 0)
    return facts.kv_heads * (facts.head_dim + (facts.v_head_dim or facts.head_dim))


def attended_tokens(facts: ModelFacts, context: float) -> float:
    """Return over how many tokens, summed over layers, a token at ``context`` attends.

    >>> facts = ModelFacts("x", "x", 2, 64, 64, 1, 1, 64, 100, layer_kinds=("full", "sliding"), sliding_window=128)
    >>> attended_tokens(facts, 1000)
    1128.0
    """
    window = facts.sliding_window or context
    per_kind = {"full": context, "sliding": min(context, window), "linear": 0.0}
    return float(sum(per_kind[kind] for kind in facts.kinds()))


def attention_flops(facts: ModelFacts, attended: float) -> float:
    """Return the operations of one token's attention over ``attended`` tokens (summed over layers).

    Two products, scores and values, at two operations a term.
    """
    if facts.attention == "mla":
        head = (facts.qk_nope_head_dim or facts.head_dim) + (facts.qk_rope_head_dim or 0) + (
            facts.v_head_dim or facts.head_dim
        )
        return 2.0 * facts.heads * head * attended
    return 2.0 * facts.heads * (facts.head_dim + (facts.v_head_dim or facts.head_dim)) * attended


def state_bytes(facts: ModelFacts) -> float:
    """Return the recurrent state one sequence keeps over all linear-attention layers."""
    return float(facts.linear_state_bytes * sum(kind == "linear" for kind in facts.kinds()))
