"""What a planner hands to a trainer, and what trainers share: values, launch words, reasons."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Literal, Protocol

from orchestrator.backend import File, Mount
from orchestrator.catalog.values import Accelerator, ModelFacts
from orchestrator.engines import (
    architectures,
    arguments,
    buckets,
    checks,
    nodes,
    quantization,
    trainer,
    trainers,
)
from orchestrator.engines.flags import Flags
from orchestrator.engines.job import FETCH_BYTES_S, LOAD_BYTES_S, EngineLaunch, Source
from orchestrator.frozen import frozen
from orchestrator.spec.rules import Finding
from orchestrator.units import GIB

Method = Literal["sft", "dpo", "grpo", "rloo", "ppo", "reward", "kto", "orpo", "pretrain"]
Sharding = Literal["none", "zero1", "zero2", "zero3", "fsdp"]
Scalar = str | int | float | bool
Value = Scalar | None | Sequence[object] | Mapping[str, object]

HOME = nodes.HOME
RENDEZVOUS_PORT = 29400
STEP_S = 60
"""Allowed for the step that runs when the signal comes; a checkpoint is written after it."""


@frozen
class Dataset:
    """Data to train on: a hub id, or a folder or jsonl file at ``path`` inside the container."""

    id: str
    path: str | None = None
    split: str = "train"

    @property
    def is_file(self) -> bool:
        """Tell whether it is one file of rows.

        >>> Dataset("./rows.jsonl", path="/data/rows.jsonl").is_file, Dataset("org/data").is_file
        (True, False)
        """
        return (self.path or "").endswith((".jsonl", ".json"))


@frozen
class Tuned:
    """What is trained: every weight (``none``), or an adapter over frozen weights."""

    type: Literal["none", "lora", "qlora"] = "none"
    rank: int = 16
    alpha: float | None = None
    dropout: float = 0.0
    targets: tuple[str, ...] = ("all-linear",)

    @property
    def scale(self) -> float:
        """Return alpha, twice the rank where none is said."""
        return self.alpha if self.alpha is not None else 2.0 * self.rank


@frozen
class TuningJob:
    """One training run, sized: all that a trainer needs to write its command and configuration.

    ``micro_batch`` × ``accumulation`` × ``count`` × ``nodes`` is the global batch. ``output`` is
    the folder inside the container for checkpoints and the result; ``resume`` allows to go on from
    what an earlier life of the run left there. ``home`` is where files of ours lie in the container,
    ``report`` names what the trainer reports to. ``checkpoint_bytes`` is what one checkpoint writes,
    ``rollout_share`` the fraction of a device that generates (GRPO). ``secrets`` are pairs of
    variable and reference. ``bucket`` is where ``output`` is kept, "" where the folder itself
    lasts; ``fetched`` are pairs of a path in the container and the URL that is brought there first.
    """

    model: ModelFacts
    source: Source
    dataset: Dataset
    output: str
    method: Method = "sft"
    tuned: Tuned = Tuned()
    accelerator: Accelerator | None = None
    count: int = 1
    nodes: int = 1
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    sequence_tokens: int = 2048
    micro_batch: int = 1
    accumulation: int = 1
    epochs: float = 1.0
    optimizer: str = "adamw_torch_fused"
    checkpointing: bool = True
    loss_kernel: bool = False
    packing: bool = False
    sharding: Sharding = "none"
    offload: bool = False
    rollout_share: float = 0.0
    save_steps: int = 500
    bucket: str = ""
    fetched: tuple[tuple[str, str], ...] = ()
    resume: bool = False
    merge: bool = False
    report: tuple[str, ...] = ()
    home: str = HOME
    checkpoint_bytes: int = 0
    arch: Literal["x86", "arm"] = "x86"
    image: str | None = None
    version: str | None = None
    args: Mapping[str, Value] = field(default_factory=dict)
    env: tuple[tuple[str, str], ...] = ()
    secrets: tuple[tuple[str, str], ...] = ()
    fetch_bytes: int | None = None

    @property
    def family(self) -> str:
        """Return the software family of the device: ``cuda``, ``rocm`` …, or ``cpu``."""
        return self.accelerator.family if self.accelerator else "cpu"

    @property
    def world(self) -> int:
        """Return the number of processes that train together."""
        return self.count * self.nodes


Columns = frozenset[str]


@frozen
class SpelledTraining:
    """How people start a trainer themselves, and which of its settings a spec has a field for.

    ``by_method`` are pairs of a method, "" where the settings say it, and the words that a command
    begins with. ``model`` names the setting of the model. ``says`` gives the path in a spec for a
    setting, "" for one that follows from others. ``launcher`` are options of what starts the processes,
    ``renamed`` are settings of older versions by what they are called now. Settings may lie in a file:
    the first word where ``file_first``, else what ``file_option`` names.
    """

    by_method: tuple[tuple[str, tuple[str, ...]], ...]
    model: str
    says: Mapping[str, str]
    launcher: frozenset[str] = frozenset()
    renamed: Mapping[str, str] = field(default_factory=dict)
    file_first: bool = False
    file_option: str = ""


_PROCESSES = ("num_processes", "num_machines", "machine_rank", "main_process_ip", "main_process_port")
LAUNCHER = frozenset(
    (*_PROCESSES, "config_file", "accelerate_config", "use_deepspeed", "mixed_precision", "launcher")
)
"""Options of Accelerate's launcher, which the trainers' own commands take too (accelerate launch --help)."""


class Trainer(Protocol):
    """A program that trains a model: asked first whether it can, then how."""

    @property
    def spelled(self) -> SpelledTraining:
        """Return how people start it themselves."""

    @property
    def owned(self) -> Mapping[str, str]:
        """Return the settings that may not be given, with what to say instead."""

    def script(self, method: str) -> str | None:
        """Return by what its settings are recorded for ``method``; None where they are for all."""

    def method_of(self, values: Mapping[str, object]) -> str | None:
        """Return how its settings say that it learns; None where they do not."""

    @property
    def name(self) -> str:
        """Return the name in YAML, which is the module's."""

    @property
    def versions(self) -> Sequence[str]:
        """Return the known versions, the default first."""

    @property
    def methods(self) -> Collection[str]:
        """Return how it can train."""

    def columns(self, method: Method, args: Mapping[str, object]) -> tuple[Columns, ...]:
        """Return what columns a row may have for ``method``: one of the sets has to be there whole."""

    def findings(self, job: TuningJob) -> Iterator[Finding]:
        """Yield what is wrong with ``job`` on every device: what its spec has to say otherwise."""

    def refuses(self, job: TuningJob) -> str | None:
        """Say in one phrase why the trainer cannot run ``job``, or None when it can."""

    def launch(self, job: TuningJob) -> EngineLaunch:
        """Return the container that every node of ``job`` runs.

        Raises:
            ValueError: the trainer refuses ``job``; the message is the reason.
        """


