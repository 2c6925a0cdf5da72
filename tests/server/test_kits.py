"""The kits of the docs, run as they stand: the unit, the container's entry, the plugin of Argo CD."""

from __future__ import annotations

import configparser
import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import yaml

from tests.cli.conftest import Cli
from tests.server.test_process import Start, start

__all__ = ["start"]

ROOT = Path(__file__).parents[2]
HELLO = "type: task\nname: hello\nimage: busybox\ncommands: [echo hi]\n"


def blocks(page: str, language: str) -> Iterator[str]:
    """Yield the blocks of a page in one language."""
    text = (ROOT / "docs" / page).read_text()
    yield from re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def on_free_ports(words: list[str]) -> list[str]:
    """Return a command's words with ports that are free, behind ``modelyard server``."""
    program, command, *rest = words
    assert (Path(program).name, command) == ("modelyard", "server")
    return [re.sub(r":\d+$", ":0", word) for word in rest]


def test_the_unit_has_options_that_there_are(cli: Cli) -> None:
    (text,) = blocks("server.md", "ini")
    unit = configparser.ConfigParser(strict=True, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # systemd's keys have capitals
    unit.read_string(text)
    assert list(unit) == ["DEFAULT", "Unit", "Service", "Install"]
    environ = dict(word.split("=", 1) for word in unit["Service"]["Environment"].split())
    assert environ["MODELYARD_CONFIG"] == "/etc/modelyard/config.yaml"
    said = cli("server", "--help").out
    options = [w for w in on_free_ports(unit["Service"]["ExecStart"].split()) if w.startswith("--")]
    assert [option for option in options if option not in said] == []


def test_the_container_starts_a_server_with_extras_that_there_are(start: Start) -> None:
    (text,) = blocks("server.md", "dockerfile")
    (extras,) = re.findall(r"modelyard\[([a-z,]+)\]", text)
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras.split(",")) <= set(known)
    (entry,) = re.findall(r"^ENTRYPOINT (.*)$", text, re.MULTILINE)
    process, (listening, token, gateway) = start(*on_free_ports(json.loads(entry)), lines=3)
    assert (listening[:17], token[:9], gateway[:17]) == (
        "listening on http", "token my-", "listening on http",
    )  # fmt: skip
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 0


def test_the_plugin_prints_objects_and_nothing_else(cli: Cli) -> None:
    found = [each for text in blocks("gitops.md", "yml") for each in yaml.safe_load_all(text)]
    (plugin,) = [e for e in found if isinstance(e, dict) and e.get("kind") == "ConfigManagementPlugin"]
    program, *words = plugin["spec"]["generate"]["command"]
    (cli.folder / "specs").mkdir()
    spec = cli.folder / "specs" / "hello.modelyard.yaml"
    spec.write_text(HELLO)
    assert spec.match(plugin["spec"]["discover"]["find"]["glob"].removeprefix("**/"))

    told = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", *words], cwd=spec.parent, capture_output=True, text=True,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(cli.folder)},
    )  # fmt: skip

    assert (program, told.returncode) == ("modelyard", 0), told.stderr
    assert [each["kind"] for each in yaml.safe_load_all(told.stdout)] == ["Job"]
