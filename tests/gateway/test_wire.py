"""Messages are read strictly, framed exactly, and never in a way that another reader would not."""

from __future__ import annotations

import asyncio

import h11
import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import HttpRequestParser, HttpRequestParserPy
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orchestrator.gateway.wire import (
    LAST_CHUNK,
    BadMessage,
    Chunks,
    chunk,
    parse_request,
    parse_response,
)

START = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\n"


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (START + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (START + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", 400),
        (START + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\n", 400),
        (START + b"Content-Length: 5, 5\r\n\r\n", 400),
        (START + b"Content-Length: +5\r\n\r\n", 400),
        (START + b"Content-Length: 0x5\r\n\r\n", 400),
        (START + b"Content-Length: 5 5\r\n\r\n", 400),
        (START + b"Content-Length:\r\n\r\n", 400),
        (START + b"Content-Length : 5\r\n\r\n", 400),
        (START + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (START + b"Transfer-Encoding: xchunked\r\n\r\n", 501),
        (START + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (START + b"Transfer-Encoding: \x0bchunked\r\n\r\n", 400),
        (START + b"X: a\r\n folded\r\n\r\n", 400),
        (START + b"X: a\nContent-Length: 5\r\n\r\n", 400),
        (START + b"X: a\rb\r\n\r\n", 400),
        (START + b"X: a\x00b\r\n\r\n", 400),
        (START + b"X y: a\r\n\r\n", 400),
        (START + b": a\r\n\r\n", 400),
        (START + b"no colon\r\n\r\n", 400),
        (START + b"Host: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET a HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
        (START + b"X: a\r\n" * 101 + b"\r\n", 431),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(head: bytes, status: int) -> None:
    with pytest.raises(BadMessage) as refused:
        parse_request(head)
    assert refused.value.status == status


@pytest.mark.parametrize(
    ("head", "close", "body"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", False, "none"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Close\r\n\r\n", True, "none"),
        (b"GET / HTTP/1.0\r\n\r\n", True, "none"),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", False, "none"),
        (START + b"Content-Length: 0\r\n\r\n", False, "none"),
        (START + b"content-length:7\r\n\r\n", False, "length"),
        (START + b"Transfer-Encoding:  CHUNKED \r\n\r\n", False, "chunked"),
    ],
)
def test_the_end_of_a_request_is_read(head: bytes, close: bool, body: str) -> None:
    request = parse_request(head)
    assert (request.close, request.body) == (close, body)


def test_a_whole_address_is_read_as_its_path() -> None:
    request = parse_request(b"GET http://a:80/b?c HTTP/1.1\r\nHost: a\r\n\r\n")
    assert request.target == b"/b?c"


NAMES = st.sampled_from([b"Host", b"Content-Length", b"Transfer-Encoding", b"X", b"Connection", b"X y", b""])
VALUES = st.sampled_from(
    [
        b"a",
        b"5",
        b"chunked",
        b" 5 ",
        b"5,5",
        b"-1",
        b"",
        b"close",
        b"X",
        b"a\rb",
        b"\n",
        b"a\r\n b",
        b"\x00",
        b"\xe9",
    ]
)
COLONS = st.sampled_from([b": ", b":", b" :", b":\t"])
ENDS = st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r"])


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    """Heads that are nearly right."""
    first = draw(
        st.sampled_from([b"POST /x HTTP/1.1", b"GET /x HTTP/1.0", b"POST /x y HTTP/1.1", b"G@T /x HTTP/1.1"])
    )
    lines = [b"Host: a\r\n"] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(0, 4))):
        lines.append(draw(NAMES) + draw(COLONS) + draw(VALUES) + draw(ENDS))
    return first + b"\r\n" + b"".join(lines) + b"\r\n"


@settings(max_examples=400, deadline=None)
@given(heads())
def test_what_we_accept_another_parser_accepts_and_frames_alike(head: bytes) -> None:
    try:
        ours = parse_request(head)
    except BadMessage:
        return
    theirs = h11.Connection(h11.SERVER)
    theirs.receive_data(head)
    request = theirs.next_event()
    assert isinstance(request, h11.Request)
    fields = {bytes(name): bytes(value) for name, value in request.headers}
    told = (
        "chunked" if b"transfer-encoding" in fields else "length" if b"content-length" in fields else "none"
    )
    if ours.body == "none":
        assert told == "none" or int(fields[b"content-length"]) == 0
    else:
        assert (ours.body, ours.length) == (told, int(fields.get(b"content-length", b"0")))


PARSERS = pytest.mark.parametrize("parser", [HttpRequestParser, HttpRequestParserPy], ids=["C", "Python"])


def by_aiohttp(parser: type[HttpRequestParserPy], data: bytes) -> list[tuple[str, str, bool, str]]:
    """Return what aiohttp reads out of bytes, at its own limits: method, path, chunked and length."""
    loop = asyncio.new_event_loop()
    try:
        found, _, rest = parser(BaseProtocol(loop), loop, 2**16).feed_data(data)
    finally:
        loop.close()
    assert not rest
    return [(m.method, m.path, m.chunked, m.headers.get("content-length", "")) for m, _ in found]


@PARSERS
@settings(max_examples=200, deadline=None)
@given(heads())
@example(START + b"Content-Length: 0\r\n\r\n")
@example(START + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n")
@example(b"POST /x HTTP/1.1\r\nHost: a\r\nX: \xe9\r\nTransfer-Encoding:\tchunked\r\n\r\n")
def test_what_we_accept_aiohttp_reads_as_the_same_one_message(
    parser: type[HttpRequestParserPy], head: bytes
) -> None:
    try:
        ours = parse_request(head)
    except BadMessage:
        return
    try:
        ((method, path, chunked, length),) = by_aiohttp(parser, head)
    except HttpProcessingError as refused:
        pytest.fail(f"aiohttp refuses it: {refused.message}")
    assert (method, path) == (ours.method.decode(), ours.target.decode())
    assert chunked == (ours.body == "chunked")
    assert int(length or 0) == (ours.length if ours.body == "length" else 0)


@PARSERS
@pytest.mark.parametrize("size", [8_000, 8_190, 8_191, 8_192, 16_000])
def test_beyond_the_limits_of_aiohttp_nothing_is_read_otherwise(
    parser: type[HttpRequestParserPy], size: int
) -> None:
    """A head that we pass on and it does not is refused as a whole: none of it is a message."""
    inner = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
    for head in (
        b"GET /" + b"a" * size + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * size + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: "
        + inner.replace(b"\r\n", b"  ") * (size // len(inner))
        + b"\r\n\r\n",
    ):
        assert parse_request(head).body == "none"
        try:
            found = by_aiohttp(parser, head)
        except HttpProcessingError:
            continue  # as a whole
        ((_, path, _, _),) = found
        assert path == head.split(b" ")[1].decode()


PIECES = st.lists(st.binary(min_size=1, max_size=40), max_size=6)


@settings(max_examples=200, deadline=None)
@given(PIECES, st.lists(st.integers(1, 60), min_size=1, max_size=40), st.binary(max_size=10))
def test_chunks_are_the_same_however_they_are_cut(pieces: list[bytes], cuts: list[int], rest: bytes) -> None:
    data = b"".join(map(chunk, pieces)) + LAST_CHUNK + rest
    chunks, found, at = Chunks(), b"", 0
    for cut in [*cuts, len(data)]:
        if not chunks.ended and at < len(data):
            found += chunks.feed(data[at : at + cut])
            at += cut
    assert chunks.ended
    assert (found, chunks.rest + data[at:]) == (b"".join(pieces), rest)


@settings(max_examples=200, deadline=None)
@given(PIECES, st.booleans())
def test_only_whole_plain_chunks_are_passed_on_as_they_are(pieces: list[bytes], ended: bool) -> None:
    data = b"".join(map(chunk, pieces)) + (LAST_CHUNK if ended else b"")
    chunks = Chunks()
    chunks.feed(data)
    assert chunks.clean
    for cut in range(1, len(data)):
        half = Chunks()
        payload = half.feed(data[:cut])
        if half.clean:
            reread = Chunks()
            assert (reread.feed(data[:cut]), reread.feed(LAST_CHUNK), reread.ended) == (payload, b"", True)


@pytest.mark.parametrize("data", [b"5;ext=1\r\nhello\r\n", b"0\r\nTrailer: x\r\n\r\n"])
def test_extensions_and_trailers_are_read_and_not_passed_on(data: bytes) -> None:
    chunks = Chunks()
    chunks.feed(data)
    assert not chunks.clean


@pytest.mark.parametrize(
    "data",
    [
        b"x\r\nhello\r\n", b"5\nhello\r\n", b"-5\r\nhello", b"0x5\r\nhello", b"5\r\nhelloworld",
        b"5 \r\nhello",
        b" 5\r\nhello", b"5\r\nhello\n", b"5\r\nhelloX", b"\r\n", b"0\r\nbad trailer\r\n\r\n",
        b"f" * 13 + b"\r\n",
        b"5" + b";" + b"a" * 300, b"5;a\nb\r\n",
    ],
)  # fmt: skip
def test_a_broken_chunk_is_refused(data: bytes) -> None:
    with pytest.raises(BadMessage):
        Chunks().feed(data)


@pytest.mark.parametrize(
    ("head", "method", "body", "length"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"GET", "length", 5),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"HEAD", "none", 5),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", b"GET", "none", 5),
        (b"HTTP/1.1 200\r\n\r\n", b"GET", "close", 0),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", b"GET", "length", 5),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b"GET", "none", -1),
    ],
)
def test_the_end_of_a_response_is_read(head: bytes, method: bytes, body: str, length: int) -> None:
    response = parse_response(head, method=method)
    assert (response.body, response.length) == (body, length)
