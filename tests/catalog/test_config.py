"""What a config.json means: counts against transformers, layouts, and configs nobody should trust."""

from __future__ import annotations

import copy
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.catalog import count_parameters, from_config, models, parameters
from orchestrator.catalog.quantization import METHODS
from orchestrator.catalog.values import Heads
from orchestrator.errors import ModelError
from orchestrator.planner.sizing.weights import published_format

HERE = Path(__file__).parent
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
}


def lines(name: str) -> list[Any]:
    return [json.loads(line) for line in (HERE / name).read_text().splitlines()]


def test_counts_equal_transformers_class_defaults() -> None:
    """Each line: a class's defaults, and the parameters of the model built from them (5.24, meta device)."""
    cases = lines("configs.jsonl")
    wrong = {
        case["config"]["architectures"][0]: (counted, case["parameters"])
        for case in cases
        if (counted := count_parameters(from_config(case["config"]))) != case["parameters"]
    }
    assert wrong == {}
    assert len(cases) >= 95


def test_counts_of_published_models_are_exact() -> None:
    """Each line: a catalog id and its count by transformers, or by its hub page."""
    known = lines("counts.jsonl")
    wrong = {
        id: (counted, expected)
        for id, expected in known
        if (counted := count_parameters(models()[id])) != expected
    }
    assert wrong == {}
    assert len(known) >= 150


def test_a_miscounted_norm_is_noticed() -> None:
    """The planted fault: one norm less changes every count, so the lists above cannot pass by luck."""
    from dataclasses import replace

    facts = models()["Qwen/Qwen3-8B"]
    broken = replace(facts, trim=replace(facts.trim, norms=1))
    assert count_parameters(broken) != dict(lines("counts.jsonl"))["Qwen/Qwen3-8B"]


def test_parts_add_up_to_the_count() -> None:
    for facts in models().values():
        parts = parameters(facts)
        assert parts.total == count_parameters(facts)
        assert parts.embedding > 0


@pytest.mark.parametrize(
    ("id", "full", "sliding", "linear"),
    [
        ("google/gemma-2-27b-it", 23, 23, 0),
        ("google/gemma-3-27b-it", 10, 52, 0),
        ("google/gemma-4-31B-it", 10, 50, 0),
        ("openai/gpt-oss-20b", 12, 12, 0),
        ("Qwen/Qwen3.5-27B", 16, 0, 48),
        ("Qwen/Qwen3.5-35B-A3B", 10, 0, 30),
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", 12, 0, 36),
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", 6, 0, 23),
        ("nvidia/Nemotron-H-56B-Base-8K", 10, 0, 54),
        ("moonshotai/Kimi-Linear-48B-A3B-Instruct", 7, 0, 20),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", 12, 36, 0),
        ("Qwen/Qwen3-8B", 36, 0, 0),
    ],
)
def test_layers_are_of_the_published_kinds(id: str, full: int, sliding: int, linear: int) -> None:
    kinds = models()[id].kinds()
    assert (kinds.count("full"), kinds.count("sliding"), kinds.count("linear")) == (full, sliding, linear)


@pytest.mark.parametrize("id", ["deepseek-ai/DeepSeek-V3", "moonshotai/Kimi-K2-Instruct", "zai-org/GLM-5"])
def test_latent_attention_caches_its_rank(id: str) -> None:
    facts = models()[id]
    assert facts.attention == "mla"
    assert (facts.kv_lora_rank, facts.qk_rope_head_dim) == (512, 64)


def test_sliding_layers_may_have_their_own_heads() -> None:
    facts = models()["google/gemma-4-31B-it"]
    assert facts.heads_of("sliding") == Heads(32, 16, 256)
    assert (facts.heads_of("full").kv_heads, facts.heads_of("full").head_dim) == (4, 512)


def test_dense_layers_lead_and_shared_experts_stay() -> None:
    facts = models()["deepseek-ai/DeepSeek-V3"]
    assert facts.feeds()[:4] == ("dense", "dense", "dense", "experts")
    assert (facts.experts, facts.experts_per_token, facts.shared_experts) == (256, 8, 1)


def test_recurrent_state_is_what_the_mixer_keeps() -> None:
    # Qwen3.5-27B: 48 value heads of 128 × 128 in fp32, and 3 inputs of 10240 channels in 16 bits
    assert models()["Qwen/Qwen3.5-27B"].linear_state_bytes == 48 * 128 * 128 * 4 + 3 * 10240 * 2


def test_text_config_is_found_inside() -> None:
    text = {key: value for key, value in LLAMA.items() if key != "architectures"}
    outer = {"architectures": ["LlavaForConditionalGeneration"], "text_config": text}
    assert from_config(outer).hidden == 64


