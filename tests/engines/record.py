"""Print what an engine's own code knows: its options, and the model architectures it serves.

Run by the engine's interpreter, never by ours::

    cd orchestrator/engines/recorded
    $MODELYARD_VLLM_PYTHON ../../../tests/engines/record.py flags vllm > vllm-0.33.0.flags.jsonl
    $MODELYARD_VLLM_PYTHON ../../../tests/engines/record.py architectures vllm > vllm-0.33.0.architectures.txt

Only facts are kept. Options are one JSON object per line: names, how many values follow, defaults,
what a value is read as, closed choices, and ``known`` ones that an image of one's own may add to.
Architectures are one class name per line; ``!`` marks one that was taken out, ``|`` one that is not cut
into pipeline stages.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import importlib.util
import inspect
import io
import json
import os
import re
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def vllm() -> argparse.ArgumentParser:
    """Return the parser behind ``vllm serve``."""
    os.environ.setdefault("VLLM_TARGET_DEVICE", "cpu")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    cli = importlib.import_module("vllm.entrypoints.common.cli_args")
    flexible = importlib.import_module("vllm.utils.argparse_utils").FlexibleArgumentParser
    parser: argparse.ArgumentParser = cli.make_arg_parser(flexible(prog="vllm serve"))
    return parser


def sglang() -> argparse.ArgumentParser:
    """Return the parser behind ``python3 -m sglang.launch_server``."""
    parser = argparse.ArgumentParser(prog="sglang")
    importlib.import_module("sglang.srt.server_args").ServerArgs.add_cli_args(parser)
    return parser


def plain(value: Any) -> Any:
    """Return ``value`` where JSON has it, else None: a default that is an object is no fact for us."""
    return value if isinstance(value, str | int | float | bool) else None


READS: dict[str, str] = {
    "int": "int",
    "float": "float",
    "human_readable_int": "count",
    "human_readable_int_or_auto": "count?",
    "string_to_bool": "bool",
}
"""What a parser's type function reads, by its name; ``?`` allows a word such as ``auto`` too."""


def reads(kind: Any) -> str | None:
    """Return what a value is read as, None where it is text or an object."""
    name = getattr(kind, "__name__", "")
    if name == "_optional_type":  # vLLM's reads the word None, else what it closes over
        inner = dict(zip(kind.__code__.co_freevars, kind.__closure__, strict=True))["return_type"]
        found = reads(inner.cell_contents)
        return found and found.rstrip("?") + "?"
    return READS.get(name)


def vllm_known() -> dict[str, list[str]]:
    """Return the values that vLLM itself knows, of options whose parser takes any text."""
    typing = importlib.import_module("typing")
    cache: Any = importlib.import_module("vllm.config.cache")
    quantization: Any = importlib.import_module("vllm.model_executor.layers.quantization")
    loader: Any = importlib.import_module("vllm.model_executor.model_loader")
    backends: Any = importlib.import_module("vllm.v1.attention.backends.registry")
    tools: Any = importlib.import_module("vllm.tool_parsers").ToolParserManager
    reasoning: Any = importlib.import_module("vllm.reasoning").ReasoningParserManager
    return {
        "--kv-cache-dtype": list(typing.get_args(cache.CacheDType)),
        "--quantization": quantization.QUANTIZATION_METHODS,
        "--load-format": list(loader._LOAD_FORMAT_TO_MODEL_LOADER),
        "--attention-backend": [each.name for each in backends.AttentionBackendEnum],
        "--tool-call-parser": tools.list_registered(),
        "--reasoning-parser": reasoning.list_registered(),
    }


def vllm_flags() -> Iterator[dict[str, Any]]:
    """Yield one record per option of ``vllm serve``."""
    parser, known = vllm(), vllm_known()
    for record in from_argparse(parser):
        for name in record["names"]:
            if name in known:
                record["known"] = sorted(known[name])
        yield record


def from_argparse(parser: argparse.ArgumentParser) -> Iterator[dict[str, Any]]:
    """Yield one record per option of an argparse parser."""
    names: dict[argparse.Action, list[str]] = {}
    for name, action in parser._option_string_actions.items():  # hidden spellings too
        names.setdefault(action, []).append(name)
    for action, spellings in names.items():
        if isinstance(action, argparse._HelpAction):
            continue
        takes = 0 if action.nargs == 0 else action.nargs or 1
        record: dict[str, Any] = {"names": spellings, "takes": takes}
        if (default := plain(action.default)) is not None:
            record["default"] = default
        if found := reads(action.type):
            record["reads"] = found
        if action.choices:
            record["choices"] = sorted(str(c) for c in action.choices)
        yield record


