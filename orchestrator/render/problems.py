"""What is wrong with files, for machines; people read the error itself."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.errors import Problem
from orchestrator.render.table import to_json


def problems_json(problems: Sequence[Problem]) -> str:
    """Return problems as ``modelyard/problems/v1``; none of them means that all is well."""
    found = [
        {"file": p.at.file, "line": p.at.line, "column": p.at.column, "what": p.what, "fix": p.fix}
        for p in problems
    ]
    return to_json("modelyard/problems/v1", {"problems": found})
