"""What a plan for a cluster is told by it, before anything is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends.kubernetes import Kubernetes
from orchestrator.api.rehearsal import rehearsed
from orchestrator.apply.imagined import imagined_world
from orchestrator.apply.planning import RunPlan, plan_documents
from orchestrator.backend import Group
from orchestrator.errors import AuthFailed, ModelyardError, Quota, Rejected, Unreachable
from orchestrator.spec.load import load

WEB = "type: service\nname: web\nimage: busybox:1.37\ncommands: [sleep 1d]\nport: 8080\n"


class Rehearsing(Kubernetes):
    """A cluster whose answer to every rehearsal is known beforehand."""

    def __init__(self, answer: Sequence[str] | ModelyardError) -> None:
        super().__init__("lab")
        self.answer = answer
        self.asked: list[Group] = []

    def rehearse(self, group: Group) -> Sequence[str]:
        self.asked.append(group)
        if isinstance(self.answer, ModelyardError):
            raise self.answer
        return self.answer


def planned(folder: Path) -> RunPlan:
    (folder / "web.yaml").write_text(WEB)
    documents = load([str(folder / "web.yaml")], env={})
    world = imagined_world("lab", Kubernetes("lab").can, vendor="nvidia", facts=pytest.fail)
    (plan,) = plan_documents(documents, world)
    assert isinstance(plan, RunPlan)
    return plan


def told(folder: Path, answer: Any) -> RunPlan:
    (plan,) = rehearsed([planned(folder)], {"lab": Rehearsing(answer)})
    assert isinstance(plan, RunPlan)
    return plan


def test_what_would_change_is_noted_and_what_is_made_is_not(tmp_path: Path) -> None:
    plan = told(tmp_path, ["Service web: is made", "Deployment web: spec.replicas 7 -> 1"])
    assert plan.notes == ("lab: Deployment web: spec.replicas 7 -> 1",)
    assert plan.problems == ()


@pytest.mark.parametrize(
    "refusal",
    [
        Rejected("fields are held by others: .spec.replicas by hand", fix="apply --force-conflicts"),
        AuthFailed("not allowed: verb patch on deployments of apps", fix="modelyard render rbac"),
        Quota("exceeded quota", fix="raise it"),
    ],
)
def test_what_would_be_refused_is_a_problem_of_the_document(tmp_path: Path, refusal: Any) -> None:
    (problem,) = told(tmp_path, refusal).problems
    assert problem.what == f"backend 'lab' refuses it: {refusal.what}"
    assert problem.fix == refusal.fix
    assert problem.at.line == 1


def test_silence_is_no_refusal(tmp_path: Path) -> None:
    assert told(tmp_path, Unreachable("no answer", backend="lab")) == planned(tmp_path)


def test_a_plan_that_changes_nothing_is_asked_of_nobody(tmp_path: Path) -> None:
    place = Rehearsing([])
    unchanged = replace(planned(tmp_path), action="unchanged")
    assert rehearsed([unchanged], {"lab": place}) == (unchanged,)
    assert place.asked == []
