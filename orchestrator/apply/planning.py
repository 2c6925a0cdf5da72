"""Compare documents with the record, and plan what has to change."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING

from orchestrator.apply.adapters import (
    adapter_notes,
    held_adapters,
    held_by,
    known_ranks,
    shared,
    takes_adapters,
    with_ranks,
)
from orchestrator.apply.fleets import FleetPlan, fleet_template, plan_fleet
from orchestrator.apply.inputs import read_inputs
from orchestrator.apply.notes import action_notes, port_notes, shares_ports, taken_once, volume_notes
from orchestrator.apply.placing import AskedOffers, Engine, Placing
from orchestrator.apply.plans import Difference, Plan, RunPlan, VolumePlan, World
from orchestrator.apply.sets import Deletion, deletions, joined, joining
from orchestrator.apply.templates import all_scale, in_place, rescaled, scales_now, updated
from orchestrator.backend import Can, Offer, Rent
from orchestrator.errors import NothingFits, Problem, SpecError, UsageError
from orchestrator.planner.ask import Work, demand_of, fleet_demand, runs_bare
from orchestrator.planner.compose import Inputs, compose, opens_itself
from orchestrator.planner.demand import Demand
from orchestrator.planner.plan import Action, Choice, Placed, place
from orchestrator.reconcile import Run, Template, Wanted
from orchestrator.reconcile.serving import adapters_of
from orchestrator.spec.load import Document
from orchestrator.spec.models import DevEnvironment, Fleet, Service, Task, Volume, changes, spec_of
from orchestrator.spec.parts import IN_PLACE, REPLACE, Change
from orchestrator.spec.unheeded import unheeded

if TYPE_CHECKING:  # catalog, sizing and engines: a third of a plan's time, and only for a model
    from orchestrator.planner.serve import Served


def plan_documents(documents: Sequence[Document], world: World) -> tuple[Plan, ...]:
    """Return what would be done, in the order it would be done; same input, same plan.

    Fleets and volumes come first, since runs use them, then runs, each in the order of the documents,
    then what the world's set no longer has.

    Raises:
        NothingFits: no offer holds one or more of them; it carries the reasons of each.
        SpecError: a file that a spec names cannot be read or, where the world is strict, a spec
            contradicts its model; all problems of all documents, with the values that nobody gave.
        UsageError: a document cannot take the place of what is on record.
    """
    declared = {d.spec.name: d.spec for d in documents if isinstance(d.spec, Volume)}
    services = {
        d.spec.name: runs_bare(d.spec, world.places)
        for d in documents
        if isinstance(d.spec, Service) and takes_adapters(d.spec)
    }
    rented = [d.spec for d in documents if isinstance(d.spec, Fleet) and d.spec.nodes is not None]
    offers = AskedOffers(world, declared, rented, services)
    fleets: list[FleetPlan] = []
    volumes: list[VolumePlan] = []
    runs: list[RunPlan] = []
    homeless: list[NothingFits] = []
    wrong: list[Problem] = []
    for document in documents:
        spec = document.spec
        try:
            if isinstance(spec, Volume):
                volumes.append(_plan_volume(document, spec, world))
            elif isinstance(spec, Fleet):
                fleets.append(_rented(_plan_fleet(document, spec, world), world, offers))
            else:
                runs.append(_told_of_set(_plan_run(document, spec, world, offers), world))
        except NothingFits as error:
            homeless.append(error)
        except SpecError as error:
            unset = world.unset(document, spec) if world.strict and not isinstance(spec, Volume) else ()
            wrong += (*error.problems, *unset)
    if wrong:
        planned: list[FleetPlan | RunPlan] = [*fleets, *runs] if world.strict else []
        raise SpecError([*wrong, *(each for plan in planned for each in plan.problems)])
    if homeless:
        first, *others = homeless
        first.also = tuple(others)
        raise first
    return (*fleets, *volumes, *runs, *_deletions(fleets, volumes, runs, world))


def _plan_fleet(document: Document, spec: Fleet, world: World) -> FleetPlan:
    known = world.fleets.get(spec.name)
    taken = spec.name in world.places and spec.name not in world.expected
    plan = plan_fleet(document, spec, known, taken=taken, scope=world.scope)
    return replace(plan, problems=tuple(world.unset(document, spec))) if spec.env else plan


def _rented(plan: FleetPlan, world: World, offers: AskedOffers) -> FleetPlan:
    """Return the plan of a fleet with where its machines are rented; one of one's own as it is."""
    spec, run = plan.spec, world.runs.get(plan.name)
    if run is not None and run.type != "fleet":
        raise UsageError(f"a run is called {plan.name!r} already", fix="choose another name for the fleet")
    if run is not None and run.wanted is Wanted.DELETE:
        raise UsageError(f"fleet {run.name!r} is being deleted", fix=f"modelyard fleet delete {run.name}")
    if spec.nodes is None:
        return plan
    over = run is None or run.state.is_final
    # a run that moved meanwhile keeps the machines it was told of, while the fleet is written down anew
    told = run is not None and not changes(spec_of(json.loads(run.spec)), spec)
    if plan.action == "unchanged" and told and not over:
        return plan
    action: Action = ("rerun" if over else "update") if plan.action == "unchanged" else plan.action
    demand = fleet_demand(spec, places=world.places, names=world.names)
    placed = place(demand, offers.index(), what=f"fleet {spec.name!r}", where=plan.document.position)
    backends, rents = _places(placed, demand, shared=True)
    return replace(
        plan, action=action, placed=placed, run=run, serving=_serving(None, placed.choices[0], world),
        template=fleet_template(spec, backends=backends, rents=rents),
    )  # fmt: skip


