"""NIM's container: vLLM's options behind NVIDIA's variables."""

from __future__ import annotations

import pytest

from orchestrator.engines import Adapter, Source, engine
from tests.engines.jobs import KEYS, MI300X, job

NIM = engine("nim")


def test_model_and_name_go_by_variable_and_the_rest_are_vllms_options() -> None:
    launch = NIM.launch(job(source=Source("org/model", revision="abc"), count=2, tensor=2, precision="fp8"))
    variables = dict(launch.env)
    assert launch.image == "nvcr.io/nim/nvidia/vllm-model-free-nim:2.1.6"
    assert variables["NIM_MODEL_PATH"] == "hf://org/model:abc"
    assert variables["NIM_SERVED_MODEL_NAME"] == "org/model"
    assert launch.entrypoint is None
    assert " ".join(launch.command) == (
        "--dtype auto --quantization fp8 --max-model-len 8192 --gpu-memory-utilization 0.92 "
        "--tensor-parallel-size 2"
    )


def test_readiness_and_metrics_are_the_proxys() -> None:
    launch = NIM.launch(job())
    assert launch.probe
    assert launch.probe.path == "/v1/health/ready"
    assert launch.metrics
    assert launch.metrics.path == "/v1/metrics"


def test_pull_uses_the_key_by_reference() -> None:
    assert NIM.launch(job()).registry == ("$oauthtoken", "secrets.NGC_API_KEY")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"accelerator": MI300X}, "NVIDIA devices only, not on rocm"),
        ({"accelerator": None}, "NVIDIA devices only, not on cpu"),
        ({"nodes": 2, "pipeline": 2}, "from one node"),
        ({"secrets": KEYS[:1]}, "needs NGC_API_KEY"),
        ({"adapters": (Adapter("a", Source("org/a")),)}, "from one folder"),
    ],
)
def test_refusal_names_its_reason(changes: dict[str, object], reason: str) -> None:
    assert reason in (NIM.refuses(job(**changes)) or "accepted")


def test_adapters_in_one_folder_are_served() -> None:
    adapters = tuple(Adapter(n, Source(n, path=f"/adapters/{n}"), rank=8) for n in ("sql", "sum"))
    launch = NIM.launch(job(adapters=adapters))
    assert dict(launch.env)["NIM_PEFT_SOURCE"] == "/adapters"
    assert launch.command[-3:] == ("--enable-lora", "--max-lora-rank", "8")
