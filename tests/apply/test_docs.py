"""What docs/gitops.md says can be typed as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.apply.scenes import CACHE, HELLO
from tests.cli.conftest import Cli

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/gitops.md").read_text()
COMMANDS = sorted(set(re.findall(r"modelyard ((?:validate|plan|apply|drift)[^#>\n\]]*)", PAGE)))


def test_the_pipeline_runs_as_it_stands(cli: Cli) -> None:
    (cli.folder / "specs").mkdir()
    cli.write("specs/all.yaml", HELLO + "---\n" + CACHE)
    script = re.search(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    assert script
    program = f'modelyard() {{ {sys.executable} -m orchestrator.cli "$@"; }}\nset -e\n'
    done = subprocess.run(
        ["bash", "-c", program + script[1]], cwd=cli.folder, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("hi\n42\nno drift\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_on_the_page_is_there(cli: Cli, command: str) -> None:
    name, *words = command.split()
    said = cli(name, "--help").out
    assert [word for word in words if word.startswith("-") and word not in said] == []


def test_the_workflows_are_yaml() -> None:
    blocks = re.findall(r"```yml\n(.*?)```", PAGE, re.DOTALL)
    read = [yaml.safe_load(block) for block in blocks]
    assert [sorted(map(str, block)) for block in read if isinstance(block, dict)] == [
        ["True", "jobs", "permissions"], ["apply", "plan"], ["plan"], ["repos"],
        ["apiVersion", "kind", "metadata", "spec"],
    ]  # fmt: skip
    assert all(read)
