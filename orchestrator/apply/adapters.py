"""Adapters: which changes a running engine takes, and services that share another one's replicas."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence

from orchestrator.backend import Launch
from orchestrator.engines.job import Adapters
from orchestrator.errors import ModelError, Problem, SpecError
from orchestrator.planner.ask import Work
from orchestrator.planner.sources import ADAPTERS, adapter_source
from orchestrator.reconcile import Run, Template, Wanted
from orchestrator.reconcile.serving import adapters_of
from orchestrator.reconcile.values import Adapter
from orchestrator.spec.load import Document
from orchestrator.spec.models import Adapter as AdapterSpec
from orchestrator.spec.models import Service


def takes_adapters(spec: Service) -> bool:
    """Return whether a service serves adapters, or makes room for those of others."""
    return spec.model is not None and bool(spec.model.adapters or spec.model.max_adapters)


def known_ranks(
    document: Document, spec: Work, rank_of: Callable[[AdapterSpec], int | None]
) -> tuple[int | None, ...]:
    """Return the rank of each adapter of a spec that room is to be made for, as far as it is known.

    Args:
        document: Where errors are told.
        spec: What serves the adapters.
        rank_of: What an adapter's weights tell.

    Raises:
        SpecError: a spec says a smaller rank than the weights, for which no room would be made.
        ModelError: a file beside weights says no rank.
    """
    if not isinstance(spec, Service):
        return ()
    listed, where = (spec.adapters, "adapters") if spec.base else ((), "")
    if spec.model:
        listed, where = spec.model.adapters, "model.adapters"
    found, problems = [], []
    for at, each in enumerate(listed):
        try:
            told = rank_of(each)
        except ModelError as error:
            error.where = error.where or document.at(f"{where}[{at}].id")
            raise
        if told and each.rank and each.rank < told:
            what = f"the weights of {each.name!r} are of rank {told}, got {each.rank}"
            problems.append(document.problem(f"{where}[{at}].rank", what, f"write {told}, or leave it out"))
        found.append(max(told or 0, each.rank or 0) or None)
    if problems:
        raise SpecError(problems)
    return tuple(found)


def with_ranks(spec: Work, ranks: Sequence[int | None]) -> Work:
    """Return a spec that says the rank of each of its model's adapters, as far as they are known."""
    if not isinstance(spec, Service) or spec.model is None or not ranks:
        return spec
    told = [a.model_copy(update={"rank": rank}) for a, rank in zip(spec.model.adapters, ranks, strict=True)]
    return spec.model_copy(update={"model": spec.model.model_copy(update={"adapters": told})})


def held_adapters(
    spec: Work,
    takes: Adapters | None,
    *,
    bare: bool,
    ranks: Sequence[int | None] = (),
    old: Template | None = None,
) -> str:
    """Return what containers hold of a spec's adapters, as text; "" where it has none.

    An engine that loads them while it runs holds only their rank at most, and the folders they are
    read from: a container gets no new mount. ``ranks`` are those of the adapters, as far as they are
    known. ``old`` is what runs now: what it holds will do, where that is enough.
    """
    model = spec.model if isinstance(spec, Service) else None
    if model is None or not (model.adapters or model.max_adapters):
        return ""
    if takes is None:
        return json.dumps([adapter.canonical() for adapter in model.adapters])
    mounts = {} if bare else {m.target: m.source for a in model.adapters for m in adapter_source(a)[1]}
    rank = max(takes.rank, *(each or 0 for each in ranks), 0)
    if old is not None:
        there = {m.target: m.source for m in old.launch.mounts if m.target.startswith(f"{ADAPTERS}/")}
        mounts = there if mounts.items() <= there.items() else mounts
    return json.dumps(["at run time", rank, sorted(mounts.items())])


def held_by(spec: Work, run: Run | None, ranks: Sequence[int | None]) -> str:
    """Return what containers have to hold of a spec's adapters, which those of ``run`` may do."""
    if run is None:
        return held_adapters(spec, None, bare=False)
    old = run.template
    return held_adapters(spec, adapters_of(run.plan), bare=old.launch.image is None, ranks=ranks, old=old)


