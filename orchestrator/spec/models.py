"""The documents a user writes, as frozen models: tasks, services, dev environments, fleets, volumes.

Spellings and short forms are dstack's where it has them. Sizes are kept in bytes and durations
in seconds; ``canonical`` writes them back with their units. Every field says what it means and
whether changing it needs new containers.
"""

# Annotations are not postponed here: evaluating them one by one from text costs 16 ms of CPU.

import hashlib
import json
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Literal, Self, TypeAlias

from annotated_types import Ge, Le
from pydantic import AfterValidator, BeforeValidator, JsonValue, Strict, ValidationInfo, model_validator

from orchestrator.spec import forms
from orchestrator.spec.forms import FormError
from orchestrator.spec.parts import (
    Change,
    Mark,
    Part,
    Plain,
    changes_between,
    in_place,
    lasting,
    mark_of,
    part_of,
    replace,
)
from orchestrator.spec.values import (
    AbsolutePath,
    AdapterName,
    Bool,
    ByteRange,
    Bytes,
    Count,
    FloatRange,
    Int,
    IntRange,
    Limit,
    LocalPath,
    Name,
    Natural,
    Percent,
    Positive,
    Seconds,
    Source,
    Strings,
    Words,
    context_of,
)

EnvInput = tuple[str, ...] | Mapping[str, str | int | float | bool | None]
Vendor = Literal["nvidia", "amd", "google", "intel", "tenstorrent", "aws", "apple", "huawei"]
Precision = Literal["auto", "bf16", "fp16", "fp8", "int8", "int4"]
RetryEvent = Literal["no-capacity", "interruption", "error"]
SpotPolicy = Literal["spot", "on-demand", "auto"]
ServingEngine = Literal["auto", "vllm", "tgi", "nim", "sglang", "transformers"]
TrainingEngine = Literal["auto", "trl", "axolotl"]
Reporter = Literal["mlflow", "tensorboard", "wandb"]


# --- resources ------------------------------------------------------------------------------


class Cpu(Part):
    """CPU cores."""

    short_forms = ("number", "string")

    is_leaf = True

    arch: Annotated[
        Annotated[Literal["x86", "arm"], BeforeValidator(forms.read_architecture)] | None,
        replace("The instruction set; any when unset."),
    ] = None
    count: Annotated[FloatRange, replace("How many cores.", examples=[2, "8..", 0.5])]

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: object) -> object:
        return forms.expand_cpu(value)

    def canonical(self) -> Plain:
        """Return the short form, such as ``8`` or ``arm:8..``."""
        count = self.count.canonical()
        return f"{self.arch}:{count}" if self.arch else count


def _known_names(names: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
    for index, name in enumerate(names):
        forms.check_accelerator(name, context_of(info).accelerators, item=index)
    return names


class Gpu(Part):
    """Accelerators of one node."""

    short_forms = ("integer", "string")

    vendor: Annotated[
        Annotated[Vendor, BeforeValidator(forms.read_vendor)] | None, replace("Who makes it; any when unset.")
    ] = None
    name: Annotated[
        Annotated[Strings, AfterValidator(_known_names)],
        replace("Accelerators by name; any of them will do.", examples=["H100", ["A100", "H100"]]),
    ] = ()
    count: Annotated[IntRange, replace("How many of them.", examples=[1, "1..8"])] = IntRange.model_construct(
        min=1, max=1
    )
    memory: Annotated[
        ByteRange | None, replace("Device memory of each.", examples=["24GB", "24GB..80GB", "40GB.."])
    ] = None
    total_memory: Annotated[ByteRange | None, replace("Device memory of all together.")] = None
    compute_capability: Annotated[
        Annotated[
            tuple[Int, Int], BeforeValidator(forms.expand_capability, json_schema_input_type=str | float)
        ]
        | None,
        replace("The least CUDA compute capability.", examples=["8.9"]),
    ] = None

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: object, info: ValidationInfo) -> object:
        return forms.expand_gpu(value, context_of(info).accelerators)

    def canonical(self) -> Plain:
        """Return what is set, the capability as text such as ``8.9``; 1 where nothing is."""
        plain = super().canonical()
        if self.compute_capability and isinstance(plain, dict):
            plain["compute_capability"] = "{}.{}".format(*self.compute_capability)
        return plain or 1


def _disk(value: object) -> object:
    """Take dstack's ``disk: {size: 100GB}`` for ``disk: 100GB``."""
    return value["size"] if isinstance(value, Mapping) and set(value) == {"size"} else value


