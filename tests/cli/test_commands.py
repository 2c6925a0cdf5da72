"""What a user at a prompt meets: results, exit codes, questions and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.cli import COMMANDS
from orchestrator.cli.progress import Reporter
from orchestrator.cli.shared import open_api
from orchestrator.spec.load import read
from tests.cli.conftest import Cli

HELLO = "type: task\nname: hello\ncommands: [echo hi]\n"
BAD = "type: task\nname: bad\ncommands: [exit 3]\n"
WEB = "type: service\nname: web\nport: 8000\ncommands: [serve]\nprobes: [{type: http, url: /}]\n"


def test_a_task_is_planned_run_shown_and_deleted(cli: Cli) -> None:
    file = cli.write("hello.yaml", HELLO)
    assert "hello  task  create" in cli("plan", "-f", file).out
    applied = cli("apply", "-y", "-f", file)
    assert (applied.code, applied.out) == (0, "hi\n42\n")
    assert "hello  succeeded" in applied.err
    assert "succeeded" in cli("ps", "-a").out
    assert cli("logs", "hello").out == "hi\n42\n"
    assert cli("logs", "hello", "--tail", "1").out == "42\n"
    assert cli("delete", "-y", "hello").code == 0
    assert cli("ps", "-a").out == "no runs\n"


def test_a_finished_task_does_not_run_again_for_its_tags(cli: Cli) -> None:
    file = cli.write("hello.yaml", HELLO + "tags: {team: a}\n")
    cli("apply", "-y", "-f", file)
    cli.write("hello.yaml", HELLO + "tags: {team: b}\n")
    assert cli("plan", "-f", file, "--detailed-exitcode", "--out", "plan.json").code == 0
    assert cli("apply", "plan.json").code == 0
    assert cli("diff", "-f", file, "--detailed-exitcode").code == 0
    assert shown(cli, "hello")["tags"] == {"team": "a"}
    assert cli("apply", "-y", "--rerun", "-f", file).out == "hi\n42\n"
    assert shown(cli, "hello")["tags"] == {"team": "b"}
    cli.write("hello.yaml", HELLO.replace("echo hi", "echo ho") + "tags: {team: c}\n")
    assert "hello  task  rerun" in cli("plan", "-f", file).out


def test_a_failed_task_ends_with_1_and_the_reason(cli: Cli) -> None:
    result = cli("apply", "-y", "-f", cli.write("bad.yaml", BAD))
    assert result.code == 1
    assert result.err.splitlines()[-1] == "bad: failed: bad-0-0-0: exit code 3"


def test_applying_twice_is_a_no_op(cli: Cli) -> None:
    file = cli.write("hello.yaml", HELLO)
    cli("apply", "-y", "-f", file)
    again = cli("apply", "-f", file)  # nothing to confirm
    assert again.code == 0
    assert "hello  task  unchanged, succeeded before" in again.out
    assert len([e for e in events(cli) if e["after"] == "provisioning" and e["subject"] != "hello"]) == 1


def test_a_finished_task_runs_again_only_when_asked_to(cli: Cli) -> None:
    file = cli.write("hello.yaml", HELLO)
    cli("apply", "-y", "-f", file)
    assert cli("apply", "-y", "--rerun", "-f", file).out == "hi\n42\n"
    names = {j["name"] for j in json.loads(cli("show", "hello", "--json").out)["run"]["jobs"]}
    assert names == {"hello-0-0-0", "hello-0-0-1"}


def test_a_service_is_ready_updated_in_place_and_replaced(cli: Cli) -> None:
    file = cli.write("web.yaml", WEB)
    assert cli("apply", "-y", "-f", file).code == 0
    assert shown(cli, "web")["state"] == "ready"
    cli.write("web.yaml", WEB + "replicas: 2\n")
    assert "~ replicas: 1 -> 2  (in place)" in cli("diff", "-f", file).out
    cli("apply", "-y", "-f", file)
    assert (shown(cli, "web")["ready"], len(live(cli, "web"))) == (2, 2)
    cli.write("web.yaml", WEB.replace("serve", "serve better") + "replicas: 2\n")
    planned = cli("plan", "-f", file)
    assert "web  service  replace" in planned.out
    assert "the new replica is ready before the old one is stopped" in planned.out
    cli("apply", "-y", "-f", file)
    assert live(cli, "web") == ["web-0-0-1", "web-1-0-1"]


def test_a_rollout_that_fails_says_why_and_shows_what_serves(cli: Cli) -> None:
    config = (cli.folder / "config.yaml").read_text()
    cli.write("config.yaml", config.replace('"web-*"', '"web-0-0-1": {refuse: rejected}, "web-*"'))
    file = cli.write("web.yaml", WEB)
    cli("apply", "-y", "-f", file)
    cli.write("web.yaml", WEB.replace("serve", "serve better"))
    assert cli("apply", "-y", "-f", file).code == 1
    row = cli("ps").out.splitlines()[1]
    assert row.split()[2:4] == ["ready", "1/1"]
    assert "rollout failed: web-0-0-1: " in row
    causes = [e["cause"] for e in events(cli) if e["subject"] == "web-0-0-1"]
    assert causes[0] == "replaces web-0-0-0"


def test_a_replica_that_is_given_up_ends_the_wait_and_the_others_go_on(cli: Cli) -> None:
    config = (cli.folder / "config.yaml").read_text()
    cli.write("config.yaml", config.replace('"web-*"', '"web-0-0-*": {refuse: rejected}, "web-*"'))
    file = cli.write("web.yaml", WEB + "replicas: 2\n")
    assert cli("apply", "-y", "-f", file).code == 1
    found = shown(cli, "web")
    assert (found["state"], found["ready"]) == ("running", 1)
    assert found["reason"].startswith("not tried again: web-0-0-")
    assert cli("wait", "web", "--for", "ready", "--timeout", "20s").code == 1
    assert cli("wait", "web", "--for", "ended", "--timeout", "1s").code != 0  # it goes on


def test_a_canary_that_is_ready_is_what_was_asked_for(cli: Cli) -> None:
    file = cli.write("web.yaml", WEB)
    cli("apply", "-y", "-f", file)
    better = WEB.replace("serve", "serve better")
    cli.write("web.yaml", better + "rollout: {weight: 10}\n")
    applied = cli("apply", "-y", "-f", file)
    assert (applied.code, live(cli, "web")) == (0, ["web-0-0-0", "web-0-0-1"])
    assert shown(cli, "web")["reason"] == "canary: 10 % of requests for the new spec"
    cli.write("web.yaml", better)
    assert (cli("apply", "-y", "-f", file).code, live(cli, "web")) == (0, ["web-0-0-1"])


def test_stop_ends_a_run_and_apply_brings_it_back(cli: Cli) -> None:
    file = cli.write("web.yaml", WEB)
    cli("apply", "-y", "-f", file)
    assert cli("stop", "-y", "web").code == 0
    assert shown(cli, "web")["state"] == "stopped"
    assert "web  service  rerun" in cli("plan", "-f", file).out
    cli("apply", "-y", "-f", file)
    assert shown(cli, "web")["state"] == "ready"


@pytest.mark.parametrize("command", ["apply -f {file}", "stop web", "delete web"])
def test_without_a_terminal_nobody_is_asked_and_nothing_is_done(cli: Cli, command: str) -> None:
    file = cli.write("web.yaml", WEB)
    if not command.startswith("apply"):
        cli("apply", "-y", "-f", file)
    before = cli("ps", "-a", "--json").out
    result = cli.program(*command.format(file=file).split(), stdin="")
    assert result.code == 64
    assert "add --yes" in result.err
    assert cli("ps", "-a", "--json").out == before


def test_who_says_no_is_told_that_nothing_was_done(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.confirm", lambda *_, **__: False)
    declined = cli("apply", "-f", cli.write("hello.yaml", HELLO))
    assert (declined.code, declined.err.splitlines()[-1]) == (130, "nothing was done")
    assert cli("ps", "-a").out == "no runs\n"


@pytest.mark.parametrize("command", ["plan", "diff"])
def test_detailed_exitcode_is_2_for_changes_and_0_for_none(cli: Cli, command: str) -> None:
    file = cli.write("hello.yaml", HELLO)
    assert cli(command, "-f", file, "--detailed-exitcode").code == 2
    cli("apply", "-y", "-f", file)
    assert cli(command, "-f", file, "--detailed-exitcode").code == 0


def test_every_problem_of_every_file_is_told_at_once(cli: Cli) -> None:
    one = cli.write("one.yaml", "type: task\nname: One\ncommands: [x]\nresources: {gpu: H1OO}\n")
    two = cli.write("two.yaml", "type: service\nname: two\nport: 99999\ncommands: [x]\n")
    result = cli("validate", "-f", one, "-f", two)
    assert result.code == 65
    assert [line.split(": ")[0] for line in result.err.splitlines() if line.startswith("/")] == [
        f"{one}:2:7", f"{one}:4:18", f"{two}:3:7",
    ]  # fmt: skip
    problems = json.loads(cli("validate", "--json", "-f", one, "-f", two).out)
    assert (problems["schema"], len(problems["problems"])) == ("modelyard/problems/v1", 3)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["aplpy"], 64, "did you mean 'apply'?"),
        (["ls"], 64, "did you mean 'ps'?"),
        (["help", "plan"], 64, "did you mean '--help'?"),
        (["plan"], 64, "--file"),
        (["plan", "-f", "none.yaml"], 65, "none.yaml"),
        (["show", "none"], 64, "no run 'none'"),
        (["logs", "none"], 64, "no run 'none'"),
        (["stop", "-y", "none"], 64, "no run 'none'"),
        (["logs", "x", "--since", "soon"], 64, "neither a duration nor a time"),
        (["offers", "--config", "none.yaml"], 78, "cannot read the configuration"),
    ],
)
def test_what_is_wrong_ends_with_its_code_and_says_what(
    cli: Cli, arguments: list[str], code: int, said: str
) -> None:
    result = cli(*arguments)
    assert (result.code, said in result.err) == (code, True), result


def test_nothing_that_fits_ends_with_75_and_counts_the_reasons(cli: Cli) -> None:
    result = cli("plan", "-f", cli.write("big.yaml", HELLO + "resources: {memory: 900TB..}\n"))
    assert result.code == 75
    assert "saw     1 offer: 1 too little memory" in result.err
    assert "fix     lower resources.memory" in result.err


def test_a_secret_is_nowhere_but_in_the_container(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canary_12345")
    file = cli.write("hello.yaml", HELLO + "env: [HF_TOKEN]\n")
    printed = [cli("plan", "--json", "-f", file), cli("apply", "-y", "-f", file)]
    printed += [
        cli(*c.split()) for c in ("show hello --json", "events --json", "ps -a --json", "secret list")
    ]
    assert all("hf_canary" not in r.out + r.err for r in printed)
    assert printed[-1].out.splitlines()[1].startswith("hello/HF_TOKEN")
    kept = b"".join(p.read_bytes() for p in cli.folder.glob("state.db*"))
    assert b"hf_canary" not in kept


def test_a_variable_without_a_value_is_told_at_its_line_and_nothing_starts(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    file = cli.write("hello.yaml", HELLO + "env:\n  - HF_TOKEN\n")
    result = cli("apply", "-y", "-f", file)
    assert result.code == 65
    assert result.err.splitlines()[-3:][0].startswith(f"{file}:5:5: HF_TOKEN has no value")
    assert cli("ps", "-a").out == "no runs\n"


UNSET = """\
type: task
name: one
image: a/b:c
commands: [x]
registry_auth: {username: me, password: "${{ secrets.REG }}"}
env:
  - UNSET_A
  - B=${{ secrets.B1 }} and ${{ secrets.B2 }}
