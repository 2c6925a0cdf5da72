"""Exit codes beside Terraform's: every row of the table in docs/gitops.md, in its order, on one record."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from backends.sim import Sim
from tests.apply.scenes import WEB, edited, names
from tests.cli.conftest import Cli, Result

PAGE = Path(__file__).parents[2] / "docs" / "gitops.md"
PLAN = ("plan", "-f", "specs.yaml")


def rows() -> dict[str, int]:
    """Return the steps of the page, and the exit code that it says each has here."""
    text = PAGE.read_text().partition("## Compared with Terraform")[2]
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {step: int(here) for step, _, here in cells[1:]}


def test_every_row_of_the_table_holds(cli: Cli) -> None:
    def applied(*options: str) -> Result:
        return cli.program("apply", *options, stdin="")

    def moved() -> Result:
        cli.write("specs.yaml", WEB + "replicas: 2\n")
        cli(*PLAN, "--out", "late.json")
        cli("apply", "--yes", "--set", "prod", "-f", "specs.yaml")
        return cli("apply", "late.json")

    def again_edited() -> Result:
        cli(*PLAN, "--rerun", "--out", "edited.json")
        edited("edited.json", set="other")
        return cli("apply", "edited.json")

    def twice() -> Result:
        cli(*PLAN, "--out", "same.json")
        assert cli("apply", "same.json").code == 0
        return cli("apply", "same.json")

    def drifted() -> Result:
        place = Sim(state=str(cli.folder / "sim.jsonl"))
        place.remove(place.instances()[0].name)
        return cli("drift", "--detailed-exitcode")

    def emptied() -> Result:
        cli.write("specs.yaml", WEB.replace("name: web", "name: web-b"))
        result = cli("apply", "--yes", "--prune", "--set", "prod", "-f", "specs.yaml")
        assert names(cli).keys() == {"web-b"}
        return result

    cli.write("specs.yaml", WEB)
    cli.write("wrong.yaml", WEB + "colour: red\n")
    steps: dict[str, Callable[[], Result]] = {
        "plan with something to do, detailed exit code": lambda: cli(*PLAN, "--detailed-exitcode"),
        "the same plan without a detailed exit code": lambda: cli(*PLAN),
        "apply without a terminal and without consent": lambda: applied("-f", "specs.yaml"),
        "save a plan": lambda: cli(*PLAN, "--out", "plan.json"),
        "apply it: no question is asked": lambda: applied("plan.json"),
        "apply it again: the plan is stale": lambda: applied("plan.json"),
        "plan with nothing to do, detailed exit code": lambda: cli(*PLAN, "--detailed-exitcode"),
        "apply with nothing to do": lambda: applied("--yes", "-f", "specs.yaml"),
        "save a plan of nothing, apply it twice": twice,
        "apply a plan that somebody edited": again_edited,
        "apply a plan made before the record moved": moved,
        "plan files that are wrong, detailed exit code": lambda: cli(
            "plan", "-f", "wrong.yaml", "--detailed-exitcode"
        ),
        "an option that does not exist": lambda: cli(*PLAN, "--colour"),
        "drift (`plan -refresh-only`), nothing drifted, detailed exit code": lambda: cli(
            "drift", "--detailed-exitcode"
        ),
        "drift of one replica, detailed exit code": drifted,
        "delete what is no longer in the files": emptied,
    }
    assert {step: run().code for step, run in steps.items()} == rows()
