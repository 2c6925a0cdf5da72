"""What each model family's config means: the differences from a plain gated decoder, and no more.

A family is named by its architecture without the suffix (``Qwen3MoeForCausalLM`` is ``Qwen3Moe``).
Its function returns the fields of ``ModelFacts`` that differ. Shapes were checked against the
parameters of transformers 5.24 built on the meta device (``tests/catalog/test_config.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from orchestrator.catalog.layout import (
    Differences,
    always_sliding,
    every_layer_sparse,
    expert_sizes,
    latent,
    layer_kinds,
    leading_dense,
    sparse_layers,
)
from orchestrator.catalog.mixers import gated_delta, kimi_delta, mamba1, mamba2, short_convolution
from orchestrator.catalog.text import Text
from orchestrator.catalog.values import FeedForward, Heads, LayerKind, Norm, Trim


def _llama(text: Text) -> Differences:
    bias = text.flag("attention_bias", "qkv_bias", "use_bias", "use_qkv_bias", "bias")
    out = text.flag("attention_out_bias", default=bias)
    return {"qkv_bias": bias, "trim": Trim(o_bias=out, mlp_bias=text.flag("mlp_bias")), **layer_kinds(text)}


def _mistral(text: Text) -> Differences:
    return always_sliding(text)


def _mistral3(text: Text) -> Differences:
    """Mistral 3 and its kin: a dense text model, or latent attention with experts (Small 4)."""
    return _deepseek(text) if text.count("kv_lora_rank") else _llama(text)


def _mixtral(text: Text) -> Differences:
    return {**every_layer_sparse(text), **always_sliding(text)}


def _phimoe(text: Text) -> Differences:
    bias = text.flag("attention_bias", default=True)
    trim = Trim(norm_bias=True, o_bias=bias, head_bias=text.flag("lm_head_bias", default=True))
    return {**every_layer_sparse(text), **always_sliding(text), "qkv_bias": bias, "trim": trim}


def _qwen2(text: Text) -> Differences:
    slides = layer_kinds(text) if text.flag("use_sliding_window") else {}
    return {"qkv_bias": text.flag("qkv_bias", "attention_bias", default=True), **slides}


def _qwen3(text: Text) -> Differences:
    bias = text.flag("attention_bias")
    slides = layer_kinds(text) if text.flag("use_sliding_window") else {}
    return {"qkv_bias": bias, "trim": Trim(qk_norm="head", o_bias=bias), **slides}


def _qwen_experts(text: Text) -> Differences:
    dense, step = set(text.items("mlp_only_layers")), text.number("decoder_sparse_step", default=1)
    return {**expert_sizes(text), **sparse_layers(text, lambda i: i not in dense and (i + 1) % step == 0)}


def _qwen2_moe(text: Text) -> Differences:
    shared = text.number("shared_expert_intermediate_size")
    return {
        **_qwen2(text),
        **_qwen_experts(text),
        "shared_experts": 1,
        "shared_intermediate": shared,
        "trim": Trim(shared_gate=True),
    }


def _qwen3_moe(text: Text) -> Differences:
    return {**_qwen3(text), **_qwen_experts(text)}


def _qwen3_linear(text: Text) -> Differences:
    """Qwen3-Next and Qwen3.5: three of four layers linear, a gate on attention's output."""
    bias = text.flag("attention_bias")
    kinds = layer_kinds(text) or _every_nth_full(text, text.number("full_attention_interval", default=4))
    experts: Differences = {}
    gate = bool(text.count("num_experts"))
    if gate:
        shared = text.number("shared_expert_intermediate_size")
        experts = {**_qwen_experts(text), "shared_experts": 1, "shared_intermediate": shared}
    trim = Trim(qk_norm="head", output_gate=True, o_bias=bias, shared_gate=gate)
    return {**kinds, **gated_delta(text), **experts, "qkv_bias": bias, "trim": trim}


def _every_nth_full(text: Text, interval: int) -> Differences:
    layers = text.number("num_hidden_layers")
    kinds: tuple[LayerKind, ...] = tuple(
        "full" if (i + 1) % interval == 0 else "linear" for i in range(layers)
    )
    return {"layer_kinds": kinds}


def _gemma(text: Text) -> Differences:
    return {"tied": text.flag("tie_word_embeddings", default=True)}


def _gemma2(text: Text) -> Differences:
    kinds = layer_kinds(text, every=2)
    return {"tied": text.flag("tie_word_embeddings", default=True), "trim": Trim(norms=4), **kinds}


def _gemma3(text: Text) -> Differences:
    kinds = layer_kinds(text, every=text.number("sliding_window_pattern", default=6))
    tied = text.flag("tie_word_embeddings", default=True)
    return {"tied": tied, "trim": Trim(norms=4, qk_norm="head"), **kinds}