DiskInput = ByteRange | Mapping[Literal["size"], ByteRange]
Disk = Annotated[ByteRange, BeforeValidator(_disk, json_schema_input_type=DiskInput)]


class Resources(Part):
    """What one node of a job needs; what is unset is not asked for."""

    cpu: Annotated[Cpu | None, replace("CPU cores.", examples=[2, "8..", "arm:8.."])] = None
    memory: Annotated[ByteRange | None, replace("Main memory.", examples=["16GB", "16GB.."])] = None
    gpu: Annotated[
        Gpu | None,
        replace(
            "Accelerators: vendor, names, memory and count in any order.",
            examples=[1, "24GB", "H100:8", "A100,H100:1..8", "24GB..80GB:2", "amd:MI300X:8"],
        ),
    ] = None
    disk: Annotated[Disk | None, replace("Disk space.", examples=["100GB.."])] = None
    shm_size: Annotated[
        Bytes | None, replace("Shared memory (/dev/shm).", unit="bytes", examples=["16GB"])
    ] = None

    @property
    def asks_for_no_gpu(self) -> bool:
        """Whether it says ``gpu: 0``, which is more than to say nothing of accelerators."""
        return self.gpu is not None and self.gpu.count.max == 0


# --- models, traffic, training --------------------------------------------------------------


class Adapter(Part):
    """LoRA weights served beside their base model."""

    name: Annotated[AdapterName, in_place("The name that requests ask for.")]
    id: Annotated[Source, in_place("A hub id, a local folder, a URL such as s3://, or run://NAME.")]
    revision: Annotated[str | None, in_place("A branch, tag or commit of the hub.")] = None
    rank: Annotated[
        Count | None,
        in_place(
            "Rank of its matrices; unset: as its files here say, else room is made for 64.", examples=[16]
        ),
    ] = None


class Measured(Part):
    """Figures seen on the real thing, per device; each takes the place of its formula."""

    weights: Annotated[Bytes | None, replace("Loaded weights.", unit="bytes", examples=["15GiB"])] = None
    activations: Annotated[Bytes | None, replace("Peak of the activations.", unit="bytes")] = None
    non_torch: Annotated[Bytes | None, replace("Memory outside the tensor library.", unit="bytes")] = None
    graphs: Annotated[Bytes | None, replace("Captured graphs.", unit="bytes")] = None


class Model(Part):
    """A model: which one, and in what form."""

    short_forms = ("string",)

    id: Annotated[
        Source,
        replace(
            "A hub id, a local folder with config.json, a URL (s3:// gs:// oci:// pvc://), or run://NAME."
        ),
    ]
    revision: Annotated[str | None, replace("A branch, tag or commit of the hub.")] = None
    precision: Annotated[
        Precision, replace("The format computed in; auto is as published, else the best that fits.")
    ] = "auto"
    quantization: Annotated[
        str | None, replace("How the published weights were made, where they are.", examples=["awq", "gptq"])
    ] = None
    context: Annotated[
        Count | None, replace("Tokens a request may hold; unset: what the model allows and what fits.")
    ] = None
    kv_cache: Annotated[Literal["auto", "bf16", "fp8"], replace("The format of the KV cache.")] = "auto"
    adapters: Annotated[
        tuple[Adapter, ...],
        in_place(
            "LoRA adapters served beside the base; where the engine cannot, a change replaces replicas."
        ),
    ] = ()
    max_adapters: Annotated[
        Count | None,
        replace("Adapters held in device memory at once; unset: as many as are listed.", examples=[8]),
    ] = None
    measured: Annotated[Measured | None, replace("Figures that were measured, in place of formulas.")] = None

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: object) -> object:
        return {"id": value} if isinstance(value, str) else value

    def canonical(self) -> Plain:
        """Return the id alone where nothing else is set."""
        plain = super().canonical()
        return self.id if plain == {"id": self.id} else plain


class Traffic(Part):
    """What one replica must hold at once; the KV cache is sized for it."""

    concurrency: Annotated[Count, replace("Requests in flight.")] = 16
    input_tokens: Annotated[Count, replace("Tokens of a typical prompt.")] = 1500
    output_tokens: Annotated[Count, replace("Tokens of a typical answer.")] = 300


