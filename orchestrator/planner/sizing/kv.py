"""How the KV cache lies in memory, and how many tokens a pool of bytes holds."""

from __future__ import annotations

import math
from itertools import accumulate

from orchestrator.catalog.values import LayerKind, ModelFacts
from orchestrator.frozen import frozen
from orchestrator.planner.sizing.stages import split_layers

INDEXED_RATIO = 4
"""The finest compression, whose layers keep an indexer's key beside every entry: DeepSeek V4's
(transformers 5.23, ``DeepseekV4Indexer``)."""

SIMILAR_GROUPS = 1.25
"""Kinds of layer whose counts differ by less than this share one group of the larger size
(vLLM, v1/core/kv_cache_utils.py)."""


@frozen
class KvLayout:
    """The KV cache of one rank of the worst pipeline stage.

    ``token_bytes`` is what the engine charges for one printed token, ``full_bytes`` and
    ``window_bytes`` what one token really takes in the layers that keep everything and in the
    sliding ones, ``state_bytes`` the fixed recurrent state of one sequence.
    """

    token_bytes: float
    full_bytes: float
    window_bytes: float
    window: int
    state_bytes: int

    def request_bytes(self, tokens: int) -> float:
        """Return what one request of ``tokens`` tokens takes: windows capped, state included.

        >>> KvLayout(30.0, 10.0, 20.0, window=4, state_bytes=5).request_bytes(8)
        165.0
        """
        return self.full_bytes * tokens + self.window_bytes * min(tokens, self.window) + self.state_bytes

    def longest_request(self, pool_bytes: float, *, block: int = 1) -> int:
        """Return how many tokens a single request may have in a pool of ``pool_bytes``.

        An engine gives a request whole blocks of ``block`` tokens, and has no part of one left.

        >>> KvLayout(30.0, 30.0, 0.0, window=0, state_bytes=0).longest_request(1000.0, block=16)
        32
        """
        left = pool_bytes - self.state_bytes
        within = self.full_bytes + self.window_bytes
        if left <= 0 or within <= 0:
            return 0
        if not self.window_bytes or left <= within * self.window:
            return int(left / (within * block)) * block
        if not self.full_bytes:
            return 2**31 - 1  # only windows and states: any length fits
        return int((left - self.window_bytes * self.window) / (self.full_bytes * block)) * block

    def admitted_tokens(self, pool_bytes: float, *, block: int) -> int:
        """Return the tokens an engine with blocks of ``block`` tokens prints for the pool."""
        if pool_bytes <= 0 or self.token_bytes <= 0:
            return 0
        return int(pool_bytes / (self.token_bytes * block)) * block

    def concurrency(self, pool_bytes: float, *, context: int) -> float:
        """Return how many requests of ``context`` tokens the pool holds at once."""
        each = self.request_bytes(context)
        return max(0.0, pool_bytes) / each if each > 0 else math.inf


def layer_token_bytes(facts: ModelFacts, kind: LayerKind, *, tensor: int, element_bytes: float) -> float:
    """Return what one token takes in one attention layer on one tensor-parallel rank.

    Latent attention (MLA) keeps one latent and one rotary key, whole on every rank; heads that
    are fewer than the ranks are replicated.

    >>> mla = ModelFacts("v3", "DeepseekV3ForCausalLM", 61, 7168, 18432, 128, 128, 128, 129280,
    ...                  attention="mla", kv_lora_rank=512, qk_rope_head_dim=64)
    >>> layer_token_bytes(mla, "full", tensor=8, element_bytes=2)
    1152
    """
    if kind not in ("full", "sliding"):
        return 0.0
    if facts.attention == "mla":
        return ((facts.kv_lora_rank or 0) + (facts.qk_rope_head_dim or 0)) * element_bytes
    heads = facts.heads_of(kind)
    kept = max(1, math.ceil(heads.kv_heads / tensor))
    return kept * (heads.head_dim + (heads.v_head_dim or heads.head_dim)) * element_bytes


