"""Connections to replicas: opened when needed, kept for the next request, read response by response."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from orchestrator.gateway.routes import Replica
from orchestrator.gateway.wire import MOST_HEAD_BYTES, BadMessage, Chunks, Response, parse_response

if TYPE_CHECKING:
    from orchestrator.gateway.server.exchange import Exchange

MOST_IDLE = 256
"""Connections kept open to one replica while no request uses them."""
IDLE_S = 4.0
"""How long one is kept: uvicorn, which most engines run on, closes idle ones after 5 s
(uvicorn docs, ``timeout_keep_alive``), and a request sent just then would have to be repeated."""
FIRST_MISS_S = 0.25
MOST_MISS_S = 5.0


class Lane:
    """One replica as the gateway uses it: what is with it, and whether it answered lately."""

    __slots__ = ("avoid_until", "gone", "idle", "misses", "outstanding", "replica")

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.outstanding = 0
        self.idle: list[Outbound] = []
        self.avoid_until = 0.0
        self.misses = 0
        self.gone = False

    def missed(self, now: float) -> None:
        """Note that it could not be reached; for a while others are asked first."""
        self.avoid_until = now + min(MOST_MISS_S, FIRST_MISS_S * 2**self.misses)
        self.misses = min(self.misses + 1, 8)

    def answered(self) -> None:
        """Note that it is well."""
        self.misses, self.avoid_until = 0, 0.0

    def take_idle(self) -> Outbound | None:
        """Return an open connection, the one used last: the others may run out."""
        while self.idle:
            outbound = self.idle.pop()
            if not outbound.transport.is_closing():
                return outbound
        return None

    def close_idle(self, before: float) -> None:
        """Close the connections that nobody has used since ``before``."""
        old = [outbound for outbound in self.idle if outbound.idle_since <= before]
        self.idle = [outbound for outbound in self.idle if outbound.idle_since > before]
        for outbound in old:
            outbound.transport.close()

    def leave(self) -> None:
        """Give no new request to it, and let the connections go that no request uses."""
        self.gone = True
        self.close_idle(float("inf"))


class Outbound(asyncio.Protocol):
    """One connection to a replica.

    ``used`` counts the requests it has answered: a connection that has may have been closed at
    the other end by now.
    """

    __slots__ = (
        "_buffer", "_chunks", "_left", "_method", "_response", "exchange", "idle_since", "lane", "now",
        "transport", "tunnel", "used",
    )  # fmt: skip
    transport: asyncio.Transport

    def __init__(self, lane: Lane, now: Callable[[], float]) -> None:
        self.lane = lane
        self.now = now
        self.exchange: Exchange | None = None
        self.used = 0
        self.idle_since = 0.0
        self.tunnel = False
        self._buffer = b""
        self._response: Response | None = None
        self._chunks = Chunks()
        self._left = 0
        self._method = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the way to write."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's own is none by its class

    def serve(self, exchange: Exchange, method: bytes) -> None:
        """Make the next response ``exchange``'s."""
        self.exchange = exchange
        self._method = method
        self._response = None
        self._buffer = b""

    def drop(self) -> None:
        """Part from the request it serves, which breaks off at the replica too."""
        self.exchange = None
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Read what the replica says."""
        exchange = self.exchange
        if exchange is None:
            self.transport.abort()  # nobody asked for anything
            return
        if self.tunnel:
            exchange.pass_on(data)
            return
        try:
            if self._response is None:
                self._read_head(data, exchange)
            else:
                self._read_body(data, exchange, self._response)
        except BadMessage as error:
            self.drop()
            exchange.broke(self, f"the replica's answer is no HTTP: {error.what}")
            return
        exchange.flush()

    def _read_head(self, data: bytes, exchange: Exchange) -> None:
        data = self._buffer + data if self._buffer else data
        while True:
            end = data.find(b"\r\n\r\n") + 4
            if end < 4:
                if len(data) > MOST_HEAD_BYTES:
                    raise BadMessage(502, "response head too large")
                self._buffer = data
                return
            response = parse_response(data[:end], method=self._method)
            data = data[end:]
            if response.status >= 200 or response.status == 101:
                break
        self._buffer = b""
        self._begin(response, data, exchange)

    def _begin(self, response: Response, data: bytes, exchange: Exchange) -> None:
        """Begin an answer with the first bytes of its body."""
        if response.status == 101 and not exchange.request.upgrade:
            raise BadMessage(502, "a switch of protocols that nobody asked for")
        if not exchange.take_head(response):
            return
        self._response = response
        self._left = response.length
        if response.status == 101:
            self.tunnel = True
            if data:
                exchange.pass_on(data)
            return
        if response.body == "chunked":
            self._chunks = Chunks()
        if response.body == "none":
            self._finish(exchange, clean=not data and not response.close)
        elif data:
            self._read_body(data, exchange, response)

    def _read_body(self, data: bytes, exchange: Exchange, response: Response) -> None:
        if response.body == "chunked":
            chunks = self._chunks
            payload = chunks.feed(data)
            exchange.take_piece(payload, data if chunks.clean else None, chunks.ended)
            if chunks.ended:
                self._finish(exchange, clean=not chunks.rest and not response.close)
        elif response.body == "length":
            self._left -= len(data)
            exchange.take_piece(data if self._left >= 0 else data[: self._left], None, self._left <= 0)
            if self._left <= 0:
                self._finish(exchange, clean=self._left == 0 and not response.close)
        else:
            exchange.take_piece(data, None, False)

    def _finish(self, exchange: Exchange, *, clean: bool) -> None:
        self.exchange = None
        self.used += 1
        if clean and exchange.is_sent and not self.lane.gone and len(self.lane.idle) < MOST_IDLE:
            self.idle_since = self.now()
            self.lane.idle.append(self)
        else:
            self.transport.close()
        exchange.end()  # last: it may give this connection to the next request

    def connection_lost(self, error: Exception | None) -> None:
        """End the response that ends with its connection; any other has broken off."""
        exchange, self.exchange = self.exchange, None
        if exchange is None:
            if self in self.lane.idle:
                self.lane.idle.remove(self)
        elif self.tunnel:
            exchange.end()
        elif error is None and self._response is not None and self._response.body == "close":
            exchange.take_piece(b"", None, True)
            exchange.end()
        else:
            exchange.broke(self, "the replica broke off")

    def pause_writing(self) -> None:
        """Read no more of the request than the replica takes."""
        if self.exchange is not None:
            self.exchange.inbound.hold_reading(True)

    def resume_writing(self) -> None:
        """Go on reading the request."""
        if self.exchange is not None:
            self.exchange.inbound.hold_reading(False)
