"""What must hold of saved plans, sets and locks, as scenes at a prompt; each raises when it does not.

Apart from the tests, so that planted faults meet the same scenes.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Cli, Result

HELLO = "type: task\nname: hello\ncommands: [echo hi]\n"
LONG = "type: task\nname: long\ncommands: [sleep]\n"
WEB = "type: service\nname: web\nport: 8000\ncommands: [serve]\nprobes: [{type: http, url: /}]\n"
CACHE = "type: volume\nname: cache\nsize: 1GB\n"


def saved(cli: Cli, text: str, *options: str, name: str = "specs.yaml") -> str:
    """Plan ``text`` into a file and return its path."""
    plan = str(cli.folder / "plan.json")
    result = cli("plan", "-f", cli.write(name, text), "--out", plan, *options)
    assert result.code == 0, result.err
    return plan


def refused(result: Result, said: str) -> None:
    """Hold a result to a refusal with 1 that says why, and what to do."""
    assert result.code == 1, result
    assert said in result.err
    assert "  fix     " in result.err


def edited(plan: str, *, sealed: bool = False, **changes: Any) -> None:
    """Change a plan file, and seal it again where a careful forger would."""
    path = Path(plan)
    body = json.loads(path.read_text()) | changes
    if sealed:
        del body["seal"]
        text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        body["seal"] = "sha256:" + hashlib.sha256(text.encode()).hexdigest()
    path.write_text(json.dumps(body))


def names(cli: Cli) -> dict[str, str]:
    """Return the runs on record and their states."""
    return {run["name"]: run["state"] for run in json.loads(cli("ps", "-a", "--json").out)["runs"]}


def a_changed_plan_is_refused(cli: Cli) -> None:
    """Somebody edits a launch in a saved plan."""
    plan = saved(cli, HELLO)
    steps = json.loads(Path(plan).read_text())["steps"]
    steps[0]["template"]["launch"]["command"] = ["rm", "-rf", "/"]
    edited(plan, steps=steps)
    refused(cli("apply", plan), "was changed after it was written")
    assert names(cli) == {}


def a_plan_whose_run_moved_is_refused(cli: Cli) -> None:
    """A run is stopped between plan and apply."""
    cli("apply", "-y", "-f", cli.write("specs.yaml", WEB))
    plan = saved(cli, WEB.replace("serve", "serve better"))
    cli("stop", "-y", "web")
    refused(cli("apply", plan), "the plan is stale: run 'web' moved since it was made")
    assert names(cli) == {"web": "stopped"}


def a_plan_whose_input_changed_is_refused(cli: Cli) -> None:
    """The spec is edited between plan and apply."""
    plan = saved(cli, HELLO)
    cli.write("specs.yaml", HELLO.replace("hi", "ho"))
    refused(cli("apply", plan), "specs.yaml changed since the plan was made")
    assert names(cli) == {}


def a_file_is_not_in_the_plan_and_held_to_what_it_was(cli: Cli) -> None:
    """A local file that a spec sends along holds what nobody else should read, and changes."""
    cli.write("notes.txt", "nightingale in a file")
    plan = saved(cli, HELLO + "files: [notes.txt]\n")
    text = Path(plan).read_text()
    assert "nightingale" not in text
    assert base64.b64encode(b"nightingale in a file").decode() not in text
    cli.write("notes.txt", "another nightingale")
    refused(cli("apply", plan), "files of 'hello' changed since the plan was made")
    cli.write("notes.txt", "nightingale in a file")
    assert cli("apply", plan).code == 0


def a_plan_made_against_another_record_is_refused(cli: Cli) -> None:
    """Somebody applies a plan that only creates with the address of another record set."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MODELYARD_DATABASE_URL", f"sqlite:///{cli.folder}/staging.db")
        cli("apply", "-y", "-f", cli.write("web.yaml", WEB))
        plan = saved(cli, HELLO)
    cli("apply", "-y", "-f", cli.write("web.yaml", WEB.replace("web", "web-2")))
    refused(cli("apply", plan), "was made against another record than this one")
    assert "hello" not in names(cli)


def an_expired_plan_is_refused(cli: Cli) -> None:
    """A plan is found again long after."""
    plan = saved(cli, HELLO)
    edited(plan, sealed=True, expires_at="2020-01-01T00:00:00+00:00")
    refused(cli("apply", plan), "expired at 2020-01-01T00:00:00+00:00")


def a_prune_owns_its_set_and_nothing_else(cli: Cli) -> None:
    """Two sets and a run of no set; one of the sets shrinks."""
    cli("apply", "-y", "-f", cli.write("one.yaml", WEB + "---\n" + HELLO), "--set", "prod")
    cli("apply", "-y", "-f", cli.write("two.yaml", WEB.replace("web", "web-two")), "--set", "test")
    cli("apply", "-y", "-f", cli.write("three.yaml", WEB.replace("web", "web-three")))
    result = cli("apply", "-y", "-f", cli.write("one.yaml", HELLO), "--set", "prod", "--prune")
    assert result.code == 0, result.err
    assert "web  service  delete" in result.err
    assert set(names(cli)) == {"hello", "web-two", "web-three"}


def without_prune_nothing_is_deleted(cli: Cli) -> None:
    """A set shrinks, and nobody says prune."""
    cli("apply", "-y", "-f", cli.write("one.yaml", WEB + "---\n" + HELLO), "--set", "prod")
    result = cli("apply", "-y", "-f", cli.write("one.yaml", HELLO), "--set", "prod")
    assert (result.code, set(names(cli))) == (0, {"hello", "web"})


def a_volume_goes_only_when_that_is_allowed(cli: Cli) -> None:
    """A set loses the volume it had."""
    cli("apply", "-y", "-f", cli.write("one.yaml", CACHE + "---\n" + HELLO), "--set", "prod")
    prune = ("apply", "-y", "-f", cli.write("one.yaml", HELLO), "--set", "prod", "--prune")
    result = cli(*prune)
    assert (result.code, "add --allow-destroy" in result.err) == (64, True)
    assert "cache" in cli("volume", "list").out
    assert cli(*prune, "--allow-destroy").code == 0
    assert cli("volume", "list").out == "no volumes\n"


def a_running_task_is_replaced_only_when_that_is_allowed(cli: Cli) -> None:
    """The spec of a task changes while it runs."""
    cli("apply", "-y", "-d", "-f", cli.write("long.yaml", LONG))
    file = cli.write("long.yaml", LONG.replace("sleep", "sleep more"))
    assert "it is running: apply needs --allow-replace" in cli("plan", "-f", file).out
    result = cli("apply", "-y", "-d", "-f", file)
    assert (result.code, "add --allow-replace" in result.err) == (64, True)
    assert cli("diff", "-f", file, "--detailed-exitcode").code == 2
    assert cli("apply", "-y", "-d", "-f", file, "--allow-replace").code == 0
    assert cli("diff", "-f", file, "--detailed-exitcode").code == 0
