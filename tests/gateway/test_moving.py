"""Replicas come and go, clients read slowly, gateways end: nobody's request is lost by it."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import resource
import socket
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.gateway.server import Limits, listening
from tests.gateway.clients import Stage, chat, completion, dial, in_a_loop, request, stage, until, web
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


async def keep_asking(here: Stage, stop: asyncio.Event) -> list[int]:
    """Ask one request after the other on one connection; return the statuses."""
    statuses = []
    async with here.connection() as client:
        for at in itertools.count():
            if stop.is_set():
                return statuses
            answer = await client.ask(completion(stream=bool(at % 2)))
            statuses.append(answer.status if answer.whole and b"error" not in answer.body else 0)
    return statuses


@in_a_loop
async def test_replicas_that_come_and_go_under_load_lose_no_request() -> None:
    stop = asyncio.Event()
    async with stage(chat(), limits=Limits(queue_s=5.0)) as here, Upstream(engine) as first:
        here.serve(chat(first.port))
        asking = [asyncio.create_task(keep_asking(here, stop)) for _ in range(8)]
        old = first
        for _ in range(8):
            new = Upstream(engine)
            await new.__aenter__()
            here.serve(chat(old.port, new.port))
            await asyncio.sleep(0.05)
            here.serve(chat(new.port))  # asked to stop: no new request, those it has it ends
            await until(lambda old=old: all(lane.replica.port != old.port or lane.outstanding == 0
                                            for x in here.gateway.exchanges if (lane := x.lane)))  # fmt: skip
            await old.stop()
            old = new
        stop.set()
        statuses = [status for found in await asyncio.gather(*asking) for status in found]
        await old.stop()
    assert len(statuses) > 100
    assert set(statuses) == {200}


@in_a_loop
async def test_replicas_killed_under_load_lose_no_request_that_had_no_byte() -> None:
    stop, served = asyncio.Event(), Counter[int]()

    async def count(asked: Asked, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.002)
        await engine(asked, writer)
        served[writer.get_extra_info("sockname")[1]] += 1

    async def keep_asking_plainly(here: Stage) -> list[int]:
        statuses = []
        async with here.connection() as client:
            while not stop.is_set():
                answer = await client.ask(completion())
                statuses.append(answer.status if answer.whole else 0)
        return statuses

    async with Upstream(count) as stays, stage(chat(), limits=Limits(queue_s=5.0)) as here:
        asking = [asyncio.create_task(keep_asking_plainly(here)) for _ in range(8)]
        for _ in range(8):
            async with Upstream(count) as dies:
                here.serve(chat(stays.port, dies.port))
                # those that the last one lost are through: a request goes to three replicas at most
                await until(lambda dies=dies: served[dies.port] > len(asking))
        stop.set()
        statuses = [status for found in await asyncio.gather(*asking) for status in found]
    assert set(statuses) == {200}


def for_a_core_s() -> float:
    """Return how long this thread was ready to run and others ran (schedstats, in nanoseconds)."""
    return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9


@in_a_loop
async def test_a_gateway_restarted_under_load_loses_no_request_that_had_no_byte_and_doubles_none() -> None:
    """A client whose connection ends before a byte asks again, as OpenAI's does."""
    stop = asyncio.Event()
    answered: list[int] = []
    numbers = itertools.count()

    async def keep_asking(port: int) -> None:
        while not stop.is_set():
            number = next(numbers)
            while True:
                head = b""
                try:
                    async with dial(port) as (reader, writer):
                        writer.write(completion(pad=number))
                        head = await reader.readuntil(b"\r\n\r\n")
                        assert b" 200 OK" in head
                        await reader.readuntil(b"}}")
                except (ConnectionError, asyncio.IncompleteReadError):
                    assert not head, "an answer that had begun broke off"
                    continue
                answered.append(number)
                break

    async def slow(asked: Asked, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.005)
        await engine(asked, writer)

    async with Upstream(slow) as replica, AsyncExitStack() as stack:
        here = await stack.enter_async_context(stage(chat(replica.port), shared=True))
        asking = [asyncio.create_task(keep_asking(here.port)) for _ in range(8)]
        for _ in range(4):
            seen = len(answered)
            await until(lambda seen=seen: len(answered) > seen + 20)
            following = await stack.enter_async_context(
                stage(chat(replica.port), port=here.port, shared=True)
            )
            await here.gateway.close(drain_s=10.0)
            here = following
        stop.set()
        await asyncio.gather(*asking)
    assert len(answered) > 80
    assert sorted(answered) == list(range(len(answered)))  # none lost, none answered twice
    worked = [len(json.loads(asked.body)["prompt"]) for asked in replica.asked]
    assert set(worked) == set(answered)


