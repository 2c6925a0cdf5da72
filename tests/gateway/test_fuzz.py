"""Whatever bytes come: an answer or a closed connection, no traceback, and nothing smuggled in."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress

import pytest

from orchestrator.gateway.server import Limits
from tests.gateway.clients import completion, dial, in_a_loop, request, stage, web
from tests.gateway.upstream import Upstream, plain, saying

INNER = b"GET /services/web/smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
OUTER = b"POST /services/web/outer HTTP/1.1\r\nHost: a\r\n"
PARTS = (
    b"\r\n",
    b"\n",
    b"\r",
    b" ",
    b"\t",
    b":",
    b"\x00",
    b"\xff",
    b"0",
    b"5",
    b"ffffffffff",
    b"chunked",
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Expect: 100-continue\r\n",
    b"GET / HTTP/1.1",
    b"Connection: upgrade\r\nUpgrade: websocket\r\n",
    b"0\r\n\r\n",
    b"x" * 70_000,
    b"Host: b\r\n",
    b"HTTP/1.0",
)


@pytest.mark.parametrize(
    "attack",
    [
        OUTER
        + b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" % (len(INNER) + 5)
        + INNER,
        OUTER + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + INNER,
        OUTER + b"Content-Length: 0\r\nContent-Length: %d\r\n\r\n" % len(INNER) + INNER,
        OUTER + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + INNER,
        OUTER + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + INNER,
        OUTER + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n" + INNER,
        OUTER + b"X: a\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + INNER,
        OUTER + b"X: a\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + INNER,
        OUTER + b"Transfer-Encoding: chunked\r\n\r\n0 \r\n\r\n" + INNER,
        OUTER + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhelloXX0\r\n\r\n" + INNER,
        OUTER + b"Transfer-Encoding: chunked\r\n\r\n1;a\nb\r\nx\r\n0\r\n\r\n" + INNER,
        OUTER.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + INNER,
    ],
)
def test_no_second_request_is_read_out_of_a_doubtful_first(attack: bytes) -> None:
    @in_a_loop
    async def check() -> None:
        async with Upstream(saying(plain(b"{}"))) as replica, stage(web(replica.port)) as here:
            async with here.connection() as client:
                assert (await client.ask(attack)).status in (400, 501)
                assert await client.is_closed()
            assert "/smuggled" not in [asked.target for asked in replica.asked]

    check()


@pytest.mark.parametrize("seed", range(8))
def test_any_bytes_end_in_an_answer_or_a_close(seed: int) -> None:
    @in_a_loop
    async def check() -> None:
        dice = random.Random(seed)
        failures: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
        limits = Limits(head_s=0.2, body_s=0.2, first_byte_s=0.3, between_s=0.3, idle_s=0.2)
        async with Upstream(saying(plain(b"{}"))) as replica, stage(web(replica.port), limits=limits) as here:
            await asyncio.gather(*(throw(here.port, dice) for _ in range(25)))
            whole = await here.ask(request("/services/web/", method="GET"))
        assert failures == []
        assert whole.status == 200

    check()


async def throw(port: int, dice: random.Random) -> None:
    """Send a request with a few bytes changed, in pieces, and read until the connection is closed."""
    data = bytearray(
        dice.choice([completion(), OUTER + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"])
    )
    for _ in range(dice.randint(0, 4)):
        at = dice.randrange(len(data))
        data[at : at + dice.randint(0, 3)] = dice.choice(PARTS)
    with suppress(ConnectionError):  # a close is an answer too
        async with dial(port) as (reader, writer):
            while data:
                cut = dice.randint(1, len(data))
                writer.write(data[:cut])
                del data[:cut]
                await writer.drain()
                await asyncio.sleep(0)
            while await reader.read(2**16):
                pass
