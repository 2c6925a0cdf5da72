"""SkyPilot's scripts do here what they do there."""

from __future__ import annotations

import subprocess

import pytest

from orchestrator.importers import import_text
from orchestrator.spec.load import read
from orchestrator.spec.models import Service, Task


def ours(text: str) -> Task:
    (found,) = read(import_text(text, tool="skypilot", file="t.yaml").text)
    assert isinstance(found.spec, Task)
    return found.spec


def told(spec: Task, **env: str) -> tuple[str, int]:
    """Run a task's script as a place does; return what it says, and its end."""
    script = "\n".join([*spec.setup, *spec.commands])
    environ = {"PATH": "/usr/bin:/bin", **env}
    done = subprocess.run([spec.shell or "sh", "-ec", script], capture_output=True, text=True, env=environ)
    return done.stdout, done.returncode


@pytest.mark.parametrize(
    ("setup", "run", "said", "code"),
    [
        ("false\n  if [ $? -ne 0 ]; then echo mended; fi", "echo on", "mended\non\n", 0),
        ("true\n  false", "echo never", "", 1),
        ("cd /tmp\n  export A=1", "pwd\n  echo ${A:-unset}", None, 0),
        ("cd /tmp", "pwd", None, 0),
        ("true", "grep x /dev/null\n  echo on", "on\n", 0),
        ("true", "set -e\n  grep x /dev/null\n  echo never", "", 1),
        ("true", "# stops\n  set -euo pipefail\n  grep x /dev/null\n  echo never", "", 1),
        ("cat <<E\n  text\n  E\n  false || exit 3", "echo never", "text\n", 3),
    ],
)
def test_a_script_goes_on_and_setup_is_a_shell_of_its_own(
    setup: str, run: str, said: str | None, code: int
) -> None:
    found = told(ours(f"setup: |\n  {setup}\nrun: |\n  {run}\n"))

    if said is None:
        assert (found[1], "/tmp\n" in found[0], "\n1\n" in found[0]) == (code, False, False)
    else:
        assert found == (said, code)


def test_one_command_stays_as_it_is() -> None:
    spec = ours("setup: pip install x\nrun: python main.py")

    assert (spec.setup, spec.commands) == (("pip install x",), ("python main.py",))


@pytest.mark.parametrize(
    "script",
    ['echo $(echo "$SKYPILOT_NODE_IPS" | head -n1)', "echo `echo ${SKYPILOT_NODE_IPS} | head -n 1`"],
)
def test_the_first_address_is_told_where_no_list_of_all_is(script: str) -> None:
    spec = ours(f"run: '{script}'")

    assert told(spec, MODELYARD_MASTER_NODE_IP="10.0.0.1") == ("10.0.0.1\n", 0)
    assert told(spec) == ("127.0.0.1\n", 0)


def test_the_number_of_addresses_is_told_where_no_list_of_all_is() -> None:
    spec = ours("""run: 'echo $(echo "$SKYPILOT_NODE_IPS" | wc -l)'""")

    assert told(spec, MODELYARD_NODES_NUM="3") == ("3\n", 0)


@pytest.mark.parametrize(
    ("probe", "start_s"),
    [("/health", 1200), ("{path: /health}", 1200), ("{path: /health, initial_delay_seconds: 5}", 5)],
)
def test_a_replica_has_as_long_to_answer_as_there(probe: str, start_s: int) -> None:
    text = f"service: {{readiness_probe: {probe}, replicas: 1}}\nresources: {{ports: 80}}\nrun: serve"
    (found,) = read(import_text(text, tool="skypilot", file="t.yaml").text)
    assert isinstance(found.spec, Service)

    assert found.spec.probes[0].start_duration == start_s


def test_a_reference_of_ours_stays_as_it_is_written() -> None:
    text = import_text(
        "resources: {infra: '${{ env.PLACE }}'}\nrun: date", tool="skypilot", file="t.yaml"
    ).text

    assert read(text, env={"PLACE": "aws"})[0].spec.canonical()["backends"] == ["aws"]
