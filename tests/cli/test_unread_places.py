"""One place of several that cannot be read: it is named with the reason, and the others are used."""

from __future__ import annotations

import json

import pytest

from backends.sim import Sim
from orchestrator.backend import HostKeeper, Renter
from orchestrator.places import Place, Places
from tests.apply.scenes import WEB
from tests.cli.conftest import CONFIG, Cli

HELLO = "type: task\nname: hello\nimage: python:3.12-slim\ncommands: [echo hi]\n"

LAB = "type: kubernetes, name: lab"
WRONG = {
    "no kubeconfig": (
        "{type: kubernetes, name: lab, kubeconfig: none.conf}",
        "no kubeconfig at none.conf",
        78,
    ),
    "bad value": (f"{{{LAB}, volume_size: lots}}", "volume_size: expected a size", 78),
    "unknown option": (
        "{type: docker, name: lab, hots: x}",
        "(did you mean 'host'?)",
        78,
    ),
    "no engine": ('{type: docker, name: lab, host: "tcp://127.0.0.1:9"}', "did not answer", 69),
    "no subscription": ("{type: azure, name: lab}", "subscription is missing", 78),
    "no projects": ("{type: nebius, name: lab, projects: []}", "projects: ", 78),
    "no key": ("{type: ssh, name: lab, hosts: [127.0.0.1], identity_file: none}", "none of host", 77),
}


@pytest.fixture(params=WRONG.values(), ids=WRONG)
def wrong(request: pytest.FixtureRequest, cli: Cli) -> tuple[str, int]:
    """Give what is said of a place beside the sim, and what a command ends with that asks for it."""
    entry, says, code = request.param
    more = f"  - {entry}\n"
    (cli.folder / "config.yaml").write_text(CONFIG.format(state=cli.folder / "sim.jsonl") + more)
    return says, code


def test_offers_are_those_of_the_others(cli: Cli, wrong: tuple[str, int]) -> None:
    said = cli("offers")
    assert said.code == 0
    assert [line for line in said.out.splitlines() if line.startswith("sim ")]
    (named,) = [line for line in said.out.splitlines() if line.startswith("nothing is known of lab: ")]
    assert wrong[0] in named
    assert list(json.loads(cli("offers", "--json").out)["silent"]) == ["lab"]


def test_a_plan_chooses_among_the_others(cli: Cli, wrong: tuple[str, int]) -> None:
    said = cli("plan", "-f", cli.write("hello.yaml", HELLO))
    assert said.code == 0
    assert "plan: 1 to create" in said.out
    assert said.err.startswith("nothing is known of lab: ")
    assert wrong[0] in said.err


def test_a_run_goes_on_at_the_others(cli: Cli, wrong: tuple[str, int]) -> None:
    said = cli("apply", "-y", "-f", cli.write("hello.yaml", HELLO))
    assert said.code == 0
    assert wrong[0] in said.err
    assert "hello" in cli("ps", "--all").out
    assert "42" in cli("logs", "hello").out
    assert cli("delete", "-y", "hello").code == 0


@pytest.mark.parametrize("command", ["plan", "apply -y"])
def test_a_spec_that_names_it_is_refused_with_the_reason(
    cli: Cli, wrong: tuple[str, int], command: str
) -> None:
    path = cli.write("hello.yaml", HELLO + "backends: [lab]\n")
    said = cli(*command.split(), "-f", path)
    assert said.code == wrong[1]
    assert said.err.startswith("backend 'lab': ")
    assert wrong[0] in said.err
    assert cli("plan", "-f", cli.write("hello.yaml", HELLO + "backends: [lab, sim]\n")).code == 0


def test_orphans_of_the_others_are_listed(cli: Cli, wrong: tuple[str, int]) -> None:
    cli("apply", "-y", "-f", cli.write("web.yaml", HELLO.replace("task", "service").replace("hello", "web")))
    cli("apply", "-y", "-f", cli.write("hello.yaml", HELLO))
    for path in cli.folder.glob("state.db*"):
        path.unlink()
    said = cli("gc")
    assert said.code == (77 if wrong[1] == 77 else 69)
    assert "hello-0-0-0" in said.out
    assert "nothing is known of lab: " in said.out
    assert list(json.loads(cli("gc", "--json").out)["silent"]) == ["lab"]
    assert cli("gc", "--remove", "-y").err == "removed 1\n"


@pytest.fixture
def lost(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Have a service at a place whose configuration is wrong since."""
    monkeypatch.setattr("orchestrator.loop.observe.FIRST_PAUSE_S", 0.01)
    cli("apply", "-y", "-f", cli.write("web.yaml", WEB))
    (cli.folder / "config.yaml").write_text("backends: [{type: sim, stat: x}]\n")
    return cli


@pytest.mark.parametrize("command", ["ps", "show web", "ps --json"])
def test_what_is_shown_of_a_place_that_cannot_be_read_is_told_to_be_old(lost: Cli, command: str) -> None:
    said = lost(*command.split())
    assert (said.code, "ready" in said.out) == (0, True)
    assert said.err.startswith("nothing is known of sim: backend 'sim' has no option 'stat'")


@pytest.mark.parametrize("command", ["stop", "delete"])
def test_an_end_at_a_place_that_cannot_be_read_is_not_waited_for(lost: Cli, command: str) -> None:
    said = lost(command, "-y", "web")
    assert said.code == 78
    assert f"web: asked to {command}, and not ended yet: a later command" in said.err
    assert "backend 'sim' has no option 'stat'" in said.err
    (lost.folder / "config.yaml").write_text(CONFIG.format(state=lost.folder / "sim.jsonl"))
    assert "web" not in lost("ps").out


def test_drift_of_the_others_is_found(cli: Cli, wrong: tuple[str, int]) -> None:
    cli("apply", "-y", "-f", cli.write("web.yaml", WEB))
    Sim(state=cli.folder / "sim.jsonl").remove("web-0-0-0")
    said = cli("drift", "--detailed-exitcode")
    assert said.code == (77 if wrong[1] == 77 else 69)  # what is there nobody knows, so not 2
    assert "ready on record, and not there" in said.out
    assert "nothing is known of lab: " in said.out
    told = json.loads(cli("drift", "--json").out)
    assert ([each["subject"] for each in told["drift"]], list(told["silent"])) == (["web-0-0-0"], ["lab"])


def test_a_check_looks_at_all_of_them(cli: Cli, wrong: tuple[str, int]) -> None:
    said = cli("backend", "check")
    assert said.code in (69, 77)
    assert {line.split()[0] for line in said.out.splitlines()} == {"sim", "lab"}
    assert wrong[0].partition(" (")[0] in said.out


@pytest.mark.parametrize("command", ["offers", "gc", "drift", "plan -f hello.yaml"])
def test_the_only_place_ends_the_command(cli: Cli, command: str) -> None:
    (cli.folder / "config.yaml").write_text("backends: [{type: docker, name: lab, hots: x}]\n")
    cli.write("hello.yaml", HELLO)
    said = cli(*command.split())
    assert said.code == 78
    assert "backend 'lab' has no option 'hots'" in said.out + said.err


def test_what_could_not_be_built_has_nothing_that_only_some_places_have() -> None:
    places = Places([Place("lab", "docker", {"hots": "x"}), Place("sim", "sim")])
    assert not isinstance(places["lab"], HostKeeper | Renter)
    assert (places["lab"].name, places["lab"].can) == ("lab", frozenset())
