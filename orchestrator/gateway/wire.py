"""HTTP/1.1 as bytes: heads read strictly, bodies framed, hop-by-hop fields dropped; no sockets.

Two parsers that read one message differently are how requests are smuggled (RFC 9112, section
11.2). So there is one here, it takes no spelling that another could read otherwise, and what is
passed on is written anew: never the client's own bytes, but for the bodies.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

MOST_HEAD_BYTES = 64 * 1024
MOST_TARGET_BYTES = 16 * 1024
MOST_FIELDS = 100
MOST_CHUNK_LINE = 256

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_FIELDS = rb"((?:" + _TOKEN + rb":[\t\x20-\x7e\x80-\xff]*+\r\n)*+)\r\n"
_REQUEST = re.compile(rb"(" + _TOKEN + rb") ([\x21-\x7e]++) HTTP/1\.([01])\r\n" + _FIELDS)
_RESPONSE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9])((?: [\t\x20-\x7e\x80-\xff]*+)?)\r\n" + _FIELDS)
_FIELD = re.compile(rb"([^:\r\n]++):[ \t]*+([^\r\n]*+)\r\n")
_LENGTH = re.compile(rb"[0-9]{1,15}")
_ABSOLUTE = re.compile(rb"https?://[^/?#]+", re.IGNORECASE)
_CHUNK_LINE = re.compile(rb"([0-9a-fA-F]{1,12})((?:[ \t]*+;[\t\x20-\x7e\x80-\xff]*+)?)\r\n")
_TRAILER = re.compile(_TOKEN + rb":[\t\x20-\x7e\x80-\xff]*+\r\n")

_HOP_BY_HOP = frozenset(
    (
        b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection",
        b"te", b"trailer", b"transfer-encoding", b"upgrade",
    )
)  # fmt: skip
_FROM_THE_EDGE = frozenset(
    (
        b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-forwarded-port",
        b"x-real-ip",
    )
)  # fmt: skip
_OURS = frozenset((b"host", b"content-length", b"expect", b"authorization", b"x-api-key", b"content-type"))
_TRACE = frozenset((b"traceparent", b"tracestate"))
"""W3C Trace Context: passed on, or taken for the parent of a span of ours."""
_TAKEN = _HOP_BY_HOP | _FROM_THE_EDGE | _OURS | _TRACE
_RESPONSE_TAKEN = _HOP_BY_HOP | {b"content-length"}

Body = Literal["none", "length", "chunked", "close"]
"""How a body's end is told; ``close`` ends with the connection, in responses only."""


class BadMessage(ValueError):
    """A message that is refused; ``status`` is the answer to a client who sent it."""

    def __init__(self, status: int, what: str) -> None:
        super().__init__(what)
        self.status = status
        self.what = what


@dataclass(slots=True)
class Request:
    """A request's head. ``fields`` are those passed on as they came, already written out.

    ``close`` says that the client wants no other request on its connection; ``old`` that it
    speaks HTTP/1.0 and knows no chunks.
    """

    method: bytes
    target: bytes
    old: bool
    close: bool
    body: Body
    length: int
    fields: bytes
    taken: dict[bytes, bytes]

    @property
    def path(self) -> bytes:
        """The target up to its query.

        >>> parse_request(b"GET /v1/models?limit=2 HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n").path
        b'/v1/models'
        """
        return self.target.partition(b"?")[0]

    @property
    def upgrade(self) -> bool:
        """Whether a WebSocket is asked for."""
        names = {name.strip().lower() for name in self.taken.get(b"connection", b"").split(b",")}
        return b"upgrade" in names and self.taken.get(b"upgrade", b"").lower() == b"websocket"


@dataclass(slots=True)
class Response:
    """A response's head. ``fields`` are those passed on, already written out."""

    status: int
    line: bytes
    close: bool
    body: Body
    length: int
    fields: bytes
    media_type: bytes


