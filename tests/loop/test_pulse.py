"""Engines that hang and replicas that fall silent, with clock and answers in the test's hands."""

from __future__ import annotations

from concurrent.futures import Executor, Future
from typing import Any

import pytest

from orchestrator.backend import Instance, Phase, Probe
from orchestrator.engines.exposition import EngineLoad
from orchestrator.engines.vllm import METRICS
from orchestrator.loop.probes import NO_ANSWER, Prober
from orchestrator.loop.pulse import EVERY_S, HUNG_S, Pulse

INSTANCE = Instance("chat-0-0-0", "chat", 0, 0, 0, "h", Phase.RUNNING, ports={80: ("127.0.0.1", 1)})


class Answers(Executor):
    """Answers at once with what is next."""

    def __init__(self) -> None:
        self.next: object = None

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(self.next)
        return future


class Watched:
    """An engine that is asked as often as that is due."""

    def __init__(self) -> None:
        self.time, self.answers = 0.0, Answers()
        self.pulse = Pulse(self.answers, lambda: self.time, lambda: None)

    def after(self, seconds: float, load: EngineLoad | None) -> str | None:
        """Answer with ``load`` for so long; return what is found at the end."""
        end = self.time + seconds
        found = None
        while self.time < end:
            self.answers.next = load
            found = self.pulse.sick(INSTANCE, METRICS, 80)
            self.time += EVERY_S
        return found


def busy(steps: float, running: float = 3.0) -> EngineLoad:
    return EngineLoad(running=running, steps=steps)


def test_an_engine_that_makes_no_step_while_requests_run_hangs() -> None:
    engine = Watched()
    assert engine.after(60, busy(5)) is None
    assert engine.after(HUNG_S - 60, busy(6)) is None
    found = engine.after(3 * EVERY_S + 60, busy(6))
    assert found is not None
    assert found.startswith("3 requests run and no step was made for 3")


@pytest.mark.parametrize(
    "load",
    [busy(5, running=0.0), None, EngineLoad(running=3.0), EngineLoad(steps=5.0)],
    ids=["idle", "silent", "no steps told", "no requests told"],
)
def test_what_is_idle_or_tells_nothing_does_not_hang(load: EngineLoad | None) -> None:
    assert Watched().after(3 * HUNG_S, load) is None


def test_an_answer_that_failed_to_come_proves_nothing() -> None:
    engine = Watched()
    engine.after(HUNG_S - EVERY_S, busy(5))
    assert engine.after(2 * EVERY_S, None) is None
    assert engine.after(HUNG_S - EVERY_S, busy(5)) is None


def test_one_step_in_a_while_is_progress() -> None:
    engine = Watched()
    for steps in range(6):
        assert engine.after(HUNG_S - EVERY_S, busy(steps)) is None


def test_the_gone_are_forgotten() -> None:
    engine = Watched()
    engine.after(EVERY_S, busy(1))
    engine.pulse.forget([])
    assert engine.pulse.next_s() is None


SILENT_S = 180.0


def silence(*answers: tuple[float, bool], silent_s: float | None = SILENT_S) -> str | None:
    """Return what is found of a replica that answers so for so long each."""
    time, pool = 0.0, Answers()
    prober = Prober(pool, lambda: time, lambda: None)
    for seconds, answer in answers:
        end = time + seconds
        while time < end:
            pool.next = "" if answer else NO_ANSWER
            prober.is_ready(INSTANCE, [Probe(port=80, silent_s=silent_s)], before=False)
            time += 1.0
    return prober.silence(INSTANCE.name)


def test_a_replica_that_was_ready_and_falls_silent_for_long_is_found() -> None:
    assert silence((10, True), (SILENT_S - 20, False)) is None
    assert (silence((10, True), (SILENT_S + 20, False)) or "").startswith("no answer for 1")


def test_one_that_never_was_ready_or_answers_now_and_then_is_not() -> None:
    assert silence((2 * SILENT_S, False)) is None
    assert silence((10, True), (SILENT_S - 20, False), (8, True), (SILENT_S - 20, False)) is None


def test_how_long_it_may_be_silent_is_what_its_probe_says() -> None:
    assert silence((10, True), (20, False), silent_s=10) == "no answer for 17 s"
    assert silence((10, True), (20, False), silent_s=60) is None
    assert silence((10, True), (9_000, False), silent_s=None) is None
