"""The options each engine's own parser accepts, recorded by version in ``recorded/``."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path

from orchestrator.frozen import frozen


@frozen
class Flag:
    """One option: its first long name, whether values follow, and what the parser checks.

    ``takes`` is 0 for a switch, 1 for one value, ``+`` or ``*`` for many, ``?`` for an optional one.
    ``reads`` is what a value must be: ``int``, ``float``, ``bool``, or ``count``, which may end in k or M; a
    ``?`` after it allows a word such as ``auto`` too, and "" is any text. ``choices`` are closed;
    ``known`` ones are those of the published image, and an image of one's own may have more.
    """

    name: str
    takes: int | str = 1
    default: str | int | float | bool | None = None
    choices: tuple[str, ...] = ()
    reads: str = ""
    known: tuple[str, ...] = ()


@frozen
class Flags:
    """All options of one version of an engine, by every spelling."""

    engine: str
    version: str
    by_name: Mapping[str, Flag]

    def find(self, spelling: str) -> Flag | None:
        """Return the option that ``spelling`` means, or None; dotted names mean their first part.

        Underscores in names are dashes to vLLM's parser, ``--config.key value`` sets one key of a
        JSON option there, and ``-O3`` is its optimization level; other parsers are plain argparse.
        """
        if self.engine == "vllm":
            head, _, _ = spelling.partition(".")
            spelling = "--optimization-level" if head.startswith("-O") else head.replace("_", "-")
        return self.by_name.get(spelling)

    def nearest(self, spelling: str) -> str | None:
        """Return the known spelling most like ``spelling``, if any is close."""
        import difflib  # only a mistake needs it

        close = difflib.get_close_matches(spelling, self.by_name, n=1, cutoff=0.75)
        return close[0] if close else None


@functools.cache
def load(engine: str, version: str, method: str | None = None) -> Flags:
    """Return the recorded options of ``engine`` at ``version``, of one ``method`` of a trainer.

    Raises:
        KeyError: that version was never recorded.

    >>> load("vllm", "0.33.0").find("-tp").name
    '--tensor-parallel-size'
    """
    file = Path(__file__).with_name("recorded") / f"{engine}-{version}.flags.jsonl"
    if not file.is_file():
        raise KeyError(f"{engine} {version}")
    by_name: dict[str, Flag] = {}
    for line in file.read_text().splitlines():
        record = json.loads(line)
        names: list[str] = record["names"]
        if method is not None and method not in record.get("methods", (method,)):
            continue
        main = next((n for n in names if n.startswith("--")), names[0])
        flag = Flag(
            main,
            record["takes"],
            record.get("default"),
            tuple(record.get("choices", ())),
            record.get("reads", ""),
            tuple(record.get("known", ())),
        )
        by_name.update(dict.fromkeys(names, flag))
    return Flags(engine, version, by_name)
