"""What a user of a cloud sees: a run from plan to end without a secret, and what is said of bad accounts."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.catalog.overlay import use
from orchestrator.cli import run
from tests import images
from tests.backends.ssh.conftest import sweep
from tests.backends.ssh.farm import MAIN_SOCKET
from tests.backends.vm.fake import serving
from tests.backends.vm.machines import Machines
from tests.backends.vm.test_lambdacloud import API_KEY, FakeLambda, error

LAUNCH = ("POST", "/instance-operations/launch")
SPEC = """\
type: task
name: sft
image: {image}
commands: ["echo $((6 * 7))"]
backends: [lambda]
regions: [us-east-1]
instance_types: [cpu_4x_general]
idle_duration: 0s
{more}
"""


class Prompt:
    """A user with an account at Lambda, in an empty folder."""

    def __init__(self, cloud: FakeLambda, capsys: pytest.CaptureFixture[str], namespace: str) -> None:
        self.cloud = cloud
        self._capsys = capsys
        options: dict[str, Any] = {
            "endpoint_url": f"{cloud.url}/api/v1", "user": "root", "port": cloud.machines.host.port,
            "boot_timeout": "30s", "namespace": namespace, "deployment": "d-test",
        }  # fmt: skip
        Path("config.yaml").write_text(json.dumps({"backends": [{"type": "lambda", **options}]}))

    def __call__(self, *arguments: str) -> tuple[int, str]:
        """Run a command; return its exit code, and all that it printed."""
        self._capsys.readouterr()
        code = run(list(arguments))
        return code, "".join(self._capsys.readouterr())

    def spec(self, more: str = "") -> None:
        """Write the spec."""
        Path("sft.yaml").write_text(SPEC.format(image=images.busybox(), more=more))


@pytest.fixture(scope="module")
def account(yard: Machines) -> Iterator[FakeLambda]:
    with serving(FakeLambda(yard)) as made:
        assert isinstance(made, FakeLambda)
        yield made


@pytest.fixture
def prompt(
    account: FakeLambda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Prompt]:
    images.require_engine()
    account.reset()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAMBDA_API_KEY", API_KEY)
    monkeypatch.setenv("MODELYARD_CONFIG", "config.yaml")
    monkeypatch.setenv("MODELYARD_DATABASE_URL", f"sqlite:///{tmp_path}/state.db")
    namespace = f"modelyard-test-{os.urandom(4).hex()}"
    made = Prompt(account, capsys, namespace)
    made.spec()
    try:
        yield made
    finally:
        account.reset()
        use(None)
        sweep(MAIN_SOCKET, namespace)


@pytest.mark.docker
def test_a_run_on_a_rented_machine_shows_its_key_nowhere(prompt: Prompt, tmp_path: Path) -> None:
    said = [prompt("plan", "-f", "sft.yaml", "--json")[1], prompt("offers", "--json")[1]]
    assert prompt("plan", "-f", "sft.yaml", "--out", "plan.json")[0] == 0
    code, told = prompt("apply", "-y", "plan.json")
    assert code == 0, told
    said += [told, Path("plan.json").read_text()]
    for command in ("events", "show", "logs"):
        said.append(prompt(command, "sft")[1])
    assert said[-1] == "42\n"
    assert "cpu_4x_general in us-east-1 at $0.2/h" in said[-2]
    said += [prompt("backend", "check")[1], prompt("gc")[1]]
    said.append(subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout)
    assert not [text for text in said if API_KEY in text]
    assert not [
        path for path in tmp_path.rglob("*") if path.is_file() and API_KEY.encode() in path.read_bytes()
    ]
    assert prompt.cloud.there == {}


@pytest.mark.docker
@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("global/invalid-api-key", 401, ["the credentials have expired", "set LAMBDA_API_KEY to a key from"]),
        ("global/account-inactive", 403, ["refused (global/account-inactive)", "verify the account"]),
    ],
)
def test_an_account_that_is_refused_is_told_with_what_to_do(
    prompt: Prompt, code: str, status: int, words: list[str]
) -> None:
    prompt.cloud.refuse("GET", "/instance-types", status, error(code, "No."), times=9)
    found, said = prompt("plan", "-f", "sft.yaml")
    assert found == 77
    assert words[0] in said
    found, said = prompt("backend", "check")
    assert found == 77
    for word in words:
        assert word in said


@pytest.mark.docker
@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("global/quota-exceeded", "the account's limit is reached (global/quota-exceeded) (ask Lambda's"),
        ("global/object-does-not-exist", "No such thing (global/object-does-not-exist) (plan again"),
        (
            "instance-operations/launch/insufficient-capacity",
            "none to be had now (instance-operations/launch/insufficient-capacity) (allow another region",
        ),
    ],
)
def test_a_machine_that_is_refused_ends_the_run_with_kind_region_and_remedy(
    prompt: Prompt, code: str, words: str
) -> None:
    words = f"cpu_4x_general in us-east-1: {words}"
    prompt.spec("retry: false")
    prompt.cloud.refuse(*LAUNCH, 400, error(code, "No such thing."), times=9)
    found, said = prompt("apply", "-y", "-f", "sft.yaml")
    assert found == 1
    assert words in said
    assert words in prompt("show", "sft")[1]
    assert words in prompt("events", "sft")[1]