@in_a_loop
async def test_from_zero_all_who_waited_are_served_in_their_order() -> None:
    async with AsyncExitStack() as stack:
        here = await stack.enter_async_context(stage(chat()))
        replica = await stack.enter_async_context(Upstream(engine))
        clients = []
        for at in range(100):
            reader, writer = await stack.enter_async_context(dial(here.port))
            clients.append(reader)
            writer.write(completion(pad=at))
            await until(lambda at=at: here.gateway.load()["chat"][0] == at + 1)
        started, waited = asyncio.get_running_loop().time(), for_a_core_s()
        here.serve(chat(replica.port))
        await clients[0].readuntil(b"\r\n\r\n")
        first_s = asyncio.get_running_loop().time() - started - (for_a_core_s() - waited)
        answers = [await reader.readuntil(b"}}") for reader in clients]
    assert len(answers) == 100
    assert len(replica.asked) == 100
    assert first_s < 0.1


@in_a_loop
async def test_a_replica_gets_no_more_at_once_than_it_may() -> None:
    release = asyncio.Event()
    async with Upstream(silent(release)) as replica, stage(chat(replica.port, most_outstanding=3)) as here:
        asking = [asyncio.create_task(here.ask(completion())) for _ in range(8)]
        await until(lambda: here.gateway.load()["chat"][:2] == (5, 3))
        await until(lambda: len(replica.asked) >= 3)
        assert len(replica.asked) == 3
        release.set()
        assert [answer.status for answer in await asyncio.gather(*asking)] == [200] * 8


@in_a_loop
async def test_a_slow_reader_slows_the_replica_and_fills_no_memory() -> None:
    written = 0
    piece = event("x" * 60_000)

    async def pour(asked: Asked, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        writer.write(STREAM_HEAD)
        for _ in range(1000):
            writer.write(piece)
            await writer.drain()
            written += len(piece)
        writer.write(b"0\r\n\r\n")

    async with (
        Upstream(pour) as replica,
        stage(chat(replica.port)) as here,
        dial(here.port) as (reader, writer),
    ):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        writer.write(completion(stream=True))
        await reader.readuntil(b"\r\n\r\n")
        seen = -1
        while written != seen:  # until the replica can write no more
            seen = written
            await asyncio.sleep(0.1)
        assert written < 30_000_000  # what the kernel's buffers on the way hold, not the 60 MB
        tail = b""
        while not tail.endswith(b"0\r\n\r\n"):
            tail = (tail + await reader.read(2**20))[-8:]
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert written == 1000 * len(piece)
    assert after - before < 20_000  # KiB


@in_a_loop
async def test_a_slow_replica_slows_the_client() -> None:
    release, got = asyncio.Event(), 0

    async def sip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal got
        await reader.readuntil(b"\r\n\r\n")
        await release.wait()
        while got < 40_000_000:
            got += len(await reader.read(2**20))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(sip, "127.0.0.1", 0, limit=2**16)
    port = server.sockets[0].getsockname()[1]
    async with stage(web(port)) as here, here.connection() as client:
        client.writer.write(request("/services/web/up", headers=["Content-Length: 40000000"]))
        sending = asyncio.create_task(client.send(bytes(40_000_000)))
        await asyncio.wait([sending], timeout=0.3)
        buffered = sum(i.exchange.buffered for i in here.gateway.inbounds if i.exchange)
        assert buffered < 6_000_000
        release.set()
        assert (await client.answer()).status == 200
        await sending
    server.close()
    assert got == 40_000_000


@in_a_loop
async def test_a_client_that_pipelines_and_does_not_read_is_not_read_from() -> None:
    big = b"y" * 100_000
    said = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + big
    async with (
        Upstream(saying(said)) as replica,
        stage(web(replica.port)) as here,
        dial(here.port) as (reader, writer),
    ):
        writer.write(request("/services/web/", method="GET") * 2000)
        seen = -1
        while len(replica.asked) != seen:
            seen = len(replica.asked)
            await asyncio.sleep(0.1)
        assert seen < 500
        for _ in range(300):
            await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(100_000)
        writer.transport.abort()


@in_a_loop
async def test_a_drain_lets_streams_end_and_takes_no_new_request() -> None:
    release = asyncio.Event()
    async with (
        Upstream(silent(release)) as replica,
        stage(chat(replica.port)) as here,
        here.connection() as client,
        here.connection() as idle,
    ):
        await client.send(completion(stream=True))
        await until(lambda: bool(replica.asked))
        closing = asyncio.create_task(here.gateway.close(drain_s=10.0))
        assert await idle.is_closed()
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", here.port)
        release.set()
        answer = await client.answer()
        assert await client.is_closed()
        await closing
    assert (answer.status, answer.whole) == (200, True)
    assert answer.headers["connection"] == "close"
    assert answer.body.endswith(b"[DONE]\n\n")


@in_a_loop
async def test_a_request_on_a_connection_that_just_came_is_answered_while_a_gateway_ends() -> None:
    asked = request("/services/web/", method="GET")
    async with (
        Upstream(saying(plain(b"hello"))) as replica,
        stage(web(replica.port)) as here,
        here.connection() as fresh,
        here.connection() as half,
        here.connection() as used,
    ):
        await used.send(asked)
        await used.answer()
        await half.send(asked[:-2])
        await until(lambda: len(here.gateway.inbounds) == 3)
        closing = asyncio.create_task(here.gateway.close(drain_s=10.0))
        assert await used.is_closed()
        await fresh.send(asked)
        await half.send(asked[-2:])
        answers = [await client.answer() for client in (fresh, half)]
        await closing
    assert [(a.status, a.headers["connection"]) for a in answers] == [(200, "close")] * 2


async def troubles_of_closing(turns: int) -> list[str]:
    """Return what goes wrong in the event loop where a gateway ends ``turns`` after a client comes."""
    told: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["message"]))
    async with stage() as here:
        with socket.create_connection(("127.0.0.1", here.port)) as client:
            for _ in range(turns):
                await asyncio.sleep(0)
            await here.gateway.close(drain_s=0.0)
            client.settimeout(1.0)
            try:
                assert client.recv(1) == b""
            except ConnectionResetError:
                pass  # it was not accepted any more
            except TimeoutError:
                told.append("left connected")
    return told


