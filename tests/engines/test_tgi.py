"""TGI's container: everything by variable, and a word about its end."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.engines import Adapter, Source, engine
from tests.engines.jobs import LLAMA_8B, MI300X, QWEN_EMBEDDING, QWEN_MOE, T4, job

TGI = engine("tgi")


def test_everything_goes_by_variable() -> None:
    launch = TGI.launch(job(precision="int8", count=2, tensor=2, max_num_seqs=16, kv_dtype="fp8"))
    variables = dict(launch.env)
    assert launch.command == ()
    assert variables["QUANTIZE"] == "eetq"
    assert variables["NUM_SHARD"] == "2"
    assert (variables["MAX_INPUT_TOKENS"], variables["MAX_TOTAL_TOKENS"]) == ("8191", "8192")
    assert variables["KV_CACHE_DTYPE"] == "fp8_e4m3fn"
    assert "DTYPE" not in variables  # it takes one of the two


def test_its_end_is_told_with_what_to_use() -> None:
    assert "vllm and sglang" in TGI.launch(job()).warnings[0]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"accelerator": T4}, "needs compute capability 8.0"),
        ({"accelerator": MI300X, "precision": "int8"}, "does not run eetq on MI300X"),
        ({"count": 2, "pipeline": 2}, "tensor parallelism on one node only"),
        ({"model": QWEN_EMBEDDING}, "tgi only generates, and Qwen/Qwen3-Embedding-8B answers with vectors"),
        ({"model": QWEN_MOE}, "tgi 3.3.5 does not serve Qwen3MoeForCausalLM"),
        ({"adapters": (Adapter("sql", Source("org/sql")),)}, "say name: org/sql"),
    ],
)
def test_refusal_names_its_reason(changes: dict[str, object], reason: str) -> None:
    assert reason in (TGI.refuses(job(**changes)) or "accepted")


def test_adapters_by_id_and_by_folder() -> None:
    adapters = (
        Adapter("org/sql", Source("org/sql", revision="v2")),
        Adapter("sum", Source("sum", path="/adapters/sum")),
    )
    assert dict(TGI.launch(job(adapters=adapters)).env)["LORA_ADAPTERS"] == "org/sql@v2,sum=/adapters/sum"


def test_plain_weights_get_a_dtype_and_no_quantization() -> None:
    variables = dict(TGI.launch(job(replace(LLAMA_8B), precision="fp16")).env)
    assert variables["DTYPE"] == "float16"
    assert "QUANTIZE" not in variables
