"""Sets from the command line: what a prune owns, what it asks first, and in which order it works."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any

import pytest

from backends.sim import Sim
from orchestrator.api import Local
from orchestrator.apply import Consent, Scope
from orchestrator.errors import Unreachable
from orchestrator.spec.load import load
from orchestrator.store.records import Store
from tests.apply import scenes
from tests.apply.scenes import CACHE, HELLO, WEB, names, refused, saved
from tests.cli.conftest import Cli

USES = "type: service\nname: uses\nport: 8000\ncommands: [serve]\nvolumes: ['cache:/cache']\n"


@pytest.mark.parametrize(
    "scene",
    [
        scenes.a_prune_owns_its_set_and_nothing_else,
        scenes.without_prune_nothing_is_deleted,
        scenes.a_volume_goes_only_when_that_is_allowed,
        scenes.a_running_task_is_replaced_only_when_that_is_allowed,
    ],
)
def test_nothing_is_lost_that_nobody_gave_up(cli: Cli, scene: Callable[[Cli], None]) -> None:
    scene(cli)


def test_deletions_stand_in_every_form_of_the_plan(cli: Cli) -> None:
    cli("apply", "-y", "-f", cli.write("one.yaml", CACHE + "---\n" + WEB), "--set", "prod")
    plan = ("plan", "-f", cli.write("one.yaml", HELLO), "--set", "prod", "--prune", "--format")
    assert "plan: 1 to create, 2 to delete" in cli(*plan, "text").out
    runs = json.loads(cli(*plan, "json").out)["runs"]
    assert [(r["name"], r["action"]) for r in runs] == [
        ("hello", "create"), ("web", "delete"), ("cache", "delete"),
    ]  # fmt: skip
    assert "> **Deletes** service `web`, volume `cache`" in cli(*plan, "md").out
    assert "::warning::cache volume: delete%0Aset 'prod' no longer has it" in cli(*plan, "github").out


def test_volumes_come_before_the_runs_that_use_them(cli: Cli) -> None:
    result = cli("plan", "-f", cli.write("one.yaml", USES + "---\n" + CACHE), "--json")
    assert [run["name"] for run in json.loads(result.out)["runs"]] == ["cache", "uses"]


def test_a_volume_goes_after_the_runs_that_used_it(cli: Cli) -> None:
    both = cli.write("one.yaml", "\n---\n".join((USES, CACHE, WEB)))
    cli("apply", "-y", "-d", "-f", both, "--set", "prod")
    prune = ("-f", cli.write("one.yaml", WEB), "--set", "prod", "--prune", "--allow-destroy")
    result = cli("apply", "-y", "-d", *prune)
    assert result.code == 0, result.err
    assert (set(names(cli)), cli("volume", "list").out) == ({"web"}, "no volumes\n")


def loses_what_an_earlier_attempt_held(cli: Cli) -> None:
    uses = HELLO + "volumes: ['cache:/cache']\n"
    cli("apply", "-y", "-f", cli.write("one.yaml", CACHE + "---\n" + uses), "--set", "prod")

    cli("apply", "-y", "-f", cli.write("one.yaml", CACHE + "---\n" + HELLO), "--set", "prod")
    result = cli(
        "apply", "-y", "-f", cli.write("one.yaml", HELLO), "--set", "prod", "--prune", "--allow-destroy"
    )

    assert result.code == 0, result.err
    assert cli("volume", "list").out == "no volumes\n"


def test_a_volume_goes_that_only_an_earlier_attempt_held(cli: Cli) -> None:
    loses_what_an_earlier_attempt_held(cli)


def test_a_volume_that_an_earlier_attempt_holds_for_ever_is_caught(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Local, "_let_go", lambda self, volume, backend: None)
    with pytest.raises(AssertionError):
        loses_what_an_earlier_attempt_held(cli)


@pytest.mark.parametrize("where", ["in the files", "on record"])
def test_a_volume_that_is_used_cannot_go(cli: Cli, where: str) -> None:
    cli("apply", "-y", "-f", cli.write("one.yaml", CACHE), "--set", "prod")
    if where == "on record":
        cli("apply", "-y", "-d", "-f", cli.write("two.yaml", USES))
    text = USES if where == "in the files" else HELLO
    result = cli("plan", "-f", cli.write("one.yaml", text), "--set", "prod", "--prune")
    assert result.code == 64
    assert "volume 'cache' cannot go: run 'uses' uses it" in result.err


def test_a_volume_is_there_before_its_run_is_on_record(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = load([cli.write("specs.yaml", USES + "---\n" + CACHE)])
    held: list[list[str]] = []
    commit = Store.commit
    with closing(Local(f"sqlite:///{cli.folder}/state.db", config=cli.folder / "config.yaml")) as api:

        def watched(store: Store, *writes: Any, **how: Any) -> Mapping[str, int]:
            held.append([volume.name for volume in api.places["sim"].volumes()])
            return commit(store, *writes, **how)

        monkeypatch.setattr(Store, "commit", watched)
        api.apply(api.plan(documents))

    assert held == [["cache"]]


def test_where_a_volume_cannot_be_made_nothing_is_on_record(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(place: Sim, _name: str, *, size_bytes: int | None) -> None:
        raise Unreachable(f"{size_bytes} bytes on a place that is away", backend=place.name)

    file = cli.write("specs.yaml", USES + "---\n" + CACHE)
    with monkeypatch.context() as patched:
        patched.setattr(Sim, "create_volume", silent)
        assert cli("apply", "-y", "-f", file).code == 69
    assert names(cli) == {}

    again = cli("apply", "-y", "-d", "-f", file)

    assert (again.code, "2 to create" in again.err) == (0, True)
    assert "cache" in cli("volume", "list").out


def test_what_another_set_has_is_not_taken(cli: Cli) -> None:
    file = cli.write("web.yaml", WEB + "---\n" + CACHE)
    cli("apply", "-y", "-f", file, "--set", "prod")
    for name, text in [("cache", CACHE), ("web", WEB)]:
        result = cli("plan", "-f", cli.write("web.yaml", text), "--set", "test")
        assert (result.code, f"{name!r} belongs to set 'prod', not 'test'" in result.err) == (64, True)


@pytest.mark.parametrize("by", ["files", "plan"])
def test_what_is_taken_over_goes_on_and_the_other_set_prunes_it_no_more(cli: Cli, by: str) -> None:
    both = cli.write("prod.yaml", WEB + "---\n" + CACHE + "---\n" + HELLO)
    cli("apply", "-y", "-f", both, "--set", "prod")
    serving = cli.write("serving.yaml", WEB + "---\n" + CACHE)
    planned = cli("plan", "-f", serving, "--set", "serving", "--take", "--out", "plan.json")
    assert planned.out.count("~ set: prod -> serving  (in place)") == 2
    arguments = ("plan.json",) if by == "plan" else ("-y", "-f", serving, "--set", "serving", "--take")
    assert cli("apply", *arguments).code == 0

    rest = cli("apply", "-y", "-f", cli.write("prod.yaml", HELLO), "--set", "prod", "--prune")

    assert "1 unchanged" in rest.out
    assert names(cli) == {"hello": "succeeded", "web": "ready"}
    told = json.loads(cli("events", "--json").out)["events"]
    assert {e["subject"] for e in told if e["after"] == "provisioning"} - {"web", "hello"} == {
        "web-0-0-0", "hello-0-0-0",
    }  # fmt: skip
    gone = cli("plan", "-f", cli.write("web.yaml", WEB), "--set", "serving", "--prune").out
    assert "cache  volume  delete" in gone
    alone = cli("apply", "-y", "-f", serving, "--take")
    assert (alone.code, "--take without a set" in alone.err) == (64, True)


def test_what_has_no_set_joins_and_keeps_running(cli: Cli) -> None:
    file = cli.write("web.yaml", WEB + "---\n" + CACHE)
    cli("apply", "-y", "-f", file)
    planned = cli("plan", "-f", file, "--set", "prod").out
    assert planned.count("~ set: unset -> prod  (in place)") == 2
    cli("apply", "-y", "-f", file, "--set", "prod")
    assert cli("plan", "-f", file, "--set", "prod", "--detailed-exitcode").code == 0
    shown = json.loads(cli("show", "web", "--json").out)["run"]
    assert ([job["name"] for job in shown["jobs"]], shown["set"]) == (["web-0-0-0"], "prod")
    assert re.search(r"set +prod", cli("show", "web").out)


def test_a_set_stays_when_nobody_names_one(cli: Cli) -> None:
    file = cli.write("web.yaml", WEB)
    cli("apply", "-y", "-f", file, "--set", "prod")
    cli.write("web.yaml", WEB.replace("serve", "serve better"))
    cli("apply", "-y", "-f", file)
    cli.write("web.yaml", HELLO)
    assert "web  service  delete" in cli("plan", "-f", file, "--set", "prod", "--prune").out


def test_who_changes_by_hand_what_a_set_has_is_told_whose_it_is(cli: Cli) -> None:
    path = cli.write("one.yaml", WEB)
    cli("apply", "-y", "-f", path, "--set", "prod")
    other = cli.write("two.yaml", WEB.replace("commands: [serve]", "commands: [serve, more]"))
    said = "note     set 'prod' has it"

    assert said in cli("plan", "-f", other).out
    assert said not in cli("plan", "-f", other, "--set", "prod").out
    assert said not in cli("plan", "-f", path).out


def test_a_pruned_set_is_empty_for_the_next_prune(cli: Cli) -> None:
    cli("apply", "-y", "-f", cli.write("one.yaml", WEB + "---\n" + HELLO), "--set", "prod")
    prune = ("-f", cli.write("one.yaml", HELLO), "--set", "prod", "--prune")
    cli("apply", "-y", *prune)
    assert cli("plan", *prune, "--detailed-exitcode").code == 0


def test_files_that_are_gone_altogether_prune_nothing(cli: Cli) -> None:
    cli("apply", "-y", "-f", cli.write("one.yaml", WEB), "--set", "prod")
    cli.write("one.yaml", "# nothing\n")
    result = cli("apply", "-y", "-f", str(cli.folder / "one.yaml"), "--set", "prod", "--prune")
    assert (result.code, set(names(cli))) == (65, {"web"})


def test_a_saved_prune_deletes_what_was_reviewed_or_nothing(cli: Cli) -> None:
    cli("apply", "-y", "-f", cli.write("one.yaml", WEB + "---\n" + CACHE), "--set", "prod")
    prune = ("--set", "prod", "--prune")
    plan = saved(cli, HELLO, *prune)
    assert cli("apply", plan).code == 64  # the volume: nobody allowed that
    assert set(names(cli)) == {"web"}
    cli("stop", "-y", "web")
    refused(cli("apply", plan, "--allow-destroy"), "run 'web' moved")
    plan = saved(cli, HELLO, *prune, "--allow-destroy")
    assert cli("apply", plan).code == 0
    assert set(names(cli)) == {"hello"}
    refused(cli("apply", plan), "the plan is stale")


def test_a_prune_that_was_cut_short_is_finished_by_the_next(cli: Cli) -> None:
    both = cli.write("one.yaml", "\n---\n".join((USES, CACHE, HELLO)))
    cli("apply", "-y", "-d", "-f", both, "--set", "prod")
    prune = ("-f", cli.write("one.yaml", HELLO), "--set", "prod", "--prune", "--allow-destroy")
    documents = load([str(cli.folder / "one.yaml")])
    with closing(Local(f"sqlite:///{cli.folder}/state.db", config=cli.folder / "config.yaml")) as api:
        plans = api.plan(documents, scope=Scope("prod", prune=True))
        api.apply(plans, consent=Consent(destroy=True))  # and there it is killed
    planned = cli("plan", *prune).out
    assert "cache  volume  delete" in planned
    assert "uses" not in planned
    assert cli("apply", "-y", *prune).code == 0
    assert (set(names(cli)), cli("volume", "list").out) == ({"hello"}, "no volumes\n")
