"""Connections from clients: one request after the other, each handed to an exchange."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from orchestrator.gateway.answers import answer, error_object
from orchestrator.gateway.server.exchange import Exchange
from orchestrator.gateway.wire import MOST_HEAD_BYTES, BadMessage, Chunks, Request, parse_request

if TYPE_CHECKING:
    from orchestrator.gateway.server.gateway import Gateway

NEVER = float("inf")
LINGER_S = 2.0
LAST_REQUEST_S = 1.0
"""How long a gateway that ends waits for the request of a connection that has had none answered: a
client sends it at once, and takes a close before the answer for a failure."""


class Inbound(asyncio.Protocol):
    """One client's connection.

    ``deadline`` is when it is closed unless something happens before, on the gateway's clock;
    while a request is answered, the exchange's own counts.
    """

    __slots__ = (
        "_buffer", "_choked", "_chunks", "_ending", "_held", "_left", "_reading", "deadline", "exchange",
        "gateway", "is_fresh", "peer", "transport",
    )  # fmt: skip
    transport: asyncio.Transport

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.exchange: Exchange | None = None
        self.deadline = NEVER
        self.peer = ""
        self.is_fresh = True
        """Whether no request of it was answered yet."""
        self._buffer = b""
        self._reading: Request | None = None
        """The request whose body has not come whole."""
        self._chunks = Chunks()
        self._left = 0
        self._held = False
        self._choked = False
        self._ending = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start to wait for a request."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's own is none by its class
        address = transport.get_extra_info("peername")
        self.peer = str(address[0]) if isinstance(address, tuple) else ""
        self.deadline = self.gateway.now + self.gateway.limits.head_s
        self.gateway.inbounds.add(self)

    def data_received(self, data: bytes) -> None:
        """Take what the client sends."""
        if self._ending:
            return
        exchange = self.exchange
        if exchange is not None and exchange.is_tunnel:
            exchange.pass_up(data)
            return
        self._buffer = self._buffer + data if self._buffer else data
        try:
            self._advance()
        except BadMessage as error:
            self._refuse(error.status, error.what)

    def _advance(self) -> None:
        """Read as far as possible: bodies as they come, the next head once the answer is out."""
        while self._buffer and not self._ending:
            if self._reading is not None:
                self._read_body(self._reading)
            elif self.exchange is not None:
                if self.exchange.is_tunnel:
                    data, self._buffer = self._buffer, b""
                    self.exchange.pass_up(data)
                elif len(self._buffer) > MOST_HEAD_BYTES:
                    self.hold_reading(True)
                return
            elif self._choked:  # answers pile up unread: no more of them
                self.hold_reading(True)
                return
            elif not self._read_head():
                return

    def _read_head(self) -> bool:
        buffer = self._buffer
        if buffer[:2] == b"\r\n":  # RFC 9112 2.2: an empty line before a request is passed over
            self._buffer = buffer[2:]
            return True
        end = buffer.find(b"\r\n\r\n") + 4
        if end < 4 or end > MOST_HEAD_BYTES:
            if len(buffer) > MOST_HEAD_BYTES:
                raise BadMessage(431, f"the head is larger than {MOST_HEAD_BYTES} bytes")
            return False
        request = parse_request(buffer[:end])
        self._buffer = buffer[end:]
        self._start(request)
        return True

    def _start(self, request: Request) -> None:
        limits = self.gateway.limits
        if request.length > limits.body_bytes:
            raise BadMessage(413, f"a body may have {limits.body_bytes} bytes")
        self.deadline = NEVER
        if request.body != "none":
            self._reading = request
            self._left = request.length
            self._chunks = Chunks()
            expected = request.taken.get(b"expect", b"").lower()
            if expected == b"100-continue" and not self._buffer and not request.old:
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        exchange = Exchange(self, request)
        self.exchange = exchange
        self.gateway.exchanges.add(exchange)
        if self._reading is not None and self._buffer:
            self._read_body(self._reading)
            if not exchange.is_over and not exchange.has_begun:
                exchange.begin()
        else:
            exchange.begin()

    def _read_body(self, request: Request) -> None:
        data, self._buffer = self._buffer, b""
        if request.body == "chunked":
            piece = self._chunks.feed(data)
            ended = self._chunks.ended
            self._buffer = self._chunks.rest
        else:
            piece = data[: self._left]
            self._buffer = data[self._left :]
            self._left -= len(piece)
            ended = self._left == 0
        if ended:
            self._reading = None
        if self.exchange is not None:
            self.exchange.take_body(piece, ended)

    def hold_reading(self, hold: bool) -> None:
        """Stop or go on reading what the client sends."""
        if hold != self._held and not self.transport.is_closing():
            self._held = hold
            (self.transport.pause_reading if hold else self.transport.resume_reading)()

    def finished(self, *, close: bool) -> None:
        """Part from the request that has been answered, and look for the next."""
        self.exchange, self.is_fresh = None, False
        if close or self._reading is not None or self.gateway.is_draining:
            self._end()
            return
        self.hold_reading(False)
        self.deadline = self.gateway.now + self.gateway.limits.idle_s
        if self._buffer:
            # Not from here: an answer that is given at once would nest as deep as its pipeline.
            self.gateway.loop.call_soon(self.data_received, b"")

    def _end(self) -> None:
        """Close once all is written, reading on for a moment.

        To close with unread bytes would reset the connection, and the answer that says why could
        be lost on its way (RFC 9112, section 9.6).
        """
        self._buffer = b""
        if self._reading is None or not self.transport.can_write_eof():
            self.transport.close()
            return
        self._ending = True
        self._reading = None
        self.hold_reading(False)
        try:
            self.transport.write_eof()
        except OSError:  # the client has gone, and nobody has told us yet
            self.transport.abort()
        self.deadline = self.gateway.now + LINGER_S

    def _refuse(self, status: int, what: str) -> None:
        """Answer bytes that are no request; what follows them cannot be trusted."""
        exchange = self.exchange
        if exchange is not None:
            if self._reading is not None:
                exchange.refuse(status, what)
            else:  # the next request is bad, the one being answered is not
                exchange.close_after = True
                self._buffer = b""
            return
        self._reading = None
        self.gateway.count_refused(status)
        self.transport.write(answer(status, error_object(status, what), close=True))
        self.transport.close()

    def retire(self, patience_s: float) -> None:
        """Close the connection, where no request is under way, or about to come within ``patience_s``."""
        if self.exchange is not None:
            return
        if patience_s > 0 and (self.is_fresh or self._buffer):
            self.deadline = min(self.deadline, self.gateway.now + min(patience_s, LAST_REQUEST_S))
        else:
            self.transport.close()

    def expire(self) -> None:
        """Close a connection on which nothing came in time."""
        if self._buffer and not self._ending:
            self._refuse(408, "the request's head did not come in time")
        else:
            self.transport.abort() if self._ending else self.transport.close()

    def eof_received(self) -> bool:
        """Take the end of what the client sends as its leaving, as nginx and Go's server do.

        A generation that nobody reads costs a device; a client that wants its answer keeps its
        end open.
        """
        return False

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        """Break off what the client no longer waits for."""
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.abandon()
        self.gateway.left(self)

    def pause_writing(self) -> None:
        """Read no faster from the replica than the client reads."""
        self._choked = True
        if self.exchange is not None:
            self.exchange.hold_response(True)

    def resume_writing(self) -> None:
        """Go on reading from the replica, or the next request."""
        self._choked = False
        if self.exchange is not None:
            self.exchange.hold_response(False)
        else:
            self.hold_reading(False)
            self.data_received(b"")
