"""Plans of the tables people know, from a frozen list of offers; ``UPDATE_GOLDEN=1`` writes them anew.

A spec that fits nowhere has its refusal in place of a plan.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.apply import World, plan_documents
from orchestrator.backend import Offer
from orchestrator.catalog import known_names
from orchestrator.errors import NothingFits
from orchestrator.render.plans import plan_json
from orchestrator.spec.load import Document, read
from tests.places import ABLE, world

HERE = Path(__file__).parent
FILES = sorted(HERE.glob("*.yaml"))
PLACES = ("nvidia", "amd", "tpu")


def offers() -> tuple[Offer, ...]:
    """Return the frozen list; its prices are of the order of public ones and belong to nobody."""
    return tuple(_offers())


def _offers() -> Iterator[Offer]:
    for line in (HERE / "offers.jsonl").read_text().splitlines():
        row = json.loads(line)
        capability = row.pop("compute_capability")
        yield Offer(**row, compute_capability=tuple(capability) if capability else None)


def here() -> World:
    return replace(world(), offers=offers, places=dict.fromkeys(PLACES, ABLE))


def planned(path: Path) -> list[dict[str, Any]]:
    """Return every document's plan, or why there is none."""
    documents = read(
        path.read_text(), file=path.name, known_accelerators=known_names(), env={"HF_TOKEN": "x"}
    )
    return [_planned(document) for document in documents]


def _planned(document: Document) -> dict[str, Any]:
    try:
        plans = plan_documents([document], here())
    except NothingFits as error:
        error.elsewhere = ""  # from the catalog's prices, which are not frozen
        return {"name": document.spec.name, "nothing_fits": str(error).splitlines()}
    found: dict[str, Any] = json.loads(plan_json(plans))["runs"][0]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_plans_are_as_they_were(path: Path) -> None:
    golden = path.with_suffix(".plan.json")
    found = planned(path)

    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")

    assert found == json.loads(golden.read_text())


def set_of(stem: str, name: str) -> tuple[str, int, int]:
    """Return accelerator, count and nodes of the chosen offer in a golden plan."""
    runs = json.loads((HERE / f"{stem}.plan.json").read_text())
    run = next(run for run in runs if run["name"] == name)
    chosen = next(offer for offer in run["offers"] if offer["chosen"])
    return chosen["accelerator"], chosen["count"], chosen["nodes"]


def test_405b_in_16_bits_takes_two_machines_of_eight_80_gb() -> None:
    runs = json.loads((HERE / "serving-nvidia.plan.json").read_text())
    run = next(run for run in runs if run["name"] == "llama-405b-bf16")
    eights = [o for o in run["offers"] if o["accelerator"] in ("H100-80GB", "A100-80GB")]

    assert {(o["count"], o["nodes"]) for o in eights} == {(8, 2)}


def test_a_plan_does_not_depend_on_the_order_of_offers() -> None:
    path = HERE / "serving-nvidia.yaml"
    documents = read(
        path.read_text(), file=path.name, known_accelerators=known_names(), env={"HF_TOKEN": "x"}
    )
    turned = replace(here(), offers=lambda: offers()[::-1])

    assert plan_json(plan_documents(documents, turned)) == plan_json(plan_documents(documents, here()))


def test_70b_in_4_bits_takes_one_device_of_80_gb() -> None:
    assert set_of("serving-nvidia", "llama-70b-int4") in (("A100-80GB", 1, 1), ("H100-80GB", 1, 1))
