"""From documents to a place's own language, without asking the place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from orchestrator.apply.fleets import FleetPlan
from orchestrator.apply.imagined import anywhere, imagined_world, vendor_of
from orchestrator.apply.planning import plan_documents
from orchestrator.apply.plans import RunPlan, VolumePlan
from orchestrator.backend import Backend, Group, Renderer, Rendering
from orchestrator.errors import UsageError
from orchestrator.frozen import frozen
from orchestrator.planner.mirrors import NO_MIRRORS, Mirrors
from orchestrator.reconcile.values import group_from
from orchestrator.spec.load import Document
from orchestrator.spec.models import Model

if TYPE_CHECKING:
    from orchestrator.catalog import ModelFacts


@frozen
class Manifest:
    """One document in a place's own language, and what has to be there for it."""

    name: str
    rendering: Rendering


def render_documents(
    documents: Sequence[Document],
    backend: Backend,
    *,
    facts: Callable[[Model], ModelFacts],
    mirrors: Mirrors = NO_MIRRORS,
) -> tuple[Manifest, ...]:
    """Return every document in the language of ``backend``, in their order; same input, same text.

    Args:
        documents: What was read.
        backend: The place whose language is written; it is not asked.
        facts: What a model is.
        mirrors: Where images and models are had from.

    Raises:
        NothingFits: no machine that the catalog knows holds one of them.
        Rejected: the backend would never take one of them.
        UsageError: the backend has no language of its own.
    """
    renderer = renderer_of(backend)
    made: list[Manifest] = []
    for document in documents:
        vendor = vendor_of(document)
        world = imagined_world(backend.name, backend.can, vendor=vendor, facts=facts, mirrors=mirrors)
        (plan,) = plan_documents([anywhere(document)], world)
        if isinstance(plan, VolumePlan):
            rendering = renderer.volume_manifest(plan.name, size_bytes=plan.spec.size)
        elif isinstance(plan, FleetPlan):
            fix = "leave it out: a cluster has its machines already"
            raise UsageError(f"fleet {plan.name!r} has no form as a manifest", fix=fix)
        else:
            assert isinstance(plan, RunPlan)  # nothing is deleted where nothing is on record
            rendering = renderer.manifest(_group(plan))
            rendering = replace(rendering, notes=(*rendering.notes, *_left_out(plan)))
        made.append(Manifest(plan.name, rendering))
    return tuple(made)


def renderer_of(backend: Backend) -> Renderer:
    """Return ``backend`` as what writes manifests.

    Raises:
        UsageError: it has no language of its own.
    """
    if not isinstance(backend, Renderer):
        raise UsageError(f"backend {backend.name!r} writes no manifests", fix="name one of type kubernetes")
    return backend


def _left_out(plan: RunPlan) -> Iterator[str]:
    """Yield what a spec says that its objects do not do by themselves."""
    assert plan.template is not None
    if getattr(plan.spec, "schedule", None):
        yield "its schedule is Modelyard's: these objects run once, when they are applied"
    asked = getattr(plan.spec, "replicas", None)
    if asked is not None and asked.min != asked.max and plan.template.scaling is None:
        count = plan.template.replicas
        how = "autoscaler of the backend does, by queue, running or kv_cache"
        yield f"nothing scales these objects, and replicas stay at {count}: {how}"


def _group(plan: RunPlan) -> Group:
    assert plan.template is not None
    return group_from(plan.template, name=plan.name, kind=plan.spec.type)
