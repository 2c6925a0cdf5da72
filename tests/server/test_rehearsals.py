"""What clusters say of a plan that comes from afar, before anything is done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from orchestrator.api import Local, Rehearsal
from orchestrator.api.rehearsal import template_of
from orchestrator.spec.load import read
from tests.server.conftest import Served

HELLO = "type: task\nname: hello\nimage: busybox:1.37\ncommands: [sleep 1d]\n"
SAID = {"hello": Rehearsal("rack", ("Job hello: spec.parallelism 2 -> 1",))}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Have clusters that always say the same; what they were asked."""
    plans: list[Any] = []

    def rehearse(_: Local, given: Sequence[Any]) -> dict[str, Rehearsal]:
        plans.extend(given)
        return SAID

    monkeypatch.setattr(Local, "rehearse", rehearse)
    return plans


def test_a_plan_is_said_to_the_clusters_of_the_server(served: Served, asked: list[Any]) -> None:
    client = served.client()

    assert client.rehearse(client.plan(read(HELLO))) == SAID
    assert [(plan.name, plan.action) for plan in asked] == [("hello", "create")]
    assert client.on_record() == []


def test_a_run_that_stays_as_it_is_is_said_as_it_is_on_record(served: Served, asked: list[Any]) -> None:
    client = served.client()
    client.apply(client.plan(read(HELLO)))

    assert client.rehearse(client.plan(read(HELLO))) == SAID
    (plan,) = asked
    template = template_of(plan)
    assert plan.action == "unchanged"
    assert template is not None
    assert template.launch.run == "hello"


def test_who_may_not_apply_hears_nothing(served: Served, asked: list[Any]) -> None:
    client = served.client("viewer")

    assert client.rehearse(client.plan(read(HELLO))) == {}
    assert asked == []
