"""The port: what a place that runs containers must offer, and the values that cross it.

A *host* backend runs launches one by one and is supervised by the loop. A *cluster* backend
(``Can.GROUPS``) is handed whole groups and its own controllers keep them. Both are asked
twice and killed halfway: ``start`` and ``stop`` may be repeated, stopping what is gone is no
error, and every instance carries our name so that it can be found again. The clauses that
every backend must keep are numbered in ``docs/backends.md`` and run by
``orchestrator.testing``.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import field, replace
from datetime import datetime
from threading import Event as Flag
from typing import Literal, Protocol, runtime_checkable

from orchestrator.errors import AuthFailed, ModelyardError
from orchestrator.frozen import frozen
from orchestrator.units import format_usd

LABEL = "modelyard.dev/"
"""Prefix of the labels on everything a backend creates."""

FLEET = LABEL + "fleet"
"""Names the fleet that a machine is held for: an option of the launch that holds it, and a label."""


class Can(enum.Enum):
    """What a backend is able to do; the planner refuses what a spec needs and a backend cannot."""

    IMAGES = "run container images"
    BARE = "run commands without an image"
    PORTS = "publish ports"
    VOLUMES = "keep named volumes"
    MOUNTS = "mount folders of the machine"
    EXEC = "run a command inside a running launch"
    LIMITS = "hold a launch to its CPU and memory"
    PRIVILEGED = "run privileged containers"
    RESTART = "restart a launch that ended, by itself"
    NODES = "run the nodes of one replica on several machines"
    GROUPS = "keep whole groups with its own controllers"
    SCALES = "scale services with its own controllers"
    RENT = "rent the machine that an offer names, and give it back"
    KEEP = "keep a rented machine for the next launch"
    HOLD = "hold rented machines for a fleet"


SCRATCH_BYTES = 4 * 2**30
"""Logs, kernels that are compiled and temporary files of an engine, beside its model."""


@frozen
class Growth:
    """How large the disk of a machine may be asked for, and what it costs.

    A disk has whole steps, ``most_bytes`` at most, None where nobody knows. With ``doubles`` it is paid
    for as the next power of two of them.
    """

    usd_step_hour: float
    step_bytes: int = 2**30
    most_bytes: int | None = None
    doubles: bool = False

    def size_bytes(self, need_bytes: int) -> int | None:
        """Return the smallest disk that holds ``need_bytes`` and costs no less, None where none does.

        >>> Growth(0.1).size_bytes(300 * 10**9) / 2**30
        280.0
        >>> Growth(0.1, doubles=True).size_bytes(300 * 10**9) / 2**30
        512.0
        >>> Growth(0.1, most_bytes=2**40).size_bytes(2 * 2**40)
        """
        if self.most_bytes is not None and need_bytes > self.most_bytes:
            return None
        size = self._steps(need_bytes) * self.step_bytes
        return size if self.most_bytes is None else min(size, self.most_bytes)

    def usd_hour(self, size_bytes: int) -> float:
        """Return what a disk of this size costs by the hour.

        >>> Growth(0.5).usd_hour(3 * 2**30), Growth(0.5, doubles=True).usd_hour(3 * 2**30)
        (1.5, 2.0)
        """
        return self._steps(size_bytes) * self.usd_step_hour

    def _steps(self, size_bytes: int) -> int:
        steps = -(-size_bytes // self.step_bytes)
        return 1 << (steps - 1).bit_length() if self.doubles and steps else steps


@frozen
class Offer:
    """A kind of instance a backend can give now.

    ``vram_bytes`` is per accelerator, and what a program on it sees; ``count`` accelerators are
    in one instance. ``divisible`` offers (a machine of one's own) can be taken in part: cpu,
    memory and accelerators are then what is free. ``available`` is how many instances are there,
    None when unknown.
    """

    backend: str
    instance_type: str
    cpu: float
    memory_bytes: int
    region: str = ""
    disk_bytes: int | None = None
    accelerator: str | None = None
    vendor: str | None = None
    count: int = 0
    vram_bytes: int = 0
    compute_capability: tuple[int, int] | None = None
    arch: str = "x86"
    spot: bool = False
    price_usd_hour: float = 0.0
    own_usd_hour: float = 0.0
    """What the owner of a divisible machine counts for one accelerator, or for all of a machine
    that has none."""
    boot_s: int = 0
    available: int | None = None
    divisible: bool = False
    zone: str | None = None
    fleet: str | None = None
    reservation: str | None = None
    nodes: int = 1
    """Machines that are one, such as those of a TPU slice: taken by as many nodes of one replica."""
    price_list: str = ""
    """Whose prices in the catalog are added to ``price_usd_hour``, where the place does not tell
    the machine's; one that is not there leaves the offer without a price, and nobody rents it."""
    unfit: str = ""
    """Why nothing may start there now, though the machine is there: cordoned, or not well."""
    kept: bool = False
    """Whether it is kept for launches that ask for its accelerators: nothing else may start there."""
    fetches: bool = False
    """Whether ``disk_bytes`` has to hold what a launch fetches anew each time: its image and its model."""
    system_bytes: int = 0
    """What of ``disk_bytes`` its own system takes, where that is part of it."""
    growth: Growth | None = None
    """How a larger disk may be had, None where it comes as it is; ``price_usd_hour`` is with this one."""

    @property
    def own_prices(self) -> tuple[float, float]:
        """Both prices of a machine whose owner counts something for it, else zeros."""
        return (self.own_usd_hour, self.price_usd_hour) if self.own_usd_hour else (0.0, 0.0)

    def costs_usd_hour(self, *, count: int, nodes: int = 1) -> float:
        """Return what ``count`` accelerators on each of ``nodes`` such machines cost by the hour.

        >>> Offer("rack", "r1", 64, 2**39, count=8, divisible=True, own_usd_hour=1.5).costs_usd_hour(count=2)
        3.0
        """
        return round((self.price_usd_hour + self.own_usd_hour * max(1, count)) * nodes, 6)

    def with_disk(self, need_bytes: int) -> Offer:
        """Return it with a disk that holds ``need_bytes``, at its price, where its size may be chosen.

        >>> small = Offer("aws", "g6", 4, 2**34, disk_bytes=2**30, price_usd_hour=1.0, growth=Growth(0.5))
        >>> small.with_disk(3 * 2**30).price_usd_hour, small.with_disk(10).price_usd_hour
        (2.0, 1.0)
        """
        if self.growth is None or self.disk_bytes is None or need_bytes <= self.disk_bytes:
            return self
        size = self.growth.size_bytes(need_bytes)
        if size is None:
            return self
        more = self.growth.usd_hour(size) - self.growth.usd_hour(self.disk_bytes)
        return replace(self, disk_bytes=size, price_usd_hour=round(self.price_usd_hour + more, 6))


@frozen
class Rent:
    """The kind of machine that one launch is rented (``Can.RENT``), as an offer named it.

    ``price_usd_hour`` is what the plan counted for it, disks included. The other fields are those
    of ``Offer``; ``accelerators`` is how many the machine has.
    """

    instance_type: str
    region: str = ""
    zone: str | None = None
    spot: bool = False
    price_usd_hour: float = 0.0
    reservation: str | None = None
    accelerator: str | None = None
    vendor: str | None = None
    accelerators: int = 0
    vram_bytes: int = 0
    compute_capability: tuple[int, int] | None = None
    cpu: float = 0.0
    memory_bytes: int = 0
    """What a machine of a fleet has to share; 0 where one launch has all of it."""
    disk_bytes: int = 0
    """The disk that is asked for with it; 0 where its size is not ours to choose."""

    def __str__(self) -> str:
        """Return it in a few words, for people.

        >>> str(Rent("g6.xlarge", "us-east-1", "us-east-1b", spot=True, price_usd_hour=0.8048))
        'g6.xlarge spot in us-east-1b at $0.8048/h'
        """
        kind = f"{self.instance_type} spot" if self.spot else self.instance_type
        return f"{kind} in {self.zone or self.region} at ${format_usd(self.price_usd_hour)}/h"


@frozen
class Port:
    """A port of the container, and the one of the machine it is published on (None: any free one)."""

    container: int
    host: int | None = None


@frozen
class Mount:
    """A named volume or a folder of the machine, seen inside the container at ``target``.

    A ``cache`` is a volume that nobody has to ask for: a place with volumes makes it when it is
    not there, and one without goes on without it.
    """

    source: str
    target: str
    kind: Literal["volume", "folder", "cache"] = "volume"
    read_only: bool = False


@frozen
class File:
    """A small file that is put into the container before it starts.

    A relative ``target`` counts from where the command runs: the launch's working folder, or
    the image's.
    """

    target: str
    content: bytes
    mode: int = 0o644

    # where files cross as JSON, pydantic reads this
    __pydantic_config__ = {"ser_json_bytes": "base64", "val_json_bytes": "base64"}  # noqa: RUF012  # no field


@frozen
class Probe:
    """A question to a launch that decides whether it is ready.

    ``http`` succeeds on a 2xx or 3xx answer, ``tcp`` on a connection that the other side keeps
    open. ``start_s`` is how long the launch may take until the first success before it counts as
    failed. It is ready after ``ready_after`` good answers in a row and no longer after
    ``failures`` bad ones; with ``until_ready`` it is not asked again once it is. One that was ready
    and has not answered for ``silent_s`` is replaced; None is never. In a ``body`` that asks for a
    token of a model the model is called ``MODEL`` until its engine is known.
    """

    kind: Literal["http", "tcp"] = "http"
    port: int = 0
    path: str = "/"
    method: str = "GET"
    headers: tuple[tuple[str, str], ...] = ()
    body: str | None = None
    timeout_s: float = 5.0
    interval_s: float = 5.0
    start_s: float = 600.0
    failures: int = 3
    ready_after: int = 1
    until_ready: bool = False
    silent_s: float | None = 180.0


MODEL = "$(MODELYARD_MODEL)"
"""Stands in a probe for what an engine calls its model."""


@frozen
class Resources:
    """What a launch is given: limits, and the accelerators it holds.

    ``accelerators`` counts them; which ones is the backend's to choose, and ``Instance.devices``
    says it.
    """

    cpu: float | None = None
    memory_bytes: int | None = None
    disk_bytes: int | None = None
    shm_bytes: int | None = None
    accelerator: str | None = None
    vendor: str | None = None
    accelerators: int = 0
    vram_bytes: int = 0
    """Of each accelerator, as the offer that was chosen gave it; 0 where that is not known."""
    compute_capability: tuple[int, int] | None = None


@frozen
class Launch:
    """A container ready to start: one job's desired state.

    ``command`` is complete: no shell is added by a backend. ``secrets`` names environment
    variables whose values are handed over at the moment of the start and never stored:
    pairs of variable and reference. ``name`` is ``<run>-<replica>-<node>-<attempt>``.
    """

    name: str
    run: str
    replica: int = 0
    node: int = 0
    attempt: int = 0
    spec_hash: str = ""
    image: str | None = None
    entrypoint: tuple[str, ...] | None = None
    command: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    secrets: tuple[tuple[str, str], ...] = ()
    registry_secret: tuple[str, str] | None = None
    working_dir: str | None = None
    user: str | None = None
    privileged: bool = False
    resources: Resources = Resources()
    ports: tuple[Port, ...] = ()
    mounts: tuple[Mount, ...] = ()
    files: tuple[File, ...] = ()
    probe: Probe | None = None
    more_probes: tuple[Probe, ...] = ()
    writable: tuple[str, ...] = ()
    """Folders of the image that the program writes to, where its engine states them."""
    fetch_bytes: int = 0
    """What it downloads of a model before it is ready, into its caches; 0 where nobody knows."""
    restart: bool = False
    stop_grace_s: float = 10.0
    host_network: bool = False
    options: tuple[tuple[str, str], ...] = ()
    rent: Rent | None = None
    tags: tuple[tuple[str, str], ...] = ()
    """Labels of the user's own, sorted; none of ours is among them."""

    @property
    def fleet(self) -> str:
        """The fleet for which it holds a machine, running nothing there; "" for all that run something."""
        return next((value for key, value in self.options if key == FLEET), "")

    def probes(self) -> tuple[Probe, ...]:
        """Return every probe; all of them decide together."""
        return (self.probe, *self.more_probes) if self.probe else ()

    def labels(self) -> dict[str, str]:
        """Return its tags, and the labels by which this launch is found again.

        >>> sorted(Launch("hello-0-0-1", "hello", attempt=1, tags=(("team", "a"),)).labels())[-2:]
        ['modelyard.dev/spec-hash', 'team']
        """
        values = {
            "run": self.run,
            "replica": str(self.replica),
            "node": str(self.node),
            "attempt": str(self.attempt),
            "launch": self.name,
            "spec-hash": self.spec_hash,
        }
        return dict(self.tags) | {LABEL + key: value for key, value in values.items()}


class Phase(enum.Enum):
    """Where an instance is in its life, as its backend says."""

    PENDING = "pending"
    """Accepted, not running yet: the image is pulled, the machine boots."""
    RUNNING = "running"
    EXITED = "exited"
    """It ended; ``exit_code`` and ``reason`` say how."""


Reason = Literal["", "error", "oom", "preempted", "stopped", "no-start", "image", "lost"]
"""Why an instance ended: ``error`` is an exit code other than 0, ``no-start`` a container that
never ran, ``image`` one whose image could not be had, ``lost`` a machine that went away."""


Leave = Literal["", "drain", "evict"]
"""How a machine is emptied: ``drain`` moves what is kept up and lets tasks finish, ``evict`` ends them."""


@frozen
class Instance:
    """A machine or slot held from a backend, and the launch it runs.

    ``ports`` maps container ports to ``(address, port)`` a client on this machine can connect
    to. ``ready`` is None when the backend does not probe (the loop then does). ``devices`` are
    the accelerators held, as the machine numbers or names them.
    """

    name: str
    run: str
    replica: int
    node: int
    attempt: int
    spec_hash: str
    phase: Phase
    exit_code: int | None = None
    reason: Reason = ""
    message: str = ""
    started_at: datetime | None = None
    finished_at: datetime | None = None
    address: str | None = None
    ports: Mapping[int, tuple[str, int]] = field(default_factory=dict)
    ready: bool | None = None
    devices: tuple[str, ...] = ()
    restarts: int = 0
    machine: str = ""
    container: str = ""
    """What its container is called on that machine, for tools that attach to containers."""
    rented: bool = False
    """Whether ``machine`` is paid for on its account, until it is released."""
    image: str = ""
    """The digest of the image it was started from, as ``sha256:…``, where the place says it."""
    leave: Leave = ""
    """Whether what runs on ``machine`` is to go elsewhere, and how."""
    silent_since: datetime | None = None
    """Since when ``machine`` does not answer: the rest is as it was last seen, and nothing follows."""


@frozen
class LogLine:
    """One line of output; ``at`` is when it was written, where the backend knows."""

    text: str
    at: datetime | None = None
    stream: Literal["stdout", "stderr"] = "stdout"


@frozen
class Volume:
    """A named volume as a backend holds it."""

    name: str
    size_bytes: int | None = None
    used_by: tuple[str, ...] = ()


@frozen
class Check:
    """One thing ``backend check`` looked at: whether it is well, and what to do when it is not."""

    what: str
    ok: bool
    detail: str = ""
    fix: str = ""
    denied: bool = False
    """Whether it is not well for want of credentials or of a permission."""

    @classmethod
    def failed(cls, what: str, error: ModelyardError, *, fix: str = "") -> Check:
        """Return the check that ended with ``error``; ``fix`` is for an error that has none."""
        return cls(what, False, error.what, error.fix or fix, isinstance(error, AuthFailed))


@frozen
class HostDevice:
    """One accelerator of a host: ``key`` tells it from the others, ``ill`` says what is wrong with it."""

    key: str
    name: str
    held: bool = False
    ill: str = ""


@frozen
class Host:
    """A machine of one's own, as it is now.

    Nothing new starts on one that is not ``ready``; ``why`` says why, and ``fix`` what to do.
    ``blocks`` is into how many equal parts it is divided, None where it is shared freely.
    """

    name: str
    state: Literal["ready", "cordoned", "draining", "unwell", "silent", "booting"]
    why: str = ""
    fix: str = ""
    cpu: float = 0.0
    free_cpu: float = 0.0
    memory_bytes: int = 0
    free_memory_bytes: int = 0
    disk_bytes: int = 0
    devices: tuple[HostDevice, ...] = ()
    blocks: int | None = None
    blocks_held: int = 0
    rent: Rent | None = None
    """What it is rented as, with its price; None for a machine of one's own."""


Progress = Callable[[str], None]
"""Told in short phrases what a slow start is doing: ``pulling 40%``, ``starting``."""


@runtime_checkable
class Backend(Protocol):
    """A place that runs launches one by one.

    Every method may raise ``errors.Unreachable`` (nothing is known), ``AuthFailed`` or
    ``BackendError``. A backend is constructed as ``Class(name, **options)`` with the options of
    its entry in ``config.yaml``; constructing one touches nothing.
    """

    name: str
    can: frozenset[Can]

    def offers(self) -> Sequence[Offer]:
        """Return what can be had now, with what our own launches hold taken off."""

    def start(self, launch: Launch, *, secrets: Mapping[str, str], progress: Progress) -> Instance:
        """Start ``launch``, or find that it was started before; return as soon as it is accepted.

        Args:
            launch: What to start; its name is the key: asked twice, it starts once.
            secrets: Values for the variables in ``launch.secrets`` (by variable name), and for
                ``launch.registry_secret`` under the key ``"registry"`` as ``user:password``.
            progress: Called now and then while it takes long.

        Raises:
            NoCapacity: there is no room now.
            Rejected: it can never start as it is (no such image, a port that is taken).
        """

    def instances(self) -> Sequence[Instance]:
        """Return all that carries our labels, running or ended, ordered by name."""

    def stop(self, name: str, *, grace_s: float) -> None:
        """Ask the launch to end, wait up to ``grace_s``, then kill it; it stays listed as exited."""

    def remove(self, name: str) -> None:
        """Forget an ended launch and its output; one that runs is killed first; unknown is no error."""

    def logs(
        self, name: str, *, follow: bool = False, since: datetime | None = None, tail: int | None = None
    ) -> Iterator[LogLine]:
        """Yield the launch's output, oldest first; with ``follow`` until it ends.

        Raises:
            NotFound: there is no such launch here.
        """

    def execute(self, name: str, command: Sequence[str], *, tty: bool) -> int:
        """Run a command inside a running launch on this process's terminal; return its exit code."""

    def watch(self, closed: Flag) -> Iterator[str]:
        """Yield names of launches that may have changed, until ``closed`` is set; "" means any."""

    def check(self) -> Sequence[Check]:
        """Look whether this place is usable, and say what to do when it is not; never raises."""

    def create_volume(self, name: str, *, size_bytes: int | None) -> None:
        """Make a named volume, or find it; only with ``Can.VOLUMES``."""

    def volumes(self) -> Sequence[Volume]:
        """Return the volumes that carry our labels, ordered by name."""

    def delete_volume(self, name: str) -> None:
        """Delete a volume; unknown is no error; one in use is refused with ``Rejected``."""


@runtime_checkable
class HostKeeper(Backend, Protocol):
    """A place that is made of machines of one's own, which its operator takes out of use and brings back.

    It has the option ``held``: hosts by name on which nothing new starts, each with ``reason`` and
    ``leave``, which ``Instance.leave`` repeats.
    """

    env: Mapping[str, str]
    """Variables of everything that runs there, below a launch's own; some refer to secrets."""

    def host_names(self) -> Sequence[str]:
        """Return what its machines are called, in the order of the configuration; asks none of them."""

    def hosts(self) -> Sequence[Host]:
        """Return every machine in the order of the configuration; one that does not answer is ``silent``."""

    def unheard(self) -> Collection[str]:
        """Return the machines of which ``instances`` did not know anything when it was last asked.

        They did not answer, and nobody here remembers their last word: what the record has on them
        is not gone.
        """


@frozen
class Machine:
    """A machine that is rented and carries our deployment's tag; ``launch`` is whom it was rented for.

    ``expires_at`` is when it ends by itself unless somebody of ours is heard of before.
    """

    id: str
    launch: str
    run: str
    instance_type: str
    region: str
    state: str
    since: datetime | None = None
    expires_at: datetime | None = None


@runtime_checkable
class Renter(Backend, Protocol):
    """A place that rents a machine for each launch (``Can.RENT``).

    ``start`` takes the machine that ``launch.rent`` names, one that was kept or a new one, and asks
    for it under a key that is the launch's name: asked twice, one is rented.
    """

    def release(self, name: str, *, keep_s: float | None) -> None:
        """Give the machine of an ended launch back, with its output kept; unknown is no error.

        Args:
            name: The launch.
            keep_s: How long another launch may take the machine over first; None: for ever. A place
                without ``Can.KEEP`` ends it at once.
        """

    def machines(self) -> Sequence[Machine]:
        """Return every machine that carries our deployment's tag, ordered by id."""

    def terminate(self, machine: str) -> None:
        """End a machine and all that belongs to it; gone is no error.

        Raises:
            Rejected: it does not carry our deployment's tag.
        """


@runtime_checkable
class ZonedVolumes(Backend, Protocol):
    """A place whose volumes are each in one zone, and are used there only."""

    def create_volume_in(self, name: str, *, size_bytes: int | None, zone: str | None) -> None:
        """Make a named volume in a zone, or find it wherever it is; None leaves the zone to the place."""


@frozen
class HeldMachine:
    """A machine of a fleet that is up: what the record has of it.

    ``launch`` is the one that holds it at ``backend``. One that is ``leaving`` takes no more launches.
    """

    id: str
    backend: str
    launch: str
    address: str
    rent: Rent
    leaving: bool = False


@runtime_checkable
class Holder(Renter, Protocol):
    """A renter whose machines may be held for a fleet (``Can.HOLD``), and shared by launches then.

    A launch with a ``fleet`` runs nothing: it is running once its machine can be used, and ends with it.
    """

    def fleet(
        self,
        name: str,
        *,
        machines: Sequence[HeldMachine],
        peers: Mapping[str, Backend],
        blocks: int,
        held: Mapping[str, Mapping[str, str]],
        env: Mapping[str, str],
    ) -> HostKeeper:
        """Return the place that these machines are, whichever of ``peers`` rents each; touches nothing.

        Args:
            name: The fleet's.
            machines: Those that are up.
            peers: The places they are rented from, by name, this one among them.
            blocks: Into how many equal parts each is divided.
            held: As the option of a ``HostKeeper``, by machine.
            env: Variables of everything that runs there.
        """


@frozen
class Scaling:
    """Between how many replicas a service is kept, and by what.

    ``series`` is the metric as its engine exports it, ``target`` its value per replica.
    """

    least: int
    most: int
    series: str
    target: float


@frozen
class Group:
    """Identical launches kept together: ``replicas`` × ``nodes`` of one template.

    The template's name, replica, node and attempt are those of the first launch. ``follower`` is
    the launch of the nodes above 0, where it differs. With ``surge`` a changed replica may run
    beside the one it replaces; without, the old one goes first. ``scaling`` is for a place that
    has a controller of its own for it (``Can.SCALES``), and None where we scale. ``serves`` is what
    requests call the model and its adapters, for a place that routes by it.
    """

    name: str
    template: Launch
    kind: Literal["task", "service", "dev-environment"]
    replicas: int = 1
    nodes: int = 1
    retries: int = 0
    max_duration_s: int | None = None
    follower: Launch | None = None
    surge: bool = True
    scaling: Scaling | None = None
    serves: tuple[str, ...] = ()
    ends_with_master: bool = False
    """Whether a task is done when its node 0 is."""
    said: int = field(default=0, repr=False)
    """How often it was said again for what others had changed; of the digest, and of no object."""

    def digest(self) -> str:
        """Return what tells this group from any other, for a backend to write on what it makes."""
        again = f" {self.said}" if self.said else ""
        return hashlib.sha256((repr(self) + again).encode()).hexdigest()[:16]


@frozen
class GroupStatus:
    """What a cluster's controllers say about a group.

    ``digest`` is that of the group as it was last applied, "" where the backend does not keep it.
    ``stalled`` says that what was asked for last did not come up in the time it was given; the
    controllers go on trying, and what was there before stays. ``replicas`` is how many they are asked
    for, by whoever scales them, None where that is no number of theirs.
    """

    name: str
    spec_hash: str
    phase: Phase
    ready_replicas: int = 0
    instances: tuple[Instance, ...] = ()
    exit_code: int | None = None
    reason: Reason = ""
    message: str = ""
    digest: str = ""
    stalled: bool = False
    replicas: int | None = None


@frozen
class Rendering:
    """A group or a volume as text, for a repository or a reviewer; ``notes`` say what it takes."""

    text: str
    notes: tuple[str, ...] = ()


@runtime_checkable
class Renderer(Protocol):
    """A backend that can say in its own language what it would make; it asks nobody."""

    def manifest(self, group: Group) -> Rendering:
        """Return ``group`` as text, the same for the same group.

        Raises:
            Rejected: the backend would never take it.
        """

    def volume_manifest(self, name: str, *, size_bytes: int | None) -> Rendering:
        """Return a named volume as text."""

    def access_manifest(self) -> Rendering:
        """Return what lets Modelyard do its work there, and no more."""


@runtime_checkable
class Rehearser(Protocol):
    """A cluster that can be asked what it would make of a group, and writes nothing."""

    def rehearse(self, group: Group) -> Sequence[str]:
        """Return what applying ``group`` would change there, a phrase for each field.

        Raises:
            BackendError: it would be refused, for the reason that this says.
        """


@runtime_checkable
class Forwarder(Protocol):
    """A backend that leads to ports of its launches where this machine does not reach them."""

    def forwarded(self, name: str, port: int) -> AbstractContextManager[tuple[str, int]]:
        """Give an address of this machine that leads to a port of a running launch, until left.

        Raises:
            NotFound: there is no such launch here.
            BackendError: it does not run, or we may not.
        """


@runtime_checkable
class GroupBackend(Backend, Protocol):
    """A cluster whose own controllers keep groups (``Can.GROUPS``)."""

    def apply_group(self, group: Group, *, secrets: Mapping[str, str]) -> GroupStatus:
        """Make the cluster's objects say ``group``; repeatable, and an update where it exists."""

    def groups(self) -> Sequence[GroupStatus]:
        """Return every group that carries our labels, ordered by name."""

    def delete_group(self, name: str, *, grace_s: float) -> None:
        """Delete a group and all it owns; unknown is no error."""


def keeper_of_groups(place: Backend) -> GroupBackend | None:
    """Return a place as what keeps whole groups, None where it keeps none."""
    return place if Can.GROUPS in place.can and isinstance(place, GroupBackend) else None
