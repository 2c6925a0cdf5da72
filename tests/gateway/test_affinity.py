"""Requests that begin alike go to one replica, as long as that is not much busier than the others."""

from __future__ import annotations

import asyncio
import json

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.gateway.affinity import MOST_KEPT, MOST_PIECES, PIECE_BYTES, Prefixes, beginnings
from orchestrator.gateway.server.gateway import BUSIER
from tests.gateway.clients import chat, in_a_loop, request, stage, until
from tests.gateway.upstream import Upstream, engine, silent

BODIES = st.lists(st.sampled_from([b"a", b"b"]), max_size=6).map(
    lambda parts: b"".join(p * 300 for p in parts)
)


@settings(max_examples=200, deadline=None)
@given(BODIES, BODIES)
def test_beginnings_are_shared_as_far_as_the_bytes_are_and_no_further(ours: bytes, theirs: bytes) -> None:
    shared = next((i for i, (x, y) in enumerate(zip(ours, theirs, strict=False)) if x != y), None)
    same = min(len(ours), len(theirs)) if shared is None else shared
    common = [x for x, y in zip(beginnings(ours), beginnings(theirs), strict=False) if x == y]
    assert len(common) == same // PIECE_BYTES


def test_what_is_remembered_is_bounded_and_the_last_is_kept() -> None:
    assert len(beginnings(b"x" * 10**7)) == MOST_PIECES
    known: Prefixes[int] = Prefixes()
    for at in range(MOST_KEPT + 5):
        known.put([at], at)
    assert (known.find([4]), known.find([5]), known.find([MOST_KEPT])) == (None, 5, MOST_KEPT)


def conversation(system: str, turn: int) -> bytes:
    messages = [{"role": "system", "content": system * 600}, {"role": "user", "content": f"turn {turn}"}]
    body = json.dumps({"model": "llama", "messages": messages}).encode()
    return request("/v1/chat/completions", body, headers=["Content-Type: application/json"])


@in_a_loop
async def test_conversations_stay_where_they_began() -> None:
    async with (
        Upstream(engine) as first,
        Upstream(engine) as second,
        stage(chat(first.port, second.port, by_prefix=True)) as here,
    ):
        for turn in range(6):
            for system in ("ab", "cd", "ef"):
                assert (await here.ask(conversation(system, turn))).status == 200
    by_replica = [
        {json.loads(a.body)["messages"][0]["content"][:2] for a in r.asked} for r in (first, second)
    ]
    assert by_replica[0] | by_replica[1] == {"ab", "cd", "ef"}
    assert not by_replica[0] & by_replica[1]


@in_a_loop
async def test_a_replica_that_is_busier_is_spared_and_one_that_leaves_is_forgotten() -> None:
    release = asyncio.Event()
    async with (
        Upstream(silent(release)) as first,
        Upstream(silent(release)) as second,
        stage(chat(first.port, second.port, by_prefix=True)) as here,
    ):
        asking = [asyncio.create_task(here.ask(conversation("ab", turn))) for turn in range(2 * BUSIER)]
        await until(lambda: len(first.asked) + len(second.asked) == 2 * BUSIER)
        counts = sorted((len(first.asked), len(second.asked)))
        assert counts[1] - counts[0] <= BUSIER
        assert counts[0] > 0
        release.set()
        await asyncio.gather(*asking)
        here.serve(chat(second.port, by_prefix=True))
        before = len(second.asked)
        assert (await here.ask(conversation("ab", 99))).status == 200
        assert len(second.asked) == before + 1