class TrainAdapter(Part):
    """What is trained: everything, or an adapter over frozen weights."""

    short_forms = ("string",)

    type: Annotated[Literal["none", "lora", "qlora"], replace("none trains every weight.")] = "lora"
    rank: Annotated[Count, replace("Rank of the adapter's matrices.")] = 16
    alpha: Annotated[Positive | None, replace("Scale of the adapter; unset: twice the rank.")] = None
    dropout: Annotated[Annotated[float, Strict(), Ge(0), Le(1)], replace("Dropout on its input.")] = 0.0
    targets: Annotated[
        Strings, replace("Modules that get an adapter.", examples=["all-linear", ["q_proj", "v_proj"]])
    ] = ("all-linear",)

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: object) -> object:
        return {"type": value} if isinstance(value, str) else value

    def canonical(self) -> Plain:
        """Return the type alone where nothing else is set."""
        plain = super().canonical()
        return self.type if plain in ({}, {"type": self.type}) else plain


class Train(Part):
    """A training job: method, model, data, and where the result goes."""

    method: Annotated[
        Literal["sft", "dpo", "grpo", "rloo", "ppo", "reward", "kto", "orpo", "pretrain"],
        replace("How it learns."),
    ] = "sft"
    model: Annotated[Model, replace("What is trained.", examples=["Qwen/Qwen2.5-7B"])]
    dataset: Annotated[
        Source,
        replace(
            "A hub id, a folder, a jsonl file, or one of them in a bucket.",
            examples=["trl-lib/Capybara", "./data.jsonl", "s3://data/rows.jsonl"],
        ),
    ]
    adapter: Annotated[
        TrainAdapter, replace("none, lora or qlora, alone or with its settings.", examples=["qlora"])
    ] = TrainAdapter.model_construct(type="none")
    sequence_length: Annotated[Count, replace("Tokens of a training example, at most.")] = 2048
    batch_size: Annotated[
        Count, replace("Examples of one step over all devices; micro batch and accumulation follow.")
    ] = 16
    epochs: Annotated[Positive, replace("Passes over the data.")] = 1.0
    engine: Annotated[TrainingEngine, replace("The program that trains.")] = "auto"
    args: Annotated[
        Mapping[str, JsonValue],
        replace("Passed to the engine as they are.", examples=[{"seed": 7}]),
    ] = {}
    output: Annotated[
        Source | None,
        replace("A folder, a volume or a bucket for checkpoints and the result; resumed from there."),
    ] = None
    merge: Annotated[Bool, replace("Fold the adapter into its base at the end, into merged/ of output.")] = (
        False
    )
    report: Annotated[
        Annotated[
            tuple[Reporter, ...],
            BeforeValidator(forms.wrap_one, json_schema_input_type=Reporter | tuple[Reporter, ...]),
        ],
        replace("What the trainer sends its figures to.", examples=["tensorboard", ["mlflow", "wandb"]]),
    ] = ()


# --- pieces of a run ------------------------------------------------------------------------


class RegistryAuth(Part):
    """Credentials for pulling a private image."""

    username: Annotated[str, replace("The user, or a reference such as `${{ secrets.USER }}`.")]
    password: Annotated[str, replace("A reference: `${{ secrets.NAME }}`.")]


class PortMapping(Part):
    """A port of the container, and the local one that leads to it."""

    container_port: Annotated[Annotated[int, Strict(), Ge(1), Le(65535)], replace("The container's port.")]
    local_port: Annotated[
        Annotated[int, Strict(), Ge(1), Le(65535)] | None, replace("The local port; unset: any free one.")
    ] = None


PortInput = Annotated[int, Ge(1), Le(65535)] | str | PortMapping
Port = Annotated[PortMapping, BeforeValidator(forms.expand_port, json_schema_input_type=PortInput)]


class MountPoint(Part):
    """A volume or a folder of the machine, seen inside the container at ``path``."""

    short_forms = ("string",)

    name: Annotated[Name | None, replace("The volume.")] = None
    instance_path: Annotated[LocalPath | None, replace("The folder of the machine.")] = None
    path: Annotated[AbsolutePath, replace("Where the container sees it.")]
    read_only: Annotated[Bool, replace("Refuse writes.")] = False
    optional: Annotated[Bool, replace("Go on without it where a place has no such thing.")] = False

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: object) -> object:
        return forms.expand_mount(value)

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.name is None) == (self.instance_path is None):
            raise FormError("a mount has one source", "write either name or instance_path")
        return self


class FileMapping(Part):
    """A local file or folder that is put into the container before it starts."""

    short_forms = ("string",)

    # Where it lies says nothing about what runs: its content is hashed by whoever reads it.
    local_path: Annotated[LocalPath, in_place("The local path, counted from this file's folder.")]
    path: Annotated[str | None, replace("The path inside; unset: its name in the working folder.")] = None

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: object) -> object:
        return forms.expand_file(value)


