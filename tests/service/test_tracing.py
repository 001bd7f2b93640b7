"""Traces arrive at a collector: each request with its stages, and each batch with links to its requests."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests import running
from tests.pictures import noise
from tests.running import Service

pytestmark = pytest.mark.slow

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
STAGES = ["receive", "queue", "decode", "inference"]
PATIENCE_S = 30
ENDED_S = 8  # two seconds in each of two processes, and some; an export tries for ten


class Collector(ThreadingHTTPServer):
    """Takes OTLP over HTTP, as any collector does, and keeps the spans."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Receiver)
        self.spans: list[Span] = []
        self.services: set[str] = set()

    def until(self, condition: Callable[[list[Span]], bool]) -> list[Span]:
        """The spans, once enough have come."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition(list(self.spans)):
            assert time.monotonic() < deadline, [span.name for span in self.spans]
        return list(self.spans)


class Receiver(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        request = ExportTraceServiceRequest.FromString(body)
        for resource in request.resource_spans:
            told = {one.key: one.value.string_value for one in resource.resource.attributes}
            self.server.services.add(told["service.name"])
            for scope in resource.scope_spans:
                self.server.spans.extend(scope.spans)
        self.send_response(200 if self.path == "/v1/traces" else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing to the test's output."""


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


@pytest.fixture(scope="module")
def traced(model: Path, collector: Collector) -> Iterator[Service]:
    where = f"http://127.0.0.1:{collector.server_address[1]}"
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": where, "OTEL_BSP_SCHEDULE_DELAY": "100"}
    with running.serving(model, "--tracing", "--access-log", "--log-format", "json", **variables) as service:
        yield service


def of(spans: list[Span], request_id: str) -> Span | None:
    """The span of a request."""
    for span in spans:
        if any(one.key == "darkroom.request_id" and one.value.string_value == request_id for one in span.attributes):
            return span
    return None


def test_a_request_has_a_span_with_its_stages_below_the_clients(traced: Service, collector: Collector) -> None:
    traced.post(noise(), X_Request_ID="one", traceparent=f"00-{TRACE}-{PARENT}-01")
    spans = collector.until(lambda spans: of(spans, "one") is not None and len(spans) >= 6)
    span = of(spans, "one")
    assert span is not None
    children = sorted(
        (one for one in spans if one.parent_span_id == span.span_id and one.name != "batch"),
        key=lambda one: one.start_time_unix_nano,
    )

    assert (TRACE, PARENT) == (span.trace_id.hex(), span.parent_span_id.hex())
    assert ("POST /predict", Span.SPAN_KIND_SERVER) == (span.name, span.kind)
    assert STAGES == [child.name for child in children]
    assert all(before.end_time_unix_nano == after.start_time_unix_nano for before, after in pairwise(children))
    assert span.start_time_unix_nano == children[0].start_time_unix_nano
    assert children[-1].end_time_unix_nano <= span.end_time_unix_nano + 1_000_000
    assert abs(time.time_ns() - span.end_time_unix_nano) < PATIENCE_S * 1e9
    assert {"darkroom"} == collector.services


def test_a_batch_is_linked_to_its_requests(traced: Service, collector: Collector) -> None:
    traced.post_together([noise(seed) for seed in range(64)])
    asked = traced.post(noise(), X_Request_ID="two")
    assert asked.ok
    spans = collector.until(
        lambda spans: of(spans, "two") is not None and linked(spans) >= {span.span_id for span in requests(spans)}
    )

    sizes = [one.value.int_value for span in spans if span.name == "batch" for one in span.attributes]
    assert len(requests(spans)) >= 65
    assert max(sizes) > 1
    assert {span.trace_id for span in requests(spans)} >= {
        link.trace_id for span in spans if span.name == "batch" for link in span.links
    }


def requests(spans: list[Span]) -> list[Span]:
    return [span for span in spans if span.name == "POST /predict"]


def linked(spans: list[Span]) -> set[bytes]:
    """The span ids that batches are linked to."""
    return {link.span_id for span in spans if span.name == "batch" for link in span.links}


