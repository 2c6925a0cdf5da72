"""Commands that start an engine, as people write them, read back into what a spec says."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.catalog import images, models
from orchestrator.engines import engine, names, trainer, trainers
from orchestrator.engines.arguments import Option, Rules, main_name, parse
from orchestrator.engines.flags import Flags, load
from orchestrator.engines.images import repository
from orchestrator.engines.job import Spelled
from orchestrator.engines.script import Command, commands, in_container, is_open, program

if TYPE_CHECKING:
    from orchestrator.engines.tuning import Trainer

Value = Any
"""What YAML can hold."""

_COMPUTED = "computed by the plan"
_FIELDS: Mapping[str, str] = {
    **dict.fromkeys(("tensor", "pipeline", "data", "expert"), ""),
    "context_tokens": "model.context",
    "kv_dtype": "model.kv_cache",
    "quantization": "model.quantization",
}
"""Where a spec says what a job's field of that name says; "" where the plan does. Others stay options."""
_PRECISIONS = {"bfloat16": "bf16", "bf16": "bf16", "half": "fp16", "float16": "fp16", "fp16": "fp16"}


@dataclass(slots=True)
class Written:
    """One command that starts an engine, as a spec would say it.

    ``fields`` are values by their path in a spec, ``args`` the options that stay the engine's.
    ``dropped`` says of each option that is in neither why, and ``unknown`` are options that the
    recorded version does not have: they are among ``args``.
    """

    engine: str
    kind: Literal["serve", "train"]
    words: tuple[str, ...]
    fields: dict[str, Value] = field(default_factory=dict)
    args: dict[str, Value] = field(default_factory=dict)
    dropped: list[tuple[str, str]] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    filled: set[str] = field(default_factory=set)
    """Variables whose values are in it."""
    problem: str = ""
    """Why it cannot be said in a spec as it stands."""
    settings: str = ""
    """A file of settings that it reads, which has to be read to know more."""

    @property
    def version(self) -> str:
        """The version whose options it was read by."""
        return _flags(self.engine, self.fields.get("train.method")).version

    @property
    def model(self) -> str:
        """What it calls its model, "" where nothing does."""
        return str(self.fields.get("model.id" if self.kind == "serve" else "train.model.id", ""))


def written(
    script: Sequence[str],
    env: Mapping[str, str | None],
    *,
    image: str | None = None,
    behind: Sequence[str] = (),
) -> tuple[Written, ...]:
    """Return every command of a script that starts an engine, or what an engine's image starts.

    Args:
        script: Lines of shell.
        env: The container's variables; None for one whose value is not there.
        image: The container's image; asked where the script starts no engine.
        behind: Words behind the image's own entrypoint.

    >>> found = written(["vllm serve a/b --max-model-len 8k --seed 1 --tensor-parallel-size 4"], {})[0]
    >>> found.engine, found.fields, found.args
    ('vllm', {'model.id': 'a/b', 'model.context': 8000}, {'seed': 1})
    >>> found.dropped
    [('--tensor-parallel-size', 'computed by the plan')]
    """
    found: list[Written] = []
    for command in commands(script, env):
        if one := _of_command(command, env):
            found.append(one)
    if not found and not script and image and (known := _of_image(image)):
        (command,) = commands([_quoted(behind)], env) if behind else (Command(()),)
        one = _serving(known, command.words, {**env, **command.own}, command, image)
        if one.model or command.words:
            found.append(one)
    return tuple(one for one in found if one.model or one.settings or one.problem)


def _quoted(words: Sequence[str]) -> str:
    return " ".join(word if "$" in word else "'" + word.replace("'", "'\\''") + "'" for word in words)


def _of_command(command: Command, env: Mapping[str, str | None]) -> Written | None:
    words = command.words
    inner = in_container(words)
    if inner and (known := _of_image(inner[0])):
        nested = inner[1]
        env = {**env, **_given(words)}
        if not nested or nested[0].startswith("-"):
            return _serving(known, nested, env, command, inner[0])
        words = nested
    elif inner and inner[1]:
        words = inner[1]
    for name in names():
        if (at := program(words, engine(name).spelled.programs)) is not None:
            return _serving(name, words[at:], {**env, **command.own}, command)
    for name in trainers():
        for method, each in trainer(name).spelled.by_method:
            if (at := program(words, (each,))) is not None:
                return _training(trainer(name), method, words[at:], command)
    return None


def _given(words: Sequence[str]) -> dict[str, str]:
    """Return the variables that ``docker run`` sets: ``-e NAME=value``."""
    pairs = [words[i + 1].partition("=") for i in range(len(words) - 1) if words[i] in ("-e", "--env")]
    return {name: value for name, equals, value in pairs if equals}


