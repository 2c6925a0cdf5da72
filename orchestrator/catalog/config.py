"""Turns a ``config.json`` into model facts: what every field means, family by family."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from orchestrator.catalog.families import FAMILIES, Family
from orchestrator.catalog.quantization import read_quantization
from orchestrator.catalog.text import Text
from orchestrator.catalog.values import ModelFacts
from orchestrator.catalog.vision import read_vision
from orchestrator.errors import ModelError

_SUFFIX = re.compile(
    r"(ForCausalLM|ForConditionalGeneration|ForSequenceClassification|ForMaskedLM|ForTokenClassification"
    r"|LMHeadModel|LMModel|TextModel|Model)$"
)
_POOLS = re.compile(
    r"(ForTextEncoding|ForSequenceClassification|ForTokenClassification|ClassificationModel|RewardModel"
    r"|ForRewardModeling|ForMaskedLM|ForRetrieval|ForRanking|(?<!Chat)(?<!LM)(?<!LMHead)(?<!Omni)Model)$"
)
"""Architectures without a head that generates, by the suffixes that vLLM 0.33.0 tells them by (its
config/model.py); those before ``Model`` are its generators all the same, and so is _GENERATES."""
_GENERATES = frozenset({"MossAudioModel", "UltravoxModel"})
_MISFITS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What reading a field as what it is not ends in: a list that is a number, a mapping that is text."""
_UNGATED = ("gelu", "gelu_new", "gelu_fast", "gelu_python", "quick_gelu", "relu", "relu2", "relu_squared")
_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32", "float": "fp32"}
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_HIDDEN = ("hidden_size", "n_embd", "d_model", "n_embed", "dim")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
_VOCAB = ("vocab_size", "padded_vocab_size", "n_vocab")
_LAYER_LISTS = ("layers_block_type", "hybrid_override_pattern")
_SPECIAL = (
    "num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "kv_lora_rank",
    "linear_num_key_heads", "mamba_d_state", "ssm_state_size", "state_size", "ssm_cfg", "lru_width",
    "block_configs", "is_encoder_decoder",
)  # fmt: skip
"""Fields that say a model is no plain decoder; without knowing its family they cannot be counted."""
_BY_TYPE = {name.replace("_", "").casefold(): read for name, read in FAMILIES.items()}
"""Families by model type, which multimodal configs give their text model instead of an architecture."""
_NEEDED = {
    "layers": (*_LAYERS, *_LAYER_LISTS),
    "hidden size": _HIDDEN,
    "attention heads": _HEADS,
    "vocabulary": _VOCAB,
}


def from_config(config: Mapping[str, Any], *, id: str = "", source: str = "config.json") -> ModelFacts:
    """Return the facts that a model's ``config.json`` states; nothing is fetched or loaded.

    An architecture we do not know is read as a plain gated decoder when the config has all that one
    needs; ``extra["assumed"]`` then says so.

    Args:
        config: The parsed file; a text model nested in a multimodal one is found.
        id: What to call the model.
        source: Where the config came from, for the reader.

    Raises:
        ModelError: a needed field is missing, a number is negative or absurd, or nobody knows the
            quantization.

    >>> tiny = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "hidden_size": 64,
    ...         "intermediate_size": 128, "num_attention_heads": 4, "vocab_size": 512}
    >>> from_config(tiny).kv_heads
    4
    """
    family = family_of(config)
    text = Text.of(config)
    _refuse_missing(text, family)
    read = _reader(config)
    if read is None:
        _refuse_special(text, family)
    try:
        differences = read(text) if read else _assumed(text, family)
        facts = replace(_plain(text, id=id, family=architecture_of(config), source=source), **differences)
        facts = replace(facts, **_published(config), vision=read_vision(family, config, facts.hidden))
        facts = pooling(facts) if pools(facts.architecture) else facts
    except _MISFITS as error:
        raise ModelError(
            f"the fields of the {family or 'unnamed'} config do not fit together: {error}",
            fix="use the config.json that came with the weights",
        ) from error
    _refuse_uneven(facts)
    return facts


def family_of(config: Mapping[str, Any]) -> str:
    """Return the family that the config's architecture names, without its suffix.

    >>> family_of({"architectures": ["Qwen3MoeForCausalLM"]})
    'Qwen3Moe'
    """
    return _family(architecture_of(config))


def pools(architecture: str) -> bool:
    """Say whether models of an architecture answer with vectors or scores and generate nothing.

    >>> [pools(name) for name in ("BertModel", "Qwen3ForSequenceClassification", "GPT2LMHeadModel")]
    [True, True, False]
    """
    return bool(_POOLS.search(architecture)) and architecture not in _GENERATES


def pooling(facts: ModelFacts) -> ModelFacts:
    """Return the facts of a model that pools: it has no head, or one too small to count.

    Sentence Transformers publish such models under the architecture of a generator too.
    """
    return replace(facts, pools=True, tied=True)


def _family(architecture: str) -> str:
    return _SUFFIX.sub("", architecture)


