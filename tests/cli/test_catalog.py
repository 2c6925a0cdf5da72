"""What the catalog says, and a user's own tables over it in every command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.catalog.overlay import use
from tests.cli.conftest import Cli

HEAD = "instance_name,location,price,gpu_count,gpu_name,spot\n"
LIST = HEAD + "g6,eu,0.8,1,L4,False\nzero,eu,0,1,L4,False\nnan,eu,NaN,1,L4,False\nodd,eu,1,1,L9999,False\n"
CARD = (
    "CELLAR-10GB: {vendor: nvidia, architecture: Turing, nominal_gb: 10, visible_bytes: 10000000000,"
    " source: measured here}\n"
)
MODEL = "acme/tuned-8b: {same: meta-llama/Llama-3.1-8B-Instruct, context: 8192, source: ours}\n"
DAY = ("--provider", "acme", "--as-of", "2026-11-20")


@pytest.fixture
def own(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the user's own catalog, still empty."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(cli.folder / "config"))
    folder = cli.folder / "config" / "modelyard" / "catalog"
    folder.mkdir(parents=True)
    yield folder
    use(None)


@pytest.mark.parametrize("kind", ["accelerators", "models", "images", "prices"])
def test_every_table_is_listed_for_people_and_for_machines(cli: Cli, kind: str) -> None:
    text, listed = cli("catalog", "list", kind), json.loads(cli("catalog", "list", kind, "--json").out)

    assert listed["schema"] == "modelyard/catalog/v1"
    assert len(text.out.splitlines()) == len(listed[kind]) + 1
    assert all(entry["source"] for entry in listed[kind])


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("h100", "accelerator H100-80GB"),
        ("qwen/qwen3-8b", "model Qwen/Qwen3-8B"),
        ("vllm/0.33.0/cuda", "image vllm/0.33.0/cuda"),
        ("aws/eu-north-1/p5en.48xlarge", "price aws/eu-north-1/p5en.48xlarge"),
    ],
)
def test_a_fact_is_shown_with_its_source(cli: Cli, name: str, first: str) -> None:
    shown = cli("catalog", "show", name)

    assert shown.out.splitlines()[0] == first
    assert "\n  source" in shown.out


def test_a_name_that_is_nearly_right_is_suggested(cli: Cli) -> None:
    shown = cli("catalog", "show", "H1O0")

    assert shown.code == 64
    assert "did you mean 'H100'?" in shown.err


def test_prices_are_imported_and_lines_that_are_none_are_named(cli: Cli, own: Path) -> None:
    done = cli("catalog", "import", *DAY, cli.write("list.csv", LIST))

    assert done.code == 0
    assert [line.split(":")[2] for line in done.err.splitlines() if "warning" in line] == ["3", "4", "5"]
    assert (own / "prices.yaml").read_text().startswith('"acme/eu/g6": {"accelerator": "L4-24GB"')
    assert (
        json.loads(cli("catalog", "show", "acme/eu/g6", "--json").out)["prices"][0]["as_of"] == "2026-11-20"
    )


def test_a_list_takes_the_place_of_its_providers_and_no_other(cli: Cli, own: Path) -> None:
    (own / "prices.yaml").write_text(
        "acme/eu/old: {on_demand_usd_hour: 9, source: x}\n"
        "rack/cellar/two: {on_demand_usd_hour: 1.9, source: power, as_of: 2026-11-01}\n"
    )

    cli("catalog", "import", *DAY, cli.write("list.csv", HEAD + "g6,eu,0.8,1,L4,False\n"))

    names = [line.split('"')[1] for line in (own / "prices.yaml").read_text().splitlines()]
    assert names == ["acme/eu/g6", "rack/cellar/two"]
    assert cli("catalog", "show", "rack/cellar/two").code == 0


@pytest.mark.parametrize(
    ("text", "day", "code", "said"),
    [
        (HEAD + "zero,eu,0,1,L4,False\n", "2026-11-20", 65, "is no price"),
        (HEAD, "2026-11-20", 64, "has no prices"),
        ("a,b\n1,2\n", "2026-11-20", 78, "lacks the column"),
        (LIST, "20.11.2026", 64, "no day"),
        (LIST, "2999-01-01", 64, "yet to come"),
    ],
)
def test_a_list_that_says_nothing_changes_nothing(
    cli: Cli, own: Path, text: str, day: str, code: int, said: str
) -> None:
    done = cli("catalog", "import", "--provider", "acme", "--as-of", day, cli.write("list.csv", text))

    assert (done.code, said in done.err) == (code, True)
    assert not (own / "prices.yaml").exists()


def test_every_command_reads_the_users_own_tables(
    cli: Cli, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    card = "type: task\nname: hello\ncommands: [echo hi]\nresources: {gpu: CELLAR-10GB}\n"
    spec = cli.write("card.yaml", card)
    served = cli.write("tuned.yaml", "type: service\nname: a\nmodel: acme/tuned-8b\n")
    commands = {
        ("validate", "-f", spec): (65, 0),
        ("plan", "-f", spec): (65, 75),
        ("plan", "-f", served): (65, 0),
        ("size", "acme/tuned-8b", "--gpu", "L4"): (65, 0),
        ("catalog", "show", "CELLAR-10GB"): (64, 0),
    }

    before = {command: cli(*command).code for command in commands}
    (own / "accelerators.yaml").write_text(CARD)
    (own / "models.yaml").write_text(MODEL)
    after = {command: cli.program(*command).code for command in commands}

    assert {command: (before[command], after[command]) for command in commands} == commands
