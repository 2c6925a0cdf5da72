"""End what nobody uses: dev environments without anyone inside, idle accelerators, forgotten volumes.

What is not known is not idle: a job that cannot be asked counts as used, and so does the time in which
nobody looked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from orchestrator.api.activity import last_active
from orchestrator.errors import ModelyardError, StateMoved
from orchestrator.reconcile import Job, JobState, Run, Wanted
from orchestrator.reconcile.steps import asking
from orchestrator.server.asking import answer_of
from orchestrator.server.duty import Duty
from orchestrator.server.site import Site
from orchestrator.spec.models import DevEnvironment, Service, Task, UtilizationPolicy, spec_of
from orchestrator.spec.models import Volume as VolumeSpec
from orchestrator.units import format_duration

LOOK_S, MOST_S = 60.0, 600.0
"""How often to look, and how long at most a container is not asked who is in it."""
GAP = timedelta(seconds=3 * LOOK_S)
"""After so long without an answer what was seen before says nothing."""

IDLE = "idle: "
"""How the cause of an event begins that ends a run for a policy of its own."""

Ask = Callable[[Site, Job, list[str]], str | None]

_PEOPLE = (
    'n=0; for f in /proc/[0-9]*/stat; do read -r l 2>/dev/null <"$f" || continue; p=${l%% *};'
    ' set -- ${l##*) }; [ "$2" = 0 ] && [ "$p" != 1 ] && [ "$p" != $$ ] && n=$((n+1)); done; echo $n'
)
"""Counts what came into a container from outside: its parent is nobody inside, shown as 0 (proc(5))."""
_DEVICES = (
    "if command -v nvidia-smi >/dev/null; then"
    " exec nvidia-smi --query-gpu=utilization.gpu --format=csv,noheader,nounits;"
    " else rocm-smi --showuse --csv | sed -n 's/^card[0-9]*,\\([0-9]*\\).*/\\1/p'; fi"
)
"""Prints how busy each accelerator is, in percent, a line for each."""


class Reaper(Duty):
    """Looks once a minute, from a thread of its own; of several servers the first does it.

    Args:
        site: The server's share of the world.
        ask: Runs a command inside a job.
    """

    called = "idle"
    first_s = look_s = LOOK_S

    def __init__(self, site: Site, ask: Ask = answer_of) -> None:
        super().__init__(site)
        self._ask = ask
        self._devices: dict[str, Busy] = {}
        """How busy the accelerators of each job were, by its name; those of the last look alone."""
        self._before: dict[str, Busy] = {}
        self._asked: dict[str, datetime] = {}
        """When each dev environment was last asked who is inside, by run id."""

    def once(self) -> list[str]:
        """End what has been idle for as long as its spec allows; return the names."""
        runs = [run for run in self._site.store.active_runs() if run.wanted is Wanted.RUN]
        self._before, self._devices = self._devices, {}
        there = {run.id for run in runs}
        self._asked = {id: at for id, at in self._asked.items() if id in there}
        ended = [run.name for run in runs if (why := self._idle(run)) and self._end(run, why)]
        ended += self._clean_volumes(runs)
        return ended

    # Runs ------------------------------------------------------------------------------------

    def _idle(self, run: Run) -> str:
        """Return why a run is idle, "" where it is not known to be."""
        spec = _heeded(run.spec)
        if spec is None:
            return ""
        jobs = [j for j in self._site.store.jobs(run.id) if j.state in (JobState.RUNNING, JobState.READY)]
        if not jobs:
            return ""
        limit_s = spec.inactivity_duration if isinstance(spec, DevEnvironment) else None
        if limit_s and (why := self._inactive(run, jobs, limit_s)):
            return why
        policy = spec.utilization_policy
        if policy is None or not run.template.launch.resources.accelerators:
            return ""
        return next(filter(None, (self._slack(job, policy) for job in jobs)), "")

    def _inactive(self, run: Run, jobs: Sequence[Job], limit_s: int) -> str:
        now = self._site.clock()
        began = max(job.started_at or job.created_at for job in jobs)
        last = max(last_active(self._site.store, run.name), began)
        is_due = now - last >= timedelta(seconds=limit_s)
        every = timedelta(seconds=min(MOST_S, max(LOOK_S, limit_s / 12)))
        if run.template.launch.image is not None and (is_due or now - self._asked.get(run.id, last) >= every):
            self._asked[run.id] = now
            if any(self._is_somebody_in(job) for job in jobs):
                self._site.note_active(run.name)
                return ""
        return f"nobody was inside for {format_duration(limit_s)}" if is_due else ""

    def _is_somebody_in(self, job: Job) -> bool:
        said = self._ask(self._site, job, ["sh", "-c", _PEOPLE])
        return said is None or said.strip() != "0"

    def _slack(self, job: Job, policy: UtilizationPolicy) -> str:
        """Return which accelerator of a job idles, "" where none is known to."""
        said = self._ask(self._site, job, ["sh", "-c", _DEVICES])
        now = self._site.clock()
        seen = self._devices[job.name] = self._before.pop(job.name, Busy())
        least, window = policy.min_gpu_utilization, policy.time_window
        seen.take(_percents(said), least=least, now=now)
        for device in seen.idle(timedelta(seconds=window), now=now):
            return f"accelerator {device} was below {least} % for {format_duration(window)}"
        return ""

    def _end(self, run: Run, why: str) -> bool:
        turn = asking(run, Wanted.STOP, at=self._site.clock(), cause=f"{IDLE}{why}")
        try:
            self._site.store.commit([turn], expected={run.id: run.serial})
        except StateMoved:
            return False  # somebody changed it meanwhile: the next look decides
        self._site.wrote()
        return True

    # Volumes ---------------------------------------------------------------------------------

    def _clean_volumes(self, runs: Sequence[Run]) -> list[str]:
        """Delete volumes that nothing has used for as long as their specs allow; return their names."""
        gone = []
        for volume in self._site.store.volumes():
            spec = spec_of(json.loads(volume.spec)) if "auto_cleanup" in volume.spec else None
            limit_s = spec.auto_cleanup_duration if isinstance(spec, VolumeSpec) else None
            if not limit_s:
                continue
            now, key = self._site.clock(), f"used/{volume.name}"
            noted = self._site.store.access.note(key)
            last = datetime.fromisoformat(noted) if noted else volume.created_at
            if self._is_used(volume.backend, volume.name, runs):
                self._site.store.access.remember(key, now.isoformat(), now=now)
            elif now - last >= timedelta(seconds=limit_s):
                self._site.api(None).delete_volume(volume.name)
                self._site.store.access.forget(key)
                self._site.audit.note(
                    "the server", "auto_cleanup_duration", "204", project=volume.project, subject=volume.name
                )
                gone.append(volume.name)
        return gone

    def _is_used(self, backend: str, name: str, runs: Sequence[Run]) -> bool:
        mounted = any(
            mount.kind == "volume" and mount.source == name
            for run in runs
            for mount in run.template.launch.mounts
        )
        return mounted or any(v.used_by for v in self._site.places[backend].volumes() if v.name == name)

    def turn(self) -> float:
        """Note who is inside runs through this server, and look where it is the first."""
        try:
            self._site.note_sockets()
        except ModelyardError as error:
            self._site.complain(f"idle: {error.what}")
            return LOOK_S
        return super().turn()

    def duty(self) -> float:
        """End what nobody uses; return how long to wait for the next look, in seconds."""
        self.once()
        return LOOK_S


@dataclass
class Busy:
    """When each accelerator of a job was last seen busy, and when any was seen at all."""

    busy_at: dict[int, datetime] = field(default_factory=dict)
    seen_at: datetime | None = None

    def take(self, percents: Sequence[int], *, least: int, now: datetime) -> None:
        """Take what each accelerator was just seen at; nothing where it is not known."""
        if not percents:
            return
        if self.seen_at is None or now - self.seen_at > GAP or len(percents) != len(self.busy_at):
            self.busy_at = dict.fromkeys(range(len(percents)), now)
        self.seen_at = now
        for device, percent in enumerate(percents):
            if percent >= least:
                self.busy_at[device] = now

    def idle(self, window: timedelta, *, now: datetime) -> Iterator[int]:
        """Yield the accelerators that were below all through the window."""
        if self.seen_at == now:
            yield from (device for device, at in self.busy_at.items() if now - at >= window)


def _heeded(text: str) -> Task | Service | DevEnvironment | None:
    """Return a spec that says when it is idle, None for others, which are most."""
    if '"inactivity_duration"' not in text and '"utilization_policy"' not in text:
        return None
    spec = spec_of(json.loads(text))
    assert isinstance(spec, Task | Service | DevEnvironment)  # a run is of one of these
    return spec


def _percents(said: str | None) -> list[int]:
    """Return how busy each accelerator is; nothing where any of them does not tell.

    >>> _percents("0\\n35\\n"), _percents("[N/A]\\n"), _percents(None)
    ([0, 35], [], [])
    """
    lines = (said or "").split()
    return [int(line) for line in lines] if all(line.isdecimal() for line in lines) else []