def _gemma4(text: Text) -> Differences:
    """Gemma 4: full layers with wider heads whose values are their keys; experts beside a dense block."""
    kinds = layer_kinds(text, every=6)
    layers = text.number("num_hidden_layers")
    hidden = text.number("hidden_size")
    small = text.number("head_dim")
    large = text.number("global_head_dim", default=_widest_head(text, small))
    heads, shared = text.number("num_attention_heads"), text.count("num_kv_shared_layers")
    tied_values = text.flag("attention_k_eq_v")
    kv_full = text.number("num_global_key_value_heads", default=text.number("num_key_value_heads"))
    sparse = text.flag("enable_moe_block") and bool(text.count("num_experts"))
    per_layer = text.count("hidden_size_per_layer_input")
    other = per_layer * (2 * hidden) + hidden if per_layer else 0
    table = text.number("vocab_size_per_layer_input", default=1) * layers * per_layer
    once = table + hidden * layers * per_layer + per_layer if per_layer else 0
    width = text.number("intermediate_size")
    double = shared and text.flag("use_double_wide_mlp")
    # Q, K and V norms: the last has no weight, and a layer that shares keys has no norm for them.
    kind_list: tuple[LayerKind, ...] = kinds.get("layer_kinds", ("full",) * layers)
    unused = sum(
        -_shared_projections(
            kind, small, large, text.number("num_key_value_heads"), kv_full, hidden, tied_values
        )
        for kind in kind_list[layers - shared :]
        if shared
    )
    return {
        **kinds,
        "tied": text.flag("tie_word_embeddings", default=True),
        "head_dim": large,
        "kv_heads": kv_full if tied_values else text.number("num_key_value_heads"),
        "sliding_heads": Heads(heads, text.number("num_key_value_heads"), small),
        "kv_shared_layers": shared,
        "intermediates": (width,) * (layers - shared) + (2 * width,) * shared if double else (),
        **(expert_sizes(text) if sparse else {}),
        "feed_forwards": ("both",) * layers if sparse else (),
        "trim": Trim(
            norms=7 if sparse else 4,
            qk_norm="head",
            keys_are_values=("full",) if tied_values else (),
            layer_other=other + (hidden + text.count("num_experts") if sparse else 0),
            model_other=once + unused,
        ),
    }


def _widest_head(text: Text, usual: int) -> int:
    """Return the head size that transformers 5.24 states layer by layer."""
    layers = text.get("per_layer_config") or {}
    return max((int(layer.get("head_dim", usual)) for layer in layers.values()), default=usual)


def _shared_projections(
    kind: LayerKind, small: int, large: int, kv_small: int, kv_large: int, hidden: int, tied_values: bool
) -> int:
    """Return the key and value weights and the key norm that a layer sharing keys does without."""
    head = small if kind == "sliding" else large
    if kind == "full" and tied_values:
        return hidden * kv_large * head + head
    return 2 * hidden * kv_small * head + head


def _gemma3n(text: Text) -> Differences:
    """Gemma 3n: alternating updates, learned augmented residuals and per-layer embeddings."""
    layers, hidden, per_layer = (
        text.number("num_hidden_layers"),
        text.number("hidden_size"),
        text.number("hidden_size_per_layer_input"),
    )
    streams, rank = text.number("altup_num_inputs", default=4), text.number("laurel_rank", default=64)
    altup = streams * hidden + streams**3 + streams**2 + hidden + hidden
    laurel = 2 * hidden * rank + hidden
    inputs = 2 * hidden * per_layer + hidden
    table = text.number("vocab_size_per_layer_input", default=262144) * layers * per_layer
    project = hidden * layers * per_layer + per_layer
    streams_in_out = 2 * (streams - 1) * hidden * hidden
    shared, head = text.count("num_kv_shared_layers", default=15), text.number("head_dim", default=256)
    keys = text.number("num_key_value_heads") * head
    widths = text.items("intermediate_size")
    return {
        **layer_kinds(text, every=5),
        "tied": text.flag("tie_word_embeddings", default=True),
        "kv_shared_layers": shared,
        "intermediates": tuple(int(width) for width in widths) if len(widths) == layers else (),
        "trim": Trim(
            norms=4,
            qk_norm="head",
            layer_other=altup + laurel + inputs,
            model_other=table + project + streams_in_out - shared * (2 * hidden * keys + head),
        ),
    }


def _phi(_text: Text) -> Differences:
    """Phi-1.5 and Phi-2: attention and feed-forward in parallel, biases everywhere."""
    trim = Trim(norms=1, norm_bias=True, o_bias=True, mlp_bias=True, head_bias=True)
    return {"gated": False, "qkv_bias": True, "trim": trim}


def _phi3(text: Text) -> Differences:
    return always_sliding(text)


def _falcon(text: Text) -> Differences:
    """Falcon: one or two norms by generation, one key head or groups of them, no bias."""
    hidden = text.number("hidden_size")
    newer = text.flag("new_decoder_architecture")
    heads = text.number("num_attention_heads", "n_head")
    if newer:
        kv_heads = text.number("num_kv_heads", "n_head_kv", default=heads)
    else:
        kv_heads = 1 if text.flag("multi_query", default=True) else heads
    both = newer and text.count("num_ln_in_parallel_attn", default=2) == 2
    norms = 2 if both or not text.flag("parallel_attn", default=True) else 1
    bias = text.flag("bias")
    return {
        "gated": False,
        "kv_heads": kv_heads,
        "head_dim": hidden // heads,
        "intermediate": text.number("ffn_hidden_size", default=4 * hidden),
        "tied": text.flag("tie_word_embeddings", default=True),
        "qkv_bias": bias,
        "trim": Trim(norms=norms, norm_bias=True, o_bias=bias, mlp_bias=bias),
    }


