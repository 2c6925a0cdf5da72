"""How fast a model serves or trains on given accelerators: a roofline with stated factors."""

from __future__ import annotations

from orchestrator.planner.throughput.measured import Measured
from orchestrator.planner.throughput.serving import Ceiling, Throughput, serving_ceiling, serving_throughput
from orchestrator.planner.throughput.training import TrainingSpeed, training_flops, training_throughput

__all__ = [
    "Ceiling",
    "Measured",
    "Throughput",
    "TrainingSpeed",
    "serving_ceiling",
    "serving_throughput",
    "training_flops",
    "training_throughput",
]
