"""Bytes from a model, a job and a device: pure, offline, with the margin stated."""

from __future__ import annotations

from orchestrator.planner.sizing.explain import Step, explain_serving, explain_training
from orchestrator.planner.sizing.logs import from_log
from orchestrator.planner.sizing.serving import ServingNeeds, serving_needs, size_serving
from orchestrator.planner.sizing.training import size_training
from orchestrator.planner.sizing.values import DeviceMemory, Measured, ServingJob, Size, TrainingJob

__all__ = [
    "DeviceMemory",
    "Measured",
    "ServingJob",
    "ServingNeeds",
    "Size",
    "Step",
    "TrainingJob",
    "explain_serving",
    "explain_training",
    "from_log",
    "serving_needs",
    "size_serving",
    "size_training",
]