def parse_request(head: bytes) -> Request:
    """Return the request whose head, blank line included, is ``head``.

    Raises:
        BadMessage: it is malformed, ambiguous or too large, and with which status to say so.

    >>> parse_request(b"GET / HTTP/1.1\\r\\nHost: a\\r\\nHost: b\\r\\n\\r\\n")
    Traceback (most recent call last):
    orchestrator.gateway.wire.BadMessage: exactly one Host is needed
    """
    found = _REQUEST.fullmatch(head)
    if found is None:
        raise BadMessage(400, "malformed request head")
    method, target, minor, block = found.groups()
    if len(target) > MOST_TARGET_BYTES:
        raise BadMessage(414, f"the request target is longer than {MOST_TARGET_BYTES} bytes")
    taken: dict[bytes, bytes] = {}
    kept: list[bytes] = []
    fields = _FIELD.findall(block)
    if len(fields) > MOST_FIELDS:
        raise BadMessage(431, f"more than {MOST_FIELDS} header fields")
    for name, value in fields:
        lower = name.lower()
        if lower not in _TAKEN:
            kept.append(b"%b: %b\r\n" % (name, value.rstrip(b" \t")))
        elif lower in taken:
            taken[lower] = _second(lower, taken[lower], value)
        else:
            taken[lower] = value.rstrip(b" \t")
    old = minor == b"0"
    if b"connection" in taken:
        kept = _without_named(kept, taken[b"connection"])
    if (b"host" not in taken and not old) or b"," in taken.get(b"host", b""):
        raise BadMessage(400, "exactly one Host is needed")
    body, length = _request_body(taken, old)
    asked = taken.get(b"connection", b"").lower()
    return Request(
        method, _origin_form(method, target), old, (b"keep-alive" not in asked) if old else b"close" in asked,
        body, length, b"".join(kept), taken,
    )  # fmt: skip


def _second(name: bytes, first: bytes, value: bytes) -> bytes:
    """Return the joined value of a field that came twice, where that has a meaning."""
    if name == b"host":
        raise BadMessage(400, "exactly one Host is needed")
    if name in _OURS or name == b"transfer-encoding":
        raise BadMessage(400, f"{name.decode()} is given twice")
    return b"%b, %b" % (first, value.rstrip(b" \t"))


def _without_named(kept: list[bytes], connection: bytes) -> list[bytes]:
    """Return the fields but for those that ``Connection`` names as being for one hop only."""
    named = {name.strip().lower() for name in connection.split(b",")} - {b"close", b"keep-alive", b"upgrade"}
    if not named:
        return kept
    return [line for line in kept if line.partition(b":")[0].lower() not in named]


def _request_body(taken: dict[bytes, bytes], old: bool) -> tuple[Body, int]:
    coding = taken.get(b"transfer-encoding")
    length = taken.get(b"content-length")
    if coding is not None:
        if old or length is not None:
            raise BadMessage(400, "Transfer-Encoding with Content-Length or HTTP/1.0")
        if coding.lower() != b"chunked":
            raise BadMessage(501, "no transfer coding but chunked")
        return "chunked", 0
    if length is None:
        return "none", 0
    if not _LENGTH.fullmatch(length):
        raise BadMessage(400, "Content-Length is not a number")
    return ("length", int(length)) if int(length) else ("none", 0)


def _origin_form(method: bytes, target: bytes) -> bytes:
    """Return the target as path and query; a proxy may be asked with the whole address."""
    if target.startswith(b"/"):
        return target
    if target == b"*" and method == b"OPTIONS":
        return target
    found = _ABSOLUTE.match(target)
    if found is None or method == b"CONNECT":
        raise BadMessage(400, "the request target is not a path")
    rest = target[found.end() :]
    return rest if rest.startswith(b"/") else b"/" + rest


def parse_response(head: bytes, *, method: bytes) -> Response:
    """Return the response whose head, blank line included, is ``head``, to a request of ``method``.

    Raises:
        BadMessage: it is malformed, or its length can be read in two ways.

    >>> parse_response(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\n", method=b"GET").length
    2
    """
    found = _RESPONSE.fullmatch(head)
    if found is None:
        raise BadMessage(502, "malformed response head")
    minor, code, reason, block = found.groups()
    length: bytes | None = None
    coding = asked = media = b""
    kept: list[bytes] = []
    for name, value in _FIELD.findall(block):
        lower = name.lower()
        if lower not in _RESPONSE_TAKEN:
            kept.append(b"%b: %b\r\n" % (name, value))
            if lower == b"content-type":
                media = value.partition(b";")[0].strip().lower()
        elif lower == b"content-length":
            if length is not None and length != value.rstrip(b" \t"):
                raise BadMessage(502, "two lengths in one response")
            length = value.rstrip(b" \t")
        elif lower == b"transfer-encoding":
            coding = b"%b,%b" % (coding, value) if coding else value
        elif lower == b"connection":
            asked = b"%b,%b" % (asked, value.lower())
    if asked:
        kept = _without_named(kept, asked)
    status = int(code)
    body, size = _response_body(status, method, coding.strip().lower(), length)
    close = body == "close" or (b"keep-alive" not in asked if minor == b"0" else b"close" in asked)
    line = b"HTTP/1.1 %b%b\r\n" % (code, reason or b" ")
    return Response(status, line, close, body, size, b"".join(kept), media)