class Repo(Part):
    """A Git repository that is put into the container."""

    short_forms = ("string",)

    url: Annotated[str | None, replace("Where it is cloned from.")] = None
    local_path: Annotated[LocalPath | None, in_place("A local clone.")] = None
    branch: Annotated[str | None, replace("The branch; unset: the one that is checked out.")] = None
    hash: Annotated[str | None, replace("The commit.")] = None
    path: Annotated[str, replace("Where it goes inside the container.")] = "."
    if_exists: Annotated[Literal["error", "skip"], replace("What to do where that is not empty.")] = "error"

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: object) -> object:
        return forms.expand_repo(value)

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.url is None) == (self.local_path is None):
            raise FormError("a repository has one source", "write either url or local_path")
        return self


class Scaling(Part):
    """When to add and remove replicas."""

    metric: Annotated[
        Literal["queue", "running", "rps", "kv_cache", "ttft"],
        in_place("What is watched: waiting or running requests, requests a second, cache use, first token."),
    ]
    target: Annotated[Positive, in_place("The value of the metric to keep per replica.")]
    scale_up_delay: Annotated[
        Seconds | None,
        in_place(
            "Least time between two increases; unset: half of what a replica takes to come.", unit="seconds"
        ),
    ] = None
    scale_down_delay: Annotated[
        Seconds | None,
        in_place(
            "How long the load has to be low; unset: from how long a replica takes to come and was needed.",
            unit="seconds",
        ),
    ] = None


class Rollout(Part):
    """How a changed service takes over; where Modelyard starts the replicas itself."""

    weight: Annotated[
        Annotated[int, Strict(), Ge(1), Le(99)] | None,
        in_place(
            "Percent of requests for one replica of the new spec, beside all of the old one, until this is "
            "removed.",
            examples=[10],
        ),
    ] = None
    rollback: Annotated[
        Literal["auto", "off"],
        in_place("What follows where the new spec does not become ready: auto puts the one before back."),
    ] = "off"


class Header(Part):
    """One HTTP header."""

    name: Annotated[str, replace("Its name.")]
    value: Annotated[str, replace("Its value.")]


class Probe(Part):
    """A question to a replica that decides whether it is ready."""

    type: Annotated[
        Literal["http", "tcp", "token"],
        replace("An HTTP request, a connection, or the first token of an answer of the model."),
    ] = "http"
    url: Annotated[AbsolutePath, replace("The path that is asked for.")] = "/"
    method: Annotated[
        Literal["get", "post", "put", "delete", "patch", "head"], replace("The HTTP method.")
    ] = "get"
    headers: Annotated[tuple[Header, ...], replace("HTTP headers.")] = ()
    body: Annotated[str | None, replace("The request's body.")] = None
    timeout: Annotated[Seconds, replace("How long an answer may take.", unit="seconds")] = 10
    interval: Annotated[Seconds, replace("Time between two questions.", unit="seconds")] = 15
    ready_after: Annotated[Count, replace("Good answers in a row before it is ready.")] = 1
    failures: Annotated[Count, replace("Bad answers in a row before it is not.")] = 3
    start_duration: Annotated[
        Seconds | None,
        replace("Time until the first good answer; unset: from the model's size, else 10m.", unit="seconds"),
    ] = None
    until_ready: Annotated[Bool, replace("Stop asking once it is ready.")] = False
    replace_after: Annotated[
        Limit,
        replace(
            "How long one that was ready may not answer until it is replaced; off: ever.", unit="seconds"
        ),
    ] = 180

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.type == "token" and (self.body is not None or self.method != "get" or self.url != "/"):
            raise FormError("a probe for a token writes its own request", "leave url, method and body out")
        if self.body is not None and self.method in ("get", "head"):
            raise FormError(f"a {self.method} request has no body", "set method: post")
        if self.timeout < 1 or self.interval < 1:
            raise FormError("timeout and interval are at least 1s", "write 1s")
        return self


class RateLimitKey(Part):
    """By what requests are told apart."""

    type: Annotated[Literal["ip_address", "header"], in_place("The client's address, or a header.")] = (
        "ip_address"
    )
    header: Annotated[str | None, in_place("The header's name.")] = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.type == "header") != (self.header is not None):
            raise FormError("a key of type header names its header, and only that", "set header")
        return self


