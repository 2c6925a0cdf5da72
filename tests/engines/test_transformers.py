"""The container of ``transformers serve``; ``test_transformers_real`` starts it."""

from __future__ import annotations

import pytest

from orchestrator.backend import Launch
from orchestrator.engines import Source, engine
from tests.engines.jobs import ADAPTERS, MI300X, QWEN_AWQ, job

TRANSFORMERS = engine("transformers")


def test_whole_command_on_a_cpu() -> None:
    launch = TRANSFORMERS.launch(job(accelerator=None, source=Source("org/model", revision="abc")))
    assert " ".join((*(launch.entrypoint or ()), *launch.command)) == (
        "transformers serve org/model@abc --host 0.0.0.0 --port 8000 --device cpu --dtype auto"
    )
    assert launch.model_name == "org/model@abc"


def test_general_image_is_set_up_first_and_then_becomes_the_engine() -> None:
    started = TRANSFORMERS.launch(job(accelerator=None)).onto(Launch("chat-0-0-1", "chat"))
    assert started.image == "python:3.12-slim"
    assert started.entrypoint == ("sh", "-c")
    assert started.command[0].endswith(' && exec "$@"')
    assert "transformers[serving]==5.23.0" in started.command[0]
    assert started.command[1:4] == ("sh", "transformers", "serve")


def test_own_image_is_taken_as_it_is() -> None:
    started = TRANSFORMERS.launch(job(image="local/transformers:1")).onto(Launch("chat-0-0-1", "chat"))
    assert started.entrypoint == ("transformers", "serve")


def test_card_batches_continuously_and_quantizes() -> None:
    words = TRANSFORMERS.launch(job(precision="int4", memory_utilization=0.8)).command
    assert "--continuous-batching" in words
    assert words[words.index("--quantization") + 1] == "bnb-4bit"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"accelerator": MI300X}, "no image of transformers for rocm"),
        ({"accelerator": None, "precision": "int8"}, "does not run bnb-8bit on a CPU"),
        ({"count": 2, "tensor": 2}, "from one device"),
        ({"adapters": ADAPTERS}, "merge them first"),
        ({"model": QWEN_AWQ}, "does not serve awq weights"),
        ({"kv_dtype": "fp8"}, "no fp8 KV cache"),
    ],
)
def test_refusal_names_its_reason(changes: dict[str, object], reason: str) -> None:
    assert reason in (TRANSFORMERS.refuses(job(**changes)) or "accepted")


def test_what_it_cannot_do_is_told() -> None:
    told = TRANSFORMERS.launch(job(accelerator=None, max_num_seqs=8)).warnings
    assert [w for w in told if "no metrics" in w]
    assert [w for w in told if "context of 8192" in w]
    assert [w for w in told if "one request after another" in w]