def _response_body(status: int, method: bytes, coding: bytes, length: bytes | None) -> tuple[Body, int]:
    if length is not None and not _LENGTH.fullmatch(length):
        raise BadMessage(502, "Content-Length is not a number")
    if coding and (coding != b"chunked" or length is not None):
        raise BadMessage(502, "a response framed in two ways")
    if method == b"HEAD" or status < 200 or status in (204, 304):
        # the length told is that of a body that does not come
        return "none", int(length) if length is not None else -1
    if coding:
        return "chunked", 0
    if length is None:
        return "close", 0
    return ("length", int(length)) if int(length) else ("none", 0)


class Chunks:
    """Reads a chunked body piece by piece; what comes after it is left in ``rest``.

    ``clean`` says that the last piece was whole, plain chunks from first byte to last, so that it
    may be passed on as it is.
    """

    __slots__ = ("_held", "_left", "_state", "clean", "ended", "rest")

    def __init__(self) -> None:
        self._held = b""
        self._left = 0
        self._state: Literal["line", "data", "crlf", "trailer"] = "line"
        self.clean = False
        self.ended = False
        self.rest = b""

    def feed(self, piece: bytes) -> bytes:
        """Return the payload in ``piece``.

        Raises:
            BadMessage: the framing is broken.

        >>> chunks = Chunks()
        >>> chunks.feed(b"5\\r\\nhello\\r\\n0\\r\\n"), chunks.ended, chunks.feed(b"\\r\\nGET"), chunks.ended
        (b'hello', False, b'', True)
        >>> chunks.rest
        b'GET'
        """
        plain = self._state == "line" and not self._held
        data = self._held + piece if self._held else piece
        at, size, out = 0, len(data), []
        while True:
            if self._state == "line":
                found = _CHUNK_LINE.match(data, at)
                if found is None:
                    self._check_partial(data, at)
                    break
                at = found.end()
                self._left = int(found[1], 16)
                plain = plain and not found[2]
                self._state = "data" if self._left else "trailer"
            elif self._state == "data":
                part = data[at : at + self._left]
                out.append(part)
                at += len(part)
                self._left -= len(part)
                if self._left:
                    break
                self._state = "crlf"
            elif self._state == "crlf":
                if size - at < 2:
                    if size - at and data[at] != 13:
                        raise BadMessage(400, "a chunk is longer than it says")
                    break
                if data[at : at + 2] != b"\r\n":
                    raise BadMessage(400, "a chunk is longer than it says")
                at += 2
                self._state = "line"
            elif data[at : at + 2] == b"\r\n":
                at += 2
                self.ended = True
                break
            else:
                trailer = _TRAILER.match(data, at)
                if trailer is None:
                    self._check_partial(data, at)
                    break
                at, plain = trailer.end(), False
        if self.ended:
            self.rest, self._held = data[at:], b""
        else:
            self._held = data[at:]
        self.clean = plain and at == size and (self.ended or self._state == "line")
        return out[0] if len(out) == 1 else b"".join(out)

    def _check_partial(self, data: bytes, at: int) -> None:
        """Refuse a line that cannot become one, however it goes on."""
        limit = MOST_CHUNK_LINE if self._state == "line" else MOST_HEAD_BYTES
        if b"\n" in data[at:] or len(data) - at > limit:
            raise BadMessage(400, "malformed chunk")


def chunk(payload: bytes) -> bytes:
    r"""Return ``payload`` as one chunk; nothing for nothing, which would end the body.

    >>> chunk(b"hello"), chunk(b"")
    (b'5\r\nhello\r\n', b'')
    """
    return b"%x\r\n%b\r\n" % (len(payload), payload) if payload else b""


LAST_CHUNK = b"0\r\n\r\n"
