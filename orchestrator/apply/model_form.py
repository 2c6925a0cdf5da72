"""A command that starts an engine as a document: what it says of the model, and all else that stays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from orchestrator.catalog.hardware import tpu_slice
from orchestrator.engines.flags import load
from orchestrator.engines.images import is_of
from orchestrator.engines.script import bare, commands
from orchestrator.engines.written import Written, take_settings
from orchestrator.importers.draft import Draft
from orchestrator.spec.models import Gpu, Service, Task, Traffic

_STARTS = frozenset(
    ("type", "name", "image", "entrypoint", "commands", "setup", "shell", "working_dir", "user", "privileged")
)
"""What says how a document starts, which its engine does in its place."""
_ORDER = frozenset(("startup_order", "stop_criteria"))
_OF_THE_PROGRAM = frozenset(("ports", "port", "probes", "model", "nodes"))
_ADAPTER = ("type", "rank", "alpha", "dropout", "targets")
_ASIDE = frozenset(
    ("tee", "echo", "sleep", "cd", "cat", "[", "[[", "grep", "curl", "fi", "done", "esac", "}", "set", "wait")
)
"""Words of scripts that start nothing of their own."""
_MOST_OTHERS = 6


def service(name: str, spec: Task | Service, found: Written) -> tuple[Draft, tuple[str, ...]]:
    """Return a service whose engine is planned in place of the command, and what changed."""
    draft = Draft("service", name, (1, 1))
    plain = _kept(spec, found, _STARTS | _ORDER | _OF_THE_PROGRAM)
    model = {path.partition(".")[2]: v for path, v in found.fields.items() if path.startswith("model.")}
    if not model.get("adapters"):
        model.pop("max_adapters", None)
    draft.values |= {"model": _short(model, "id"), "engine": found.engine}
    if found.args:
        draft.values["args"] = found.args
    draft.values |= plain
    says: list[str] = []
    if "context" in model:
        held = f"{model['context']:,} tokens of context are held {Traffic().concurrency} times at once"
        says.append(f"{held}: set traffic.concurrency where fewer requests are that long")
    if isinstance(spec, Task):
        says.append("a service: kept up and reached through the gateway, which a task is not")
        if spec.nodes != 1:
            says.append("nodes is left out: the plan spans machines where one does not hold the model")
    return draft, (*says, *_changes(spec, found))


def training(name: str, spec: Task | Service, found: Written) -> tuple[Draft, tuple[str, ...]]:
    """Return a task whose trainer is planned in place of the command, and what changed."""
    draft = Draft("task", name, (1, 1))
    said = found.fields
    model = {path.rpartition(".")[2]: v for path, v in said.items() if path.startswith("train.model.")}
    batch_size, told = _batch(spec, found)
    output = said.get("train.output")
    report = [one for one in _listed(said.get("train.report")) if one != "none"]
    train = {
        "method": said.get("train.method", "sft"),
        "model": _short(model, "id"),
        "dataset": said.get("train.dataset", ""),
        "adapter": _adapter(found),
        "sequence_length": said.get("train.sequence_length", _default(found, "max_length")),
        "epochs": said.get("train.epochs", _default(found, "num_train_epochs")),
        "batch_size": batch_size,
        "engine": found.engine,
        "args": found.args or None,
        "output": output if not output or str(output).startswith(("/", "./")) else f"./{output}",
        "report": report or None,
    }
    draft.values["train"] = {key: value for key, value in train.items() if value is not None}
    draft.values |= _kept(spec, found, _STARTS | _ORDER)
    return draft, (told, *_changes(spec, found))


def _short(said: Mapping[str, Any], word: str) -> Any:
    """Return the one word that a mapping holds, where it holds no more."""
    return said[word] if set(said) == {word} else dict(said)


def _kept(spec: Task | Service, found: Written, gone: frozenset[str]) -> dict[str, Any]:
    """Return what the original says of anything but what starts; variables of the command go with it."""
    plain: dict[str, Any] = {key: value for key, value in spec.canonical().items() if key not in gone}
    env = {name: value for name, value in spec.env.items() if name not in found.filled}
    plain |= {"env": env, "resources": _resources(spec, plain)}
    return {key: value for key, value in plain.items() if value not in ({}, None)}


def _resources(spec: Task | Service, plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is asked of machines, with the number of accelerators left to the plan."""
    said = plain.get("resources") or {}
    kept = {key: value for key, value in said.items() if key not in ("gpu", "shm_size")}
    gpu = spec.resources.gpu
    if gpu is not None and (kind := kind_of_gpu(gpu, "1..")):
        kept["gpu"] = kind
    return kept


def kind_of_gpu(gpu: Gpu, count: str) -> str:
    """Return accelerators of a kind in another number, as one would write them; "" for any kind.

    >>> kind_of_gpu(Gpu.model_validate("H100:80GB:8"), "1.."), kind_of_gpu(Gpu.model_validate(2), "1..")
    ('H100:80GB:1..', '')
    """
    names = dict.fromkeys((tpu_slice(name) or (name,))[0] for name in gpu.name)
    vendor = gpu.vendor if gpu.vendor and not names else None
    memory = str(gpu.memory.canonical()) if gpu.memory else None
    parts = [part for part in (vendor, ",".join(names), memory) if part]
    return ":".join([*parts, count]) if parts else ""


def asked_count(spec: Task | Service) -> int | None:
    """Return how many accelerators a document asks for over all its machines, at least; None for none."""
    gpu = spec.resources.gpu
    if gpu is None:
        return None
    nodes = spec.nodes if isinstance(spec, Task) and isinstance(spec.nodes, int) else 1
    slices = [found[1] for name in gpu.name if (found := tpu_slice(name))]
    return max(1, (slices[0] if slices else gpu.count.min) or 1) * nodes


