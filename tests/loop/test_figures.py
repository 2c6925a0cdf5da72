"""What the loop tells of itself: its passes, and what came of what it asked of places."""

from __future__ import annotations

import re
from typing import Any

from backends.sim import Script, Sim
from orchestrator.backend import Launch
from orchestrator.errors import Unreachable
from orchestrator.loop import Loop
from orchestrator.reconcile import RunState
from orchestrator.store.records import Store
from tests.loop.conftest import put, state


class OnceAway(Sim):
    """Cannot be reached when it is first asked to start ``hello``."""

    away = True

    def start(self, launch: Launch, **more: Any) -> None:
        if self.away and launch.run == "hello":
            self.away = False
            raise Unreachable("away", backend="sim")
        super().start(launch, **more)


def test_passes_and_actions_are_counted_by_what_came_of_them(store: Store) -> None:
    put(store, "hello")
    put(store, "bad")
    sim = OnceAway(script={"bad-*": Script(refuse="rejected")})
    with Loop(store, {"sim": sim}, owner="me:1:1") as loop:
        assert loop.drive(lambda: state(store, "hello") is RunState.RUNNING, timeout_s=20)
        assert loop.drive(lambda: state(store, "bad") is RunState.FAILED, timeout_s=20)
        loop.settle()
        text = loop.figures.text()
    told = dict(re.findall(r"^(modelyard_\S+) (\S+)$", text, re.MULTILINE))
    for outcome in ("done", "postponed", "refused"):
        assert (
            told[f'modelyard_loop_actions_total{{action="start",backend="sim",outcome="{outcome}"}}'] == "1"
        )
    assert told["modelyard_loop_runs"] == "1"
    assert int(told["modelyard_loop_pass_seconds_count"]) > 2
    assert float(told["modelyard_loop_pass_seconds_sum"]) > 0
