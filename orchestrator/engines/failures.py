"""Why an engine ended, from its last lines: what a person would look for in them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from orchestrator.frozen import frozen

Kind = Literal["device-memory", "config", "denied", "download", "disk", "driver"]

LINES = 80
"""How many of the last lines are worth reading: a traceback, and what led to it."""
MOST_TOLD = 200


@frozen
class Failure:
    """What an engine ended of, and the line that says so.

    Whether another attempt can help follows from ``kind``: not where the configuration is wrong
    or the hub refuses.
    """

    kind: Kind
    line: str

    def reason(self) -> Literal["error", "config", "denied"]:
        """Return the reason that goes on record: where another attempt cannot help it is one of those."""
        return self.kind if self.kind in ("config", "denied") else "error"

    def told(self) -> str:
        """Return it in a line, with what to do."""
        return f"{_WHAT[self.kind]}: {self.line}"


_WHAT: dict[Kind, str] = {
    "device-memory": "out of device memory, lower model.context or traffic.concurrency",
    "config": "the engine does not take its configuration",
    "denied": "the hub refuses the model, accept its licence and set HF_TOKEN",
    "download": "the model could not be downloaded",
    "disk": "the disk is full",
    "driver": "the driver of the machine is too old for the image",
}

_SAID: dict[Kind, tuple[str, ...]] = {
    "denied": (
        "GatedRepoError", "401 Client Error", "403 Client Error", "Cannot access gated repo",
        "is not a valid model identifier", "RepositoryNotFoundError",
    ),
    "disk": ("No space left on device",),
    "driver": (
        "driver version is insufficient", "unsatisfied condition: cuda",
        "NVIDIA driver on your system is too old",
    ),
    "device-memory": (
        "CUDA out of memory", "HIP out of memory", "OutOfMemoryError", "No available memory for the cache",
        "larger than the available KV cache memory", "larger than the maximum number of tokens",
        "Not enough memory. Please try to increase --mem-fraction-static", "is less than desired GPU memory",
    ),
    "download": (
        "LocalEntryNotFoundError", "OfflineModeIsEnabled", "couldn't connect to", "Name or service not known",
        "Temporary failure in name resolution", "Max retries exceeded", "IncompleteRead",
        "ChunkedEncodingError",
    ),
    "config": (
        "error: unrecognized arguments", "error: argument ", "error: the following arguments are required",
        "ValidationError", "unexpected argument '", "User-specified max_model_len",
        "must be divisible by tensor parallel size", "Unknown quantization method",
        "does not appear to have a file named config.json",
    ),
}  # fmt: skip
"""What the programs themselves print; of one line the first kind counts."""

_SIGNS = tuple((kind, re.compile("|".join(map(re.escape, said)))) for kind, said in _SAID.items())


def failure_of(lines: Sequence[str]) -> Failure | None:
    """Return what the last lines of an engine's output say it ended of, None where they do not.

    >>> failure_of(["loading", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"]).kind
    'device-memory'
    >>> failure_of(["INFO: Uvicorn running"]) is None
    True
    """
    for line in reversed(lines[-LINES:]):
        for kind, sign in _SIGNS:
            if sign.search(line):
                return Failure(kind, line.strip()[-MOST_TOLD:] if len(line) > MOST_TOLD else line.strip())
    return None
