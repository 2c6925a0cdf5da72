"""What one token costs a model: weights read, products made. No device, no engine."""

from __future__ import annotations

from orchestrator.catalog.parameters import parameters
from orchestrator.catalog.values import LayerKind, ModelFacts
from orchestrator.frozen import frozen
from orchestrator.planner.sizing.weights import weight_bytes


@frozen
class Work:
    """A model as work per token.

    ``dense`` parameters multiply every token, the output head among them; ``experts`` are all
    routed experts', of which a token takes ``expert_share``. Bytes are as stored in the format;
    ``dense_bytes`` and ``expert_bytes`` are read to make tokens, ``held_bytes`` is all that lies
    in memory, with the input embedding and a vision tower. ``full_flops`` and ``sliding_flops``
    are the operations between one token and one other, over all layers of that kind.
    """

    dense: float
    experts: float
    expert_share: float
    dense_bytes: float
    expert_bytes: float
    held_bytes: float
    full_flops: float
    sliding_flops: float
    window: float

    @property
    def active(self) -> float:
        """Return the parameters one token multiplies."""
        return self.dense + self.experts * self.expert_share

    def attention_flops(self, context: float) -> float:
        """Return the operations of one token's attention over ``context`` tokens, all layers together.

        Scores and values are two products of two operations a term; sliding layers see their window.

        >>> kinds = ("full", "sliding")
        >>> tiny = ModelFacts("x", "x", 2, 64, 64, 1, 1, 64, 9, layer_kinds=kinds, sliding_window=10)
        >>> work(tiny).attention_flops(100)
        28160.0
        """
        return self.full_flops * context + self.sliding_flops * min(context, self.window)


def work(facts: ModelFacts, weight_format: str = "bf16") -> Work:
    """Return what one token costs ``facts`` with its weights in ``weight_format``.

    Raises:
        ValueError: no such format is known.

    >>> from orchestrator.catalog import model
    >>> round(work(model("Qwen/Qwen3-30B-A3B")).active / 1e9, 1)
    3.0
    """
    parts = parameters(facts)
    sized = weight_bytes(facts, weight_format)
    has_head = facts.tied and not facts.pools  # the embedding, multiplied as a head too
    looked_up = parts.vision if has_head else parts.vision + parts.embedding
    # A total that someone counted stands; what the shapes miss of it is taken for dense.
    total = facts.parameters or parts.total
    unread = sized.vision if has_head else sized.vision + sized.embedding
    kinds = facts.kinds()
    return Work(
        dense=max(total - parts.experts - looked_up, 0 if facts.pools else parts.embedding),
        experts=parts.experts,
        expert_share=facts.experts_per_token / facts.experts if facts.experts else 0.0,
        dense_bytes=max(sized.total - sized.experts - unread, 0.0),
        expert_bytes=sized.experts,
        held_bytes=sized.total,
        full_flops=float(kinds.count("full") * _token_flops(facts, "full")),
        sliding_flops=float(kinds.count("sliding") * _token_flops(facts, "sliding")),
        window=float(facts.sliding_window or "inf"),
    )


def _token_flops(facts: ModelFacts, kind: LayerKind) -> int:
    """Return the operations between one token and one other in a layer of ``kind``."""
    heads = facts.heads_of(kind)
    value = heads.v_head_dim or heads.head_dim
    if facts.attention == "mla":
        key = (facts.qk_nope_head_dim or heads.head_dim) + (facts.qk_rope_head_dim or 0)
    else:
        key = heads.head_dim
    return 2 * heads.heads * (key + value)
