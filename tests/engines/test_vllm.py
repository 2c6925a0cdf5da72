"""vLLM's container: what the plan says is what its command says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.catalog import accelerators
from orchestrator.catalog.values import Accelerator
from orchestrator.engines import Adapter, Source, engine
from orchestrator.units import GIB
from tests.engines.jobs import (
    A100,
    B200,
    DEEPSEEK,
    GEMMA,
    GPT_OSS,
    H100,
    L4,
    LLAMA_8B,
    MI210,
    MI300X,
    QWEN_AWQ,
    QWEN_MOE,
    T4,
    job,
)

VLLM = engine("vllm")
V100 = next(a for a in accelerators().values() if a.capability == (7, 0))


def value(words: tuple[str, ...], name: str) -> str | None:
    """Return the value of an option, or None where it is not given."""
    return words[words.index(name) + 1] if name in words else None


def test_whole_command() -> None:
    launch = VLLM.launch(
        job(precision="bf16", max_num_seqs=16, source=Source(LLAMA_8B.id, revision="0e9e39f"), drain_s=45)
    )
    assert launch.image == "vllm/vllm-openai:v0.33.0"
    assert launch.entrypoint == ("vllm", "serve")
    assert " ".join(launch.command) == (
        "meta-llama/Llama-3.1-8B-Instruct --served-model-name meta-llama/Llama-3.1-8B-Instruct "
        "--host 0.0.0.0 --port 8000 --revision 0e9e39f --dtype bfloat16 --max-model-len 8192 "
        "--gpu-memory-utilization 0.92 --max-num-seqs 16 --shutdown-timeout 45"
    )


@pytest.mark.parametrize(
    ("device", "image"),
    [
        (H100, "vllm/vllm-openai:v0.33.0"),
        (MI300X, "vllm/vllm-openai-rocm:v0.33.0"),
        (None, "vllm/vllm-openai-cpu:v0.33.0-x86_64"),
    ],
)
def test_image_follows_the_device(device: Accelerator | None, image: str) -> None:
    assert VLLM.launch(job(accelerator=device)).image == image


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"accelerator": V100}, "needs compute capability 7.5"),
        ({"accelerator": T4, "precision": "bf16"}, "T4-16GB has no bf16, ask for precision fp16"),
        ({"accelerator": T4, "model": GPT_OSS}, "needs compute capability 8.0 for mxfp4"),
        ({"accelerator": T4, "model": GEMMA}, "unstable in fp16"),
        ({"accelerator": T4, "kv_dtype": "fp8"}, "fp8 needs compute capability 8.0"),
        ({"accelerator": MI210, "precision": "fp8"}, "does not run fp8 on MI210"),
        ({"accelerator": MI300X, "precision": "int8"}, "does not run int8_per_channel_weight_only on MI300X"),
        ({"accelerator": None, "precision": "fp8"}, "does not run fp8 on a CPU"),
        ({"precision": "int4"}, "makes no int4 of plain weights"),
        ({"model": QWEN_AWQ, "precision": "fp8"}, "published in awq, vllm makes no fp8 of that"),
        ({"model": QWEN_AWQ, "quantization": "gptq"}, "are awq, not gptq"),
        ({"quantization": "gguf"}, "are not gguf"),
        ({"count": 3, "tensor": 3}, "32 attention heads do not divide by tensor 3"),
        ({"count": 2}, "is 1 accelerators, not 2"),
        ({"nodes": 33, "pipeline": 33}, "pipeline 33 is more than the model's 32 layers"),
        ({"expert": 2, "count": 2, "tensor": 2}, "the model has no experts to spread"),
        ({"model": QWEN_MOE, "expert": 2, "count": 4, "tensor": 4}, "spread over 4 devices, not 2"),
        ({"source": Source("oci://registry/model")}, "does not load from oci://"),
        ({"source": Source("./tuned")}, "has no path in the container, mount it"),
        ({"memory_utilization": 0.9, "free_bytes": 40 * GIB}, "40.0 GiB are free"),
        ({"adapters": (Adapter("a", Source("org/a"), rank=1024),)}, "rank 1024 is above 512"),
    ],
)
def test_refusal_names_its_reason(changes: dict[str, object], reason: str) -> None:
    assert reason in (VLLM.refuses(job(**changes)) or "accepted")


def test_fp8_below_8_9_saves_memory_only_and_says_so() -> None:
    slow, fast = VLLM.launch(job(accelerator=A100, precision="fp8")), VLLM.launch(job(precision="fp8"))
    assert value(slow.command, "--quantization") == value(fast.command, "--quantization") == "fp8"
    assert slow.warnings == (
        "A100-80GB holds fp8 weights but multiplies in 16 bits: memory is saved, time is not",
    )
    assert fast.warnings == ()


def test_published_quantization_is_left_to_the_checkpoint() -> None:
    assert "--quantization" not in VLLM.launch(job(DEEPSEEK, count=8, tensor=8)).command


def test_mxfp4_is_native_on_blackwell_only() -> None:
    assert VLLM.launch(job(GPT_OSS, H100)).warnings
    assert not VLLM.launch(job(GPT_OSS, B200)).warnings


def test_old_device_gets_float16_by_itself() -> None:
    assert value(VLLM.launch(job(accelerator=T4)).command, "--dtype") == "float16"


def test_memory_of_others_lowers_the_fraction() -> None:
    shared = VLLM.launch(job(accelerator=L4, free_bytes=10 * GIB))
    fraction = float(value(shared.command, "--gpu-memory-utilization") or 0)
    assert fraction * L4.visible_bytes < 10 * GIB < (fraction + 0.02) * L4.visible_bytes


def test_two_nodes_share_rank_and_master_by_variable() -> None:
    launch = VLLM.launch(job(count=8, nodes=2, tensor=8, pipeline=2))
    assert launch.entrypoint == ("python3", "/modelyard/node_entry.py")
    assert launch.command[:4] == ("--headless", "--", "vllm", "serve")
    assert value(launch.command, "--node-rank") == "$(MODELYARD_NODE_RANK)"
    assert value(launch.command, "--master-addr") == "$(MODELYARD_MASTER_NODE_IP)"
    assert [file.target for file in launch.files] == ["/modelyard/node_entry.py"]


def test_adapters_are_named_and_their_rank_rounded_up() -> None:
    adapters = (
        Adapter("sql", Source("org/sql"), rank=24),
        Adapter("sum", Source("sum", path="/adapters/sum")),
    )
    launch = VLLM.launch(job(adapters=adapters))
    assert launch.command[launch.command.index("--lora-modules") + 1 :][:2] == (
        "sql=org/sql",
        "sum=/adapters/sum",
    )
    assert value(launch.command, "--max-lora-rank") == "64"
    assert launch.warnings == ("the rank of an adapter is unknown, 64 is assumed",)


def test_adapter_revision_that_is_not_kept_is_told() -> None:
    pinned = Adapter("sql", Source("org/sql", revision="v2"), rank=8)
    assert VLLM.launch(job(adapters=(pinned,))).warnings == ("vllm takes adapter sql at its newest revision",)


def test_mounted_weights_are_served_offline_under_the_users_name() -> None:
    launch = VLLM.launch(
        job(source=Source("./tuned", path="/models/tuned", revision="x"), served_name="tuned")
    )
    assert launch.command[0] == "/models/tuned"
    assert (value(launch.command, "--served-model-name"), launch.model_name) == ("tuned", "tuned")
    assert "--revision" not in launch.command
    assert ("HF_HUB_OFFLINE", "1") in launch.env
    assert [mount.source for mount in launch.caches] == ["vllm-0.33.0-cuda"]


def test_bucket_is_streamed() -> None:
    launch = VLLM.launch(job(source=Source("s3://models/llama")))
    assert value(launch.command, "--load-format") == "runai_streamer"


def test_engines_own_timeout_waits_as_long_as_the_probe() -> None:
    launch = VLLM.launch(job(load_bytes=800 * 10**9))
    assert launch.probe
    assert dict(launch.env)["VLLM_ENGINE_READY_TIMEOUT_S"] == f"{launch.probe.start_s:.0f}"
    assert launch.probe.start_s > 3600


def test_environment_is_the_same_for_every_replica_and_node() -> None:
    """Its compile cache is keyed by it."""
    wide = job(count=8, nodes=2, tensor=8, pipeline=2)
    assert VLLM.launch(wide).env == VLLM.launch(wide, node_rank=1).env


def test_without_root_it_is_the_prepared_user_with_its_own_caches() -> None:
    launch = VLLM.launch(job(unprivileged=True))
    assert launch.profile.user == "2000:0"
    assert all(mount.target.startswith("/home/vllm/") for mount in launch.caches)
    assert dict(launch.env)["HF_HOME"] == "/home/vllm/.cache/huggingface"


def test_cpu_gets_its_cache_by_variable_and_no_fraction() -> None:
    launch = VLLM.launch(job(accelerator=None, kv_cache_bytes=3 * GIB + 1))
    assert ("VLLM_CPU_KVCACHE_SPACE", "4") in launch.env
    assert "--gpu-memory-utilization" not in launch.command


def test_architecture_it_took_out_is_refused() -> None:
    gone = replace(LLAMA_8B, architecture="MllamaForConditionalGeneration")
    assert VLLM.refuses(job(gone)) == "vllm 0.33.0 no longer serves MllamaForConditionalGeneration"


def test_architecture_it_borrows_is_told() -> None:
    borrowed = replace(LLAMA_8B, architecture="PhimoeForCausalLM")
    assert "runs through transformers" in VLLM.launch(job(borrowed)).warnings[0]


def test_unknown_architecture_is_refused() -> None:
    unknown = replace(LLAMA_8B, architecture="NobodyForCausalLM")
    assert VLLM.refuses(job(unknown)) == "vllm 0.33.0 does not serve NobodyForCausalLM"
    unnamed = VLLM.refuses(job(replace(unknown, architecture="")))
    assert (
        unnamed == "the model's config.json has no 'architectures': add its class, such as LlamaForCausalLM"
    )
