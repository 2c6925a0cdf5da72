"""The lock beside the specs: what it pins, when it is written, and when a plan is refused for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.apply.scenes import HELLO, refused
from tests.cli.conftest import Cli
from tests.facts.hub_server import SHA, FakeHub, serving

MODEL = "type: service\nname: chat\nport: 8000\nmodel: {model}\n"
QWEN = "Qwen/Qwen3-8B"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """A hub on loopback, asked in place of the public one, and a cache of the test's own."""
    with serving(FakeHub(id=QWEN)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        yield hub


@pytest.fixture
def chat(cli: Cli) -> str:
    """A service of a model that the catalog knows, in a folder of its own."""
    (cli.folder / "specs").mkdir()
    return cli.write("specs/chat.yaml", MODEL.format(model=QWEN))


def locked(cli: Cli) -> dict[str, object]:
    """Return what the lock says of the service."""
    found: dict[str, object] = json.loads((cli.folder / "specs/modelyard.lock").read_text())["runs"]["chat"]
    return found


def test_a_lock_holds_commit_image_and_machine(cli: Cli, hub: FakeHub, chat: str) -> None:
    result = cli("plan", "-f", chat, "--lock")
    assert result.code == 0, result.err
    found = locked(cli)
    assert found["model"] == {"id": QWEN, "asked": None, "commit": SHA}
    assert (found["accelerator"], found["accelerators"], found["nodes"]) == ("H100-80GB", 1, 1)
    assert str(found["image"]).startswith("vllm/vllm-openai")


def test_a_locked_plan_needs_no_hub_and_serves_the_commit(
    cli: Cli, hub: FakeHub, chat: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli("plan", "-f", chat, "--lock")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = cli("plan", "-f", str(cli.folder / "specs"), "--locked", "--json")
    assert result.code == 0, result.err
    (run,) = json.loads(result.out)["runs"]
    assert SHA in " ".join(run["engine"]["command"])
    assert run["model"]["revision"] == SHA


def test_a_lock_is_kept_to_without_being_asked(
    cli: Cli, hub: FakeHub, chat: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli("plan", "-f", chat, "--lock")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert SHA in cli("plan", "-f", chat, "--json").out


def test_writing_a_lock_twice_gives_the_same_bytes(cli: Cli, hub: FakeHub, chat: str) -> None:
    cli("plan", "-f", chat, "--lock")
    first = (cli.folder / "specs/modelyard.lock").read_bytes()
    cli("apply", "-y", "-d", "-f", chat, "--lock")
    assert (cli.folder / "specs/modelyard.lock").read_bytes() == first
    assert cli("plan", "-f", chat, "--locked", "--detailed-exitcode").code == 0


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("image", "vllm/vllm-openai:v0.1", "chat: image: vllm/vllm-openai:v0.1 -> vllm/vllm-openai"),
        ("accelerator", "L4-24GB", "chat: accelerator: L4-24GB -> H100-80GB"),
        ("accelerators", 4, "chat: accelerators: 4 -> 1"),
    ],
)
def test_a_plan_that_comes_out_otherwise_is_refused(
    cli: Cli, hub: FakeHub, chat: str, field: str, value: object, said: str
) -> None:
    cli("plan", "-f", chat, "--lock")
    path = cli.folder / "specs/modelyard.lock"
    body = json.loads(path.read_text())
    body["runs"]["chat"][field] = value
    path.write_text(json.dumps(body))
    refused(cli("plan", "-f", chat, "--locked"), said)
    assert cli("plan", "-f", chat).code == 0


def test_a_spec_that_asks_for_something_else_is_refused_until_it_is_locked(
    cli: Cli, hub: FakeHub, chat: str
) -> None:
    cli("plan", "-f", chat, "--lock")
    cli.write("specs/chat.yaml", MODEL.format(model="Qwen/Qwen3-4B"))
    refused(cli("plan", "-f", chat, "--locked"), "chat: model: {'id': 'Qwen/Qwen3-8B'")
    assert SHA not in cli("plan", "-f", chat, "--json").out


def test_runs_that_come_and_go_change_a_lock(cli: Cli) -> None:
    file = cli.write("one.yaml", HELLO)
    refused(cli("plan", "-f", file, "--locked"), "there is no ")
    cli("plan", "-f", file, "--lock")
    assert cli("plan", "-f", file, "--locked").code == 0
    cli.write("one.yaml", HELLO.replace("hello", "hello-two"))
    result = cli("apply", "-y", "-f", file, "--locked")
    refused(result, "hello: no longer in the files")
    assert "hello-two: not in it" in result.err
    assert cli("ps", "-a").out == "no runs\n"


@pytest.mark.parametrize("text", ["nonsense", "[]", '{"schema": "modelyard/lock/v9"}', None])
def test_what_is_no_lock_is_refused(cli: Cli, text: str | None) -> None:
    file = cli.write("one.yaml", HELLO)
    cli("plan", "-f", file, "--lock")
    body = json.loads((cli.folder / "modelyard.lock").read_text())
    cli.write("modelyard.lock", text or json.dumps(body | {"runs": {"hello": 3}}))
    refused(cli("plan", "-f", file), "modelyard.lock ")


def test_a_lock_asks_the_hub_or_says_that_it_may_not(
    cli: Cli, hub: FakeHub, chat: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = cli("plan", "-f", chat, "--lock")
    assert (result.code, "HF_HUB_OFFLINE forbids it" in result.err) == (64, True)
    assert hub.asked == []


def test_writing_and_holding_a_lock_are_not_both_asked(cli: Cli) -> None:
    assert cli("plan", "-f", cli.write("one.yaml", HELLO), "--lock", "--locked").code == 64


def test_a_new_commit_is_a_change_once_it_is_locked(cli: Cli, hub: FakeHub, chat: str) -> None:
    cli("plan", "-f", chat, "--lock")
    cli("apply", "-y", "-d", "-f", chat)
    path = cli.folder / "specs/modelyard.lock"
    path.write_text(path.read_text().replace(SHA, "f" * 40))
    planned = cli("plan", "-f", chat, "--locked")
    assert f"~ model.revision: {SHA} -> {'f' * 40}  (replaces the container)" in planned.out, planned.err


def test_a_diff_reads_the_lock_too(cli: Cli, hub: FakeHub, chat: str) -> None:
    cli("plan", "-f", chat, "--lock")
    cli("apply", "-y", "-d", "-f", chat)
    assert cli("diff", "-f", chat, "--detailed-exitcode").code == 0
    (cli.folder / "specs/modelyard.lock").unlink()
    assert f"~ model.revision: {SHA} -> unset" in cli("diff", "-f", chat).out


def test_every_folder_has_its_own_lock(cli: Cli) -> None:
    for name in ("one", "two"):
        (cli.folder / name).mkdir()
        cli.write(f"{name}/{name}.yaml", HELLO.replace("hello", name))
    assert cli("plan", "-f", "one", "-f", "two", "-f", "two/../one/one.yaml", "--lock").code == 0
    for name in ("one", "two"):
        assert list(json.loads((cli.folder / name / "modelyard.lock").read_text())["runs"]) == [name]
        assert cli("plan", "-f", f"{name}/{name}.yaml", "--locked").code == 0


def test_a_plan_whose_lock_moved_is_refused(cli: Cli, hub: FakeHub, chat: str) -> None:
    cli("plan", "-f", chat, "--lock", "--out", "plan.json")
    path = cli.folder / "specs/modelyard.lock"
    path.write_text(path.read_text().replace(SHA, "f" * 40))
    refused(cli("apply", "plan.json"), "modelyard.lock changed since the plan was made")
