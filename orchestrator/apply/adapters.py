"""Adapters: which changes a running engine takes, and services that share another one's replicas."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from orchestrator.backend import Launch
from orchestrator.engines.job import Adapters
from orchestrator.errors import Problem, SpecError
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


def held_adapters(spec: Work, takes: Adapters | None, *, bare: bool, old: Template | None = None) -> str:
    """Return what containers hold of a spec's adapters, as text; "" where it has none.

    An engine that loads them while it runs holds only their rank at most, and the folders they are
    read from: a container gets no new mount. ``old`` is what runs now: what it holds will do, where
    that is enough.
    """
    model = spec.model if isinstance(spec, Service) else None
    if model is None or not (model.adapters or model.max_adapters):
        return ""
    if takes is None:
        return json.dumps([adapter.canonical() for adapter in model.adapters])
    mounts = {} if bare else {m.target: m.source for a in model.adapters for m in adapter_source(a)[1]}
    rank = max(takes.rank, *(adapter.rank or 0 for adapter in model.adapters), 0)
    if old is not None:
        there = {m.target: m.source for m in old.launch.mounts if m.target.startswith(f"{ADAPTERS}/")}
        mounts = there if mounts.items() <= there.items() else mounts
    return json.dumps(["at run time", rank, sorted(mounts.items())])


def held_by(spec: Work, run: Run | None) -> str:
    """Return what containers have to hold of a spec's adapters, which those of ``run`` may do."""
    if run is None:
        return held_adapters(spec, None, bare=False)
    old = run.template
    return held_adapters(spec, adapters_of(run.plan), bare=old.launch.image is None, old=old)


def loadable(adapters: Sequence[AdapterSpec], *, bare: bool) -> tuple[Adapter, ...]:
    """Return where an engine reads adapters: what is local is mounted, unless it runs without a container."""
    return tuple(
        Adapter(each.name, each.id if bare else adapter_source(each)[0].reference, each.revision or "")
        for each in adapters
    )


def shared(
    document: Document, spec: Service, runs: Mapping[str, Run], services: Mapping[str, bool]
) -> Template:
    """Return the template of a service whose adapters another one's replicas serve.

    Args:
        document: Where errors are told.
        spec: The service.
        runs: Every run on record, by name.
        services: The services among the documents that can take adapters, and whether each runs
            without a container.

    Raises:
        SpecError: there is no such service, or it cannot serve these adapters.
    """
    bare = _is_bare(document, spec, runs, services)
    problems = [*_unmounted(document, spec, bare), *_taken(document, spec, runs)]
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
