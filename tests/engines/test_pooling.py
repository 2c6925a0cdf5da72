"""Models that embed, rerank or classify: which engines serve them, with which options and routes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.catalog.values import ModelFacts
from orchestrator.engines import engine
from orchestrator.engines.arguments import parse
from tests.engines.jobs import BGE_M3, H100, LLAMA_8B, QWEN_EMBEDDING, job


def options(name: str, model: ModelFacts, **changes: object) -> dict[str, tuple[str, ...]]:
    command = engine(name).launch(job(model, **changes)).command
    begin = command.index("--served-model-name")
    return {each.name: each.values for each in parse(command[begin:])}


@pytest.mark.parametrize("model", [BGE_M3, QWEN_EMBEDDING], ids=lambda m: m.id)
def test_vllm_is_told_to_pool(model: ModelFacts) -> None:
    assert options("vllm", model)["--runner"] == ("pooling",)
    assert "--runner" not in options("vllm", LLAMA_8B)


def test_sglang_reads_a_prompt_whole_where_every_token_sees_every_other() -> None:
    encoder, decoder = (
        options("sglang", BGE_M3),
        options("sglang", QWEN_EMBEDDING, max_num_batched_tokens=2048),
    )
    assert {"--is-embedding", "--disable-radix-cache"} < set(encoder)
    assert encoder["--chunked-prefill-size"] == ("-1",)
    assert "--is-embedding" in decoder
    assert "--disable-radix-cache" not in decoder
    assert decoder["--chunked-prefill-size"] == ("2048",)
    assert "--is-embedding" not in options("sglang", LLAMA_8B)


@pytest.mark.parametrize("name", ["vllm", "sglang"])
def test_the_gateway_passes_on_what_such_a_model_answers(name: str) -> None:
    pools, generates = (set(engine(name).launch(job(m)).routes) for m in (BGE_M3, LLAMA_8B))
    assert {"/v1/embeddings", "/v1/rerank", "/v1/score", "/classify", "/v1/models"} <= pools
    assert "/v1/chat/completions" not in pools
    assert "/v1/embeddings" not in generates


def test_vllm_passes_on_pooling_too() -> None:
    assert {"/pooling", "/rerank", "/score"} < set(engine("vllm").launch(job(BGE_M3)).routes)


@pytest.mark.parametrize("name", ["nim", "tgi", "transformers"])
def test_engines_that_only_generate_say_so(name: str) -> None:
    reason = engine(name).refuses(job(BGE_M3)) or ""
    assert reason.startswith(f"{name} only generates, and BAAI/bge-m3 answers with vectors")


@pytest.mark.parametrize(
    ("architecture", "is_served"),
    [
        ("MistralForSequenceClassification", True),
        ("Qwen3Model", True),
        ("NobodysForSequenceClassification", False),
    ],
)
def test_vllm_serves_a_generator_without_its_head(architecture: str, is_served: bool) -> None:
    asked = job(replace(QWEN_EMBEDDING, architecture=architecture))
    assert (engine("vllm").refuses(asked) is None) == is_served


@pytest.mark.parametrize(
    ("name", "args", "pools"),
    [
        ("vllm", ("--runner", "pooling"), True),
        ("vllm", ("--runner=generate",), False),
        ("vllm", ("--runner", "auto"), None),
        ("sglang", ("--is-embedding",), True),
        ("vllm", (), None),
    ],
)
def test_a_user_may_say_that_a_model_pools(name: str, args: tuple[str, ...], pools: bool | None) -> None:
    assert engine(name).states(args).pools is pools
    assert engine(name).refuses(job(LLAMA_8B, args=args)) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"args": ("--runner", "generate")}, "XLMRobertaModel is an encoder and generates nothing"),
        ({"max_num_batched_tokens": 256}, "256 batched tokens are fewer than a prompt of 8192"),
    ],
)
def test_what_no_encoder_can_do_is_refused(changes: dict[str, object], reason: str) -> None:
    assert (engine("vllm").refuses(job(BGE_M3, **changes)) or "").startswith(reason)
    assert engine("vllm").refuses(job(BGE_M3, max_num_batched_tokens=8192)) is None


@pytest.mark.parametrize("name", ["XLMRobertaModel", "Gemma3nForCausalLM", "WhisperForConditionalGeneration"])
def test_vllm_cuts_no_model_into_stages_whose_class_is_whole(name: str) -> None:
    model = replace(LLAMA_8B, architecture=name)
    why = engine("vllm").refuses(job(model, H100, count=2, pipeline=2))
    assert why == f"vllm 0.33.0 does not cut {name} into pipeline stages"
    tensor = engine("vllm").refuses(job(model, H100, count=2, tensor=2))
    assert tensor is None or "stages" not in tensor
    assert engine("vllm").refuses(job(LLAMA_8B, H100, count=2, pipeline=2)) is None
