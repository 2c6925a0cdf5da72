"""Write the generated tables of the README: ``python -m tests.house.tables``."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from pathlib import Path

from orchestrator.engines import engine, names, trainer, trainers
from orchestrator.places import GROUP

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- generated: python -m tests.house.tables -->\n", "<!-- end -->"


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
    """Return the README with its tables made anew."""
    before, rest = README.read_text().split(BEGIN)
    return before + BEGIN + tables() + END + rest.split(END, 1)[1]


if __name__ == "__main__":
    README.write_text(written())
