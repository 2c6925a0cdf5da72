"""The kits of the docs, run as they stand: pipelines, hooks, the unit, the container, the plugin."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
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
    assert (listening[:35], token[:9], gateway[:25]) == (
        "server listening on http://0.0.0.0:", "token my-", "gateway listening on http",
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


# --- pipelines ------------------------------------------------------------------------------

JOB = "on: push\njobs:\n  a:\n    runs-on: ubuntu-latest\n    steps:\n"
"""What a list of steps stands in."""
STUBS = {
    "curl": 'echo \'{"value": "word"}\'',
    "jq": "echo word",
    "modelyard": 'test "$(cat "${@: -1}")" = word && echo my-token',
}
"""What the login of a pipeline asks, in place of the network."""


def pipelines() -> dict[str, tuple[str, str]]:
    """Return the pipelines of the page by name, each with the schema that it has to keep to."""
    found: dict[str, tuple[str, str]] = {}
    for text in blocks("gitops.md", "yml"):
        if text.startswith("on:"):
            found["github"] = ("github-workflows", text)
        elif text.lstrip().startswith("- run:"):
            found["github with a server"] = ("github-workflows", JOB + text)
        elif text.startswith("plan:"):
            found["gitlab with a server" if "id_tokens" in text else "gitlab"] = ("gitlab-ci", text)
    return found


def told_by_schema(name: str, text: str, folder: Path) -> str:
    """Return what the public schema of a kind of pipeline says of a file, "" where it is right."""
    file = folder / "pipeline.yml"
    file.write_text(text)
    program = Path(sys.executable).with_name("check-jsonschema")
    done = subprocess.run(
        [program, "--builtin-schema", f"vendor.{name}", str(file)], capture_output=True, text=True
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


def scripts(text: str) -> Iterator[str]:
    """Yield the shell of a pipeline, step by step."""
    for job in (jobs := yaml.safe_load(text)).get("jobs", jobs).values():
        if isinstance(job, dict):
            yield from (step["run"] for step in job.get("steps", ()) if "run" in step)
            yield from ("\n".join(job[key]) for key in ("before_script", "script") if key in job)


@pytest.mark.parametrize("name", ["github", "github with a server", "gitlab", "gitlab with a server"])
def test_a_pipeline_keeps_to_its_public_schema(name: str, tmp_path: Path) -> None:
    schema, text = pipelines()[name]
    assert told_by_schema(schema, text, tmp_path) == ""
    for script in scripts(text):
        assert subprocess.run(["bash", "-n", "-c", script]).returncode == 0


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [("github", "runs-on:", "run-on:"), ("gitlab", "artifacts: {paths:", "artifacts: {path:")],
)
def test_a_slip_in_a_pipeline_is_told(name: str, right: str, wrong: str, tmp_path: Path) -> None:
    schema, text = pipelines()[name]
    assert right in text
    assert told_by_schema(schema, text.replace(right, wrong), tmp_path)


def test_every_command_of_a_pipeline_has_options_that_there_are(cli: Cli) -> None:
    for _, text in pipelines().values():
        for command, rest in re.findall(r"modelyard (\w+)((?: +[^\s|)>]+)*)", "\n".join(scripts(text))):
            if command == "login":
                assert "--id-token-file" in rest
            said = cli(command, "--help").out
            options = re.findall(r"(?<!\S)--?[a-z][a-z-]*", rest)
            assert [option for option in options if option not in said] == [], command


def the_log_hides_its_token(script: str, folder: Path) -> None:
    """A login gives its token to later steps, and has it hidden in the log before."""
    stubs = folder / "bin"
    stubs.mkdir()
    for name, body in STUBS.items():
        (stubs / name).write_text(f"#!/bin/bash\n{body}\n")
        (stubs / name).chmod(0o755)
    environ = {"PATH": f"{stubs}:{os.environ['PATH']}", "RUNNER_TEMP": str(folder)}
    environ |= {"ACTIONS_ID_TOKEN_REQUEST_TOKEN": "t", "ACTIONS_ID_TOKEN_REQUEST_URL": "u"}
    environ |= {"GITHUB_ENV": str(folder / "env")}

    done = subprocess.run(["bash", "-e", "-c", script], capture_output=True, text=True, env=environ)

    assert done.returncode == 0, done.stderr
    given = dict(line.split("=", 1) for line in (folder / "env").read_text().splitlines())
    assert given["MODELYARD_TOKEN"] == "my-token"
    assert done.stdout.splitlines()[0] == "::add-mask::my-token"


def test_a_pipelines_log_hides_its_token(tmp_path: Path) -> None:
    (script,) = scripts(pipelines()["github with a server"][1])
    the_log_hides_its_token(script, tmp_path)


def test_a_token_that_the_log_would_show_is_caught(tmp_path: Path) -> None:
    (script,) = scripts(pipelines()["github with a server"][1])
    with pytest.raises((AssertionError, IndexError)):
        the_log_hides_its_token(script.replace('echo "::add-mask', 'true "::add-mask'), tmp_path)


def test_the_hooks_are_those_of_the_page() -> None:
    (text,) = [text for text in blocks("gitops.md", "yml") if text.startswith("repos:")]
    shown = {hook["id"]: hook for hook in yaml.safe_load(text)["repos"][0]["hooks"]}
    kept = {hook["id"]: hook for hook in yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())}
    same = ("entry", "language", "pass_filenames", "files")
    assert {id: [hook[key] for key in same] for id, hook in shown.items()} == {
        id: [hook[key] for key in same] for id, hook in kept.items()
    }


# --- the machine's service ------------------------------------------------------------------


def verified(unit: str, folder: Path) -> str:
    """Return what systemd says against a unit, "" where nothing; skips without its program."""
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not here")
    file = folder / "modelyard.service"
    # it asks for the program itself, which is installed elsewhere here
    file.write_text(unit.replace("/opt/modelyard/bin/modelyard", "/bin/true"))
    done = subprocess.run([program, "verify", str(file)], capture_output=True, text=True)
    return "".join(line for line in done.stderr.splitlines(keepends=True) if str(file) in line)


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    (text,) = blocks("server.md", "ini")
    assert verified(text, tmp_path) == ""
    assert "ProtectSytem" in verified(text.replace("ProtectSystem", "ProtectSytem"), tmp_path)