def loadable(adapters: Sequence[AdapterSpec], *, bare: bool) -> tuple[Adapter, ...]:
    """Return where an engine reads adapters: what is local is mounted, unless it runs without a container."""
    return tuple(
        Adapter(each.name, each.id if bare else adapter_source(each)[0].reference, each.revision or "")
        for each in adapters
    )


def shared(
    document: Document,
    spec: Service,
    runs: Mapping[str, Run],
    services: Mapping[str, bool],
    ranks: Sequence[int | None] = (),
) -> Template:
    """Return the template of a service whose adapters another one's replicas serve.

    Args:
        document: Where errors are told.
        spec: The service.
        runs: Every run on record, by name.
        services: The services among the documents that can take adapters, and whether each runs
            without a container.
        ranks: Those of the adapters, as far as they are known.

    Raises:
        SpecError: there is no such service, or it cannot serve these adapters.
    """
    bare = _is_bare(document, spec, runs, services)
    problems = [*_unmounted(document, spec, bare), *_taken(document, spec, runs)]
    if spec.base not in services:  # else its room is made in the same breath, as its own spec says
        problems += _wide(document, spec, adapters_of(runs[spec.base or ""].plan), ranks)
    if problems:
        raise SpecError(problems)
    return Template(
        Launch(f"{spec.name}-0-0-0", spec.name), (), replicas=0, base=spec.base or "",
        adapters=loadable(spec.adapters, bare=bare),
    )  # fmt: skip


def _is_bare(
    document: Document, spec: Service, runs: Mapping[str, Run], services: Mapping[str, bool]
) -> bool:
    """Return whether the base runs without a container; refuse one that is not there or loads nothing."""
    name = spec.base or ""
    if name in services:
        return services[name]
    base = runs.get(name)
    if base is None or base.type != "service" or base.wanted is not Wanted.RUN:
        what = f"no service {name!r} is on record or among these files"
        raise SpecError([document.problem("base", what, "apply it first, or beside this one")])
    if adapters_of(base.plan) is None:
        fix = f"add max_adapters to the model of {name!r}, and engine: vllm or sglang"
        raise SpecError([document.problem("base", f"service {name!r} loads no adapters while it runs", fix)])
    return base.template.launch.image is None


def _unmounted(document: Document, spec: Service, bare: bool) -> Iterator[Problem]:
    fix = f"name it among the adapters of {spec.base!r}, or give a hub id"
    for at, each in enumerate(spec.adapters):
        if not bare and adapter_source(each)[1]:
            what = f"{each.id!r} would have to be mounted where {spec.base!r} runs"
            yield document.problem(f"adapters[{at}].id", what, fix)


def _wide(
    document: Document, spec: Service, takes: Adapters | None, ranks: Sequence[int | None]
) -> Iterator[Problem]:
    """Yield the adapters for which the base's replicas have no room."""
    for at, rank in enumerate(ranks):
        if takes and takes.rank and rank and rank > takes.rank:
            what = f"an adapter of rank {rank}, and {spec.base!r} has room for {takes.rank}"
            fix = f"name it among the adapters of {spec.base!r}, whose replicas are then replaced"
            yield document.problem(f"adapters[{at}]", what, fix)


def _taken(document: Document, spec: Service, runs: Mapping[str, Run]) -> Iterator[Problem]:
    """Yield the names that another service on the same base has."""
    beside = [
        run for run in runs.values()
        if run.name != spec.name and spec.base in (run.name, run.template.base) and run.wanted is Wanted.RUN
    ]  # fmt: skip
    for at, each in enumerate(spec.adapters):
        for other in beside:
            if each.name in {adapter.name for adapter in other.template.adapters}:
                what = f"service {other.name!r} has an adapter called {each.name!r} on the same base"
                yield document.problem(f"adapters[{at}].name", what, "call it otherwise")


def adapter_notes(template: Template, takes: Adapters | None) -> Iterator[str]:
    """Say where more adapters are served than there is room for."""
    if takes and len(template.adapters) > takes.slots:
        yield (
            f"{len(template.adapters)} adapters take turns in device memory, which has room for "
            f"{takes.slots}: model.max_adapters makes more"
        )
