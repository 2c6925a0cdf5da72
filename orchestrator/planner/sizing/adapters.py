"""How many parameters a LoRA adapter has, by rank and by the matrices it targets."""

from __future__ import annotations

from orchestrator.catalog.values import ModelFacts
from orchestrator.planner.sizing.parameters import expert_layers

TARGETS = ("q", "k", "v", "o", "gate", "up", "down")
"""The matrices of one layer that an adapter can target; ``all-linear`` means every one."""

_ALIASES = {
    "q_proj": ("q",),
    "query": ("q",),
    "k_proj": ("k",),
    "key": ("k",),
    "v_proj": ("v",),
    "value": ("v",),
    "o_proj": ("o",),
    "projection": ("o",),
    "output": ("o",),
    "gate_proj": ("gate",),
    "up_proj": ("up",),
    "down_proj": ("down",),
    "qkv": ("q", "k", "v"),
    "attention": ("q", "k", "v", "o"),
    "self_attn": ("q", "k", "v", "o"),
    "mlp": ("gate", "up", "down"),
    "all-linear": TARGETS,
}


def adapter_targets(names: tuple[str, ...]) -> frozenset[str]:
    """Return the matrices that ``names`` mean; unknown names mean nothing here.

    >>> sorted(adapter_targets(("q_proj", "mlp")))
    ['down', 'gate', 'q', 'up']
    """
    return frozenset(t for n in names for t in _ALIASES.get(n, (n,) if n in TARGETS else ()))


def _matrix_sides(facts: ModelFacts) -> dict[str, int]:
    """Return in + out of every matrix of one layer."""
    h, inner = facts.hidden, facts.intermediate
    q, kv = facts.heads * facts.head_dim, facts.kv_heads * facts.head_dim
    sides = {"q": h + q, "k": h + kv, "v": h + kv, "o": q + h, "up": h + inner, "down": inner + h}
    return sides | ({"gate": h + inner} if facts.gated else {})


def adapter_parameters(
    facts: ModelFacts, rank: int, targets: frozenset[str] = frozenset(TARGETS), *, experts: bool = False
) -> int:
    """Return the parameters of an adapter: ``rank`` × (in + out) of every target in every layer.

    ``experts`` says whether routed experts carry adapters of their own; most recipes leave
    them out, and a layer of experts then has none on its feed-forward.

    >>> llama = ModelFacts("llama-2-7b", "LlamaForCausalLM", 32, 4096, 11008, 32, 32, 128, 32000)
    >>> adapter_parameters(llama, 8, frozenset({"q", "v"}))
    4194304
    """
    sides = _matrix_sides(facts)
    attention = sum(sides[t] for t in targets & {"q", "k", "v", "o"})
    feed_forward = sum(sides[t] for t in targets & {"gate", "up", "down"} if t in sides)
    routed = expert_layers(facts)
    total = facts.layers * attention + (facts.layers - routed) * feed_forward
    if experts and routed:
        each = len(targets & set(sides) & {"gate", "up", "down"}) * (facts.hidden + facts.expert_intermediate)
        total += routed * facts.experts * each
    return rank * total
