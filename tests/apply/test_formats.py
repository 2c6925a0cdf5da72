"""Plans and problems as Markdown and as GitHub's annotations."""

from __future__ import annotations

import json
import re

import pytest

from orchestrator.errors import NothingFits, Position
from orchestrator.render.github import command, error_github
from tests.apply.scenes import CACHE, HELLO, LONG, WEB
from tests.cli.conftest import Cli

WRONG = "type: task\nname: Wrong\ncommands: [x]\nresources: {gpu: H1OO}\n"


def read_back(line: str) -> tuple[str, dict[str, str], str]:
    """Read a workflow command as the runner does: properties split at commas, then unescaped."""
    found = re.fullmatch(r"::(\w+)(?: ([^:]*))?::(.*)", line)
    assert found, line
    pairs = (pair.split("=", 1) for pair in (found[2] or "").split(",") if pair)
    return found[1], {key: unescaped(value) for key, value in pairs}, unescaped(found[3])


def unescaped(text: str) -> str:
    for code, char in (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ","), ("%25", "%")):
        text = text.replace(code, char)
    return text


@pytest.mark.parametrize("text", ["a: b, c", "100 %0A\nnext\r\n", "::error::no", "%25"])
def test_a_command_says_what_it_was_given(text: str) -> None:
    line = command("error", text, at=Position(f"a,b:c%/{text.split()[0]}", 3, 5))
    assert "\n" not in line
    kind, where, said = read_back(line)
    assert (kind, said, where["line"], where["col"]) == ("error", text, "3", "5")
    assert where["file"].startswith("a,b:c%/")


@pytest.mark.parametrize("program", [("plan",), ("validate",)])
def test_every_problem_is_an_annotation_at_its_line(cli: Cli, program: tuple[str, ...]) -> None:
    file = cli.write("wrong.yaml", WRONG)
    result = cli(*program, "-f", file, "--format", "github")
    assert result.code == 65
    read = [read_back(line) for line in result.out.splitlines()]
    assert [(kind, at["file"], at["line"], at["col"]) for kind, at, _ in read] == [
        ("error", "wrong.yaml", "2", "7"), ("error", "wrong.yaml", "4", "18"),
    ]  # fmt: skip
    assert f"{file}:2:7" in result.err


def test_what_fits_nowhere_is_an_annotation_at_its_spec(cli: Cli) -> None:
    file = cli.write("big.yaml", HELLO + "resources: {memory: 900TB..}\n")
    result = cli("plan", "-f", file, "--format", "github")
    assert result.code == 75
    kind, where, said = read_back(result.out.strip())
    assert (kind, where["file"], where["line"]) == ("error", "big.yaml", "1")
    assert said == "no offer fits task 'hello'\nlower resources.memory"


def test_an_error_without_a_place_has_none() -> None:
    homeless = NothingFits("nothing", fix="more")
    homeless.also = (NothingFits("nor this"),)
    assert error_github(homeless) == "::error::nothing%0Amore\n::error::nor this"


def test_a_change_is_a_notice_at_its_spec(cli: Cli) -> None:
    cli("apply", "-y", "-f", cli.write("web.yaml", WEB))
    file = cli.write("web.yaml", "# a line\n" + WEB + "replicas: 2\n---\n" + HELLO)
    lines = [read_back(line) for line in cli("plan", "-f", file, "--format", "github").out.splitlines()]
    assert [(kind, at.get("line"), said.splitlines()[0]) for kind, at, said in lines] == [
        ("notice", "2", "web service: update"), ("notice", "9", "hello task: create"),
        ("notice", None, "plan: 1 to create, 1 to update"),
    ]  # fmt: skip


def test_a_comment_holds_a_table_and_the_whole_plan(cli: Cli) -> None:
    text = HELLO.replace("echo hi", "'echo ```` | b'")
    out = cli("plan", "-f", cli.write("hello.yaml", text), "--format", "md").out
    assert out.startswith("### Modelyard: 1 to create\n\n| name | type | action | why | where | cost |\n")
    assert "| `hello` | task | **create** | not on record | sim sim (8 × H100-80GB) | $0/h |" in out
    assert out.count("\n```\n") == out.count("```text\n") == 1
    assert cli("plan", "-f", str(cli.folder / "hello.yaml"), "--format", "md").out == out


def test_a_comment_says_what_apply_needs_and_lacks(cli: Cli) -> None:
    text = LONG + "---\n" + CACHE
    cli("apply", "-y", "-d", "-f", cli.write("specs.yaml", text), "--set", "prod")
    file = cli.write("specs.yaml", LONG.replace("[sleep]", "[sleep longer]") + "env: [UNSET_A]\n")
    planned = ("-f", file, "--set", "prod", "--prune")
    quoted = [line for line in cli("plan", *planned, "--format", "md").out.splitlines() if line[:1] == ">"]
    assert quoted == [
        "> **Deletes** volume `cache`",
        "> **Needs** `--allow-replace`: task 'long' is running and would be stopped and started anew",
        "> **Needs** `--allow-destroy`: volume 'cache' would be deleted with what it holds",
        f"> **Lacks** UNSET_A has no value (`{file}:4:7`)",
    ]
    refused = cli("apply", "-y", *planned)
    assert (refused.code, refused.err.splitlines()[-3:]) == (64, [
        "task 'long' is running and would be stopped and started anew",
        "volume 'cache' would be deleted with what it holds",
        "  fix     add --allow-replace and --allow-destroy, or modelyard wait long --for ended, "
        "or keep it in the files",
    ])  # fmt: skip