class RateLimit(Part):
    """How often one client may ask."""

    prefix: Annotated[AbsolutePath, in_place("Paths this limit is for; the longest prefix wins.")] = "/"
    key: Annotated[RateLimitKey, in_place("By what clients are told apart.")] = RateLimitKey.model_construct()
    rps: Annotated[Positive, in_place("Requests a second.")]
    burst: Annotated[Natural, in_place("Requests that may come ahead of the rate.")] = 0


ALL_EVENTS: tuple[RetryEvent, ...] = ("no-capacity", "interruption", "error")


class Retry(Part):
    """What is tried again, and for how long."""

    on_events: Annotated[
        tuple[RetryEvent, ...], in_place("What is tried again: no-capacity, interruption, error.")
    ] = ALL_EVENTS
    duration: Annotated[Limit, in_place("How long, counted from the first failure.", unit="seconds")] = None

    @model_validator(mode="after")
    def _some_event(self) -> Self:
        if not self.on_events:
            raise FormError("on_events is empty", "name an event, or write retry: false")
        return self

    def canonical(self) -> Plain:
        """Return ``true`` where everything is tried again without end."""
        return super().canonical() or True


def _retry(value: object) -> object:
    """Take ``true`` for every event and ``false`` for none."""
    if isinstance(value, bool):
        return {} if value else None
    return value


class Schedule(Part):
    """When a run starts by itself."""

    cron: Annotated[Strings, in_place("Five cron fields, in UTC, or several lines.", examples=["0 3 * * *"])]

    @model_validator(mode="after")
    def _five_fields(self) -> Self:
        for line in self.cron:
            forms.check_cron(line)
        return self


class UtilizationPolicy(Part):
    """When a run that leaves its accelerators idle is ended."""

    min_gpu_utilization: Annotated[Percent, in_place("Percent below which an accelerator counts as idle.")]
    time_window: Annotated[Seconds, in_place("How long, at least 5m.", unit="seconds")]

    @model_validator(mode="after")
    def _long_enough(self) -> Self:
        if self.time_window < 300:
            raise FormError("time_window is at least 5m", "write 5m or more")
        return self


# --- documents ------------------------------------------------------------------------------


