"""Fleets of rented machines through a server: the command line over HTTP, the loop in the server."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

import pytest

from orchestrator.apply.planfile import _seal
from orchestrator.errors import StateMoved
from orchestrator.reconcile.steps import Turn
from orchestrator.reconcile.values import Holding
from orchestrator.spec.load import load
from orchestrator.store.values import Limits, Project
from tests.backends.aws.cloud import Cloud
from tests.backends.aws.conftest import account, aws
from tests.backends.aws.test_fleet import apart, fleet, ok, pool, task
from tests.backends.aws.test_story import Prompt, prompt
from tests.backends.ssh.farm import until
from tests.server.conftest import Served

__all__ = ["account", "apart", "aws", "pool", "prompt"]

pytestmark = pytest.mark.docker


@pytest.fixture
def site(prompt: Prompt, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Served:
    """Start a server on the prompt's places, and leave the prompt its address and a token alone.

    It begins after the prompt's folders were made, and so ends before they go.
    """
    places = prompt.folder / "places.yaml"
    (prompt.folder / "config.yaml").rename(places)  # servers of tests have one of that name
    served: Served = request.getfixturevalue("serve")(config=places)
    monkeypatch.delenv("MODELYARD_CONFIG")
    monkeypatch.setenv("MODELYARD_DATABASE_URL", f"sqlite:///{os.devnull}/none")  # nobody looks there
    monkeypatch.setenv("MODELYARD_URL", served.url)
    monkeypatch.setenv("MODELYARD_TOKEN", served.token())
    return served


def test_a_fleet_is_planned_rented_used_grown_given_back_and_deleted(
    site: Served, aws: Cloud, prompt: Prompt, pool: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREETING", "hello")
    path = prompt.folder / pool("0..2", idle="2s")
    path.write_text(path.read_text() + "env: [GREETING]\n")
    (planned,) = prompt.json("plan", "-f", "pool.yaml")["runs"]
    assert planned["nodes"] == {"least": 0, "most": 2}
    price = next(offer["price_usd_hour"] for offer in planned["offers"] if offer["chosen"])
    ok(prompt, "apply", "-y", "-f", "pool.yaml")
    assert ok(prompt, "apply", "-y", "-f", "pool.yaml").startswith("pool  fleet  unchanged")
    assert aws.instances() == []

    (offered,) = prompt.json("plan", "-f", task(prompt, "one"))["runs"]  # what it may still rent
    assert {(one["backend"], one["price_usd_hour"]) for one in offered["offers"]} == {("pool", price)}
    for name in ("one", "two"):
        ok(prompt, "apply", "-y", "-d", "-f", task(prompt, name))
    assert len(aws.instances()) == 2
    assert sorted(host["runs"] for host in fleet(prompt)["hosts"]) == [["one"], ["two"]]
    assert "used by one, two" in ok(prompt, "ps")
    assert prompt("exec", "one", "--", "sh", "-c", '[ "$GREETING" = hello ] && exit 7')[0] == 7
    code, said = prompt("fleet", "delete", "pool", "-y")
    assert (code, "fleet 'pool' is in use: one, two" in said) == (64, True), said

    ok(prompt, "stop", "-y", "one")
    until(lambda: len(aws.instances()) == 1, "the idle machine is given back")
    ok(prompt, "stop", "-y", "two")
    ok(prompt, "fleet", "delete", "pool", "-y")
    assert (aws.instances(), ok(prompt, "fleet", "list")) == ([], "no fleets\n")
    assert site.complaints == []


def test_a_fleet_whose_run_moved_while_it_was_applied_is_applied_by_the_next(
    site: Served, prompt: Prompt, pool: Callable[..., str]
) -> None:
    ok(prompt, "apply", "-y", "-f", pool("0..1"))
    api, store = site.site.api(None), site.site.store
    documents = load([str(prompt.folder / pool("0..2"))])
    plans = api.plan(documents)
    store.commit([Turn(replace(store.run("pool"), since=site.site.clock()), None)])
    with pytest.raises(StateMoved):
        api.apply(plans)

    again = api.plan(documents)
    assert [plan.action for plan in again] == ["update"]
    api.apply(again)
    assert store.run("pool").template.holding == Holding(0, 2, 1, 3600)


def test_what_a_fleet_may_rent_is_held_to_the_projects_dollars_and_its_runs_cost_nothing_more(
    site: Served, prompt: Prompt, pool: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    access, now = site.site.store.access, site.site.clock()
    here = "regions: [us-east-1]\n"  # where all zones have one price

    def write(nodes: str) -> str:
        path = prompt.folder / pool(nodes)
        path.write_text(path.read_text() + here)
        return str(path)

    (planned,) = prompt.json("plan", "-f", write("0..3"))["runs"]
    price = planned["offers"][0]["price_usd_hour"]
    access.put_project(Project("lab", now, Limits(usd_hour=2.5 * price)))
    monkeypatch.setenv("MODELYARD_PROJECT", "lab")
    code, said = prompt("apply", "-y", "-f", "pool.yaml")
    assert (code, "project 'lab' would cost" in said) == (77, True), said
    ok(prompt, "apply", "-y", "-f", write("0..2"))
    one = site.client("admin", "lab")
    one.apply(one.plan(load([str(prompt.folder / task(prompt, "one"))])))  # the fleet pays
    ok(prompt, "delete", "-y", "one")


def test_a_run_that_holds_machines_as_only_a_fleet_does_is_refused(
    site: Served, prompt: Prompt, pool: Callable[..., str]
) -> None:
    at, path = f"{site.url}/v1/projects/main", pool("0..1")
    ok(prompt, "plan", "-f", path)  # which has the user's prices read
    text = (prompt.folder / path).read_text()
    asked = {"files": [{"path": "pool.yaml", "text": text}]}
    headers = {"Authorization": f"Bearer {site.token()}"}
    plan = site.http.post(f"{at}/plans", headers=headers, json=asked).json()
    plan["steps"][0]["template"]["holding"] = None
    del plan["seal"]
    plan["seal"] = _seal(plan)

    answer = site.http.post(f"{at}/applications", headers=headers, json={"plan": plan})

    assert answer.status_code == 403
    assert "holds machines as no fleet does" in answer.json()["detail"]
