"""The gateway: what all connections share, the tick that ends what takes too long, and draining."""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from orchestrator.engines.exposition import EngineLoad
from orchestrator.frozen import frozen
from orchestrator.gateway.affinity import Prefixes
from orchestrator.gateway.keys import Keys
from orchestrator.gateway.limits import Buckets
from orchestrator.gateway.routes import Replica, Routes, ServiceRoute
from orchestrator.gateway.server.exchange import Exchange
from orchestrator.gateway.server.inbound import Inbound
from orchestrator.gateway.server.listening import accept_no_more
from orchestrator.gateway.server.metrics import TOKENS_S, WAITS_S, Histogram, Told, exposition
from orchestrator.gateway.server.outbound import IDLE_S, Lane, Outbound
from orchestrator.gateway.usage import Account, Tokens
from orchestrator.gateway.wire import Request

if TYPE_CHECKING:  # an extra
    from orchestrator.gateway.server.tracing import Tracing

LAST_WORDS_S = 1.0
"""For clients to read the error that ends what was cut."""
BUSIER = 4
"""Requests that a replica may have more than the least busy one, and still get those that begin alike."""
TICK_S = 0.1
"""How exact time-outs are; one look at every connection."""


@frozen
class Limits:
    """What the gateway holds clients and replicas to; seconds, bytes and counts.

    Args:
        head_s: From a connection, or the first byte of a head, to the whole head.
        idle_s: Between two requests of one connection.
        body_s: Between two pieces of a request's body, while the model is looked for.
        connect_s: To connect to a replica.
        first_byte_s: From the last byte sent to the first of the answer: a long generation that
            is not streamed has none until it is done.
        between_s: Between two pieces of an answer.
        tunnel_s: Between two messages of a WebSocket.
        queue: Requests of one service that wait for a replica.
        queue_s: How long one waits.
        retry_after_s: What a client is told that found the queue full.
        body_bytes: The largest body.
        replay_bytes: The largest body that is kept to be sent again.
        drain_s: From the order to end until what still runs is cut.
    """

    head_s: float = 20.0
    idle_s: float = 75.0
    body_s: float = 60.0
    connect_s: float = 5.0
    first_byte_s: float = 600.0
    between_s: float = 300.0
    tunnel_s: float = 3600.0
    queue: int = 1000
    queue_s: float = 600.0
    retry_after_s: float = 5.0
    body_bytes: int = 64 * 2**20
    replay_bytes: int = 4 * 2**20
    drain_s: float = 30.0


class Desk:
    """One service as the gateway serves it: its replicas, who waits, and how often clients asked."""

    __slots__ = (
        "arrived", "buckets", "cost_usd", "given", "is_serving", "lanes", "prefixes", "queue_s", "service",
        "token_s", "ttft_s", "turn", "waiting",
    )  # fmt: skip

    def __init__(self, service: ServiceRoute) -> None:
        self.service = service
        self.lanes: list[Lane] = []
        self.waiting: dict[Exchange, None] = {}
        """In the order they came."""
        self.buckets = Buckets()
        self.prefixes: Prefixes[Replica] = Prefixes()
        self.arrived = 0
        self.given = 0
        """Requests that a replica was given."""
        self.turn = 0
        self.is_serving = False
        self.queue_s = Histogram(WAITS_S)
        self.ttft_s = Histogram(WAITS_S)
        self.token_s = Histogram(TOKENS_S)
        self.cost_usd = 0.0
        """What its replicas have cost since the gateway started."""

    def pick_alike(
        self, begun: Sequence[int], tried: Sequence[Lane], now: float, adapter: str = ""
    ) -> Lane | None:
        """Return the replica that had what began alike where it is not much busier, else as ``pick`` does."""
        least = self.pick(tried, now, adapter)
        if least is None or self.service.canary:
            return least
        known = self.prefixes.find(begun)
        lane = next((lane for lane in self.lanes if lane.replica == known), least)
        most = min(self.service.most_outstanding, least.outstanding + BUSIER)
        can = lane.outstanding < most and lane.avoid_until <= now and lane not in tried
        has = lane.replica.adapters
        if not can or (adapter and has is not None and adapter not in has):
            lane = least
        self.prefixes.put(begun, lane.replica)
        return lane

    def pick(self, tried: Sequence[Lane], now: float, adapter: str = "") -> Lane | None:
        """Return the replica with the fewest requests on its hands, None where none has room.

        Equal ones take turns; one that could not be reached lately is passed over, and one that
        has not loaded the ``adapter`` that is asked for.
        """
        lanes = self.lanes
        self.turn += 1
        if adapter:
            lanes = [lane for lane in lanes if (has := lane.replica.adapters) is None or adapter in has]
        if self.service.canary:
            # Spread evenly, and no request is lost where the side it falls on has no room.
            is_new = self.given * self.service.canary % 100 < self.service.canary
            mine = [lane for lane in lanes if lane.replica.is_new == is_new]
            return self._least(mine, tried, now) or self._least(lanes, tried, now)
        return self._least(lanes, tried, now)

    def _least(self, lanes: Sequence[Lane], tried: Sequence[Lane], now: float) -> Lane | None:
        count = len(lanes)
        best, least = None, self.service.most_outstanding
        for offset in range(count):
            lane = lanes[(self.turn + offset) % count]
            if lane.outstanding < least and lane.avoid_until <= now and lane not in tried:
                best, least = lane, lane.outstanding
        return best


