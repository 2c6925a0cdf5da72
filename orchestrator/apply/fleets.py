"""Compare fleets with the record, and plan what has to change; no host is asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

from orchestrator.apply.of_spec import OfSpec
from orchestrator.apply.sets import FleetRecord, Scope, joined, joining
from orchestrator.backend import FLEET, Launch, Rent
from orchestrator.errors import Problem, UsageError
from orchestrator.frozen import frozen
from orchestrator.planner.plan import Action, Placed
from orchestrator.reconcile import Retry, Run, Template
from orchestrator.reconcile.values import Holding, RetryEvent
from orchestrator.spec.load import Document
from orchestrator.spec.models import Fleet, SshConfig, changes, spec_of
from orchestrator.spec.parts import Change
from orchestrator.spec.values import IntRange


@frozen
class FleetPlan(OfSpec):
    """What would be done for one fleet.

    ``leaving`` are the hosts that it no longer has, with the runs that are there still.
    """

    document: Document
    spec: Fleet
    action: Action
    changes: tuple[Change, ...] = ()
    set_name: str = ""
    leaving: tuple[tuple[str, tuple[str, ...]], ...] = ()
    notes: tuple[str, ...] = ()
    template: Template | None = None
    """The launches that hold its machines; None for machines of one's own, and where nothing changes."""
    placed: Placed | None = None
    """Where its machines are rented, in which order, for how much."""
    run: Run | None = None
    """The record of those launches that the plan was made against."""
    serving: str = "{}"
    problems: tuple[Problem, ...] = ()
    """What has to be put right before it can be applied: values that nobody has given."""

    @property
    def backend(self) -> str:
        """The place that it is: it bears the fleet's name."""
        return self.spec.name

    @property
    def lost(self) -> tuple[str, ...]:
        """The runs that applying it would lose, because their host leaves."""
        return tuple(sorted({run for _, runs in self.leaving for run in runs}))


def plan_fleet(
    document: Document, spec: Fleet, known: FleetRecord | None, *, taken: bool, scope: Scope
) -> FleetPlan:
    """Return what would be done for a fleet.

    Args:
        document: Where it stands.
        spec: What it says.
        known: The fleet of that name on record, None where there is none.
        taken: Whether a configured place has its name.
        scope: The set that it is applied under.

    Raises:
        UsageError: its name is taken, or a field changed under the feet of runs.
    """
    if taken and known is None:
        raise UsageError(
            f"a configured backend is called {spec.name!r} already",
            fix="choose another name for the fleet, or take the backend out of the configuration",
        )
    joins = joined(spec.name, known.fleet.set_name if known else "", scope)
    notes = tuple(_notes(spec))
    if known is None:
        return FleetPlan(document, spec, "create", set_name=joins, notes=notes)
    old = spec_of(json.loads(known.fleet.spec))
    assert isinstance(old, Fleet)  # the record holds fleets under no other type
    changed = _in_place(changes(old, spec), known)
    changed += joining(known.fleet.set_name, joins)
    action: Action = "update" if changed else "unchanged"
    return FleetPlan(document, spec, action, changed, joins, tuple(_leaving(old, spec, known)), notes)


def _in_place(changed: tuple[Change, ...], known: FleetRecord) -> tuple[Change, ...]:
    """Return changes of a fleet, which has no containers of its own to replace."""
    runs = sorted(known.users)
    for change in changed:
        if change.mark == "replace" and runs and not change.path.startswith("ssh_config.hosts"):
            raise UsageError(
                f"fleet {known.fleet.name!r} cannot change its {change.path} while runs are on it: "
                f"{', '.join(runs)}",
                fix=f"modelyard stop {' '.join(runs)} first",
            )
    return tuple(replace(change, mark="in-place") for change in changed)


def _leaving(old: Fleet, new: Fleet, known: FleetRecord) -> Iterator[tuple[str, tuple[str, ...]]]:
    kept = set(host_names(new))
    for host in host_names(old):
        if host not in kept:
            yield host, tuple(known.on.get(host, ()))


def _notes(spec: Fleet) -> Iterator[str]:
    """Say which fields of a fleet do nothing."""
    if spec.ssh_config is None:
        if spec.retry is not None:
            yield "retry: a fleet replaces what it lost, whatever became of it"
        if spec.placement == "cluster":
            yield "placement: machines of a fleet are rented one by one, wherever there are some"
        return
    if spec.placement == "cluster" and not spec.ssh_config.network:
        yield "placement: nodes find each other by the addresses that we reach them by; name their network"
    rented = ("regions", "availability_zones", "instance_types", "reservation", "max_price", "resources")
    for name in ("backends", *rented, "idle_duration", "tags"):
        if getattr(spec, name) != type(spec).model_fields[name].get_default(call_default_factory=True):
            yield f"{name}: says nothing of machines of one's own"


def host_names(spec: Fleet) -> tuple[str, ...]:
    """Return what the hosts of a fleet are called: by hostname, with the port where one is there twice.

    >>> host_names(Fleet(name="rack", ssh_config={"hosts": ["a", {"hostname": "b", "port": 23}]}))
    ('a', 'b')
    """
    config = spec.ssh_config or SshConfig(hosts=())
    found = [(host.hostname, host.port or config.port or 22) for host in config.hosts]
    names = [name for name, _ in found]
    return tuple(f"{name}:{port}" if names.count(name) > 1 else name for name, port in found)


def fleet_template(spec: Fleet, *, backends: tuple[str, ...], rents: tuple[Rent | None, ...]) -> Template:
    """Return the launches that hold a fleet's machines, tried at these places in this order.

    >>> made = fleet_template(Fleet(name="pool", nodes="1..4"), backends=("aws",), rents=(Rent("g6"),))
    >>> made.launch.fleet, made.holding.least, made.holding.most
    ('pool', 1, 4)
    """
    nodes = spec.nodes or IntRange(min=0, max=0)
    least = nodes.min or 0
    every: frozenset[RetryEvent] = frozenset({"no-capacity", "interruption", "error"})
    launch = Launch(
        f"{spec.name}-0-0-0", spec.name, spec_hash=spec.hash(), options=((FLEET, spec.name),),
        tags=tuple(sorted(spec.tags.items())),
    )  # fmt: skip
    return Template(
        launch, backends, replicas=least, retry=Retry(every), rents=rents, idle_s=0,
        holding=Holding(least, nodes.max or least, spec.blocks, spec.idle_duration),
    )  # fmt: skip


def require_unused(known: FleetRecord) -> None:
    """Refuse to let a fleet go while runs may be on it.

    Raises:
        UsageError: a run that has not ended is there, or may go there.
    """
    there = sorted(set().union(*known.on.values()))
    coming = sorted(known.users.difference(there))
    if not known.users:
        return
    name, runs = known.fleet.name, " ".join([*there, *coming])
    said = [f"in use: {', '.join(there)}"] if there else []
    said += [f"{', '.join(coming)} may {'also ' if there else ''}go there"] if coming else []
    raise UsageError(
        f"fleet {name!r} is {'' if there else 'free, and '}{'; '.join(said)}",
        fix=f"modelyard stop {runs}, or for tasks that are to finish modelyard wait {runs} --for ended; "
        f"then modelyard fleet delete {name}",
    )
