"""Workflow commands of GitHub Actions, which show a plan or a problem at its line of a pull request.

Their form: GitHub docs, "Workflow commands for GitHub Actions", and the escapes of
``actions/toolkit``, ``packages/core/src/command.ts``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from orchestrator.apply import Deletion, FleetPlan, Plan, RunPlan
from orchestrator.errors import ModelyardError, NothingFits, Position, Problem, SpecError
from orchestrator.render.plans import change_text, count_text, total_text


def plan_github(plans: Sequence[Plan]) -> str:
    """Return a notice for everything that would be done, and one that counts it.

    What would be deleted, or stopped with its work lost, is a warning: it stands nowhere in the files.
    """
    lines = [_plan_command(plan) for plan in plans if plan.action != "unchanged"]
    problems = [p for plan in plans if isinstance(plan, RunPlan) for p in plan.problems]
    lines += [command("warning", "\n".join(filter(None, (p.what, p.fix))), at=p.at) for p in problems]
    return "\n".join([*lines, command("notice", f"plan: {count_text(plans)}{total_text(plans)}")])


def error_github(error: ModelyardError) -> str:
    """Return an error as annotations: one for every problem, and for every spec without a place."""
    return "\n".join(_error_commands(error))


def notices_github(notices: Sequence[Problem]) -> str:
    """Return what stands in the files and does nothing as annotations."""
    return "\n".join(command("notice", notice.what, at=notice.at) for notice in notices)


def _error_commands(error: ModelyardError) -> Iterator[str]:
    if not isinstance(error, SpecError):
        for each in (error, *(error.also if isinstance(error, NothingFits) else ())):
            yield command("error", "\n".join(filter(None, (each.what, each.fix))), at=each.where)
        return
    for problem in error.problems:
        yield command("error", "\n".join(filter(None, (problem.what, problem.fix))), at=problem.at)


def command(kind: str, text: str, *, at: Position | None = None) -> str:
    """Return one workflow command; a path below the current folder is written relative to it.

    >>> command("error", "100 % wrong", at=Position("specs/a,b.yaml", 3, 5))
    '::error file=specs/a%2Cb.yaml,line=3,col=5::100 %25 wrong'
    """
    where = f" file={_property(_relative(at.file))},line={at.line},col={at.column}" if at else ""
    return f"::{kind}{where}::{_escaped(text)}"


def _plan_command(plan: Plan) -> str:
    said = [f"{plan.name} {plan.type}: {plan.action}"]
    if isinstance(plan, Deletion):
        return command("warning", "\n".join([*said, plan.reason]))
    said += [change_text(change) for change in plan.changes]
    said += plan.drift if isinstance(plan, RunPlan) else ()
    notes = plan.notes if isinstance(plan, RunPlan | FleetPlan) else ()
    return command("notice", "\n".join([*said, *notes]), at=plan.document.position)


def _relative(file: str) -> str:
    """Return a path as the repository has it: annotations on absolute ones are not shown."""
    path, here = Path(file), Path.cwd()
    return path.relative_to(here).as_posix() if path.is_relative_to(here) else path.as_posix()


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _escaped(text).replace(":", "%3A").replace(",", "%2C")
