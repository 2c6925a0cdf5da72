"""What is wrong with files, for machines; people read the error itself."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.errors import Problem
from orchestrator.render.table import to_json


def problems_json(problems: Sequence[Problem], *, notices: Sequence[Problem] = ()) -> str:
    """Return problems as ``modelyard/problems/v1``; none of them means that all is well.

    Notices stand beside them: what is right as it is written, and does not do what it says.
    """
    body = {
        "problems": [problem_object(p) for p in problems],
        "notices": [problem_object(p) for p in notices],
    }
    return to_json("modelyard/problems/v1", body)


def problem_object(problem: Problem) -> dict[str, object]:
    """Return one problem as JSON has it."""
    at = problem.at
    return {"file": at.file, "line": at.line, "column": at.column, "what": problem.what, "fix": problem.fix}
