"""Fields that are read and that nothing here acts on, with what happens in place of what they say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from orchestrator.spec.models import Spec
from orchestrator.spec.rules import Finding

UNHEEDED: Mapping[str, str] = {
    "schedule": "applying it starts it now; it takes a server to start it again by the clock",
    "utilization_policy": "it takes a server to measure its accelerators and end it for being idle",
    "inactivity_duration": "it takes a server to end it when nobody is inside",
    "auto_cleanup_duration": "it takes a server to delete it when nothing uses it",
    "volume_id": "a volume of our own is made, or found by its name",
}
"""What happens in place of what a field says, by the field."""


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
