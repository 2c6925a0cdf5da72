"""Facts with their sources: accelerators, models, images and prices, and nothing decided from them.

Every table is a file beside this one, one fact a line, read when first asked for.

>>> accelerator("h100").name
'H100-80GB'
>>> model("qwen/qwen3-8b").layers
36
"""

from __future__ import annotations

from orchestrator.catalog.config import from_config
from orchestrator.catalog.containers import images
from orchestrator.catalog.hardware import accelerator, accelerators, candidates, known_names
from orchestrator.catalog.parameters import Parameters, active_parameters, count_parameters, parameters
from orchestrator.catalog.pricing import age_days, as_of, is_stale, price_line, prices
from orchestrator.catalog.published import model, models, nearest_model
from orchestrator.catalog.values import Accelerator, Heads, Image, ModelFacts, PriceRow, Trim, VisionFacts

__all__ = [
    "Accelerator",
    "Heads",
    "Image",
    "ModelFacts",
    "Parameters",
    "PriceRow",
    "Trim",
    "VisionFacts",
    "accelerator",
    "accelerators",
    "active_parameters",
    "age_days",
    "as_of",
    "candidates",
    "count_parameters",
    "from_config",
    "images",
    "is_stale",
    "known_names",
    "model",
    "models",
    "nearest_model",
    "parameters",
    "price_line",
    "prices",
]