class Named(Part):
    """What every document has."""

    name: Annotated[Name, replace("What it is called; a lower case DNS label of at most 41 characters.")]

    def canonical(self) -> dict[str, Plain]:
        """Return type, name and what differs from the defaults, as a person would write it."""
        plain = super().canonical()
        assert isinstance(plain, dict)
        return {"type": type(self).model_fields["type"].default, "name": self.name, **plain}

    def hash(self) -> str:
        """Return the SHA-256 of what needs new containers when it changes, in hexadecimal."""
        kept = {"type": type(self).model_fields["type"].default, **lasting(self)}
        text = json.dumps(kept, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


class Placement(Named):
    """Where something may run, and for how much; unset allows everything."""

    backends: Annotated[Strings, replace("Backends by name.", examples=[["docker", "aws"]])] = ()
    regions: Annotated[Strings, replace("Regions.")] = ()
    availability_zones: Annotated[Strings, replace("Zones of a region.")] = ()
    instance_types: Annotated[Strings, replace("Instance types as their backend calls them.")] = ()
    reservation: Annotated[str | None, replace("A reservation to draw from.")] = None
    spot_policy: Annotated[SpotPolicy, replace("Whether machines may be taken away.")] = "on-demand"
    max_price: Annotated[
        Positive | None, in_place("Dollars an hour for one replica, at most; looked at before a start.")
    ] = None
    retry: Annotated[
        Annotated[Retry | None, BeforeValidator(_retry, json_schema_input_type=bool | Retry)],
        in_place("What is tried again; true for everything.", examples=[True]),
    ] = None
    tags: Annotated[
        Mapping[str, str],
        replace(
            "Labels of the user's own, at most 20 of Kubernetes' syntax: on its containers, the machines "
            "rented for it and its objects in a cluster.",
            examples=[{"example.com/cost-centre": "42"}],
        ),
    ] = {}


class Work(Placement):
    """What tasks, services and dev environments have in common."""

    image: Annotated[str | None, replace("The container image.", examples=["python:3.12-slim"])] = None
    entrypoint: Annotated[Words | None, replace("In place of the image's entrypoint; text is split.")] = None
    setup: Annotated[Strings, replace("Commands that run before the others, in the same shell.")] = ()
    working_dir: Annotated[str | None, replace("The working folder; unset: the image's.")] = None
    user: Annotated[str | None, replace("user[:group], names or numbers.", examples=["1000:1000"])] = None
    shell: Annotated[str | None, replace("The shell of the commands: sh, bash or a path.")] = None
    privileged: Annotated[Bool, replace("Give the container the machine's privileges.")] = False
    registry_auth: Annotated[RegistryAuth | None, replace("Credentials for a private image.")] = None
    env: Annotated[
        Annotated[
            Mapping[str, str | None], BeforeValidator(forms.expand_env, json_schema_input_type=EnvInput)
        ],
        replace(
            "Environment variables, as a list or a map; a bare name is taken from the environment or the "
            "secret store when the container starts.",
            examples=[{"DEBUG": "1"}, ["DEBUG=1", "HF_TOKEN"]],
        ),
    ] = {}
    files: Annotated[
        tuple[FileMapping, ...], replace("Local files put into the container.", examples=[["train.py"]])
    ] = ()
    repos: Annotated[tuple[Repo, ...], replace("Git repositories put into the container.")] = ()
    volumes: Annotated[
        tuple[MountPoint, ...],
        replace("Volumes and folders the container sees.", examples=[["cache:/cache", "./data:/data"]]),
    ] = ()
    ports: Annotated[
        tuple[Port, ...], replace("Ports that can be reached.", examples=[[8000, "80:8080", "*:8080"]])
    ] = ()
    resources: Annotated[Resources, replace("What one node needs.")] = Resources.model_construct()
    fleets: Annotated[Strings, replace("Fleets to take instances from.")] = ()
    priority: Annotated[Percent, in_place("From 0 to 100; higher ones start first.")] = 0
    max_duration: Annotated[
        Limit, in_place("How long it may run; off is no limit.", unit="seconds", examples=["12h"])
    ] = None
    stop_duration: Annotated[
        Limit,
        in_place("How long it may take to end once asked; then it is killed.", unit="seconds"),
    ] = 30
    idle_duration: Annotated[
        Limit, in_place("How long an instance it leaves behind is kept for the next run.", unit="seconds")
    ] = 300
    utilization_policy: Annotated[
        UtilizationPolicy | None, in_place("End it when its accelerators stay idle.")
    ] = None
    schedule: Annotated[Schedule | None, in_place("Start it by the clock; needs a server.")] = None


def _nodes(value: object) -> object:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    fix = "write it without quotes, for example 2" if isinstance(value, str) else None
    raise FormError(f"expected a whole number from 1, or auto, got {forms.shown(value)}", fix)


class Task(Work):
    """Runs to an end."""

    type: Annotated[Literal["task"], replace("The kind of document.")] = "task"
    commands: Annotated[Strings, replace("Shell commands, one after the other.")] = ()
    train: Annotated[Train | None, replace("A training job, in place of commands.")] = None
    nodes: Annotated[
        Annotated[
            int | Literal["auto"], BeforeValidator(_nodes, json_schema_input_type=Count | Literal["auto"])
        ],
        replace("Machines that work on it together; auto with train.", examples=[1, "auto"]),
    ] = 1
    startup_order: Annotated[
        Literal["any", "master-first", "workers-first"],
        replace("The order in which nodes start: all at once, or when those before them run."),
    ] = "any"
    stop_criteria: Annotated[
        Literal["all-done", "master-done"],
        replace("Whose end is the task's end: that of all nodes, or of node 0, which stops the others."),
    ] = "all-done"


def _https(value: object) -> object:
    if value == "auto" or isinstance(value, bool):
        return value
    raise FormError(f"expected true, false or auto, got {forms.shown(value)}")


class Service(Work):
    """Is kept up, behind the gateway."""

    type: Annotated[Literal["service"], replace("The kind of document.")] = "service"
    commands: Annotated[Strings, replace("Shell commands, one after the other.")] = ()
    model: Annotated[
        Model | None,
        replace("The model that is served.", examples=["meta-llama/Llama-3.1-8B-Instruct"]),
    ] = None
    base: Annotated[
        Name | None, replace("A service whose replicas serve the adapters of this one, which has none.")
    ] = None
    adapters: Annotated[
        tuple[Adapter, ...], in_place("With base: LoRA adapters that its replicas serve for this service.")
    ] = ()
    traffic: Annotated[Traffic, replace("What one replica must hold at once.")] = Traffic.model_construct()
    engine: Annotated[ServingEngine, replace("The program that serves the model.")] = "auto"
    engine_version: Annotated[str | None, replace("Its version; unset: the newest in the catalog.")] = None
    args: Annotated[
        Mapping[str, JsonValue], replace("Arguments of the engine; they win over what the plan would pass.")
    ] = {}
    port: Annotated[
        Annotated[PortMapping, BeforeValidator(forms.expand_service_port, json_schema_input_type=PortInput)]
        | None,
        replace("The port the program listens on; with model: the engine's own.", examples=[8000]),
    ] = None
    replicas: Annotated[
        IntRange, in_place("Identical copies: a number, or a range with scaling.", examples=[2, "0..4"])
    ] = IntRange.model_construct(min=1, max=1)
    scaling: Annotated[Scaling | None, in_place("When to add and remove replicas.")] = None
    rollout: Annotated[Rollout, in_place("How a changed spec takes over.")] = Rollout.model_construct()
    affinity: Annotated[
        Literal["none", "prefix"],
        in_place("prefix: to the replica that had a request which began alike, while it is not much busier."),
    ] = "none"
    probes: Annotated[tuple[Probe, ...], replace("What decides whether a replica is ready.")] = ()
    rate_limits: Annotated[tuple[RateLimit, ...], in_place("How often a client may ask.")] = ()
    auth: Annotated[Bool, in_place("Ask clients for a token at the gateway.")] = True
    https: Annotated[
        Annotated[
            bool | Literal["auto"], BeforeValidator(_https, json_schema_input_type=bool | Literal["auto"])
        ],
        in_place("Serve over TLS at the gateway; auto: where it has a certificate."),
    ] = "auto"


class DevEnvironment(Work):
    """A container to work in, from a shell or an editor."""

    type: Annotated[Literal["dev-environment"], replace("The kind of document.")] = "dev-environment"
    ide: Annotated[
        Literal["vscode", "cursor", "windsurf", "zed"] | None, replace("The editor whose link is printed.")
    ] = None
    version: Annotated[str | None, replace("The editor's version.")] = None
    init: Annotated[Strings, replace("Shell commands that run when it starts.")] = ()
    inactivity_duration: Annotated[
        Limit, in_place("End it after so long without anyone attached.", unit="seconds")
    ] = None


SshPort = Annotated[int, Strict(), Ge(1), Le(65535)]


class ProxyJump(Part):
    """A machine on the way to the others."""

    hostname: Annotated[str, replace("An address or a name.")]
    port: Annotated[SshPort | None, replace("The SSH port.")] = None
    user: Annotated[str, replace("Who logs in.")]
    identity_file: Annotated[LocalPath | None, replace("The private key's file.")] = None


class SshHost(Part):
    """One machine, and how to reach it."""

    short_forms = ("string",)

    hostname: Annotated[str, replace("An address or a name.")]
    port: Annotated[SshPort | None, replace("The SSH port.")] = None
    user: Annotated[str | None, replace("Who logs in.")] = None
    identity_file: Annotated[LocalPath | None, replace("The private key's file.")] = None
    proxy_jump: Annotated[ProxyJump | None, replace("A machine on the way to this one.")] = None
    internal_ip: Annotated[str | None, replace("Its address among the fleet's machines.")] = None
    blocks: Annotated[Count | None, replace("Into how many equal parts it is divided.")] = None
    engine_socket: Annotated[AbsolutePath | None, replace("Where Docker listens there.")] = None

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: object) -> object:
        return {"hostname": value} if isinstance(value, str) else value