def _gpt2(text: Text) -> Differences:
    hidden = text.number("n_embd", "hidden_size")
    return {
        "gated": False,
        "intermediate": text.number("n_inner", default=4 * hidden),
        "kv_heads": 1 if text.flag("multi_query") else text.number("n_head", "num_attention_heads"),
        "tied": text.flag("tie_word_embeddings", default=True),
        "qkv_bias": True,
        "trim": Trim(norm_bias=True, o_bias=True, mlp_bias=True, positions=text.number("n_positions")),
    }


def _gpt_neox(text: Text) -> Differences:
    bias = text.flag("attention_bias", default=True)
    trim = Trim(norm_bias=True, o_bias=bias, mlp_bias=True)
    return {"gated": False, "qkv_bias": bias, "trim": trim}


def _gptj(text: Text) -> Differences:
    hidden = text.number("n_embd", "hidden_size")
    trim = Trim(norms=1, norm_bias=True, mlp_bias=True, head_bias=True)
    return {"gated": False, "intermediate": text.number("n_inner", default=4 * hidden), "trim": trim}


def _bloom(text: Text) -> Differences:
    hidden = text.number("hidden_size", "n_embed")
    trim = Trim(norm_bias=True, o_bias=True, mlp_bias=True, final_norms=2)
    return {
        "gated": False,
        "intermediate": 4 * hidden,
        "tied": text.flag("tie_word_embeddings", default=True),
        "qkv_bias": True,
        "trim": trim,
    }


def _opt(text: Text) -> Differences:
    positions = text.number("max_position_embeddings") + 2  # the first two are never used
    return {
        "gated": False,
        "intermediate": text.number("ffn_dim"),
        "tied": text.flag("tie_word_embeddings", default=True),
        "qkv_bias": True,
        "trim": Trim(norm_bias=True, o_bias=True, mlp_bias=True, positions=positions),
    }


def _bert(text: Text) -> Differences:
    """BERT and its kin: positions and token types, a norm after the embeddings, a pooler."""
    hidden = text.number("hidden_size")
    return {
        "gated": False,
        "tied": True,
        "qkv_bias": True,
        "bidirectional": not text.flag("is_decoder"),
        "trim": Trim(
            norm_bias=True,
            o_bias=True,
            mlp_bias=True,
            positions=text.number("max_position_embeddings"),
            token_types=text.count("type_vocab_size", default=2),
            model_other=hidden * hidden + hidden,
        ),
    }


def _roberta(text: Text) -> Differences:
    """RoBERTa: BERT whose first two positions are padding, so that a prompt never has them."""
    return {**_bert(text), "context": max(1, text.number("max_position_embeddings") - 2)}


def _modern_bert(text: Text) -> Differences:
    """ModernBERT: a gated GELU; the norm after the embedding stands in for the first layer's own."""
    hidden, vocab = text.number("hidden_size"), text.number("vocab_size")
    decodes = "Decoder" in str(text.get("architectures"))
    head = hidden * hidden + hidden + vocab  # a map, a norm, and a bias per word
    return {
        "tied": True,
        "bidirectional": not decodes,
        **layer_kinds(text),
        "trim": Trim(model_other=head if decodes else 0),
    }


def _bitnet(text: Text) -> Differences:
    """BitNet: a squared ReLU behind a gate, and norms inside attention and feed-forward."""
    inner = text.number("hidden_size") + text.number("intermediate_size")
    return {"tied": text.flag("tie_word_embeddings"), "trim": Trim(layer_other=inner)}


def _nomic(text: Text) -> Differences:
    """Nomic's BERT: rotary positions, a gate, no biases and no pooler."""
    trim = Trim(norm_bias=True, token_types=text.count("type_vocab_size", default=2))
    return {"tied": True, "bidirectional": True, "trim": trim}


def _stablelm(text: Text) -> Differences:
    norms = 1 if text.flag("use_parallel_residual") else 2
    return {"qkv_bias": text.flag("use_qkv_bias"), "trim": Trim(norms=norms, norm_bias=True)}


def _starcoder2(text: Text) -> Differences:
    bias = text.flag("use_bias", default=True)
    trim = Trim(norm_bias=True, o_bias=bias, mlp_bias=bias)
    return {
        "gated": False,
        "tied": text.flag("tie_word_embeddings", default=True),
        "qkv_bias": bias,
        "trim": trim,
        **always_sliding(text),
    }


def _cohere(text: Text) -> Differences:
    norm: Norm = "full" if text.flag("use_qk_norm") else "none"
    bias = text.flag("attention_bias")
    trim = Trim(norms=1, qk_norm=norm, o_bias=bias)
    return {"tied": text.flag("tie_word_embeddings", default=True), "qkv_bias": bias, "trim": trim}


def _cohere2(text: Text) -> Differences:
    kinds = layer_kinds(text, every=text.number("sliding_window_pattern", default=4))
    return {"tied": text.flag("tie_word_embeddings", default=True), "trim": Trim(norms=1), **kinds}


def _olmo(_text: Text) -> Differences:
    return {"trim": Trim(norms=0, final_norms=0)}  # its norms carry no weights


def _olmo2(text: Text) -> Differences:
    return {"trim": Trim(qk_norm="full"), **layer_kinds(text, every=4)}


def _olmoe(text: Text) -> Differences:
    return {**every_layer_sparse(text), "trim": Trim(qk_norm="full")}


def _glm(text: Text) -> Differences:
    return {"qkv_bias": text.flag("attention_bias", default=True)}


def _glm4(text: Text) -> Differences:
    return {"qkv_bias": text.flag("attention_bias", default=True), "trim": Trim(norms=4)}