def transformers() -> Iterator[dict[str, Any]]:
    """Yield one record per option of ``transformers serve``, which is a typer command."""
    import typer

    serve = importlib.import_module("transformers.cli.serve").Serve
    app = typer.Typer()
    app.command()(serve)
    for parameter in typer.main.get_command(app).params:
        if parameter.param_type_name != "option" or parameter.hidden:
            continue
        names = [*parameter.opts, *parameter.secondary_opts]
        record: dict[str, Any] = {"names": names, "takes": 0 if parameter.is_flag else 1}
        if (default := plain(parameter.default)) is not None:
            record["default"] = default
        yield record


TRL_METHODS = ("sft", "dpo", "grpo", "kto", "reward", "rloo")


def trl() -> Iterator[dict[str, Any]]:
    """Yield one record per option of TRL's scripts, with the methods whose script has it so."""
    merged: dict[str, dict[str, Any]] = {}
    for method in TRL_METHODS:
        for record in from_argparse(importlib.import_module(f"trl.scripts.{method}").make_parser()):
            known = merged.setdefault(json.dumps(record, sort_keys=True), {**record, "methods": []})
            known["methods"].append(method)
    yield from sorted(merged.values(), key=lambda record: record["names"])
    # taken off by its parser before argparse sees it
    yield {"names": ["--config"], "takes": 1, "methods": list(TRL_METHODS)}


def axolotl() -> Iterator[dict[str, Any]]:
    """Yield one record per key of Axolotl's configuration, and of the Liger plugin in its image."""
    schema: Any = importlib.import_module("axolotl.utils.schemas.config").AxolotlInputConfig
    liger: Any = importlib.import_module("axolotl.integrations.liger.args").LigerArgs
    for name, field in {**schema.model_fields, **liger.model_fields}.items():
        yield {"names": sorted({name, field.alias or name}), **of_annotation(field.annotation)}


def of_annotation(annotation: Any) -> dict[str, Any]:
    """Return what one value of a pydantic field is read as; only ``*`` where it may be several."""
    typing = importlib.import_module("typing")
    kinds, words = set(), set()
    left = [annotation]
    while left:
        kind = left.pop()
        origin = typing.get_origin(kind)
        if origin is typing.Literal:
            words |= set(typing.get_args(kind))
        elif origin is typing.Annotated:
            left.append(typing.get_args(kind)[0])
        elif origin in (typing.Union, types.UnionType):
            left += typing.get_args(kind)
        elif kind is not type(None):
            kinds.add(kind)
    if words and not kinds and all(isinstance(word, str) for word in words):
        return {"takes": 1, "choices": sorted(words)}
    if not words and (kinds == {int} or (float in kinds and kinds <= {int, float, str})):
        return {"takes": 1, "reads": "float" if float in kinds else "int"}  # text such as 2e-4 is read
    return {"takes": 1, "reads": "bool"} if kinds == {bool} and not words else {"takes": "*"}


def tgi(reference: Path) -> Iterator[dict[str, Any]]:
    """Yield one record per option in ``docs/source/reference/launcher.md``; TGI is no Python program."""
    for section in reference.read_text().split("\n## ")[1:]:
        usage = re.search(r"(--[a-z0-9-]+)( <)?", section)
        if usage is None or usage[1] in ("--help", "--version"):
            continue
        record: dict[str, Any] = {"names": [usage[1]], "takes": 1 if usage[2] else 0}
        if found := re.search(r"\[default: (.+)\]", section):
            record["default"] = found[1]
        if found := re.search(r"\[possible values: (.+)\]", section):
            record["choices"] = sorted(found[1].split(", "))
        yield record


def vllm_architectures() -> Iterator[str]:
    """Yield the class names in vLLM's registry, and those it says it no longer has."""
    os.environ.setdefault("VLLM_TARGET_DEVICE", "cpu")
    registry: Any = importlib.import_module("vllm.model_executor.models.registry")
    yield from (f"|{name}" if is_whole(name) else name for name in registry._VLLM_MODELS)
    yield from (f"!{name}" for name in registry._PREVIOUSLY_SUPPORTED_MODELS)