class SshConfig(Part):
    """Machines of one's own, reached over SSH."""

    hosts: Annotated[tuple[SshHost, ...], in_place("The machines: names, or names with their own settings.")]
    user: Annotated[str | None, in_place("Who logs in on all of them.")] = None
    port: Annotated[SshPort | None, replace("The SSH port of all.")] = None
    identity_file: Annotated[LocalPath | None, in_place("The private key's file for all.")] = None
    proxy_jump: Annotated[ProxyJump | None, in_place("A machine on the way.")] = None
    network: Annotated[str | None, in_place("The network between them, as 10.0.0.0/24.")] = None
    host_keys: Annotated[
        Literal["strict", "accept-new"],
        in_place("strict: only hosts in known_hosts; accept-new: also hosts never seen before."),
    ] = "strict"
    config_file: Annotated[
        LocalPath | None, in_place("A file read in place of the user's ssh configuration.")
    ] = None
    engine_socket: Annotated[AbsolutePath | None, replace("Where Docker listens on all of them.")] = None
    namespace: Annotated[
        Name | None, replace("Begins the names of containers; two records on the same hosts need two.")
    ] = None


class Fleet(Placement):
    """Instances held together for runs to use."""

    type: Annotated[Literal["fleet"], replace("The kind of document.")] = "fleet"
    nodes: Annotated[
        IntRange | None, in_place("Cloud machines: a number or a range.", examples=[2, "0..4"])
    ] = None
    ssh_config: Annotated[SshConfig | None, replace("Machines of one's own, in place of nodes.")] = None
    placement: Annotated[Literal["any", "cluster"], replace("cluster: close together, for many nodes.")] = (
        "any"
    )
    resources: Annotated[Resources, replace("What each machine has.")] = Resources.model_construct()
    blocks: Annotated[Count, in_place("Into how many equal parts each machine is divided.")] = 1
    env: Annotated[
        Annotated[
            Mapping[str, str | None], BeforeValidator(forms.expand_env, json_schema_input_type=EnvInput)
        ],
        replace("Environment variables of everything that runs there."),
    ] = {}
    idle_duration: Annotated[
        Limit, in_place("How long an unused machine is kept; off is for ever.", unit="seconds")
    ] = 259_200
    tags: Annotated[
        Mapping[str, str], in_place("Labels of the user's own, on machines that are rented from then on.")
    ] = {}


