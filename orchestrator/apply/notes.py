"""What a plan says of a document beside its actions: who reviews it should know."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.apply.placing import AskedOffers, Engine
from orchestrator.apply.plans import World
from orchestrator.backend import Can, Launch
from orchestrator.errors import NothingFits, Refusal
from orchestrator.planner.ask import Work
from orchestrator.planner.compose import fixed_port
from orchestrator.planner.plan import Action, Placed
from orchestrator.reconcile import Run, RunState
from orchestrator.spec.load import Document
from orchestrator.spec.models import Service


def action_notes(
    action: Action, surge: bool, engine: Engine | None, run: Run | None, canary: int
) -> tuple[str, ...]:
    """Say what an engine gives up, and how what runs is replaced."""
    notes: list[str] = []
    if engine and engine.served:
        notes += [engine.served.lowered] if engine.served.lowered else []
        notes += engine.served.notes
    if engine and engine.trained:
        notes += (*engine.launch.warnings, *engine.notes)
    if action == "replace":
        ready = "the new replica is ready before the old one is stopped"
        notes.append(ready if surge else "the old one is stopped first")
        if canary and not surge:
            notes.append("there is no room for a canary: nothing starts until rollout.weight is removed")
        elif canary:
            notes.append(f"one replica of it gets {canary} % of the requests until rollout.weight is removed")
    if loses_work(action, run):
        notes.append("it is running: apply needs --allow-replace")
    return tuple(notes)


def shares_ports(placed: Placed, world: World) -> bool:
    """Return whether launches of the chosen place share the ports of one machine: no image, no network."""
    return Can.IMAGES not in world.places[placed.choices[0].offer.backend]


def port_notes(spec: Work, action: Action, own: bool | None) -> Iterator[str]:
    """Say what becomes of a service whose commands open a port of their own choice."""
    if own is False or not isinstance(spec, Service) or not spec.port or not spec.commands:
        return
    number = spec.port.container_port
    if own and (spec.replicas.max or 0) > 1:
        yield f"its commands open port {number}: a second replica here has to listen on $MODELYARD_PORT"
    elif own:
        yield f"its commands open port {number}: to be replaced without a gap, listen on $MODELYARD_PORT"
    elif action == "replace":
        yield f"the new replica has to listen on $MODELYARD_PORT: the old one has port {number}"


def taken_once(
    document: Document, spec: Work, launch: Launch, placed: Placed, offers: AskedOffers
) -> tuple[str, ...]:
    """Say that further replicas cannot have a port of the machine that one has, where places are few.

    Raises:
        NothingFits: not even the least number of replicas can.
    """
    fixed = fixed_port(spec, launch)
    machines = offers.own_machines(placed) if fixed else None
    if fixed is None or machines is None or not isinstance(spec, Service):
        return ()
    least, most = spec.replicas.min or 0, spec.replicas.max or 0
    if least > machines:
        raise NothingFits(
            f"no offer fits service {spec.name!r}",
            needs=f"{least} machines: port {fixed.number} of one leads to one replica",
            refused=(Refusal(f"with one port {fixed.number}", machines), *placed.refused),
            where=document.at(fixed.path), fix=fixed.fix,
        )  # fmt: skip
    if most <= machines:
        return ()
    here = "the one machine" if machines == 1 else f"each of the {machines} machines"
    return (f"of {most} replicas {machines} can start: port {fixed.number} of {here} leads to one replica",)


def volume_notes(spec: Work, offers: AskedOffers) -> Iterator[str]:
    """Say which volumes nobody declares: a place that has not got them refuses to start the launch."""
    known = {*offers.declared, *offers.world.volumes}
    for mount in spec.volumes:
        if mount.name and not mount.optional and mount.name not in known:
            yield f"volume {mount.name}: neither declared here nor on record; it starts where it is there"


def loses_work(action: Action, run: Run | None) -> bool:
    """Say whether ``action`` stops a task that has begun; a service hands over, a task begins again."""
    begun = run is not None and run.type == "task" and run.state is not RunState.QUEUED
    return action == "replace" and begun