def _type_key(name: str) -> str:
    return name.replace("_", "").casefold()


def is_known(config: Mapping[str, Any]) -> bool:
    """Say whether the config's architecture is one that we can read exactly.

    >>> is_known({"architectures": ["LlamaForCausalLM"]}), is_known({"architectures": ["NewForCausalLM"]})
    (True, False)
    """
    return _reader(config) is not None


def _reader(config: Mapping[str, Any]) -> Family | None:
    """Return the family's function: by architecture, else by the text model's own, else by model type."""
    text = Text.of(config).values
    for part in (config, text):
        named = part.get("architectures")
        if isinstance(named, (list, tuple)) and named and (read := FAMILIES.get(_family(str(named[0])))):
            return read
    return _BY_TYPE.get(_type_key(str(text.get("model_type") or "").removesuffix("_text")))


def _assumed(text: Text, family: str) -> dict[str, Any]:
    """Return what an unknown family is taken for: two matrices with a plain GELU or ReLU, else three."""
    activation = text.get("hidden_act", "activation_function", "hidden_activation", "activation")
    said = f"{family or 'no architecture'} as a plain decoder"
    return {"gated": activation not in _UNGATED, "extra": {"assumed": said}}


def architecture_of(config: Mapping[str, Any]) -> str:
    """Return the architecture's name as the config spells it, empty where it has none."""
    for part in (config, Text.of(config).values):
        named = part.get("architectures")
        if isinstance(named, (list, tuple)) and named:
            return str(named[0])
    return ""


def _plain(text: Text, *, id: str, family: str, source: str) -> ModelFacts:
    """Return the facts of a plain gated decoder with the config's numbers."""
    hidden, heads = text.number(*_HIDDEN), text.number(*_HEADS)
    return ModelFacts(
        id=id,
        architecture=family,
        layers=text.number(*_LAYERS, default=_listed_layers(text)),
        hidden=hidden,
        intermediate=text.number("intermediate_size", "n_inner", "ffn_dim", default=4 * hidden),
        heads=heads,
        kv_heads=text.number("num_key_value_heads", "num_kv_heads", default=heads),
        head_dim=text.number("head_dim", default=max(1, hidden // heads)),
        vocab=text.number(*_VOCAB),
        tied=bool(text.outer.get("tie_word_embeddings", text.values.get("tie_word_embeddings"))),
        context=text.count("max_position_embeddings", "n_positions", "seq_length", "max_seq_len") or None,
        source=source,
    )


def _listed_layers(text: Text) -> int | None:
    """Return how many layers a list of them has, where the config gives no count."""
    listed = text.items("layers_block_type") or str(text.get("hybrid_override_pattern") or "").replace(
        "|", ""
    )
    return len(listed) or None


def _published(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return how the weights were published: number format and quantization."""
    text = Text.of(config)
    named = str(text.get("dtype", "torch_dtype") or "bfloat16").removeprefix("torch.")
    found: dict[str, Any] = {"dtype": _DTYPES.get(named, named)}
    quantization = read_quantization(config)
    if quantization:
        found["quantization"] = quantization.method
        found["quantization_bits"] = quantization.bits
        found["quantization_group"] = quantization.group
        found["quantization_skips"] = quantization.skips
        found["quantized_precision"] = quantization.precision
    return found


def _refuse_missing(text: Text, family: str) -> None:
    missing = [f"{keys[0]} ({what})" for what, keys in _NEEDED.items() if text.get(*keys) is None]
    if missing:
        known = f"architecture {family!r}" if family else "no architecture"
        raise ModelError(
            f"the config says too little: {known}, without {', '.join(missing)}",
            fix="use the config.json that came with the weights, or point at the folder that holds both",
        )


def _refuse_special(text: Text, family: str) -> None:
    special = [key for key in _SPECIAL if text.get(key)]
    if special:
        raise ModelError(
            f"architecture {family or 'not named'!r} is not known, and {special[0]!r} says it is special",
            fix="point at the folder with its *.safetensors files, whose headers are counted instead",
        )


def _refuse_uneven(facts: ModelFacts) -> None:
    if facts.layers > 10_000 or facts.experts > 100_000 or facts.vocab > 100_000_000:
        raise ModelError("the config's numbers are larger than any model's", fix="check config.json")
    for what, listed in (
        ("layer types", facts.layer_kinds),
        ("feed-forwards", facts.feed_forwards),
        ("intermediate sizes", facts.intermediates),
    ):
        if listed and len(listed) != facts.layers:
            raise ModelError(
                f"the config names {len(listed)} {what} for {facts.layers} layers", fix="one entry per layer"
            )
    if facts.attention == "mha" and facts.heads % facts.kv_heads:
        raise ModelError(
            f"the config's num_key_value_heads, {facts.kv_heads}, does not divide its num_attention_heads, "
            f"{facts.heads}",
            fix="use the config.json that came with the weights",
        )
    if facts.dense_layers > facts.layers:
        raise ModelError(
            f"the config has {facts.dense_layers} dense layers of {facts.layers}", fix="check config.json"
        )