class Gateway:
    """Passes requests on to replicas.

    Args:
        limits: What clients and replicas are held to.
        trusted: Addresses of proxies in front of it, whose ``X-Forwarded-For`` is believed.
        scheme: What clients speak, where no proxy says so: ``http`` or ``https``.
        log: Told of every request that is over.
        tracing: Makes OpenTelemetry spans of requests.
        beside: Figures of what else runs in this process, told after its own.
    """

    def __init__(
        self,
        *,
        limits: Limits = Limits(),  # noqa: B008  # frozen
        trusted: frozenset[str] = frozenset(),
        scheme: str = "http",
        log: Callable[[Told], None] | None = None,
        tracing: Tracing | None = None,
        beside: Callable[[], str] = str,
    ) -> None:
        self.limits = limits
        self.routes = Routes()
        self.keys = Keys({})
        self.desks: dict[str, Desk] = {}
        self.scheme = scheme.encode()
        self.is_draining = False
        self.inbounds: set[Inbound] = set()
        self.exchanges: set[Exchange] = set()
        self.accounts: dict[tuple[str, str], Account] = {}
        self.engines: Mapping[str, Mapping[Replica, EngineLoad]] = {}
        """What the engines of each service told last, where somebody asks them."""
        self.refused: dict[int, int] = {}
        """Answers of our own by status."""
        self._trusted = trusted
        self._log = log
        self.tracing = tracing
        self.beside = beside
        self._lanes: dict[Replica, Lane] = {}
        self._leaving: list[Lane] = []
        """Replicas that left the routes, while requests are still with them."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._ticking: asyncio.TimerHandle | None = None
        self._empty: asyncio.Event | None = None
        self._asked_for_sleeper = asyncio.Event()

    # Open and close ------------------------------------------------------------------------------

    async def open(
        self, host: str, port: int, *, tls: ssl.SSLContext | None = None, shared: bool = False
    ) -> tuple[str, int]:
        """Listen; return the address and port, which is a free one where 0 was asked for.

        Where the port is ``shared`` other gateways may listen there too, and the kernel spreads
        connections over them: the next one takes over before this one ends.

        Raises:
            OSError: the address is taken or none of this machine's.
        """
        self.loop = asyncio.get_running_loop()
        self.clock = self.loop.time
        self.now = self.clock()
        """The clock as of the last tick: what time-outs are counted by."""
        self._empty = asyncio.Event()
        self._server = await self.loop.create_server(
            lambda: Inbound(self), host, port, ssl=tls, backlog=4096, reuse_port=shared or None
        )
        self._tick()
        address = self._server.sockets[0].getsockname()
        return str(address[0]), int(address[1])

    async def close(self, *, drain_s: float | None = None) -> None:
        """Take no new connection, let what runs end for ``drain_s`` seconds, then cut it."""
        assert self._server is not None
        self.is_draining = True
        patience_s = self.limits.drain_s if drain_s is None else drain_s
        await accept_no_more(self._server)
        for inbound in list(self.inbounds):
            inbound.retire(patience_s)
        if not await self._all_leave(patience_s):
            for exchange in list(self.exchanges):
                exchange.expire()
            await self._all_leave(LAST_WORDS_S)
        self._shut()

    async def _all_leave(self, patience_s: float) -> bool:
        """Wait until no client is connected; False where some still are after ``patience_s``."""
        assert self._empty is not None
        if self.inbounds:
            try:
                async with asyncio.timeout(patience_s):
                    await self._empty.wait()
            except TimeoutError:
                return False
        return True

    def left(self, inbound: Inbound) -> None:
        """Note that a client's connection has gone."""
        self.inbounds.discard(inbound)
        if self.is_draining and not self.inbounds and self._empty is not None:
            self._empty.set()

    def _shut(self) -> None:
        if self._ticking is not None:
            self._ticking.cancel()
        for task in self._tasks:
            task.cancel()
        for lane in self._lanes.values():
            lane.leave()
        for inbound in list(self.inbounds):
            inbound.transport.abort()

    def _tick(self) -> None:
        before, self.now = self.now, self.clock()
        now = self.now
        for exchange in [e for e in self.exchanges if e.deadline <= now]:
            exchange.expire()
        for inbound in [i for i in self.inbounds if i.deadline <= now]:
            inbound.expire()
        for lane in self._lanes.values():
            lane.close_idle(now - IDLE_S)
        for desk in self.desks.values():
            if desk.service.price_usd_hour:
                desk.cost_usd += desk.service.price_usd_hour * desk.service.held * (now - before) / 3600
            if desk.waiting:
                self._serve_waiting(desk)
        self._ticking = self.loop.call_later(TICK_S, self._tick)

    # Routes --------------------------------------------------------------------------------------

    def update(self, routes: Routes, keys: Keys | None = None) -> None:
        """Serve by ``routes`` from now on; requests under way stay where they are."""
        self.routes = routes
        if keys is not None:
            self.keys = keys
        wanted = {replica for service in routes.services.values() for replica in service.replicas}
        self._leaving = [lane for lane in self._leaving if lane.outstanding]
        for replica in [replica for replica in self._lanes if replica not in wanted]:
            lane = self._lanes.pop(replica)
            lane.leave()
            self._leaving.append(lane)
        gone = [name for name in self.desks if name not in routes.services]
        for name, service in routes.services.items():
            desk = self.desks.get(name)
            if desk is None:
                desk = self.desks[name] = Desk(service)
            desk.service = service
            desk.lanes = [self._lane(replica) for replica in service.replicas]
            self._serve_waiting(desk)
        for name in gone:
            desk = self.desks.pop(name)
            desk.lanes = []
            for exchange in list(desk.waiting):
                exchange.refuse(503, f"service {name!r} has gone", "service_over")

    def _lane(self, replica: Replica) -> Lane:
        lane = self._lanes.get(replica)
        if lane is None:
            lane = self._lanes[replica] = Lane(replica)
        lane.replica = replica  # the same one, of an older spec by now
        return lane

    def _serve_waiting(self, desk: Desk) -> None:
        """Give those who wait, first come first, to replicas with room."""
        if desk.is_serving:  # one of them was refused, and gave its place back from in here
            return
        desk.is_serving = True
        while desk.waiting and (exchange := self._next_waiting(desk)) is not None:
            del desk.waiting[exchange]
            exchange.wake()
        desk.is_serving = False

    def _next_waiting(self, desk: Desk) -> Exchange | None:
        """Return the first that can be served; one whose adapter is nowhere yet holds up no other."""
        if desk.service.over or not desk.service.adapters:
            first = next(iter(desk.waiting))
            return first if desk.service.over or desk.pick((), self.now) is not None else None
        found: dict[str, bool] = {}
        for exchange in desk.waiting:
            if exchange.adapter not in found:
                has = desk.pick((), self.now, exchange.adapter) is not None
                found[exchange.adapter] = has or desk.service.lacks(exchange.adapter)
            if found[exchange.adapter]:
                return exchange
        return None

    def has_sleepers(self) -> bool:
        """Return whether a request waits for a service that has no replica."""
        return any(desk.waiting and not desk.lanes for desk in self.desks.values())

    def wait_in(self, desk: Desk, exchange: Exchange) -> None:
        """Have a request wait for a replica."""
        if not desk.waiting and not desk.lanes:
            self._asked_for_sleeper.set()
        desk.waiting[exchange] = None

    async def wait_for_sleeper(self, patience_s: float) -> None:
        """Wait until somebody asks for a service that has no replica, at most ``patience_s``."""
        try:
            async with asyncio.timeout(patience_s):
                await self._asked_for_sleeper.wait()
        except TimeoutError:
            return
        self._asked_for_sleeper.clear()

    def connect(self, lane: Lane, exchange: Exchange) -> None:
        """Open a connection for ``exchange``."""
        task = self.loop.create_task(self._connect(lane, exchange))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, lane: Lane, exchange: Exchange) -> None:
        try:
            async with asyncio.timeout(self.limits.connect_s):
                _, outbound = await self.loop.create_connection(
                    lambda: Outbound(lane, self.clock), lane.replica.host, lane.replica.port
                )
        except OSError:  # TimeoutError is one
            exchange.not_connected()
        else:
            exchange.connected(outbound)

    # What is known of clients --------------------------------------------------------------------

    def client_address(self, peer: str, request: Request) -> str:
        """Return the client's address: the peer's, or what a trusted proxy says it is."""
        if peer in self._trusted:
            told = request.taken.get(b"x-forwarded-for", b"").rpartition(b",")[2].strip()
            if told:
                return told.decode("latin-1")
        return peer

    def count_refused(self, status: int) -> None:
        """Count an answer of our own."""
        self.refused[status] = self.refused.get(status, 0) + 1

    def settle(self, exchange: Exchange, desk: Desk | None, status: int, tokens: Tokens | None) -> None:
        """Count a request that is over, and let the next one have its place."""
        if desk is None:
            if status >= 400:
                self.count_refused(status)
        else:
            name = exchange.key.name if exchange.key is not None else ""
            account = self.accounts.get((name, desk.service.name))
            if account is None:
                account = self.accounts[name, desk.service.name] = Account()
            account.add(status, tokens)
            if exchange.first_byte_s:
                self._time(exchange, desk, tokens)
            if desk.waiting:
                self._serve_waiting(desk)
        if exchange.traced is not None:
            exchange.traced.end(exchange, desk.service.name if desk else "", status, tokens)
        if self._log is not None:
            self._log(self._told(exchange, desk, status, tokens))

    def _time(self, exchange: Exchange, desk: Desk, tokens: Tokens | None) -> None:
        """Note how long a request waited, when its answer began and how fast its tokens came."""
        desk.queue_s.add(exchange.taken_s - exchange.started_s)
        if exchange.is_stream:
            desk.ttft_s.add(exchange.first_byte_s - exchange.started_s)
            if tokens is not None and tokens.output > 1:
                desk.token_s.add((self.clock() - exchange.first_byte_s) / (tokens.output - 1))

    def _told(self, exchange: Exchange, desk: Desk | None, status: int, tokens: Tokens | None) -> Told:
        now = self.clock()
        first = exchange.first_byte_s
        return Told(
            key=exchange.key.name if exchange.key is not None else "",
            service=desk.service.name if desk is not None else "",
            model=exchange.model,
            method=exchange.request.method.decode("ascii"),
            path=exchange.request.path.decode("ascii"),
            client=self.client_address(exchange.inbound.peer, exchange.request),
            status=status,
            duration_s=now - exchange.started_s,
            first_byte_s=first - exchange.started_s if first else math.nan,
            tokens=tokens,
        )

    def metrics(self) -> str:
        """Return the counters in Prometheus' text format."""
        return exposition(self.desks, self.accounts, self.refused, self.engines) + self.beside()

    def serving(self) -> Mapping[str, int]:
        """Return how many requests are with each replica, those that left the routes too; from any thread."""
        return {lane.replica.name: lane.outstanding for lane in [*list(self._lanes.values()), *self._leaving]}

    def load(self) -> Mapping[str, tuple[int, int, int]]:
        """Return each service's waiting requests, those with replicas, and arrivals so far."""
        found = {
            name: (len(desk.waiting), sum(lane.outstanding for lane in desk.lanes), desk.arrived)
            for name, desk in self.desks.items()
        }
        for desk in self.desks.values():
            if desk.service.base in found:  # what is asked of it, the base's replicas do
                waiting, outstanding, arrived = found[desk.service.base]
                found[desk.service.base] = waiting + len(desk.waiting), outstanding, arrived + desk.arrived
        return found
