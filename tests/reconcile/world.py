"""A record in memory and a scripted place: what the loop does, with every step in the test's hands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from backends.sim import Hand, Script, Sim
from orchestrator.backend import Instance, Launch, Leave, Phase, Probe
from orchestrator.engines.failures import Failure
from orchestrator.errors import BackendError, Temporary
from orchestrator.reconcile import Job, JobState, Retry, Run, RunEvent, Template, Wanted
from orchestrator.reconcile.decide import reconcile, start_failed
from orchestrator.reconcile.steps import (
    Action,
    Forget,
    ForgetJob,
    Observed,
    Record,
    Remove,
    Start,
    Step,
    Stop,
    Turn,
    Write,
)
from orchestrator.reconcile.values import before_of

Reconcile = Callable[..., Step]
PATIENT = Retry(frozenset({"no-capacity", "interruption", "error"}), first_s=1.0, most_s=8.0)


@dataclass
class World:
    """One record, two places, and a clock that is moved by hand.

    ``reconcile`` may be a broken twin. ``live`` are the scripts by pattern of launch name.
    """

    reconcile: Reconcile = reconcile
    scripts: dict[str, Script] = field(default_factory=dict)
    clock: Hand = field(default_factory=Hand)
    runs: dict[str, Run] = field(default_factory=dict)
    jobs: dict[str, dict[str, Job]] = field(default_factory=dict)
    events: list[RunEvent] = field(default_factory=list)
    asked: list[Action] = field(default_factory=list)
    forgotten: set[str] = field(default_factory=set)
    asked_here: set[str] = field(default_factory=set)
    """Launches that this process asked to start; a crash forgets them."""
    serving: dict[str, int] = field(default_factory=dict)
    """Requests that a gateway beside the loop has with each launch."""
    sick: dict[str, str] = field(default_factory=dict)
    words: dict[str, Failure] = field(default_factory=dict)
    leave: dict[str, Leave] = field(default_factory=dict)
    """How the machines that launches are on are emptied, by launch."""
    silent: dict[str, datetime] = field(default_factory=dict)
    """Since when the machines that launches are on do not answer, by launch."""

    def __post_init__(self) -> None:
        self.places = {
            name: Sim(name, clock=self.clock, script=self.script_of, offers=()) for name in ("near", "far")
        }
        for place in self.places.values():
            place._place = lambda launch: None  # type: ignore[method-assign,assignment]  # room is not what is tested

    def script_of(self, launch: Launch) -> Script:
        """Return what a launch will do: by its run and place, else for ever."""
        return self.scripts.get(launch.name, self.scripts.get(launch.run, Script()))

    # What a user does --------------------------------------------------------------------------

    def apply(self, name: str = "chat", **changes: object) -> Run:
        """Write down a run as ``apply`` would: new, replaced when its hash differs, else updated."""
        old = self.runs.get(name)
        spec_hash = str(changes.pop("spec_hash", "a"))
        kind = changes.pop("type", old.type if old else "service")
        probe = changes.pop("probe", None)
        ports = changes.pop("ports", ())
        launch = Launch(f"{name}-0-0-0", name, spec_hash=spec_hash, probe=probe, ports=ports)  # type: ignore[arg-type]
        template = Template(launch, ("near", "far"), **changes)  # type: ignore[arg-type]
        if old is None:
            run = Run(f"id-{name}-{len(self.forgotten)}", name, kind, "{}", spec_hash, template, self.clock())  # type: ignore[arg-type]
        elif old.spec_hash == spec_hash and not old.state.is_final and old.wanted is Wanted.RUN:
            run = replace(old, template=template)
        else:
            if template.rollback:
                template = replace(template, before=before_of(old))
            run = replace(
                Run(old.id, name, old.type, "{}", spec_hash, template, self.clock()), serial=old.serial
            )
        self.runs[name] = run
        return run

    def want(self, name: str, wanted: Wanted) -> None:
        """Write down that a run shall stop or be deleted."""
        if name in self.runs:
            self.runs[name] = replace(self.runs[name], wanted=wanted)

    # What the loop does --------------------------------------------------------------------------

    def decide(self) -> list[Action]:
        """Return what a pass asks for, having written down what it wrote."""
        actions: list[Action] = []
        for run in list(self.runs.values()):
            if run.state.is_final and run.wanted is not Wanted.DELETE:
                continue
            seen = {name: self._observe(place, run.name) for name, place in self.places.items()}
            observed = Observed(
                seen, asked=frozenset(self.asked_here), serving=self.serving, sick=self.sick, words=self.words
            )
            jobs = list(self.jobs.get(run.id, {}).values())
            step = self.reconcile(run, jobs, observed, now=self.clock())
            actions += step.actions
        for action in actions:
            if isinstance(action, Record | Turn | Forget | ForgetJob):
                self.write(action)
        self.asked += actions
        return actions

    def act(self, actions: Sequence[Action]) -> None:
        """Carry out what is left of the actions after writing."""
        for action in actions:
            try:
                self._act(action)
            except BackendError as error:
                if isinstance(action, Start) and (
                    record := start_failed(action.job, error, now=self.clock())
                ):
                    self.write(record)
                elif not isinstance(error, Temporary):
                    raise

    def step(self) -> list[Action]:
        """One whole pass."""
        actions = self.decide()
        self.act(actions)
        return actions

    def settle(self, *, most: int = 120, tick_s: float = 10.0, quiet: int = 8) -> None:
        """Pass and let time go by until nothing has happened for ``quiet`` ticks."""
        still = 0
        for _ in range(most):
            if self.step():
                still = 0
                continue
            still += 1
            if still == quiet:
                return
            self.clock.advance(tick_s)
        raise AssertionError(f"no rest after {most} passes: {self.asked[-6:]}")

    def write(self, write: Write) -> None:
        """Write down one thing, as the store would."""
        match write:
            case Record(job, _):
                self.jobs.setdefault(job.run_id, {})[job.name] = job
            case Turn(run, _):
                self.runs[run.name] = replace(run, serial=run.serial + 1)
            case ForgetJob(job):
                del self.jobs[job.run_id][job.name]
            case Forget(run, _):
                del self.runs[run.name]
                self.jobs.pop(run.id, None)
                self.forgotten.add(run.id)
                self.forget_starts(run.name)
        if write.event:
            self.events.append(write.event)

    def _observe(self, place: Sim, run: str) -> list[Instance] | None:
        try:
            seen = [i for i in place.instances() if i.run == run]
            return [
                replace(i, leave=self.leave.get(i.name, ""), silent_since=self.silent.get(i.name))
                for i in seen
            ]
        except BackendError:
            return None

    def _act(self, action: Action) -> None:
        match action:
            case Start(backend, _, launch):
                self.asked_here.add(launch.name)
                self.places[backend].start(launch, secrets={}, progress=lambda _: None)
            case Stop(backend, name, grace_s):
                self.places[backend].stop(name, grace_s=grace_s)
            case Remove(backend, name):
                self.places[backend].remove(name)

    # What is true ---------------------------------------------------------------------------------

    def alive(self, run: str | None = None) -> list[Instance]:
        """Return what runs or is about to, in every place, asked past any outage."""
        found: list[Instance] = []
        for place in self.places.values():
            outage, place.unreachable = place.unreachable, False
            found += [i for i in place.instances() if i.phase is not Phase.EXITED and run in (None, i.run)]
            place.unreachable = outage
        return found

    def job(self, name: str) -> Job:
        """Return one job by its launch's name."""
        return next(jobs[name] for jobs in self.jobs.values() if name in jobs)

    def is_known(self, launch: str) -> bool:
        """Return whether the record knows that a launch was accepted."""
        known = [jobs[launch] for jobs in self.jobs.values() if launch in jobs]
        return any(job.state is not JobState.PROVISIONING for job in known)

    def state(self, name: str = "chat") -> str:
        """Return a run's state in a word."""
        return self.runs[name].state.value

    def forget_starts(self, run: str) -> None:
        """Count the starts of a run's launches from 0 again: their names may come back."""
        for place in self.places.values():
            for name in [n for n in place.starts if n.rsplit("-", 3)[0] == run]:
                del place.starts[name]

    def started(self) -> dict[str, int]:
        """Return how often each name truly started, over all places."""
        counts: dict[str, int] = {}
        for place in self.places.values():
            for name, count in place.starts.items():
                counts[name] = counts.get(name, 0) + count
        return counts


def at(seconds: float, world: World) -> datetime:
    """Return the world's time after ``seconds`` more."""
    world.clock.advance(seconds)
    return world.clock()


ANSWERS = Probe("tcp", 8000, start_s=60.0)
