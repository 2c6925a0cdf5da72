"""Fields that are read and that nothing here acts on, with what happens in place of what they say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from orchestrator.spec.models import Spec, Task, Volume
from orchestrator.spec.rules import Finding

UNHEEDED: Mapping[str, str] = {
    "schedule": "applying it starts it now; it takes a server to start it again by the clock",
    "utilization_policy": "it takes a server to measure its accelerators and end it for being idle",
    "inactivity_duration": "it takes a server to end it when nobody is inside",
    "auto_cleanup_duration": "it takes a server to delete it when nothing uses it",
    "volume_id": "a volume of our own is made, or found by its name",
}
"""What happens in place of what a field says, by the field."""

TO_SERVE: Mapping[str, str] = {
    "precision": "a trainer computes in 16 bits; adapter: qlora keeps the base in 4",
    "quantization": "a trainer reads it from the weights; adapter: qlora keeps the base in 4 bits",
    "context": "sequence_length says how long an example is",
    "kv_cache": "a trainer keeps none",
    "adapters": "adapter says what is trained",
    "max_adapters": "adapter says what is trained",
    "measured": "what a run takes in training is computed",
}
"""Fields of a model that is trained and that say how one is served, with what happens instead."""


def unheeded(spec: Spec) -> Iterator[Finding]:
    """Yield the fields that ``spec`` sets and that will do nothing.

    >>> from orchestrator.spec.models import Task
    >>> [f.path for f in unheeded(Task(name="a", commands=["true"], schedule={"cron": "0 3 * * *"}))]
    ['schedule']
    """
    for name, what in UNHEEDED.items():
        info = type(spec).model_fields.get(name)
        if info is not None and getattr(spec, name) != info.default:
            yield Finding(name, what)
    if isinstance(spec, Volume) and spec.tags:
        yield Finding("tags", "volumes bear none; tag what mounts them")
    if isinstance(spec, Task) and spec.train:
        model = spec.train.model
        for name in sorted(model.model_fields_set & TO_SERVE.keys()):
            if getattr(model, name) != type(model).model_fields[name].default:
                yield Finding(f"train.model.{name}", TO_SERVE[name])
