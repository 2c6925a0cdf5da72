"""What runs inside the container: one file per engine, its name the one in YAML."""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, cast

from orchestrator.engines.job import (
    Adapter,
    Engine,
    EngineLaunch,
    Kind,
    Metrics,
    Profile,
    ServingJob,
    Source,
    Stated,
    kind_of,
)

if TYPE_CHECKING:  # a plan that only serves does not pay for it
    from orchestrator.engines.tuning import Trainer

__all__ = [
    "Adapter",
    "Engine",
    "EngineLaunch",
    "Kind",
    "Metrics",
    "Profile",
    "ServingJob",
    "Source",
    "Stated",
    "engine",
    "kind_of",
    "names",
    "trainer",
    "trainers",
]

_PARTS = frozenset(
    {
        "__init__",
        "architectures",
        "arguments",
        "buckets",
        "checks",
        "exposition",
        "failures",
        "flags",
        "images",
        "job",
        "node_entry",
        "nodes",
        "quantization",
        "script",
        "startup",
        "tuning",
        "tuning_bucket",
        "tuning_entry",
        "tuning_meeting",
        "tuning_merge",
        "tuning_ranks",
        "written",
    }
)
"""Modules of this folder that engines share; every other one is an engine or a trainer."""
_TRAINERS = frozenset({"axolotl", "trl"})


@cache
def names() -> tuple[str, ...]:
    """Return the names of all engines that serve, sorted.

    >>> names()
    ('nim', 'sglang', 'tgi', 'transformers', 'vllm')
    """
    files = Path(__file__).parent.glob("*.py")
    return tuple(sorted(p.stem for p in files if p.stem not in _PARTS | _TRAINERS))


@cache
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


def trainers() -> tuple[str, ...]:
    """Return the names of all engines that train, sorted.

    >>> trainers()
    ('axolotl', 'trl')
    """
    return tuple(sorted(_TRAINERS))


def trainer(name: str) -> Trainer:
    """Return the trainer called ``name`` in YAML.

    Raises:
        KeyError: there is no such trainer; ``trainers`` lists them.

    >>> trainer("trl").name
    'trl'
    """
    if name not in _TRAINERS:
        raise KeyError(name)
    return cast("Trainer", importlib.import_module(f"{__name__}.{name}").TRAINER)
