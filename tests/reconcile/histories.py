"""Random histories of a world: users, failures, outages, crashes and lost records, in any order."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import replace

from backends.sim import Script, Sim
from orchestrator.backend import Phase
from orchestrator.reconcile import RunState, Template, Wanted
from orchestrator.reconcile.steps import Record, Start, Stop, Turn
from tests.reconcile.world import PATIENT, Reconcile, World

RUNS = ("chat", "embed", "sft")  # few, so that what happens meets
SCRIPTS = (
    Script(),
    Script(boot_s=15),
    Script(ready_s=20),
    Script(boot_s=5, ready_s=5, stubborn=True),
    Script(run_s=40),
    Script(run_s=3, exit_code=1),
    Script(run_s=30, exit_code=137, reason="oom"),
    Script(refuse="no-capacity"),
    Script(refuse="busy"),
    Script(refuse="rejected"),
    Script(lost_answer=True),
)
HEALTHY = {"chat": Script(), "embed": Script(), "sft": Script(run_s=30)}


class Broken(AssertionError):
    """Something that must never happen did."""


def play(seed: int, steps: int, reconcile: Reconcile) -> World:
    """Play one history and let the world come to rest; return it, with every law held.

    Raises:
        Broken: a law did not hold.
    """
    chance = random.Random(seed)
    world = World(reconcile=reconcile)
    for _ in range(steps):
        chance.choices([m for m, _ in MOVES], [w for _, w in MOVES])[0](world, chance)
        hold_laws(world)
    heal(world)
    try:
        world.settle(most=400, tick_s=10)
    except AssertionError as error:
        raise Broken(str(error)) from None
    hold_laws(world)
    hold_rest(world)
    hold_chain(world)
    return world


def play_all(seeds: Iterable[int], steps: int, reconcile: Reconcile) -> None:
    """Play one history per seed."""
    for seed in seeds:
        play(seed, steps, reconcile)


def heal(world: World) -> None:
    """End every outage, and let everything that starts from now on do well."""
    world.scripts = dict(HEALTHY)
    for place in world.places.values():
        place.unreachable = False


def hold_laws(world: World) -> None:
    """Check what must hold at every moment."""
    if doubled := {name: count for name, count in world.started().items() if count > 1}:
        raise Broken(f"started twice: {doubled}")
    for run in world.runs.values():
        alive = world.alive(run.name)
        for replica in {i.replica for i in alive}:
            attempts = {i.attempt for i in alive if i.replica == replica}
            if len(attempts) > (2 if run.template.surge else 1):
                raise Broken(f"{run.name}: attempts {attempts} of replica {replica} live at once")


def hold_rest(world: World) -> None:
    """Check what must hold once nothing more happens: the world is as it was asked to be."""
    known = set(world.runs)
    if strangers := [i.name for i in world.alive() if i.run not in known]:
        raise Broken(f"nobody owns {strangers}")
    for run in world.runs.values():
        alive = sorted((i.replica, i.node) for i in world.alive(run.name))
        if run.wanted is Wanted.DELETE:
            raise Broken(f"{run.name} was to be deleted and is {run.state}")
        if run.state.is_final:
            wanted = []
        else:
            template = run.template
            wanted = [(r, n) for r in range(template.replicas) for n in range(template.nodes)]
        if not run.state.is_final and run.reason:  # some replica, or a whole rollout, was given up
            if not set(alive) <= set(wanted):
                raise Broken(f"{run.name} says {run.reason!r}, and {alive} live")
            continue
        if alive != wanted:
            raise Broken(f"{run.name} is {run.state}, {alive} live and {wanted} are wanted")
        if stale := [i.name for i in world.alive(run.name) if i.spec_hash != run.spec_hash]:
            raise Broken(f"{stale} run an old spec")
        if run.state is RunState.FAILED and not run.reason:
            raise Broken(f"{run.name} failed without a reason")
        rest = RunState.RUNNING if run.type == "task" else RunState.READY
        if not run.state.is_final and run.state is not rest:
            raise Broken(f"{run.name} came to rest as {run.state}")


def hold_chain(world: World) -> None:
    """Check that the events of a launch hang together: each begins where the one before ended."""
    told: dict[str, str] = {}
    for event in world.events:
        before, told[event.subject] = told.get(event.subject, ""), event.after
        # "": it was found again; a start may be refused after the launch was asked to end
        expected = (before, "", "provisioning") if event.after == "failed" else (before, "")
        if event.subject != event.run and event.before not in expected:
            raise Broken(f"{event.subject} was {before} and went from {event.before} to {event.after}")


# Moves -------------------------------------------------------------------------------------------


def apply(world: World, chance: random.Random) -> None:
    """A user applies a spec: new, the same, changed in place or for good."""
    name = chance.choice(RUNS)
    world.scripts[name] = chance.choice(SCRIPTS)
    if name in world.runs and world.runs[name].wanted is Wanted.DELETE:
        return
    spec_hash = chance.choice("ab")
    if name == "sft":
        shape = {"type": "task", "nodes": 1 if spec_hash == "a" else 2}
    else:
        shape = {"type": "service", "replicas": chance.choice((0, 1, 2)), "surge": name == "chat"}
    world.apply(name, spec_hash=spec_hash, retry=PATIENT, **shape)


def ask(world: World, chance: random.Random) -> None:
    """A user stops or deletes a run."""
    world.want(chance.choice(RUNS), chance.choice((Wanted.STOP, Wanted.DELETE)))


def look(world: World, chance: random.Random) -> None:
    """A whole pass."""
    world.step()


def crash(world: World, chance: random.Random) -> None:
    """A pass that dies after it wrote: some of its actions were carried out, the rest never."""
    actions = world.decide()
    effects = [a for a in actions if not isinstance(a, Record | Turn)]
    world.act(effects[: chance.randint(0, len(effects))])
    world.asked_here.clear()


def wait(world: World, chance: random.Random) -> None:
    """Time goes by."""
    world.clock.advance(chance.choice((1, 7, 31)))


def outage(world: World, chance: random.Random) -> None:
    """A place stops answering, or answers again."""
    place = _place(world, chance)
    place.unreachable = not place.unreachable


def die(world: World, chance: random.Random) -> None:
    """A launch ends by itself, is taken away, or vanishes."""
    place = _place(world, chance)
    if place.unreachable:
        return
    alive = [i for i in place.instances() if i.phase is not Phase.EXITED]
    if not alive:
        return
    name = chance.choice(alive).name
    match chance.randrange(3):
        case 0:
            place.end(name, 1, "error")
        case 1:
            place.end(name, 137, "preempted")
        case _ if world.is_known(name):  # else nobody can know that it was ever there
            place.remove(name)


def _place(world: World, chance: random.Random) -> Sim:
    return world.places[chance.choice(("near", "far"))]


def lose_record(world: World, chance: random.Random) -> None:
    """The store loses what it knew of a run's jobs, and of what became of the run."""
    if not world.runs or any(place.unreachable for place in world.places.values()):
        return
    run = world.runs[chance.choice(sorted(world.runs))]
    if run.wanted is Wanted.RUN and not run.state.is_final:
        world.forget_starts(run.name)  # of what is neither on record nor there, nobody can know
        world.jobs.pop(run.id, None)
        world.runs[run.name] = replace(run, state=RunState.QUEUED, ready=0)


MOVES: tuple[tuple[Callable[[World, random.Random], None], int], ...] = (
    (apply, 6),
    (ask, 2),
    (look, 20),
    (crash, 4),
    (wait, 8),
    (outage, 2),
    (die, 3),
    (lose_record, 1),
)

__all__ = ["HEALTHY", "Broken", "Start", "Stop", "Template", "play"]
