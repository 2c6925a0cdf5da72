"""Move everything under load for a while: how many requests were lost, and how the others ended.

    python -m tests.benchmarks.gateway_moving --seconds 60

16 clients ask without a pause, every other time for a stream of ten events. Every half second a replica
is added, or one is asked to leave, which it does once it has nothing more to do; every two seconds one
is killed, with whatever it has on its hands; every five seconds another gateway listens beside the one
that is there, which then ends. Replicas take 5 to 25 ms to their first byte and as long between events.
A client whose connection ends before a byte asks again, as OpenAI's does. Ends with 1 where one was lost.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
from collections import Counter
from collections.abc import Awaitable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field

from orchestrator.gateway.server import Limits
from tests.gateway.clients import Answer, Connection, Stage, chat, completion, dial, stage
from tests.gateway.upstream import COMPLETION, STREAM_HEAD, Asked, Upstream, event, plain

CLIENTS, EVENTS = 16, 10
MOVE_S, KILL_S, RESTART_S = 0.5, 2.0, 5.0
FEWEST, MOST = 2, 6


@dataclass
class World:
    """The replicas that are there, and the gateway that clients find at one port."""

    dice: random.Random
    here: Stage
    stack: AsyncExitStack
    replicas: list[Upstream] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def replica(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        """Answer as an engine that works on one token after the other."""
        await asyncio.sleep(self.dice.uniform(0.005, 0.025))
        if not json.loads(asked.body)["stream"]:
            writer.write(plain(COMPLETION))
            await writer.drain()
            return
        writer.write(STREAM_HEAD)
        for number in range(EVENTS):
            writer.write(event(json.dumps({"choices": [{"text": str(number)}]})))
            await writer.drain()
            await asyncio.sleep(self.dice.uniform(0.005, 0.025))
        writer.write(event("[DONE]") + b"0\r\n\r\n")
        await writer.drain()

    def route(self, *leaving: Upstream) -> None:
        """Tell the gateway of those that are ready."""
        self.here.serve(chat(*(each.port for each in self.replicas if each not in leaving)))

    async def add(self) -> None:
        """Start one more."""
        new = Upstream(self.replica)
        await self.stack.enter_async_context(new)
        self.replicas.append(new)
        self.route()
        self.counts["added"] += 1

    async def remove(self) -> None:
        """Ask one to leave, and end it once nothing is with it."""
        old = self.replicas.pop(self.dice.randrange(len(self.replicas)))
        self.route()
        while any(lane.replica.port == old.port for e in self.here.gateway.exchanges if (lane := e.lane)):
            await asyncio.sleep(0.005)
        await old.stop()
        self.counts["removed"] += 1

    async def kill(self) -> None:
        """End one with whatever is with it; that it is gone is known a moment later."""
        old = self.replicas.pop(self.dice.randrange(len(self.replicas)))
        busy = len(old.open_writers)
        await old.stop()
        self.counts["killed"] += 1
        self.counts["connections they had"] += busy
        await asyncio.sleep(0.1)
        self.route()

    async def restart(self) -> None:
        """Have another gateway listen at the port, and end the one before."""
        ports = [each.port for each in self.replicas]
        following = await self.stack.enter_async_context(
            stage(chat(*ports), port=self.here.port, shared=True, limits=Limits(queue_s=10.0))
        )
        old, self.here = self.here, following
        self.route()
        await old.gateway.close(drain_s=10.0)
        self.counts["gateways restarted"] += 1

    async def move(self) -> None:
        """Add and remove, every half second."""
        more = len(self.replicas) <= FEWEST or (len(self.replicas) < MOST and self.dice.random() < 0.5)
        await (self.add() if more else self.remove())

    async def client(self, first: int) -> None:
        """Ask until it is over; count how each request ended."""
        for number in itertools.count(first, CLIENTS):
            if self.over.is_set():
                return
            is_stream = bool((number - first) // CLIENTS % 2)
            while (answer := await self._ask(number, is_stream)) is None:
                self.counts["asked again by the client, no byte had come"] += 1
            self.counts[ending(answer, is_stream)] += 1

    async def _ask(self, number: int, is_stream: bool) -> Answer | None:
        """Return the answer, None where the connection ended before a byte of one."""
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            async with dial(self.here.port) as (reader, writer):
                return await Connection(reader, writer).ask(completion(pad=number % 50, stream=is_stream))
        return None


def ending(answer: Answer, is_stream: bool) -> str:
    """Return how a request ended, in words; what is lost begins so."""
    if answer.status != 200:
        return f"lost: HTTP {answer.status}"
    if not is_stream:
        return "answered" if answer.whole and answer.body == COMPLETION else "lost: an answer broke off"
    events = [text.removeprefix("data: ") for text in answer.body.decode().split("\n\n") if text.strip()]
    said = [event for event in events if "choices" in event]
    if [json.loads(each)["choices"][0]["text"] for each in said] != [str(at) for at in range(len(said))]:
        return "lost: a token came twice or not at all"
    if answer.whole and events[-1:] == ["[DONE]"] and len(said) == EVENTS:
        return "streamed to the end"
    if answer.whole and json.loads(events[-1]).get("error", {}).get("code") == "stream_broken":
        return "streamed, then told that the replica broke off"
    return "lost: a stream ended without a word"


async def every(seconds: float, act: object, world: World) -> None:
    """Do something again and again until it is over."""
    assert callable(act)
    while not world.over.is_set():
        await asyncio.sleep(seconds)
        done: Awaitable[None] = act()
        await done


async def run(seconds: float, seed: int) -> Counter[str]:
    """Return how many requests ended how, and what was moved."""
    async with AsyncExitStack() as stack:
        here = await stack.enter_async_context(stage(chat(), shared=True, limits=Limits(queue_s=10.0)))
        world = World(random.Random(seed), here, stack)
        for _ in range(FEWEST + 1):
            await world.add()
        acts = [(MOVE_S, world.move), (KILL_S, world.kill), (RESTART_S, world.restart)]
        moving = [asyncio.create_task(every(pause_s, act, world)) for pause_s, act in acts]
        clients = [asyncio.create_task(world.client(at)) for at in range(CLIENTS)]
        await asyncio.sleep(seconds)
        world.over.set()
        await asyncio.gather(*clients, *moving)
        return world.counts


def main() -> int:
    """Print the counts; 1 where a request was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    counts = asyncio.run(run(options.seconds, options.seed))
    for what, count in sorted(counts.items()):
        print(f"{count:8,}  {what}")
    lost = sum(count for what, count in counts.items() if what.startswith("lost"))
    print(f"{lost:8,}  lost")
    return int(lost > 0)


if __name__ == "__main__":
    raise SystemExit(main())
