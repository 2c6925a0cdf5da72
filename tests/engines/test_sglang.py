"""SGLang's container."""

from __future__ import annotations

import pytest

from orchestrator.engines import Source, engine
from tests.engines.jobs import ADAPTERS, DEEPSEEK, H100, L4, MI210, MI300X, QWEN_MOE, TPU, job

SGLANG = engine("sglang")


def test_whole_command() -> None:
    launch = SGLANG.launch(job(precision="bf16", max_num_seqs=16, memory_utilization=0.85, kv_dtype="fp8"))
    assert launch.image == "lmsysorg/sglang:v0.5.23"
    assert " ".join((*(launch.entrypoint or ()), *launch.command)) == (
        "python3 -m sglang.launch_server --model-path meta-llama/Llama-3.1-8B-Instruct "
        "--served-model-name meta-llama/Llama-3.1-8B-Instruct --host 0.0.0.0 --port 30000 "
        "--dtype bfloat16 --context-length 8192 --mem-fraction-static 0.85 --kv-cache-dtype fp8_e4m3 "
        "--max-running-requests 16 --enable-metrics"
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"accelerator": TPU}, "no image of sglang for tpu"),
        ({"accelerator": MI210}, "sglang is not built for gfx90a"),
        ({"accelerator": None, "arch": "arm"}, "no image of sglang for cpu-arm"),
        ({"precision": "int8"}, "makes no int8 of plain weights"),
        ({"source": Source("s3://bucket/model")}, "does not load from s3://"),
        ({"model": QWEN_MOE, "count": 4, "tensor": 4, "expert": 3}, "do not divide tensor 4"),
        ({"data": 2, "nodes": 2}, "inside one node only"),
        ({"memory_utilization": 1.0}, "is not a fraction of 1"),
        ({"unprivileged": True}, "no user but root"),
    ],
)
def test_refusal_names_its_reason(changes: dict[str, object], reason: str) -> None:
    assert reason in (SGLANG.refuses(job(**changes)) or "accepted")


def test_fraction_is_of_what_is_free_so_others_do_not_contradict_it() -> None:
    assert SGLANG.refuses(job(accelerator=L4, memory_utilization=0.9, free_bytes=10**9)) is None


def test_probe_outlasts_its_own_health_check() -> None:
    launch = SGLANG.launch(job())
    assert launch.probe
    assert launch.probe.timeout_s > 20


def test_nodes_meet_at_rank_0() -> None:
    launch = SGLANG.launch(job(DEEPSEEK, H100, count=8, nodes=2, tensor=16))
    words = launch.command
    assert words[:2] == ("--", "python3")
    assert words[words.index("--dist-init-addr") + 1] == "$(MODELYARD_MASTER_NODE_IP):20000"
    assert ("SGLANG_HOST_IP", "$(MODELYARD_NODE_IP)") in launch.env


def test_adapters_are_named() -> None:
    words = SGLANG.launch(job(adapters=ADAPTERS)).command
    assert words[words.index("--lora-paths") + 1 :][:2] == ("sql=org/sql-lora", "sum=/adapters/sum")
    assert "--enable-lora" in words


def test_older_image_on_amd_is_told() -> None:
    assert "the image holds 0.5.13" in SGLANG.launch(job(accelerator=MI300X)).warnings[0]
