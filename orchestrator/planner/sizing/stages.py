"""How a model's layers are dealt out over pipeline stages."""

from __future__ import annotations


def split_layers(layers: int, pipeline: int) -> tuple[int, ...]:
    """Return the layers of each stage; spare ones go to the stages before the last, as in vLLM.

    >>> split_layers(32, 4), split_layers(61, 4), split_layers(36, 3)
    ((8, 8, 8, 8), (15, 15, 16, 15), (12, 12, 12))
    """
    base, spare = divmod(layers, pipeline)
    stages = [base] * pipeline
    for i in range(spare):
        stages[-(2 + i) if i + 2 <= pipeline else -1] += 1
    return tuple(stages)