def starter(job: TuningJob, program: Sequence[str]) -> tuple[str, ...]:
    """Return the words that start ``program`` (``-m module`` or a file) once per device.

    One process is Python itself, which writes its checkpoint when it is told to stop and exits
    with 0; several are torchrun's, which passes the signal on (both measured with TRL 1.16). The
    ``trl`` command is never used: its launcher does not pass the signal on, and the checkpoint
    is lost.

    >>> from orchestrator.catalog.values import ModelFacts
    >>> facts = ModelFacts("m", "LlamaForCausalLM", 1, 1, 1, 1, 1, 1, 1)
    >>> starter(TuningJob(facts, Source("m"), Dataset("d"), "/out", count=2), ("-m", "trl.scripts.sft"))
    ('torchrun', '--nproc-per-node', '2', '-m', 'trl.scripts.sft')
    """
    if job.world == 1:
        return ("python3", *program)
    spread = ("torchrun", "--nproc-per-node", str(job.count))
    if job.nodes == 1:
        return (*spread, *program)
    meeting = ("--master-addr", nodes.MASTER, "--master-port", str(RENDEZVOUS_PORT))
    return (*spread, "--nnodes", str(job.nodes), "--node-rank", nodes.RANK, *meeting, *program)


LOGGING_STEPS = 10
"""Steps between two lines of figures, unless ``args`` say otherwise: TRL 1.16's default."""


def kept(job: TuningJob, command: Sequence[str]) -> tuple[str, ...]:
    """Return the whole command of a node: ``tuning_entry.py`` around the trainer's own."""
    words = ("python3", f"{job.home}/tuning_entry.py", f"{job.home}/tuning.json", "--", *command)
    return nodes.wrap(words, home=job.home) if job.nodes > 1 else words


def program(job: TuningJob, name: str) -> File:
    """Return a program of ours as it lies in the container."""
    return File(f"{job.home}/{name}", Path(__file__).with_name(name).read_bytes())


