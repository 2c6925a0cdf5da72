"""The command about bytes: what a model takes on which accelerators, at whose price."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from orchestrator.cli.shared import Json, use_catalog
from orchestrator.errors import UsageError

if TYPE_CHECKING:  # a --help shows options and sizes nothing
    from orchestrator.catalog import Accelerator, ModelFacts
    from orchestrator.planner.sets import Answer
    from orchestrator.planner.sizing import Measured

    Devices = tuple[Accelerator, ...]

app = typer.Typer(rich_markup_mode=None)

MOST = 4096
"""Accelerators of one set; more is a slip of the finger."""

MOST_COUNTED = 10**7
"""Tokens, sequences or ranks of any other setting; more is a slip of the finger too."""

LONGEST_VERSION = 40
"""Characters of an engine's version; the hash of a commit has as many."""

BITS = (1 / 16, 64)
"""Bits of a parameter, between which the weights' files may lie."""


def _counted(told: str) -> Any:
    return typer.Option(min=1, max=MOST_COUNTED, help=told, show_default=False)


Precision = Literal["auto", "fp32", "bf16", "fp16", "fp8", "int8", "int4", "fp4"]
Sort = Literal["price", "throughput", "latency"]


@app.command()
def size(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="A hub id or a folder.", show_default=False)
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A config.json, in place of MODEL.", show_default=False)
    ] = None,
    weights_bytes: Annotated[
        int | None, typer.Option(min=1, help="Bytes of the weights' files.", show_default=False)
    ] = None,
    gpu: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:COUNT]", help="Only this accelerator; COUNT for one replica.", show_default=False
        ),
    ] = None,
    precision: Annotated[Precision, typer.Option(help="The format computed in.")] = "auto",
    quantization: Annotated[
        str | None,
        typer.Option(help="How the weights were made, such as awq; unset: as published.", show_default=False),
    ] = None,
    kv_cache: Annotated[
        Literal["auto", "bf16", "fp8"] | None,
        typer.Option(help="The format of the KV cache; unset: 16 bits.", show_default=False),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens a request may hold; unset: the model's limit, or what fits.",
            show_default=False,
        ),
    ] = None,
    concurrency: Annotated[
        int | None,
        _counted("Requests held at once; unset: 1."),
    ] = None,
    tensor: Annotated[
        int | None,
        typer.Option(
            min=1, max=MOST, help="Ranks that share every layer; unset: it follows.", show_default=False
        ),
    ] = None,
    pipeline: Annotated[
        int | None,
        typer.Option(
            min=1, max=MOST, help="Stages that share the layers; unset: it follows.", show_default=False
        ),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            help="vllm (unset), sglang, tgi, nim or transformers; with --train trl (unset), axolotl, ...",
            show_default=False,
        ),
    ] = None,
    engine_version: Annotated[
        str | None, typer.Option(help="Such as 0.33.0; unset: the newest known.", show_default=False)
    ] = None,
    memory_utilization: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=1.0,
            help="Share of device memory the engine takes; unset: its default.",
            show_default=False,
        ),
    ] = None,
    max_num_seqs: Annotated[
        int | None, _counted("Sequences the engine runs at once, at most; unset: its default.")
    ] = None,
    max_num_batched_tokens: Annotated[
        int | None, _counted("Tokens of one pass of the engine; unset: its default.")
    ] = None,
    from_log: Annotated[
        Path | None, typer.Option(help="An engine's log: what it measured wins.", show_default=False)
    ] = None,
    train: Annotated[
        Literal["full", "lora", "qlora"] | None, typer.Option(help="Size a tuning run.", show_default=False)
    ] = None,
    method: Annotated[
        Literal["sft", "pretrain", "dpo", "kto", "orpo", "reward", "ppo", "grpo", "rloo"] | None,
        typer.Option(help="How it learns; unset: sft.", show_default=False),
    ] = None,
    sequence_length: Annotated[int | None, _counted("Tokens of an example; unset: 2048.")] = None,
    micro_batch: Annotated[
        int | None, _counted("Examples that go through a device at once; unset: 1.")
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="Such as adamw_8bit or lion; unset: adamw.", show_default=False)
    ] = None,
    state_dtype: Annotated[
        Literal["bf16", "fp32"] | None,
        typer.Option(help="Of optimizer states; unset: as the trainer keeps them.", show_default=False),
    ] = None,
    checkpointing: Annotated[
        Literal["none", "selective", "full"] | None,
        typer.Option(help="Activations computed again to save memory; unset: full.", show_default=False),
    ] = None,
    loss_kernel: Annotated[
        Literal["full", "chunked", "fused"] | None,
        typer.Option(help="How logits are held; unset: as the trainer does.", show_default=False),
    ] = None,
    packing: Annotated[
        bool | None, typer.Option("--packing", help="Fill examples up to their length.", show_default=False)
    ] = None,
    sharding: Annotated[
        Literal["none", "zero1", "zero2", "zero3", "fsdp"] | None,
        typer.Option(help="Unset: copies where they fit, else FSDP.", show_default=False),
    ] = None,
    rank: Annotated[int | None, _counted("Rank of the adapter; unset: 16.")] = None,
    targets: Annotated[
        str | None,
        typer.Option(help="Modules with an adapter, by comma; unset: all-linear.", show_default=False),
    ] = None,
    offload: Annotated[
        Literal["none", "optimizer", "activations", "all"] | None,
        typer.Option(help="What main memory takes; unset: none.", show_default=False),
    ] = None,
    sort: Annotated[Sort, typer.Option(help="What the first set is best in.")] = "price",
    json: Json = False,
) -> None:
    """Show what a model takes in device memory, and what holds it."""
    serving = {
        "quantization": quantization, "kv_cache": kv_cache, "context": context, "concurrency": concurrency,
        "memory_utilization": memory_utilization, "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": max_num_batched_tokens, "engine_version": engine_version,
        "from_log": from_log,
    }  # fmt: skip
    training = {
        "method": method, "sequence_length": sequence_length, "micro_batch": micro_batch,
        "optimizer": optimizer, "state_dtype": state_dtype, "checkpointing": checkpointing,
        "loss_kernel": loss_kernel, "packing": packing, "rank": rank, "offload": offload,
        "targets": tuple(targets.split(",")) if targets else None, "sharding": sharding,
    }  # fmt: skip
    if train is None:
        _refuse(training, "is about training, and needs --train")
    else:
        _refuse(serving, "is about serving, and cannot stand beside --train")
    if train == "full":
        _refuse(
            {"rank": rank, "targets": targets}, "is about an adapter, and needs --train lora or --train qlora"
        )
    if train == "qlora" and precision not in _COMPUTED_BY_QLORA:
        raise UsageError(
            f"--precision {precision}: qlora keeps its base in 4 bits and computes in 16",
            fix="leave --precision out, or use --train lora",
        )
    _check_version(engine_version)
    use_catalog()
    facts = _facts(model, config, weights_bytes)
    devices, count = _devices(gpu or ())
    common = _given({"precision": precision, "engine": engine})
    degrees = {"tensor": tensor, "pipeline": pipeline}
    with _usage():
        answer = (
            _serving(facts, devices, count, common | _given(serving), degrees, sort)
            if train is None
            else _training(
                facts, devices, count, {**common, "tuning": train, **_given(training | degrees)}, sort
            )
        )
    from orchestrator.render.sizes import size_json, size_text

    today = datetime.now(UTC).date()
    typer.echo(size_json(facts, answer) if json else size_text(facts, answer, today=today))


