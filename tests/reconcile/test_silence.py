"""A machine that does not answer: what is on it is unknown since then, and nothing follows."""

from __future__ import annotations

from tests.reconcile.world import World


def test_a_launch_on_a_silent_machine_is_unknown_since_then_and_nothing_follows() -> None:
    world = World()
    world.apply()
    world.settle()
    events, since = len(world.events), world.clock()
    world.silent["chat-0-0-0"] = since
    asked = len(world.asked)
    for _ in range(12):
        world.step()
        world.clock.advance(60)
    assert world.state() == "ready"
    assert world.runs["chat"].reason.startswith("chat-0-0-0: unknown since 2026-01-01T")
    assert f"{since:%H:%M:%SZ}" in world.job("chat-0-0-0").message
    assert {type(action).__name__ for action in world.asked[asked:]} == {"Record", "Turn"}

    del world.silent["chat-0-0-0"]
    world.settle()
    assert world.started() == {"chat-0-0-0": 1}
    assert (world.state(), world.runs["chat"].reason, world.job("chat-0-0-0").message) == ("ready", "", "")
    told = [event.cause for event in world.events[events:] if event.subject == "chat-0-0-0"]
    assert told == ["its machine does not answer", "its machine answers again"]
