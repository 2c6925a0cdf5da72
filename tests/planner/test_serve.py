"""Serving a model: every model is placed or refused with a reason, in one way, and in time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.backend import Can, Offer
from orchestrator.catalog import accelerators, model, models, prices
from orchestrator.catalog.values import ModelFacts
from orchestrator.errors import NothingFits
from orchestrator.planner import serve
from orchestrator.planner.choose import choose
from orchestrator.planner.demand import AcceleratorDemand, Demand, Span
from orchestrator.planner.explain import explain
from orchestrator.planner.groups import any_of, group
from orchestrator.planner.index import OfferIndex
from orchestrator.planner.parallelism import Degrees, Layout
from orchestrator.planner.plan import SHOWN, Placed, Sort
from orchestrator.planner.question import Question, question_of
from orchestrator.planner.serve import Served, place_model
from orchestrator.planner.throughput.work import work
from orchestrator.planner.why import elsewhere
from orchestrator.render.plans import _offers
from orchestrator.spec.models import Model, Service, Traffic
from orchestrator.units import GB, GIB

ABLE = frozenset(Can)
POOL = ("T4-16GB", "L4-24GB", "RTX4090-24GB", "A100-80GB", "H100-80GB", "MI300X-192GB", "TPU-V6E")
LLAMA = "meta-llama/Llama-3.1-8B-Instruct"


def offer(name: str, count: int = 1, *, price: float = 1.0, backend: str = "cloud", **more: object) -> Offer:
    device = accelerators()[name]
    return Offer(
        backend, f"{name}-{count}", cpu=16 * count, memory_bytes=128 * GIB * count, accelerator=name,
        vendor=device.vendor, count=count, vram_bytes=device.visible_bytes,
        compute_capability=device.capability, price_usd_hour=price * count,
        **more,  # type: ignore[arg-type]  # fields of an offer, by name
    )  # fmt: skip


EVERYTHING = [
    offer(name, count, price=accelerators()[name].visible_bytes / GIB / 40)
    for name in (*POOL, "V100-32GB", "L40S-48GB", "H200-141GB", "B200-180GB", "MI210-64GB", "GAUDI3-128GB")
    for count in (1, 8)
]
"""A kind of every family and generation."""
INDEX = OfferIndex(EVERYTHING)


def facts_of(id: str) -> ModelFacts:
    found = model(id)
    assert found is not None, id
    return found


def question(
    id: str = LLAMA, *, precision: str = "auto", context: int | None = 8192, args: tuple[str, ...] = ()
) -> Question:
    spec = Model.model_validate({"id": id, "precision": precision, "context": context})
    # a token is at hand: that a model is gated is no matter of its size
    secrets = (("HF_TOKEN", "HF_TOKEN"),)
    return Question(facts_of(id), spec, Traffic(), args=args, secrets=secrets)


def placed(
    offers: Sequence[Offer] | OfferIndex, asked: Question | None = None, **demand: object
) -> tuple[Placed, Served]:
    index = offers if isinstance(offers, OfferIndex) else OfferIndex(offers)
    places = {o.backend: ABLE for o in index.offers}
    wanted = replace(Demand(places=places), **demand)  # type: ignore[arg-type]  # fields of a demand, by name
    return place_model(asked or question(), wanted, index, accelerators(), what="service 'x'")


def test_a_machine_of_ones_own_is_chosen_and_tried_by_what_its_owner_counts() -> None:
    def rack(name: str, usd: float) -> Offer:
        one = offer("H100-80GB", 8, price=0.0, backend=name, own_usd_hour=usd, divisible=True)
        return replace(one, instance_type=name)

    dear = [rack(f"dear{at}", 5.0) for at in range(SHOWN)]
    where, _ = placed([*dear, rack("cheap", 2.0), offer("H100-80GB", price=1.5)])
    assert (where.choices[0].offer.backend, where.choices[0].price_usd_hour) == ("cloud", 1.5)
    assert where.backends == ("cloud", "cheap", *(each.backend for each in dear))
    where, _ = placed([*dear, rack("cheap", 2.0)])
    assert (where.choices[0].offer.backend, where.choices[0].price_usd_hour) == ("cheap", 2.0)
    assert where.backends[0] == "cheap"


@pytest.mark.parametrize("precision", ["bf16", "fp8", "int4"])
@pytest.mark.parametrize("context", [8192, 32768, None])
def test_every_model_is_placed_or_refused_with_a_reason(precision: str, context: int | None) -> None:
    for id, facts in models().items():
        least = min(context, facts.context or context) if context else None
        asked = question(id, precision=precision, context=least)
        fix, fell, fits = outcome(asked)
        assert fits or fix, id
        assert fell == len(EVERYTHING), id


def outcome(asked: Question) -> tuple[str | None, int, bool]:
    """Return the advice of a refusal, the offers that were told of, and whether the model fits."""
    try:
        found, served = placed(INDEX, asked)
    except NothingFits as error:
        return error.fix, sum(r.offers for r in error.refused), False
    told = found.fitting + sum(r.offers for r in found.refused)
    return None, told, served.size.fits and bool(served.launch.command)


@settings(max_examples=40, deadline=None)
@given(st.permutations(range(len(POOL) * 4)))
def test_a_plan_does_not_depend_on_the_order_of_offers(order: list[int]) -> None:
    offers = [
        offer(name, count, backend=backend) for name in POOL for count in (1, 8) for backend in ("aws", "gcp")
    ]

    found, served = placed([offers[at] for at in order])

    expected, expected_served = placed(offers)
    assert (found, served) == (expected, expected_served)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(POOL),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([LLAMA, "Qwen/Qwen3-14B", "google/gemma-3-27b-it", "openai/gpt-oss-20b"]),
    st.integers(min_value=0, max_value=64),
)
def test_more_memory_never_turns_a_fit_into_a_refusal(name: str, count: int, id: str, more: int) -> None:
    device = accelerators()[name]
    larger = replace(device, visible_bytes=device.visible_bytes + more * GIB)

    def fits(catalog: dict[str, object]) -> bool:
        index = OfferIndex([offer(name, count)])
        demand = Demand(places={"cloud": ABLE})
        try:
            place_model(question(id), demand, index, catalog, what="x")  # type: ignore[arg-type]  # a catalog
        except NothingFits:
            return False
        return True

    assert fits({name: larger}) or not fits({name: device})


def test_16_bits_left_open_are_fp16_where_there_is_no_bf16() -> None:
    _, served = placed([offer("T4-16GB", 4)], question("Qwen/Qwen3-8B"))

    assert served.job.precision == "fp16"
    assert "float16" in served.launch.command
    assert served.notes[0] == "fp16 in place of bf16, which T4-16GB does not compute"


@pytest.mark.parametrize(("name", "format_"), [("T4-16GB", "fp16"), ("A100-80GB", "bf16")])
def test_the_arithmetic_names_a_format_that_the_device_has(name: str, format_: str) -> None:
    found, served = placed([offer(name)], question("Qwen/Qwen2.5-1.5B-Instruct"))
    (first,) = (line for line in explain(served, Traffic(), found.choices[0]) if line.what == "first token")
    assert first.how.endswith(f"in {format_}")


def test_equal_offers_go_by_the_preference_of_backends() -> None:
    offers = [offer("H100-80GB", backend=name) for name in ("aws", "onprem")]

    found, _ = place_model(
        question(), Demand(places={"onprem": ABLE, "aws": ABLE}),
        OfferIndex(offers, preference=["onprem", "aws"]), accelerators(), what="x",
    )  # fmt: skip

    assert [c.offer.backend for c in found.choices] == ["onprem", "aws"]
    assert found.backends == ("onprem", "aws")


def test_what_was_not_shown_is_counted() -> None:
    found, _ = placed([offer("H100-80GB", price=1 + n / 10) for n in range(20)])

    assert len(found.choices) == 5
    assert found.fitting == 20
    assert [c.price_usd_hour for c in found.choices] == [1.0, 1.1, 1.2, 1.3, 1.4]


def test_published_weights_win_over_lowered_ones_whatever_they_cost() -> None:
    _, served = placed([offer("L40S-48GB", price=9.0), offer("RTX4080-16GB", price=0.1)])

    assert served.accelerator.name == "L40S-48GB"
    assert served.lowered == ""


@pytest.mark.parametrize(("sort", "best"), [("price", "RTX4090-24GB"), ("throughput", "H100-80GB")])
def test_what_is_best_is_what_was_asked_for(sort: str, best: str) -> None:
    offers = [offer("RTX4090-24GB", 2, price=0.3), offer("H100-80GB", 2, price=9.0)]

    found, _ = place_model(
        question(), Demand(places={"cloud": ABLE}), OfferIndex(offers), accelerators(), what="x",
        sort=sort,  # type: ignore[arg-type]  # one of the three words
    )  # fmt: skip

    assert found.choices[0].offer.accelerator == best


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([LLAMA, "Qwen/Qwen3-14B", "openai/gpt-oss-20b"]),
    st.sampled_from(["price", "throughput", "latency"]),
    st.sampled_from([Traffic(), Traffic(concurrency=200), Traffic(output_tokens=1), Traffic(input_tokens=1)]),
    st.sampled_from(["auto", "transformers"]),
    st.lists(st.sampled_from([0.0, 0.3, 1.0, 9.0]), min_size=len(EVERYTHING), max_size=len(EVERYTHING)),
)
def test_the_first_choices_are_those_of_asking_every_group_how_fast_it_is(
    id: str, sort: Sort, load: Traffic, engine: str, prices: list[float]
) -> None:
    asked = replace(question(id), traffic=load, engine=engine)
    offers = [replace(o, price_usd_hour=price) for o, price in zip(EVERYTHING, prices, strict=True)]
    demand, known = Demand(places={"cloud": ABLE}, accelerator=any_of(None)), accelerators()
    fitting = OfferIndex(offers).match(demand).fitting
    options = serve._options(asked, demand, group(fitting, demand, known), known)

    found = serve._best(asked, options, sort=sort)

    each = [ranked for option in options for ranked in option.ranked(asked, sort=sort)]
    assert found == sorted(each, key=lambda ranked: ranked.key)[:SHOWN]


@pytest.mark.parametrize("id", [LLAMA, "Qwen/Qwen3-14B-AWQ", "openai/gpt-oss-20b", "Qwen/Qwen3-30B-A3B-FP8"])
@pytest.mark.parametrize("kv_cache", ["auto", "fp8"])
def test_devices_of_a_kind_are_served_as_if_each_were_asked_about(id: str, kv_cache: str) -> None:
    asked = question(id)
    asked = replace(asked, model=asked.model.model_copy(update={"kv_cache": kv_cache}))
    found = choose(asked.facts, asked.job, list(accelerators().values()))
    counted = {c.needs.job.precision: work(asked.facts, c.needs.job.precision) for c in found.candidates}
    known = serve._Known(counted)

    shared = [serve._fit_of(asked, each, known) for each in found.candidates]

    alone = [serve._fit_of(asked, each, serve._Known(counted)) for each in found.candidates]
    # one by one: to draw how two lists of all answers differ takes pytest seconds
    assert all(one == other for one, other in zip(shared, alone, strict=True))
    assert len(known.engines) < len([fit for fit in alone if not isinstance(fit, str)]) / 2


def test_several_machines_are_taken_only_where_a_backend_joins_them() -> None:
    asked = question("meta-llama/Llama-3.1-405B-Instruct", precision="bf16")
    offers = [offer("H100-80GB", 8, available=2)]

    found, served = placed(offers, asked)

    assert (found.choices[0].nodes, served.layout.nodes) == (2, 2)
    with pytest.raises(NothingFits):
        placed(offers, asked, places={"cloud": ABLE - {Can.NODES}})
    with pytest.raises(NothingFits):
        placed([replace(offers[0], available=1)], asked)


def test_machines_of_ones_own_are_as_many_as_there_are_offers() -> None:
    asked = question("meta-llama/Llama-3.1-405B-Instruct", precision="bf16")
    own = [offer("H100-80GB", 8, available=1, divisible=True)] * 2

    _, served = placed(own, asked)

    assert served.layout.nodes == 2
    with pytest.raises(NothingFits):
        placed([own[0], replace(own[1], count=4)], asked)


def test_a_slice_is_taken_whole_and_other_machines_are_none() -> None:
    """405B takes 16 chips of v5p: those of one slice share tensors, and four machines apart are not one."""
    asked = question("meta-llama/Llama-3.1-405B-Instruct", precision="bf16")
    apart = offer("TPU-V5P", 4, available=4)
    joined = replace(apart, instance_type="slice", nodes=4)

    found, served = placed([apart, joined], asked)

    assert [each.offer.instance_type for each in found.choices] == ["slice"]
    assert (str(served.layout), served.layout.nodes, served.layout.count) == ("tensor 16", 4, 4)
    for too_few in ([apart], [replace(joined, nodes=2)], [replace(joined, available=3)]):
        with pytest.raises(NothingFits):
            placed(too_few, asked)


def test_why_not_names_the_smallest_change_of_every_group() -> None:
    asked = question(precision="bf16", context=32768)

    alone = {"cloud": ABLE - {Can.NODES}}

    found, _ = placed([offer("H200-141GB"), offer("RTX4090-24GB", price=0.4)], asked, places=alone)

    assert [(w.accelerator, w.count, w.offers) for w in found.why_not()] == [("RTX4090-24GB", 1, 1)]
    assert found.why_not()[0].change.startswith("context ")


def test_why_not_counts_what_the_job_would_pay_of_a_machine_of_ones_own() -> None:
    rack = offer("T4-16GB", 4, price=0.0, backend="rack", own_usd_hour=0.3, divisible=True)
    found, _ = placed([rack, offer("H100-80GB", 8)], question(L70_FP8))
    prices = {w.count: w.price_usd_hour for w in found.why_not() if w.accelerator == "T4-16GB"}
    assert prices == pytest.approx({1: 0.3, 2: 0.6, 4: 1.2})


def test_why_not_admits_what_costs_too_much_with_a_higher_max_price() -> None:
    offers = [offer("L40S-48GB", price=1.0), offer("H100-80GB", price=4.0), offer("T4-16GB", price=9.0)]

    found, _ = placed(offers, places={"cloud": ABLE - {Can.NODES}}, max_price_usd_hour=2.0)

    changes = {w.accelerator: w.change for w in found.why_not() if w.reason == "over max_price"}
    assert changes == {"H100-80GB": "max_price 4"}


def test_a_change_that_is_named_admits_the_group() -> None:
    asked = question(precision="bf16", context=65536)
    group = offer("L4-24GB")
    alone = {"cloud": ABLE - {Can.NODES}}
    with pytest.raises(NothingFits) as caught:
        placed([group], asked, places=alone)
    field, value = caught.value.why_not[0].change.split()

    assert field == "context"
    assert placed([group], question(precision="bf16", context=int(value)), places=alone)


def test_where_nothing_fits_the_cheapest_row_of_the_price_list_is_named() -> None:
    demand, index = Demand(places={"cloud": ABLE}), OfferIndex([offer("T4-16GB")])
    asked = question("meta-llama/Llama-3.1-70B-Instruct")
    with pytest.raises(NothingFits) as caught:
        place_model(asked, demand, index, accelerators(), what="service 'x'", prices=prices())

    assert "price as of 20" in caught.value.elsewhere
    assert "$" in caught.value.elsewhere


def wanted(name: str, count: int = 1) -> AcceleratorDemand:
    return AcceleratorDemand(frozenset({name}), count=Span(count, count))


@pytest.mark.parametrize(
    ("id", "accelerator"),
    [
        ("Qwen/Qwen2.5-7B-Instruct-AWQ", "GAUDI3-128GB"),
        ("Qwen/Qwen2.5-7B-Instruct-AWQ", "TPU-V6E"),
        ("openai/gpt-oss-120b", "GAUDI3-128GB"),
        ("openai/gpt-oss-120b", "TPU-V6E"),
    ],
)
def test_a_format_that_no_engine_makes_of_the_weights_is_not_advised(id: str, accelerator: str) -> None:
    with pytest.raises(NothingFits) as caught:
        placed([offer(accelerator, 8)], question(id), places={"cloud": ABLE - {Can.NODES}})
    assert not [each.change for each in caught.value.why_not if each.change]
    assert f"8 × {accelerator} has no " in (caught.value.fix or "")


@pytest.mark.parametrize(
    ("accelerator", "count", "engine", "context", "change"),
    [
        ("V100-32GB", 1, "auto", 8192, ""),  # four would hold it, and vLLM needs capability 7.5
        ("TRAINIUM2-96GB", 1, "auto", 40960, ""),  # nobody has an image for it
        ("MI210-64GB", 1, "sglang", 40960, ""),  # SGLang is not built for gfx90a
        ("W7900-48GB", 2, "auto", None, "gpu W7900-48GB:4"),  # no fp8 KV cache on gfx1100
    ],
)
def test_a_change_with_which_no_engine_serves_is_not_advised(
    accelerator: str, count: int, engine: str, context: int | None, change: str
) -> None:
    asked = replace(question("Qwen/Qwen3-32B", context=context), engine=engine)
    offers = [offer(accelerator, count), offer("K80-12GB", 4)]
    with pytest.raises(NothingFits) as caught:
        placed(offers, asked, places={"cloud": ABLE - {Can.NODES}})
    assert {each.accelerator: each.change for each in caught.value.why_not}[accelerator] == change
    assert ("would hold it with" in (caught.value.fix or "")) is bool(change)


@pytest.mark.parametrize(
    ("id", "accelerator", "engine", "change"),
    [
        (
            "Qwen/Qwen3-14B-FP8",
            "MI210-64GB",
            "sglang",
            "",
        ),  # it has no fp8, and SGLang is not built for gfx90a
        ("Qwen/Qwen3-14B-FP8", "MI210-64GB", "vllm", "model made in int4"),
        ("Qwen/Qwen3-14B", "A10-24GB", "vllm", "model made in int4"),
        ("Qwen/Qwen3-14B", "A10-24GB", "transformers", "precision int4"),  # which makes it while it loads
    ],
)
def test_four_bits_are_advised_where_an_engine_serves_them(
    id: str, accelerator: str, engine: str, change: str
) -> None:
    offers, asked = [offer(accelerator)], replace(question(id, context=2048), engine=engine)
    with pytest.raises(NothingFits) as caught:
        placed(offers, asked, places={"cloud": ABLE - {Can.NODES}})
    assert [each.change for each in caught.value.why_not] == [change]


def test_the_engine_that_is_chosen_is_the_one_that_is_sized() -> None:
    """vLLM makes no 4-bit weights, transformers does: what it takes is not what vLLM would."""
    asked = question("Qwen/Qwen2.5-72B-Instruct", precision="int4", context=5120)
    _, found = placed([offer("H100-80GB")], asked)
    _, named = placed([offer("H100-80GB")], replace(asked, engine="transformers"))
    assert (found.engine, found.job.engine) == ("transformers", "transformers")
    assert (found.size, found.launch) == (named.size, named.launch)


def test_an_offer_for_less_than_was_published_says_so() -> None:
    """It comes after the others however cheap: a reader who compares prices has to see why."""
    offers = [offer("H100-80GB", 8, price=1.0), offer("MI300X-192GB", 8, price=9.0)]
    found, _ = placed(
        offers, question("meta-llama/Llama-3.1-405B-Instruct"), places={"cloud": ABLE - {Can.NODES}}
    )
    told = [(each.offer.accelerator, each.lowered, each.chosen) for each in found.choices]
    assert told == [("MI300X-192GB", "", True), ("H100-80GB", "fp8", False)]
    shown = list(_offers(found))
    assert ["in fp8" in line for line in shown[:2]] == [False, True]


def test_a_context_that_args_stretch_is_the_models() -> None:
    """Qwen3 has 40,960 tokens, and 131,072 by YaRN as its card says."""
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    spec = Service.model_validate({
        "type": "service", "name": "x", "model": {"id": "Qwen/Qwen3-8B", "context": 131072},
        "args": {"hf_overrides": {"rope_scaling": rope}},
    })  # fmt: skip
    asked = question_of(spec, model("Qwen/Qwen3-8B"))
    assert asked.objections(None, accelerators()) == ()
    _, served = placed([offer("MI300X-192GB", 8)], asked)
    assert (served.job.context, served.engine) == (131072, "vllm")


def test_an_engine_of_one_node_is_told_what_one_node_lacks() -> None:
    asked = replace(question(), engine="nim", secrets=(("HF_TOKEN", "x"), ("NGC_API_KEY", "x")))
    with pytest.raises(NothingFits) as caught:
        placed([offer("T4-16GB")], asked)
    assert [(each.reason, each.offers) for each in caught.value.refused] == [("too little device memory", 1)]


@pytest.mark.parametrize("count", [1, 4])
def test_the_price_list_is_read_for_as_many_accelerators_as_are_asked_for(count: int) -> None:
    job = serve.ServingJob(precision="bf16", context=8192)
    asked = wanted("L40S-48GB", count)
    said = elsewhere(facts_of("Qwen/Qwen3-32B"), job, asked, accelerators(), prices())
    if count == 1:  # it is too small: what will do is another number
        assert " would hold it with gpu L40S-48GB:" in said
    else:
        assert said.startswith("4 × L40S-48GB would hold it: ")


@pytest.mark.parametrize(
    ("usd", "said"), [(1.4, "1.4"), (1234567.25, "1234567.25"), (3 * 0.1, "0.3"), (1e-5, "0.00001")]
)
def test_a_price_to_allow_is_written_as_a_spec_takes_it(usd: float, said: str) -> None:
    one = offer("H100-80GB", price=usd)
    with pytest.raises(NothingFits) as caught:
        placed([one], max_price_usd_hour=usd / 2)
    assert (caught.value.fix or "").endswith(f"with max_price {said}")
    assert placed([one], max_price_usd_hour=float(said))


@pytest.mark.parametrize(
    ("id", "precision", "context", "accelerator", "args", "said"),
    [
        ("meta-llama/Llama-3.1-70B-Instruct", "bf16", 8192, "RTX4090-24GB", (), "131.4 GiB of weights"),
        (LLAMA, "bf16", 8192, None, ("--tensor-parallel-size", "3"), "32 attention heads do not divide by 3"),
        (LLAMA, "fp8", 8192, "V100-16GB", (), "V100-16GB neither computes nor widens fp8"),
        (LLAMA, "bf16", 200000, None, (), "a context of 200,000 is beyond the model's 131,072"),
        (LLAMA, "bf16", 8192, None, ("--max-model-len", "4k"), "4,000 tokens, fewer than the context of"),
        (LLAMA, "bf16", None, None, ("--max-model-len=1k",), "1,000 tokens, fewer than the traffic's 1,800"),
        (LLAMA, "bf16", 8192, None, ("--max-num-seqs", "8"), "8 requests at once, fewer than the traffic"),
        (LLAMA, "bf16", 8192, None, ("--max-model-len", "200k"), "context of 200,000 is beyond the model"),
    ],
)
def test_contradictions_are_told_with_their_numbers(
    id: str, precision: str, context: int, accelerator: str | None, args: tuple[str, ...], said: str
) -> None:
    asked = question(id, precision=precision, context=context, args=args)
    demand = wanted(accelerator) if accelerator else None

    found = asked.objections(demand, accelerators())

    assert any(said in each.text for each in found)


@pytest.mark.parametrize(
    ("context", "said"),
    [
        (8000, ()),
        (4096, ("requests of 8,000 tokens are beyond a context of 4,096",)),
        (None, ()),
    ],
)
def test_a_stated_load_that_no_request_can_be_is_told(context: int | None, said: tuple[str, ...]) -> None:
    load = Traffic(input_tokens=6000, output_tokens=2000)
    found = replace(question(context=context), traffic=load).objections(None, accelerators())
    assert tuple(each.text for each in found if each.field == "traffic") == said


def test_a_load_beyond_what_the_model_has_is_told_and_one_that_nobody_stated_is_not() -> None:
    asked = question("Qwen/Qwen3-8B", context=None)
    (found,) = replace(asked, traffic=Traffic(input_tokens=60000)).objections(None, accelerators())
    assert found.text == "requests of 60,300 tokens are beyond the model's 40,960"
    assert question("Qwen/Qwen3-8B", context=1024).objections(None, accelerators()) == ()


@pytest.mark.parametrize("name", ["H100-80GB", "L40S-48GB"])
def test_what_fits_contradicts_nothing(name: str) -> None:
    asked = question()

    assert asked.objections(wanted(name), accelerators()) == ()


def test_one_device_that_would_do_is_enough_to_contradict_nothing() -> None:
    asked = question("meta-llama/Llama-3.1-70B-Instruct", precision="bf16")
    either = replace(wanted("RTX4090-24GB", 2), names=frozenset({"RTX4090-24GB", "B200-180GB"}))

    assert asked.objections(either, accelerators()) == ()


def test_a_kv_cache_that_args_and_spec_keep_in_two_ways_is_told() -> None:
    asked = question(args=("--kv-cache-dtype", "bfloat16"))
    asked = replace(asked, model=asked.model.model_copy(update={"kv_cache": "fp8"}))

    (found,) = asked.objections(None, accelerators())

    assert (found.field, found.text) == ("args", "args keep the KV cache in bf16, kv_cache says fp8")


@pytest.mark.parametrize(
    "args", [("--tensor-parallel-size",), ("--tensor-parallel-size", "x"), ("-tp=0",), ("--seed", "2")]
)
def test_arguments_without_a_number_fix_no_degree(args: tuple[str, ...]) -> None:
    assert question(args=args).degrees == Degrees()


def test_arguments_of_another_engine_that_auto_may_take_are_read() -> None:
    assert question(args=("--tp-size", "2")).degrees == Degrees(tensor=2)


def test_what_args_say_of_the_batch_and_the_context_is_what_is_sized() -> None:
    _, plain = placed([offer("H100-80GB")], question(context=8192))
    args = ("--max-num-seqs", "32", "--max-model-len", "9000", "--gpu-memory-utilization", "0.5")

    _, served = placed([offer("H100-80GB")], question(context=8192, args=args))

    assert (served.job.context, served.size.max_num_seqs, served.size.memory_utilization) == (9000, 32, 0.5)
    assert served.size.kv_cache_tokens < plain.size.kv_cache_tokens / 2
    assert served.size.device.activations_bytes < plain.size.device.activations_bytes
    assert not [note for note in served.notes if "replaces" in note]


def test_a_longer_context_in_args_needs_the_memory_for_it() -> None:
    with pytest.raises(NothingFits):
        placed([offer("L4-24GB")], question(context=4096, args=("--max-model-len", "131072")))


def test_degrees_in_args_are_how_the_model_is_cut() -> None:
    args = ("-tp", "2", "-pp", "4")

    _, served = placed([offer("H100-80GB", 8), offer("H100-80GB", 4)], question(args=args))

    assert served.layout == Layout(1, 8, tensor=2, pipeline=4)
    assert served.launch.command.count("--tensor-parallel-size") + served.launch.command.count("-tp") == 1


DEEPSEEK = "deepseek-ai/DeepSeek-V3"


def test_data_ranks_in_args_share_the_experts() -> None:
    _, served = placed([offer("H200-141GB", 8)], question(DEEPSEEK, args=("-dp", "8")))

    assert str(served.layout) == "data 8 x expert 8"
    assert "--enable-expert-parallel" in served.launch.command


def loaded(concurrency: int, *, engine: str = "vllm") -> Question:
    """Return DeepSeek V3 under a load of requests of 32k."""
    return replace(question(DEEPSEEK, context=32768), traffic=Traffic(concurrency=concurrency), engine=engine)


def test_a_cache_that_tensor_ranks_would_repeat_is_spread_over_data_ranks() -> None:
    machines = [offer("H200-141GB", 8)]
    _, few = placed(machines, loaded(16))
    _, many = placed(machines, loaded(64))

    assert str(few.layout) == "tensor 8"
    assert str(many.layout) == "data 8 x expert 8"
    assert many.size.kv_cache_tokens > 4 * few.size.kv_cache_tokens
    assert ("--data-parallel-size", "8") in zip(many.launch.command, many.launch.command[1:], strict=False)
    assert many.speed
    assert many.speed.sequences == 64


def test_a_load_that_data_ranks_hold_contradicts_nothing() -> None:
    assert loaded(64).objections(wanted("H200-141GB", 8), accelerators()) == ()
    assert loaded(512).objections(wanted("H200-141GB", 8), accelerators()) != ()


def test_an_engine_without_data_ranks_takes_another_machine_instead() -> None:
    _, served = placed([offer("H200-141GB", 8)], loaded(64, engine="sglang"))

    assert (served.layout.nodes, served.layout.data) == (2, 1)


L70_FP8 = "meta-llama/Llama-3.1-70B-Instruct"


def refused(offers: list[Offer], asked: Question, **limits: float) -> NothingFits:
    """Return the refusal of a model that no offer holds within ``limits``."""
    demand = Demand(places={"cloud": ABLE}, **limits)  # type: ignore[arg-type]  # a price
    with pytest.raises(NothingFits) as caught:
        place_model(asked, demand, OfferIndex(offers), accelerators(), what="x")
    return caught.value


def test_max_price_counts_every_machine_of_a_replica() -> None:
    one = replace(offer("H100-80GB", 1), price_usd_hour=2.5)
    asked = replace(question(L70_FP8), model=Model(id=L70_FP8, precision="fp8"))
    error = refused([one], asked, max_price_usd_hour=2.5)
    assert error.fix == "1 × H100-80GB × 2 nodes would hold it with max_price 5"
    assert [(w.accelerator, w.change) for w in error.why_not] == [("H100-80GB", "max_price 5")]


def test_a_price_that_is_too_high_is_what_is_said() -> None:
    offers = [
        replace(offer("L4-24GB", 1), price_usd_hour=0.8),
        replace(offer("H100-80GB", 8), price_usd_hour=24.0),
    ]
    error = refused(offers, question(L70_FP8), max_price_usd_hour=1.0)
    assert error.fix == "8 × H100-80GB would hold it with max_price 24"


def test_a_price_of_ones_own_that_is_too_high_is_what_is_said() -> None:
    rack = offer("H100-80GB", 8, price=0.0, own_usd_hour=2.0, divisible=True)
    error = refused([rack], question(), max_price_usd_hour=1.2)
    assert error.fix == "1 × H100-80GB would hold it with max_price 2"
    assert "max_price 2" in [each.change for each in error.why_not]


@pytest.mark.parametrize("own_usd_hour", [0.0, 0.8])
def test_no_price_is_advised_for_what_does_not_hold_the_model(own_usd_hour: float) -> None:
    price = 0.0 if own_usd_hour else 0.8
    one = offer("L4-24GB", 1, price=price, own_usd_hour=own_usd_hour, divisible=own_usd_hour > 0)
    error = refused([one], question(L70_FP8), max_price_usd_hour=0.5)
    assert error.fix == "what is over max_price does not hold it either: allow more places"


@pytest.mark.parametrize("divisible", [True, False])
def test_a_total_of_device_memory_is_kept(divisible: bool) -> None:
    rack = [offer("H100-80GB", n, own_usd_hour=2.0, divisible=divisible) for n in (1, 2, 8)]
    asked = AcceleratorDemand(count=Span(1, 8), total_vram_bytes=Span(160 * GB, 400 * GB))
    found, _ = placed(rack, accelerator=asked)
    counts = {c.count or c.offer.count for c in found.choices}
    assert counts == ({2, 4} if divisible else {2})
    assert "another total of device memory than asked for" in [each.reason for each in found.refused]


@pytest.mark.parametrize(
    ("asked", "fix"),
    [
        (AcceleratorDemand(count=Span(3, 3)), "ask for another count in resources.gpu"),
        (
            AcceleratorDemand(count=Span(1, 8), total_vram_bytes=Span(999 * GB)),
            "ask for another total_memory in resources.gpu",
        ),
    ],
)
def test_what_a_spec_asks_of_accelerators_and_nobody_has_is_what_is_said(
    asked: AcceleratorDemand, fix: str
) -> None:
    demand = Demand(places={"cloud": ABLE}, accelerator=asked)
    with pytest.raises(NothingFits) as caught:
        place_model(question(), demand, OfferIndex([offer("H100-80GB", 8)]), accelerators(), what="x")
    assert caught.value.fix == fix


def test_what_was_named_and_is_there_is_what_is_advised_about() -> None:
    """Many offers of other accelerators say less than the few that have another count."""
    offers = [offer("H100-80GB", 8), *(offer(name) for name in ("T4-16GB", "L4-24GB", "A100-80GB"))]
    asked = AcceleratorDemand(names=frozenset({"H100-80GB"}), count=Span(3, 3))
    with pytest.raises(NothingFits) as caught:
        place_model(
            question(), Demand(places={"cloud": ABLE}, accelerator=asked), OfferIndex(offers), accelerators(),
            what="x",
        )  # fmt: skip
    assert caught.value.fix == "ask for another count in resources.gpu"


@pytest.mark.parametrize(
    ("asked", "fix"),
    [
        (
            {"regions": {"us-eats"}},
            "correct 'regions', or leave it out: modelyard offers tells them",
        ),
        ({"spot": "spot"}, "set spot_policy: auto, which takes either"),
        ({"arch": "arm"}, "leave 'arm' out of resources.cpu"),
        ({"cpu": Span(1000)}, "lower resources.cpu"),
        (
            {"accelerator": AcceleratorDemand(capability=(12, 0))},
            "lower compute_capability in resources.gpu",
        ),
    ],
)
def test_what_a_spec_names_and_nobody_has_is_what_is_advised_about(
    asked: dict[str, object], fix: str
) -> None:
    machines = [
        offer("H100-80GB", region="us-east"),
        Offer("cloud", "cpu", 8, 64 * GIB, region="us-east", price_usd_hour=0.1),
    ]
    demand = replace(Demand(places={"cloud": ABLE}), **asked)  # type: ignore[arg-type]  # its own fields
    with pytest.raises(NothingFits) as caught:
        place_model(question(), demand, OfferIndex(machines), accelerators(), what="x", prices=prices())
    assert caught.value.fix == fix
    if "accelerator" in asked:
        assert "A40" not in caught.value.elsewhere, "which is too old"


@pytest.mark.parametrize(
    ("context", "args", "fix"),
    [
        (200_000, (), "ask for a context of 131,072 at most"),
        (8192, ("-tp", "3"), "leave tensor parallelism out of args: the plan finds it"),
    ],
)
def test_what_no_machine_mends_is_advised_and_no_machine(
    context: int, args: tuple[str, ...], fix: str
) -> None:
    asked, demand = question(context=context, args=args), Demand(places={"cloud": ABLE})
    index = OfferIndex([offer("L4-24GB"), offer("H100-80GB", 8)])
    with pytest.raises(NothingFits) as caught:
        place_model(asked, demand, index, accelerators(), what="x", prices=prices())
    assert (caught.value.fix, caught.value.elsewhere) == (fix, "")


def test_what_no_service_can_say_is_not_advised() -> None:
    error = refused([offer("L4-24GB", 1)], question(L70_FP8))
    assert "nodes" not in (error.fix or "")
    assert not any("nodes" in each.change for each in error.why_not)


def test_where_an_engine_said_no_no_machine_is_advised() -> None:
    asked = replace(question(L70_FP8), secrets=(), args=("--no-such-flag", "1"))
    error = refused([offer("H100-80GB", 8)], asked)
    assert "no-such-flag" in (error.fix or "")
    assert error.elsewhere == ""


def test_a_model_that_embeds_is_planned_by_what_it_reads() -> None:
    where, served = placed(INDEX, question("BAAI/bge-base-en-v1.5", context=None))
    best = where.choices[0]
    assert served.size.device.kv_cache_bytes == 0
    assert ("--runner", "pooling") in zip(served.launch.command, served.launch.command[1:], strict=False)
    assert best.reads
    assert best.output_tokens_s
    assert best.usd_per_million_tokens
    whats = {line.what for line in explain(served, Traffic(), best)}
    assert {"answer", "input"} <= whats
    assert not {"each token", "first token", "output", "KV cache"} & whats


def test_a_user_who_says_pooling_gets_a_plan_of_it() -> None:
    spec = Service.model_validate(
        {"type": "service", "name": "x", "model": LLAMA, "args": {"runner": "pooling"}}
    )
    assert question_of(spec, facts_of(LLAMA)).facts.pools
