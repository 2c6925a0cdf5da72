"""Write what is generated of the README: ``python -m tests.house.tables``."""

from __future__ import annotations

import importlib
import shlex
from importlib.metadata import entry_points
from pathlib import Path

from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.engines import engine, names, trainer, trainers
from orchestrator.places import GROUP

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- generated: python -m tests.house.tables -->\n", "<!-- end -->"
SIZE = "modelyard size meta-llama/Llama-3.1-70B-Instruct --context 8192 --concurrency 16"
SETS = 5


def receipt() -> str:
    """Return what ``size`` says of a model, the first sets alone, and without what a day changes."""
    said = CliRunner().invoke(app, shlex.split(SIZE)[1:], catch_exceptions=False).stdout.splitlines()
    first = said.index("") + 2  # below the heads
    shown = [*said[: first + SETS], "...", *(line for line in said if line.startswith("refused"))]
    return "\n".join(["```console", f"$ {SIZE}", *shown, "```"]) + "\n"


def tables() -> str:
    """Return both tables as Markdown."""
    return f"{_backends()}\n{_engines()}\n"


def _backends() -> str:
    rows = ["| backend | runs | able to |", "|---|---|---|"]
    for point in sorted(entry_points(group=GROUP), key=lambda p: p.name):
        if point.value.startswith("backends."):
            backend = point.load()(point.name)
            able = ", ".join(sorted(c.name.lower() for c in backend.can))
            rows.append(f"| `{point.name}` | {_role(point.module)} | {able} |")
    return "\n".join(rows) + "\n"


def _engines() -> str:
    rows = ["| engine | what it is | version |", "|---|---|---|"]
    known = {
        **{name: engine(name).versions for name in names()},
        **{n: trainer(n).versions for n in trainers()},
    }
    for name, versions in known.items():
        rows.append(f"| `{name}` | {_role(f'orchestrator.engines.{name}')} | {', '.join(versions)} |")
    return "\n".join(rows)


def _role(module: str) -> str:
    line = (importlib.import_module(module).__doc__ or "").strip().splitlines()[0]
    return line.rstrip(".").replace("``", "`")


def written() -> str:
    """Return the README with what is generated made anew."""
    before, *parts = README.read_text().split(BEGIN)
    made = zip((receipt(), tables()), parts, strict=True)
    return before + "".join(BEGIN + text + END + part.split(END, 1)[1] for text, part in made)


if __name__ == "__main__":
    README.write_text(written())