@pytest.mark.parametrize("turns", range(6))
@in_a_loop
async def test_a_client_that_comes_as_a_gateway_ends_is_let_go(turns: int) -> None:
    assert await troubles_of_closing(turns) == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_closing_before_what_was_accepted_has_its_transport_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listening, "TURNS", 0)
    found = [told for turns in range(6) for told in asyncio.run(troubles_of_closing(turns))]
    gc.collect()
    assert "left connected" in found


@in_a_loop
async def test_a_drain_that_takes_too_long_ends_with_a_clear_error() -> None:
    async def begin(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + event("{}"))
        await asyncio.Event().wait()

    async with Upstream(begin) as replica, stage(chat(replica.port)) as here, here.connection() as client:
        await client.send(completion(stream=True))
        await until(lambda: bool(replica.asked))
        closing = asyncio.create_task(here.gateway.close(drain_s=0.2))
        answer = await client.answer()
        await closing
    assert answer.whole
    assert b"stream_broken" in answer.body


@in_a_loop
async def test_what_runs_on_a_replica_that_leaves_the_routes_ends_there() -> None:
    release = asyncio.Event()
    async with Upstream(silent(release)) as old, Upstream(engine) as new, stage(chat(old.port)) as here:
        asking = asyncio.create_task(here.ask(completion()))
        await until(lambda: bool(old.asked))
        here.serve(chat(new.port))
        assert (await here.ask(completion())).status == 200
        release.set()
        answer = await asking
    assert (answer.status, answer.body) == (200, COMPLETION)
    assert (len(old.asked), len(new.asked)) == (1, 1)


@in_a_loop
async def test_a_canary_gets_its_part_of_the_requests_and_no_more() -> None:
    async with Upstream(engine) as old, Upstream(engine) as new:
        route = chat(old.port, new.port, canary=10)
        first, second = route.replicas
        route = replace(route, replicas=(replace(first, is_new=False), second))
        async with stage(route) as here, here.connection() as client:
            for _ in range(60):
                assert (await client.ask(completion())).status == 200
    assert (len(old.asked), len(new.asked)) == (54, 6)


@in_a_loop
async def test_a_canary_that_fails_costs_nobody_a_request() -> None:
    async def hang_up(asked: Asked, writer: asyncio.StreamWriter) -> bool:
        return True

    async with Upstream(engine) as old, Upstream(hang_up) as new:
        route = chat(old.port, new.port, canary=50)
        first, second = route.replicas
        route = replace(route, replicas=(replace(first, is_new=False), second))
        async with stage(route) as here:
            answers = [await here.ask(completion()) for _ in range(10)]
    assert {answer.status for answer in answers} == {200}
