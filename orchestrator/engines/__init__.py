"""What runs inside the container: one file per engine, its name the one in YAML."""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path
from typing import cast

from orchestrator.engines.job import Adapter, Engine, EngineLaunch, Metrics, Profile, ServingJob, Source

__all__ = [
    "Adapter",
    "Engine",
    "EngineLaunch",
    "Metrics",
    "Profile",
    "ServingJob",
    "Source",
    "engine",
    "names",
]

_PARTS = frozenset(
    {
        "__init__",
        "architectures",
        "arguments",
        "checks",
        "flags",
        "images",
        "job",
        "node_entry",
        "nodes",
        "quantization",
        "startup",
    }
)
"""Modules of this folder that engines share; every other one is an engine."""


@cache
def names() -> tuple[str, ...]:
    """Return the names of all engines, sorted.

    >>> names()
    ('nim', 'sglang', 'tgi', 'transformers', 'vllm')
    """
    return tuple(sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in _PARTS))


def engine(name: str) -> Engine:
    """Return the engine called ``name`` in YAML.

    Raises:
        KeyError: there is no such engine; ``names`` lists them.

    >>> engine("vllm").name
    'vllm'
    """
    if name not in names():
        raise KeyError(name)
    return cast(Engine, importlib.import_module(f"{__name__}.{name}").ENGINE)
