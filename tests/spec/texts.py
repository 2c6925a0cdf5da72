"""What the tests of the spec share: reading text, and the problems in it."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.errors import Problem, SpecError
from orchestrator.spec.load import read
from orchestrator.spec.models import Spec

KNOWN = ("H100", "h100", "A100", "A10G", "MI300X", "v5litepod", "tt-galaxy-wh", "gaudi2", "L4", "RTX4090")


def spec_in(text: str, **around: object) -> Spec:
    """Return the only spec in ``text``."""
    (document,) = read(text, known_accelerators=KNOWN, **around)  # type: ignore[arg-type]  # passed on
    return document.spec


def problems_in(text: str, env: Mapping[str, str] | None = None) -> tuple[Problem, ...]:
    """Return every problem of ``text``; none when it is well."""
    try:
        read(text, known_accelerators=KNOWN, env=env)
    except SpecError as error:
        return error.problems
    return ()


def problem_in(text: str, env: Mapping[str, str] | None = None) -> Problem:
    """Return the only problem of ``text``."""
    (problem,) = problems_in(text, env)
    return problem


def place(problem: Problem) -> tuple[int, int]:
    """Return line and column."""
    return problem.at.line, problem.at.column


def task(line: str = "") -> str:
    """Return a small task with one more line at 4:1."""
    return f"type: task\nname: t\nimage: busybox\n{line}\n"


def service(lines: str = "") -> str:
    """Return a small service with more lines from 4:1."""
    return f"type: service\nname: s\nmodel: org/name\n{lines}\n"
