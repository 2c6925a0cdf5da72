"""What a planner hands to an engine, and what the engine answers: values only."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field, replace
from typing import TYPE_CHECKING, Literal, Protocol

from orchestrator.backend import MODEL, File, Launch, Mount, Port, Probe
from orchestrator.frozen import frozen

if TYPE_CHECKING:  # the record names an engine's failures, and a small plan reads no catalog
    from orchestrator.catalog.values import Accelerator, ModelFacts
    from orchestrator.engines.arguments import Rules

Precision = Literal["auto", "bf16", "fp16", "fp8", "int8", "int4", "fp4"]
KvDtype = Literal["auto", "bf16", "fp8"]

FETCH_BYTES_S = 60e6
"""Planning rate of a download: half of what a 1 Gbit/s line carries."""
LOAD_BYTES_S = 125 * 2**20
"""Planning rate of reading weights from disk: the baseline of an AWS gp3 volume (EBS user guide)."""


@frozen
class Source:
    """Where the weights come from.

    ``id`` is what the user wrote: a hub id, a folder or a URI. ``path`` is the folder inside the
    container when the weights are mounted there, and then nothing is fetched from the hub.
    """

    id: str
    revision: str | None = None
    path: str | None = None

    @property
    def reference(self) -> str:
        """Return what the engine is told to load.

        >>> Source("org/model").reference, Source("./tuned", path="/models/tuned").reference
        ('org/model', '/models/tuned')
        """
        return self.path or self.id

    @property
    def scheme(self) -> str:
        """Return the URI scheme, ``hub`` for a hub id and ``folder`` for a mounted or absolute path.

        >>> Source("org/model").scheme, Source("s3://bucket/model").scheme, Source("/models/x").scheme
        ('hub', 's3', 'folder')
        """
        if self.path or self.id.startswith(("/", "./", "../")):
            return "folder"
        scheme, found, _ = self.id.partition("://")
        return scheme if found else "hub"


@frozen
class Adapter:
    """LoRA weights served beside the base model; ``rank`` is None when unknown."""

    name: str
    source: Source
    rank: int | None = None


@frozen
class Adapters:
    """How an engine takes adapters while it runs.

    ``load`` and ``unload`` are paths that take a POST with ``lora_name``, the first with ``lora_path``
    too. ``listed`` answers a GET with the models, of which an adapter has a ``parent`` and, as ``root``,
    the path it was loaded from. ``flag`` lists them on the command line, each as ``name=path``.
    Requests call one ``called``, with ``{base}`` and ``{name}`` filled in. It was started with room in
    device memory for ``slots`` of them, of rank ``rank`` at most; more take turns.
    """

    load: str
    unload: str
    flag: str
    listed: str = "/v1/models"
    called: str = "{name}"
    slots: int = 1
    rank: int = 0


UNKNOWN_RANK = 64
"""Assumed for an adapter whose rank is not known; a larger one is refused by the engine."""


def room_for(ranks: Iterable[int | None]) -> int:
    """Return the rank that room is made for: a power of two, as engines make it.

    >>> room_for([12, 20]), room_for([]), room_for([8, None])
    (32, 64, 64)
    """
    largest = max((rank or UNKNOWN_RANK for rank in ranks), default=UNKNOWN_RANK)
    return max(8, 1 << (largest - 1).bit_length())


def relisted(command: Sequence[str], flag: str, named: Sequence[str]) -> tuple[str, ...]:
    """Return ``command`` with ``named`` after ``flag``, in place of what was there.

    >>> relisted(("serve", "--lora", "a=/a", "b=/b", "--port", "1"), "--lora", ["c=/c"])
    ('serve', '--lora', 'c=/c', '--port', '1')
    >>> relisted(("serve", "--lora", "a=/a"), "--lora", [])
    ('serve',)
    """
    words = list(command)
    at = words.index(flag) if flag in words else len(words)
    end = next((i for i in range(at + 1, len(words)) if words[i].startswith("--")), len(words))
    words[at:end] = [flag, *named] if named else []
    return tuple(words)


@frozen
class ServingJob:
    """One replica of a served model, sized: all that an engine needs to write its command.

    ``count`` accelerators are on each of ``nodes`` machines; ``accelerator`` None is a CPU.
    ``precision`` is what the weights are held in, ``quantization`` the method the user named
    (the model's own is in ``model.quantization``). ``memory_utilization`` is the fraction of
    device memory the engine may take; ``free_bytes`` is what the device has free now, where
    the machine is already known. ``fetch_bytes`` is what each node still has to download (0 when
    its cache is warm, None when unknown), ``load_bytes`` what it reads from disk.
    ``secrets`` are pairs of environment variable and reference; values never come here.
    """

    model: ModelFacts
    source: Source
    accelerator: Accelerator | None = None
    count: int = 1
    nodes: int = 1
    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    expert: int = 1
    precision: Precision = "auto"
    quantization: str | None = None
    kv_dtype: KvDtype = "auto"
    kv_cache_bytes: int | None = None
    context_tokens: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    memory_utilization: float | None = None
    free_bytes: int | None = None
    adapters: tuple[Adapter, ...] = ()
    adapter_slots: int = 0
    """Adapters held in device memory at once; 0: as many as are listed."""
    served_name: str | None = None
    port: int | None = None
    arch: Literal["x86", "arm"] = "x86"
    image: str | None = None
    version: str | None = None
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    secrets: tuple[tuple[str, str], ...] = ()
    fetch_bytes: int | None = None
    load_bytes: int = 0
    fetch_bytes_s: float = FETCH_BYTES_S
    load_bytes_s: float = LOAD_BYTES_S
    drain_s: int = 30
    unprivileged: bool = False
    """Run as the image's prepared user without root, where it has one."""

    @property
    def family(self) -> str:
        """Return the software family of the device: ``cuda``, ``rocm`` …, or ``cpu``."""
        return self.accelerator.family if self.accelerator else "cpu"

    @property
    def name(self) -> str:
        """Return the model name that clients ask for."""
        return self.served_name or self.source.id

    def states_own(self, flag: str) -> bool:
        """Return whether the user's arguments give ``flag`` a value of their own."""
        return any(word == flag or word.startswith(flag + "=") for word in self.args)

    @property
    def slots(self) -> int:
        """Return how many adapters are held in device memory at once; 0 where none ever is."""
        return self.adapter_slots or len(self.adapters)

    @property
    def adapter_rank(self) -> int:
        """Return the largest rank that an adapter may have."""
        return room_for(adapter.rank for adapter in self.adapters)


@frozen
class Stated:
    """What a user's own options say of a job's fields of the same name; None where they are silent.

    ``pools`` is the model's, and ``longest_tokens`` its context, which options can stretch.
    """

    tensor: int | None = None
    pipeline: int | None = None
    data: int | None = None
    expert: int | None = None
    context_tokens: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    memory_utilization: float | None = None
    quantization: str | None = None
    kv_dtype: KvDtype | None = None
    pools: bool | None = None
    """Whether the model is told to pool rather than to generate."""
    longest_tokens: int | None = None

    def of(self, model: ModelFacts) -> ModelFacts:
        """Return the model as the options make it."""
        pools = model.pools if self.pools is None else self.pools
        context = self.longest_tokens or model.context
        same = (pools, context) == (model.pools, model.context)
        return model if same else replace(model, pools=pools, context=context)


@frozen
class Metrics:
    """Where an engine tells its load, and under which names; every spelling its versions used.

    ``queue`` counts waiting requests, ``running`` those being worked on, ``kv_cache`` is the used
    fraction from 0 to 1, ``ttft`` a histogram of seconds to the first token. ``steps`` counts
    something that grows with every step of a generation, not only with its end: while requests
    run and it stands still, the engine hangs. An empty tuple means that the engine does not tell
    this.
    """

    path: str = "/metrics"
    queue: tuple[str, ...] = ()
    running: tuple[str, ...] = ()
    kv_cache: tuple[str, ...] = ()
    ttft: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()


@frozen
class Profile:
    """What the container has to be allowed: its user, and where it writes.

    ``user`` None is the image's own user. ``writable`` folders suffice with a read-only root
    file system; no engine needs privileges or added capabilities for serving on one node.
    """

    user: str | None = None
    writable: tuple[str, ...] = ("/tmp",)


@frozen
class EngineLaunch:
    """A serving job as one container: everything the engine decides about a ``Launch``.

    ``model_name`` is what requests have to call the model: some servers answer to one name only.
    ``routes`` are the request paths a gateway may pass on, and nothing else: engines leave
    administrative routes open beside them. ``stop_grace_s`` is longer than the engine's own
    drain. ``registry`` is a user name and the reference of the token, for images that need one.
    ``setup`` is a shell command that a general image needs first; where the engine is installed
    already (a machine without containers), leave it and the image out. ``warnings`` are for the
    plan.
    """

    image: str | None
    command: tuple[str, ...]
    entrypoint: tuple[str, ...] | None = None
    setup: str = ""
    env: tuple[tuple[str, str], ...] = ()
    secrets: tuple[tuple[str, str], ...] = ()
    registry: tuple[str, str] | None = None
    caches: tuple[Mount, ...] = ()
    files: tuple[File, ...] = ()
    shm_bytes: int = 0
    port: int = 0
    fixed_port: bool = False
    """Whether the machine's port has to be the container's."""
    probe: Probe | None = None
    metrics: Metrics | None = None
    adapters: Adapters | None = None
    """None where those it starts with are all it ever has."""
    model_name: str = ""
    routes: tuple[str, ...] = ()
    stop_grace_s: float = 10.0
    profile: Profile = Profile()
    warnings: tuple[str, ...] = ()

    def _ports(self, asked: Sequence[Port]) -> tuple[Port, ...]:
        """Return the ports to publish: those asked for, else the engine's own."""
        ports = tuple(asked) or ((Port(self.port),) if self.port else ())
        if not self.fixed_port:
            return ports
        return tuple(Port(port.container, port.container) for port in ports)

    def installed(self) -> EngineLaunch:
        """Return the same on a machine that has the engine installed: no image, no set-up, no caches.

        The port is the engine's own, and must be free there: its command names it.
        """
        env = tuple((name, value) for name, value in self.env if not value.startswith("/root/"))
        return replace(self, image=None, setup="", caches=(), shm_bytes=0, env=env, fixed_port=True)

    def _probes(self, asked: Sequence[Probe]) -> tuple[Probe, ...]:
        """Return the probes that were asked for, with what only the engine knows, else its own."""
        if not self.port:
            return ()
        own = self.probe or Probe(port=self.port)
        name = json.dumps(self.model_name)[1:-1]
        return tuple(
            replace(
                each, port=each.port or own.port, start_s=each.start_s or own.start_s,
                body=each.body and each.body.replace(MODEL, name),
            )
            for each in asked
        ) or ((self.probe,) if self.probe else ())  # fmt: skip

    def onto(self, launch: Launch) -> Launch:
        """Return ``launch`` with the engine's part filled in; its name, run and mounts are kept.

        A follower of a multi-node replica has no probe and publishes no port.

        >>> answer = EngineLaunch("engine:1", ("serve",), port=8000, shm_bytes=2**30)
        >>> answer.onto(Launch("chat-0-0-1", "chat")).resources.shm_bytes
        1073741824
        """
        entrypoint, command = self.entrypoint, self.command
        if self.setup:  # exec, so that the engine is the process that gets the signal to stop
            inner = (*(entrypoint or ()), *command)
            entrypoint, command = ("sh", "-c"), (f'{self.setup} && exec "$@"', "sh", *inner)
        probes = self._probes(launch.probes())
        return replace(
            launch,
            image=self.image,
            entrypoint=entrypoint,
            command=command,
            env=(*launch.env, *self.env),
            secrets=self.secrets,
            registry_secret=self.registry or launch.registry_secret,
            user=launch.user or self.profile.user,
            resources=replace(launch.resources, shm_bytes=launch.resources.shm_bytes or self.shm_bytes),
            ports=self._ports(launch.ports),
            mounts=(*launch.mounts, *self.caches),
            files=(*launch.files, *self.files),
            probe=next(iter(probes), None),
            more_probes=probes[1:],
            writable=self.profile.writable if self.image else (),
            stop_grace_s=self.stop_grace_s,
        )


Kind = tuple[str, tuple[int, int] | None, str | None]
"""Devices that no engine tells apart: their family, compute capability and GFX target."""


def kind_of(device: Accelerator | None) -> Kind:
    """Return all that an engine may decide by of ``device``, None for a CPU.

    >>> from orchestrator.catalog import accelerator
    >>> kind_of(accelerator("H100-80GB")) == kind_of(accelerator("H200-141GB"))
    True
    """
    return (device.family, device.capability, device.gfx) if device else ("cpu", None, None)


class Placed(Protocol):
    """What a job says about where it runs: enough to choose an image."""

    @property
    def accelerator(self) -> Accelerator | None:
        """Return the device, None for a CPU."""

    @property
    def family(self) -> str:
        """Return the software family of the device, or ``cpu``."""

    @property
    def arch(self) -> Literal["x86", "arm"]:
        """Return the instruction set of the machine."""

    @property
    def version(self) -> str | None:
        """Return the engine's version that is asked for, if any."""

    @property
    def image(self) -> str | None:
        """Return the user's own image, if any."""


class Fetched(Protocol):
    """What a job says about the weights it needs, and what is given to get them."""

    @property
    def model(self) -> ModelFacts:
        """Return what the model is."""

    @property
    def source(self) -> Source:
        """Return where the weights come from."""

    @property
    def fetch_bytes(self) -> int | None:
        """Return what has still to be downloaded, None when unknown."""

    @property
    def env(self) -> tuple[tuple[str, str], ...]:
        """Return the user's variables."""

    @property
    def secrets(self) -> tuple[tuple[str, str], ...]:
        """Return pairs of variable and reference."""


@frozen
class Spelled:
    """How people start an engine themselves, and which of its options a spec has a field for.

    ``programs`` are the words that a command begins with, ``first`` says that the model may stand
    right behind them. ``says`` gives the path in a spec for an option's main name, ``drops`` why an
    option is needed no more. ``variables`` are options by the variable that says the same, and with
    ``every_variable`` all options are, in capitals. ``images`` is how the names of images begin that hold
    one model each.
    """

    programs: tuple[tuple[str, ...], ...] = ()
    first: bool = False
    says: Mapping[str, str] = field(default_factory=dict)
    drops: Mapping[str, str] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    every_variable: bool = False
    images: str = ""


class Engine(Protocol):
    """A program that serves a model: asked first whether it can, then how.

    ``versions`` are those whose options were read from the program itself, the default first.
    """

    @property
    def name(self) -> str:
        """Return the name in YAML, which is the module's."""

    @property
    def versions(self) -> Sequence[str]:
        """Return the known versions, the default first."""

    @property
    def spelled(self) -> Spelled:
        """Return how people start it themselves."""

    @property
    def rules(self) -> Rules:
        """Return what it says about its user's options."""

    @property
    def parser(self) -> tuple[str, tuple[str, ...]] | None:
        """Return whose options it takes, and of which versions, where they are not its own."""

    def refuses(self, job: ServingJob) -> str | None:
        """Say in one phrase why the engine cannot serve ``job``, or None when it can.

        Of the device only its ``kind_of`` decides, and no number of bytes does unless
        ``free_bytes`` is given: what holds for one job holds for all of its kind.
        """

    def states(self, args: Sequence[str]) -> Stated:
        """Return what a user's ``args`` say of a job; nothing where they cannot be read."""

    def objects(self, args: Sequence[str], *, version: str | None, own_image: bool) -> str | None:
        """Say which of a user's ``args`` this engine cannot be given, and why; None when it can all.

        ``version`` is the asked one; an image of the user's own may know more than the published.
        """

    def launch(self, job: ServingJob, *, node_rank: int = 0) -> EngineLaunch:
        """Return the container of node ``node_rank`` of one replica of ``job``.

        Raises:
            ValueError: the engine refuses ``job``; the message is the reason.
        """
