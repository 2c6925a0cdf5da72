"""Offer the model form of documents whose commands run a known engine, and plan it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.apply.imagined import anywhere, imagined_world, vendor_of
from orchestrator.apply.model_form import asked_count, kind_of_gpu, read_settings, service, training
from orchestrator.apply.planning import plan_documents
from orchestrator.apply.plans import RunPlan
from orchestrator.backend import Can
from orchestrator.catalog.hardware import known_names
from orchestrator.engines.written import Written, written
from orchestrator.errors import ModelyardError, SpecError
from orchestrator.frozen import frozen
from orchestrator.importers import Imported
from orchestrator.importers.draft import write
from orchestrator.spec.interpolation import AnyVariables
from orchestrator.spec.load import Document, read
from orchestrator.spec.models import Gpu, Model, Service, Task
from orchestrator.spec.values import MAX_NAME

if TYPE_CHECKING:
    from orchestrator.catalog import ModelFacts

Facts = Callable[[Model], "ModelFacts"]
"""From a model to what it is; asked offline."""

_COUNTS = (1, 2, 4, 8)
_MOST_SHOWN = 60
_PLACE = "anywhere"
_CAN = frozenset(Can) - {Can.BARE, Can.GROUPS, Can.SCALES, Can.RENT}


@frozen
class Offered:
    """What the planner says of a suggestion.

    ``asked`` are the accelerators that the original asks for, as one would write them, "" for none.
    ``least`` is the plan with the fewest of that kind, or why no number of them does. ``taken`` is
    what the plan takes of that kind, and ``free`` what it takes of any: the least per token, or for
    training the least in all.
    """

    asked: str
    asked_count: int | None
    least: RunPlan | ModelyardError
    taken: RunPlan | ModelyardError
    free: RunPlan | ModelyardError


@frozen
class Suggestion:
    """A document of ours that an engine's command could be; ``text`` is "" where none could be made.

    ``says`` is what changed and why, a phrase each.
    """

    of: Document
    engine: str
    text: str
    says: tuple[str, ...] = ()
    offered: Offered | None = None


def _itself(name: str) -> str:
    return f"${{{{ env.{name} }}}}"


def suggest_all(imported: Imported, *, folder: Path | None, facts: Facts) -> tuple[Suggestion, ...]:
    """Return the suggestions for all documents of an import, in their order."""
    try:
        documents = read(imported.text, known_accelerators=known_names(), env=AnyVariables(_itself))
    except SpecError:  # a reference stands where a number has to: the values are not there to read
        return ()
    behind = imported.behind
    found = (
        suggest(each, behind=behind.get(each.spec.name, ()), folder=folder, facts=facts) for each in documents
    )
    return tuple(one for several in found for one in several)


def suggest(
    document: Document, *, behind: Sequence[str] = (), folder: Path | None = None, facts: Facts
) -> tuple[Suggestion, ...]:
    """Return what each command of a document that starts an engine could be.

    Args:
        document: A task or a service; for anything else there is nothing to suggest.
        behind: Words behind its image's own entrypoint.
        folder: Where files that it names lie; None reads none.
        facts: What a model is.
    """
    spec = document.spec
    if not isinstance(spec, Task | Service) or (isinstance(spec, Task) and spec.train):
        return ()
    made: list[Suggestion] = []
    for found in written(spec.commands, spec.env, image=spec.image, behind=behind):
        many = sum(bool(one.text) for one in made)
        name = f"{spec.name[: MAX_NAME - 3]}-{many + 1}" if many else spec.name
        made.append(_suggestion(document, spec, found, name, folder, facts))
    return tuple(made)


def _suggestion(
    document: Document, spec: Task | Service, found: Written, name: str, folder: Path | None, facts: Facts
) -> Suggestion:
    if found.settings and not found.problem:
        read_settings(found, spec, folder)
    if not found.problem and not found.model:
        found.problem = "no model is named"
    if found.problem:
        return Suggestion(document, found.engine, "", (f"{_shown(found)}: {found.problem}",))
    draft, says = (training if found.kind == "train" else service)(name, spec, found)
    text = write([draft])
    try:
        (made,) = read(text, known_accelerators=known_names())
    except SpecError as error:
        refused = tuple(f"{_shown(found)}: {problem.what}" for problem in error.problems)
        return Suggestion(document, found.engine, "", (*says, *refused))
    return Suggestion(document, found.engine, text, says, _offered(spec, made, found, facts))


def _shown(found: Written) -> str:
    words = " ".join(found.words)
    return f"{words[:_MOST_SHOWN]}…" if len(words) > _MOST_SHOWN else words or found.engine


# --- what the planner says ------------------------------------------------------------------


def _offered(spec: Task | Service, made: Document, found: Written, facts: Facts) -> Offered:
    """Plan the suggestion with accelerators of the kind that was asked for, and with any.

    Options that the engine does not know are not in it, and nothing is sent along: neither says
    anything of accelerators.
    """
    body = made.spec
    assert isinstance(body, Task | Service)  # it was made as one of them
    unknown = {name.lstrip("-") for name in found.unknown}
    known = {name: value for name, value in found.args.items() if name not in unknown}
    body = body.model_copy(update={"files": (), "repos": ()})
    if isinstance(body, Service):
        body = body.model_copy(update={"args": known})
    elif body.train:
        body = body.model_copy(update={"train": body.train.model_copy(update={"args": known})})

    def plan(gpu: Gpu | None) -> RunPlan | ModelyardError:
        resources = body.resources.model_copy(update={"gpu": gpu})
        return _plan(replace(made, spec=body.model_copy(update={"resources": resources})), facts)

    free = plan(None)
    asked, gpu = spec.resources.gpu, body.resources.gpu
    if gpu is None:  # any kind will do, in any number
        return Offered(_asked(asked, spec), asked_count(spec), free, free, free)
    taken = plan(gpu)
    counted = (plan(Gpu.model_validate(kind_of_gpu(gpu, str(count)))) for count in _COUNTS)
    plans = (each for each in (taken, *counted) if isinstance(each, RunPlan))
    return Offered(_asked(asked, spec), asked_count(spec), min(plans, key=_size, default=taken), taken, free)


def _asked(gpu: Gpu | None, spec: Task | Service) -> str:
    kind = kind_of_gpu(gpu, "").rstrip(":") if gpu else ""
    return f"{asked_count(spec)} × {kind or 'any accelerator'}" if gpu else ""


def _size(plan: RunPlan) -> tuple[bool, bool, int, float]:
    """Return what makes a plan a small one: as published, on one machine, few devices, little money."""
    lowered = bool(plan.served and plan.served.lowered)
    nodes = plan.template.nodes if plan.template else 1
    return lowered, nodes > 1, devices(plan), plan.placed.choices[0].price_usd_hour if plan.placed else 0.0


def devices(plan: RunPlan) -> int:
    """Return how many accelerators one replica of a planned model takes, over all its machines."""
    if plan.trained:
        return plan.trained.candidate.nodes * plan.trained.candidate.count
    return plan.served.layout.devices if plan.served else 0


def _plan(document: Document, facts: Facts) -> RunPlan | ModelyardError:
    world = imagined_world(_PLACE, _CAN, vendor=vendor_of(document), facts=facts)
    try:
        (plan,) = plan_documents([anywhere(document)], world)
    except ModelyardError as error:
        return error
    assert isinstance(plan, RunPlan)  # a task and a service are runs
    return plan