def _glm4_moe(text: Text) -> Differences:
    norm: Norm = "head" if text.flag("use_qk_norm") else "none"
    bias = text.flag("attention_bias")
    return {**leading_dense(text), "qkv_bias": bias, "trim": Trim(qk_norm=norm)}


def _chatglm(text: Text) -> Differences:
    """ChatGLM's own code: grouped keys by their own name, biases on queries, keys and values."""
    return {
        "intermediate": text.number("ffn_hidden_size"),
        "vocab": text.number("padded_vocab_size", "vocab_size"),
        "kv_heads": text.number("multi_query_group_num", default=text.number("num_attention_heads")),
        "head_dim": text.number("kv_channels", default=128),
        "qkv_bias": text.flag("add_qkv_bias", default=True),
    }


def _qwen1(text: Text) -> Differences:
    """Qwen's first: ``intermediate_size`` counts gate and up together."""
    trim = Trim()
    return {"intermediate": text.number("intermediate_size") // 2, "qkv_bias": True, "trim": trim}


def _deepseek(text: Text) -> Differences:
    bias = text.flag("attention_bias")
    return {**latent(text), **leading_dense(text), "qkv_bias": bias, "trim": Trim(o_bias=bias)}


def _deepseek_dense(text: Text) -> Differences:
    return {**leading_dense(text), "qkv_bias": text.flag("attention_bias")}


def _deepseek_sparse(text: Text) -> Differences:
    """DeepSeek V3.2 and GLM 5: an indexer in every layer, or in those the config marks ``full``."""
    layers = text.number("num_hidden_layers")
    marks = text.items("indexer_types")[:layers]
    indexed = sum(1 for mark in marks if mark == "full") if marks else layers
    width = text.number("index_head_dim", default=128)
    shape = _deepseek(text)
    shape["trim"] = Trim(o_bias=text.flag("attention_bias"), model_other=indexed * 2 * width)
    return {
        **shape,
        "index_layers": indexed,
        "index_heads": text.number("index_n_heads", default=64),
        "index_head_dim": width,
    }


def _deepseek4(text: Text) -> Differences:
    """DeepSeek V4: one latent head, compressed keys, several residual streams, grouped output ranks."""
    layers, hidden, heads = (
        text.number("num_hidden_layers"),
        text.number("hidden_size"),
        text.number("num_attention_heads"),
    )
    head, rank = text.number("head_dim"), text.number("q_lora_rank")
    groups, out_rank, streams = text.number("o_groups"), text.number("o_lora_rank"), text.number("hc_mult")
    index_heads, index_dim = text.number("index_n_heads"), text.number("index_head_dim")
    attention = hidden * rank + rank + rank * heads * head + hidden * head + head + heads
    output = heads * head * out_rank + groups * out_rank * hidden
    mixes = (2 + streams) * streams
    residual = 2 * (mixes * streams * hidden + mixes + 3)
    ratios = [int(ratio) for ratio in text.items("compress_ratios")[:layers]] or _compress_rates(text)
    fine = [ratio for ratio in ratios if ratio == 4]
    coarse = [ratio for ratio in ratios if ratio > 4]
    compressors = sum(2 * head * (2 * hidden + ratio) + head for ratio in fine) + sum(
        head * (2 * hidden + ratio) + head for ratio in coarse
    )
    indexers = sum(
        2 * index_dim * (2 * hidden + ratio)
        + index_dim
        + rank * index_heads * index_dim
        + index_heads * hidden
        for ratio in fine
    )
    top = streams * streams * hidden + streams + 1
    rope = text.number("qk_rope_head_dim", default=64)
    # It caches one vector per token, as latent attention does; the count of that layout is taken off again.
    taken = rank * (hidden + heads * head) + hidden * head + (head - rope) * heads * (2 * head - rope)
    taken += heads * head * hidden + rank + head - rope + heads
    return {
        **leading_dense(text),
        "attention": "mla",
        "q_lora_rank": rank,
        "kv_lora_rank": head - rope,
        "qk_rope_head_dim": rope,
        "qk_nope_head_dim": head - rope,
        "v_head_dim": head,
        "kv_heads": heads,
        "head_dim": head,
        "layer_kinds": tuple("full" if ratio else "sliding" for ratio in ratios) or ("full",) * layers,
        "sliding_window": text.count("sliding_window") or None,
        "compress_ratios": tuple(ratios),
        "index_head_dim": index_dim,
        "trim": Trim(
            sinks=("full", "sliding"),
            layer_other=attention + output + residual - taken,
            model_other=compressors + indexers + top,
        ),
        "extra": {"expert_dtype": text.get("expert_dtype")},
    }


def _compress_rates(text: Text) -> list[int]:
    """Return the ratios where the config names the kind of each layer and the rate of each kind."""
    rates = text.get("compress_rates") or {}
    return [int(rates.get(kind, 0)) for kind in text.items("layer_types")]


def _gpt_oss(text: Text) -> Differences:
    bias = text.flag("attention_bias", default=True)
    trim = Trim(o_bias=bias, router_bias=True, expert_bias=True, sinks=("full", "sliding"))
    return {**every_layer_sparse(text), **layer_kinds(text, every=2), "qkv_bias": bias, "trim": trim}


def _llama4(text: Text) -> Differences:
    """Llama 4: experts in every or every second layer, a wider dense block in the others."""
    step, width = text.number("interleave_moe_layer_step", default=1), text.number("intermediate_size")
    chosen = text.items("moe_layers")
    sparse = sparse_layers(text, (lambda i: i in chosen) if chosen else (lambda i: (i + 1) % step == 0))
    return {
        **expert_sizes(text, width=width),
        **sparse,
        **layer_kinds(text, every=4),
        "intermediate": text.number("intermediate_size_mlp", default=width),
        "shared_experts": 1,
        "shared_intermediate": width,
    }


def _minimax2(text: Text) -> Differences:
    return {
        **every_layer_sparse(text),
        "trim": Trim(qk_norm="full" if text.flag("use_qk_norm", default=True) else "none"),
    }


def _minimax3(text: Text) -> Differences:
    """MiniMax M3: DeepSeek's layout on grouped heads, with its own indexer in the sparse layers."""
    sparse = text.get("sparse_attention_config") or {}
    width = int(sparse.get("sparse_index_dim") or text.number("index_head_dim", default=128))
    heads = int(sparse.get("sparse_num_index_heads") or text.number("index_n_heads", default=4))
    hidden, head = text.number("hidden_size"), text.number("head_dim")
    marked = sum(1 for mark in sparse.get("sparse_attention_freq", ()) if mark)
    marked = marked or sum(1 for kind in text.items("layer_types") if "sparse" in str(kind))
    experts = expert_sizes(text, width=text.number("intermediate_size"))
    shared = text.count("n_shared_experts", default=1)
    return {
        **experts,
        **sparse_layers(text, _listed_sparse(text)),
        "intermediate": text.number("dense_intermediate_size", "intermediate_size"),
        "shared_experts": shared,
        "shared_intermediate": text.count("shared_intermediate_size") if shared else 0,
        "trim": Trim(
            qk_norm="head" if text.flag("use_qk_norm", default=True) else "none",
            # two norms, and no weights per head as DeepSeek's indexer has
            model_other=marked * (2 * head - heads * hidden),
        ),
        "index_layers": marked,
        "index_heads": heads,
        "index_head_dim": width,
    }


def _listed_sparse(text: Text) -> Callable[[int], bool]:
    """Return whether a layer has experts, from a list of marks or of names; all of them without one."""
    marks, names = text.items("moe_layer_freq"), text.items("mlp_layer_types")
    if marks:
        return lambda i: bool(marks[i])
    return lambda i: not names or names[i] != "dense"


def _afmoe(text: Text) -> Differences:
    """Arcee's Trinity: a gate on attention's output, four norms, dense layers first."""
    leading, shared = text.count("num_dense_layers"), text.count("num_shared_experts")
    experts = expert_sizes(text)
    return {
        **experts,
        **sparse_layers(text, lambda i: i >= leading),
        **layer_kinds(text, every=text.number("global_attn_every_n_layers", default=4)),
        "shared_experts": shared,
        "shared_intermediate": experts["expert_intermediate"] if shared else 0,
        "trim": Trim(norms=4, qk_norm="head", output_gate=True, router_bias=True),
    }


def _exaone_moe(text: Text) -> Differences:
    return {**leading_dense(text), **layer_kinds(text), "trim": Trim(qk_norm="head")}


def _latent_dense(text: Text) -> Differences:
    """MiniCPM3 and Youtu: latent attention over dense feed-forwards."""
    return {**latent(text), "tied": text.flag("tie_word_embeddings", default=True)}


def _mpt(text: Text) -> Differences:
    hidden = text.number("d_model", "hidden_size")
    ratio = int(text.get("expansion_ratio") or 4)
    return {
        "gated": False,
        "intermediate": ratio * hidden,
        "tied": True,
        "head_dim": hidden // text.number("n_heads"),
    }


def _cohere2_moe(text: Text) -> Differences:
    return {**_cohere2(text), **expert_sizes(text), **sparse_layers(text, _listed_sparse(text))}


def _mimo2(text: Text) -> Differences:
    """MiMo V2: sliding layers with their own heads and sinks; keys wider than values."""
    layers, heads = text.number("num_hidden_layers"), text.number("num_attention_heads")
    pattern = text.items("hybrid_layer_pattern")[:layers]
    kinds: tuple[LayerKind, ...] = tuple("sliding" if mark else "full" for mark in pattern)
    head, value = text.number("head_dim"), text.number("v_head_dim", "head_dim")
    sinks: list[LayerKind] = []
    if text.flag("add_full_attention_sink_bias"):
        sinks.append("full")
    if text.flag("add_swa_attention_sink_bias"):
        sinks.append("sliding")
    return {
        **expert_sizes(text),
        **sparse_layers(text, _listed_sparse(text)),
        "v_head_dim": value,
        "layer_kinds": kinds or layer_kinds(text).get("layer_kinds", ()),
        "sliding_window": text.count("sliding_window") or None,
        "sliding_heads": Heads(
            text.number("swa_num_attention_heads", default=heads),
            text.number("swa_num_key_value_heads", default=text.number("num_key_value_heads")),
            text.number("swa_head_dim", default=head),
            text.number("swa_v_head_dim", default=value),
        ),
        "trim": Trim(sinks=tuple(sinks)),
    }


def _nemotron_h(text: Text) -> Differences:
    """Nemotron-H: each layer is one thing: Mamba-2, attention, a dense block or experts."""
    pattern = str(text.get("hybrid_override_pattern") or "")
    letters = pattern.replace("|", "") or _spelled(text)
    kind: Mapping[str, LayerKind] = {"M": "linear", "*": "full"}
    feed: Mapping[str, FeedForward] = {"-": "dense", "E": "experts"}
    experts: Differences = {}
    if "E" in letters:
        shared = text.count("n_shared_experts")
        experts = {
            **expert_sizes(text),
            "shared_experts": shared,
            "shared_intermediate": text.count("moe_shared_expert_intermediate_size") if shared else 0,
            "expert_hidden": text.count("moe_latent_size") or None,
        }
    bias = text.flag("attention_bias")
    return {
        **mamba2(text),
        **experts,
        "layers": len(letters),
        "gated": False,
        "layer_kinds": tuple(kind.get(letter, "none") for letter in letters),
        "feed_forwards": tuple(feed.get(letter, "none") for letter in letters),
        "qkv_bias": bias,
        "trim": Trim(norms=1, o_bias=bias, mlp_bias=text.flag("mlp_bias")),
    }


def _spelled(text: Text) -> str:
    letters = {
        "mamba": "M",
        "linear_attention": "M",
        "attention": "*",
        "full_attention": "*",
        "mlp": "-",
        "moe": "E",
    }
    return "".join(letters.get(str(name), "*") for name in text.items("layers_block_type", "layer_types"))


def _nemotron(text: Text) -> Differences:
    bias = text.flag("attention_bias")
    return {"gated": False, "qkv_bias": bias, "trim": Trim(norm_bias=True, o_bias=bias)}


def _deci(text: Text) -> Differences:
    """Nemotron's searched models: attention left out of some layers, feed-forwards of any width."""
    hidden, heads = text.number("hidden_size"), text.number("num_attention_heads")
    kinds: list[LayerKind] = []
    widths: list[int] = []
    groups: list[int] = []
    for block in text.items("block_configs"):
        attention, feed = block.get("attention") or {}, block.get("ffn") or {}
        kinds.append("none" if attention.get("no_op") or attention.get("replace_with_linear") else "full")
        if kinds[-1] == "full":
            groups.append(int(attention.get("n_heads_in_group") or 1))
        multiple = 0.0 if feed.get("no_op") else float(feed.get("ffn_mult") or 0)
        widths.append(_round_up(int(2 * multiple * hidden / 3), 256))
    group = max(groups, default=1)
    return {
        "kv_heads": heads // group,
        "layer_kinds": tuple(kinds),
        "intermediate": max(widths, default=0) or 4 * hidden,
        "intermediates": tuple(widths),
        "qkv_bias": text.flag("attention_bias"),
        "trim": Trim(
            model_other=-hidden
            * sum((kind == "none") + (width == 0) for kind, width in zip(kinds, widths, strict=True))
        ),
    }


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step


def _granite(text: Text) -> Differences:
    return _llama(text)


def _granite_moe(text: Text) -> Differences:
    return {**every_layer_sparse(text), "qkv_bias": text.flag("attention_bias")}


def _granite_hybrid(text: Text) -> Differences:
    """Granite 4: Mamba-2 or attention, then experts where there are any and a shared block always."""
    layers, experts = text.number("num_hidden_layers"), text.count("num_local_experts")
    shared = text.count("shared_intermediate_size")
    kinds = layer_kinds(text)
    mixer = mamba2(text) if "linear" in kinds.get("layer_kinds", ()) else {}
    if not experts:
        feed: Differences = {"intermediate": shared, "feed_forwards": ("dense",) * layers}
    else:
        feed = {**every_layer_sparse(text), "shared_experts": 1, "shared_intermediate": shared}
    return {**kinds, **mixer, **feed, "qkv_bias": text.flag("attention_bias")}


def _jamba(text: Text) -> Differences:
    period, offset = text.number("attn_layer_period", default=8), text.count("attn_layer_offset", default=4)
    every, first = text.number("expert_layer_period", default=2), text.count("expert_layer_offset", default=1)
    layers = text.number("num_hidden_layers")
    kinds: tuple[LayerKind, ...] = tuple("full" if i % period == offset else "linear" for i in range(layers))
    return {
        **expert_sizes(text),
        **sparse_layers(text, lambda i: i % every == first),
        **mamba1(text),
        "layer_kinds": kinds,
    }


def _bamba(text: Text) -> Differences:
    """Bamba: Mamba-2 in all layers but the listed ones."""
    layers, attends = text.number("num_hidden_layers"), set(text.items("attn_layer_indices"))
    kinds: tuple[LayerKind, ...] = tuple("full" if i in attends else "linear" for i in range(layers))
    return {**mamba2(text), "layer_kinds": kinds}


def _falcon_h1(text: Text) -> Differences:
    """Falcon-H1: attention and Mamba-2 side by side, told as two layers: both keep something per token."""
    layers, bias = text.number("num_hidden_layers"), text.flag("attention_bias")
    kinds: tuple[LayerKind, ...] = ("full", "linear")
    feeds: tuple[FeedForward, ...] = ("none", "dense")
    return {
        **mamba2(_without_norm(text)),
        "layers": 2 * layers,
        "layer_kinds": kinds * layers,
        "feed_forwards": feeds * layers,
        "qkv_bias": bias,
        "trim": Trim(norms=1, o_bias=bias, mlp_bias=text.flag("mlp_bias")),
    }


def _without_norm(text: Text) -> Text:
    return Text({**text.values, "mamba_rms_norm": text.flag("mamba_rms_norm")}, text.outer)


def _kimi_linear(text: Text) -> Differences:
    """Kimi Linear: delta attention in most layers, latent attention in the rest."""
    linear = text.get("linear_attn_config") or {}
    full = set(linear.get("full_attn_layers", ()))
    layers = text.number("num_hidden_layers")
    kinds: tuple[LayerKind, ...] = tuple("full" if i + 1 in full else "linear" for i in range(layers))
    if not full:
        kinds = layer_kinds(text).get("layer_kinds", ())
    gate = text.flag("mla_use_output_gate")
    return {
        **latent(text),
        **leading_dense(text),
        **kimi_delta(text),
        "layer_kinds": kinds,
        "expert_hidden": text.count("routed_expert_hidden_size") or None,
        "trim": Trim(output_gate=gate),
    }


def _lfm2(text: Text) -> Differences:
    """LFM2: short convolutions, a width that the config asks to be adjusted."""
    layers = text.number("num_hidden_layers")
    attends = set(text.items("full_attn_idxs"))
    kinds = layer_kinds(text)
    if not kinds:
        chosen: tuple[LayerKind, ...] = tuple("full" if i in attends else "linear" for i in range(layers))
        kinds = {"layer_kinds": chosen}
    width = text.number("intermediate_size", "block_ff_dim", "block_dim")
    if text.flag("block_auto_adjust_ff_dim", default=True) and not text.count("num_experts"):
        width = int(2 * width / 3)
        width = int(float(text.get("block_ffn_dim_multiplier") or 1.0) * width)
        width = _round_up(width, text.number("block_multiple_of", default=256))
    experts: Differences = {}
    if text.count("num_experts"):
        leading = text.count("num_dense_layers", default=2)
        experts = {**expert_sizes(text), **sparse_layers(text, lambda i: i >= leading)}
    return {
        **kinds,
        **short_convolution(text),
        **experts,
        "intermediate": width,
        "tied": text.flag("tie_word_embeddings", "tie_embedding", default=True),
        "trim": Trim(qk_norm="head"),
    }


def _ernie_moe(text: Text) -> Differences:
    first, last = text.count("moe_layer_start_index", default=1), text.get("moe_layer_end_index")
    end = text.number("num_hidden_layers") - 1 if last in (None, -1) else int(last)
    step = text.number("moe_layer_interval", default=1)
    shared = text.count("moe_num_shared_experts")
    experts = expert_sizes(text)
    return {
        **experts,
        **sparse_layers(text, lambda i: first <= i <= end and (i + 1) % step == 0),
        "shared_experts": shared,
        "shared_intermediate": experts["expert_intermediate"] if shared else 0,
        "tied": text.flag("tie_word_embeddings", default=True),
        "trim": Trim(router_bias=True),
    }


def _hunyuan_dense(text: Text) -> Differences:
    bias = text.flag("attention_bias")
    return {"qkv_bias": bias, "trim": Trim(qk_norm="head", o_bias=bias)}


def _hunyuan_moe(text: Text) -> Differences:
    width = text.number("intermediate_size")
    bias = text.flag("attention_bias")
    return {
        **expert_sizes(text, width=text.number("moe_intermediate_size", "intermediate_size")),
        "dense_layers": 0,
        "shared_experts": text.count("num_shared_expert", "n_shared_experts", default=1),
        "shared_intermediate": width,
        "qkv_bias": bias,
        "trim": Trim(qk_norm="head", o_bias=bias),
    }


def _seed(text: Text) -> Differences:
    bias = text.flag("attention_bias", default=True)
    return {"qkv_bias": bias, "trim": Trim(o_bias=text.flag("attention_out_bias"))}


def _apertus(_text: Text) -> Differences:
    """Apertus: an activation with two learned numbers per layer, and no gate."""
    return {"gated": False, "trim": Trim(qk_norm="head", layer_other=2)}


def _exaone4(text: Text) -> Differences:
    return {"trim": Trim(qk_norm="head"), **layer_kinds(text, every=4)}


def _arcee(text: Text) -> Differences:
    return {**_llama(text), "gated": False}


def _step3p7(text: Text) -> Differences:
    shared = text.count("n_shared_experts")
    return {
        **leading_dense(text),
        **layer_kinds(text),
        "shared_experts": shared,
        "shared_intermediate": text.count("share_expert_dim") if shared else 0,
        "trim": Trim(
            qk_norm="head", layer_other=text.number("num_attention_heads") * text.number("hidden_size")
        ),
    }


def _vault_gemma(text: Text) -> Differences:
    return {
        "tied": text.flag("tie_word_embeddings", default=True),
        "trim": Trim(norms=2),
        **layer_kinds(text),
    }


def _mllama(text: Text) -> Differences:
    """Llama 3.2 Vision: some layers attend to the picture and not to the tokens before."""
    crossing = set(text.items("cross_attention_layers"))
    layers = text.number("num_hidden_layers")
    hidden, heads = text.number("hidden_size"), text.number("num_attention_heads")
    head = hidden // heads
    kv = text.number("num_key_value_heads") * head
    # cross attention has the same matrices, norms of its heads and two gates; 8 extra table rows
    cross = len(crossing) * (2 * hidden * hidden + 2 * hidden * kv + 2 * head + 2)
    kinds: tuple[LayerKind, ...] = tuple("none" if i in crossing else "full" for i in range(layers))
    return {"layer_kinds": kinds, "trim": Trim(model_other=cross + 8 * hidden)}


Family: TypeAlias = Callable[[Text], Differences]

FAMILIES: Mapping[str, Family] = {
    "Afmoe": _afmoe,
    "Apertus": _apertus,
    "Apertus1p5": _apertus,
    "Apertus1p5Text": _apertus,
    "Arcee": _arcee,
    "Aquila": _llama,
    "Baichuan": _llama,
    "Bamba": _bamba,
    "BitNet": _bitnet,
    "Bert": _bert,
    "Bloom": _bloom,
    "ChatGLM": _chatglm,
    "Cohere": _cohere,
    "Cohere2": _cohere2,
    "Cohere2Moe": _cohere2_moe,
    "Cwm": _llama,
    "DeciLM": _deci,
    "Deepseek": _deepseek_dense,
    "DeepseekV2": _deepseek,
    "DeepseekV3": _deepseek,
    "DeepseekV32": _deepseek_sparse,
    "DeepseekV4": _deepseek4,
    "Ernie4_5": _llama,
    "Ernie4_5_Moe": _ernie_moe,
    "Exaone4": _exaone4,
    "ExaoneMoe": _exaone_moe,
    "Falcon": _falcon,
    "FalconH1": _falcon_h1,
    "FlexOlmo": _olmoe,
    "GPT2": _gpt2,
    "GPTBigCode": _gpt2,
    "GPTJ": _gptj,
    "GPTNeoX": _gpt_neox,
    "Gemma": _gemma,
    "Gemma2": _gemma2,
    "Gemma3": _gemma3,
    "Gemma3n": _gemma3n,
    "Gemma4": _gemma4,
    "Gemma4Unified": _gemma4,
    "Glm": _glm,
    "Glm4": _glm4,
    "Glm4Moe": _glm4_moe,
    "Glm4v": _glm4,
    "Glm4vMoe": _glm4_moe,
    "Glm4MoeLite": _deepseek,
    "GlmMoeDsa": _deepseek_sparse,
    "GptOss": _gpt_oss,
    "Granite": _granite,
    "GraniteMoe": _granite_moe,
    "GraniteMoeHybrid": _granite_hybrid,
    "GraniteMoeShared": _granite_hybrid,
    "HYV3": _exaone_moe,
    "Helium": _llama,
    "HunYuanDenseV1": _hunyuan_dense,
    "HunYuanMoEV1": _hunyuan_moe,
    "InternLM": _llama,
    "InternLM2": _llama,
    "InternLM3": _llama,
    "Jamba": _jamba,
    "KimiK25": _deepseek,
    "Kimi_K25": _deepseek,
    "KimiK3": _kimi_linear,
    "KimiLinear": _kimi_linear,
    "KimiVL": _deepseek,
    "Lfm2": _lfm2,
    "Lfm2Moe": _lfm2,
    "Llama": _llama,
    "Llama4": _llama4,
    "Llava": _llama,
    "MiMo": _qwen2,
    "MiMoV2Flash": _mimo2,
    "MiniCPM": _llama,
    "MiniCPM3": _latent_dense,
    "MiniMaxM2": _minimax2,
    "MiniMaxM3": _minimax3,
    "MiniMaxM3Sparse": _minimax3,
    "MiniMaxM3VL": _minimax3,
    "Ministral": _mistral,
    "Ministral3": _llama,
    "Mistral": _mistral,
    "Mistral3": _mistral3,
    "Mixtral": _mixtral,
    "Mllama": _mllama,
    "ModernBert": _modern_bert,
    "ModernBertDecoder": _modern_bert,
    "Mpt": _mpt,
    "Mistral4": _deepseek,
    "MistralLarge3": _deepseek,
    "Nemotron": _nemotron,
    "NemotronH": _nemotron_h,
    "NomicBert": _nomic,
    "OPT": _opt,
    "Olmo": _olmo,
    "Olmo2": _olmo2,
    "Olmo3": _olmo2,
    "Olmoe": _olmoe,
    "Orion": _stablelm,
    "Phi": _phi,
    "Phi3": _phi3,
    "Phi3V": _phi3,
    "Phimoe": _phimoe,
    "PhiMoE": _phimoe,
    "QWen": _qwen1,
    "QWenLMHead": _qwen1,
    "Qwen2": _qwen2,
    "Qwen2Moe": _qwen2_moe,
    "Qwen2VL": _qwen2,
    "Qwen2_5_VL": _qwen2,
    "Qwen3": _qwen3,
    "Qwen3Moe": _qwen3_moe,
    "Qwen3Next": _qwen3_linear,
    "Qwen3VL": _qwen3,
    "Qwen3VLMoe": _qwen3_moe,
    "Qwen3_5": _qwen3_linear,
    "Qwen3_5Moe": _qwen3_linear,
    "Roberta": _roberta,
    "SeedOss": _seed,
    "SmolLM3": _llama,
    "SolarOpen": _glm4_moe,
    "StableLm": _stablelm,
    "Starcoder2": _starcoder2,
    "Step3p7": _step3p7,
    "Step3p7Flash": _step3p7,
    "VaultGemma": _vault_gemma,
    "XLMRoberta": _roberta,
    "Youtu": _latent_dense,
}