def kv_layout(
    facts: ModelFacts,
    *,
    tensor: int = 1,
    pipeline: int = 1,
    element_bytes: float = 2,
    grouped: bool = True,
    windows: bool = True,
) -> KvLayout:
    """Return the layout on the pipeline stage that keeps the most.

    Args:
        facts: Sizes from the model's ``config.json``.
        tensor: Ranks that share the heads.
        pipeline: Stages that share the layers.
        element_bytes: 2 for bf16, 1 for fp8.
        grouped: Whether the engine allots kinds of layer in equal groups and pads the last
            one, as vLLM does since 0.10.
        windows: Whether the engine forgets tokens outside a window; others keep every token in
            sliding layers too.

    A grouped engine gives every kind pages of one size, so the kind with the smaller tokens
    gets the longer blocks, and the printed count is in those.
    """
    if facts.bidirectional:
        return KvLayout(0.0, 0.0, 0.0, 0, 0)
    if facts.compress_ratios:
        return _compressed(facts, pipeline, element_bytes)
    full_each = layer_token_bytes(facts, "full", tensor=tensor, element_bytes=element_bytes)
    slide_each = layer_token_bytes(facts, "sliding", tensor=tensor, element_bytes=element_bytes)
    full, sliding, linear = _worst_stage(facts, pipeline)
    index = _indexer_token_bytes(facts, full + sliding)
    window = facts.sliding_window or 0
    whole = full * full_each + sliding * slide_each + index
    state = linear * facts.linear_state_bytes // tensor
    if not window or not windows:
        return KvLayout(whole, whole, 0.0, 0, state)
    padded = grouped and full and sliding
    token = _padded(full, sliding) * min(full_each, slide_each) + index if padded else whole
    return KvLayout(token, full * full_each + index, sliding * slide_each, window, state)


def _compressed(facts: ModelFacts, pipeline: int, element_bytes: float) -> KvLayout:
    """Return the layout where one entry stands for several tokens, beside each layer's window.

    DeepSeek V4 (config.json, ``compress_ratios``): keys are values, so an entry is one vector. vLLM
    states 9.62 GiB for V4-Pro at 1,048,576 tokens in bf16 (vllm.ai/blog/deepseek-v4), which this
    gives. No engine that runs such a model keeps more than the window: nothing would read it.
    """
    entry = layer_token_bytes(facts, "full", tensor=1, element_bytes=element_bytes)
    index = facts.index_head_dim * element_bytes + (0 if element_bytes >= 2 else 4)
    each = [(entry + index * (r == INDEXED_RATIO)) / r if r else 0.0 for r in facts.compress_ratios]
    lengths = split_layers(len(each), pipeline)
    stages = [each[end - n : end] for n, end in zip(lengths, accumulate(lengths), strict=True)]
    worst = max(stages, key=lambda stage: (sum(stage), len(stage)))
    return KvLayout(sum(worst), sum(worst), len(worst) * entry, facts.sliding_window or 0, 0)


def _worst_stage(facts: ModelFacts, pipeline: int) -> tuple[int, int, int]:
    """Return the full, sliding and linear layers that cache on the stage that keeps the most."""
    kinds = facts.kinds()
    lengths = split_layers(len(kinds), pipeline)
    caching = kinds[: len(kinds) - facts.kv_shared_layers]
    stages = [caching[end - n : end] for n, end in zip(lengths, accumulate(lengths), strict=True)]
    counts = [(s.count("full"), s.count("sliding"), s.count("linear")) for s in stages]
    return max(counts, key=lambda c: (c[0] + c[1], c[0], c[2]), default=(0, 0, 0))


def _indexer_token_bytes(facts: ModelFacts, layers: int) -> float:
    """Return what a sparse-attention indexer caches: an fp8 key and a 4-byte scale per token."""
    if not facts.index_layers or not facts.index_head_dim:
        return 0.0
    return min(layers, facts.index_layers) * (facts.index_head_dim + 4)


def _padded(full: int, sliding: int) -> int:
    """Return the layers an engine charges for when it allots two kinds in equal groups.

    >>> _padded(10, 52), _padded(12, 12), _padded(5, 25)
    (70, 24, 30)
    """
    present = [n for n in (full, sliding) if n]
    if len(present) < 2:
        return full + sliding
    size = max(present) if max(present) < min(present) * SIMILAR_GROUPS else min(present)
    return sum(math.ceil(n / size) * size for n in present)