class Volume(Named):
    """Named storage that outlives runs."""

    type: Annotated[Literal["volume"], replace("The kind of document.")] = "volume"
    backend: Annotated[str | None, replace("The backend that keeps it; unset: the first that can.")] = None
    region: Annotated[str | None, replace("The region it is in.")] = None
    availability_zone: Annotated[str | None, replace("The zone it is in.")] = None
    size: Annotated[
        Bytes | None,
        replace("How much it holds; unset: no limit.", unit="bytes", examples=["100GB"]),
    ] = None
    volume_id: Annotated[str | None, replace("One that exists, by its backend's id.")] = None
    auto_cleanup_duration: Annotated[
        Limit, in_place("Delete it after so long without use.", unit="seconds")
    ] = None
    tags: Annotated[Mapping[str, str], in_place("Labels of the user's own; nothing bears them.")] = {}


Spec: TypeAlias = Task | Service | DevEnvironment | Fleet | Volume
TYPES: Mapping[str, type[Spec]] = {
    "task": Task,
    "service": Service,
    "dev-environment": DevEnvironment,
    "fleet": Fleet,
    "volume": Volume,
}
"""Every kind of document, by the word in its ``type``."""


def spec_of(canonical: Mapping[str, object]) -> Spec:
    """Return the spec that ``canonical()`` wrote.

    Raises:
        ValueError: it is none of ours.

    >>> spec_of({"type": "volume", "name": "cache", "size": "10GB"}).size
    10000000000
    """
    kind = canonical.get("type")
    if not isinstance(kind, str) or kind not in TYPES:
        raise ValueError(f"unknown type {kind!r}")
    return TYPES[kind].model_validate(canonical)


def marks(spec_type: type[Part], *, at: str = "") -> dict[str, Mark]:
    """Return every field of a document, nested ones by path, and what changing it needs.

    >>> marks(Service)["replicas"], marks(Service)["resources.gpu.count"]
    ('in-place', 'replace')
    """
    found: dict[str, Mark] = {}
    for name, info in spec_type.model_fields.items():
        path = f"{at}.{name}" if at else name
        found[path] = mark_of(info)
        if (inner := part_of(info.annotation)) is not None:
            found |= marks(inner, at=path)
    return found


def as_recorded(spec: Spec) -> Spec:
    """Return what is kept of a spec: local paths by their last part.

    Where a repository lies on the machine that applies it says nothing about what runs, and what the
    files hold is kept with the run: two checkouts of one commit are the same.

    >>> as_recorded(Task(name="a", commands=["ls"], files=["/home/me/conf"])).files[0].local_path
    'conf'
    """
    if isinstance(spec, Volume | Fleet) or not (spec.files or spec.repos):
        return spec
    brought = {"files": tuple(map(_named, spec.files)), "repos": tuple(map(_named, spec.repos))}
    return spec.model_copy(update=brought)


def _named(part: FileMapping | Repo) -> FileMapping | Repo:
    name = PurePosixPath(part.local_path or "").name
    return part.model_copy(update={"local_path": name}) if name else part


def changes(old: Spec, new: Spec) -> tuple[Change, ...]:
    """Return every field in which ``new`` differs from ``old``, with what the change needs.

    >>> changes(Volume(name="a", size="1GB"), Volume(name="a", size="2GB"))
    (Change(path='size', old='1GB', new='2GB', mark='replace'),)
    """
    if type(old) is not type(new):
        return (Change("type", old.type, new.type, "replace"),)
    return tuple(changes_between(as_recorded(old), as_recorded(new)))
