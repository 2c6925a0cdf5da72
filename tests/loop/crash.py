"""Kill a process at every boundary, and let the next one finish: ``python -m tests.loop.crash BACKEND``.

A *story* is what a user does: apply, replace, stop, delete. It is played by a child process that
dies by SIGKILL at its n-th boundary, before or after a commit or a call to the backend. Then one
more child plays nothing and only drives; whatever was killed, the world must be as it was asked
to be, with nothing started twice and nothing left that nobody owns.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from backends.sim import Script, Sim
from orchestrator.backend import Backend, Instance, Launch, Phase
from orchestrator.errors import NotFound
from orchestrator.loop import Hooks, Loop
from orchestrator.reconcile import Retry, Run, RunState, Template, Wanted
from orchestrator.reconcile.steps import Turn
from orchestrator.store import open_store
from orchestrator.store.leases import this_owner
from orchestrator.store.records import Store

NODES = {"sim": 2, "docker": 1}
"""Nodes of the story's task; one on Docker, where each container takes half a second."""
RETRY = Retry(frozenset({"no-capacity", "interruption", "error"}), first_s=0.05, most_s=0.2)


@dataclass(frozen=True)
class Outcome:
    """What was found after one kill and one recovery."""

    boundary: int
    died_at: str
    recovered: bool
    doubled: tuple[str, ...]
    orphaned: tuple[str, ...]


def make_backend(kind: str, folder: Path) -> Backend:
    """Return the backend of one world, the same in every process."""
    if kind == "sim":
        return Sim(state=folder / "sim.jsonl", script={"*": Script(boot_s=0.01)})
    from backends.docker import Docker

    return Docker("docker", namespace=f"modelyard-test-{folder.name[-8:]}")


def template(kind: str, spec_hash: str) -> Template:
    """Return a run that goes on until it is stopped."""
    if kind == "sim":
        launch = Launch("work-0-0-0", "work", spec_hash=spec_hash)
    else:
        from tests.images import busybox

        say = f"echo {spec_hash} >> /dev/null; trap 'exit 0' TERM; while :; do sleep 0.1; done"
        launch = Launch(
            "work-0-0-0",
            "work",
            spec_hash=spec_hash,
            image=busybox(),
            command=("sh", "-c", say),
            stop_grace_s=5.0,
            host_network=True,
        )
    return Template(launch, (kind,), nodes=NODES[kind], retry=RETRY)


# The child ---------------------------------------------------------------------------------------


def play(kind: str, folder: Path, die_at: int, inside: bool = False) -> None:
    """Play the story in this process, and die at the ``die_at``-th boundary.

    With ``inside`` the kill falls between Docker's making of a container and its start.
    """
    if inside:
        from docker.api.container import ContainerApiMixin

        ContainerApiMixin.start = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
    passed = 0

    def boundary(step: str) -> None:
        nonlocal passed
        passed += 1
        if passed == die_at:
            (folder / "died").write_text(step)
            os.kill(os.getpid(), signal.SIGKILL)

    backend = make_backend(kind, folder)
    with open_store(f"sqlite:///{folder}/state.db") as store:
        hooks = Hooks(boundary=boundary)
        for move in story(kind, store):
            move()
            with Loop(store, {kind: backend}, owner=this_owner(), hooks=hooks) as loop:
                loop.drive(lambda: at_rest(store, kind), timeout_s=60)


def story(kind: str, store: Store) -> Iterator[Callable[[], None]]:
    """Yield what a user does, one thing after the other; a successor skips what was written."""
    yield lambda: _write(store, kind, "a", Wanted.RUN, only_new=True)
    yield lambda: _write(store, kind, "b", Wanted.RUN)
    yield lambda: _write(store, kind, "b", Wanted.STOP)
    yield lambda: _write(store, kind, "b", Wanted.DELETE)


def _write(store: Store, kind: str, spec_hash: str, wanted: Wanted, *, only_new: bool = False) -> None:
    now = datetime.now(UTC)
    try:
        old = store.run("work")
    except NotFound:
        if not only_new:
            return
        run = Run("id", "work", "task", "{}", spec_hash, template(kind, spec_hash), now, created_at=now)
        store.commit([Turn(run, None)], expected={"id": 0})
        return
    if only_new:
        return
    run = replace(old, wanted=wanted)
    if old.spec_hash != spec_hash:
        changed = template(kind, spec_hash)
        run = replace(run, spec_hash=spec_hash, template=changed, since=now, state=RunState.QUEUED)
    store.commit([Turn(run, None)], expected={"id": old.serial})