def _serving(
    facts: ModelFacts,
    devices: Devices,
    count: int | None,
    settings: dict[str, Any],
    degrees: dict[str, int | None],
    sort: Sort,
) -> Answer:
    from orchestrator.catalog import prices
    from orchestrator.planner.sets import serving_answer
    from orchestrator.planner.sizing import Measured, ServingJob

    settings["precision"] = _weights(settings["precision"], settings.pop("quantization", None))
    log: Path | None = settings.pop("from_log", None)
    if log and len(devices) > 1:
        raise UsageError("--from-log needs --gpu", fix="name the accelerators that the log is from")
    job = ServingJob(**settings, measured=_measured(log) if log else Measured())
    return serving_answer(facts, job, devices, prices(), count=count, sort=sort, **degrees)


_COMPUTED_BY_QLORA = ("auto", "fp32", "bf16", "fp16", "int4")


def _weights(precision: str, quantization: str | None) -> str:
    """Return the format of the weights that a precision and a method mean together.

    A method may be computed in 16 bits or more, else its weights are in the precision that is named.
    """
    if quantization is None or precision == "auto":
        return quantization or precision
    from orchestrator.planner.sizing.formats import weight_format

    made, asked = weight_format(quantization), weight_format(precision)
    is_float = ["fp" in each.name for each in (made, asked)]
    if asked.bits < 16 and (int(made.bits) != int(asked.bits) or len(set(is_float)) > 1):
        raise UsageError(
            f"--quantization and --precision: {quantization} weights are no {precision}",
            fix="leave one of the two out",
        )
    return quantization


def _check_version(version: str | None) -> None:
    from orchestrator.planner.sizing.profiles import version_key

    if version is not None and (len(version) > LONGEST_VERSION or not version_key(version)):
        raise UsageError(f"--engine-version: {version!r} is no version", fix="write numbers, such as 0.33.0")


