"""Ask an engine's own parser about command lines; run by the engine's interpreter, never by ours.

One JSON object per line on stdin, ``{"argv": [...], "folder": PATH or null}``; one verdict per line
on stdout, ``{"ok": true}`` or ``{"ok": false, "error": "..."}``. With ``folder``, vLLM also builds
its whole configuration against the ``config.json`` there. No GPU is touched, nothing is loaded.
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
from collections.abc import Callable
from typing import Any

Ask = Callable[[list[str], str | None], None]


def vllm() -> Ask:
    """Return a question that raises when vLLM would end."""
    os.environ.setdefault("VLLM_TARGET_DEVICE", "cpu")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    cli: Any = importlib.import_module("vllm.entrypoints.common.cli_args")
    flexible = importlib.import_module("vllm.utils.argparse_utils").FlexibleArgumentParser
    arguments: Any = importlib.import_module("vllm.engine.arg_utils").AsyncEngineArgs
    parser = cli.make_arg_parser(flexible(prog="vllm serve"))

    def ask(argv: list[str], folder: str | None) -> None:
        parsed = parser.parse_args(argv)
        parsed.model = parsed.model_tag or parsed.model
        cli.validate_parsed_serve_args(parsed)
        if folder is not None:
            parsed.model, parsed.revision = folder, None
            arguments.from_cli_args(parsed).create_engine_config()

    return ask


def sglang() -> Ask:
    """Return a question that raises when SGLang's parser would end."""
    parser = argparse.ArgumentParser(prog="sglang")
    importlib.import_module("sglang.srt.server_args").ServerArgs.add_cli_args(parser)
    return lambda argv, _: [parser.parse_args(argv)].clear()


def verdict(ask: Ask, argv: list[str], folder: str | None) -> dict[str, Any]:
    """Return what the engine says to one command line."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            ask(argv, folder)
    except SystemExit:
        return {"ok": False, "error": (said.getvalue().strip().splitlines() or ["it ended"])[-1]}
    except Exception as refused:  # whatever another program raises is its verdict
        return {"ok": False, "error": f"{type(refused).__name__}: {refused}"[:600]}
    return {"ok": True}


def main(engine: str) -> None:
    """Answer every line of stdin."""
    warnings.simplefilter("ignore")
    os.environ.update(HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="")
    with contextlib.redirect_stdout(sys.stderr):
        ask = {"vllm": vllm, "sglang": sglang}[engine]()
    for line in sys.stdin:
        question = json.loads(line)
        print(json.dumps(verdict(ask, question["argv"], question["folder"])), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
