"""One request and its answer: which service, whose key, which replica, and what if that fails."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

from orchestrator.gateway.affinity import beginnings
from orchestrator.gateway.answers import answer, error_event, error_object, models
from orchestrator.gateway.keys import Key
from orchestrator.gateway.limits import rate_for
from orchestrator.gateway.model_key import ModelKey, model_of_form
from orchestrator.gateway.routes import ServiceRoute
from orchestrator.gateway.server.outbound import Lane, Outbound
from orchestrator.gateway.usage import TAIL_BYTES, Tokens, tokens_of
from orchestrator.gateway.wire import LAST_CHUNK, Request, Response, chunk

if TYPE_CHECKING:
    from orchestrator.gateway.server.gateway import Desk
    from orchestrator.gateway.server.inbound import Inbound
    from orchestrator.gateway.server.tracing import Traced

ATTEMPTS = 3
"""Replicas that a request is sent to at most: one that brings replicas down must not reach all."""
ASK_AGAIN = 503
"""An engine that drains or still loads answers this to a request it has not begun."""
MOST_EVENT_BYTES = 64 * 1024
"""Of a half event that is kept; a longer one is passed on as it comes."""
HELD_BYTES = 256 * 1024
"""Of a body that waits for a replica, before the client is read no further."""

_IDEMPOTENT = frozenset((b"GET", b"HEAD", b"PUT", b"DELETE", b"OPTIONS"))
_BEARER = b"bearer "
_NEEDED = "a key is needed, as Authorization: Bearer"
_TRACE = (b"traceparent", b"tracestate")
_EVENT_ENDS = (b"\n\n", b"\r\n\r\n")


class Exchange:
    """One request on its way.

    ``deadline`` is when waiting for the other side ends, on the gateway's clock. Until the first
    byte of an answer has gone to the client, ``_body`` keeps what has come of the request, so
    that another replica can be asked.
    """

    __slots__ = (
        "_attempts", "_body", "_body_ended", "_chunked", "_desk", "_forgotten", "_half", "_held",
        "_is_stream", "_lane", "_look", "_model", "_out", "_outbound", "_piece", "_received", "_sending",
        "_service", "_started_s", "_status", "_tail", "_target", "_timed_out", "_tried", "_wait_until",
        "_wants_fresh", "close_after", "deadline", "first_byte_s", "has_begun", "inbound", "is_over",
        "is_sent", "is_tunnel", "key", "request", "taken_s", "traced",
    )  # fmt: skip

    def __init__(self, inbound: Inbound, request: Request) -> None:
        gateway = inbound.gateway
        self.inbound = inbound
        self.request = request
        self.key: Key | None = None
        self.close_after = request.close
        self.is_over = False
        self.is_sent = False
        """Whether the whole request has been handed to the replica."""
        self.is_tunnel = False
        self.has_begun = False
        self.deadline = gateway.now + gateway.limits.body_s
        self.first_byte_s = 0.0
        self.taken_s = 0.0
        """When a replica was found for it; 0.0 before."""
        self._started_s = gateway.clock()
        self.traced: Traced | None = None
        self._body = bytearray()
        self._body_ended = request.body == "none"
        self._forgotten = False
        """Whether the body was too large to keep, so that nothing can be sent again."""
        self._look: ModelKey | None = None
        self._service = ""
        """The service that the path names, while its model is looked for."""
        self._model = ""
        self._target = request.target
        self._desk: Desk | None = None
        self._lane: Lane | None = None
        self._outbound: Outbound | None = None
        self._sending = False
        self._held = False
        self._attempts = 0
        self._tried: list[Lane] = []
        self._timed_out = (504, "the replica did not begin to answer in time")
        self._wait_until = 0.0
        """When waiting for a replica ends, however often it is begun; 0.0 before the first time."""
        self._wants_fresh = False
        self._received = 0
        self._is_stream = False
        self._half = b""
        """The beginning of an event whose end has not come."""
        self._status = 0
        self._chunked = False
        self._out: list[bytes] = []
        self._tail = b""
        self._piece = b""

    # Where to ------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Find the service; where that takes the body, as much of it as has come."""
        self.has_begun = True
        gateway = self.inbound.gateway
        if gateway.tracing is not None:
            self.traced = gateway.tracing.begin(self)
        path = self.request.path.decode("ascii")
        self.key = self._find_key()
        if path == "/health":
            self._say(200, {"status": "draining" if gateway.is_draining else "ok"})
        elif path == "/v1/models" or path.startswith("/v1/models/"):
            self._say_models(path)
        elif path == "/metrics":
            self._say_metrics()
        elif path.startswith("/services/"):
            self._enter_service(path)
        elif self.key is None and gateway.routes.all_ask:
            self._refuse_key()  # before a stranger's body is read
        elif self.request.body == "none":
            self.refuse(404, "nothing answers here without a body: name a model in one", "not_found")
        else:
            self._look = ModelKey()
            self.deadline = gateway.now + gateway.limits.body_s
            self._look_for_model()

    def _find_key(self) -> Key | None:
        secret = self._secret()
        return self.inbound.gateway.keys.find(secret) if secret else None

    def _secret(self) -> bytes:
        taken = self.request.taken
        given = taken.get(b"authorization", b"")
        secret = given[len(_BEARER) :].strip() if given[: len(_BEARER)].lower() == _BEARER else b""
        return secret or taken.get(b"x-api-key", b"")

    def _say_models(self, path: str) -> None:
        routes = self.inbound.gateway.routes
        if self.key is None and routes.all_ask:
            self._refuse_key()
            return
        found = models(routes, self.key)
        wanted = path.removeprefix("/v1/models").removeprefix("/")
        if not wanted:
            self._say(200, {"object": "list", "data": found})
            return
        one = next((model for model in found if model["id"] == wanted), None)
        if one is None:
            self.refuse(404, f"no model {wanted!r}", "model_not_found")
        else:
            self._say(200, one)

    def _say_metrics(self) -> None:
        if self.key is None or self.key.services is not None:
            self.refuse(403, "metrics take a key that opens every service")
        else:
            self._say(200, self.inbound.gateway.metrics(), media_type="text/plain; version=0.0.4")

    def _enter_service(self, path: str) -> None:
        name, slash, _ = path.removeprefix("/services/").partition("/")
        service = self.inbound.gateway.routes.services.get(name)
        if service is None:
            self.refuse(404, f"no service {name!r}", "service_not_found")
            return
        self._target = self.request.target[len("/services/") + len(name) :] if slash else b"/"
        if not service.adapters and not service.shares:
            self._enter(service, self._path)
        elif not self._is_open(service):  # before a stranger's body is read
            return
        elif self.request.body != "none":  # which replica, and whether it is this service's, its model says
            self._service, self._look = name, ModelKey()
            self.deadline = self.inbound.gateway.now + self.inbound.gateway.limits.body_s
            self._look_for_model()
        elif service.base:
            self.refuse(404, f"service {name!r} answers to its models' names, in a body", "path_not_served")
        else:
            self._enter(service, self._path)

    def _look_for_model(self) -> None:
        look = self._look
        assert look is not None
        media_type = self.request.taken.get(b"content-type", b"").lower()
        is_form = media_type.startswith(b"multipart/form-data")
        if is_form:
            found = model_of_form(self._body)
            over = found is not None
        else:
            over = look.look(self._body)
            found = look.name
        if not over and not self._body_ended:
            return
        routes = self.inbound.gateway.routes
        named = routes.services.get(self._service)
        service = named if self._service else routes.of_model(found or "")
        if service is not None and service.shares and (is_form or not over):
            found = None  # what another reader may find in it is not known
        if found is None and service is not None and not service.shares:
            self._pass_unnamed(service)
        elif found is None:
            self._look = None
            self.refuse(400, "the body names no model, or more than one", "model_missing")
        elif service is None or (service.shares and not service.model_called(found)):
            self._look = None
            where = f" of service {self._service!r}" if self._service else ""
            self.refuse(404, f"no model {found!r}{where}", "model_not_found")
        elif service.shares and not look.to_the_end:
            self._look = ModelKey(to_the_end=True)
            self._look_for_model()
        elif model := service.model_called(found):
            self._look, self._model = None, model
            self._rename(service.models[model], found, look.span)
            self._enter(service, self._path)
        else:
            self._pass_unnamed(service)

    @property
    def _path(self) -> str:
        """What is asked for: of the service that the path names, where it names one."""
        return self._target.partition(b"?")[0].decode("ascii")

    def _pass_unnamed(self, service: ServiceRoute) -> None:
        """Pass on what names none of the service's models: its engine will say what it makes of that."""
        self._look = None
        self._enter(service, self._path)

    def _rename(self, name: str, asked: str, span: tuple[int, int]) -> None:
        """Call the model what the engine calls it: some are pinned to a folder or a revision."""
        if name == asked or not span[1]:
            return
        text = json.dumps(name).encode()
        self._body[span[0] : span[1]] = text
        self.request.length += len(text) - (span[1] - span[0])

    # Who and how often ---------------------------------------------------------------------------

    def _is_open(self, service: ServiceRoute) -> bool:
        """Return whether the request's key opens ``service``; refuse the request where it does not."""
        if service.auth and self.key is None:
            self._refuse_key()
            return False
        if service.auth and self.key is not None and not self.key.opens(service.name):
            self.refuse(403, f"this key does not open service {service.name!r}", "service_not_open")
            return False
        return True

    def _enter(self, service: ServiceRoute, path: str) -> None:
        gateway = self.inbound.gateway
        if not self._is_open(service):
            return
        if not service.allows(path):
            self.refuse(404, f"service {service.name!r} does not serve {path}", "path_not_served")
            return
        desk = gateway.desks[service.name]
        if rate := rate_for(service.rates, path):
            wait_s = desk.buckets.take(rate, self._client(rate.header), now_s=gateway.clock())
            if wait_s:
                self.refuse(429, "too many requests", "rate_limited", retry_after_s=wait_s)
                return
        self._desk = desk
        desk.arrived += 1
        self._go()

    def _client(self, header: str) -> str:
        """Return what tells this client from another; the key is a header's value by its digest."""
        if not header:
            return self.inbound.gateway.client_address(self.inbound.peer, self.request)
        name = header.encode("latin-1")
        value = self.request.taken.get(name)
        if value is None:
            for line in self.request.fields.split(b"\r\n"):
                field, _, rest = line.partition(b": ")
                if field.lower() == name:
                    value = rest
                    break
        return (value or b"").decode("latin-1")

    def _go(self) -> None:
        """Send to the replica with the least on its hands, or wait for one."""
        desk, gateway = self._desk, self.inbound.gateway
        assert desk is not None
        if desk.service.by_prefix and self._body:
            lane = desk.pick_alike(beginnings(self._body), self._tried, gateway.now, self.adapter)
        else:
            lane = desk.pick(self._tried, gateway.now, self.adapter)
        if lane is not None:
            desk.given += 1
            self._take(lane)
        elif desk.service.over:
            self.refuse(503, f"service {desk.service.name!r} has ended", "service_over")
        elif self.adapter and desk.service.lacks(self.adapter):
            self.refuse(503, f"adapter {self.adapter!r} could not be loaded", "adapter_not_loaded")
        elif len(desk.waiting) >= gateway.limits.queue:
            retry_s = gateway.limits.retry_after_s
            self.refuse(429, f"too many requests wait for {desk.service.name!r}", "queue_full",
                        retry_after_s=retry_s)  # fmt: skip
        else:
            self._wait_until = self._wait_until or gateway.now + gateway.limits.queue_s
            self.deadline = self._wait_until
            self._timed_out = (503, "no replica became free in time")
            gateway.wait_in(desk, self)

    def wake(self) -> None:
        """Try again: a replica came, or has room."""
        self._tried.clear()
        self._go()

    def _take(self, lane: Lane) -> None:
        gateway = self.inbound.gateway
        self._lane = lane
        self.taken_s = self.taken_s or gateway.clock()
        lane.outstanding += 1
        self._attempts += 1
        self.deadline = gateway.now + gateway.limits.first_byte_s
        self._timed_out = (504, "the replica did not begin to answer in time")
        outbound = lane.take_idle() if self._may_repeat() and not self._wants_fresh else None
        if outbound is not None:
            self._send(outbound)
        else:
            gateway.connect(lane, self)

    def _may_repeat(self) -> bool:
        """Whether the request may be sent again though a replica may have begun with it.

        Asking a model twice does no harm; a program of the user's own may book a flight.
        """
        if self._forgotten:
            return False
        assert self._desk is not None
        return self._desk.service.paths is not None or self.request.method in _IDEMPOTENT

    def connected(self, outbound: Outbound) -> None:
        """Send on a connection that was opened for this request."""
        if self.is_over:  # the client left meanwhile
            outbound.transport.close()
            return
        self._send(outbound)

    def not_connected(self) -> None:
        """Go on after a replica that could not be reached: nothing was sent, nothing is lost."""
        if self.is_over:
            return
        lane = self._leave_lane()
        lane.missed(self.inbound.gateway.now)
        self._attempts -= 1
        self._tried.append(lane)
        self._go()

    def _leave_lane(self) -> Lane:
        lane, self._lane = self._lane, None
        self._outbound = None
        assert lane is not None
        lane.outstanding -= 1
        return lane

    # The request ---------------------------------------------------------------------------------

    def _send(self, outbound: Outbound) -> None:
        self._outbound = outbound
        outbound.serve(self, self.request.method)
        self._sending = True
        head = self._head()
        body = bytes(self._body)
        if not self._body_ended and self.request.body == "chunked":
            body = chunk(body)
        outbound.transport.write(head + body)
        self.is_sent = self._body_ended
        self._forget_large()
        self.inbound.hold_reading(False)

    def _head(self) -> bytes:
        request, gateway = self.request, self.inbound.gateway
        taken = request.taken
        address = gateway.client_address(self.inbound.peer, request).encode("ascii", "ignore")
        assert self._desk is not None
        parts = [
            b"%b %b HTTP/1.1\r\nhost: %b\r\nx-forwarded-for: %b\r\nx-forwarded-proto: %b\r\n"
            % (request.method, self._target, taken.get(b"host") or b"localhost", address, gateway.scheme),
            request.fields,
        ]
        if self.traced is not None:
            parts.append(self.traced.ask(self))
        else:
            parts += [b"%b: %b\r\n" % (name, taken[name]) for name in _TRACE if name in taken]
        if b"content-type" in taken:
            parts.append(b"content-type: %b\r\n" % taken[b"content-type"])
        if not self._desk.service.auth:  # a program that asks for credentials itself
            for name in (b"authorization", b"x-api-key"):
                if name in taken:
                    parts.append(b"%b: %b\r\n" % (name, taken[name]))
        if request.body == "length" or (self._body_ended and request.body == "chunked"):
            length = request.length if request.body == "length" else len(self._body)
            parts.append(b"content-length: %d\r\n" % length)
        elif request.body == "chunked":
            parts.append(b"transfer-encoding: chunked\r\n")
        elif request.method in (b"POST", b"PUT", b"PATCH"):
            parts.append(b"content-length: 0\r\n")
        if request.upgrade and request.method == b"GET" and not request.old:
            parts.append(b"connection: upgrade\r\nupgrade: websocket\r\n")
        parts.append(b"\r\n")
        return b"".join(parts)

    def take_body(self, piece: bytes, ended: bool) -> None:
        """Take more of the request's body, to keep or to pass on."""
        gateway = self.inbound.gateway
        self._body_ended = ended
        self._received += len(piece)
        if self._received > gateway.limits.body_bytes:
            self._refuse_size()
            return
        if self._status or self.is_over:
            self._pass_body(piece, ended)
            return
        if not self._forgotten:
            self._body += piece
        if not self.has_begun:
            return
        if self._look is not None:
            self.deadline = gateway.now + gateway.limits.body_s
            self._look_for_model()
        elif self._sending:
            self._pass_body(piece, ended)
        elif len(self._body) > HELD_BYTES and not ended:
            self.inbound.hold_reading(True)

    def _pass_body(self, piece: bytes, ended: bool) -> None:
        outbound = self._outbound
        if outbound is None:
            return
        if self.request.body == "chunked":
            piece = chunk(piece) + (LAST_CHUNK if ended else b"")
        outbound.transport.write(piece)
        self.is_sent = ended
        if not self._status:
            self.deadline = self.inbound.gateway.now + self.inbound.gateway.limits.first_byte_s
        self._forget_large()

    def _forget_large(self) -> None:
        if len(self._body) > self.inbound.gateway.limits.replay_bytes:
            self._forgotten = True
            self._body = bytearray()

    # The answer ----------------------------------------------------------------------------------

    def take_head(self, response: Response) -> bool:
        """Begin the answer; False where another replica is asked instead."""
        gateway, desk, lane = self.inbound.gateway, self._desk, self._lane
        assert desk is not None
        assert lane is not None
        if response.status == ASK_AGAIN and self._may_ask_another(lane):
            if self._outbound is not None:
                self._outbound.drop()
            self._tried.append(self._leave_lane())
            self._sending = False
            self._go()
            return False
        lane.answered()
        self.first_byte_s = gateway.clock()
        self.deadline = gateway.now + gateway.limits.between_s
        self._status = response.status
        self._is_stream = response.media_type == b"text/event-stream"
        self._body = bytearray()
        old = self.request.old
        lines = [response.line, response.fields]
        if response.status == 101:
            self.is_tunnel = True
            self.deadline = gateway.now + gateway.limits.tunnel_s
            lines.append(b"connection: upgrade\r\nupgrade: websocket\r\n\r\n")
        else:
            lines.append(self._framing(response, old))
        self._out.append(b"".join(lines))
        return True

    def _framing(self, response: Response, old: bool) -> bytes:
        """Return the fields that tell the answer's end, and the head's."""
        self._chunked = response.body in ("chunked", "close") and not old
        if response.body in ("chunked", "close") and old:
            self.close_after = True
        length = b"content-length: %d\r\n" % response.length
        framing = {"none": length if response.length >= 0 else b"", "length": length}.get(
            response.body, b"transfer-encoding: chunked\r\n" if self._chunked else b""
        )
        if not self.is_sent:  # what is left of the request would be taken for the next one
            self.close_after = True
        if self.close_after or self.inbound.gateway.is_draining:
            self.close_after = True
            return framing + b"connection: close\r\n\r\n"
        return framing + (b"connection: keep-alive\r\n\r\n" if old else b"\r\n")

    def take_piece(self, payload: bytes, whole: bytes | None, ended: bool) -> None:
        """Pass on a piece of the answer; ``whole`` is the same with its framing, where it is plain."""
        self._tail, self._piece = self._piece, payload
        self.deadline = self.inbound.gateway.now + self.inbound.gateway.limits.between_s
        if self._is_stream and not ended and (whole is None or self._half):
            payload, whole = self._whole_events(payload), None
        elif self._half:
            payload, whole, self._half = self._half + payload, None, b""
        if not self._chunked:
            self._out.append(payload)
        elif whole is not None:
            self._out.append(whole)
        else:
            self._out.append(chunk(payload) + LAST_CHUNK if ended else chunk(payload))

    def _whole_events(self, payload: bytes) -> bytes:
        """Return the events that are whole, and keep the half one: a stream may break off in it.

        A client that got half an event would fail on it, before it reads the error that follows.
        """
        data = self._half + payload
        # The second is looked for where the first is not: a stream writes its ends in one way.
        ends = (at + len(mark) for mark in _EVENT_ENDS if (at := data.rfind(mark)) >= 0)
        end = next(ends, len(data) if len(data) > MOST_EVENT_BYTES else 0)
        self._half = data[end:]
        return data[:end]

    def flush(self) -> None:
        """Write what has been passed on."""
        out = self._out
        if out:
            self._out = []
            self.inbound.transport.write(out[0] if len(out) == 1 else b"".join(out))

    def end(self) -> None:
        """Finish: the answer is whole."""
        self.hold_response(False)
        self._outbound = None
        self.flush()
        self._settle(tokens_of((self._tail + self._piece)[-TAIL_BYTES:]) if self._status < 300 else None)
        self.inbound.finished(close=self.close_after or self.is_tunnel)

    def broke(self, outbound: Outbound, why: str) -> None:
        """Go on after a replica that broke off: elsewhere, or with an end that says so."""
        if self._status:
            self._break_off(why)
            return
        lane = self._leave_lane()
        self._sending = False
        if outbound.used and not self._wants_fresh:
            # Most likely closed while it was idle. Once only: a request that brings replicas down
            # looks the same.
            self._attempts -= 1
            lane.close_idle(math.inf)
        else:
            lane.missed(self.inbound.gateway.now)
            self._tried.append(lane)
        self._wants_fresh = True
        if self._may_repeat() and self._attempts < ATTEMPTS:
            self._go()
        else:
            self.refuse(502, why, "replica_failed")

    def _may_ask_another(self, lane: Lane) -> bool:
        desk, now = self._desk, self.inbound.gateway.now
        assert desk is not None
        others = self._may_repeat() and self._attempts < ATTEMPTS
        return others and desk.pick([*self._tried, lane], now, self.adapter) is not None

    def _break_off(self, why: str) -> None:
        """End an answer that has begun so that nobody takes it for a whole one."""
        if self._is_stream and self._chunked:
            self._out.append(error_event(why))
        self.flush()
        if self.request.old:  # the end of the connection would be the end of the answer
            self.inbound.transport.abort()
        else:
            self.inbound.transport.close()
        self._settle(None, status=502)

    # Ends ----------------------------------------------------------------------------------------

    def refuse(self, status: int, what: str, code: str = "", *, retry_after_s: float | None = None) -> None:
        """Answer with an error of our own."""
        more = [("retry-after", str(math.ceil(retry_after_s)))] if retry_after_s is not None else []
        if status == 401:
            more.append(("www-authenticate", "Bearer"))
        self._say(status, error_object(status, what, code), more=more)

    def _refuse_key(self) -> None:
        fix = "" if self.inbound.gateway.keys.by_digest else "; none exists yet: modelyard gateway key NAME"
        what = "no such key: revoked, or not copied whole" if self._secret() else _NEEDED
        self.refuse(401, f"{what}{fix}", "invalid_api_key")

    def _refuse_size(self) -> None:
        if self._status:
            self.inbound.transport.abort()
            return
        self.refuse(413, f"a body may have {self.inbound.gateway.limits.body_bytes} bytes", "too_large")

    def _say(
        self, status: int, content: object, *, more: list[tuple[str, str]] | None = None,
        media_type: str = "application/json",
    ) -> None:  # fmt: skip
        if self.is_over:
            return
        self._status = status
        close = self.close_after or not self._body_ended or self.inbound.gateway.is_draining
        head_only = self.request.method == b"HEAD"
        self.inbound.transport.write(
            answer(status, content, close=close, head_only=head_only, more=more or (), media_type=media_type)
        )
        if self._outbound is not None:
            self._outbound.drop()
        self._settle(None)
        self.inbound.finished(close=close)

    def expire(self) -> None:
        """End what took too long."""
        outbound = self._outbound
        if self._status:
            if outbound is not None:
                outbound.drop()
            self._break_off("the replica fell silent")
        elif self._sending or self._desk is not None:
            self.refuse(*self._timed_out)
        else:
            self.refuse(408, "the request did not come in time")

    def abandon(self) -> None:
        """Break off: the client has gone."""
        if self._outbound is not None:
            self._outbound.drop()
        self._settle(None, status=self._status or 499)

    def _settle(self, tokens: Tokens | None, status: int = 0) -> None:
        """Give back what the request held, and count it."""
        if self.is_over:
            return
        self.is_over = True
        gateway = self.inbound.gateway
        gateway.exchanges.discard(self)
        desk = self._desk
        if self._lane is not None:
            self._leave_lane()
        if desk is not None:
            desk.waiting.pop(self, None)
        gateway.settle(self, desk, status or self._status, tokens)

    # Flow ----------------------------------------------------------------------------------------

    def hold_response(self, hold: bool) -> None:
        """Stop or go on reading the answer."""
        outbound = self._outbound
        if outbound is not None and hold != self._held and not outbound.transport.is_closing():
            self._held = hold
            (outbound.transport.pause_reading if hold else outbound.transport.resume_reading)()

    def pass_on(self, data: bytes) -> None:
        """Pass on what the replica says through a tunnel."""
        self.deadline = self.inbound.gateway.now + self.inbound.gateway.limits.tunnel_s
        self.flush()
        self.inbound.transport.write(data)

    def pass_up(self, data: bytes) -> None:
        """Pass on what the client says through a tunnel."""
        self.deadline = self.inbound.gateway.now + self.inbound.gateway.limits.tunnel_s
        if self._outbound is not None:
            self._outbound.transport.write(data)

    @property
    def lane(self) -> Lane | None:
        """The replica that has the request, None while none has."""
        return self._lane

    @property
    def is_stream(self) -> bool:
        """Whether it is answered event by event."""
        return self._is_stream

    @property
    def buffered(self) -> int:
        """Bytes held of the request and on their way to the replica."""
        outbound = self._outbound
        return len(self._body) + (outbound.transport.get_write_buffer_size() if outbound else 0)

    @property
    def started_s(self) -> float:
        """When the request's head had come, on the gateway's clock."""
        return self._started_s

    @property
    def adapter(self) -> str:
        """The adapter that was asked for, "" where the model itself was, or a program of the user's own."""
        desk = self._desk
        return self._model if desk is not None and self._model in desk.service.adapters else ""

    @property
    def model(self) -> str:
        """The model that was asked for, "" where none was."""
        return self._model
