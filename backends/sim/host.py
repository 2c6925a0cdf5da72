"""A sim that starts launches one by one."""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from threading import Condition, RLock
from threading import Event as Flag
from typing import Any

from backends.sim.journal import Journal
from backends.sim.ledger import Ledger, holds
from backends.sim.script import Refuse, Script, Slot, ended_view, later, script_from_json, see
from orchestrator.backend import (
    Can,
    Check,
    Instance,
    Launch,
    LogLine,
    Offer,
    Phase,
    Progress,
    Reason,
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
from orchestrator.frozen import frozen
from orchestrator.units import GIB

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


@frozen
class Call:
    """One call of a method that changes or reads the world, and the launch it named."""

    method: str
    name: str = ""


OFFER_FIX = "give the fields of an offer, such as instance_type"


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
        offers: What can be had, as values or as mappings of their fields. Default: one machine
            with 8 accelerators.
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
        offers: Sequence[Offer | Mapping[str, Any]] | None = None,
        capacity: int | None = None,
        clock: Callable[[], datetime] | None = None,
        holding: Iterable[Instance] = (),
        state: str | os.PathLike[str] | None = None,
        can: Iterable[Can] | None = None,
        around: Callable[[Call, bool], None] | None = None,
    ) -> None:
        self.name = name
        self.can = frozenset(
            set(Can) - {Can.GROUPS, Can.RENT, Can.KEEP, Can.HOLD, Can.SCALES} if can is None else can
        )
        self.calls: list[Call] = []
        self.starts: Counter[str] = Counter()
        self.unreachable = False
        self._namespace = namespace
        self._journal = Journal(None if state is None else Path(state), namespace)
        self._script = script if callable(script) else _patterns(script or {})
        self._offers = default_offers(name) if offers is None else tuple(_offers_from_options(name, offers))
        self._capacity = capacity
        self._clock = clock or (lambda: datetime.now(UTC))
        self._holding = tuple(holding)
        self.state = self._journal.path
        self._around = around
        self._lock = RLock()
        self._changed = Condition(self._lock)
        self._changes: list[str] = []
        self._slots: dict[str, Slot] = {}
        self._names: list[str] = []
        self._ledger = Ledger()
        self._volumes: dict[str, Volume] = {}
        self._listed: tuple[tuple[Instance, ...], datetime | None] | None = None

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
                return see(found, self._clock())[0]
            script = self._script(launch)
            if script.refuse is not None:
                raise self._refusal(script, launch)
            slot = self._accept(launch, script, secrets)
            progress("starting")
            self._write("start", slot)
            if script.lost_answer:
                raise Unreachable(f"{self.name}: no answer to start", backend=self.name)
            return see(slot, self._clock())[0]

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
            self._slot(name)
        return self._follow(name, follow, since, tail)

    def execute(self, name: str, command: Sequence[str], *, tty: bool) -> int:  # noqa: ARG002 - the port's
        """Pretend to run ``command``: ``exit N`` returns N, everything else 0."""
        with self._reading(Call("execute", name)):
            slot = self._slot(name)
            if see(slot, self._clock())[0].phase is not Phase.RUNNING:
                raise Rejected(f"{name} is not running", backend=self.name)
            words = " ".join(command).split()
            return int(words[-1]) if len(words) > 1 and words[-2] == "exit" else 0

    def watch(self, closed: Flag) -> Iterator[str]:
        """Yield names as they change, by a call or by the clock."""
        with self._lock, self._journal.alone():
            self._hold()
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
        with self._lock, self._journal.alone():
            self._hold()
            self._end(self._slot(name), exit_code, reason, message)

    def set_ready(self, name: str, ready: bool | None) -> None:
        """Let the probe of ``name`` succeed or fail from now on; None: as its script says.

        Raises:
            NotFound: there is no such launch here.
        """
        with self._lock, self._journal.alone():
            self._hold()
            self._slot(name)
            self._write("ready", (name, ready))

    # --- accepting

    def _slot(self, name: str) -> Slot:
        if name not in self._slots:
            raise NotFound(f"{self.name} has no launch {name!r}")
        return self._slots[name]

    def _refusal(self, script: Script, launch: Launch) -> BackendError:
        refuse = script.refuse or "rejected"
        what = script.message or f"{launch.name}: {_TOLD[refuse]}"
        return _ERRORS[refuse](what, backend=self.name)

    def _accept(self, launch: Launch, script: Script, secrets: Mapping[str, str]) -> Slot:
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
        return Slot(
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
            lives=None if launch.restart and script.exit_code and Can.RESTART in self.can else 1,
            lines=script.prints + _digests(script, launch, secrets),
            volumes=tuple(m.source for m in launch.mounts if m.kind == "volume"),
        )

    def _place(self, launch: Launch) -> Offer | None:
        """Return the first offer with room; None when the launch asks for nothing that is counted."""
        want = launch.resources
        if not (want.cpu or want.memory_bytes or want.disk_bytes or want.accelerators):
            return self._offers[0] if self._offers else None
        for offer, free in zip(self._offers, self._free(), strict=True):
            if holds(free, want):
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

    def _end(self, slot: Slot, exit_code: int | None, reason: Reason, message: str) -> None:
        now = self._clock()
        seen, _ = see(slot, now)
        if seen.phase is Phase.EXITED:
            return
        ended = replace(
            ended_view(slot, exit_code, reason, message, seen.started_at, now), restarts=seen.restarts
        )
        self._write("end", ended)

    # --- reading

    def _list(self) -> tuple[Instance, ...]:
        now = self._clock()
        if self._listed is not None:
            seen, until = self._listed
            if until is None or now < until:
                return seen
        views = [see(self._slots[name], now) for name in self._names]
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
        seen, _ = see(slot, now)
        if seen.phase is Phase.PENDING or (seen.phase is Phase.EXITED and seen.started_at is None):
            return [], seen.phase is Phase.EXITED
        began = later(slot.since, slot.script.boot_s)
        until = min(now, seen.finished_at or now)
        timed = [LogLine(text, at=later(began, slot.script.every_s * n)) for n, text in enumerate(slot.lines)]
        return [t for t in timed if t.at is None or t.at <= until], seen.phase is Phase.EXITED

    # --- the world and its journal

    @contextmanager
    def _reading(self, call: Call) -> Iterator[None]:
        with self._lock:
            self.calls.append(call)
            self._reach(call)
            if self._holding:
                with self._journal.alone():
                    self._hold()
            self._catch_up()
            yield

    @contextmanager
    def _changing(self, call: Call) -> Iterator[None]:
        with self._lock, self._journal.alone():
            self.calls.append(call)
            self._reach(call)
            if self._around is not None:
                self._around(call, False)
            self._hold()
            yield
            if self._around is not None:
                self._around(call, True)

    def _reach(self, call: Call) -> None:
        if self.unreachable:
            raise Unreachable(f"{self.name}: no answer to {call.method}", backend=self.name)

    def _hold(self) -> None:
        """Catch up and, in a world that is new, put there what it is to hold from the beginning."""
        self._catch_up()
        held, self._holding = self._holding, ()
        if self._names:
            return
        now = self._clock()
        for instance in held:
            ended = instance if instance.phase is Phase.EXITED else None
            pending = instance.phase is Phase.PENDING
            script = Script(boot_s=1e9 if pending else 0.0)
            since = instance.started_at or now
            self._write("start", Slot(instance, script, since, held=True, ended=ended, ready=instance.ready))

    def _write(self, kind: str, value: Any) -> None:
        """Make one change: in the journal first, then here."""
        self._journal.append(kind, value)
        self._apply(kind, value)
        self._changed.notify_all()

    def _catch_up(self) -> None:
        """Read what other processes wrote since."""
        for namespace, kind, value in self._journal.fresh():
            if namespace == self._namespace:
                self._apply(kind, value)
            else:
                self._apply_stranger(namespace, kind, value)

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

    def _apply_start(self, slot: Slot) -> None:
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