def test_unknown_plain_architecture_is_read_and_says_so() -> None:
    facts = from_config({**LLAMA, "architectures": ["BrandNewForCausalLM"]})
    assert facts.layers == 2
    assert "BrandNew" in str(facts.extra["assumed"])


def test_an_unknown_family_with_a_plain_activation_has_two_matrices() -> None:
    unknown = {**LLAMA, "architectures": ["BrandNewForCausalLM"]}
    assert from_config({**unknown, "hidden_act": "silu"}).gated
    assert not from_config({**unknown, "hidden_act": "gelu"}).gated


def test_a_text_model_inside_is_known_by_its_type() -> None:
    text = {key: value for key, value in LLAMA.items() if key != "architectures"} | {"model_type": "qwen2"}
    outer = {"architectures": ["InternVLForConditionalGeneration"], "text_config": text}
    assert from_config(outer).qkv_bias


def test_an_unknown_tower_is_estimated_and_says_so() -> None:
    tower = {"hidden_size": 32, "num_hidden_layers": 2, "patch_size": 14, "image_size": 28}
    vision = from_config({**LLAMA, "architectures": ["OddForCausalLM"], "vision_config": tower}).vision
    assert vision is not None
    assert vision.estimated
    assert vision.parameters


def test_unknown_special_architecture_is_refused() -> None:
    with pytest.raises(ModelError) as caught:
        from_config({**LLAMA, "architectures": ["BrandNewForCausalLM"], "num_experts": 8})
    assert "num_experts" in caught.value.what
    assert "safetensors" in (caught.value.fix or "")


def test_missing_keys_are_all_named() -> None:
    with pytest.raises(ModelError) as caught:
        from_config({"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2})
    assert all(key in caught.value.what for key in ("hidden_size", "num_attention_heads", "vocab_size"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", -1),
        ("num_hidden_layers", 0),
        ("hidden_size", 2**40),
        ("vocab_size", "many"),
        ("num_attention_heads", 3.5),
        ("num_hidden_layers", True),
        ("num_hidden_layers", 10**6),
        ("num_key_value_heads", 64),
    ],
)
def test_absurd_numbers_are_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(ModelError):
        from_config({**LLAMA, key: value})


@pytest.mark.parametrize("kv_heads", [3, 64])
def test_key_heads_that_do_not_divide_the_query_heads_are_refused(kv_heads: int) -> None:
    with pytest.raises(ModelError) as caught:
        from_config({**LLAMA, "num_key_value_heads": kv_heads})
    said = f"{caught.value.what} {caught.value.fix}"
    assert "num_key_value_heads" in said
    assert "num_attention_heads" in said
    assert str(kv_heads) in caught.value.what


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_key_heads_that_divide_are_read(kv_heads: int) -> None:
    assert from_config({**LLAMA, "num_key_value_heads": kv_heads}).kv_heads == kv_heads


JUNK = [None, -1, 0, 2**40, 1.5, float("nan"), "x", [], [1], ["a", None], {}, {"a": 1}, True, 10**30]
CONFIGS = [case["config"] for case in lines("configs.jsonl")]


@settings(max_examples=200)
@given(st.sampled_from(CONFIGS), st.data())
def test_any_garbled_config_is_read_or_refused(config: dict[str, Any], data: st.DataObject) -> None:
    garbled = copy.deepcopy(config)
    inner = garbled.get("text_config") or garbled
    for key in data.draw(st.lists(st.sampled_from(sorted(inner)), min_size=1, max_size=3)):
        inner[key] = data.draw(st.sampled_from(JUNK))
    with suppress(ModelError):
        assert count_parameters(from_config(garbled)) >= 0


def test_layer_types_must_cover_the_layers() -> None:
    with pytest.raises(ModelError) as caught:
        from_config({**LLAMA, "layer_types": ["sliding_attention"], "sliding_window": 128})
    assert "1 layer types for 2 layers" in caught.value.what


@pytest.mark.parametrize(
    ("config", "method", "bits", "group"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "awq", 4 + 20 / 128, 128),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, "gptq", 8.0, None),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8", 8.0, 128),
        ({"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}, "mxfp4", 4.25, 32),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes", 4.5, 64),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes", 8.0, None),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_use_double_quant": True},
            "bitsandbytes",
            4.127,
            64,
        ),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16}, "nvfp4", 4.5, 16),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "fp8", 8.0, None),
        ({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}, "modelopt", None, None),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"a": {"weights": {"num_bits": 4, "type": "int", "group_size": 64}}},
            },
            "compressed-tensors",
            4.25,
            64,
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"a": {"weights": {"num_bits": 4, "type": "float", "group_size": 16}}},
            },
            "nvfp4",
            4.5,
            16,
        ),
    ],
)
def test_quantization_says_method_bits_and_group(
    config: dict[str, Any], method: str, bits: float | None, group: int | None
) -> None:
    facts = from_config({**LLAMA, "quantization_config": config})
    assert (facts.quantization, facts.quantization_bits, facts.quantization_group) == (method, bits, group)


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"quant_method": "zorgq", "bits": 3}, "'zorgq'"),
        ({"quant_method": "zorgq", "bits": 8}, "'zorgq'"),
        ({"quant_method": "zorgq"}, "'zorgq'"),
        ({"quant_method": "vptq", "bits": 3}, "'vptq'"),
        ({"quant_algo": "ZORG"}, "'zorg'"),
        ({"bits": 4, "group_size": 64}, "quant_method"),
    ],
)
def test_a_quantization_nobody_knows_is_refused_with_what_is_known(said: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError) as caught:
        from_config({**LLAMA, "quantization_config": said})
    assert named in caught.value.what
    assert "awq" in (caught.value.fix or "")
    assert "gptq" in (caught.value.fix or "")


