"""Files in one form: what is in it stays byte for byte, and nothing says anything else afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from orchestrator.spec import format
from orchestrator.spec.format import formatted
from orchestrator.spec.load import read
from tests.cli.conftest import Cli

ROOT = Path(__file__).parents[2]
UGLY = """\
# what it is for
type:   task
name: "hello"
commands:
- echo hi   # said first
-   |
  two
   lines
env: {A: 'yes', B: "0123"}
resources: {gpu: H100:2,   memory: 80GB..}\t

max_price: 4.50


---
type: volume
name:    cache
"""


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda p: p.stem)
def test_the_examples_are_in_it(path: Path) -> None:
    text = path.read_text()
    assert formatted(text, file=str(path)) == text


def test_comments_order_and_quotes_stay_and_it_says_the_same() -> None:
    made = formatted(UGLY, file="ugly.yaml")
    assert made == formatted(made, file="ugly.yaml")
    assert [d.spec for d in read(made)] == [d.spec for d in read(UGLY)]
    for part in ("# what it is for\n", "# said first\n", 'name: "hello"\n', "A: 'yes'", 'B: "0123"', "4.50"):
        assert part in made
    assert "\n  - echo hi" in made
    assert not [line for line in made.splitlines() if line != line.rstrip()]
    assert not made.endswith("\n\n")


def test_blanks_that_a_text_holds_stay() -> None:
    text = "type: task\nname: a\ncommands:\n- |\n  one  \n  two\n"
    assert "one  \n" in formatted(text, file="")


def test_files_are_written_or_only_named(cli: Cli) -> None:
    ugly, plain = cli.write("ugly.yaml", UGLY), cli.write("plain.yaml", "type: volume\nname: a\n")
    looked = cli("fmt", "--check", "-f", str(cli.folder), "-f", ugly)
    assert (looked.code, Path(ugly).read_text()) == (1, UGLY)
    assert [Path(line).name for line in looked.out.splitlines()] == ["config.yaml", "ugly.yaml"]
    assert cli("fmt", "-f", ugly, "-f", plain).out == f"{ugly}\n"
    assert Path(ugly).read_text() == formatted(UGLY, file="")
    again = cli("fmt", "--check", "-f", ugly, "-f", plain)
    assert (again.code, again.out, again.err) == (0, "", "0 of 2 files in another form\n")
    assert cli.program("fmt", "-f", "-", stdin="a:   1\n").out == "a: 1\n"


def test_what_is_no_yaml_is_told_with_its_place_and_nothing_is_written(cli: Cli) -> None:
    ugly, bad = cli.write("ugly.yaml", UGLY), cli.write("bad.yaml", "type: task\nname: [a\n")
    told = cli("fmt", "-f", ugly, "-f", bad)
    assert (told.code, told.out, Path(ugly).read_text()) == (65, "", UGLY)
    assert told.err.startswith(f"{bad}:")
    assert cli("fmt").code == 64


def test_a_form_that_says_something_else_is_not_written(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = "type:   volume\nname: a\n"
    file = cli.write("plain.yaml", plain)
    right = format._said
    monkeypatch.setattr(format, "_said", lambda text, file: [*right(text, file), len(text)])
    told = cli("fmt", "-f", file)
    assert (told.code, Path(file).read_text()) == (65, plain)
    assert "left as it is: it would say something else" in told.err


def test_the_hooks_are_commands_of_ours(cli: Cli) -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert [hook["id"] for hook in hooks] == ["modelyard-validate", "modelyard-fmt"]
    (cli.folder / "specs").mkdir()
    cli.write("specs/hello.yaml", "type: task\nname: hello\ncommands: [echo hi]\n")
    for hook in hooks:
        program, *words = hook["entry"].split()
        assert (program, cli(*words).code) == ("modelyard", 0), hook["id"]
