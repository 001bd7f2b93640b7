"""OpenTelemetry traces, with `--tracing` and the extra `darkroom[tracing]`; without, nothing of this is imported.

    http process   predict (server span; its parent comes by `traceparent`)
                   ├─ receive ─ queue ─ decode ─ inference     as long as `Server-Timing` says, one after the other
    worker         batch, below the first of its requests and linked to all

Spans go by OTLP over HTTP where OTEL_EXPORTER_OTLP_ENDPOINT says; the other OTEL_ variables hold, too.
"""

import os
import time
from collections.abc import Mapping, Sequence
from threading import Thread

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace.propagation import set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service import __version__
from service.transport import NO_TRACE, Answer, Trace

NAME = "darkroom"
HALF = 1 << 64  # trace ids have 128 bits, words 64
FLUSH_S = 2


class Tracing:
    """One process's spans."""

    def __init__(self) -> None:
        """To be made in a process of its own: its thread does not survive a fork."""
        name = os.environ.get("OTEL_SERVICE_NAME", NAME)
        self.provider = TracerProvider(resource=Resource.create({SERVICE_NAME: name, SERVICE_VERSION: __version__}))
        self.provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self.tracer = self.provider.get_tracer(NAME, __version__)
        self.propagator = TraceContextTextMapPropagator()
        self.epoch = time.time_ns() - round(time.monotonic() * 1e9)  # of CLOCK_MONOTONIC

    def at(self, moment: float) -> int:
        """A moment of CLOCK_MONOTONIC (seconds) as nanoseconds since 1970."""
        return self.epoch + round(moment * 1e9)

    def close(self) -> None:
        """Send what is left, for a while at most."""
        # Its own time-out is not kept where the collector is gone.
        ending = Thread(target=self.provider.shutdown, daemon=True)
        ending.start()
        ending.join(FLUSH_S)

    def begin(self, route: str, model: str, request_id: str, started: float, headers: Mapping[bytes, bytes]) -> Span:
        """The span of a request to a model; the client's, where it sends one, is its parent."""
        carrier = {
            name: headers[name.encode()].decode("latin-1")
            for name in ("traceparent", "tracestate")
            if name.encode() in headers
        }
        told = {"http.request.method": "POST", "http.route": route, "darkroom.request_id": request_id}
        told["darkroom.model"] = model
        parent = self.propagator.extract(carrier)
        return self.tracer.start_span(f"POST {route}", parent, SpanKind.SERVER, told, start_time=self.at(started))

    def end(
        self, span: Span, status: int, code: str, started: float, received: float, answers: Sequence[Answer]
    ) -> None:
        """A request is over; of several images each stage is as long as the longest."""
        span.set_attribute("http.response.status_code", status)
        if code:
            span.set_attribute("error.type", code)
        if status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        if answers and span.is_recording():
            context = set_span_in_context(span)
            waited, decoded, predicted = (
                max(column) for column in zip(*(answer[4:7] for answer in answers), strict=True)
            )
            stages = {"receive": received, "queue": waited, "decode": decoded, "inference": predicted}
            for stage, seconds in stages.items():
                child = self.tracer.start_span(stage, context, start_time=self.at(started))
                started += seconds
                child.end(self.at(started))
        span.end()

    def trace_of(self, span: Span) -> Trace:
        """A span as it travels to the worker; nothing, where it is not recorded."""
        context = span.get_span_context()
        return (*divmod(context.trace_id, HALF), context.span_id) if span.is_recording() else NO_TRACE

    def batch(self, started: float, seconds: float, traces: Sequence[Trace]) -> None:
        """A forward pass is over, of images that came with these requests' spans."""
        links = [Link(context_of(trace)) for trace in dict.fromkeys(traces) if trace != NO_TRACE]
        if not links:
            return
        told = {"darkroom.batch_size": len(traces)}
        # Below the first of them, so that whoever keeps its trace keeps the batch.
        first = set_span_in_context(NonRecordingSpan(links[0].context))
        span = self.tracer.start_span("batch", first, attributes=told, links=links, start_time=self.at(started))
        span.end(self.at(started + seconds))


def context_of(trace: Trace) -> SpanContext:
    """The span that has travelled so."""
    high, low, span = trace
    return SpanContext(high * HALF + low, span, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
