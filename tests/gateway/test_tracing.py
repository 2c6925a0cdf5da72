"""OpenTelemetry spans of requests, as the SDK's own exporters get them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from orchestrator.cli import run as modelyard
from orchestrator.gateway.server.tracing import Tracing
from tests.gateway.clients import chat, completion, dial, in_a_loop, request, stage
from tests.gateway.test_record import program
from tests.gateway.upstream import Asked, Upstream, engine, saying

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CARRIED = [f"traceparent: 00-{TRACE}-{PARENT}-01", "tracestate: vendor=1"]


class Spans:
    """What the gateway's tracing gives away."""

    def __init__(self) -> None:
        self._kept = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._kept))
        self.tracing = Tracing(provider)

    def of(self, kind: SpanKind) -> list[ReadableSpan]:
        return [span for span in self._kept.get_finished_spans() if span.kind is kind]


def sent(asked: Asked) -> tuple[str, str]:
    """Return the trace and the span that a replica was told."""
    _, trace, span, _ = (asked.header("traceparent") or "---").split("-")
    return trace, span


@in_a_loop
async def test_a_request_is_a_span_of_its_client_s_trace_and_the_replica_s_parent() -> None:
    spans = Spans()
    body = b'{"model": "llama", "prompt": "a secret"}'
    async with Upstream(engine) as replica, stage(chat(replica.port), tracing=spans.tracing) as here:
        assert (await here.ask(request("/v1/completions", body, headers=CARRIED))).status == 200
    (server,), (client,) = spans.of(SpanKind.SERVER), spans.of(SpanKind.CLIENT)
    assert server.parent is not None
    assert (server.parent.trace_id, server.parent.span_id) == (int(TRACE, 16), int(PARENT, 16))
    assert client.parent is not None
    assert client.parent.span_id == server.context.span_id
    assert sent(replica.asked[0]) == (TRACE, f"{client.context.span_id:016x}")
    assert replica.asked[0].header("tracestate") == "vendor=1"
    told = dict(server.attributes or {})
    assert told.pop("modelyard.queue_seconds", -1) >= 0
    assert told.pop("modelyard.first_byte_seconds", -1) >= 0
    assert told == {
        "http.request.method": "POST", "url.path": "/v1/completions", "http.response.status_code": 200,
        "modelyard.service": "chat", "modelyard.key": "ann", "gen_ai.request.model": "llama",
        "gen_ai.operation.name": "text_completion", "gen_ai.usage.input_tokens": 9,
        "gen_ai.usage.output_tokens": 4,
    }  # fmt: skip
    assert server.start_time is not None
    assert client.start_time is not None
    assert server.end_time is not None
    assert client.end_time is not None
    assert server.start_time <= client.start_time <= client.end_time <= server.end_time


@in_a_loop
async def test_a_replica_that_breaks_off_is_a_span_with_an_error_and_the_next_one_another() -> None:
    spans = Spans()
    async with (
        Upstream(saying(b"", end=True)) as broken,
        Upstream(engine) as well,
        stage(chat(broken.port, well.port), tracing=spans.tracing) as here,
    ):
        statuses = [(await here.ask(completion())).status for _ in range(2)]
    assert statuses == [200, 200]
    assert len(spans.of(SpanKind.SERVER)) == 2
    by_replica = {(span.attributes or {})["modelyard.replica"]: span for span in spans.of(SpanKind.CLIENT)}
    assert by_replica["chat-0-0-0"].status.status_code is StatusCode.ERROR
    assert by_replica["chat-1-0-0"].status.status_code is not StatusCode.ERROR


@in_a_loop
async def test_a_stream_that_breaks_is_an_error() -> None:
    spans = Spans()
    async with (
        Upstream(saying(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", end=True)) as replica,
        stage(chat(replica.port), tracing=spans.tracing) as here,
    ):
        assert not (await here.ask(completion(stream=True))).whole
    (server,) = spans.of(SpanKind.SERVER)
    assert server.status.status_code is StatusCode.ERROR
    assert (server.attributes or {})["error.type"] == "502"


@in_a_loop
async def test_a_trace_that_cannot_be_read_begins_anew_and_is_passed_on_where_nobody_traces() -> None:
    spans, bad = Spans(), ["traceparent: 00-zz", "traceparent: 00-yy"]
    async with Upstream(engine) as replica:
        async with stage(chat(replica.port), tracing=spans.tracing) as here:
            await here.ask(request("/v1/completions", b'{"model": "llama"}', headers=bad))
        async with stage(chat(replica.port)) as here:
            await here.ask(request("/v1/completions", b'{"model": "llama"}', headers=CARRIED))
    (server,) = spans.of(SpanKind.SERVER)
    assert server.parent is None
    assert sent(replica.asked[0])[0] == f"{server.context.trace_id:032x}"
    assert sent(replica.asked[1]) == (TRACE, PARENT)


@pytest.fixture
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """Take what an exporter sends; give its address and the bodies."""
    bodies: list[bytes] = []

    class Take(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Take) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", bodies
        server.shutdown()
        thread.join()


def test_the_program_sends_what_it_has_before_it_ends(
    tmp_path: Path, collector: tuple[str, list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, bodies = collector
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    with program(tmp_path, "--traces", "--no-scale") as (process, at):

        async def ask() -> None:
            async with dial(int(at.rpartition(":")[2])) as (reader, writer):
                writer.write(request("/v1/models", method="GET"))
                assert b" 401 " in await reader.readuntil(b"\r\n\r\n")

        asyncio.run(ask())
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    assert any(b"GET /v1/models" in body and b"modelyard-gateway" in body for body in bodies)


def test_traces_without_a_place_to_go_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    assert modelyard(["gateway", "--traces"]) == 78
    assert "set OTEL_EXPORTER_OTLP_ENDPOINT" in capsys.readouterr().err
