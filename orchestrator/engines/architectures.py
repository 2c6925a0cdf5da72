"""The model classes each engine has code for, recorded by version in ``recorded/``."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path

from orchestrator.frozen import frozen

RECORDED_MODULES = "5.23.0"
"""The version of transformers whose models' modules are recorded."""


@frozen
class Architectures:
    """Class names as in a ``config.json``: those served, and those an older version served.

    ``whole`` are those among the served that are not cut into pipeline stages.
    """

    served: frozenset[str]
    ended: frozenset[str]
    whole: frozenset[str]


@functools.cache
def load(engine: str, version: str) -> Architectures:
    """Return what ``engine`` at ``version`` serves.

    Raises:
        FileNotFoundError: that version was never recorded.

    >>> "LlamaForCausalLM" in load("vllm", "0.33.0").served
    True
    >>> "BertModel" in load("vllm", "0.33.0").whole
    True
    """
    file = Path(__file__).with_name("recorded") / f"{engine}-{version}.architectures.txt"
    names = file.read_text().split()
    ended = frozenset(name[1:] for name in names if name.startswith("!"))
    whole = frozenset(name[1:] for name in names if name.startswith("|"))
    served = whole | {name for name in names if name[0] not in "!|"}
    return Architectures(served - ended, ended, whole - ended)


def modules(architecture: str) -> tuple[str, ...]:
    """Return the modules with weights of a kind of model, by the last part of their names.

    Those that PEFT can put an adapter on; empty where the kind was never recorded.

    >>> "q_proj" in modules("LlamaForCausalLM"), modules("NobodyForCausalLM")
    (True, ())
    """
    return _modules().get(architecture, ())


@functools.cache
def _modules() -> Mapping[str, tuple[str, ...]]:
    file = Path(__file__).with_name("recorded") / f"transformers-{RECORDED_MODULES}.modules.jsonl"
    records = map(json.loads, file.read_text().splitlines())
    return {each["architecture"]: tuple(each["modules"]) for each in records}
