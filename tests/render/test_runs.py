"""How ``ps`` tells runs: what stands in a column."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from orchestrator.api.protocol import RunView
from orchestrator.backend import Launch, Scaling
from orchestrator.reconcile import Run, RunState, Template
from orchestrator.render.runs import run_object, run_text, runs_text

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
KEPT = Template(Launch("chat-0-0-0", "chat"), ("lab",), replicas=0)
SCALED = replace(KEPT, scaling=Scaling(0, 4, "vllm:num_requests_waiting", 8.0))


@pytest.mark.parametrize(
    ("template", "ready", "says"),
    [
        (replace(KEPT, replicas=2), 1, "1/2"),
        (SCALED, 0, "0/0"),
        (SCALED, 2, "2/0..4"),  # the cluster scaled it, and the record does not say how many it wants
        (replace(SCALED, replicas=1), 1, "1/1"),
    ],
)
def test_replicas_are_those_that_are_ready_of_those_that_are_wanted(
    template: Template, ready: int, says: str
) -> None:
    run = Run("1", "chat", "service", "{}", "h1", template, NOW, state=RunState.READY, ready=ready)
    header, line = runs_text([RunView(run, ())], now=NOW).splitlines()
    at = header.index("REPLICAS")
    assert line[at:].split()[0] == says


def test_tags_are_told_where_there_are_some() -> None:
    tagged = replace(KEPT, launch=replace(KEPT.launch, tags=(("a.b/c", "x"), ("team", ""))))
    view, plain = (
        RunView(Run("1", "chat", "service", "{}", "h1", template, NOW), ()) for template in (tagged, KEPT)
    )
    assert "  tags      a.b/c=x, team=" in run_text(view).splitlines()
    assert "tags" not in run_text(plain)
    assert run_object(view)["tags"] == {"a.b/c": "x", "team": ""}