@pytest.mark.parametrize("algorithm", ["W4A16_AWQ", "W4A8_MXFP4_FP8", "W8A8_SQ_PER_CHANNEL", "ZORG"])
def test_an_algorithm_of_modelopt_nobody_knows_is_refused(algorithm: str) -> None:
    said = {"quant_method": "modelopt", "quant_algo": algorithm}
    with pytest.raises(ModelError) as caught:
        from_config({**LLAMA, "quantization_config": said})
    assert algorithm in caught.value.what


@pytest.mark.parametrize("algorithm", ["FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO"])
def test_every_fp8_of_modelopt_is_fp8(algorithm: str) -> None:
    said = {"quant_method": "modelopt", "quant_algo": algorithm}
    facts = from_config({**LLAMA, "quantization_config": said})
    assert (facts.quantization, facts.quantization_bits) == ("fp8", 8.0)


def test_modelopt_without_an_algorithm_is_refused() -> None:
    said = {"quant_method": "modelopt", "kv_cache_quant_algo": "FP8"}
    with pytest.raises(ModelError) as caught:
        from_config({**LLAMA, "quantization_config": said})
    assert "no 'quant_algo'" in caught.value.what


def test_every_known_quantization_has_a_size() -> None:
    for method in METHODS:
        said = {"quant_method": method, "bits": 4, "quant_algo": "FP8"}
        facts = from_config({**LLAMA, "quantization_config": said})
        assert facts.quantization is not None
        assert published_format(facts) != "bf16"


@pytest.mark.parametrize(
    ("id", "precision"),
    [
        ("RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w8a8", "int8"),
        ("RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8-dynamic", "fp8"),
        ("RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w4a16", "int4"),
        ("Qwen/Qwen2.5-7B-Instruct-AWQ", "int4"),
        ("openai/gpt-oss-20b", "fp4"),
        ("deepseek-ai/DeepSeek-V3", "fp8"),
        ("Qwen/Qwen3-8B", None),
    ],
)
def test_quantized_weights_say_their_number_format(id: str, precision: str | None) -> None:
    assert models()[id].quantized_precision == precision


def test_modules_left_alone_are_kept_by_name() -> None:
    facts = models()["openai/gpt-oss-20b"]
    assert facts.quantization == "mxfp4"
    assert "lm_head" in facts.quantization_skips


def test_vision_tower_is_counted_with_its_projector() -> None:
    vision = models()["Qwen/Qwen2.5-VL-7B-Instruct"].vision
    assert vision is not None
    assert vision.parameters == 8_292_166_656 - 7_615_616_512


@pytest.mark.parametrize(
    ("id", "pools", "bidirectional", "context"),
    [
        ("BAAI/bge-base-en-v1.5", True, True, 512),
        ("intfloat/multilingual-e5-large", True, True, 512),  # 514 positions, the first two of them padding
        ("nomic-ai/nomic-embed-text-v1.5", True, True, 2048),
        ("Qwen/Qwen3-Embedding-8B", True, False, 40960),
        ("Qwen/Qwen3-8B", False, False, 40960),
        ("openai-community/gpt2", False, False, 1024),
    ],
)
def test_a_model_that_pools_is_told_from_a_generator(
    id: str, pools: bool, bidirectional: bool, context: int
) -> None:
    facts = models()[id]
    assert (facts.pools, facts.bidirectional, facts.context) == (pools, bidirectional, context)


def test_no_generator_of_the_catalog_pools() -> None:
    named = ("embed", "bge", "e5-")
    assert {id for id, facts in models().items() if facts.pools} == {
        id for id in models() if any(part in id.casefold() for part in named)
    }
