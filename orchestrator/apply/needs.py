"""What specs have to have from elsewhere: images, models and data, for carrying them into an air gap."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from orchestrator.apply.imagined import anywhere, imagined_world, vendor_of
from orchestrator.apply.lock import model_of
from orchestrator.apply.planning import plan_documents
from orchestrator.apply.plans import RunPlan
from orchestrator.backend import Can, Launch
from orchestrator.catalog.references import read_reference
from orchestrator.frozen import frozen
from orchestrator.planner.mirrors import Mirrors
from orchestrator.spec.load import Document
from orchestrator.spec.models import Fleet, Model, Service, Task, Volume

if TYPE_CHECKING:
    from orchestrator.catalog import ModelFacts

ANYTHING = frozenset(Can) - {Can.GROUPS, Can.RENT, Can.KEEP, Can.HOLD}
"""What the imagined place is able to do: nothing is refused, and what names no image needs none."""


@frozen
class ImageNeed:
    """An image, what the mirrors make of it, and the runs that start from it."""

    reference: str
    mirror: str
    runs: tuple[str, ...]

    @property
    def pinned(self) -> str | None:
        """Return the digest that the reference itself names."""
        return read_reference(self.reference).digest


@frozen
class HubNeed:
    """Something of the model hub at a revision, None for its default branch, and the runs that load it."""

    kind: Literal["model", "adapter", "dataset"]
    id: str
    revision: str | None
    runs: tuple[str, ...]


@frozen
class Needs:
    """All that the runs of some documents need, ordered by name."""

    images: tuple[ImageNeed, ...]
    hub: tuple[HubNeed, ...]


def needs_of(
    documents: Sequence[Document], *, facts: Callable[[Model], ModelFacts], mirrors: Mirrors
) -> Needs:
    """Return what the documents need: the same for the same documents and catalog; no place is asked.

    An engine's image follows from the accelerators that a spec names, or from NVIDIA's.

    Args:
        documents: What was read.
        facts: What a model is.
        mirrors: Where images and models are had from.

    Raises:
        NothingFits: no machine that the catalog knows holds one of them.
    """
    images: dict[str, list[str]] = {}
    hub: dict[tuple[Literal["model", "adapter", "dataset"], str, str | None], list[str]] = {}
    for document in documents:
        name = document.spec.name
        for launch in _launches(document, facts):
            if launch.image is not None:
                images.setdefault(launch.image, []).append(name)
        for kind, id, revision in _of_hub(document):
            hub.setdefault((kind, id, revision), []).append(name)
    return Needs(
        tuple(
            ImageNeed(each, mirrors.image(each), tuple(dict.fromkeys(runs)))
            for each, runs in sorted(images.items())
        ),
        tuple(
            HubNeed(*key, tuple(dict.fromkeys(runs)))
            for key, runs in sorted(hub.items(), key=lambda each: (each[0][0], each[0][1], each[0][2] or ""))
        ),
    )


def _launches(document: Document, facts: Callable[[Model], ModelFacts]) -> Iterator[Launch]:
    if isinstance(document.spec, Fleet | Volume):
        return  # what they hold starts nothing by itself
    world = imagined_world("anywhere", ANYTHING, vendor=vendor_of(document), facts=facts)
    for plan in plan_documents([anywhere(document)], world):
        if isinstance(plan, RunPlan) and plan.template is not None:
            yield plan.template.launch
            if plan.template.follower is not None:
                yield plan.template.follower


def _of_hub(
    document: Document,
) -> Iterator[tuple[Literal["model", "adapter", "dataset"], str, str | None]]:
    """Yield what a document has from the hub; folders, volumes and buckets are its owner's to carry."""
    model, spec = model_of(document), document.spec
    if model is not None and _is_hubs(model.id):
        yield "model", model.id, model.revision
    for adapter in model.adapters if model is not None and isinstance(spec, Service) else ():
        if _is_hubs(adapter.id):
            yield "adapter", adapter.id, adapter.revision
    if isinstance(spec, Task) and spec.train and spec.train.dataset and _is_hubs(spec.train.dataset):
        yield "dataset", spec.train.dataset, None


def _is_hubs(id: str) -> bool:
    """Say whether an id is the hub's, and no folder, file or address."""
    is_file = id.endswith((".jsonl", ".json", ".parquet", ".csv"))
    return "://" not in id and not id.startswith((".", "/")) and not is_file
