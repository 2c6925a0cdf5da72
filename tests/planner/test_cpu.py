"""Small models on machines without accelerators: with the engine that can, in an image or installed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.apply import RunPlan, World, plan_documents
from orchestrator.backend import Can, Offer
from orchestrator.errors import NothingFits
from orchestrator.spec.load import read
from orchestrator.units import GIB
from tests.places import world

LAPTOP = {
    "docker": frozenset({Can.IMAGES, Can.PORTS, Can.MOUNTS, Can.VOLUMES}),
    "process": frozenset({Can.BARE, Can.PORTS}),
}
SMALL = "type: service\nname: small\nmodel: Qwen/Qwen2.5-0.5B-Instruct\n"


def laptop(memory_bytes: int = 16 * GIB) -> World:
    """Return a machine with an engine and no accelerator."""
    offers = [Offer(name, "vm", 8, memory_bytes, divisible=True) for name in LAPTOP]
    return replace(world(), places=LAPTOP, offers=lambda: offers)


def planned(text: str, world: World) -> RunPlan:
    """Return the plan of one service."""
    (plan,) = plan_documents(read(text), world)
    assert isinstance(plan, RunPlan)
    return plan


def test_an_engine_for_cpus_needs_no_accelerator() -> None:
    plan = planned(SMALL + "engine: transformers\n", laptop())
    assert plan.template
    assert plan.template.backends == ("docker",)
    assert plan.template.launch.image
    assert plan.template.launch.resources.accelerators == 0


TUNED = "type: task\nname: small\ntrain: {model: Qwen/Qwen2.5-0.5B-Instruct, dataset: a/b, adapter: lora}\n"


@pytest.mark.parametrize("text", [SMALL, SMALL + "engine: transformers\n", TUNED])
def test_who_asks_for_no_accelerator_is_given_none(text: str) -> None:
    card = Offer(
        "docker", "card", 8, 64 * GIB, accelerator="L4-24GB", vendor="nvidia", count=1,
        vram_bytes=23_580_639_232, compute_capability=(8, 9), price_usd_hour=0.1,
    )  # fmt: skip
    there = laptop(64 * GIB)
    offers = [card, *(replace(each, price_usd_hour=9.0) for each in there.offers())]
    plan = planned(text + "resources: {gpu: 0}\n", replace(there, offers=lambda: offers))
    assert plan.template
    assert plan.template.launch.resources.accelerators == 0
    assert plan.placed
    assert "has accelerators, and gpu: 0 asks for none" in [each.reason for each in plan.placed.refused]


def test_an_engine_that_needs_an_accelerator_is_told_so_where_none_is_asked_for() -> None:
    with pytest.raises(NothingFits) as caught:
        planned(SMALL + "engine: vllm\nresources: {gpu: 0}\n", laptop())
    assert caught.value.fix == "serve a small model from a CPU with engine: transformers, or leave gpu: 0 out"


def test_a_place_without_images_runs_what_it_has_installed() -> None:
    plan = planned(SMALL + "engine: transformers\nbackends: [process]\nport: 8123\n", laptop())
    assert plan.template
    launch = plan.template.launch
    assert (launch.image, launch.mounts, launch.entrypoint) == (None, (), ("transformers", "serve"))
    assert [(p.container, p.host) for p in launch.ports] == [(8123, 8123)]
    assert "8123" in launch.command
    assert not any(value.startswith("/root/") for _, value in launch.env)


def test_a_local_model_is_mounted_in_a_container_and_read_in_place_without_one() -> None:
    text = "type: service\nname: small\nmodel: {model}\nengine: transformers\nbackends: [{where}]\n"
    facts = world().facts
    here = replace(
        laptop(), facts=lambda model: facts(model.model_copy(update={"id": "Qwen/Qwen2.5-0.5B-Instruct"}))
    )
    in_docker, bare = (
        planned(text.format(model="/models/small", where=w), here).template for w in ("docker", "process")
    )
    assert in_docker
    assert bare
    mounts = {m.target: m.source for m in in_docker.launch.mounts}
    assert mounts["/modelyard/model"] == "/models/small"
    assert "/models/small" in bare.launch.command


def test_without_that_engine_the_way_to_it_is_named() -> None:
    with pytest.raises(NothingFits) as caught:
        planned(SMALL, laptop())
    assert caught.value.fix
    assert "engine: transformers" in caught.value.fix


def test_a_model_beyond_the_memory_is_refused() -> None:
    text = SMALL.replace("Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-7B") + "engine: transformers\n"
    with pytest.raises(NothingFits) as caught:
        planned(text, laptop(8 * GIB))
    assert {r.reason: r.offers for r in caught.value.refused}["too little device memory"] == 1
