"""What a project's runs count for: where they are, and where they may still go."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from orchestrator.backend import Launch, Offer, Rent, Resources
from orchestrator.errors import Denied
from orchestrator.reconcile import Job, JobState, Run, Template
from orchestrator.server.limits import Prices, gpus_of, require_limits
from orchestrator.store.values import Limits, Project
from tests.store.values import T0

CHEAP = Rent("g6.xlarge", "east", price_usd_hour=1.0, accelerator="L4-24GB", accelerators=1)
DEAR = Rent("p5.8xlarge", "east", price_usd_hour=9.0, accelerator="H100-80GB", accelerators=8)
GONE = replace(CHEAP, instance_type="g5.xlarge", price_usd_hour=2.0)
LAUNCH = Launch(
    "web-0-0-0", "web", resources=Resources(accelerator="L4-24GB", accelerators=1), spec_hash="5pec"
)


def rented(*rents: Rent, replicas: int = 1, nodes: int = 1) -> Template:
    return Template(LAUNCH, ("cloud",) * len(rents), rents=rents, replicas=replicas, nodes=nodes)


def offered(*rents: Rent, at: float = 1.0) -> list[Offer]:
    return [
        Offer(
            "cloud", rent.instance_type, 4.0, 2**34, region=rent.region, accelerator=rent.accelerator,
            count=rent.accelerators, price_usd_hour=rent.price_usd_hour * at,
        )
        for rent in rents
    ]  # fmt: skip


def a_run(template: Template) -> Run:
    spec = json.dumps({"type": "task", "name": "web", "commands": ["a"], "image": "a"})
    return Run("id-web", "web", "task", spec, "5pec", template, T0, plan='{"price_usd_hour": 1.0}')


def a_job(rent: Rent, state: JobState, *, node: int = 0, spec_hash: str = "5pec") -> Job:
    return Job("id-web", f"web-0-{node}-0", 0, node, 0, spec_hash, "cloud", state, T0, rent=rent)


def cost(run: Run, jobs: Sequence[Job], offers: Sequence[Offer]) -> float:
    """Return what a run counts for: the least limit that lets it be."""

    def may_be(usd_hour: float) -> bool:
        project = Project("lab", T0, Limits(usd_hour=usd_hour))
        try:
            require_limits(project, [run], (), offers=lambda: offers, jobs=lambda _: {run.id: jobs})
        except Denied:
            return False
        return True

    return next(float(dollars) for dollars in range(100) if may_be(dollars))


def test_a_machine_that_is_no_longer_offered_counts_what_was_planned() -> None:
    assert Prices(offered(CHEAP)).usd_hour_of(rented(GONE)) == 2.0
    assert cost(a_run(rented(GONE)), [a_job(GONE, JobState.RUNNING)], []) == 2.0


def test_a_machine_that_is_offered_counts_what_it_costs_now() -> None:
    assert Prices(offered(CHEAP, at=3.0)).usd_hour_of(rented(CHEAP)) == 3.0


def test_of_one_that_has_no_place_yet_the_dearest_try_counts() -> None:
    assert Prices(offered(CHEAP, DEAR)).usd_hour_of(rented(CHEAP, DEAR, GONE, nodes=2)) == 18.0


@pytest.mark.parametrize(
    ("jobs", "costs"),
    [
        ([a_job(CHEAP, JobState.RUNNING)], 1.0),
        ([a_job(DEAR, JobState.STARTING)], 9.0),
        ([a_job(CHEAP, JobState.PROVISIONING)], 9.0),
        ([a_job(CHEAP, JobState.FAILED)], 9.0),
        ([a_job(CHEAP, JobState.RUNNING, spec_hash="0ld")], 9.0),
        ([], 9.0),
    ],
    ids=["cheap", "dear", "asked for", "ended", "of another spec", "none"],
)
def test_one_that_has_its_place_counts_what_that_costs(jobs: Sequence[Job], costs: float) -> None:
    assert cost(a_run(rented(CHEAP, DEAR)), jobs, offered(CHEAP, DEAR)) == costs


def test_replicas_that_are_still_to_come_count_beside_those_that_are_there() -> None:
    run = a_run(rented(CHEAP, DEAR, replicas=3))

    assert cost(run, [a_job(CHEAP, JobState.READY)], offered(CHEAP, DEAR)) == 19.0


def test_every_node_of_a_replica_counts() -> None:
    run = a_run(rented(CHEAP, DEAR, nodes=2))
    jobs = [a_job(CHEAP, JobState.RUNNING, node=node) for node in (0, 1)]

    assert cost(run, jobs, offered(CHEAP, DEAR)) == 2.0
    assert cost(run, [jobs[0], replace(jobs[1], state=JobState.PROVISIONING)], offered(CHEAP, DEAR)) == 18.0


def test_of_ones_own_machines_the_dearest_that_holds_it_counts_and_a_silent_place_what_was_planned() -> None:
    template = Template(LAUNCH, ("rack",))
    hosts = [
        Offer("rack", host, 4.0, 2**34, accelerator="L4-24GB", count=8, divisible=True, own_usd_hour=each)
        for host, each in (("a", 0.5), ("b", 2.0))
    ]

    assert Prices(hosts).usd_hour_of(template, planned=0.5) == 2.0
    assert Prices([]).usd_hour_of(template, planned=0.5) == 0.5


def test_the_gpus_of_a_machine_that_is_rented_whole_count() -> None:
    assert gpus_of(rented(CHEAP, DEAR)) == 8