@functools.cache
def _repositories() -> Mapping[str, str]:
    general = {"transformers"}  # its images are Python's and PyTorch's
    return {one.repository: one.engine for name in names() if name not in general for one in images(name)}


def _of_image(image: str) -> str | None:
    """Return the engine whose image it is, None where it is none's.

    >>> _of_image("vllm/vllm-openai:v0.9.1"), _of_image("nvcr.io/nim/meta/llama-3.1-8b-instruct:1.3")
    ('vllm', 'nim')
    """
    name = repository(image)
    if known := _repositories().get(name):
        return known
    return next((each for each in names() if (p := engine(each).spelled.images) and name.startswith(p)), None)


def _flags(name: str, method: object = None) -> Flags:
    if name in trainers():
        version = trainer(name).versions[0]
        return load(name, version, trainer(name).script(str(method)) if method else None)
    known = engine(name)
    parser, versions = known.parser or (name, known.versions)
    return load(parser, versions[0])


# --- serving --------------------------------------------------------------------------------


def _serving(
    name: str,
    words: Sequence[str],
    env: Mapping[str, str | None],
    command: Command,
    image: str = "",
) -> Written:
    found = Written(name, "serve", tuple(command.words or words), filled=set(command.filled))
    known, spelled, rules = _flags(name), engine(name).spelled, engine(name).rules
    rest = list(words)
    if spelled.first and rest and not rest[0].startswith("-"):
        found.fields["model.id"] = rest.pop(0)
    try:
        options = [*parse(rest), *_from_variables(spelled, known, env, found)]
    except ValueError as error:
        found.problem = str(error).removeprefix("args: ")
        return found
    for option in options:
        whole = _whole_name(option.name.lstrip("-"), known, "--") if option.name.startswith("--") else ""
        _take(found, replace(option, name=f"--{whole}") if whole else option, known, spelled, rules)
    if "model.id" not in found.fields and image and spelled.images:
        found.fields["model.id"] = _named_by(image, spelled.images)
    if not found.model:
        found.problem = "no model is named"
    elif is_open(found.model):
        found.problem = f"the model is {found.model}, which only the machine that runs it knows"
    return found


def _named_by(image: str, prefix: str) -> str:
    """Return the hub id of the model that an image is named after, the image's own where none is known.

    >>> _named_by("nvcr.io/nim/meta/llama-3.1-8b-instruct:1.3", "nvcr.io/nim/")
    'meta-llama/Llama-3.1-8B-Instruct'
    """
    named = repository(image).removeprefix(prefix)
    short = named.rpartition("/")[2].lower()
    alike = [one for one in models() if one.rpartition("/")[2].lower() == short]
    return alike[0] if len(alike) == 1 else named


def _from_variables(
    spelled: Spelled, known: Flags, env: Mapping[str, str | None], found: Written
) -> Iterator[Option]:
    """Yield the options that an engine takes from variables too."""
    for name, value in env.items():
        option = spelled.variables.get(name)
        if option is None and spelled.every_variable:
            option = "--" + name.lower().replace("_", "-")
            option = option if known.find(option) else None
        if option is None or value is None:
            continue
        found.filled.add(name)
        flag = known.find(option)
        if flag is None or flag.takes != 0:
            yield Option(option, (value,))
        elif value.lower() in ("true", "1"):
            yield Option(option)


def _take(found: Written, option: Option, known: Flags, spelled: Spelled, rules: Rules) -> None:
    """Put one option where a spec says the same, or note why nothing does."""
    if known.find(option.name) is None and option.name not in spelled.says:
        found.args[option.name.lstrip("-")] = _plain(option.values)
        found.unknown.append(option.name)
        return
    name = main_name(option, known)
    path = spelled.says.get(name)
    if path is None and name in rules.fields:
        path = _FIELDS.get(rules.fields[name][0])
    read = rules.fields[name][1] if name in rules.fields else str
    if path == "":
        found.dropped.append((option.name, _COMPUTED))
    elif path is None and (why := spelled.drops.get(name) or rules.owned.get(name) or rules.secret.get(name)):
        found.dropped.append((option.name, why))
    elif any(is_open(value) for value in option.values) and path != "model.id":
        value = " ".join(option.values)
        found.dropped.append((option.name, f"{value} is known only where it runs: write its value in args"))
    elif path is None:
        # vLLM's --config.key is one key of an object, and has its whole name
        found.args[option.name.lstrip("-")] = _plain(option.values)
    else:
        _put(found, path, option, read)


