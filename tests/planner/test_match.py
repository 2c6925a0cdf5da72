"""Each reason to refuse, and the index against a plain loop over all offers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from orchestrator.backend import Can, Offer
from orchestrator.catalog import candidates
from orchestrator.errors import NothingFits
from orchestrator.planner.ask import demand_of
from orchestrator.planner.compose import Inputs, compose
from orchestrator.planner.demand import AcceleratorDemand, Demand, Span
from orchestrator.planner.index import OfferIndex
from orchestrator.planner.match import STAGES
from orchestrator.planner.plan import SHOWN, place
from orchestrator.spec.load import read
from orchestrator.spec.models import DevEnvironment, Task
from orchestrator.units import GB, GIB

H100 = Offer(
    "aws", "p5", cpu=192, memory_bytes=2048 * GIB, region="us-east-1", accelerator="H100-80GB",
    vendor="nvidia", count=8, vram_bytes=85_028_634_624, compute_capability=(9, 0), price_usd_hour=98.3,
)  # fmt: skip
OWN = Offer("docker", "vm", cpu=16, memory_bytes=64 * GIB, disk_bytes=500 * GIB, divisible=True)
OWNED = replace(H100, divisible=True, price_usd_hour=0.0, own_usd_hour=2.0)
RENTED = replace(OWN, divisible=False)
TASK = "type: task\nname: t\nimage: x\ncommands: [x]\n"
PLACES = {"docker": frozenset({Can.IMAGES, Can.PORTS}), "aws": frozenset({Can.IMAGES, Can.NODES})}


def why(offer: Offer, demand: Demand) -> str | None:
    """Return the first reason to refuse an offer, by a plain loop."""
    demand = replace(demand, places=demand.places or PLACES)
    return next((r for stage in STAGES if (r := stage.refuse(offer, demand)) is not None), None)


def gpu(**wanted: object) -> Demand:
    return Demand(accelerator=AcceleratorDemand(**{"count": Span(1, 8), **wanted}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("offer", "demand", "reason"),
    [
        (H100, Demand(accelerator=AcceleratorDemand(count=Span(8, 8))), None),
        (H100, Demand(backends=frozenset({"gcp"})), "not in backends"),
        (H100, Demand(needs={Can.PORTS: "port"}), "aws cannot publish ports, which port needs"),
        (H100, replace(gpu(), ordered=True), None),
        (
            H100, Demand(ordered=True, places={"aws": frozenset({Can.GROUPS})}),
            "aws starts all nodes at once, and startup_order does not",
        ),
        (H100, Demand(regions=frozenset({"eu"})), "not in regions"),
        (H100, Demand(zones=frozenset({"a"})), "not in availability_zones"),
        (H100, Demand(instance_types=frozenset({"g5"})), "not in instance_types"),
        (H100, Demand(fleets=frozenset({"rack"})), "not in fleets"),
        (H100, Demand(reservation="r"), "not in the reservation"),
        (replace(H100, reservation="r"), Demand(), "reserved"),
        (H100, Demand(spot="spot"), "not spot"),
        (replace(H100, spot=True), Demand(spot="on-demand"), "spot"),
        (H100, Demand(arch="arm"), "not arm"),
        (OWN, gpu(), "no accelerator"),
        (replace(OWNED, vram_bytes=0, unfit="no label"), gpu(vram_bytes=Span(GB)), "no label"),
        (replace(OWNED, vram_bytes=0), gpu(vram_bytes=Span(GB)), "too little device memory"),
        (replace(OWNED, unfit="cordoned"), gpu(vram_bytes=Span(99 * GB)), "too little device memory"),
        (replace(OWNED, unfit="cordoned"), gpu(), "cordoned"),
        (replace(OWNED, accelerator=None, unfit="no label"), Demand(cpu=Span(999)), "too few processors"),
        (H100, gpu(vendors=frozenset({"amd"})), "not amd"),
        (H100, gpu(names=frozenset({"L4-24GB"})), "another accelerator"),
        (H100, gpu(capability=(10, 0)), "compute capability below 10.0"),
        (H100, gpu(vram_bytes=Span(141 * GB)), "too little device memory"),
        (H100, gpu(vram_bytes=Span(24 * GB, 48 * GB)), "more device memory than asked for"),
        (H100, gpu(vram_bytes=Span(24 * GB, 80 * GB)), None),
        (H100, gpu(count=Span(1, 4)), "more accelerators than asked for"),
        (replace(H100, divisible=True), gpu(count=Span(1, 4)), None),
        (H100, gpu(count=Span(16, 16)), "too few accelerators"),
        (replace(H100, divisible=True, count=0), gpu(), "too few accelerators free"),
        (H100, gpu(total_vram_bytes=Span(1000 * GB)), "too little device memory in total"),
        (H100, gpu(total_vram_bytes=Span(None, 100 * GB)), "more device memory in total than asked for"),
        (OWNED, gpu(total_vram_bytes=Span(160 * GB, 160 * GB)), None),
        (OWNED, gpu(count=Span(1, 1), total_vram_bytes=Span(160 * GB)), "too little device memory in total"),
        (
            replace(OWNED, count=1), gpu(total_vram_bytes=Span(160 * GB)),
            "too little device memory free in total",
        ),
        (
            OWNED, gpu(total_vram_bytes=Span(100 * GB, 120 * GB)),
            "more device memory in total than asked for",
        ),
        (OWNED, replace(gpu(total_vram_bytes=Span(160 * GB)), max_price_usd_hour=3), "over max_price"),
        (H100, Demand(), "has accelerators that are not asked for"),
        (replace(OWNED, kept=True), Demand(), "kept for what asks for its accelerators"),
        (replace(OWNED, kept=True), gpu(), None),
        (OWN, Demand(cpu=Span(32)), "too few processors"),
        (OWN, Demand(memory_bytes=Span(128 * GB)), "too little memory"),
        (OWN, Demand(disk_bytes=Span(1000 * GB)), "too little disk"),
        (
            replace(OWN, fetches=True), Demand(fetch_bytes=510 * GB),
            "too little disk for image and model (505.6 GiB)",
        ),
        (OWN, Demand(fetch_bytes=510 * GB), None),
        (replace(OWN, fetches=True), Demand(fetch_bytes=500 * GB), None),
        (RENTED, Demand(cpu=Span(2, 8)), "more processors than asked for"),
        (RENTED, Demand(memory_bytes=Span(2 * GB, 8 * GB)), "more memory than asked for"),
        (replace(H100, price_list="aws"), gpu(), "price not known"),
        (replace(OWN, available=0), Demand(), "no capacity now"),
        (replace(RENTED, nodes=4), Demand(), "one of 4 machines"),
        (replace(RENTED, nodes=4, available=4), Demand(nodes=4), None),
        (OWNED, replace(gpu(count=Span(4)), max_price_usd_hour=7), "over max_price"),
        (OWNED, replace(gpu(count=Span(3)), max_price_usd_hour=7), None),
        (H100, replace(gpu(), max_price_usd_hour=50.0), "over max_price"),
        (H100, replace(gpu(), nodes=2, max_price_usd_hour=100.0), "over max_price"),
    ],
)  # fmt: skip
def test_an_offer_falls_for_the_reason_it_has(offer: Offer, demand: Demand, reason: str | None) -> None:
    assert why(offer, demand) == reason


def test_every_stage_refuses_something() -> None:
    """A reason that no case above brings about would be a dead stage."""
    said = {case[2] for case in test_an_offer_falls_for_the_reason_it_has.pytestmark[0].args[1]}
    assert (
        len(said - {None}) >= len(STAGES) - 1
    )  # two stages, of rented and of own machines, say "over max_price"


OFFERS = st.builds(
    Offer,
    backend=st.sampled_from(["docker", "aws"]),
    instance_type=st.sampled_from(["a", "b"]),
    cpu=st.sampled_from([2.0, 8.0, 64.0]),
    memory_bytes=st.sampled_from([8 * GIB, 64 * GIB]),
    region=st.sampled_from(["us", "eu"]),
    accelerator=st.sampled_from([None, "H100-80GB", "L4-24GB"]),
    vendor=st.sampled_from([None, "nvidia", "amd"]),
    count=st.sampled_from([0, 1, 8]),
    vram_bytes=st.sampled_from([0, 24 * GIB, 80 * GIB]),
    spot=st.booleans(),
    price_usd_hour=st.sampled_from([0.0, 1.0, 2.5, 90.0]),
    own_usd_hour=st.sampled_from([0.0, 1.5]),
    divisible=st.booleans(),
    available=st.sampled_from([None, 0, 4]),
    disk_bytes=st.sampled_from([None, 100 * GIB, 1000 * GIB]),
    fetches=st.booleans(),
)
DEMANDS = st.builds(
    Demand,
    cpu=st.sampled_from([Span(), Span(4), Span(2, 8)]),
    memory_bytes=st.sampled_from([Span(), Span(16 * GB)]),
    accelerator=st.sampled_from(
        [
            None,
            AcceleratorDemand(),
            AcceleratorDemand(names=frozenset({"L4-24GB"}), count=Span(1, 8)),
            AcceleratorDemand(vram_bytes=Span(40 * GB), count=Span(1)),
            AcceleratorDemand(total_vram_bytes=Span(160 * GB, 180 * GB), count=Span(1, 8)),
        ]
    ),
    nodes=st.sampled_from([1, 2]),
    needs=st.sampled_from([{}, {Can.NODES: "nodes"}]),
    places=st.just(PLACES),
    regions=st.sampled_from([frozenset(), frozenset({"us"})]),
    spot=st.sampled_from(["spot", "on-demand", "auto"]),
    fetch_bytes=st.sampled_from([0, 140 * GB]),
    max_price_usd_hour=st.sampled_from([None, 2.0, 100.0]),
)


def agree(offers: list[Offer], demand: Demand) -> None:
    """Hold the index to what a plain loop says of every offer."""
    matched = OfferIndex(offers).match(demand)
    reasons = [why(offer, demand) for offer in offers]
    fitting = [o for o, reason in zip(offers, reasons, strict=True) if reason is None]
    assert sorted(map(repr, matched.fitting)) == sorted(map(repr, fitting))
    prices = [o.price_usd_hour for o in matched.fitting]
    assert prices == sorted(prices)
    counted = {r.reason: r.offers for r in matched.refused}
    assert counted == {reason: reasons.count(reason) for reason in reasons if reason is not None}


@given(st.lists(OFFERS, max_size=12), DEMANDS)
@example([OWNED, replace(OWNED, price_usd_hour=1.0)], Demand(max_price_usd_hour=2.0, places=PLACES))
def test_the_index_says_what_a_plain_loop_says(offers: list[Offer], demand: Demand) -> None:
    agree(offers, demand)


FOUR = [H100, OWN, replace(H100, region="eu"), replace(H100, price_usd_hour=90.0)]


@given(st.permutations(FOUR))
def test_the_order_of_offers_does_not_matter(offers: list[Offer]) -> None:
    demand = Demand(accelerator=AcceleratorDemand(count=Span(1, 8)), places=PLACES)
    once = place(demand, OfferIndex(offers), what="task 'x'")
    assert once == place(demand, OfferIndex(FOUR), what="task 'x'")
    assert once.choices[0].offer.price_usd_hour == 90.0


PRICED = st.builds(
    lambda kind, backend, usd: replace(kind, backend=backend, **{kind_price(kind): usd}),
    st.sampled_from([OWNED, H100]),
    st.sampled_from(["docker", "aws"]),
    st.sampled_from([1.0, 1.5, 2.0, 9.0]),
)


def kind_price(kind: Offer) -> str:
    """Return the field that says what an offer costs: what is listed, or what its owner counts."""
    return "own_usd_hour" if kind.own_usd_hour else "price_usd_hour"


@given(st.lists(PRICED, min_size=1, max_size=8), st.sampled_from([1, 2]))
@example([OWNED, replace(H100, price_usd_hour=1.5)], 1)
def test_what_costs_least_is_chosen_and_tried_first(offers: list[Offer], nodes: int) -> None:
    demand = replace(gpu(), nodes=nodes, places=PLACES)
    found = place(demand, OfferIndex(offers, preference=tuple(PLACES)), what="task 'x'")

    costs = [(o.price_usd_hour + o.own_usd_hour) * nodes for o in offers]
    assert [choice.price_usd_hour for choice in found.choices] == sorted(costs)[:SHOWN]
    alike = {o.backend for o, cost in zip(offers, costs, strict=True) if cost == min(costs)}
    preferred = next(name for name in PLACES if name in alike)
    assert found.choices[0].chosen
    assert found.choices[0].offer.backend == preferred == found.backends[0] == found.tries[0].backend


def test_a_plan_counts_what_a_job_takes_of_a_machine_of_ones_own() -> None:
    asked = Demand(accelerator=AcceleratorDemand(count=Span(6, 8)), places=PLACES)
    found = place(asked, OfferIndex([OWNED, H100]), what="task 'x'")
    assert [(c.price_usd_hour, c.count) for c in found.choices] == [(12.0, 6), (98.3, None)]


@pytest.mark.parametrize(
    ("total", "machine", "count"),
    [("160GB..", OWNED, 2), ("500GB..", OWNED, 6), ("160GB..", H100, 8), ("40GB..", OWNED, 1)],
)
def test_as_many_are_taken_as_have_the_memory_in_total(total: str, machine: Offer, count: int) -> None:
    (document,) = read(f"{TASK}resources: {{gpu: {{total_memory: {total}, count: 1..8}}}}\n")
    assert isinstance(document.spec, Task)
    demand = demand_of(document.spec, places=PLACES, names=lambda _: [])
    assert demand.summary() == f"accelerator 1..8, {total} in total"

    choice = place(demand, OfferIndex([machine]), what="task 't'").choices[0]
    launch = compose(document.spec, spec_hash="", inputs=Inputs(), offer=choice.offer, demand=demand)
    assert (choice.count or choice.offer.count, launch.resources.accelerators) == (count, count)
    assert choice.price_usd_hour == (2.0 * count if machine.divisible else machine.price_usd_hour)


@pytest.mark.parametrize(
    ("asked", "tries"),
    [
        (AcceleratorDemand(vram_bytes=Span(16 * GB)), ["rack", "barn", "cloud"]),
        (AcceleratorDemand(count=Span(2, 8)), ["rack", "cloud"]),
        (AcceleratorDemand(count=Span(1, 8), total_vram_bytes=Span(40 * GB)), ["rack", "cloud", "cloud"]),
        (AcceleratorDemand(vram_bytes=Span(40 * GB), count=Span(1, 8)), ["lab", "cloud", "cloud"]),
        (None, ["rack", "lab", "barn", "shed"]),
    ],
)
def test_a_launch_is_tried_only_where_it_can_start(asked: AcceleratorDemand | None, tries: list[str]) -> None:
    l4 = replace(OWNED, accelerator="L4-24GB", vram_bytes=24 * GIB, count=4, own_usd_hour=0.5)
    offers = [
        replace(l4, backend="rack"),
        replace(OWNED, backend="lab", own_usd_hour=1.0),
        replace(l4, backend="barn", count=1, own_usd_hour=1.5),
        replace(OWN, backend="shed", own_usd_hour=2.0),
        replace(H100, backend="cloud"),
        replace(H100, backend="cloud", accelerator="A100-80GB", count=1, price_usd_hour=3.0),
    ]
    images = frozenset({Can.IMAGES})
    places = {o.backend: images | {Can.RENT} if o.backend == "cloud" else images for o in offers}
    found = place(Demand(accelerator=asked, places=places), OfferIndex(offers), what="task 't'")
    assert [offer.backend for offer in found.tries] == tries

    (document,) = read(TASK)
    assert isinstance(document.spec, Task)
    demand = Demand(accelerator=asked, places=places)
    launch = compose(document.spec, spec_hash="", inputs=Inputs(), offer=found.tries[0], demand=demand)
    for offer in found.tries:
        if offer.backend != "cloud":
            assert launch.resources.accelerator in (None, offer.accelerator)
            assert launch.resources.accelerators <= offer.count


def test_an_error_says_what_it_needs_what_it_saw_and_what_to_do() -> None:
    demand = Demand(
        accelerator=AcceleratorDemand(count=Span(8, 8), as_written="H100:8"),
        places=PLACES,
        max_price_usd_hour=50,
    )
    with pytest.raises(NothingFits) as caught:
        place(demand, OfferIndex([H100, OWN]), what="service 'chat'")
    assert str(caught.value) == (
        "no offer fits service 'chat'\n"
        "  needs   accelerator H100:8\n"
        "  saw     2 offers: 1 no accelerator, 1 over max_price\n"
        "  fix     8 × H100-80GB at $98.3/h on aws would fit with max_price 98.3"
    )
    assert caught.value.exit_code == 75


@pytest.mark.parametrize(
    ("offers", "count", "fix"),
    [
        ([OWNED, OWN], 1, "1 × H100-80GB at $2/h on aws would fit with max_price 2"),
        ([OWNED, OWN], 3, "3 × H100-80GB at $6/h on aws would fit with max_price 6"),
        (
            [OWNED, replace(OWNED, own_usd_hour=1.5)],
            2,
            "2 × H100-80GB at $3/h on aws would fit with max_price 3",
        ),
        ([OWNED, H100], 8, "8 × H100-80GB at $16/h on aws would fit with max_price 16"),
    ],
)
def test_a_price_of_ones_own_that_is_too_high_is_what_is_said(
    offers: list[Offer], count: int, fix: str
) -> None:
    asked = AcceleratorDemand(count=Span(count, 8))
    demand = Demand(accelerator=asked, places=PLACES, max_price_usd_hour=1.2)
    assert sum(o.accelerator is not None for o in offers) == len(OfferIndex(offers).match(demand).over_price)
    with pytest.raises(NothingFits) as caught:
        place(demand, OfferIndex(offers), what="task 't'")
    assert caught.value.fix == fix


@pytest.mark.parametrize(
    ("gpu", "names", "count"),
    [
        ("tpu:v5litepod-8", {"TPU-V5E"}, Span(8, 8)),
        ("v4-8", {"TPU-V4"}, Span(4, 4)),
        ("mi300x:8", {"MI300X-192GB"}, Span(8, 8)),
        ("A100:80GB:2", {"A100-40GB", "A100-40GB-PCIE", "A100-80GB", "A100-80GB-PCIE"}, Span(2, 2)),
    ],
)
def test_an_accelerators_name_means_what_the_catalog_says(gpu: str, names: set[str], count: Span) -> None:
    (document,) = read(f'type: task\nname: t\ncommands: [x]\nresources: {{gpu: "{gpu}"}}\n')
    assert isinstance(document.spec, Task)
    demand = demand_of(document.spec, places={}, names=lambda name: [d.name for d in candidates(name)])
    assert demand.accelerator
    assert (demand.accelerator.names, demand.accelerator.count) == (names, count)


def test_a_name_that_means_nothing_matches_nothing() -> None:
    (document,) = read("type: task\nname: t\nimage: x\ncommands: [x]\nresources: {gpu: Warp9}\n")
    assert isinstance(document.spec, Task)
    demand = demand_of(document.spec, places=PLACES, names=lambda _: [])
    assert why(H100, demand) == "another accelerator"


@pytest.mark.parametrize("text", ["type: task\nname: t\ncommands: [x]\n", "type: dev-environment\nname: t\n"])
def test_a_place_of_images_is_no_place_for_commands_alone(text: str) -> None:
    (document,) = read(text)
    assert isinstance(document.spec, Task | DevEnvironment)
    images = frozenset({Can.IMAGES, Can.PORTS})
    places = {"docker": images, "default": images | {Can.BARE}, "process": frozenset({Can.BARE, Can.PORTS})}
    demand = demand_of(document.spec, places=places, names=lambda _: [])
    own = {name: replace(OWN, backend=name) for name in places}

    assert [name for name, offer in own.items() if why(offer, demand) is None] == ["default", "process"]
    with pytest.raises(NothingFits) as caught:
        place(demand, OfferIndex([own["docker"]]), what="task 't'")
    assert caught.value.fix == "add image to the spec, or default_image to that backend's configuration"