def test_a_change_to_a_cell_stays_in_its_cell(cli: Cli) -> None:
    data = "type: volume\nname: data\n"
    cli("apply", "-y", "-f", cli.write("data.yaml", data + "tags: {a|b: x}\n"))
    out = cli("plan", "-f", cli.write("data.yaml", data + "tags: {a|b: y}\n"), "--format", "md").out
    (row,) = [line for line in out.splitlines() if line.startswith("| `data`")]
    assert len(re.findall(r"(?<!\\)\|", row)) == 7


def test_a_plan_says_what_all_replicas_and_all_runs_cost(cli: Cli) -> None:
    offer = "{instance_type: big, cpu: 8, memory_bytes: 34359738368, price_usd_hour: 2.5}"
    config = cli.write("priced.yaml", f"backends: [{{type: sim, offers: [{offer}]}}]\n")
    web, hello = WEB.replace("name: web", "name: three") + "replicas: 3\n", HELLO
    scaled = WEB + "replicas: 1..4\nscaling: {metric: rps, target: 2}\n"
    plan = ("plan", "--config", config, "-f", cli.write("all.yaml", "---\n".join([web, hello, scaled])))

    text, table = cli(*plan).out, cli(*plan, "--format", "md").out

    assert "  cost     $7.5/h for 3 replicas" in text
    assert "  cost     $2.5/h to $10/h for 1 to 4 replicas" in text
    assert text.endswith("plan: 3 to create, at $12.5/h to $20/h\n")
    assert [line.split(" | ")[-1] for line in table.splitlines() if line.startswith("| `")] == [
        "$7.5/h |", "$2.5/h |", "$2.5/h to $10/h |",
    ]  # fmt: skip
    runs = json.loads(cli(*plan, "--json").out)["runs"]
    assert [tuple(run["usd_hour"].values()) for run in runs] == [
        (0.0, 7.5, 7.5), (0.0, 2.5, 2.5), (0.0, 2.5, 10.0),
    ]  # fmt: skip


PRICED = """\
backends:
  - type: sim
    state: {folder}/sim.jsonl
    prices: {{L4-24GB: 2}}
    offers: [{{instance_type: own, accelerator: L4-24GB, vendor: nvidia, count: 16, cpu: 64,
      memory_bytes: 200000000000, vram_bytes: 24000000000, divisible: true}}]
    script: {{"web-*": {{ready_s: 0.0}}, "hello-*": {{run_s: 1000000.0}}}}
"""


def test_every_form_says_what_is_paid_now_and_what_would_be(cli: Cli) -> None:
    cli.write("config.yaml", PRICED.format(folder=cli.folder))
    web, task = WEB + "resources: {gpu: 1}\n", HELLO + "resources: {gpu: 2}\n"
    both = cli.write("specs.yaml", web + "---\n" + task)
    assert cli("apply", "-y", "-d", "-f", both, "--set", "prod").code == 0
    more = cli.write("specs.yaml", web + "replicas: 2..5\nscaling: {metric: rps, target: 4}\n")

    def planned(form: str) -> str:
        return cli("plan", "-f", more, "--set", "prod", "--prune", "--format", form).out

    total = "$6/h now, $4/h to $10/h after"
    counted = "1 to update, 1 to delete"
    assert planned("text").splitlines()[-1] == f"plan: {counted}, at {total}"
    assert "  cost     $2/h now, $4/h to $10/h after for 2 to 5 replicas" in planned("text")
    assert json.loads(planned("json"))["usd_hour"] == {"now": 6.0, "least": 4.0, "most": 10.0}
    assert planned("github").splitlines()[-1].endswith(f", at {total}")
    comment = planned("md").splitlines()
    assert comment[0] == f"### Modelyard: {counted}, at {total}"
    rows = [line.strip("| ").split(" | ") for line in comment if line.startswith("| `")]
    assert [(row[0], row[-1]) for row in rows] == [
        ("`web`", "$2/h now, $4/h to $10/h after"), ("`hello`", "$4/h now, $0/h after"),
    ]  # fmt: skip


def test_a_stopped_run_costs_nothing_now(cli: Cli) -> None:
    cli.write("config.yaml", PRICED.format(folder=cli.folder))
    file = cli.write("specs.yaml", WEB + "resources: {gpu: 1}\n")
    cli("apply", "-y", "-d", "-f", file)
    cli("stop", "-y", "web")
    assert cli("plan", "-f", file).out.splitlines()[-1] == "plan: 1 to rerun, at $2/h"


def test_a_comment_tells_why_there_is_no_plan(cli: Cli) -> None:
    file = cli.write("wrong.yaml", WRONG)
    result = cli("plan", "-f", file, "--format", "md")
    assert result.code == 65
    first, _, fence, *told, end = result.out.splitlines()
    assert (first, fence, end) == ("### Modelyard: no plan", "```text", "```")
    assert told == result.err.splitlines()