def _put(found: Written, path: str, option: Option, read: Any) -> None:
    text = option.values[0] if option.values else ""
    try:
        value = read(text)
    except ValueError:
        found.dropped.append((option.name, f"{text!r} cannot be read"))
        return
    match path:
        case "model.precision":
            if text in _PRECISIONS:
                found.fields[path] = _PRECISIONS[text]
            elif text != "auto":
                found.dropped.append((option.name, f"{text} is no precision that is planned with"))
        case "model.quantization" if text in ("fp8", "int8"):
            found.fields["model.precision"] = text
        case "model.adapters":
            found.fields[path] = [
                {"name": name, "id": id}
                for name, equals, id in (each.partition("=") for each in option.values)
                if equals
            ]
        case "model.id" | "model.revision":
            _model_of(found, path, text)
        case "port" | "model.max_adapters":
            found.fields[path] = int(text) if text.isdecimal() else text
        case _:
            if value not in (None, "auto"):
                found.fields[path] = value


def _model_of(found: Written, path: str, text: str) -> None:
    """Take NIM's ``hf://org/model:revision`` apart."""
    text, _, revision = (
        text.removeprefix("hf://").partition(":") if text.startswith("hf://") else (text, "", "")
    )
    found.fields[path] = text
    if revision:
        found.fields["model.revision"] = revision


def _plain(values: Sequence[str]) -> Value:
    """Return an option's values as YAML has them: a switch is true, one value is itself.

    >>> _plain(()), _plain(("8",)), _plain(("0.9",)), _plain(("a", "b"))
    (True, 8, 0.9, ['a', 'b'])
    """
    if not values:
        return True
    typed = [_typed(value) for value in values]
    return typed[0] if len(typed) == 1 else typed


def _typed(text: str) -> Value:
    if re.fullmatch(r"-?\d{1,18}", text):
        return int(text)
    if re.fullmatch(r"-?\d+\.\d+(?:e-?\d+)?|-?\d+e-?\d+", text):
        return float(text)
    return text


# --- training -------------------------------------------------------------------------------

_EACH_DEVICE = "the plan starts one process for each device"


def _training(known: Trainer, method: str, words: Sequence[str], command: Command) -> Written:
    found = Written(known.name, "train", command.words, filled=set(command.filled))
    spelled = known.spelled
    rest = list(words)
    if rest[:1] == ["--"]:  # where a launcher's options end
        rest.pop(0)
    if spelled.file_first and rest and not rest[0].startswith("-"):
        found.settings = rest.pop(0)
    if method:
        found.fields["train.method"] = method
    try:
        options = parse(rest)
    except ValueError as error:
        found.problem = str(error).removeprefix("args: ")
        return found
    values: dict[str, Value] = {}
    for option in options:
        name = option.name.lstrip("-").replace("-", "_")
        if name in spelled.launcher:
            found.dropped.append((option.name, _EACH_DEVICE))
        elif name == spelled.file_option:
            found.settings = " ".join(option.values)
        elif any(is_open(value) for value in option.values):
            why = f"{' '.join(option.values)} is known only where it runs: write its value in args"
            found.dropped.append((option.name, why))
        else:
            values[name] = _plain(option.values)
    if found.settings and is_open(found.settings):
        found.problem = f"its settings are in {found.settings}, which only the machine that runs it knows"
    take_settings(found, values)
    return found


def take_settings(found: Written, values: Mapping[str, Value]) -> None:
    """Put a trainer's settings, by name, where a spec says the same; what was said before stays."""
    known = trainer(found.engine)
    method = known.method_of(values)
    if method and "train.method" not in found.fields:
        found.fields["train.method"] = method
    flags = _flags(found.engine, found.fields.get("train.method", "sft"))
    prefix = "--" if flags.find("--" + known.spelled.model) else ""
    for name, value in values.items():
        full = _whole_name(known.spelled.renamed.get(name, name), flags, prefix)
        if flag := flags.find(prefix + full):
            full = flag.name.removeprefix(prefix)
        path = known.spelled.says.get(full)
        if path == "":
            found.dropped.append((name, _COMPUTED))
        elif path is not None:
            found.fields.setdefault(path, value)
        elif full in known.owned:
            found.dropped.append((name, known.owned[full]))
        else:
            found.args.setdefault(full, value)
            if flags.find(prefix + full) is None:
                found.unknown.append(name)


def _whole_name(name: str, flags: Flags, prefix: str) -> str:
    """Return an option's name where it was cut short, as argparse lets people do.

    >>> _whole_name("model_name", load("trl", "1.16.0", "sft"), "--")
    'model_name_or_path'
    """
    if flags.find(prefix + name):
        return name
    whole = {flag.name for each, flag in flags.by_name.items() if prefix and each.startswith(prefix + name)}
    return whole.pop().removeprefix(prefix) if len(whole) == 1 else name