def is_whole(name: str) -> bool:
    """Say whether vLLM's class of that name is known not to be cut into pipeline stages.

    A class whose file needs a package that is not there, such as torchvision, says nothing.
    """
    registry: Any = importlib.import_module("vllm.model_executor.models.registry")
    interfaces: Any = importlib.import_module("vllm.model_executor.models.interfaces")
    try:
        return not interfaces.supports_pp(registry.ModelRegistry.models[name].load_model_cls())
    except ImportError as missing:
        print(f"{name}: {missing}"[:200], file=sys.__stderr__)
        return False


def transformers_modules() -> Iterator[dict[str, Any]]:
    """Yield the modules with weights of every model that generates text, as PEFT names them.

    Built of its default configuration without memory; what cannot be built so is left out.
    """
    import torch

    auto: Any = importlib.import_module("transformers")
    convolution = importlib.import_module("transformers.pytorch_utils").Conv1D
    kinds = (torch.nn.Linear, torch.nn.Embedding, convolution)
    for name in sorted(set(transformers_architectures())):
        model_class = getattr(auto, name, None)
        try:
            with torch.device("meta"):
                model = model_class(model_class.config_class())
        except Exception as cannot:  # whatever another program raises: said, and left out
            print(f"{name}: {type(cannot).__name__}: {cannot}"[:200], file=sys.__stderr__)
            continue
        parts = (path.rsplit(".", 1)[-1] for path, part in model.named_modules() if isinstance(part, kinds))
        found = {part for part in parts if not part.isdigit()}
        yield {"architecture": name, "modules": sorted(found | written(model_class))}


def written(model_class: Any) -> set[str]:
    """Return the modules that a model's own file makes, whatever its configuration leaves out."""
    found = set()
    for node in ast.walk(ast.parse(inspect.getsource(sys.modules[model_class.__module__]))):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
            calls = (each.func for each in ast.walk(node.value) if isinstance(each, ast.Call))
            if {ast.unparse(call).rpartition(".")[2] for call in calls} & {"Linear", "Embedding", "Conv1D"}:
                found.add(node.targets[0].attr)
    return found


def sglang_architectures() -> Iterator[str]:
    """Yield the class names that SGLang's model files enter; read as text, some need a GPU to import."""
    found = importlib.util.find_spec("sglang")
    assert found
    assert found.submodule_search_locations
    for file in Path(found.submodule_search_locations[0], "srt", "models").rglob("*.py"):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "EntryClass":
                entered = node.value.elts if isinstance(node.value, ast.List | ast.Tuple) else [node.value]
                yield from map(ast.unparse, entered)


def transformers_architectures() -> Iterator[str]:
    """Yield the class names of transformers' models that generate text."""
    auto: Any = importlib.import_module("transformers.models.auto.modeling_auto")
    tables = ("CAUSAL_LM", "IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM")
    for names in (getattr(auto, f"MODEL_FOR_{table}_MAPPING_NAMES") for table in tables):
        for name in names.values():
            yield from ((name,) if isinstance(name, str) else name)


def main(what: str, engine: str, *reference: str) -> None:
    """Print the records of ``engine``, ordered by name; ``reference`` is TGI's page of options."""
    warnings.simplefilter("ignore")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    recorders: dict[tuple[str, str], Callable[[], Iterator[Any]]] = {
        ("flags", "vllm"): vllm_flags,
        ("flags", "sglang"): lambda: from_argparse(sglang()),
        ("flags", "transformers"): transformers,
        ("flags", "trl"): trl,
        ("flags", "axolotl"): axolotl,
        ("flags", "tgi"): lambda: tgi(Path(reference[0])),
        ("architectures", "vllm"): vllm_architectures,
        ("architectures", "sglang"): sglang_architectures,
        ("architectures", "transformers"): transformers_architectures,
        ("modules", "transformers"): transformers_modules,
    }
    noise = io.StringIO()
    with contextlib.redirect_stdout(noise), contextlib.redirect_stderr(noise):
        found = list(recorders[what, engine]())
    if what == "flags":
        found = sorted(found, key=lambda r: str(r["names"][0]))
    lines = sorted(set(found)) if what == "architectures" else [json.dumps(r, sort_keys=True) for r in found]
    print("\n".join(lines))


if __name__ == "__main__":
    main(*sys.argv[1:])
