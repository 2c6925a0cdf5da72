"""What the record holds of a run."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import field, replace
from datetime import datetime
from typing import Literal

from orchestrator.backend import Group, Launch, Rent, Resources, Scaling
from orchestrator.frozen import frozen

RunType = Literal["task", "service", "dev-environment", "fleet"]
"""``fleet`` is the run of launches that hold rented machines, and run nothing."""
GIVEN_UP = "not tried again: "
"""How the reason of a run begins of which a replica was given up while others serve."""
CANARY = "canary: "
"""Begins the reason of a service that shares its requests with a canary, as was asked for."""
ROLLING = "rolling out: "
"""Begins the reason of a service that is ready as it was before, and waits to become what was asked for."""
Kept = Literal["task", "service", "dev-environment"]
"""What a cluster keeps."""
UNBOUNDED_RETRIES = 6
"""Where a spec bounds the time and not the number: the default of a Job (Kubernetes docs)."""
RetryEvent = Literal["no-capacity", "interruption", "error"]


class Wanted(enum.Enum):
    """What the user asked for."""

    RUN = "run"
    STOP = "stop"
    DELETE = "delete"


class RunState(enum.Enum):
    """Where a run is in its life."""

    QUEUED = "queued"
    PROVISIONING = "provisioning"
    STARTING = "starting"
    RUNNING = "running"
    READY = "ready"
    STOPPING = "stopping"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"

    @property
    def is_final(self) -> bool:
        """Whether nothing more happens by itself."""
        return self in _FINAL_RUN


_FINAL_RUN = frozenset({RunState.SUCCEEDED, RunState.FAILED, RunState.STOPPED})


class JobState(enum.Enum):
    """Where one launch is in its life, as far as the record knows."""

    PROVISIONING = "provisioning"
    """The start was decided and written down; the backend may or may not have been asked."""
    STARTING = "starting"
    RUNNING = "running"
    READY = "ready"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"
    """It ended because we asked."""

    @property
    def is_final(self) -> bool:
        """Whether the launch has ended."""
        return self in _FINAL_JOB


_FINAL_JOB = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.STOPPED})


@frozen
class Retry:
    """When a failed attempt is followed by another.

    ``duration_s`` counts from the first failure in a row; None means no end. ``first_s`` and
    ``most_s`` bound the pause, which doubles from one to the other.
    """

    on: frozenset[RetryEvent] = frozenset()
    duration_s: int | None = None
    attempts: int | None = None
    first_s: float = 2.0
    most_s: float = 300.0


@frozen
class Before:
    """What a run was before its spec was replaced, and worked as: all it takes to make it so again."""

    spec: str
    spec_hash: str
    plan: str
    launch: Launch
    backends: tuple[str, ...]
    follower: Launch | None = None
    nodes: int = 1
    surge: bool = False
    rents: tuple[Rent | None, ...] = ()

    def of_node(self, node: int) -> Launch:
        """Return the launch that the node with this rank was made from."""
        return self.follower if node and self.follower else self.launch


@frozen
class Holding:
    """How many machines a fleet holds, into how many parts each is divided, and how long an idle one stays.

    ``idle_s`` counts for those above ``least``; None is for ever.
    """

    least: int
    most: int
    blocks: int = 1
    idle_s: int | None = None


@frozen
class Adapter:
    """LoRA weights that replicas serve beside their model: what they are called, and where they are read.

    ``revision`` tells them from others that were at ``path`` before.
    """

    name: str
    path: str
    revision: str = ""

    @property
    def told(self) -> str:
        """Return the name and the revision, as the record says what a replica serves.

        >>> Adapter("sql", "/a").told, Adapter("sql", "/a", "v2").told
        ('sql', 'sql@v2')
        """
        return f"{self.name}@{self.revision}" if self.revision else self.name


@frozen
class Loaded:
    """What an engine was seen to serve beside its model, and why that is not what it should."""

    adapters: tuple[str, ...] = ()
    trouble: str = ""


@frozen
class Template:
    """How a run's launches look and where they may go.

    ``launch`` is the first of them: replica 0, node 0, attempt 0; ``follower`` is the launch of the
    other nodes, where it differs. ``backends`` are the places
    the plan chose, best first; a launch that finds no capacity goes to the next. A place that rents
    machines is there once for each kind, and ``rents`` names it at the same position; none where
    nothing is rented. ``surge`` says whether a replica's successor may run beside it, ``idle_s`` how
    long a rented machine that it leaves is kept, None for ever.
    """

    launch: Launch
    backends: tuple[str, ...]
    follower: Launch | None = None
    replicas: int = 1
    nodes: int = 1
    surge: bool = False
    retry: Retry = Retry()
    max_duration_s: int | None = None
    rents: tuple[Rent | None, ...] = ()
    idle_s: int | None = 300
    canary: int = 0
    """Percent of requests for one replica of this spec, beside all of the one before; 0: it takes over."""
    rollback: bool = False
    """Whether ``before`` is put back where this spec does not become ready."""
    before: Before | None = None
    """What replicas of the spec before are still asked by, and what ``rollback`` puts back."""
    gave_up: str = ""
    """Why the spec that came after this one was given up, and this one put back."""
    order: Literal["any", "master-first", "workers-first"] = "any"
    """Whether node 0 starts before the others, after them, or with them."""
    ends_with_master: bool = False
    """Whether a task is done when its node 0 is."""
    resumes: bool = False
    """Whether the next attempt goes on where a stopped one left off, as training does."""
    scales: bool = False
    """Whether its places scale with controllers of their own."""
    scaling: Scaling | None = None
    """Between what numbers they do, and by what; None where we scale, or nobody does."""
    serves: tuple[str, ...] = ()
    """What requests call the model and its adapters, for places that route by it."""
    adapters: tuple[Adapter, ...] = ()
    """What is to be loaded while replicas run; none where those a launch starts with are all it has."""
    holding: Holding | None = None
    """What the run of a fleet holds; None for all others."""
    base: str = ""
    """The service whose replicas serve ``adapters``; "" for what has replicas of its own."""
    said: int = 0
    """How often a cluster was told the same again, for what others had changed there since."""

    @property
    def places(self) -> tuple[tuple[str, Rent | None], ...]:
        """Return every place with the kind of machine it rents out, best first."""
        rents = self.rents or (None,) * len(self.backends)
        return tuple(zip(self.backends, rents, strict=True))

    def put_back(self, why: str) -> Template:
        """Return the template that was before, given up for ``why``; what changes in place stays.

        Raises:
            ValueError: nothing was before.
        """
        was = self.before
        if was is None:
            raise ValueError("nothing was before")
        return replace(
            self, launch=was.launch, backends=was.backends, follower=was.follower, nodes=was.nodes,
            surge=was.surge, rents=was.rents, canary=0, before=None, gave_up=why,
        )  # fmt: skip

    def again(self) -> Template:
        """Return the same, to be told once more to the cluster that keeps it."""
        return replace(self, said=self.said + 1)

    def begun(self, at: datetime) -> Template:
        """Return the same for a life of its run that begins at ``at``.

        What resumes has to tell its own earlier attempts from those of a life before.
        """
        if not self.resumes:
            return self
        env = {**dict(self.launch.env), "MODELYARD_RUN_SINCE": at.isoformat()}
        return replace(self, launch=replace(self.launch, env=tuple(env.items())))

    def runs_for_s(self) -> float | None:
        """Return after how long a launch is asked to stop, None where it may run for ever.

        What resumes is asked early enough to have written its checkpoint at ``max_duration``, and
        has at least half of that time.
        """
        limit = self.max_duration_s
        if limit is None or not self.resumes:
            return limit
        return max(limit - self.launch.stop_grace_s, limit / 2)

    def of_node(self, node: int) -> Launch:
        """Return the launch that the node with this rank is made from."""
        return self.follower if node and self.follower else self.launch

    def at(self, replica: int, node: int, attempt: int, rent: Rent | None = None) -> Launch:
        """Return the launch of one place and attempt, with its node variables and its machine.

        A place where launches share the machine's ports puts another ``MODELYARD_PORT`` in.

        >>> template = Template(Launch("chat-0-0-0", "chat"), ("docker",))
        >>> template.at(1, 0, 2).name
        'chat-1-0-2'
        """
        first = self.of_node(node)
        first = replace(first, resources=_given(first.resources, rent), rent=rent) if rent else first
        own = {
            "MODELYARD_RUN_NAME": first.run,
            "MODELYARD_REPLICA": str(replica),
            "MODELYARD_NODES_NUM": str(self.nodes),
            "MODELYARD_NODE_RANK": str(node),
            "MODELYARD_GPUS_PER_NODE": str(first.resources.accelerators),
            "MODELYARD_GPUS_NUM": str(first.resources.accelerators * self.nodes),
        }
        if first.ports:
            own["MODELYARD_PORT"] = str(first.ports[0].container)
        env = tuple({**own, **dict(first.env)}.items())
        name = f"{first.run}-{replica}-{node}-{attempt}"
        return replace(first, name=name, replica=replica, node=node, attempt=attempt, env=env)


def _given(resources: Resources, rent: Rent) -> Resources:
    """Return what a launch is given on a rented machine: all of the accelerators it has."""
    if not resources.accelerators:
        return resources
    return replace(
        resources, accelerator=rent.accelerator, vendor=rent.vendor, accelerators=rent.accelerators,
        vram_bytes=rent.vram_bytes, compute_capability=rent.compute_capability,
    )  # fmt: skip


@frozen
class Run:
    """The life of one applied spec.

    ``spec`` is the canonical JSON of the spec, ``plan`` that of the plan it was applied with.
    ``serial`` goes up with every change that the store writes. ``was_ready`` remembers that a
    service of this spec answered once. ``since`` is when this spec was applied.
    """

    id: str
    name: str
    type: RunType
    spec: str
    spec_hash: str
    template: Template
    since: datetime
    wanted: Wanted = Wanted.RUN
    state: RunState = RunState.QUEUED
    reason: str = ""
    was_ready: bool = False
    ready: int = 0
    """Replicas that answer their probe."""
    plan: str = "{}"
    serial: int = 0
    created_at: datetime | None = None
    updated_at: datetime | None = None
    set_name: str = ""
    """The set it was applied under and is pruned with, "" where none was named."""
    project: str = "main"
    """Whose it is; names are taken across projects, since places know a run by its name alone."""

    def made_from(self, spec_hash: str, node: int) -> Launch | None:
        """Return what jobs of a spec were made from, None for specs older than the one before this.

        >>> template = Template(Launch("web-0-0-0", "web"), ())
        >>> run = Run("id", "web", "service", "{}", "b", template, datetime.min)
        >>> run.made_from("b", 0).name, run.made_from("a", 0)
        ('web-0-0-0', None)
        """
        before = self.template.before
        if spec_hash == self.spec_hash:
            return self.template.of_node(node)
        return before.of_node(node) if before and before.spec_hash == spec_hash else None

    def asked(self, wanted: Wanted) -> Run:
        """Return the run as it is once it was asked to end; one that has ended stays as it is."""
        if self.state.is_final:
            return replace(self, wanted=wanted)
        return replace(self, wanted=wanted, state=RunState.STOPPING, reason="", ready=0)


def before_of(run: Run) -> Before | None:
    """Return the spec that a service works as, or did before it was replaced; None where none ever did."""
    t = run.template
    if run.type != "service":
        return None
    if not run.was_ready:
        return t.before
    return Before(
        run.spec, run.spec_hash, run.plan, t.launch, t.backends, t.follower, t.nodes, t.surge, t.rents
    )


@frozen
class Job:
    """One launch of a run: one replica, one node, one attempt."""

    run_id: str
    name: str
    replica: int
    node: int
    attempt: int
    spec_hash: str
    backend: str
    state: JobState
    created_at: datetime
    exit_code: int | None = None
    reason: str = ""
    """Why it ended: ``error``, ``oom``, ``preempted``, ``lost``, ``no-capacity``, ``no-start``, …"""
    message: str = ""
    stop_asked_at: datetime | None = None
    stop_cause: str = ""
    started_at: datetime | None = None
    ready_at: datetime | None = None
    finished_at: datetime | None = None
    address: str | None = None
    ports: Mapping[int, tuple[str, int]] = field(default_factory=dict)
    devices: tuple[str, ...] = ()
    rent: Rent | None = None
    """The kind of machine it is rented, with the price that was counted for it."""
    machine: str = ""
    """The machine it was seen on, as its backend calls it."""
    adapters: tuple[str, ...] = ()
    """The adapters that it serves, as ``Adapter.told``, of those that are loaded while it runs."""


@frozen
class RunEvent:
    """What happened, when, and which action caused it."""

    run_id: str
    run: str
    at: datetime
    subject: str
    """The run's name, or a launch's."""
    before: str
    after: str
    cause: str
    action: str = ""
    message: str = ""


def group_of(run: Run, *, attempt: int = 0) -> Group:
    """Return the group that a run is: its template, as often as it says."""
    assert run.type != "fleet"  # whose machines no cluster keeps
    return group_from(run.template, name=run.name, kind=run.type, attempt=attempt)


def group_from(template: Template, *, name: str, kind: Kept, attempt: int = 0) -> Group:
    """Return the group of a run of this name and type that was never on record."""
    follower = template.at(0, 1, attempt) if template.nodes > 1 else None
    return Group(
        name=name,
        template=template.at(0, 0, attempt),
        kind=kind,
        replicas=template.replicas,
        nodes=template.nodes,
        retries=_retries(template.retry),
        max_duration_s=None if (limit := template.runs_for_s()) is None else int(limit),
        follower=follower,
        surge=template.surge,
        ends_with_master=template.ends_with_master,
        scaling=template.scaling,
        serves=template.serves,
        said=template.said,
    )


def _retries(policy: Retry) -> int:
    """Return how often a cluster tries a failed task again; it keeps what is kept up by itself."""
    if "error" not in policy.on:
        return 0
    return UNBOUNDED_RETRIES if policy.attempts is None else policy.attempts
