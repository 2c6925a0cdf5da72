"""A place that only pretends: scripted, deterministic under an injected clock, fast.

Nothing runs. What a launch will do is a :class:`Script`, and what an instance looks like is a
function of its script and the time, so that a test moves a clock instead of waiting::

    clock = Hand()
    sim = Sim(script={"chat-*": Script(boot_s=30, ready_s=60)}, clock=clock)
    sim.start(launch, secrets={}, progress=print)
    clock.advance(30)

With ``state`` the world is a journal on disk, one JSON line per change, which several processes
may share and which a killed one leaves whole: crash tests run on it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from heapq import heappop, heappush
from itertools import chain, islice
from pathlib import Path
from threading import Condition, RLock
from threading import Event as Flag
from typing import Any, Literal

from orchestrator.backend import (
    Can,
    Check,
    Group,
    GroupStatus,
    Instance,
    Launch,
    LogLine,
    Offer,
    Phase,
    Progress,
    Reason,
    Resources,
    Volume,
)
from orchestrator.errors import (
    AuthFailed,
    BackendError,
    Busy,
    ConfigError,
    NoCapacity,
    NotFound,
    Quota,
    Rejected,
    Unreachable,
)
from orchestrator.units import GIB

Refuse = Literal["no-capacity", "quota", "auth", "image", "rejected", "busy", "unreachable"]

_ERRORS: Mapping[Refuse, Callable[..., BackendError]] = {
    "no-capacity": NoCapacity,
    "quota": Quota,
    "auth": AuthFailed,
    "image": Rejected,
    "rejected": Rejected,
    "busy": Busy,
    "unreachable": Unreachable,
}
_TOLD: Mapping[Refuse, str] = {
    "no-capacity": "no room now",
    "quota": "the account's limit is reached",
    "auth": "the credentials were refused",
    "image": "no such image",
    "rejected": "this launch is not accepted",
    "busy": "asked to come back later",
    "unreachable": "no answer",
}
_TICK_S = 0.05  # how often a blocked reader looks whether its injected clock was moved
_FIRST_PORT, _LAST_PORT = 20_000, 65_535


@dataclass(frozen=True, slots=True)
class Script:
    """What one launch does, from its start to its end; times are in seconds.

    ``boot_s`` it is pending, then it runs for ``run_s`` (None: until it is stopped) and ends with
    ``exit_code``; ``reason`` follows from the code unless given. ``ready_s`` after it began to
    run its probe succeeds (None: this place does not probe). ``refuse`` makes ``start`` fail;
    ``lost_answer`` makes it work and say that it did not. ``prints`` are its lines, one every
    ``every_s``; of the variables in ``digests`` it prints the SHA-256, which shows that a secret
    arrived without showing it. Asked to stop it ends
    with ``stop_code``, unless it is ``stubborn`` and has to be killed. ``ports`` says where a port
    of the container answers, for tests that put a real server there.
    """

    boot_s: float = 0.0
    run_s: float | None = None
    exit_code: int = 0
    reason: Reason = ""
    message: str = ""
    ready_s: float | None = None
    refuse: Refuse | None = None
    lost_answer: bool = False
    prints: tuple[str, ...] = ()
    every_s: float = 0.0
    digests: tuple[str, ...] = ()
    stubborn: bool = False
    stop_code: int = 143
    ports: Mapping[int, tuple[str, int]] = field(default_factory=dict)


class Hand:
    """A clock that is moved by hand.

    >>> clock = Hand()
    >>> clock.advance(90)
    >>> clock().isoformat()
    '2026-01-01T00:01:30+00:00'
    """

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._now = start

    def __call__(self) -> datetime:
        """Return the time it shows."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Move the clock forward by ``seconds``."""
        self._now += timedelta(seconds=seconds)


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a method that changes or reads the world, and the launch it named."""

    method: str
    name: str = ""


@dataclass(slots=True)
class _Slot:
    """One launch as accepted, and how it will go; ``lives`` is how often it may run, None: for ever."""

    instance: Instance
    script: Script
    since: datetime
    resources: Resources = field(default_factory=Resources)
    lives: int | None = 1
    lines: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    group: str = ""
    held: bool = False
    ended: Instance | None = None
    ready: bool | None = None


class _Ledger:
    """What launches that have not ended hold, kept as they come and go: no start reads them all."""

    def __init__(self) -> None:
        self.ports: dict[int, str] = {}
        self._slots: dict[str, _Slot] = {}
        self._machines: dict[str, dict[str, _Slot]] = {}
        self._sums: dict[str, tuple[int, int, int]] = {}
        self._ends: list[tuple[datetime, str]] = []
        self._port = _FIRST_PORT

    def __len__(self) -> int:
        return len(self._slots)

    def take(self, key: str, slot: _Slot) -> None:
        """Write down what ``slot`` holds, until it ends by itself or :meth:`give` is called."""
        self.give(key)
        if slot.ended is not None:
            return
        self._slots[key] = slot
        self._machines.setdefault(slot.instance.machine, {})[key] = slot
        self._add(slot, 1)
        for _, port in slot.instance.ports.values():
            self.ports[port] = slot.instance.name
            self._port = max(self._port, port + 1) if port < _LAST_PORT else _FIRST_PORT
        if (ends_at := _ends_at(slot)) is not None:
            heappush(self._ends, (ends_at, key))

    def give(self, key: str) -> None:
        """Let go of what the launch held; it may have been let go of before."""
        slot = self._slots.pop(key, None)
        if slot is None:
            return
        del self._machines[slot.instance.machine][key]
        self._add(slot, -1)
        for _, port in slot.instance.ports.values():
            self.ports.pop(port, None)

    def pass_to(self, now: datetime) -> None:
        """Let go of what has ended by itself at ``now``."""
        while self._ends and self._ends[0][0] <= now:
            _, key = heappop(self._ends)
            slot = self._slots.get(key)
            if slot is not None and _ends_at(slot) is not None and _see(slot, now)[0].phase is Phase.EXITED:
                self.give(key)

    def less(self, offer: Offer) -> Offer:
        """Return ``offer`` without what is held of it."""
        held = self._machines.get(offer.instance_type)
        if not held:
            return offer
        if not offer.divisible:
            left = None if offer.available is None else max(0, offer.available - len(held))
            return replace(offer, available=left)
        cpu, memory, disk = self._sums[offer.instance_type]
        return replace(
            offer,
            cpu=max(0.0, offer.cpu - cpu / 1000),
            memory_bytes=max(0, offer.memory_bytes - memory),
            disk_bytes=None if offer.disk_bytes is None else max(0, offer.disk_bytes - disk),
            count=max(0, offer.count - len(self._devices(offer))),
        )

    def free_devices(self, offer: Offer, count: int) -> tuple[str, ...]:
        """Return the first ``count`` devices of ``offer`` that nobody holds."""
        if not offer.divisible:
            return tuple(str(n) for n in range(count))
        held = self._devices(offer) if count else frozenset()
        return tuple(islice((d for n in range(offer.count) if (d := str(n)) not in held), count))

    def free_port(self, given: Collection[int]) -> int:
        """Return a port that nobody holds and that is not in ``given``."""
        after = range(self._port, _LAST_PORT + 1)
        before = range(_FIRST_PORT, self._port)
        return next(p for p in chain(after, before) if p not in self.ports and p not in given)

    def _devices(self, offer: Offer) -> frozenset[str]:
        held = self._machines.get(offer.instance_type, {})
        return frozenset(d for s in held.values() for d in s.instance.devices)

    def _add(self, slot: _Slot, sign: int) -> None:
        cpu, memory, disk = self._sums.get(slot.instance.machine, (0, 0, 0))
        want = slot.resources
        self._sums[slot.instance.machine] = (
            cpu + sign * round(1000 * (want.cpu or 0)),  # whole thousandths: sums come back to zero
            memory + sign * (want.memory_bytes or 0),
            disk + sign * (want.disk_bytes or 0),
        )


def _later(at: datetime, seconds: float) -> datetime:
    return at + timedelta(seconds=seconds)


def _see(slot: _Slot, now: datetime) -> tuple[Instance, datetime | None]:
    """Return what ``slot`` looks like at ``now``, and until when it stays so (None: for ever)."""
    if slot.ended is not None:
        return slot.ended, None
    script = slot.script
    booted = _later(slot.since, script.boot_s)
    if now < booted:
        return slot.instance, booted
    life_s = script.run_s
    if life_s is None:
        return _alive(slot, booted, 0, now, None)
    if slot.lives != 1:
        life_s = max(life_s, 1.0)  # a place that restarts backs off: no endless lives in no time
    # ``round`` keeps a sum of many advances from falling a microsecond short of a whole life
    past = int(round((now - booted).total_seconds(), 6) // life_s) if life_s else slot.lives or 1
    if slot.lives is not None and past >= slot.lives:
        ended_at = _later(booted, life_s * slot.lives)
        return _ended(slot, script.exit_code, script.reason, script.message, booted, ended_at), None
    began = _later(booted, life_s * past)
    return _alive(slot, began, past, now, _later(began, life_s))


def _ends_at(slot: _Slot) -> datetime | None:
    """Return when ``slot`` ends by itself."""
    if slot.script.run_s is None or slot.lives is None:
        return None
    life_s = slot.script.run_s if slot.lives == 1 else max(slot.script.run_s, 1.0)
    return _later(slot.since, slot.script.boot_s + life_s * slot.lives)


def _alive(
    slot: _Slot, began: datetime, restarts: int, now: datetime, until: datetime | None
) -> tuple[Instance, datetime | None]:
    ready = slot.ready
    if ready is None and slot.script.ready_s is not None:
        ready_at = _later(began, slot.script.ready_s)
        ready = now >= ready_at
        if not ready:
            until = ready_at if until is None else min(until, ready_at)
    seen = replace(slot.instance, phase=Phase.RUNNING, started_at=began, ready=ready, restarts=restarts)
    return seen, until


def _ended(
    slot: _Slot, exit_code: int | None, reason: Reason, message: str, began: datetime | None, at: datetime
) -> Instance:
    if not reason and exit_code:
        reason = "error"
    if reason in ("no-start", "image"):
        exit_code, began = None, None
    restarts = max(0, (slot.lives or 1) - 1)
    return replace(
        slot.instance,
        phase=Phase.EXITED,
        exit_code=exit_code,
        reason=reason,
        message=message,
        started_at=began,
        finished_at=at,
        ready=None if slot.script.ready_s is None else False,
        restarts=restarts,
    )


def default_offers(backend: str) -> tuple[Offer, ...]:
    """Return the machine a sim pretends to be when it is given no offers."""
    return (
        Offer(
            backend=backend,
            instance_type="sim",
            cpu=64.0,
            memory_bytes=512 * GIB,
            disk_bytes=1024 * GIB,
            accelerator="H100-80GB",
            vendor="nvidia",
            count=8,
            vram_bytes=85_028_634_624,
            compute_capability=(9, 0),
            divisible=True,
        ),
    )


class Sim:
    """A scripted backend.

    Args:
        name: The backend's name in the configuration.
        namespace: Whose launches these are; another namespace in one ``state`` does not see them.
        script: What launches do: patterns of launch names (as in ``fnmatch``, first match
            counts) to scripts, or a function of the launch. Default: runs until stopped.
        offers: What can be had. Default: one machine with 8 accelerators.
        capacity: How many launches may be pending or running at once. Default: what offers hold.
        clock: The time. Default: the machine's.
        holding: Instances that are there from the beginning, as they are.
        state: A file to keep the world in. Default: it is gone with this object.
        can: What it is able to do. Default: everything a host backend may be.
        around: Called before (``done=False``) and after (``done=True``) each change takes
            effect; what it raises is what the caller sees. Crash tests die in here.

    Attributes:
        calls: Every call, in order.
        starts: How often each name truly started, which is what "started twice" is judged by.
        state: The file the world is kept in, or None.
        unreachable: While true, every call raises ``Unreachable``.
    """

    def __init__(
        self,
        name: str = "sim",
        *,
        namespace: str = "modelyard",
        script: Mapping[str, Script | Mapping[str, Any]] | Callable[[Launch], Script] | None = None,
        offers: Sequence[Offer] | None = None,
        capacity: int | None = None,
        clock: Callable[[], datetime] | None = None,
        holding: Iterable[Instance] = (),
        state: str | os.PathLike[str] | None = None,
        can: Iterable[Can] | None = None,
        around: Callable[[Call, bool], None] | None = None,
    ) -> None:
        self.name = name
        self.can = frozenset(set(Can) - {Can.GROUPS} if can is None else can)
        self.calls: list[Call] = []
        self.starts: Counter[str] = Counter()
        self.unreachable = False
        self._namespace = namespace
        self._script = script if callable(script) else _patterns(script or {})
        self._offers = default_offers(name) if offers is None else tuple(offers)
        self._capacity = capacity
        self._clock = clock or (lambda: datetime.now(UTC))
        self._holding = tuple(holding)
        self.state = None if state is None else Path(state)
        self._around = around
        self._lock = RLock()
        self._changed = Condition(self._lock)
        self._changes: list[str] = []
        self._read_to = 0
        self._slots: dict[str, _Slot] = {}
        self._names: list[str] = []
        self._ledger = _Ledger()
        self._volumes: dict[str, Volume] = {}
        self._listed: tuple[tuple[Instance, ...], datetime | None] | None = None
        if self.state is None:
            with self._lock:
                self._hold()

    # --- the port

    def offers(self) -> Sequence[Offer]:
        """Return the offers, less what launches that have not ended hold."""
        with self._reading(Call("offers")):
            return self._free()

    def start(self, launch: Launch, *, secrets: Mapping[str, str], progress: Progress) -> Instance:
        """Accept ``launch`` unless its script, the capacity or the offers refuse it."""
        with self._changing(Call("start", launch.name)):
            found = self._slots.get(launch.name)
            if found is not None:
                return _see(found, self._clock())[0]
            script = self._script(launch)
            if script.refuse is not None:
                raise self._refusal(script, launch)
            slot = self._accept(launch, script, secrets)
            progress("starting")
            self._write("start", slot)
            if script.lost_answer:
                raise Unreachable(f"{self.name}: no answer to start", backend=self.name)
            return _see(slot, self._clock())[0]

    def instances(self) -> Sequence[Instance]:
        """Return every launch of this namespace, ordered by name."""
        with self._reading(Call("instances")):
            return self._list()

    def stop(self, name: str, *, grace_s: float) -> None:
        """End ``name`` now, as its script says; 137 when it has to be killed."""
        with self._changing(Call("stop", name)):
            slot = self._slots.get(name)
            if slot is None:
                return
            code = 137 if slot.script.stubborn or grace_s <= 0 else slot.script.stop_code
            self._end(slot, code, "stopped", "")

    def remove(self, name: str) -> None:
        """Forget ``name``."""
        with self._changing(Call("remove", name)):
            if name in self._slots:
                self._write("remove", name)

    def logs(
        self, name: str, *, follow: bool = False, since: datetime | None = None, tail: int | None = None
    ) -> Iterator[LogLine]:
        """Yield the lines its script has printed by now; with ``follow`` until it ends."""
        with self._reading(Call("logs", name)):
            if name not in self._slots:
                raise NotFound(f"{self.name} has no launch {name!r}")
        return self._follow(name, follow, since, tail)

    def execute(self, name: str, command: Sequence[str], *, tty: bool) -> int:  # noqa: ARG002 - the port's
        """Pretend to run ``command``: ``exit N`` returns N, everything else 0."""
        with self._reading(Call("execute", name)):
            slot = self._slots.get(name)
            if slot is None:
                raise NotFound(f"{self.name} has no launch {name!r}")
            if _see(slot, self._clock())[0].phase is not Phase.RUNNING:
                raise Rejected(f"{name} is not running", backend=self.name)
            words = " ".join(command).split()
            return int(words[-1]) if len(words) > 1 and words[-2] == "exit" else 0

    def watch(self, closed: Flag) -> Iterator[str]:
        """Yield names as they change, by a call or by the clock."""
        with self._lock:
            told = len(self._changes)
            before = {i.name: i for i in self._list()}
        while not closed.is_set():
            with self._changed:
                if told == len(self._changes):
                    self._changed.wait(_TICK_S)
                self._catch_up()
                names = set(self._changes[told:])
                told = len(self._changes)
                now = {i.name: i for i in self._list()}
            names |= {name for name, instance in now.items() if before.get(name) != instance}
            before = now
            yield from sorted(names)

    def check(self) -> Sequence[Check]:
        """Say whether it can be reached."""
        fix = "" if not self.unreachable else "set unreachable to False"
        return (Check("answers", not self.unreachable, "nothing runs here, it only pretends", fix),)

    def create_volume(self, name: str, *, size_bytes: int | None) -> None:
        """Make a volume, or find it."""
        with self._changing(Call("create_volume", name)):
            if name not in self._volumes:
                self._write("volume", Volume(name, size_bytes))

    def volumes(self) -> Sequence[Volume]:
        """Return the volumes, ordered by name, with the launches that hold each."""
        with self._reading(Call("volumes")):
            return tuple(
                replace(self._volumes[name], used_by=self._users(name)) for name in sorted(self._volumes)
            )

    def delete_volume(self, name: str) -> None:
        """Delete a volume that no launch holds."""
        with self._changing(Call("delete_volume", name)):
            if users := self._users(name):
                raise Rejected(
                    f"volume {name!r} is in use by {', '.join(users)}",
                    backend=self.name,
                    fix="stop and remove what uses it first",
                )
            if name in self._volumes:
                self._write("unvolume", name)

    # --- what tests do to the world

    def end(self, name: str, exit_code: int | None = 1, reason: Reason = "", message: str = "") -> None:
        """Let ``name`` end by itself: a crash, ``oom``, ``preempted``, ``lost``.

        Raises:
            NotFound: there is no such launch here.
        """
        with self._lock, self._file():
            self._catch_up()
            if name not in self._slots:
                raise NotFound(f"{self.name} has no launch {name!r}")
            self._end(self._slots[name], exit_code, reason, message)

    def set_ready(self, name: str, ready: bool | None) -> None:
        """Let the probe of ``name`` succeed or fail from now on; None: as its script says.

        Raises:
            NotFound: there is no such launch here.
        """
        with self._lock, self._file():
            self._catch_up()
            if name not in self._slots:
                raise NotFound(f"{self.name} has no launch {name!r}")
            self._write("ready", (name, ready))

    # --- accepting

    def _refusal(self, script: Script, launch: Launch) -> BackendError:
        refuse = script.refuse or "rejected"
        what = script.message or f"{launch.name}: {_TOLD[refuse]}"
        return _ERRORS[refuse](what, backend=self.name)

    def _accept(self, launch: Launch, script: Script, secrets: Mapping[str, str]) -> _Slot:
        if lacking := sorted(c.value for c in _asked(launch) - self.can):
            raise Rejected(
                f"{self.name} cannot {lacking[0]}",
                backend=self.name,
                fix="choose another backend, or leave it out of the spec",
            )
        now = self._clock()
        self._ledger.pass_to(now)
        if self._capacity is not None and len(self._ledger) >= self._capacity:
            raise NoCapacity(f"{self.name} holds {self._capacity} launches, its most", backend=self.name)
        offer = self._place(launch)
        devices = self._ledger.free_devices(offer, launch.resources.accelerators) if offer else ()
        return _Slot(
            instance=Instance(
                name=launch.name,
                run=launch.run,
                replica=launch.replica,
                node=launch.node,
                attempt=launch.attempt,
                spec_hash=launch.spec_hash,
                phase=Phase.PENDING,
                address="127.0.0.1",
                ports=self._publish(launch, script),
                ready=None if script.ready_s is None else False,
                devices=devices,
                machine=offer.instance_type if offer else "",
            ),
            script=script,
            since=now,
            resources=launch.resources,
            lives=None if launch.restart and Can.RESTART in self.can else 1,
            lines=script.prints + _digests(script, launch, secrets),
            volumes=tuple(m.source for m in launch.mounts if m.kind == "volume"),
        )

    def _place(self, launch: Launch) -> Offer | None:
        """Return the first offer with room; None when the launch asks for nothing that is counted."""
        want = launch.resources
        if not (want.cpu or want.memory_bytes or want.disk_bytes or want.accelerators):
            return self._offers[0] if self._offers else None
        for offer, free in zip(self._offers, self._free(), strict=True):
            if _holds(free, want):
                return offer
        raise NoCapacity(f"{self.name} has no room for {launch.name} now", backend=self.name)

    def _publish(self, launch: Launch, script: Script) -> Mapping[int, tuple[str, int]]:
        ports: dict[int, tuple[str, int]] = {}
        for wanted in launch.ports:
            if wanted.container in script.ports:
                ports[wanted.container] = script.ports[wanted.container]
            elif (taker := self._ledger.ports.get(wanted.host or 0)) is not None:
                raise Rejected(
                    f"port {wanted.host} is taken by {taker}",
                    backend=self.name,
                    fix="choose another port, or let the backend choose",
                )
            else:
                given = {port for _, port in ports.values()}
                ports[wanted.container] = ("127.0.0.1", wanted.host or self._ledger.free_port(given))
        return ports

    def _free(self) -> tuple[Offer, ...]:
        self._ledger.pass_to(self._clock())
        return tuple(self._ledger.less(offer) for offer in self._offers)

    def _users(self, volume: str) -> tuple[str, ...]:
        return tuple(name for name in self._names if volume in self._slots[name].volumes)

    def _end(self, slot: _Slot, exit_code: int | None, reason: Reason, message: str) -> None:
        now = self._clock()
        seen, _ = _see(slot, now)
        if seen.phase is Phase.EXITED:
            return
        ended = replace(
            _ended(slot, exit_code, reason, message, seen.started_at, now), restarts=seen.restarts
        )
        self._write("end", ended)

    # --- reading

    def _list(self) -> tuple[Instance, ...]:
        now = self._clock()
        if self._listed is not None:
            seen, until = self._listed
            if until is None or now < until:
                return seen
        views = [_see(self._slots[name], now) for name in self._names]
        ends = [until for _, until in views if until is not None]
        self._listed = tuple(instance for instance, _ in views), min(ends, default=None)
        return self._listed[0]

    def _follow(self, name: str, follow: bool, since: datetime | None, tail: int | None) -> Iterator[LogLine]:
        with self._lock:
            lines, over = self._printed(name)
        known = len(lines)
        if since is not None:
            lines = [line for line in lines if line.at is None or line.at >= since]
        yield from lines if tail is None else lines[len(lines) - min(tail, len(lines)) :]
        while follow and not over:
            with self._changed:
                self._changed.wait(_TICK_S)
                self._catch_up()
                lines, over = self._printed(name)
            yield from lines[known:]
            known = len(lines)

    def _printed(self, name: str) -> tuple[list[LogLine], bool]:
        """Return the lines of ``name`` by now, and whether no more can come."""
        slot = self._slots.get(name)
        if slot is None:
            return [], True
        now = self._clock()
        seen, _ = _see(slot, now)
        if seen.phase is Phase.PENDING or (seen.phase is Phase.EXITED and seen.started_at is None):
            return [], seen.phase is Phase.EXITED
        began = _later(slot.since, slot.script.boot_s)
        until = min(now, seen.finished_at or now)
        timed = [
            LogLine(text, at=_later(began, slot.script.every_s * n)) for n, text in enumerate(slot.lines)
        ]
        return [t for t in timed if t.at is None or t.at <= until], seen.phase is Phase.EXITED

    # --- the world and its journal

    @contextmanager
    def _reading(self, call: Call) -> Iterator[None]:
        with self._lock:
            self.calls.append(call)
            self._reach(call)
            self._catch_up()
            yield

    @contextmanager
    def _changing(self, call: Call) -> Iterator[None]:
        with self._lock, self._file():
            self.calls.append(call)
            self._reach(call)
            if self._around is not None:
                self._around(call, False)
            self._catch_up()
            yield
            if self._around is not None:
                self._around(call, True)

    def _reach(self, call: Call) -> None:
        if self.unreachable:
            raise Unreachable(f"{self.name}: no answer to {call.method}", backend=self.name)

    @contextmanager
    def _file(self) -> Iterator[None]:
        """Hold the journal against other processes."""
        if self.state is None:
            yield
            return
        self.state.parent.mkdir(parents=True, exist_ok=True)
        with self.state.with_name(self.state.name + ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _hold(self) -> None:
        now = self._clock()
        for instance in self._holding:
            ended = instance if instance.phase is Phase.EXITED else None
            pending = instance.phase is Phase.PENDING
            script = Script(boot_s=1e9 if pending else 0.0)
            since = instance.started_at or now
            self._write("start", _Slot(instance, script, since, held=True, ended=ended, ready=instance.ready))

    def _write(self, kind: str, value: Any) -> None:
        """Make one change: in the journal first, then here."""
        if self.state is not None:
            record = {"in": self._namespace, kind: _ENCODE.get(kind, _same)(value)}
            line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
            with self.state.open("ab") as journal:
                if journal.tell() > self._read_to:
                    journal.truncate(self._read_to)  # half a line, left by a process that was killed
                journal.write(line)
            self._read_to += len(line)
        self._apply(kind, value)
        self._changed.notify_all()

    def _catch_up(self) -> None:
        """Read what other processes wrote since."""
        if self.state is None:
            return
        try:
            with self.state.open("rb") as journal:
                journal.seek(self._read_to)
                fresh = journal.read()
        except FileNotFoundError:
            fresh = b""
        whole = fresh[: fresh.rfind(b"\n") + 1]
        self._read_to += len(whole)
        for line in whole.splitlines():
            record = json.loads(line)
            namespace = record.pop("in")
            ((kind, value),) = record.items()
            value = _DECODE.get(kind, _same)(value)
            if namespace == self._namespace:
                self._apply(kind, value)
            else:
                self._apply_stranger(namespace, kind, value)
        if self._read_to == 0 and self._holding:
            self._hold()

    def _apply(self, kind: str, value: Any) -> None:
        self._listed = None
        if kind == "start":
            self._apply_start(value)
        elif kind == "end":
            self._slots[value.name].ended = value
            self._ledger.give(value.name)
            self._changes.append(value.name)
        elif kind == "ready":
            name, ready = value
            self._slots[name].ready = ready
            self._changes.append(name)
        elif kind == "remove":
            del self._slots[value]
            del self._names[bisect_left(self._names, value)]
            self._ledger.give(value)
            self._changes.append(value)
        elif kind == "volume":
            self._volumes[value.name] = value
        elif kind == "unvolume":
            del self._volumes[value]

    def _apply_start(self, slot: _Slot) -> None:
        name = slot.instance.name
        if name not in self._slots:
            insort(self._names, name)
        self._slots[name] = slot
        self._ledger.take(name, slot)
        if not slot.held:
            self.starts[name] += 1
        self._changes.append(name)

    def _apply_stranger(self, namespace: str, kind: str, value: Any) -> None:
        """Keep count of what another namespace holds of the same offers."""
        if kind == "start":
            self._ledger.take(f"{namespace}/{value.instance.name}", value)
        elif kind == "end":
            self._ledger.give(f"{namespace}/{value.name}")
        elif kind == "remove":
            self._ledger.give(f"{namespace}/{value}")


class SimCluster(Sim):
    """A sim that keeps whole groups by itself, as Kubernetes does.

    Takes what :class:`Sim` takes. A service's launches are restarted for ever, a task's as often
    as its group says. Ready replicas are those whose every node is ready, or runs where the
    script does not probe.
    """

    def __init__(self, name: str = "sim", *, can: Iterable[Can] | None = None, **options: Any) -> None:
        super().__init__(name, can=set(Can) if can is None else can, **options)

    def apply_group(self, group: Group, *, secrets: Mapping[str, str]) -> GroupStatus:
        """Make the launches here those of ``group``: start what lacks, remove what is too much."""
        with self._changing(Call("apply_group", group.name)):
            wanted = {launch.name: launch for launch in _launches(group)}
            for name in [n for n in self._names if self._slots[n].group == group.name]:
                if name not in wanted or self._slots[name].instance.spec_hash != wanted[name].spec_hash:
                    self._write("remove", name)
            for name, launch in wanted.items():
                if name not in self._slots:
                    self._add_to_group(group, launch, secrets)
            return self._status(group.name)

    def groups(self) -> Sequence[GroupStatus]:
        """Return the groups, ordered by name."""
        with self._reading(Call("groups")):
            return tuple(
                self._status(name) for name in sorted({s.group for s in self._slots.values()} - {""})
            )

    def delete_group(self, name: str, *, grace_s: float) -> None:  # noqa: ARG002 - the port's
        """Remove the launches of a group."""
        with self._changing(Call("delete_group", name)):
            for launch in [n for n in self._names if self._slots[n].group == name]:
                self._write("remove", launch)

    def _add_to_group(self, group: Group, launch: Launch, secrets: Mapping[str, str]) -> None:
        script = self._script(launch)
        if script.refuse is not None:
            raise self._refusal(script, launch)
        slot = self._accept(launch, script, secrets)
        lives = None if group.kind != "task" else 1 + (group.retries if script.exit_code else 0)
        self._write("start", replace(slot, group=group.name, lives=lives))

    def _status(self, name: str) -> GroupStatus:
        instances = tuple(i for i in self._list() if self._slots[i.name].group == name)
        replicas: dict[int, list[Instance]] = {}
        for instance in instances:
            replicas.setdefault(instance.replica, []).append(instance)
        failed = next((i for i in instances if i.phase is Phase.EXITED and i.reason), None)
        ended = all(i.phase is Phase.EXITED for i in instances)
        running = any(i.phase is Phase.RUNNING for i in instances)
        phase = Phase.EXITED if ended else Phase.RUNNING if running else Phase.PENDING
        return GroupStatus(
            name=name,
            spec_hash=instances[0].spec_hash,
            phase=phase,
            ready_replicas=sum(all(_serves(i) for i in nodes) for nodes in replicas.values()),
            instances=instances,
            exit_code=(failed.exit_code if failed else 0) if ended else None,
            reason=failed.reason if failed and ended else "",
            message=failed.message if failed and ended else "",
        )


def _serves(instance: Instance) -> bool:
    return instance.phase is Phase.RUNNING and instance.ready is not False


def _launches(group: Group) -> Iterator[Launch]:
    """Yield the launches of ``group``: its template for every replica and node."""
    template = group.template
    for replica in range(template.replica, template.replica + group.replicas):
        for node in range(template.node, template.node + group.nodes):
            name = f"{template.run}-{replica}-{node}-{template.attempt}"
            yield replace(template, name=name, replica=replica, node=node)


def _patterns(script: Mapping[str, Script | Mapping[str, Any]]) -> Callable[[Launch], Script]:
    scripts = [(p, s if isinstance(s, Script) else _script_from_options(p, s)) for p, s in script.items()]

    def choose(launch: Launch) -> Script:
        return next((s for pattern, s in scripts if fnmatchcase(launch.name, pattern)), Script())

    return choose


def _script_from_options(pattern: str, options: Mapping[str, Any]) -> Script:
    """Return the script that an entry of ``config.yaml`` describes."""
    try:
        return _script_from_json(options)
    except (TypeError, ValueError) as wrong:
        raise ConfigError(f"script {pattern!r}: {wrong}", fix="see docs/backends.md for its fields") from None


def _asked(launch: Launch) -> set[Can]:
    """Return what a place must be able to do for ``launch``."""
    asked = {Can.IMAGES if launch.image else Can.BARE}
    if launch.privileged:
        asked.add(Can.PRIVILEGED)
    return asked | {Can.VOLUMES if m.kind == "volume" else Can.MOUNTS for m in launch.mounts}


def _digests(script: Script, launch: Launch, secrets: Mapping[str, str]) -> tuple[str, ...]:
    env = dict(launch.env) | {variable: secrets[variable] for variable, _ in launch.secrets}
    return tuple(hashlib.sha256(env.get(name, "").encode()).hexdigest() for name in script.digests)


def _holds(offer: Offer, want: Resources) -> bool:
    if offer.available is not None and offer.available < 1:
        return False
    if want.accelerator is not None and want.accelerator != offer.accelerator:
        return False
    if want.vendor is not None and want.accelerators and want.vendor != offer.vendor:
        return False
    return (
        (want.cpu or 0) <= offer.cpu
        and (want.memory_bytes or 0) <= offer.memory_bytes
        and (offer.disk_bytes is None or (want.disk_bytes or 0) <= offer.disk_bytes)
        and want.accelerators <= offer.count
    )


def _instance_as_json(instance: Instance) -> dict[str, Any]:
    value = asdict(instance)
    value["phase"] = instance.phase.value
    for key in ("started_at", "finished_at"):
        value[key] = value[key] and value[key].isoformat()
    return value


def _instance_from_json(value: Mapping[str, Any]) -> Instance:
    times = {k: value[k] and datetime.fromisoformat(value[k]) for k in ("started_at", "finished_at")}
    ports = {int(port): (address, number) for port, (address, number) in value["ports"].items()}
    changed = {"phase": Phase(value["phase"]), "ports": ports, "devices": tuple(value["devices"])}
    return Instance(**{**value, **times, **changed})


def _script_from_json(value: Mapping[str, Any]) -> Script:
    ports = {int(port): (address, number) for port, (address, number) in value.get("ports", {}).items()}
    lists = {key: tuple(value.get(key, ())) for key in ("prints", "digests")}
    return Script(**{**value, **lists, "ports": ports})


def _slot_as_json(slot: _Slot) -> dict[str, Any]:
    return {
        "instance": _instance_as_json(slot.instance),
        "script": asdict(slot.script),
        "since": slot.since.isoformat(),
        "resources": asdict(slot.resources),
        "lives": slot.lives,
        "lines": slot.lines,
        "volumes": slot.volumes,
        "group": slot.group,
        "held": slot.held,
        "ended": slot.ended and _instance_as_json(slot.ended),
        "ready": slot.ready,
    }


def _slot_from_json(value: Mapping[str, Any]) -> _Slot:
    return _Slot(
        instance=_instance_from_json(value["instance"]),
        script=_script_from_json(value["script"]),
        since=datetime.fromisoformat(value["since"]),
        resources=Resources(**value["resources"]),
        lives=value["lives"],
        lines=tuple(value["lines"]),
        volumes=tuple(value["volumes"]),
        group=value["group"],
        held=value["held"],
        ended=value["ended"] and _instance_from_json(value["ended"]),
        ready=value["ready"],
    )


def _same(value: Any) -> Any:
    return value


_ENCODE: Mapping[str, Callable[[Any], Any]] = {
    "start": _slot_as_json,
    "end": _instance_as_json,
    "volume": lambda volume: [volume.name, volume.size_bytes],
}
_DECODE: Mapping[str, Callable[[Any], Any]] = {
    "start": _slot_from_json,
    "end": _instance_from_json,
    "volume": lambda value: Volume(*value),
}
