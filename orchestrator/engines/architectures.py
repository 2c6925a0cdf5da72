"""The model classes each engine has code for, recorded by version in ``recorded/``."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Architectures:
    """Class names as in a ``config.json``: those served, and those an older version served."""

    served: frozenset[str]
    ended: frozenset[str]


@functools.cache
def load(engine: str, version: str) -> Architectures:
    """Return what ``engine`` at ``version`` serves.

    Raises:
        FileNotFoundError: that version was never recorded.

    >>> "LlamaForCausalLM" in load("vllm", "0.33.0").served
    True
    """
    file = Path(__file__).with_name("recorded") / f"{engine}-{version}.architectures.txt"
    names = file.read_text().split()
    ended = frozenset(name[1:] for name in names if name.startswith("!"))
    return Architectures(frozenset(n for n in names if not n.startswith("!")) - ended, ended)
