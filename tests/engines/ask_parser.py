"""Ask an engine's own parser about command lines; run by the engine's interpreter, never by ours.

For a trainer ``argv`` begins with the method (TRL) or is the file of its configuration (Axolotl).

One JSON object per line on stdin, ``{"argv": [...], "folder": PATH or null}``; one verdict per line
on stdout, ``{"ok": true}`` or ``{"ok": false, "error": "..."}``. With ``folder``, vLLM also builds
its whole configuration against the ``config.json`` there. No GPU is touched, nothing is loaded.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
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


def trl() -> Ask:
    """Return a question that raises when a script of TRL would end at its options.

    Its training arguments look at the device as they are built, so bfloat16 is asked of a CPU, and
    options that no script knows, which it would ignore, are an error here. DeepSpeed's file is read by
    DeepSpeed itself where that is installed.
    """
    read = deepspeed() if importlib.util.find_spec("deepspeed") else None

    def ask(argv: list[str], folder: str | None) -> None:
        parser = importlib.import_module(f"trl.scripts.{argv[0]}").make_parser()
        words = [word.replace("/modelyard", folder or "/modelyard") for word in argv[1:]]
        for name in ("--bf16", "--fp16"):
            words[words.index(name) + 1] = "False"
        if read is not None and "--deepspeed" in words:
            read(words[words.index("--deepspeed") + 1])
        # to train by the one takes DeepSpeed's kernels, by the other a process group
        for name in {"--deepspeed", "--ddp_backend"} & set(words):
            del words[words.index(name) : words.index(name) + 2]
        *_, rest = parser.parse_args_and_config([*words, "--use_cpu"], return_remaining_strings=True)
        if rest:
            raise ValueError(f"ignored: {rest}")

    return ask


def deepspeed() -> Callable[[str], None]:
    """Return a question that raises when DeepSpeed refuses a file, ``auto`` filled in as the trainer does."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    config: Any = importlib.import_module("deepspeed.runtime.config").DeepSpeedConfig
    batch = {"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 4, "train_batch_size": 8}
    filled = {**batch, "gradient_clipping": 1.0, "bf16": {"enabled": True}, "fp16": {"enabled": False}}

    def ask(path: str) -> None:
        with open(path) as file:  # noqa: PTH123 - as above
            values = json.load(file)
        config({**values, **{name: value for name, value in filled.items() if name in values}})

    return ask


def axolotl() -> Ask:
    """Return a question that raises when Axolotl's schema refuses a file, or ignores one of its keys."""
    plain: Any = importlib.import_module("axolotl.utils.schemas.config").AxolotlInputConfig
    liger: Any = importlib.import_module("axolotl.integrations.liger.args").LigerArgs
    schema: Any = type("WithPlugin", (plain, liger), {})  # as it merges the schemas of its plugins

    def ask(argv: list[str], _: str | None) -> None:
        with open(argv[0]) as file:  # noqa: PTH123 - one road for every interpreter
            values = json.load(file)
        schema(**values)
        if ignored := values.keys() - schema.model_fields.keys():
            raise ValueError(f"ignored: {sorted(ignored)}")

    return ask


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
        ask = {"vllm": vllm, "sglang": sglang, "trl": trl, "axolotl": axolotl}[engine]()
    for line in sys.stdin:
        question = json.loads(line)
        print(json.dumps(verdict(ask, question["argv"], question["folder"])), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