def _deletions(
    fleets: Sequence[FleetPlan], volumes: Sequence[VolumePlan], runs: Sequence[RunPlan], world: World
) -> tuple[Deletion, ...]:
    kept = {("volume", plan.name) for plan in volumes} | {("run", plan.name) for plan in runs}
    kept |= {("fleet", plan.name) for plan in fleets}
    uses = {mount.name: plan.name for plan in runs for mount in plan.spec.volumes if mount.name}
    return deletions(
        world.scope, kept=kept, runs=world.runs, volumes=world.volumes, uses=uses, fleets=world.fleets
    )


def diff_documents(documents: Sequence[Document], world: World) -> tuple[Difference, ...]:
    """Return how every document differs from the record; asks no backend.

    Raises:
        SpecError: a file that a spec names cannot be read.
        UsageError: a document cannot take the place of what is on record.
    """
    found: list[Difference] = []
    for document in documents:
        spec = document.spec
        if isinstance(spec, Volume):
            volume = _plan_volume(document, spec, world)
            found.append(Difference(spec.name, spec.type, volume.action, volume.changes))
        elif isinstance(spec, Fleet):
            fleet = _plan_fleet(document, spec, world)
            found.append(Difference(spec.name, spec.type, fleet.action, fleet.changes))
        elif isinstance(spec, Task | Service | DevEnvironment):
            run = world.runs.get(spec.name)
            held = held_by(spec, run, known_ranks(document, spec, world.rank_of))
            hash_of = partial(fingerprint, inputs=read_inputs(document, spec), held=held)
            _, _, action, changed = _compared(spec, run, world, hash_of)
            found.append(Difference(spec.name, spec.type, action, changed))
    return tuple(found)


def _plan_run(document: Document, spec: Work, world: World, offers: AskedOffers) -> RunPlan:
    run = world.runs.get(spec.name)
    inputs = read_inputs(document, spec)
    ranks = known_ranks(document, spec, world.rank_of)
    held = held_by(spec, run, ranks)
    hash_of = partial(fingerprint, inputs=inputs, held=held)
    spec, spec_hash, action, changed = _compared(spec, run, world, hash_of)
    there = run.set_name if run else ""
    joins = joined(spec.name, there, world.scope)
    if run and (moves := joining(there, joins)):
        changed += moves
        action = "update" if action == "unchanged" else action
    plan = RunPlan(document, spec, action, spec_hash, changed, run=run, set_name=joins, held=held)
    if action == "unchanged":
        return plan
    plan = replace(plan, problems=tuple(world.unset(document, spec)))
    if isinstance(spec, Service) and spec.base:
        return replace(plan, template=shared(document, spec, world.runs, offers.services, ranks))
    if action == "update" and run:
        template = in_place(run, spec, scales=scales_now(run.template, world.places))
        return replace(plan, template=template, notes=tuple(adapter_notes(template, adapters_of(run.plan))))
    demand = demand_of(spec, places=world.places, names=world.names)
    if not demand.zones and (zones := _zones_of(spec, offers)):
        demand = replace(demand, zones=zones)
    replaced = run if action == "replace" else None
    placing = Placing(document, with_ranks(spec, ranks), demand, offers, replaced)
    engine = placing.engine(world.facts)
    placed, surge = (engine.placed, engine.beside) if engine else placing.plain()
    demand = engine.taken(demand) if engine else demand
    serving = _serving(engine, placed.choices[0], world)
    takes = adapters_of(serving)
    if engine and engine.served:  # only now it is known what a change of its adapters would take
        held = held_adapters(spec, takes, bare=not engine.launch.image, ranks=ranks)
        spec_hash = fingerprint(spec, inputs, held)
    launch = compose(spec, spec_hash=spec_hash, inputs=inputs, offer=placed.choices[0].offer, demand=demand)
    follower = engine.onto(launch, engine.follower) if engine and engine.follower else None
    if engine:
        launch = engine.onto(launch, engine.launch)
    launch = world.mirrors.launch(launch)
    follower = world.mirrors.launch(follower) if follower else None
    taken_notes = taken_once(document, spec, launch, placed, offers)
    surge = surge and isinstance(spec, Service) and all(port.host is None for port in launch.ports)
    own = opens_itself(spec) if shares_ports(placed, world) else False
    surge = surge and own is not True
    backends, rents = _places(placed, demand)
    # a disk of a cloud is at one machine at a time: a successor would wait for it, and be waited for
    surge = surge and not (any(mount.name for mount in spec.volumes) and any(rents))
    resumes = engine is not None and engine.trained is not None
    template = Template(
        launch, backends, follower, nodes=demand.nodes, surge=surge, rents=rents, resumes=resumes,
        scales=all_scale(backends, demand.places),
        serves=_serves(spec, engine.served) if engine and engine.served else (),
    )  # fmt: skip
    canary = (spec.rollout.weight or 0) if isinstance(spec, Service) else 0
    return replace(
        plan, demand=demand, placed=placed, spec_hash=spec_hash, held=held,
        served=engine.served if engine else None, trained=engine.trained if engine else None,
        template=updated(
            template, spec, least_grace_s=engine.launch.stop_grace_s if engine else 0.0,
            kept=run.template.replicas if action == "replace" and run else 0,
            metrics=engine.served.launch.metrics if engine and engine.served else None, takes=takes,
        ),
        notes=(
            *action_notes(action, surge, engine, run, canary),
            *port_notes(spec, action, own),
            *taken_notes,
            *volume_notes(spec, offers),
            *(f"{found.path}: {found.what}" for found in unheeded(spec)),
        ),
        serving=serving,
    )  # fmt: skip


