"""One pass over a fleet of rented machines: how many there are, who may start there, which go back.

A fleet's run has a job for each machine, which holds it and runs nothing: renting once, failing over
in the plan's order, replacing what was lost and giving back are those of every run. What is decided
here is how many there have to be. A launch that waits for room is a reason for one more, up to the
most; a machine above the least that nobody used for a while goes back, and takes no more launches
from the moment that was decided, so that it goes back empty.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from datetime import datetime, timedelta

from orchestrator.backend import Instance, Phase, Rent, Resources
from orchestrator.frozen import frozen
from orchestrator.reconcile.decide import UNKNOWN, Pass
from orchestrator.reconcile.retry import Again, GiveUp, failures_in_a_row, next_attempt, told
from orchestrator.reconcile.steps import Observed, Step
from orchestrator.reconcile.values import Holding, Job, JobState, Run, RunState, Wanted

IDLE = "idle"
GIVEN_BACK = "idle, and above the least"
TAKEN = "taken away"


@frozen
class Guest:
    """A launch that is on a fleet, or is to go there, and what it needs."""

    job: Job
    needs: Resources = field(default_factory=Resources)

    @property
    def run(self) -> str:
        """The run it is of."""
        return self.job.name.rsplit("-", 3)[0]


@frozen
class Gate:
    """Which of the launches that wait for a fleet may start, and why others never will as things are.

    ``admitted`` has the machine that each finds room on. Those in neither wait for one that is on its way.
    """

    admitted: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)


def reconcile_fleet(
    run: Run, jobs: Sequence[Job], observed: Observed, guests: Sequence[Guest], *, now: datetime
) -> tuple[Step, Gate]:
    """Return the next steps of a fleet's run, and who may start on its machines.

    Args:
        run: The record of the fleet's run.
        jobs: The record of the launches that hold its machines, in any order.
        observed: What the places that rent say of them.
        guests: Every launch on the fleet that has not ended.
        now: The time, with its zone.
    """
    step = _FleetPass(run, jobs, observed, now, guests)
    step.adopt()
    step.settle()
    step.let_go()
    if run.wanted is Wanted.RUN:
        step.keep_up()
    else:
        step.take_down()
    return step.result(), step.gate()


def gate_of(run: Run, jobs: Sequence[Job], guests: Sequence[Guest], *, now: datetime) -> Gate:
    """Return who may start on the machines of a fleet that another process looks after."""
    return _FleetPass(run, jobs, Observed({}), now, guests).gate()


def blocks_of(needs: Resources, rent: Rent | None, blocks: int) -> int:
    """Return how many of a machine's parts a launch takes: as many as its largest need, at least one.

    >>> blocks_of(Resources(accelerators=2), Rent("p5", accelerator="H100-80GB", accelerators=8), 4)
    1
    >>> blocks_of(Resources(cpu=3), Rent("m7i", cpu=8), 4)
    2
    """
    if rent is None:
        return 1
    parts = [
        (needs.accelerators, rent.accelerators), (needs.cpu or 0, rent.cpu),
        (needs.memory_bytes or 0, rent.memory_bytes),
    ]  # fmt: skip
    return max(1, *(math.ceil(blocks * part / whole - 1e-9) for part, whole in parts if whole), 1)


def could_hold(rent: Rent | None, needs: Resources) -> bool:
    """Return whether a machine of a kind has what a launch needs.

    >>> could_hold(Rent("g6", accelerator="L4-24GB", accelerators=1), Resources(accelerator="H100-80GB"))
    False
    """
    if rent is None:
        return True
    return (
        needs.accelerator in (None, rent.accelerator)
        and needs.accelerators <= rent.accelerators
        and (needs.cpu or 0) <= (rent.cpu or math.inf)
        and (needs.memory_bytes or 0) <= (rent.memory_bytes or math.inf)
    )


class _FleetPass(Pass):
    """The working state of one pass over a fleet's run."""

    def __init__(
        self, run: Run, jobs: Sequence[Job], observed: Observed, now: datetime, guests: Sequence[Guest]
    ) -> None:
        super().__init__(run, jobs, observed, now)
        self.guests = sorted(guests, key=lambda guest: (guest.job.created_at, guest.job.name))
        self.holding = run.template.holding or Holding(0, 0)
        self._up = {job.name for job in jobs if job.state is JobState.READY}
        """What can be used by now: the place knows the machines that were on record before this pass."""
        self._newest: datetime | None = None
        """When the last came of those who wait for a machine that is not there."""
        self._wishes: dict[int, Resources] = {}
        """What a machine that is rented for somebody has to hold, by replica."""

    # Who is where ----------------------------------------------------------------------------

    def _held(self) -> list[Job]:
        """Return the launches whose machines are there to be used, or on their way."""
        return [job for job in self._live() if job.stop_asked_at is None]

    def _on(self, holder: Job) -> list[Guest]:
        return [g for g in self.guests if holder.machine and g.job.machine == holder.machine]

    def _waiting(self) -> list[Guest]:
        """Return the launches that no machine has yet, as far as the record knows."""
        return [g for g in self.guests if not g.job.machine and g.job.stop_asked_at is None]

    def _seats(self) -> tuple[dict[str, Job], list[Guest]]:
        """Return the machine that each waiting launch gets, and those for whom none is there.

        Machines that are up come before those on their way, in the order of their replicas.
        """
        holders = sorted(self._held(), key=lambda job: (job.state is not JobState.READY, job.replica))
        free = {
            job.name: self.holding.blocks
            - sum(blocks_of(g.needs, job.rent, self.holding.blocks) for g in self._on(job))
            for job in holders
        }
        seats: dict[str, Job] = {}
        homeless: list[Guest] = []
        for guest in self._waiting():
            for job in holders:
                takes = blocks_of(guest.needs, job.rent, self.holding.blocks)
                if takes <= free[job.name] and could_hold(job.rent, guest.needs):
                    free[job.name] -= takes
                    seats[guest.job.name] = job
                    break
            else:
                homeless.append(guest)
        return seats, homeless

    def gate(self) -> Gate:
        """Return which launches may start now, and which have to be refused."""
        if self.run.wanted is not Wanted.RUN:
            why = f"fleet {self.run.name} is being deleted"
            return Gate(refused={guest.job.name: why for guest in self._waiting()})
        seats, homeless = self._seats()
        admitted = {name: job.machine for name, job in seats.items() if job.name in self._up}
        return Gate(admitted, {guest.job.name: why for guest in homeless if (why := self._no_room(guest))})

    def _no_room(self, guest: Guest) -> str:
        """Return why no machine comes for a launch, "" where one may."""
        name, most = self.run.name, self.holding.most
        kinds = [rent for _, rent in self.run.template.places]
        if not any(could_hold(rent, guest.needs) for rent in kinds):
            return f"fleet {name} rents no machine that could hold it"
        if len(self._held()) >= most:
            return f"fleet {name} has no room: {most} of {most} machines are in use"
        attempts = [attempt[0] for attempt in self._attempts(self._new_replicas(1)[0])]
        row = failures_in_a_row(attempts, steady_s=self.run.template.retry.most_s)
        if not row or guest.job.created_at > _ended(row[-1]) or self._again(row).at <= self.now:
            return ""
        return f"fleet {name} gets no machine: {told(row[-len(kinds) :])}"

    def _again(self, row: Sequence[Job]) -> Again:
        """Return when a machine that could not be had is asked for again, and where.

        A fleet never gives up: what a person has to put right is asked for now and then.
        """
        template = self.run.template
        verdict = next_attempt(row, policy=template.retry, places=template.places, limit=None)
        if isinstance(verdict, GiveUp):
            return Again(_ended(row[-1]) + timedelta(seconds=template.retry.most_s), 0)
        return verdict

    # How many --------------------------------------------------------------------------------

    def keep_up(self) -> None:
        """Bring the machines up that have to be there, and give back those that do not."""
        self._see_off()
        self._mark_use()
        seats, homeless = self._seats()
        self._newest = max((guest.job.created_at for guest in homeless), default=None)
        held = self._held()
        surplus = self._surplus({job.name for job in seats.values()})
        missing = max(0, self.holding.least - len(held))
        if len(held) + missing < self.holding.most:
            missing = max(missing, min(len(self._bins(homeless)), self.holding.most - len(held)))
        fresh = self._new_replicas(missing)
        self._wishes = dict(zip(fresh, self._bins(homeless), strict=False))
        wanted = sorted({job.replica for job in held if job.name not in surplus} | set(fresh))
        for replica in wanted:
            self._keep_replica(replica)
        for job in self._live():
            if job.name in surplus:
                self._ask_stop(job, GIVEN_BACK)
            elif job.stop_asked_at:
                self._ask_stop(job, job.stop_cause)
        self._tell()
        self._clean()

    def _see_off(self) -> None:
        """Let go of machines whose provider takes them away: others are rented in their place at once."""
        for job in self._held():
            if self._leave(job):
                self._ask_stop(job, TAKEN, self.seen[job.name].message)

    def _bins(self, homeless: Sequence[Guest]) -> list[Resources]:
        """Return what each further machine has to hold, for launches that get none of those there."""
        found: list[tuple[Resources, float]] = []
        for guest in homeless:
            kind = next((r for _, r in self.run.template.places if could_hold(r, guest.needs)), None)
            if kind is None and self.run.template.rents:
                continue
            part = blocks_of(guest.needs, kind, self.holding.blocks) / self.holding.blocks
            for at, (needs, taken) in enumerate(found):
                if taken + part <= 1 and needs.accelerator == guest.needs.accelerator:
                    found[at] = needs, taken + part
                    break
            else:
                found.append((guest.needs, part))
        return [needs for needs, _ in found]

    def _new_replicas(self, count: int) -> list[int]:
        """Return the numbers that further machines get: the lowest that are free."""
        taken = {job.replica for job in self._live()}
        free = (n for n in range(len(taken) + count) if n not in taken)
        return [n for n, _ in zip(free, range(count), strict=False)]

    def _surplus(self, seated: set[str]) -> set[str]:
        """Return the launches whose machines go back: idle for long, above the least, the newest first."""
        held = self._held()
        idle = [
            job for job in held
            if job.state is JobState.READY and not self._on(job) and job.name not in seated
            and not job.message.startswith(UNKNOWN)
        ]  # fmt: skip
        above = len(held) - self.holding.least
        over = len(held) - self.holding.most
        going: set[str] = set()
        for job in sorted(idle, key=lambda job: -job.replica):
            if len(going) >= above:
                break
            since, idle_s = job.ready_at or self.now, self.holding.idle_s
            if len(going) < over or (idle_s is not None and self._is_due(since + timedelta(seconds=idle_s))):
                going.add(job.name)
        return going

    def _mark_use(self) -> None:
        """Write down who uses each machine, and since when nobody does: ``ready_at`` begins anew then."""
        for job in self._held():
            if job.state is not JobState.READY or job.message.startswith(UNKNOWN):
                continue
            runs = sorted({guest.run for guest in self._on(job)})
            told = f"used by {', '.join(runs)}" if runs else IDLE
            if told == job.message or (not job.message and not runs):
                continue
            since = job.ready_at if runs else self.now
            self._put(replace(job, message=told, ready_at=since), told)

    def _has_drained(self, job: Job) -> bool:
        """Return whether nobody is on a machine that goes back, or may be on the way there."""
        if self._on(job) or any(guest.job.state is not JobState.PROVISIONING for guest in self._waiting()):
            return False
        asked = job.stop_asked_at or self.now
        return not self._waiting() or self._is_due(asked + timedelta(seconds=ON_THE_WAY_S))

    # The hooks of every run ------------------------------------------------------------------

    def _after_failures(self, replica: int, row: list[Job], stale: list[Job]) -> str | None:
        """Ask for a machine again when its time has come, or somebody came who waits for one."""
        if not row:
            return super()._after_failures(replica, row, stale)
        again = self._again(row)
        somebody_new = self._newest is not None and self._newest > _ended(row[-1])
        if somebody_new or self._is_due(again.at):
            self._begin(replica, again.backend, stale, cause=f"attempt {len(row) + 1}")
        else:
            self.waiting.append(f"{told(row[-1:])}; tries again at {again.at:%Y-%m-%dT%H:%M:%SZ}")
        return None

    def _end_stopped(self, job: Job, instance: Instance | None) -> None:
        """End a job that was let go of: one whose machine was taken away was interrupted."""
        if job.stop_cause == TAKEN:
            self._end(job, JobState.FAILED, instance, reason="preempted", cause=TAKEN)
        else:
            super()._end_stopped(job, instance)

    def _settle_alive(self, job: Job, instance: Instance) -> None:
        """Bring a job up to date; a machine that was up and of which little is known stays so."""
        if job.ready_at is None or instance.phase is not Phase.PENDING:
            super()._settle_alive(job, instance)

    def _begin(self, replica: int, backend: int, stale: list[Job], *, cause: str) -> None:
        """Begin an attempt at a machine: of a kind that holds what it is rented for."""
        places, needs = self.run.template.places, self._wishes.get(replica)
        if needs is not None and self.run.template.rents:
            order = [(backend + n) % len(places) for n in range(len(places))]
            backend = next((at for at in order if could_hold(places[at][1], needs)), backend)
        super()._begin(replica, backend, stale, cause=cause)

    def _tell(self) -> None:
        """Turn the fleet's run into what its machines make of it."""
        live = self._held()
        ready = sum(job.state is JobState.READY for job in live)
        unknown = [f"{job.name}: {job.message}" for job in live if job.message.startswith(UNKNOWN)]
        reason = next(iter([*self.waiting, *unknown]), "")
        states = {job.state for job in live}
        if ready >= self.holding.least and states <= {JobState.READY}:
            state = RunState.READY
        elif not live:
            state = RunState.QUEUED
        else:
            state = RunState.PROVISIONING if JobState.PROVISIONING in states else RunState.STARTING
        self._turn(state, reason=reason, ready=ready, answered=ready > 0)


def _ended(job: Job) -> datetime:
    return job.finished_at or job.created_at


ON_THE_WAY_S = 10.0
"""How long a launch that was about to start when a machine was to go back may still turn up there."""
