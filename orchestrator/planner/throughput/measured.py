"""Measured serving speeds, and which of them says most about a load."""

from __future__ import annotations

import math
from collections.abc import Iterable

from orchestrator.frozen import frozen


@frozen
class Measured:
    """One measured run of a replica: what ran where under which load, and what came out.

    ``concurrency`` is None where the replica was kept full. ``source`` says who measured it.
    """

    model: str
    accelerator: str
    engine: str
    weight_format: str
    input_tokens: float
    output_tokens: float
    concurrency: float | None
    output_tokens_s: float
    source: str
    tensor: int = 1
    pipeline: int = 1
    data: int = 1


def closest(
    rows: Iterable[Measured],
    *,
    model: str,
    accelerator: str,
    layout: tuple[int, int, int],
    engine: str,
    weight_format: str,
    load: tuple[float, float, float | None],
) -> Measured | None:
    """Return the row of the same setup whose load is nearest in ratio, or None.

    Args:
        rows: All that was measured; of equally near rows the first by source counts.
        model: The model's id.
        accelerator: Its catalog name.
        layout: Tensor, pipeline and data parallelism.
        engine: The engine's name.
        weight_format: As the rows spell it.
        load: Prompt tokens, answer tokens and concurrency.
    """
    setup = (model.lower(), accelerator, layout, engine, weight_format)
    same = [row for row in rows if _setup(row) == setup]
    return min(same, key=lambda row: (_distance(row, load), row.source, row.output_tokens_s), default=None)


def _setup(row: Measured) -> tuple[str, str, tuple[int, int, int], str, str]:
    layout = (row.tensor, row.pipeline, row.data)
    return row.model.lower(), row.accelerator, layout, row.engine, row.weight_format


def _distance(row: Measured, load: tuple[float, float, float | None]) -> float:
    """Return how far a row's load is, as a sum of logarithms; full against a number counts as e."""
    far = abs(math.log((row.input_tokens + 1) / (load[0] + 1))) + abs(math.log(row.output_tokens / load[1]))
    if row.concurrency is None or load[2] is None:
        return far + (0.0 if row.concurrency == load[2] else 1.0)
    return far + abs(math.log(row.concurrency / load[2]))
