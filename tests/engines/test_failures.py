"""What engines say when they end, as they say it, and what is made of it."""

from __future__ import annotations

import pytest

from orchestrator.engines.failures import LINES, failure_of

SAID = [
    ("device-memory", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"),
    ("device-memory", "ValueError: No available memory for the cache blocks. Try increasing"),
    (
        "device-memory",
        "16.00 GiB KV cache is needed, which is larger than the available KV cache memory (5 GiB)",
    ),
    ("device-memory", "RuntimeError: Not enough memory. Please try to increase --mem-fraction-static."),
    ("config", "api_server.py: error: unrecognized arguments: --swap-space 4"),
    ("config", "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig"),
    ("config", "error: unexpected argument '--num-shards' found"),
    ("denied", "huggingface_hub.errors.GatedRepoError: 401 Client Error."),
    ("download", "OSError: We couldn't connect to 'https://huggingface.co' to load the files"),
    ("download", "requests.exceptions.ConnectionError: Max retries exceeded with url: /api/models/org/x"),
    ("disk", "OSError: [Errno 28] No space left on device"),
    ("driver", "nvidia-container-cli: requirement error: unsatisfied condition: cuda>=12.6"),
]


@pytest.mark.parametrize(("kind", "said"), SAID, ids=range(len(SAID)))
def test_what_engines_say_is_understood(said: str, kind: str) -> None:
    found = failure_of(["INFO loading", said, "Traceback follows", "exiting"])
    assert found is not None
    assert (found.kind, found.line) == (kind, said)


@pytest.mark.parametrize("said", ["", "INFO: 1.2.3.4 - POST /v1/completions 401", "Killed", "exit 1"])
def test_what_says_nothing_is_not_guessed(said: str) -> None:
    assert failure_of([said]) is None


def test_what_was_said_long_before_the_end_is_not_its_cause() -> None:
    assert failure_of(["CUDA out of memory", *["INFO serving"] * LINES]) is None


def test_a_line_that_is_long_is_cut() -> None:
    found = failure_of(["x" * 5000 + " CUDA out of memory"])
    assert found is not None
    assert len(found.line) <= 200