def _told_of_set(plan: RunPlan, world: World) -> RunPlan:
    """Return a plan that says whose word is about to be changed, where nobody named the run's set."""
    if plan.action == "unchanged" or not plan.set_name or world.scope.name:
        return plan
    note = (
        f"set {plan.set_name!r} has it: whoever applies that set, as a server's sync, puts back what differs"
    )
    return replace(plan, notes=(*plan.notes, note))


def _places(
    placed: Placed, demand: Demand, *, shared: bool = False
) -> tuple[tuple[str, ...], tuple[Rent | None, ...]]:
    """Return the backends to try, and what each rents; no rents where none does.

    Of machines that launches are to share it is told what there is to share.
    """
    rents = tuple(
        _rent(offer, shared=shared) if Can.RENT in demand.places.get(offer.backend, ()) else None
        for offer in placed.tries
    )
    return tuple(offer.backend for offer in placed.tries), rents if any(rents) else ()


def _rent(offer: Offer, *, shared: bool) -> Rent:
    rent = Rent(
        offer.instance_type, offer.region, offer.zone, offer.spot, offer.price_usd_hour, offer.reservation,
        offer.accelerator, offer.vendor, offer.count, offer.vram_bytes, offer.compute_capability,
    )  # fmt: skip
    if offer.growth is not None:
        rent = replace(rent, disk_bytes=offer.disk_bytes or 0)
    return replace(rent, cpu=offer.cpu, memory_bytes=offer.memory_bytes) if shared else rent