def _training(
    facts: ModelFacts, devices: Devices, count: int | None, settings: dict[str, Any], sort: Sort
) -> Answer:
    from orchestrator.catalog import prices
    from orchestrator.engines import trainers
    from orchestrator.planner.sets import training_answer
    from orchestrator.planner.sizing import TrainingJob
    from orchestrator.planner.sizing.adapters import adapter_targets
    from orchestrator.planner.sizing.values import kept_by_trainers

    sharding = settings.pop("sharding", None)
    if settings.setdefault("engine", "trl") in trainers():  # as a plan has it run
        kept = kept_by_trainers(settings["tuning"], settings.get("method", "sft"))
        settings = dict(zip(("state_dtype", "loss_kernel"), kept, strict=True)) | settings
    job = TrainingJob(**settings)
    if not adapter_targets(job.targets):
        raise UsageError(
            f"no module is called {', '.join(job.targets)}", fix="such as all-linear, or q_proj,v_proj"
        )
    return training_answer(facts, job, devices, prices(), count=count, sharding=sharding, sort=sort)


def _facts(model: str | None, config: Path | None, weights_bytes: int | None) -> ModelFacts:
    """Return what the model is, with the bytes that were said of its files."""
    if (model is None) == (config is None):
        raise UsageError("name a model, or its configuration with --config", fix="one of the two")
    if config is not None and not config.exists():
        raise UsageError(f"there is no file {config}", fix="give the path of a config.json")
    found = _published(model) if model else None
    if found is None:
        found = _elsewhere(config or model or "")
    return _weighing(found, weights_bytes) if weights_bytes else found


def _weighing(facts: ModelFacts, weights_bytes: int) -> ModelFacts:
    """Return the facts with the bytes that were said of the files, where those can be this model's."""
    from orchestrator.catalog import count_parameters
    from orchestrator.render.sizes import parameters_text

    parameters = facts.parameters or count_parameters(facts)
    many = parameters_text(parameters)
    least, most = BITS
    if not least <= 8 * weights_bytes / parameters <= most:
        raise UsageError(
            f"--weights-bytes: {weights_bytes:,} are not the bytes of {many} parameters",
            fix="add up the sizes of the weights' files, in bytes",
        )
    return replace(facts, weights_bytes=weights_bytes)


def _published(model: str) -> ModelFacts | None:
    """Return what the catalog knows of a model, None where a path or somebody else does."""
    from orchestrator.catalog.published import model as published

    return None if Path(model).exists() else published(model)


def _elsewhere(model: str | Path) -> ModelFacts:
    """Return the facts of a folder, a file, or a model of the hub."""
    from orchestrator.facts import Hub, resolve  # readers of every kind of file: not for the catalog's

    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    return resolve(model, hub=Hub.from_environment(os.environ), offline=offline)


def _devices(texts: Sequence[str]) -> tuple[Devices, int | None]:
    """Return the accelerators meant, and how many of a named one; all of the catalog for none."""
    from orchestrator.catalog import accelerator, accelerators, known_names
    from orchestrator.catalog.hardware import tpu_slice
    from orchestrator.spec.forms import nearest_accelerator

    if not texts:
        return tuple(accelerators().values()), None
    if len(texts) > 1:
        raise UsageError(f"--gpu is given {len(texts)} times", fix="ask about one kind of accelerator")
    name, colon, many = texts[0].partition(":")
    count = _count(texts[0], many) if colon else None
    if slice_ := tpu_slice(name):
        if count:
            raise UsageError(f"--gpu {texts[0]}: {name} says how many there are", fix=f"write {name}")
        found, count = accelerator(slice_[0]), slice_[1]
    else:
        found = accelerator(name)
    if found is None:
        spelled = {known.lower(): known for known in sorted(known_names(), reverse=True)}
        fix = nearest_accelerator(name, spelled) or "modelyard catalog list accelerators"
        raise UsageError(f"no accelerator {name!r} in the catalog", fix=fix)
    return (found,), count


def _count(text: str, many: str) -> int:
    """Return the count of NAME:COUNT."""
    if not (many.isascii() and many.isdigit() and many.strip("0")):
        raise UsageError(f"--gpu {text}: {many!r} is no count", fix="write NAME:COUNT, such as H100:8")
    if len(many.lstrip("0")) > len(str(MOST)) or int(many) > MOST:
        raise UsageError(
            f"--gpu {text}: one set has at most {MOST:,} accelerators",
            fix="ask about one replica, and multiply",
        )
    return int(many)


def _measured(log: Path) -> Measured:
    """Return what an engine's log says of its memory."""
    from orchestrator.planner.sizing import Measured, from_log

    try:
        found = from_log(log.read_text("utf-8", errors="replace"))
    except OSError as error:
        raise UsageError(f"cannot read {log}: {error.strerror}") from None
    if found == Measured():
        raise UsageError(f"{log} says nothing of memory", fix="give the whole output of vLLM or SGLang")
    return found


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def _refuse(settings: dict[str, Any], why: str) -> None:
    for name in _given(settings):
        raise UsageError(f"--{name.replace('_', '-')} {why}")


@contextmanager
def _usage() -> Iterator[None]:
    """Tell what the sizing does not know as what it is: a wrong command line."""
    try:
        yield
    except ValueError as error:
        raise UsageError(str(error)) from error
