"""OpenTelemetry spans: one for each request, one within it for each replica that was asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from orchestrator.errors import ConfigError
from orchestrator.gateway.usage import Tokens

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

    from orchestrator.gateway.server.exchange import Exchange

OPERATIONS: Mapping[str, str] = {
    "/v1/chat/completions": "chat",
    "/v1/messages": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
"""The ``gen_ai.operation.name`` of a path (OpenTelemetry semantic conventions, generative AI)."""
NANO = 1_000_000_000


class Traced:
    """One request's spans.

    Args:
        tracer: Makes them.
        now_ns: Nanoseconds since 1970.
        exchange: The request.
    """

    __slots__ = ("_asked", "_now_ns", "_span", "_tracer")

    def __init__(self, tracer: Tracer, now_ns: Callable[[], int], exchange: Exchange) -> None:
        self._tracer, self._now_ns = tracer, now_ns
        self._asked: Span | None = None
        request = exchange.request
        carried = {
            name.decode(): request.taken[name].decode("latin-1")
            for name in (b"traceparent", b"tracestate")
            if name in request.taken
        }
        waited_s = exchange.inbound.gateway.clock() - exchange.started_s
        path = request.path.decode("ascii")
        method = request.method.decode("ascii")
        self._span = tracer.start_span(
            f"{method} {path}",
            context=TraceContextTextMapPropagator().extract(carried),
            kind=SpanKind.SERVER,
            start_time=now_ns() - round(waited_s * NANO),
            attributes={"http.request.method": method, "url.path": path},
        )

    def ask(self, exchange: Exchange) -> bytes:
        """Begin the span of the replica that is asked now; return the header fields that pass it on."""
        self.left("another replica is asked")
        lane = exchange.lane
        replica = lane.replica if lane is not None else None
        self._asked = self._tracer.start_span(
            f"ask {replica.name}" if replica else "ask",
            context=trace.set_span_in_context(self._span),
            kind=SpanKind.CLIENT,
            start_time=self._now_ns(),
            attributes={
                "modelyard.replica": replica.name, "server.address": replica.host, "server.port": replica.port
            } if replica else {},
        )  # fmt: skip
        carried: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carried, trace.set_span_in_context(self._asked))
        return b"".join(b"%b: %b\r\n" % (k.encode(), v.encode("latin-1")) for k, v in carried.items())

    def left(self, why: str = "") -> None:
        """End the span of the replica that was asked, if any; ``why`` where it did not answer."""
        if self._asked is not None:
            if why:
                self._asked.set_status(Status(StatusCode.ERROR, why))
            self._asked.end(self._now_ns())
            self._asked = None

    def end(self, exchange: Exchange, service: str, status: int, tokens: Tokens | None) -> None:
        """End both, with what is known by now; never what was said."""
        self.left("" if status < 500 else f"status {status}")
        span, first_s = self._span, exchange.first_byte_s
        told: dict[str, str | int | float] = {"http.response.status_code": status}
        if service:
            told["modelyard.service"] = service
        if exchange.key is not None:
            told["modelyard.key"] = exchange.key.name
        if exchange.model:
            told["gen_ai.request.model"] = exchange.model
        operation = OPERATIONS.get(exchange.request.path.decode("ascii"))
        if operation:
            told["gen_ai.operation.name"] = operation
        if tokens is not None:
            told["gen_ai.usage.input_tokens"] = tokens.prompt
            told["gen_ai.usage.output_tokens"] = tokens.output
        if exchange.taken_s:
            told["modelyard.queue_seconds"] = exchange.taken_s - exchange.started_s
        if first_s:
            told["modelyard.first_byte_seconds"] = first_s - exchange.started_s
        span.set_attributes(told)
        if status >= 500:
            span.set_attribute("error.type", str(status))
            span.set_status(Status(StatusCode.ERROR))
        span.end(self._now_ns())


class Tracing:
    """Makes the spans of requests.

    Args:
        provider: Where they go.
        now_ns: Nanoseconds since 1970.
    """

    def __init__(self, provider: TracerProvider, *, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._provider, self._now_ns = provider, now_ns
        self._tracer = provider.get_tracer("modelyard.gateway")

    def begin(self, exchange: Exchange) -> Traced:
        """Begin the span of a request."""
        return Traced(self._tracer, self._now_ns, exchange)

    def close(self) -> None:
        """Send what is left; it may take some seconds."""
        self._provider.shutdown()


def exporting(*, environ: Mapping[str, str]) -> Tracing:
    """Return spans that are sent by OTLP to where OpenTelemetry's own variables say.

    Raises:
        ConfigError: the exporter is not installed, or no endpoint is named.
    """
    names = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    if not any(environ.get(name) for name in names):
        raise ConfigError(
            "nothing says where traces go",
            fix="set OTEL_EXPORTER_OTLP_ENDPOINT, such as http://127.0.0.1:4318",
        )
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    own = {} if environ.get("OTEL_SERVICE_NAME") else {"service.name": "modelyard-gateway"}
    provider = TracerProvider(resource=Resource.create(own), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)
