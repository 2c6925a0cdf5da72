"""What happens when a replica, a client or the gateway fails in the middle of something."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import pytest

from orchestrator.gateway.server import Limits
from tests.gateway.clients import chat, completion, in_a_loop, request, stage, until, web
from tests.gateway.upstream import (
    COMPLETION,
    STREAM_HEAD,
    Asked,
    Upstream,
    engine,
    event,
    plain,
    saying,
    silent,
)

QUICK = Limits(
    head_s=0.2, idle_s=0.2, body_s=0.2, first_byte_s=0.3, between_s=0.3, queue=2, queue_s=0.3, connect_s=0.5
)


async def hang_up(asked: Asked, writer: asyncio.StreamWriter) -> bool:
    """Close the connection on every request."""
    return True


async def reset(asked: Asked, writer: asyncio.StreamWriter) -> bool:
    """Reset the connection on every request."""
    writer.transport.abort()
    return True


@pytest.mark.parametrize("serve", [hang_up, reset])
def test_a_replica_that_fails_before_a_byte_costs_nobody_a_request(serve: Callable[..., bool]) -> None:
    @in_a_loop
    async def check() -> None:
        async with Upstream(serve) as bad, Upstream(engine) as good, stage(chat(bad.port, good.port)) as here:
            answers = [await here.ask(completion()) for _ in range(6)]
        assert [(answer.status, answer.body) for answer in answers] == [(200, COMPLETION)] * 6
        assert len(good.asked) == 6

    check()


@in_a_loop
async def test_a_replica_nobody_can_connect_to_costs_nobody_a_request() -> None:
    async with Upstream(engine) as gone, Upstream(engine) as good:
        await gone.stop()
        async with stage(chat(gone.port, good.port)) as here:
            assert [(await here.ask(completion())).status for _ in range(4)] == [200] * 4


@in_a_loop
async def test_an_engine_that_says_later_is_left_for_one_that_does_not() -> None:
    later = saying(plain(b'{"error": "draining"}', status="503 Service Unavailable"))
    async with Upstream(later) as bad, Upstream(engine) as good, stage(chat(bad.port, good.port)) as here:
        assert [(await here.ask(completion())).status for _ in range(4)] == [200] * 4
        here.serve(chat(bad.port))
        answer = await here.ask(completion())
    assert (answer.status, answer.body) == (503, b'{"error": "draining"}')


@in_a_loop
async def test_a_request_that_brings_replicas_down_does_not_reach_all() -> None:
    replicas = [Upstream(reset) for _ in range(6)]
    for replica in replicas:
        await replica.__aenter__()
    async with stage(chat(*(replica.port for replica in replicas))) as here:
        answer = await here.ask(completion())
    for replica in replicas:
        await replica.stop()
    assert (answer.status, answer.code) == (502, "replica_failed")
    assert sum(len(replica.asked) for replica in replicas) == 3


@in_a_loop
async def test_an_idle_connection_closed_by_the_replica_is_no_failure() -> None:
    async with Upstream(engine) as replica, stage(chat(replica.port)) as here, here.connection() as client:
        assert (await client.ask(completion())).status == 200
        await replica.stop()
        await replica.__aenter__()
        assert (await client.ask(completion())).status == 200
        replica.serve = reset  # now the next request finds its kept connection broken
        await client.send(completion())
        await until(lambda: len(replica.asked) >= 3)
        replica.serve = engine
        assert (await client.answer()).status == 200


@in_a_loop
async def test_an_order_of_the_users_own_program_is_not_placed_twice() -> None:
    async with (
        Upstream(hang_up) as bad,
        Upstream(saying(plain(b"{}"))) as good,
        stage(web(bad.port, good.port)) as here,
    ):
        answers = [await here.ask(request("/services/web/orders", b"{}")) for _ in range(2)]
        reads = [await here.ask(request("/services/web/orders", method="GET")) for _ in range(2)]
    assert sorted(answer.status for answer in answers) == [200, 502]
    assert [answer.status for answer in reads] == [200, 200]
    assert sum(asked.method == "POST" for asked in bad.asked + good.asked) == 2


@in_a_loop
async def test_a_stream_that_breaks_ends_with_an_error_event() -> None:
    async def break_off(asked: Asked, writer: asyncio.StreamWriter) -> bool:
        writer.write(STREAM_HEAD + event('{"choices": []}') + b"ff\r\ndata: half an ev")
        await writer.drain()
        return True

    async with Upstream(break_off) as replica, stage(chat(replica.port)) as here:
        answer = await here.ask(completion(stream=True))
    assert answer.whole
    events = [part for part in answer.body.decode().split("\n\n") if part]
    assert len(events) == 2
    assert events[0] == 'data: {"choices": []}'  # and not the half one: a client would fail on it
    assert json.loads(events[1].removeprefix("data: "))["error"]["code"] == "stream_broken"
    assert len(replica.asked) == 1


@in_a_loop
async def test_events_cut_anywhere_arrive_whole_and_in_order() -> None:
    texts = [f'data: {{"n": {at}}}\r\n\r\n' if at % 3 else f"data: {'y' * at * 40}\n\n" for at in range(60)]
    data = "".join(texts).encode()

    async def serve(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        for at in range(0, len(data), 37):
            piece = b"%x\r\n%b\r\n" % (len(data[at : at + 37]), data[at : at + 37])
            writer.write(piece[:20])
            await writer.drain()
            await asyncio.sleep(0)
            writer.write(piece[20:])
        writer.write(b"0\r\n\r\n")

    async with Upstream(serve) as replica, stage(chat(replica.port)) as here:
        answer = await here.ask(completion(stream=True))
    assert (answer.whole, answer.body) == (True, data)


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloXX",
    ],
    ids=["length", "chunked", "bad chunk"],
)
def test_an_answer_that_breaks_is_not_taken_for_a_whole_one(said: bytes) -> None:
    @in_a_loop
    async def check() -> None:
        async with Upstream(saying(said, end=True)) as replica, stage(chat(replica.port)) as here:
            answer = await here.ask(completion())
        assert (answer.status, answer.whole) == (200, False)
        assert len(replica.asked) == 1

    check()


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nX: a\r\n folded: b\r\nContent-Length: 0\r\n\r\n",
        b"220 mail.example ESMTP\r\n\r\n",
    ],
    ids=["two framings", "two lengths", "signed length", "folded", "no HTTP"],
)
def test_an_answer_that_can_be_read_in_two_ways_is_not_passed_on(said: bytes) -> None:
    @in_a_loop
    async def check() -> None:
        async with Upstream(saying(said, end=True)) as replica, stage(chat(replica.port)) as here:
            answer = await here.ask(completion())
        assert (answer.status, answer.code) == (502, "replica_failed")

    check()


@in_a_loop
async def test_what_follows_an_answer_is_nobodys() -> None:
    said = plain(b"{}") + plain(b'"a second answer"')
    async with (
        Upstream(saying(said)) as replica,
        stage(web(replica.port)) as here,
        here.connection() as client,
    ):
        for _ in range(3):
            assert (await client.ask(request("/services/web/", method="GET"))).body == b"{}"
    assert replica.connections == 3


@in_a_loop
async def test_a_client_that_leaves_ends_the_generation() -> None:
    async with Upstream(silent(asyncio.Event())) as replica, stage(chat(replica.port)) as here:
        async with here.connection() as client:
            await client.send(completion())
            await until(lambda: bool(replica.asked))
        await until(lambda: not here.gateway.exchanges)
        assert here.gateway.load()["chat"][1] == 0
        await until(lambda: replica.was_left)


@in_a_loop
async def test_a_client_that_closes_its_half_has_left() -> None:
    async with Upstream(silent(asyncio.Event())) as replica, stage(chat(replica.port)) as here:
        async with here.connection() as client:
            await client.send(completion())
            await until(lambda: bool(replica.asked))
            client.writer.write_eof()
            assert await client.is_closed()
        await until(lambda: not here.gateway.exchanges)


@in_a_loop
async def test_a_client_that_leaves_the_queue_is_not_served() -> None:
    async with stage(chat()) as here:
        async with here.connection() as client:
            await client.send(completion())
            await until(lambda: here.gateway.load()["chat"][0] == 1)
        await until(lambda: here.gateway.load()["chat"][0] == 0)
        async with Upstream(engine) as replica:
            here.serve(chat(replica.port))
            assert (await here.ask(completion())).status == 200
        assert len(replica.asked) == 1


@in_a_loop
async def test_the_queue_is_bounded_and_says_when_to_come_back() -> None:
    async with stage(chat(), limits=QUICK) as here, here.connection() as one, here.connection() as two:
        for client in (one, two):
            await client.send(completion())
        await until(lambda: here.gateway.load()["chat"][0] == 2)
        third = await here.ask(completion())
        assert (third.status, third.code) == (429, "queue_full")
        assert int(third.headers["retry-after"]) > 0
        assert [(await client.answer()).status for client in (one, two)] == [503, 503]


@in_a_loop
async def test_nobody_waits_for_a_service_that_has_ended() -> None:
    async with stage(chat(over=True)) as here:
        answer = await here.ask(completion())
        assert (answer.status, answer.code) == (503, "service_over")


@in_a_loop
async def test_who_waits_is_told_when_the_service_ends_or_goes() -> None:
    for after in ([chat(over=True)], []):
        async with stage(chat()) as here, here.connection() as one, here.connection() as two:
            for client in (one, two):
                await client.send(completion())
            await until(lambda here=here: here.gateway.load()["chat"][0] == 2)
            here.serve(*after)
            answers = [await client.answer() for client in (one, two)]
            assert [answer.code for answer in answers] == ["service_over"] * 2


@in_a_loop
async def test_a_replica_that_says_nothing_is_given_up() -> None:
    async with Upstream(silent(asyncio.Event())) as replica, stage(chat(replica.port), limits=QUICK) as here:
        answer = await here.ask(completion())
        assert answer.status == 504
        assert here.gateway.load()["chat"][1] == 0


@in_a_loop
async def test_a_stream_that_falls_silent_ends_with_an_error_event() -> None:
    async def fall_silent(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + event("{}"))
        await asyncio.Event().wait()

    async with Upstream(fall_silent) as replica, stage(chat(replica.port), limits=QUICK) as here:
        answer = await here.ask(completion(stream=True))
    assert answer.whole
    assert b"stream_broken" in answer.body


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"POST /v1/completions HTTP/1.1\r\nHo", 408),
        (request("/v1/completions", headers=["Content-Length: 100"]) + b'{"mo', 408),
    ],
    ids=["head", "body"],
)
def test_a_slow_client_is_not_waited_for_for_ever(sent: bytes, status: int) -> None:
    @in_a_loop
    async def check() -> None:
        async with Upstream(engine) as replica, stage(chat(replica.port), limits=QUICK) as here:
            async with here.connection() as client:
                assert (await client.ask(sent)).status == status
                client.writer.write_eof()
                assert await client.is_closed()
            await until(lambda: not here.gateway.inbounds)

    check()


@in_a_loop
async def test_an_idle_connection_is_closed() -> None:
    async with (
        Upstream(engine) as replica,
        stage(chat(replica.port), limits=QUICK) as here,
        here.connection() as client,
    ):
        assert (await client.ask(completion())).status == 200
        assert await client.is_closed()


@in_a_loop
async def test_an_unknown_client_is_refused_before_its_body_is_read() -> None:
    head = request("/v1/completions", headers=["Content-Length: 50000000"], key=None)
    async with Upstream(engine) as replica, stage(chat(replica.port)) as here, here.connection() as client:
        answer = await client.ask(head + b"x" * 1000)
    assert (answer.status, answer.headers["connection"]) == (401, "close")