def _patterns(script: Mapping[str, Script | Mapping[str, Any]]) -> Callable[[Launch], Script]:
    scripts = [(p, s if isinstance(s, Script) else _script_from_options(p, s)) for p, s in script.items()]

    def choose(launch: Launch) -> Script:
        return next((s for pattern, s in scripts if fnmatchcase(launch.name, pattern)), Script())

    return choose


_SHAPES = {
    "str": "text", "int": "a whole number", "float": "a number", "bool": "true or false",
    "tuple[int, int]": "two whole numbers, such as [9, 0]", "Growth": "a mapping with usd_step_hour",
}  # fmt: skip


def _offers_from_options(backend: str, given: object) -> Iterator[Offer]:
    """Yield the offers that ``config.yaml`` describes, or a test gave as they are."""
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise ConfigError(f"backend {backend!r}: offers: expected a list, got {given!r}", fix=OFFER_FIX)
    for each in given:
        yield each if isinstance(each, Offer) else _offer_from_options(backend, each)


def _offer_from_options(backend: str, options: object) -> Offer:
    """Return the offer that an entry of ``config.yaml`` describes, by the fields of ``Offer``."""
    if not isinstance(options, Mapping):
        raise ConfigError(f"backend {backend!r}: offers: expected mappings, got {options!r}", fix=OFFER_FIX)
    kinds = {field.name: str(field.type) for field in fields(Offer) if field.name != "backend"}
    for name in options:
        if name not in kinds:
            raise ConfigError(f"backend {backend!r}: offers: no field {name!r}", fix=OFFER_FIX)
    if "instance_type" not in options:
        raise ConfigError(f"backend {backend!r}: offers: one lacks its instance_type", fix=OFFER_FIX)
    # imported here, as a sim without offers of its own does without
    from pydantic import TypeAdapter, ValidationError

    filled = {"backend": backend, "cpu": 8.0, "memory_bytes": 64 * GIB, **options}
    try:
        return TypeAdapter(Offer).validate_python(filled)
    except ValidationError as wrong:
        name = str(wrong.errors(include_url=False)[0]["loc"][0])
        kind = kinds[name].removesuffix(" | None")
        what = f"offers: {name}: expected {_SHAPES.get(kind, kind)}, got {options[name]!r}"
        raise ConfigError(f"backend {backend!r}: {what}", fix=OFFER_FIX) from None


def _script_from_options(pattern: str, options: Mapping[str, Any]) -> Script:
    """Return the script that an entry of ``config.yaml`` describes."""
    try:
        return script_from_json(options)
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
