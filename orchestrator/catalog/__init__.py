"""Facts with their sources: accelerators, models, images and prices, and nothing decided from them.

Every table is a file beside this one, one fact a line, read when first asked for.

>>> accelerator("h100").name
'H100-80GB'
>>> model("qwen/qwen3-8b").layers
36
"""

from __future__ import annotations

from orchestrator.catalog.hardware import accelerator, accelerators, candidates, known_names
from orchestrator.catalog.published import model, models
from orchestrator.catalog.values import Accelerator, ModelFacts

__all__ = [
    "Accelerator",
    "ModelFacts",
    "accelerator",
    "accelerators",
    "candidates",
    "known_names",
    "model",
    "models",
]