---
type: task
name: two
commands: [x]
env: {UNSET_A: , D: "${{ secrets.B2 }}"}
"""


def test_a_plan_tells_every_value_that_nobody_gave_and_an_apply_asks_for_none(cli: Cli) -> None:
    cli.program("secret", "set", "B2", stdin="canary\n")
    file = cli.write("unset.yaml", UNSET)
    wanted = [
        f"{file}:5:41: secret REG is not set", f"{file}:7:5: UNSET_A has no value",
        f"{file}:8:5: secret B1 is not set", f"{file}:13:16: UNSET_A has no value",
    ]  # fmt: skip
    planned = cli("plan", "-f", file)
    assert [line for line in planned.err.splitlines() if line.startswith(file)] == wanted
    assert (planned.code, planned.out.splitlines()[-1]) == (0, "plan: 2 to create")
    runs = json.loads(cli("plan", "--json", "-f", file).out)["runs"]
    assert [len(run["problems"]) for run in runs] == [3, 1]
    assert cli("plan", "--strict", "-f", file).code == 65
    applied = cli("apply", "-f", file)  # not even a question
    assert (applied.code, [x for x in applied.err.splitlines() if x.startswith(file)]) == (65, wanted)
    assert "::warning file=" in cli("plan", "--format", "github", "-f", file).out
    assert cli("ps", "-a").out == "no runs\n"


CONTRADICTS = """\
type: service
name: {name}
model: {{id: Qwen/Qwen2.5-7B-Instruct, context: 999999}}
env: [UNSET_{name}]
"""


def test_a_strict_plan_names_every_document_that_contradicts_its_model(cli: Cli) -> None:
    documents = [CONTRADICTS.format(name="a"), HELLO + "env: [UNSET_B]\n", CONTRADICTS.format(name="c")]
    file = cli.write("specs.yaml", "---\n".join(documents))
    found = cli("plan", "--strict", "-f", file)
    wanted = [(3, "a context of 999,999"), (4, "UNSET_a"), (9, "UNSET_B"), (13, "a context"), (14, "UNSET_c")]
    said = [line for line in found.err.splitlines() if line.startswith(file)]
    assert (found.code, len(said)) == (65, len(wanted)), found.err
    for line, (at, what) in zip(said, wanted, strict=True):
        assert line.startswith(f"{file}:{at}:")
        assert what in line


def test_a_plan_on_a_fresh_machine_names_what_is_unset_and_makes_no_record(cli: Cli) -> None:
    result = cli("plan", "-f", cli.write("unset.yaml", UNSET))
    assert result.err.count(" is not set") == 4
    assert list(cli.folder.glob("state.db*")) == []


def test_a_volume_that_nobody_declared_is_noted(cli: Cli) -> None:
    file = cli.write("hello.yaml", HELLO + "volumes: [cache:/c]\nschedule: {cron: '0 3 * * *'}\n")
    planned = cli("plan", "-f", file).out
    assert "note     volume cache: neither declared here nor on record" in planned
    assert "note     schedule: applying it starts it now" in planned
    cli("apply", "-y", "-f", cli.write("cache.yaml", "type: volume\nname: cache\n"))
    assert "volume cache" not in cli("plan", "-f", file).out


def test_validate_looks_at_files_and_the_names_of_places_and_says_what_does_nothing(cli: Cli) -> None:
    wrong = "max_duration: 0s\nfiles: [none.py]\nbackends: [sym]\n"  # what is wrong hides nothing
    file = cli.write("hello.yaml", HELLO + wrong)
    found = cli("validate", "-f", file)
    assert [line.partition(": ")[2] for line in found.err.splitlines() if line.startswith(file)] == [
        "max_duration: it would be ended before it began",
        f"cannot read {cli.folder}/none.py: No such file or directory",
        "no backend 'sym' is configured",
    ]  # fmt: skip
    assert "did you mean 'sim'?" in found.err
    rack = "---\ntype: fleet\nname: sym\nssh_config: {user: ops, hosts: [a]}\n"  # a fleet is a place
    beside = cli("validate", "-f", cli.write("hello.yaml", HELLO + "backends: [sym]\n" + rack))
    assert beside.code == 0, beside.err
    file = cli.write("hello.yaml", HELLO + "schedule: {cron: 0 3 * * *}\n")
    said = cli("validate", "-f", file)
    assert (said.code, said.out) == (0, f"{file}: task hello: ok\n")
    assert f"{file}:4:11: notice: schedule: " in said.err
    (notice,) = json.loads(cli("validate", "--json", "-f", file).out)["notices"]
    assert (notice["line"], notice["column"]) == (4, 11)
    assert "::notice file=hello.yaml,line=4,col=11::" in cli("validate", "--format", "github", "-f", file).out


def test_a_secret_set_by_hand_is_used(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert cli.program("secret", "set", "HF_TOKEN", stdin="hf_value\n").code == 0
    file = cli.write("hello.yaml", HELLO + "env: [HF_TOKEN]\n")
    assert cli("apply", "-y", "-f", file).code == 0
    assert cli("secret", "delete", "HF_TOKEN").code == 0
    assert cli("secret", "list").out == "no secrets\n"


def test_a_value_that_apply_was_given_ends_with_its_run_and_one_set_by_hand_does_not(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = cli.write("hello.yaml", HELLO + "env: [HF_TOKEN]\n")
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    assert cli("apply", "-y", "-f", file).code == 0
    monkeypatch.delenv("HF_TOKEN")
    assert cli("apply", "-y", "--rerun", "-f", file).code == 0  # it has its value still
    row = cli("secret", "list").out.splitlines()[1].split()
    assert (row[0], row[-1]) == ("hello/HF_TOKEN", "hello")
    deleted = cli("delete", "-y", "hello")
    assert "secret" not in deleted.err
    assert cli("secret", "list").out == "no secrets\n"
    assert cli("apply", "-y", "-f", file).code == 65
    cli.program("secret", "set", "hello/HF_TOKEN", stdin="by hand\n")
    assert cli("apply", "-y", "-f", file).code == 0
    deleted = cli("delete", "-y", "hello")
    assert deleted.err.splitlines()[-1] == (
        "secret hello/HF_TOKEN was set by hand and stays: modelyard secret delete hello/HF_TOKEN"
    )
    (kept,) = json.loads(cli("secret", "list", "--json").out)["secrets"]
    assert (kept["name"], kept["given_to"]) == ("hello/HF_TOKEN", "")


def test_wait_tells_ready_from_failed_from_too_late(cli: Cli) -> None:
    cli("apply", "-y", "-d", "-f", cli.write("web.yaml", WEB))
    assert cli("wait", "web", "--for", "ready", "--timeout", "20s").code == 0
    late = cli("wait", "web", "--for", "ended", "--timeout", "1s")
    assert (late.code, late.err) == (124, "not ended within 1s\n")
    cli("apply", "-y", "-f", cli.write("bad.yaml", BAD))
    assert cli("wait", "bad", "--for", "ended").code == 1
    cli("stop", "-y", "web")
    assert cli("wait", "web", "--for", "ended").code == 0
    missed = cli("wait", "web", "--for", "ready")
    assert (missed.code, missed.err) == (1, "web: stopped\n")


def test_what_ended_waited_and_printed_is_told_to_machines_too(cli: Cli) -> None:
    cli("apply", "-y", "-f", cli.write("hello.yaml", HELLO))
    (line, _) = cli("logs", "hello", "--json").out.splitlines()
    told = json.loads(line)
    assert (told["schema"], told["run"], told["text"]) == ("modelyard/log/v1", "hello", "hi")
    waited = json.loads(cli("wait", "hello", "--for", "ended", "--json").out)
    assert (waited["schema"], waited["goal"]) == ("modelyard/wait/v1", "ended")
    assert waited["runs"] == [{"name": "hello", "state": "succeeded", "reason": "", "reached": True}]
    again = cli("stop", "-y", "hello", "--json")
    assert again.err == "hello: succeeded before, nothing to stop\n"
    assert json.loads(again.out)["runs"][0]["state"] == "succeeded"
    deleted = json.loads(cli("delete", "-y", "hello", "--json").out)
    assert deleted == {
        "schema": "modelyard/ended/v1",
        "runs": [{"name": "hello", "state": "deleted", "wanted": "delete", "reason": ""}],
    }
    assert json.loads(cli("wait", "hello", "--for", "deleted", "--json").out)["runs"][0]["reached"] is True


def test_a_wait_that_missed_says_so_to_machines_with_its_code(cli: Cli) -> None:
    cli("apply", "-y", "-f", cli.write("bad.yaml", BAD))
    missed = cli("wait", "bad", "--json")
    (run,) = json.loads(missed.out)["runs"]
    assert (missed.code, run["state"], run["reached"]) == (1, "failed", False)


@pytest.mark.parametrize(("name", "value"), [("EMPTY", ""), ("EMPTY", "\n"), ("two words", "x"), ("", "x")])
def test_a_secret_that_says_nothing_or_cannot_be_named_is_refused(cli: Cli, name: str, value: str) -> None:
    assert cli.program("secret", "set", name, stdin=value).code == 64
    assert cli("secret", "list").out == "no secrets\n"


def test_what_is_to_be_deleted_cannot_be_asked_to_stop_instead(cli: Cli) -> None:
    cli("apply", "-y", "-f", cli.write("web.yaml", WEB))
    cli("delete", "-y", "-d", "web")
    cli("stop", "-y", "-d", "web")
    assert cli("wait", "web", "--for", "deleted", "--timeout", "20s").code == 0
    assert cli("ps", "--all").out == "no runs\n"


def test_ended_runs_are_counted_where_there_is_no_other(cli: Cli) -> None:
    cli("apply", "-y", "-f", cli.write("hello.yaml", HELLO))
    assert cli("ps").out == "no runs (1 ended: ps --all)\n"


def test_a_place_that_does_not_answer_is_named(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    config = cli.write("gone.yaml", "backends: [{type: docker, host: 'tcp://127.0.0.1:1'}]\n")
    monkeypatch.setenv("MODELYARD_CONFIG", config)
    refused = cli("plan", "-f", cli.write("hello.yaml", HELLO))
    assert refused.code == 69
    assert "backend 'docker': " in refused.err
    assert "127.0.0.1" in refused.err
    assert "backend check" in refused.err


def test_a_fleet_is_rented_only_where_machines_are(cli: Cli) -> None:
    fleet = cli("plan", "-f", cli.write("fleet.yaml", "type: fleet\nname: rack\nnodes: 1..2\n"))
    assert fleet.code == 75
    assert "no offer fits fleet 'rack'" in fleet.err
    assert "sim cannot hold rented machines for a fleet, which nodes needs" in fleet.err
    open_end = cli("validate", "-f", cli.write("fleet.yaml", "type: fleet\nname: rack\nnodes: 1..\n"))
    assert (open_end.code, "it could rent any number of machines" in open_end.err) == (65, True)


def test_a_start_that_is_put_off_says_why_once(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    config = cli.write("busy.yaml", "backends: [{type: sim, script: {'hello-*': {refuse: busy}}}]\n")
    with open_api(Path(config)) as api, Reporter(api, [], prefix=False, terminal=False) as reporter:
        api.apply(api.plan(read(HELLO)))
        for _ in range(2):
            assert not api.follow(["hello"], "started", hooks=reporter.hooks, timeout_s=0.5)
    said = "hello-0-0-0  not started yet: hello-0-0-0: asked to come back later; trying again"
    assert capsys.readouterr().err.splitlines().count(said) == 1


def test_offers_tell_what_a_machine_of_ones_own_costs_and_go_by_it(cli: Cli) -> None:
    card = {"instance_type": "m1", "accelerator": "L4-24GB", "count": 2, "vram_bytes": 24 * 10**9}
    shared, bare = card | {"divisible": True}, {"instance_type": "m0", "divisible": True}
    rented = card | {"price_usd_hour": 1.5}
    places = [
        {"name": "rack", "type": "sim", "prices": {"L4-24GB": 4.5, "machine": 0.4}, "offers": [shared, bare]},
        {"name": "cloud", "type": "sim", "offers": [rented]},
        {"name": "leased", "type": "sim", "prices": {"L4-24GB": 1}, "offers": [rented]},
    ]
    config = cli.write("config.yaml", json.dumps({"backends": places}))
    lines = [line.split() for line in cli("offers", "--config", config).out.splitlines()[1:]]
    assert [(line[0], line[2], " ".join(line[line.index("-", 4) + 1 :])) for line in lines] == [
        ("rack", "m0", "$0.4/h"),
        ("cloud", "m1", "$1.5/h"),
        ("leased", "m1", "$3.5/h"),  # taken whole, with what its owner counts for both
        ("rack", "m1", "$4.5/h each"),
    ]
    found = json.loads(cli("offers", "--json", "--config", config).out)["offers"]
    assert [(o["backend"], o["price_usd_hour"], o.get("own_usd_hour")) for o in found] == [
        ("rack", 0.0, 4.5), ("rack", 0.0, 0.4), ("cloud", 1.5, None), ("leased", 1.5, 1.0),
    ]  # fmt: skip


def test_exec_returns_the_commands_code(cli: Cli) -> None:
    cli("apply", "-y", "-f", cli.write("web.yaml", WEB))
    assert cli("exec", "web", "--", "exit", "7").code == 7
    assert cli("exec", "web", "exit", "7").code == 7
    assert cli("exec", "web", "--replica", "0", "--", "exit", "7").code == 7
    assert "no running job at replica 3" in cli("exec", "web", "--replica", "3", "--", "exit", "7").err
    ended = cli("exec", "web", "--", "exit", "130")  # as a shell does that Ctrl-C ended inside
    assert (ended.code, "interrupted" in ended.err) == (130, False)


def test_orphans_are_listed_and_removed_only_when_asked(cli: Cli) -> None:
    cli("apply", "-y", "-f", cli.write("web.yaml", WEB))
    for path in cli.folder.glob("state.db*"):
        path.unlink()
    listed = cli("gc").out
    assert listed.startswith("still running: nobody here owns it")
    assert "web-0-0-0" in listed
    kept = cli("gc", "--remove", "-y")
    assert (kept.out, kept.err) == (listed, "removed 0; 1 still running: --remove --running ends them\n")
    assert cli("gc", "--running").code == 64
    assert cli("gc", "--remove", "--running", "-y").err == "removed 1\n"
    assert cli("gc").out == "no orphans\n"


def test_a_lost_record_finds_its_launches_again(cli: Cli) -> None:
    file = cli.write("web.yaml", WEB)
    cli("apply", "-y", "-f", file)
    for path in cli.folder.glob("state.db*"):
        path.unlink()
    cli("apply", "-y", "-f", file)
    assert live(cli, "web") == ["web-0-0-0"]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_the_table_of_commands_says_what_each_command_says(cli: Cli, name: str) -> None:
    result = cli(name, "--help")
    assert result.code == 0
    assert COMMANDS[name][1] in " ".join(result.out.split())


def test_volumes_are_made_listed_and_deleted(cli: Cli) -> None:
    file = cli.write("cache.yaml", "type: volume\nname: cache\nsize: 1GB\n")
    assert cli("apply", "-y", "-f", file).code == 0
    assert "cache" in cli("volume", "list").out
    assert "cache  volume  unchanged" in cli("plan", "-f", file).out
    assert "1GB" in cli("volume", "list").out
    deleted = cli("volume", "delete", "-y", "cache")
    assert (deleted.code, deleted.err) == (0, "volume cache: deleted\n")
    assert cli("volume", "list").out == "no volumes\n"


def events(cli: Cli) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(cli("events", "--json").out)["events"]
    return found


def shown(cli: Cli, name: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(cli("show", name, "--json").out)["run"]
    return found


def live(cli: Cli, name: str) -> list[str]:
    jobs = shown(cli, name)["jobs"]
    assert isinstance(jobs, list)
    return sorted(j["name"] for j in jobs if j["state"] in ("running", "ready", "starting", "provisioning"))


def test_plans_have_images_from_the_mirror_that_the_places_configuration_names(cli: Cli) -> None:
    config = cli.folder / "config.yaml"
    config.write_text(f"mirrors: {{registries: {{docker.io: reg.lan/hub}}}}\n{config.read_text()}")
    spec = cli.write("hello.yaml", "type: task\nname: hello\nimage: python:3.12-slim\ncommands: [x]\n")
    assert cli("plan", "-f", spec, "--out", "plan.json").code == 0
    assert '"reg.lan/hub/library/python:3.12-slim"' in (cli.folder / "plan.json").read_text()


def test_a_bare_number_is_seconds_in_every_option_as_in_a_spec(cli: Cli) -> None:
    spec = cli.write("web.yaml", "type: service\nname: web\nport: 8000\ncommands: [serve]\n")
    assert cli("apply", "-f", spec, "-y", "-d").code == 0
    late = cli("wait", "web", "--for", "ended", "--timeout", "1")
    assert late.err.splitlines()[-1] == "not ended within 1s"
    assert cli("logs", "web", "--since", "90").code == 0
    assert cli("plan", "-f", spec, "--out", "plan.json", "--expires", "90").code == 0
    wrong = cli("wait", "web", "--timeout", "soon")
    assert (wrong.code, wrong.err.splitlines()[0].partition(":")[0]) == (64, "--timeout")