def test_a_refusal_is_told_by_its_code(traced: Service, collector: Collector) -> None:
    traced.post(b"no image", X_Request_ID="three")
    span = of(collector.until(lambda spans: of(spans, "three") is not None), "three")
    assert span is not None
    told = {one.key: one.value for one in span.attributes}

    assert "unsupported_format" == told["error.type"].string_value
    assert 415 == told["http.response.status_code"].int_value


def test_what_the_client_does_not_sample_is_not_sent(traced: Service, collector: Collector) -> None:
    traced.post(noise(), X_Request_ID="before")
    traced.post(noise(), X_Request_ID="unsampled", traceparent=f"00-{TRACE}-{PARENT}-00")
    traced.post(noise(), X_Request_ID="sampled")
    spans = collector.until(lambda spans: (last := of(spans, "sampled")) is not None and last.span_id in linked(spans))
    before = of(spans, "before")
    assert before is not None
    batches = [link.span_id for span in spans if span.name == "batch" for link in span.links]

    assert of(spans, "unsampled") is None
    assert 1 == batches.count(before.span_id), "its batch, and not the next one's in the same place"


def test_a_collector_that_does_not_answer_holds_up_neither_answers_nor_the_end(model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        where = f"http://127.0.0.1:{silent.getsockname()[1]}"
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": where, "OTEL_BSP_SCHEDULE_DELAY": "60000"}
        with running.serving(model, "--tracing", **variables) as service:
            replies = service.post_together([noise(seed) for seed in range(50)])
            begun = time.monotonic()
            code = service.stop()

    assert {200} == {reply.status_code for reply in replies}
    assert 0 == code
    assert time.monotonic() - begun < ENDED_S


def test_log_lines_have_the_trace(traced: Service) -> None:
    traced.post(noise(), X_Request_ID="logged", traceparent=f"00-{TRACE}-{PARENT}-01")
    traced.post(noise(), X_Request_ID="malformed", traceparent=f"00-{'0' * 32}-{PARENT}-01")
    lines = {line["request_id"]: line for line in map(json.loads, logged(traced, "malformed")) if "request_id" in line}

    assert TRACE == lines["logged"]["trace_id"]
    assert "trace_id" not in lines["malformed"]


def logged(service: Service, word: str) -> list[str]:
    """The lines of the log, once one has this word."""
    deadline = time.monotonic() + PATIENCE_S
    while word not in (text := service.stderr.read_text()):
        assert time.monotonic() < deadline
    return text.splitlines()


def test_spans_under_way_are_sent_before_the_end(model: Path, collector: Collector) -> None:
    where = f"http://127.0.0.1:{collector.server_address[1]}"
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": where, "OTEL_BSP_SCHEDULE_DELAY": "60000"}
    with running.serving(model, "--tracing", **variables) as service:
        service.post(noise(), X_Request_ID="last")
        assert 0 == service.stop()

    collector.until(lambda spans: (span := of(spans, "last")) is not None and span.span_id in linked(spans))


@pytest.mark.parametrize(("flags", "imported"), [((), False), (("--tracing",), True)])
def test_without_tracing_nothing_of_it_is_imported(model: Path, flags: tuple[str, ...], imported: bool) -> None:
    with running.serving(model, *flags, PYTHONPROFILEIMPORTTIME="1") as service:
        service.post(noise())
        told = service.stderr.read_text()

    assert "service.call" in told
    # FastAPI imports the interface, which does nothing by itself.
    assert imported == ("opentelemetry.sdk" in told) == ("service.tracing" in told)


def test_without_the_extra_the_start_ends_with_one_line(model: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, importlib.util as util\n"
        "found = util.find_spec\n"
        "util.find_spec = lambda name, *more: None if name.startswith('opentelemetry') else found(name, *more)\n"
    )
    ended = running.run("--model", str(model), "--tracing", PYTHONPATH=f"{tmp_path}:{Path.cwd()}")

    assert (2, "darkroom: --tracing needs OpenTelemetry: pip install 'darkroom[tracing]'\n") == (
        ended.returncode,
        ended.stderr,
    )
