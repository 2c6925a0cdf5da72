"""What a pass over a run sees, and the steps that it can ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from datetime import datetime

from orchestrator.backend import Group, Instance, Launch
from orchestrator.engines.failures import Failure
from orchestrator.frozen import frozen
from orchestrator.reconcile.values import Job, Loaded, Run, RunEvent, Wanted


@frozen
class Record:
    """Write down what became of a launch."""

    job: Job
    event: RunEvent | None


@frozen
class Turn:
    """Write down what became of a run."""

    run: Run
    event: RunEvent | None


def asking(run: Run, wanted: Wanted, *, at: datetime, cause: str, message: str = "") -> Turn:
    """Return the turn of a run that is asked to end, with the event that says by what."""
    asked = run.asked(wanted)
    before, after = run.state.value, asked.state.value
    return Turn(asked, RunEvent(run.id, run.name, at, run.name, before, after, cause, message=message))


def by_hand(wanted: Wanted) -> str:
    """Return the cause of an event where somebody asked for it.

    >>> by_hand(Wanted.STOP)
    'stop asked for'
    """
    return f"{wanted.value} asked for"


@frozen
class Forget:
    """Drop a deleted run and its jobs from the record; its events stay."""

    run: Run
    event: RunEvent


@frozen
class ForgetJob:
    """Drop a launch that ended long ago from the record; its events stay."""

    job: Job
    event: None = None


@frozen
class Told:
    """Write down what a launch told; nothing else of it changes."""

    event: RunEvent


@frozen
class Start:
    """Ask a backend to start a launch."""

    backend: str
    job: Job
    launch: Launch


@frozen
class Stop:
    """Ask a backend to end a launch."""

    backend: str
    name: str
    grace_s: float


@frozen
class Remove:
    """Ask a backend to forget an ended launch."""

    backend: str
    name: str


@frozen
class Release:
    """Ask a backend to give the machine of an ended launch back, or keep it for ``keep_s``."""

    backend: str
    name: str
    keep_s: float | None


@frozen
class ApplyGroup:
    """Ask a cluster to keep a group as it now is."""

    backend: str
    group: Group


@frozen
class DeleteGroup:
    """Ask a cluster to delete a group and all it owns."""

    backend: str
    name: str
    grace_s: float


Write = Record | Turn | Forget | ForgetJob | Told
GroupAction = Record | Turn | Forget | ApplyGroup | DeleteGroup
Action = Record | Turn | Forget | ForgetJob | Start | Stop | Remove | Release


@frozen
class Step:
    """What one pass asks for, in order, and when to look again at the latest.

    ``yields`` says that a launch would have started, and waits for a run of a higher priority.
    """

    actions: tuple[Action, ...]
    wake_at: datetime | None = None
    yields: bool = False


@frozen
class Observed:
    """What the backends say of one run: its instances by backend, or None where nothing is known.

    ``busy`` names launches on which an action is under way; they are left alone meanwhile.
    ``asked`` names launches that this process asked to start: of one that another asked for
    and that is still pending, nobody can know whether the asking came to its end. ``serving``
    counts the requests that launches work on, where a gateway of this process knows. ``sick`` are
    launches that run and do their work no longer, with what shows it; ``words`` is what the output
    of launches says they ended of. ``ahead`` is a run of a higher priority that is to have the place
    first, "" where there is none; ``ask_again`` says that a place which had no capacity may have some now.
    ``loaded`` are the adapters that launches serve. ``lacks`` is what the base of a run without replicas
    does not do for it; ``is_alone`` says that there is no such base. ``troubles`` is what launches that
    are not ready said last to their probes.
    """

    instances: Mapping[str, Sequence[Instance] | None]
    busy: frozenset[str] = frozenset()
    asked: frozenset[str] = frozenset()
    serving: Mapping[str, int] = field(default_factory=dict)
    sick: Mapping[str, str] = field(default_factory=dict)
    words: Mapping[str, Failure] = field(default_factory=dict)
    ahead: str = ""
    ask_again: bool = False
    loaded: Mapping[str, Loaded] = field(default_factory=dict)
    lacks: str = ""
    is_alone: bool = False
    troubles: Mapping[str, str] = field(default_factory=dict)

    def is_known(self, backend: str) -> bool:
        """Return whether ``backend`` answered."""
        return self.instances.get(backend) is not None
