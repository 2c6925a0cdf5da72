"""What the documentation names exists, and what exists is named."""

from __future__ import annotations

import inspect
import re
import shlex
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from conftest import ENGINE
from orchestrator import errors
from orchestrator.backend import Can
from orchestrator.cli import COMMANDS, run
from tests.house import tables
from tests.places import plan_everywhere

ROOT = Path(__file__).parents[2]
CLI_PAGE = (ROOT / "docs/reference/cli.md").read_text()


def test_the_readmes_tables_are_those_of_the_code() -> None:
    assert tables.README.read_text() == tables.written(), "run python -m tests.house.tables"


def test_the_readme_is_short() -> None:
    assert len(tables.README.read_text().splitlines()) < 150


def test_ci_runs_the_two_commands_a_reader_types() -> None:
    script = (ROOT / ".ci/run").read_text()
    pick = re.search(r"< <\((.*)\)$", script, re.MULTILINE)
    assert pick
    found = subprocess.run(["bash", "-c", pick[1]], cwd=ROOT, capture_output=True, text=True, check=True)
    commands = re.findall(r"^```sh\n(.*)\n```$", tables.README.read_text(), re.MULTILINE)
    assert found.stdout.splitlines() == commands
    assert len(commands) == 2


def strays(tests: Iterable[Path], pattern: re.Pattern[str]) -> list[str]:
    """Return the tests that ask for the engine and take no turns at it."""
    names = ((path.relative_to(ROOT).as_posix(), path.read_text()) for path in tests)
    asking = [name for name, text in names if "require_engine()" in text or "busybox()" in text]
    return [name for name in asking if not pattern.match(name)]


def test_tests_that_start_containers_take_turns() -> None:
    found = [path for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__)]

    assert strays(found, ENGINE) == []
    assert strays(found, re.compile("tests/backends/")) != []


def shown() -> dict[str, list[str]]:
    """Return what pages show of a command's output, by the command."""
    pages = (page.read_text() for page in (ROOT / "docs").rglob("*.md"))
    blocks = (
        block for page in pages for block in re.findall(r"^```console\n\$ (.*?)^```$", page, re.M | re.S)
    )
    return {(lines := block.splitlines())[0]: lines[1:] for block in blocks}


@pytest.mark.parametrize("command", sorted(shown()))
def test_a_command_prints_what_its_page_shows(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("STATE_HOME", "CACHE_HOME", "CONFIG_HOME"):
        monkeypatch.setenv(f"XDG_{name}", str(tmp_path))
    assert run(shlex.split(command)[1:]) == 0
    printed = iter(capsys.readouterr().out.splitlines())
    for line in shown()[command]:
        if line != "..." and "older than" not in line:  # which prices are old depends on the day
            wanted = line.removesuffix("...")
            assert any(each == line or (wanted != line and each.startswith(wanted)) for each in printed), line


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda p: p.stem)
def test_every_config_plans(path: Path) -> None:
    plans = plan_everywhere(path.read_text(), file=str(path))
    assert plans or "type: fleet" in path.read_text()


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_is_on_the_page(name: str) -> None:
    assert re.search(rf"`{name}\b", CLI_PAGE)


def test_every_command_on_the_page_is_there() -> None:
    rows = [line for line in CLI_PAGE.splitlines() if line.startswith("| `") and "modelyard/" not in line]
    named = {word for row in rows for word in re.findall(r"`([a-z]+)", row.split("|")[1])}
    assert named <= set(COMMANDS)


def test_every_json_schema_is_on_the_page_and_the_other_way_round() -> None:
    code = "".join(p.read_text() for p in (ROOT / "orchestrator").rglob("*.py"))
    used = set(re.findall(r"to_json\(\s*\"(modelyard/[a-z]+/v\d)\"", code))
    assert used
    assert used == set(re.findall(r"`(modelyard/[a-z]+/v\d)`", CLI_PAGE))


def test_every_error_is_in_the_tree_with_its_exit_code() -> None:
    tree = errors.__doc__ or ""
    for name, kind in inspect.getmembers(errors, inspect.isclass):
        if issubclass(kind, errors.ModelyardError) and kind not in (errors.ModelyardError, errors.Temporary):
            assert re.search(rf"{name}\s+{kind.exit_code}\b", tree), f"{name} {kind.exit_code}"


def test_every_capability_is_on_the_backends_page() -> None:
    page = (ROOT / "docs/backends.md").read_text()
    assert [can.name for can in Can if f"`{can.name}`" not in page and f"Can.{can.name}" not in page] == []


def test_decisions_are_numbered_once() -> None:
    numbers = [p.name[:4] for p in (ROOT / "docs/decisions").glob("*.md")]
    assert len(numbers) == len(set(numbers))


FORBIDDEN = re.compile(r"/work/|/root/|\bshared/|farm-|helper-\d", re.IGNORECASE)


def test_no_page_names_a_machine_it_was_written_on() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "configs").rglob("*.yaml")]
    assert [str(p) for p in pages if FORBIDDEN.search(p.read_text())] == []
