"""Disks of rented machines: as large as an engine's image and its model take, and paid for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from backends.vm.port import SYSTEM_BYTES
from orchestrator.apply import FleetPlan, RunPlan, World, plan_documents
from orchestrator.apply.prices import check_prices
from orchestrator.backend import Can, Growth, Offer, Rent
from orchestrator.catalog.hardware import known_names
from orchestrator.errors import NothingFits, PlanRefused
from orchestrator.planner.demand import IMAGE_BYTES
from orchestrator.spec.load import read
from orchestrator.units import GIB
from tests.places import world

USD_GIB_HOUR = 0.08 / 730
CHOSEN = Offer(
    "cloud", "8x-H200", cpu=192, memory_bytes=2048 * GIB, region="us-east-1", accelerator="H200-141GB",
    vendor="nvidia", count=8, vram_bytes=140 * 2**30, compute_capability=(9, 0), price_usd_hour=63.0,
    disk_bytes=200 * GIB, system_bytes=SYSTEM_BYTES, fetches=True,
    growth=Growth(USD_GIB_HOUR, most_bytes=16 * 2**40),
)  # fmt: skip
"""A machine whose disk we choose, as aws, gcp and nebius have them."""

LLAMA = (
    "type: service\nname: m\nenv: [HF_TOKEN]\n"
    "model: {id: meta-llama/Llama-3.3-70B-Instruct, precision: bf16}\n"
)
DEEPSEEK = "type: service\nname: m\nmodel: deepseek-ai/DeepSeek-V3\n"
PLAIN = "type: task\nname: m\ncommands: [x]\nresources: {gpu: H200:8}\n"


def world_of(offers: Sequence[Offer]) -> World:
    """Return a world with these offers, of one cloud that rents machines."""
    return replace(world(), places={"cloud": frozenset(Can)}, offers=lambda: offers)


def planned(text: str, *offers: Offer) -> RunPlan:
    documents = read(text, file="m.yaml", known_accelerators=known_names(), env={"HF_TOKEN": "x"})
    (plan,) = plan_documents(documents, world_of(offers))
    assert isinstance(plan, RunPlan)
    return plan


def rent_of(plan: RunPlan) -> Rent:
    assert plan.template is not None
    rent = plan.template.rents[0]
    assert rent is not None
    return rent


@pytest.mark.parametrize(
    ("text", "weights_bytes"), [(LLAMA, 141_111_150_510), (DEEPSEEK, 672_987_199_488)], ids=["70b", "671b"]
)
def test_a_disk_is_chosen_that_holds_image_and_model_and_is_paid_for(text: str, weights_bytes: int) -> None:
    plan = planned(text, CHOSEN)
    rent = rent_of(plan)
    assert plan.template is not None
    assert plan.template.launch.fetch_bytes == weights_bytes
    need = weights_bytes + IMAGE_BYTES + SYSTEM_BYTES
    assert need < rent.disk_bytes < need + 6 * GIB
    more_gib = rent.disk_bytes // GIB - 200
    assert rent.price_usd_hour == pytest.approx(63.0 + more_gib * USD_GIB_HOUR, abs=1e-6)
    (choice,) = plan.placed.choices if plan.placed else ()
    assert (choice.offer.disk_bytes, choice.price_usd_hour) == (rent.disk_bytes, rent.price_usd_hour)


def test_what_is_large_enough_stays_as_it_is() -> None:
    assert (rent_of(planned(PLAIN, CHOSEN)).disk_bytes, CHOSEN.disk_bytes) == (200 * GIB, 200 * GIB)
    assert rent_of(planned(PLAIN, CHOSEN)).price_usd_hour == 63.0


def test_a_disk_that_comes_with_its_machine_is_refused_where_it_is_too_small() -> None:
    fixed = replace(CHOSEN, growth=None)
    with pytest.raises(NothingFits) as caught:
        planned(LLAMA, fixed)
    (refused,) = caught.value.refused
    assert refused.reason == "too little disk for image and model (162.1 GiB)"
    assert rent_of(planned(LLAMA, replace(fixed, disk_bytes=1024 * GIB))).disk_bytes == 0


def test_a_disk_that_no_machine_boots_from_is_refused() -> None:
    with pytest.raises(NothingFits, match="no offer fits"):
        planned(DEEPSEEK, replace(CHOSEN, growth=Growth(USD_GIB_HOUR, most_bytes=512 * GIB)))


def test_a_disk_that_is_asked_for_is_chosen_too() -> None:
    rent = rent_of(planned(PLAIN.replace("H200:8}", "H200:8, disk: 500GB..}"), CHOSEN))
    assert rent.disk_bytes == 466 * GIB


def test_the_disk_counts_where_prices_are_compared() -> None:
    dear = replace(CHOSEN, instance_type="dear-disk", price_usd_hour=62.9, growth=Growth(0.01))
    assert rent_of(planned(PLAIN, CHOSEN, dear)).instance_type == "dear-disk"
    assert rent_of(planned(LLAMA, CHOSEN, dear)).instance_type == "8x-H200"
    with pytest.raises(NothingFits, match="no offer fits"):
        planned(LLAMA + "max_price: 63.0\n", CHOSEN)


def test_a_saved_plan_is_held_to_the_price_of_its_disk() -> None:
    plan = planned(LLAMA, CHOSEN)
    check_prices([plan], [CHOSEN], {})
    with pytest.raises(PlanRefused, match="more than the plan's"):
        check_prices([plan], [replace(CHOSEN, growth=Growth(2 * USD_GIB_HOUR))], {})


def test_a_fleet_has_the_disk_that_it_asks_for_and_no_run_enlarges_it() -> None:
    text = "type: fleet\nname: pool\nnodes: 0..2\nbackends: [cloud]\nresources: {gpu: H200:8, disk: DISK}\n"
    places = {"cloud": frozenset(Can), "pool": frozenset(Can)}

    def both(disk: str) -> RunPlan:
        fleet = text.replace("DISK", disk)
        found = read(f"{fleet}---\n{LLAMA}fleets: [pool]\n", file="m.yaml", known_accelerators=known_names(),
                     env={"HF_TOKEN": "x"})  # fmt: skip
        plans = plan_documents(
            found, replace(world_of([CHOSEN]), places=places, expected=frozenset({"pool"}))
        )
        fleets = [plan for plan in plans if isinstance(plan, FleetPlan)]
        assert fleets[0].template is not None
        assert fleets[0].template.rents[0] is not None
        run = next(plan for plan in plans if isinstance(plan, RunPlan))
        assert run.placed is not None
        assert run.placed.choices[0].offer.disk_bytes == fleets[0].template.rents[0].disk_bytes
        return run

    assert both("500GB..").placed is not None
    with pytest.raises(NothingFits, match="no offer fits"):
        both("null")
