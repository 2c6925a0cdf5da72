"""Ports of a machine that are asked for by number: one replica of a machine can have it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from orchestrator.apply import RunPlan, World, plan_documents
from orchestrator.backend import Can, Offer
from orchestrator.catalog.hardware import known_names
from orchestrator.errors import NothingFits
from orchestrator.spec.load import read
from orchestrator.units import GIB
from tests.places import world

HOST = frozenset(Can) - {Can.GROUPS, Can.RENT, Can.KEEP, Can.HOLD, Can.SCALES}
WEB = (
    "type: service\nname: web\nimage: nginx:1.29\nreplicas: {replicas}\nscaling: {{metric: rps, target: 4}}\n"
)


def machine(name: str, *, place: str = "lab", divisible: bool = True) -> Offer:
    return Offer(place, name, cpu=16, memory_bytes=64 * GIB, divisible=divisible)


def planned(text: str, offers: Sequence[Offer], can: frozenset[Can] = HOST) -> RunPlan:
    documents = read(text, file="web.yaml", known_accelerators=known_names())
    there: World = replace(world(), places={"lab": can}, offers=lambda: offers)
    (plan,) = plan_documents(documents, there)
    assert isinstance(plan, RunPlan)
    return plan


@pytest.mark.parametrize("port", ['port: "8080:80"', 'port: 80\nports: ["8080:90"]'])
def test_fewer_machines_than_replicas_are_refused_at_the_port(port: str) -> None:
    with pytest.raises(NothingFits) as caught:
        planned(WEB.format(replicas="2..3") + port, [machine("one")])
    assert "port 8080" in caught.value.needs
    assert caught.value.where is not None
    assert caught.value.where.line == 5 + port.count("\n") + 1
    assert "from any free port" in (caught.value.fix or "")


def test_a_range_that_machines_do_not_suffice_for_is_told() -> None:
    text = WEB.format(replicas="1..3") + 'port: "8080:80"'
    assert planned(text, [machine("one"), machine("two")]).notes[-1].startswith("of 3 replicas 2 can start")
    three = [machine(name) for name in ("one", "two", "three")]
    assert not [note for note in planned(text, three).notes if "8080" in note]


@pytest.mark.parametrize(
    ("port", "can", "divisible"),
    [
        ("port: 80", HOST, True),
        ('port: "8080:80"', HOST | {Can.RENT}, False),
        ('port: "8080:80"', HOST | {Can.GROUPS}, True),
    ],
)
def test_where_each_replica_has_a_port_of_its_own_nothing_is_said(
    port: str, can: frozenset[Can], divisible: bool
) -> None:
    plan = planned(WEB.format(replicas="2..3") + port, [machine("one", divisible=divisible)], can)
    assert not [note for note in plan.notes if "8080" in note]