# --- training -------------------------------------------------------------------------------


def _adapter(found: Written) -> Any:
    """Return what is trained of the model, None where it is all of it."""
    said = {p.rpartition(".")[2]: v for p, v in found.fields.items() if p.startswith("train.adapter.")}
    if found.engine == "trl":  # its options say how, and two switches whether
        if not found.fields.get("peft"):
            return None
        said["type"] = "qlora" if found.fields.get("four_bit") else "lora"
        for name, setting in (("rank", "lora_r"), ("alpha", "lora_alpha"), ("dropout", "lora_dropout")):
            said.setdefault(name, _default(found, setting))
    if said.get("type") not in ("lora", "qlora"):
        return None
    if found.fields.get("linear"):
        said["targets"] = ["all-linear"]
    return _short({name: said[name] for name in _ADAPTER if said.get(name) is not None}, "type")


def _default(found: Written, setting: str) -> Any:
    """Return what a trainer takes where its command says nothing, None where that is not recorded."""
    flag = load(found.engine, found.version).find(f"--{setting}")
    return flag.default if flag else None


def _batch(spec: Task | Service, found: Written) -> tuple[int, str]:
    """Return the examples of one step over all devices, and how they come about."""
    micro = int(found.fields.get("micro_batch") or _default(found, "per_device_train_batch_size") or 1)
    steps = int(found.fields.get("accumulation") or 1)
    count = asked_count(spec) or 1
    size = micro * steps * count
    devices = f"{count} device{'' if count == 1 else 's'}"
    return (
        size,
        f"batch_size {size} is {micro} on each of {devices}, {steps} accumulated: the plan divides it",
    )


def _listed(value: Any) -> list[str]:
    return [str(each) for each in value] if isinstance(value, list) else [str(value)] if value else []


def read_settings(found: Written, spec: Task | Service, folder: Path | None) -> None:
    """Read a trainer's file of settings where it lies beside the document, or in what it sends along."""
    text = next((each for path in _places(found.settings, spec, folder) if (each := _text(path))), None)
    if text is None:
        found.problem = f"its settings are in {found.settings}, which is not here: put it beside this file"
        return
    import yaml  # PyYAML costs 20 ms of CPU, and most commands have no such file

    try:
        said = yaml.safe_load(text)
    except yaml.YAMLError as error:
        found.problem = f"{found.settings} is broken YAML: {str(error).splitlines()[0]}"
        return
    if not isinstance(said, dict):
        found.problem = f"{found.settings} holds no settings"
        return
    take_settings(found, {str(name): value for name, value in said.items() if value is not None})
    rows = found.fields.get("train.dataset")
    if isinstance(rows, list):
        paths = [row.get("path") for row in rows if isinstance(row, dict)]
        if len(paths) == 1:
            found.fields["train.dataset"] = paths[0]
        else:
            found.problem = f"{found.settings} names {len(paths)} data sets, and a spec trains on one"


def _places(name: str, spec: Task | Service, folder: Path | None) -> Iterator[Path]:
    """Yield where a file that a command names may lie here."""
    if folder is None:
        return
    wanted = PurePosixPath(name)
    if not wanted.is_absolute():
        yield folder / name
    for file in spec.files:
        local = folder / file.local_path
        inside = PurePosixPath(file.path or local.name)
        if wanted == inside:
            yield local
        elif wanted.is_relative_to(inside):
            yield local / wanted.relative_to(inside)
        yield local / wanted.name


def _text(path: Path) -> str | None:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return None


# --- what changed ---------------------------------------------------------------------------


def _changes(spec: Task | Service, found: Written) -> Iterator[str]:
    """Say what of the original is not in the suggestion, and why."""
    yield from _image(spec, found)
    by_why: dict[str, dict[str, None]] = {}
    for option, why in found.dropped:
        by_why.setdefault(why, {})[option] = None
    yield from (f"left out: {', '.join(options)}: {why}" for why, options in by_why.items())
    if found.unknown:
        names = ", ".join(found.unknown)
        then = "kept in args, and refused by plan until it is taken out"
        yield f"{found.engine} {found.version} has no {names}: {then}"
    if found.filled:
        yield f"filled in from env: {', '.join(sorted(found.filled))}"
    if others := _others(spec, found):
        yield f"what else runs there is not in it: {others}"


def _image(spec: Task | Service, found: Written) -> Iterator[str]:
    """Say what becomes of the image; one of Python's was there to install the engine into."""
    image = spec.image
    if image is None or image.startswith("python:"):
        return
    if is_of(image, found.engine) or found.engine == "nim":
        yield f"image {image} is left out: the catalog's image of {found.engine} is taken, by version"
    else:
        yield f"image {image} is left out: set image again if its {found.engine} has changes of yours"


def _others(spec: Task | Service, found: Written) -> str:
    """Return the programs that a document's scripts run beside the engine, each once."""
    seen: dict[str, None] = {}
    for command in (*commands(spec.setup, {}), *commands(spec.commands, spec.env)):
        words: Sequence[str] = bare(command.words)
        if command.words != found.words and words and words[0] not in _ASIDE:
            seen[" ".join(words[:2])] = None
    shown = list(seen)[:_MOST_OTHERS]
    more = f" and {len(seen) - _MOST_OTHERS} more" if len(seen) > _MOST_OTHERS else ""
    return ", ".join(shown) + more
