"""The plan: what would be done for a spec, where, for how much, and why not elsewhere."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import field
from itertools import islice
from typing import Literal

from orchestrator.backend import Can, Offer
from orchestrator.errors import NothingFits, Position, Refusal, WhyNot
from orchestrator.frozen import frozen
from orchestrator.planner.demand import Demand
from orchestrator.planner.index import Matched, OfferIndex
from orchestrator.planner.match import TOO_FULL
from orchestrator.units import exact_usd, format_usd

Action = Literal["create", "update", "replace", "rerun", "unchanged"]
Sort = Literal["price", "throughput", "latency"]
"""What the best offer for a served model is best in."""

MOST_KINDS = 32
"""Kinds of rented machine that one launch is tried on before it pauses."""

SHOWN = 5
"""Offers a plan lists; the rest is counted."""


@frozen
class Choice:
    """An offer that fits, with what it costs for one replica of the job."""

    offer: Offer
    nodes: int
    price_usd_hour: float
    chosen: bool = False
    usd_per_million_tokens: float | None = None
    """Of output, for a served model at the stated traffic."""
    output_tokens_s: float | None = None
    reads: bool = False
    """Whether those tokens are read, because none comes out: the model pools."""
    count: int | None = None
    """Accelerators of one machine that the job takes; None for as many as the offer has."""
    lowered: str = ""
    """The format the model is served in there, where that is less than was published."""


@frozen
class Placed:
    """Where one spec can go: the offers that fit, best first, and what fell."""

    choices: tuple[Choice, ...]
    fitting: int
    refused: tuple[Refusal, ...]
    backends: tuple[str, ...]
    """Every backend that it is tried on, best first."""
    tries: tuple[Offer, ...] = field(default=(), repr=False, compare=False)
    """Where a launch is tried, in the plan's order: each backend once, and one that rents machines
    once for each kind."""
    why_not: Callable[[], tuple[WhyNot, ...]] = field(default=tuple, repr=False, compare=False)
    """Say of every kind of machine that fell what would admit it; asked only by who explains."""
    tries_usd_hour: tuple[float, ...] = field(default=(), repr=False, compare=False)
    """What one replica costs by the hour at each of ``tries``, for who reviews a saved plan."""


def place(demand: Demand, index: OfferIndex, *, what: str, where: Position | None = None) -> Placed:
    """Choose among the offers for ``demand``.

    Args:
        demand: What one node needs.
        index: All offers.
        what: The spec in words, such as ``service 'chat'``.
        where: Its place in the source.

    Raises:
        NothingFits: every offer was refused; it carries the reasons.
    """
    index = index.roomy(demand)
    matched = index.match(demand)
    if not len(matched.fitting):
        raise NothingFits(
            f"no offer fits {what}",
            needs=demand.summary(),
            refused=matched.refused,
            where=where,
            fix=nowhere(demand, index.offers) or advise(demand, matched),
        )
    cost = demand.costs_usd_hour
    best = [offer for _, offer in islice(matched.fitting.cheapest(cost), SHOWN)]
    choices = tuple(
        Choice(o, demand.nodes, cost(o), o is best[0], count=demand.takes(o) or None if o.divisible else None)
        for o in best
    )
    alike = _alike((offer for _, offer in matched.fitting.cheapest(cost)), best[0], demand)
    tries = tries_of(alike, demand)
    return Placed(
        choices, len(matched.fitting), matched.refused, backends_of(tries), tries,
        tries_usd_hour=tuple(map(cost, tries)),
    )  # fmt: skip


def _alike(offers: Iterable[Offer], chosen: Offer, demand: Demand) -> Iterator[Offer]:
    """Yield the offers that the launch for the chosen one can start on.

    A launch names its accelerators and how many of them it takes; only with a machine that is rented
    for it does it take what that has.
    """

    def asks(offer: Offer) -> tuple[int, str | None]:
        takes = demand.takes(offer)
        return takes, offer.accelerator if takes else None

    asked = asks(chosen)
    for offer in offers:
        if asks(offer) == asked or Can.RENT in demand.places.get(offer.backend, ()):
            yield offer


def nowhere(demand: Demand, offers: Iterable[Offer]) -> str:
    """Say which machines that a spec names are not offered where it wants them; "" where it is not that.

    >>> found = [Offer("aws", "g6.xlarge", 4, 2**34, region="us-east-1")]
    >>> nowhere(Demand(instance_types=frozenset({"g6.xlarge"}), regions=frozenset({"us-west-2"})), found)
    'g6.xlarge is not offered in us-west-2, but in us-east-1'
    >>> nowhere(Demand(regions=frozenset({"eu-west-9"})), found)
    'nothing is offered in eu-west-9, but in us-east-1'
    """
    there = [offer for offer in offers if not demand.backends or offer.backend in demand.backends]
    if not there:
        return ""
    what = "nothing"
    if demand.instance_types:
        what = _names(demand.instance_types)
        there = [offer for offer in there if offer.instance_type in demand.instance_types]
        if not there:
            return f"no place offers {what}: modelyard offers lists what there is"
    for wanted, where in ((demand.regions, "region"), (demand.zones, "zone")):
        places = {str(getattr(offer, where) or "") for offer in there} - {""}
        if wanted and places and not wanted & places:
            told = f"{what} is not offered" if demand.instance_types else f"{what} is offered"
            return f"{told} in {_names(wanted)}, but in {_names(places)}"
        if wanted:
            there = [offer for offer in there if getattr(offer, where) in wanted]
    return ""


def _names(found: Iterable[str]) -> str:
    return ", ".join(sorted(found))


def backends_of(tries: Iterable[Offer]) -> tuple[str, ...]:
    """Return every backend among offers, in their order."""
    return tuple(dict.fromkeys(offer.backend for offer in tries))


def tries_of(offers: Iterable[Offer], demand: Demand) -> tuple[Offer, ...]:
    """Return where a launch is tried, of offers that fit, best first.

    A backend finds room for itself, so that it stands there once, with its best offer; one that
    rents machines is asked for each kind of them.
    """
    rent = {name for name, can in demand.places.items() if Can.RENT in can}
    found: list[Offer] = []
    others: set[str] = set()
    for offer in offers:
        if offer.backend in rent:
            if len(found) - len(others) < MOST_KINDS:
                found.append(offer)
        elif offer.backend not in others:
            others.add(offer.backend)
            found.append(offer)
        if len(found) == len(demand.places) - len(rent) + (MOST_KINDS if rent else 0):
            break
    return tuple(found)


def advise(demand: Demand, matched: Matched) -> str:
    """Return the smallest change that would admit an offer."""
    for _, offer in matched.over_price.cheapest(demand.costs_usd_hour):
        price, count = demand.costs_usd_hour(offer), demand.takes(offer)
        name = f"{count} × {offer.accelerator}" if count else offer.instance_type
        at = f"{name} at ${format_usd(price)}/h on {offer.backend}"
        return f"{at} would fit with max_price {exact_usd(price)}"
    if not matched.refused:
        return "configure a backend: no place offers anything"
    return _advice(matched.refused)


NEEDS_ACCELERATORS = "configure a backend that has accelerators"
_ADVICE = {
    "not in fleets": "apply the fleet first, or correct 'fleets': modelyard fleet list",
    "not in backends": "add a backend to 'backends', or to the configuration",
    "not in regions": "correct 'regions', or leave it out: modelyard offers tells them",
    "not in availability_zones": "correct 'availability_zones', or leave it out",
    "not in instance_types": "correct 'instance_types', or leave it out: modelyard offers tells them",
    "not in the reservation": "correct 'reservation', or leave it out",
    "not spot": "set spot_policy: auto, which takes either",
    "too little memory": "lower resources.memory",
    "too few processors": "lower resources.cpu",
    "too little disk": "lower resources.disk",
    "no accelerator": NEEDS_ACCELERATORS,
    "another accelerator": "name another accelerator in resources.gpu",
    "too little device memory": "lower the memory in resources.gpu",
    "too little device memory in total": "lower total_memory in resources.gpu, or allow a higher count",
    "too little device memory free in total": "stop a run that holds some, or lower total_memory",
    "another count than asked for": "ask for another count in resources.gpu",
    "another total of device memory than asked for": "ask for another total_memory in resources.gpu",
    "too few accelerators": "lower the count in resources.gpu",
    "too few accelerators free": "stop a run that holds some, or lower the count in resources.gpu",
    "price not known": "add its price: modelyard catalog --help",
    "no capacity now": "try again later, or allow another region or backend",
}


_NOT_NAMED = frozenset({
    "another accelerator", "not in backends", "not in fleets", "not in regions", "not in availability_zones",
    "not in instance_types", "not in the reservation", "not spot",
})  # fmt: skip
"""Reasons that the spec itself gives, by naming others; what it named comes first."""


def _named(reason: str) -> str:
    """Return what to do where a spec names what nobody has, in the reason itself.

    >>> _named("not arm"), _named("compute capability below 12.0")
    ("leave 'arm' out of resources.cpu", 'lower compute_capability in resources.gpu')
    """
    if reason.startswith("compute capability below "):
        return "lower compute_capability in resources.gpu"
    arch = reason.removeprefix("not ")
    return f"leave {arch!r} out of resources.cpu" if reason in ("not arm", "not x86") else ""


def _distance(reason: str) -> int:
    """Return how far an offer that fell so is from what is asked for: a lack of memory is nearest."""
    return 2 if reason in _NOT_NAMED or " cannot " in reason else 1 if reason == "no accelerator" else 0


def _advice(refused: Sequence[Refusal]) -> str:
    found = [
        _ADVICE.get(r.reason)
        or _named(r.reason)
        or _unable(r.reason)
        or _joined(r.reason)
        or _held_back(r.reason)
        or _full(r.reason)
        for r in sorted(refused, key=lambda r: _distance(r.reason))
    ]
    return next(filter(None, found), "ask for less, or allow more places")


def _held_back(reason: str) -> str:
    """Return what to do where a person has taken a host out of use.

    >>> _held_back("cordoned: a loud fan"), _held_back("too little memory")
    ('modelyard fleet list shows which; fleet uncordon lets launches start there again', '')
    """
    is_held = reason.startswith(("cordoned", "drained"))
    return (
        "modelyard fleet list shows which; fleet uncordon lets launches start there again" if is_held else ""
    )


def _unable(reason: str) -> str:
    """Return what to do where no place is able to do what a field asks for.

    >>> _unable("process cannot run container images, which image needs")
    "configure a backend that can, such as docker, or leave 'image' out"
    >>> _unable("docker cannot run the nodes of one replica on several machines, which nodes needs")
    "configure a backend that can, such as ssh or kubernetes, or leave 'nodes' out"
    """
    if f" cannot {Can.BARE.value}," in reason:
        return "add image to the spec, or default_image to that backend's configuration"
    found = re.fullmatch(r".+ cannot .+, which (\S+) needs", reason)
    such = "ssh or kubernetes" if f" cannot {Can.NODES.value}," in reason else "docker"
    return f"configure a backend that can, such as {such}, or leave {found[1]!r} out" if found else ""


def _full(reason: str) -> str:
    """Return what to do where a model does not fit on the disk of the machine that runs it."""
    fix = "keep models on a volume of their own (cache_claim of a cluster), or use machines with more disk"
    return fix if reason.startswith(TOO_FULL) else ""


def _joined(reason: str) -> str:
    """Return what to do where machines are taken all at once.

    >>> _joined("one of 4 machines")
    'set nodes: 4, which are one slice'
    """
    found = re.fullmatch(r"one of (\d+) machines", reason)
    return f"set nodes: {found[1]}, which are one slice" if found else ""
