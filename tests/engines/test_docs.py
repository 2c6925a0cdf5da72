"""The tables of ``docs/reference/engines.md`` are made from the engines; ``UPDATE_DOCS=1`` rewrites them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from orchestrator.catalog import images
from orchestrator.engines import engine, names, sglang, tgi, transformers, vllm
from orchestrator.engines.quantization import Method
from tests.engines.jobs import job

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "engines.md"
METHODS: Mapping[str, Mapping[str, Method]] = {
    "vllm": vllm.METHODS,
    "sglang": sglang.METHODS,
    "tgi": tgi.METHODS,
    "transformers": transformers.METHODS,
}


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def engines_table() -> str:
    """Return one row per engine."""
    rows = []
    for name in names():
        served = engine(name)
        launch = served.launch(job())
        probe = launch.probe.path if launch.probe else ""
        metrics = f"`{launch.metrics.path}`" if launch.metrics else "none"
        rows.append([name, served.versions[0], str(launch.port), f"`{probe}`", metrics])
    return table(["engine", "version", "port", "ready when", "metrics"], rows)


def images_table() -> str:
    """Return one row per image."""
    found = [image for name in names() for image in images(name)]
    rows = [[image.engine, image.version, image.family, f"`{image.reference}`"] for image in found]
    return table(["engine", "version", "device", "image"], rows)


def _dotted(capability: tuple[int, int] | None) -> str:
    return f"{capability[0]}.{capability[1]}" if capability else "–"


def methods_table() -> str:
    """Return one row per engine and method."""
    rows = [
        [
            name,
            method,
            _dotted(where.runs),
            _dotted(where.native),
            ", ".join(sorted(where.gfx)) or "–",
            ", ".join(sorted(where.others)) or "–",
        ]
        for name, methods in METHODS.items()
        for method, where in methods.items()
    ]
    return table(["engine", "method", "runs from", "native from", "AMD", "others"], rows)


def with_tables(text: str) -> str:
    """Return the page with its tables made anew."""
    tables = {"engines": engines_table(), "images": images_table(), "methods": methods_table()}
    for name, body in tables.items():
        begin = re.search(rf"<!-- {name}: generated.*?-->\n", text)
        end = text.find(f"<!-- {name}: end -->")
        assert begin
        assert end > 0
        text = f"{text[: begin.end()]}{body}\n{text[end:]}"
    return text


def test_tables_are_those_of_the_code() -> None:
    made = with_tables(PAGE.read_text())
    if os.environ.get("UPDATE_DOCS"):
        PAGE.write_text(made)
    assert PAGE.read_text() == made, "UPDATE_DOCS=1 pytest tests/engines/test_docs.py rewrites them"