def at_rest(store: Store, kind: str) -> bool:
    """Return whether the one run is where it was asked to be."""
    try:
        run = store.run("work")
    except NotFound:
        return True
    live = [job for job in store.jobs(run.id) if not job.state.is_final]
    match run.wanted:
        case Wanted.RUN:
            current = all(j.spec_hash == run.spec_hash and not j.stop_asked_at for j in live)
            return run.state is RunState.RUNNING and current and len(live) == NODES[kind]
        case Wanted.STOP:
            return run.state.is_final and not live
        case Wanted.DELETE:
            return False


# The driver --------------------------------------------------------------------------------------


_SPAWN = multiprocessing.get_context("forkserver")
_SPAWN.set_forkserver_preload(["tests.loop.crash"])  # imports once: a child then costs milliseconds


def child(kind: str, folder: Path, die_at: int, *, inside: bool = False) -> bool:
    """Play in a process of its own; return whether it lived to the end of the story."""
    process = _SPAWN.Process(target=play, args=(kind, folder, die_at, inside))
    process.start()
    process.join()
    if process.exitcode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the child ended with {process.exitcode} and was not killed")
    return process.exitcode == 0


def recover(kind: str, folder: Path) -> Outcome:
    """Drive what a killed process left, from wherever it was, and look at the world."""
    backend = make_backend(kind, folder)
    died = (folder / "died").read_text() if (folder / "died").exists() else ""
    with open_store(f"sqlite:///{folder}/state.db") as store:
        with Loop(store, {kind: backend}, owner=this_owner()) as loop:
            settled = loop.drive(lambda: at_rest(store, kind), timeout_s=60)
        known = {job.name for run in store.runs() for job in store.jobs(run.id)}
        alive = [i for i in backend.instances() if i.phase is not Phase.EXITED]
        orphaned = tuple(i.name for i in alive if i.name not in known)
        doubled = tuple(_doubled(backend, alive, folder))
        wanted = NODES[kind] if store.runs() and store.run("work").wanted is Wanted.RUN else 0
        recovered = settled and len(alive) == wanted
    return Outcome(0, died, recovered, doubled, orphaned)


def _doubled(backend: Backend, alive: list[Instance], folder: Path) -> Iterator[str]:
    """Yield launches of which there are two: by place while they live, by name in the sim's journal."""
    places = [(i.replica, i.node) for i in alive]
    yield from (str(place) for place in set(places) if places.count(place) > 1)
    if isinstance(backend, Sim):
        yield from (name for name, count in backend.starts.items() if count > 1)


def clean(kind: str, folder: Path) -> None:
    """Remove what a world left behind."""
    backend = make_backend(kind, folder)
    for instance in backend.instances():
        backend.remove(instance.name)


def outcomes(kind: str) -> Iterator[Outcome]:
    """Yield one outcome per boundary of the story, until a child lives to its end."""
    boundary = 0
    while True:
        boundary += 1
        with tempfile.TemporaryDirectory(prefix="crash") as name:
            folder = Path(name)
            if child(kind, folder, boundary):
                clean(kind, folder)
                return
            try:
                yield replace(recover(kind, folder), boundary=boundary)
            finally:
                clean(kind, folder)


def main(arguments: list[str]) -> int:
    """Print a line per boundary and a summary; return 1 when one was not recovered from."""
    kinds = arguments or list(NODES)
    bad = 0
    for kind in kinds:
        found = list(outcomes(kind))
        for o in found:
            verdict = json.dumps([o.recovered, o.doubled, o.orphaned])
            print(f"{kind:<7} {o.boundary:>3}  {o.died_at:<14} {verdict}")
        recovered = sum(o.recovered for o in found)
        doubled, orphaned = (sum(bool(getattr(o, what)) for o in found) for what in ("doubled", "orphaned"))
        print(
            f"{kind}: {len(found)} boundaries, {recovered} recovered, {doubled} doubled, {orphaned} orphaned"
        )
        bad += len(found) - recovered + doubled + orphaned
    return 1 if bad else 0


if __name__ == "__main__":
    # under its own name, so that the fork server finds the same module
    from tests.loop import crash

    sys.exit(crash.main(sys.argv[1:]))