def entry_files(job: TuningJob, values: Mapping[str, Value]) -> tuple[File, ...]:
    """Return the programs around the trainer and their order; ``values`` is all that it is told."""
    every = values.get("logging_steps", LOGGING_STEPS)
    unimportant = ("save_steps", "save_total_limit", "report_to")
    training = {name: value for name, value in values.items() if name not in unimportant}
    order: dict[str, object] = {
        "output": job.output,
        "bucket": job.bucket,
        "fetch": dict(job.fetched),
        "resume": job.resume,
        "merge": f"{job.home}/tuning_merge.py" if job.merge else "",
        "logging_steps": every if isinstance(every, int) and every > 0 else LOGGING_STEPS,
        "may_end_early": any("early_stopping" in name for name in values),
        "digest": hashlib.sha256(json.dumps(training, sort_keys=True, default=list).encode()).hexdigest(),
        "base": {"id": job.source.id, "revision": job.source.revision, "path": job.source.path or ""},
        "dataset": {"id": job.dataset.id, "path": job.dataset.path or ""},
    }
    if job.nodes > 1:
        order["port"] = RENDEZVOUS_PORT
    wanted = {
        "tuning_merge.py": job.merge,
        "tuning_bucket.py": bool(job.bucket or job.fetched),
        "tuning_meeting.py": job.nodes > 1,
    }
    programs = ["tuning_entry.py", *(name for name, is_wanted in wanted.items() if is_wanted)]
    return (
        *((nodes.entry_file(job.home),) if job.nodes > 1 else ()),
        *(program(job, name) for name in programs),
        File(f"{job.home}/tuning.json", (json.dumps(order, indent=1) + "\n").encode()),
    )


def environment(job: TuningJob) -> tuple[tuple[str, str], ...]:
    """Return the variables that every trainer needs."""
    # into a pipe Python writes in blocks, and progress would be told minutes late
    parts = [("HF_HOME", "/root/.cache/huggingface"), ("PYTHONUNBUFFERED", "1")]
    if (job.fetch_bytes == 0 or job.source.scheme == "folder") and job.dataset.path:
        parts.append(("HF_HUB_OFFLINE", "1"))
    if job.accelerator is None:
        parts.append(("ACCELERATE_USE_CPU", "true"))
    return (*parts, *(nodes.ENV if job.nodes > 1 else ()))


def caches(job: TuningJob) -> tuple[Mount, ...]:
    """Return the volumes that save the next start."""
    fetches = job.source.scheme == "hub" or job.dataset.path is None
    return (Mount("huggingface", "/root/.cache/huggingface", "cache"),) if fetches else ()


def shm_bytes(job: TuningJob) -> int:
    """Return the size of /dev/shm: data loaders and NCCL use it (Axolotl's docs give 10 GB)."""
    return (16 if job.count > 1 else 8) * GIB


def stop_grace_s(job: TuningJob) -> float:
    """Return the seconds a stop may take: the step that runs, then one checkpoint, written and sent.

    >>> from orchestrator.catalog.values import ModelFacts
    >>> facts = ModelFacts("m", "LlamaForCausalLM", 1, 1, 1, 1, 1, 1, 1)
    >>> stop_grace_s(TuningJob(facts, Source("m"), Dataset("d"), "/out", checkpoint_bytes=48 * 10**9))
    426.0
    """
    sent_s = job.checkpoint_bytes / FETCH_BYTES_S if job.bucket else 0.0
    return STEP_S + float(round(job.checkpoint_bytes / LOAD_BYTES_S + sent_s))


def bucket_packages(job: TuningJob) -> tuple[str, ...]:
    """Return what the trainer's Python needs for the buckets that the run reads and writes."""
    urls = (job.bucket, *(url for _, url in job.fetched))
    return tuple(sorted({buckets.PACKAGES[buckets.scheme_of(url)] for url in urls if url}))


def first(findings: Iterator[Finding]) -> str | None:
    """Return the first finding in one phrase, None where there is none.

    >>> first(iter([Finding("train.args.learning_rat", "trl has no learning_rat")]))
    'args.learning_rat: trl has no learning_rat'
    """
    found = next(findings, None)
    return None if found is None else f"{found.path.removeprefix('train.')}: {found.what}"


def device(job: TuningJob) -> str | None:
    """Say why no trainer could run this job on this device."""
    if job.precision == "bf16" and quantization.has_no_bf16(job.accelerator):
        return f"{job.accelerator.name if job.accelerator else ''} has no bf16, train in fp16"
    if job.tuned.type == "qlora" and job.family not in ("cuda", "rocm"):
        return f"qlora needs bitsandbytes, which there is not for {job.family}"
    if job.sharding != "none" and job.world == 1:
        return f"{job.sharding} spreads over devices, and there is one"
    return None


