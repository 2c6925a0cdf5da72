"""Print the options that an engine's own parser accepts, one JSON object per line.

Run by the engine's interpreter, never by ours::

    $MODELYARD_VLLM_PYTHON tests/engines/record_flags.py vllm > orchestrator/engines/flags/vllm-0.33.0.jsonl

Only facts are kept: names, how many values follow, defaults and closed choices.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import sys
import warnings
from collections.abc import Iterator
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


def from_argparse(parser: argparse.ArgumentParser) -> Iterator[dict[str, Any]]:
    """Yield one record per option of an argparse parser."""
    for action in parser._actions:
        if not action.option_strings or isinstance(action, argparse._HelpAction):
            continue
        takes = 0 if action.nargs == 0 else action.nargs or 1
        record: dict[str, Any] = {"names": action.option_strings, "takes": takes}
        if (default := plain(action.default)) is not None:
            record["default"] = default
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
        if choices := getattr(getattr(parameter, "type", None), "choices", None):
            record["choices"] = sorted(str(getattr(c, "value", c)) for c in choices)
        yield record


def main(engine: str) -> None:
    """Print the records of ``engine``, ordered by name."""
    warnings.simplefilter("ignore")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    noise = io.StringIO()
    with contextlib.redirect_stdout(noise), contextlib.redirect_stderr(noise):
        parsers = {"vllm": vllm, "sglang": sglang}
        found = list(transformers() if engine == "transformers" else from_argparse(parsers[engine]()))
    for record in sorted(found, key=lambda r: str(r["names"][0])):
        print(json.dumps(record, sort_keys=True))


if __name__ == "__main__":
    main(sys.argv[1])
