"""What plans of runs, volumes and fleets share: each is for the spec of one document."""

from __future__ import annotations

from orchestrator.spec.models import Spec


class OfSpec:
    """A plan for one spec, whose name and type are the spec's."""

    __slots__ = ()

    spec: Spec

    @property
    def name(self) -> str:
        """What it is called."""
        return self.spec.name

    @property
    def type(self) -> str:
        """The document's type."""
        return self.spec.type