def findings(job: TuningJob, engine: str, lengths: Sequence[str]) -> Iterator[Finding]:
    """Yield what no trainer could put right: source, length, adapter, merge and reporters.

    ``lengths`` are the names in ``args`` that say how long a sequence may be.
    """
    if job.source.scheme not in ("hub", "folder"):
        yield Finding(
            "train.model", f"{engine} does not load from {job.source.scheme}://", "mount it as a folder"
        )
    if job.model.bidirectional and job.method != "reward":
        what = f"{job.model.architecture} is an encoder, and {job.method} tunes what generates"
        fix = "train it with Sentence Transformers, by an image and commands of your own"
        yield Finding("train.model", what, fix)
    if job.model.quantization and job.tuned.type == "none":
        what = f"weights published in {job.model.quantization} cannot be trained themselves"
        yield Finding("train.adapter", what, "use an adapter: lora or qlora")
    said = {f"args.{name}": job.args[name] for name in lengths if name in job.args}
    for name, length in {"sequence_length": job.sequence_tokens, **said}.items():
        if job.model.context and isinstance(length, int) and length > job.model.context:
            what = f"sequences of {length} are beyond the model's {job.model.context}"
            yield Finding(f"train.{name}", what, f"at most {job.model.context}")
    if "wandb" in job.report and not _has(job, "WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        yield Finding("train.report", "wandb needs WANDB_API_KEY in env", "add env: [WANDB_API_KEY]")
    if "mlflow" in job.report and not _has(job, "MLFLOW_TRACKING_URI"):
        yield Finding("train.report", "mlflow needs MLFLOW_TRACKING_URI in env", "name its server there")
    if job.merge and job.tuned.type == "none":
        yield Finding(
            "train.merge", "there is no adapter to fold into its base", "remove it, or add adapter: lora"
        )
    yield from _no_targets(job)
    if gated := checks.gated(job):
        yield Finding("train.model", gated, "add env: [HF_TOKEN]")


def unknown_method(engine: str, method: str) -> Finding:
    """Return that ``engine`` does not train by a method, and which engine does.

    >>> unknown_method("trl", "orpo").fix
    'axolotl does: write engine: axolotl'
    """
    able = [name for name in trainers() if method in trainer(name).methods]
    fix = (
        f"{able[0]} does: write engine: {able[0]}"
        if able
        else f"there is {', '.join(trainer(engine).methods)}"
    )
    return Finding("train.method", f"{engine} does not train by {method}", fix)


def _no_targets(job: TuningJob) -> Iterator[Finding]:
    """Yield the modules that an adapter is to be put on and that the architecture does not have."""
    known = architectures.modules(job.model.architecture)
    if job.tuned.type == "none" or not known:
        return
    for at, target in enumerate(job.tuned.targets):
        if target != "all-linear" and target.rsplit(".", 1)[-1] not in known:
            near = difflib.get_close_matches(target, known, 1)
            fix = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}"
            path = f"train.adapter.targets[{at}]"
            yield Finding(path, f"{job.model.architecture} has no {target!r}", fix)


def _has(job: TuningJob, *names: str) -> bool:
    return not {name for name, _ in (*job.env, *job.secrets)}.isdisjoint(names)


def args_findings(
    args: Mapping[str, Value], known: Flags, owned: Mapping[str, str], prefix: str
) -> Iterator[Finding]:
    """Yield which of the user's ``args`` cannot be passed on; ``prefix`` is what option names begin with."""
    for name, value in args.items():
        path = f"train.args.{name}"
        if (flag := known.find(prefix + name)) is None:
            near = known.nearest(prefix + name)
            fix = f"did you mean {near.removeprefix(prefix)!r}?" if near else None
            yield Finding(path, f"{known.engine} {known.version} has no {name}", fix, of_key=True)
        elif name in owned:
            yield Finding(path, f"{name} is not for args", owned[name], of_key=True)
        elif value is None and not prefix:
            continue  # nothing is said, in a file of keys
        elif wrong := arguments.wrong_values(arguments.Option(name, _words(value)), flag):
            meant = difflib.get_close_matches(str(value), flag.choices, 1)
            yield Finding(path, f"{name} {wrong}", f"did you mean {meant[0]!r}?" if meant else None)


def _words(value: Value) -> tuple[str, ...]:
    """Return a value of ``args`` as words of a command line."""
    if isinstance(value, Mapping):
        return (json.dumps(value),)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(map(str, value))
    return () if value is None else (str(value),)


def replaced(plan: Mapping[str, Value], args: Mapping[str, Value]) -> tuple[str, ...]:
    """Return a warning for each value of the plan that the user's ``args`` change.

    >>> replaced({"per_device_train_batch_size": 4}, {"per_device_train_batch_size": 8})
    ('args: per_device_train_batch_size 8 replaces 4 of the plan',)
    """
    changed = ((name, value) for name, value in args.items() if name in plan and plan[name] != value)
    return tuple(f"args: {name} {value} replaces {plan[name]} of the plan" for name, value in changed)