def fingerprint(spec: Work, inputs: Inputs, held: str = "") -> str:
    """Return the hash of all that needs new containers when it changes.

    That is the spec's, its files', and ``held``: what containers hold of adapters (``held_adapters``).
    """
    parts = [spec.hash(), *(part for part in (inputs.digest, held) if part)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest() if len(parts) > 1 else parts[0]


def _starts_again(spec: Work, world: World) -> bool:
    """Return whether a run of ``spec`` that has ended is asked to start again."""
    return world.rerun or (world.resume and isinstance(spec, Task) and spec.train is not None)


def _compared(
    spec: Work, run: Run | None, world: World, hash_of: Callable[[Work], str]
) -> tuple[Work, str, Action, tuple[Change, ...]]:
    """Return a spec with its hash, what has to be done to the run on record, and the fields that differ.

    A task that came to its end keeps the tags it had, where nothing else changed: nothing is left to bear
    others, and no work is done again for them.
    """
    spec_hash = hash_of(spec)
    action, changed = _compare(spec, spec_hash, run, world)
    if (
        action == "rerun"
        and run
        and isinstance(spec, Task)
        and any(c.path.startswith("tags") for c in changed)
    ):
        ended = spec.model_copy(update={"tags": json.loads(run.spec).get("tags", {})})
        its_hash = hash_of(ended)
        if _compare(ended, its_hash, run, world)[0] == "unchanged":
            return ended, its_hash, "unchanged", ()
    return spec, spec_hash, action, changed


def _compare(spec: Work, spec_hash: str, run: Run | None, world: World) -> tuple[Action, tuple[Change, ...]]:
    """Return what has to be done to the run on record, and the fields that differ."""
    if run is None:
        return "create", ()
    if run.wanted is Wanted.DELETE:
        raise UsageError(f"run {run.name!r} is being deleted", fix=f"modelyard wait {run.name} --for deleted")
    if run.type != spec.type:
        raise UsageError(
            f"{run.name!r} is a {run.type} on record and a {spec.type} here",
            fix=f"choose another name, or modelyard delete {run.name}",
        )
    changed = changes(spec_of(json.loads(run.spec)), spec)
    if spec_hash != run.spec_hash and changed and all(change.mark == IN_PLACE for change in changed):
        # adapters that the engine cannot take while it runs, or not from where they are
        changed = tuple(
            replace(each, mark=REPLACE) if each.path.startswith("model.adapters") else each
            for each in changed
        )
    over = run.state.is_final or run.wanted is Wanted.STOP
    if spec_hash != run.spec_hash:
        return ("rerun" if over else "replace"), changed
    kept_up = not isinstance(spec, Task)
    if over and (_starts_again(spec, world) or kept_up or run.wanted is Wanted.STOP):
        return "rerun", changed
    changed += rescaled(run, spec, world.places)
    return ("update" if changed else "unchanged"), changed


def _serves(spec: Work, served: Served) -> tuple[str, ...]:
    """Return what requests call the model, and its adapters, each once."""
    assert isinstance(spec, Service)  # nothing else is served
    model = [spec.model.id, *(adapter.name for adapter in spec.model.adapters)] if spec.model else []
    return tuple(dict.fromkeys(filter(None, [*model, served.launch.model_name])))


def _serving(engine: Engine | None, choice: Choice, world: World) -> str:
    """Return what has to be known later of the engine and the offer that the plan chose, as JSON.

    A cluster keeps its replicas by their commands: there nothing is loaded while one runs.
    """
    price_usd_hour = choice.price_usd_hour
    told: dict[str, object] = {"price_usd_hour": price_usd_hour} if price_usd_hour else {}
    if engine is None:
        return json.dumps(told)
    told["least_grace_s"] = engine.launch.stop_grace_s
    served = engine.served
    if served is None:
        return json.dumps(told, sort_keys=True)
    launch = served.launch
    serving: dict[str, object] = {
        "engine": served.engine,
        "version": served.version,
        "model_name": launch.model_name,
        "routes": launch.routes,
        "metrics": asdict(launch.metrics) if launch.metrics else None,
    }
    if launch.adapters and Can.GROUPS not in world.places[choice.offer.backend]:
        serving["adapters"] = asdict(launch.adapters)
    return json.dumps({"serving": serving, **told}, sort_keys=True)


def _zones_of(spec: Work, offers: AskedOffers) -> frozenset[str]:
    """Return the zones that machines with the spec's volumes can be in; none where any may do."""
    found: set[str] = set()
    for mount in spec.volumes:
        kept = offers.world.volumes.get(mount.name or "")
        volume = offers.declared.get(mount.name or "") or (spec_of(json.loads(kept.spec)) if kept else None)
        if isinstance(volume, Volume) and volume.availability_zone:
            place = (kept.backend if kept else volume.backend) or ""
            if Can.RENT in offers.world.places.get(place, frozenset()):
                found.add(volume.availability_zone)
    return frozenset(found)


def _plan_volume(document: Document, spec: Volume, world: World) -> VolumePlan:
    able = [name for name, can in world.places.items() if Can.VOLUMES in can]
    backend = spec.backend or (able[0] if able else "")
    if backend not in able:
        raise NothingFits(
            f"no backend keeps volume {spec.name!r}",
            where=document.position,
            fix="configure a backend with volumes, such as docker",
        )
    known = world.volumes.get(spec.name)
    joins = joined(spec.name, known.set_name if known else "", world.scope)
    if known is None:
        return VolumePlan(document, spec, "create", backend, set_name=joins)
    changed = changes(spec_of(json.loads(known.spec)), spec)
    if any(change.mark == "replace" for change in changed):
        raise UsageError(
            f"volume {spec.name!r} cannot change its {changed[0].path}: what it holds would be lost",
            fix=f"choose another name, or modelyard volume delete {spec.name}",
        )
    changed += joining(known.set_name, joins)
    action: Action = "update" if changed else "unchanged"
    return VolumePlan(document, spec, action, backend, changed, joins)
