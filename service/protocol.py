"""uvicorn's HTTP/1.1, with a short way for `POST /predict`.

    bytes -> httptools -> POST /predict: Call, synchronous, one write a reply
                          all else: ASGI (Boundary, FastAPI), a task a request

A task, an event and an ASGI message for each step would cost as much again as all that a `Call` does.
"""

import asyncio
import json
from http import HTTPStatus
from time import monotonic
from typing import Any

from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.boundary import HEADER_BYTES
from service.endpoint import Call, Predict
from service.errors import DeadlineExceeded, Framing, HeadersTooLarge, Rejected, ServiceError, problem

STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LINGER_S = 2  # how long a refused request may go on sending on a connection that is to be closed
LATE_BODY = "The request's deadline passed before its body was complete."


class Protocol(HttpToolsProtocol):
    """One connection. A request is a `cycle` here, as in uvicorn; pipelined ones are answered one after the other."""

    def __init__(self, *args: Any, app: ASGIApp, predict: Predict, **kwargs: Any) -> None:
        """Requests go to `predict`, or to `app` without the layers that FastAPI puts around it."""
        super().__init__(*args, **kwargs)
        self.app = app
        self.predict = predict
        self.call: Call | None = None
        self.answering: RequestResponseCycle | None = None  # the cycle of `call`
        self.held: RequestResponseCycle | None = None  # until the client has read the replies before
        self.bodys_end: asyncio.TimerHandle | None = None  # when a body must have come
        self.unused = 0  # bytes of a head or trailer so far

    def data_received(self, data: bytes) -> None:
        """Bytes have come; heads and trailers are bounded, and bodies must come before the deadline."""
        self.unused += len(data)
        super().data_received(data)
        if self.unused > 2 * HEADER_BYTES:
            self.refuse_bytes(HeadersTooLarge(f"The request's headers are larger than {HEADER_BYTES} bytes."))
        elif self.call and self.answering and self.answering.more_body and self.bodys_end is None:
            left = self.call.deadline - monotonic()
            self.bodys_end = self.loop.call_later(left, self.refuse_unfinished, DeadlineExceeded(LATE_BODY))

    def on_headers_complete(self) -> None:
        """A head is complete."""
        self.unused = 0
        super().on_headers_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """A request's head is there and the request before it is answered."""
        if self.pipeline:
            self.flow.pause_reading()  # more come only once these are answered
        if cycle is self.cycle and self.parser.should_upgrade():
            cycle.keep_alive = False  # the parser took no body, and would take it for the next request
        if cycle.scope["path"] != "/predict" or cycle.scope["method"] != "POST":
            super()._start_asgi_task(cycle, app)
        elif self.flow.write_paused:
            self.held = cycle
        else:
            self.begin(cycle)

    def begin(self, cycle: RequestResponseCycle) -> None:
        """Let `predict` have the request, and the body as far as it is there."""
        self.answering = cycle
        self.call = call = Call(self.predict, list(cycle.scope["headers"]), cycle.scope["query_string"], self.reply)
        call.begin()
        if cycle.waiting_for_100_continue and not cycle.response_complete and cycle.scope["http_version"] == "1.1":
            self.transport.write(CONTINUE)
            cycle.waiting_for_100_continue = False
        self.advance(cycle)

    def on_body(self, body: bytes) -> None:
        """A piece of a body; uvicorn collects it, and would stop reading at 64 KiB."""
        self.unused = 0
        super().on_body(body)
        if self.answering is self.cycle:
            self.advance(self.cycle)

    def on_message_complete(self) -> None:
        """The body is complete."""
        self.unused = 0
        super().on_message_complete()
        if self.answering is self.cycle:
            self.advance(self.cycle)
        elif self.cycle.response_complete and not self.transport.is_closing():
            # It was refused before.
            self.cycle.more_body = False
            if self.cycle.keep_alive:
                self.on_response_complete()
            else:
                self.transport.close()

    def advance(self, cycle: RequestResponseCycle) -> None:
        """Tell the call how far its body has come."""
        if cycle.response_complete or self.call is None:
            return
        if cycle.more_body:
            self.flow.resume_reading()
            self.call.growing(len(cycle.body))
        else:
            body, cycle.body = bytes(cycle.body), bytearray()
            self.call.complete(body)

    def reply(self, status: int, head: str, body: bytes) -> None:
        """Answer the request under way; `head` are lines of headers, each with its end."""
        cycle, self.answering, self.call = self.answering, None, None
        assert cycle is not None, "a call replies once"
        if self.bodys_end is not None:
            self.bodys_end.cancel()
            self.bodys_end = None
        if cycle.waiting_for_100_continue:
            cycle.keep_alive = False  # whether the body still comes is the client's choice
        # As uvicorn does at a cycle's end: what refers to this connection would keep it.
        cycle.response_complete, cycle.on_response = True, nothing
        cycle.body = bytearray()
        parts = [STATUS_LINES[status], head.encode()]
        for name, value in self.server_state.default_headers:
            parts += name, b": ", value, b"\r\n"
        if not cycle.keep_alive:
            parts.append(b"connection: close\r\n")
        parts += b"\r\n", body
        self.transport.write(b"".join(parts))
        if cycle.more_body:
            # Closed now, what the client still sends would be answered by a reset, which can overtake the reply.
            self.loop.call_later(self.timeout_keep_alive if cycle.keep_alive else LINGER_S, self.give_up, cycle)
        elif not cycle.keep_alive:
            self.transport.close()
        elif self.pipeline:
            self.loop.call_soon(self.on_response_complete)  # from here it would nest, once a request
        else:
            self.on_response_complete()

    def give_up(self, cycle: RequestResponseCycle) -> None:
        """Close, if the rest of a refused body has not come."""
        if cycle.more_body:
            self.transport.close()

    def refuse_unfinished(self, error: ServiceError) -> None:
        """Refuse the request whose body is still coming, and close."""
        if self.call and self.answering and self.answering.more_body:
            self.answering.keep_alive = False
            self.call.refuse(error)

    def resume_writing(self) -> None:
        """The client has read enough."""
        super().resume_writing()
        cycle, self.held = self.held, None
        if cycle is not None:
            self.begin(cycle)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left, or we have closed the connection."""
        super().connection_lost(exc)
        if self.bodys_end is not None:
            self.bodys_end.cancel()
        call, self.call, self.answering, self.held = self.call, None, None, None
        self.cycle = None  # type: ignore[assignment]  # as before the first request
        self.pipeline.clear()
        if call is not None:
            call.leave()

    def send_400_response(self, msg: str) -> None:
        """Refuse bytes that do not parse as a request; uvicorn's own answer is plain text."""
        self.refuse_bytes(Framing("The request is not valid HTTP/1.1."))

    def refuse_bytes(self, error: Rejected) -> None:
        """Refuse what cannot be read on, and close: once what was asked before is answered."""
        if self.transport.is_closing():
            return
        if self.call and self.answering:
            self.flow.pause_reading()
            self.pipeline.clear()
            self.answering.keep_alive = False
            self.refuse_unfinished(error)
            return
        journal = self.predict.journal
        request_id = journal.new_id()
        journal.metrics.reject(error)
        journal.unreadable(int(error.status), error.code, request_id)
        body = json.dumps(problem(error, request_id)).encode()
        head = (
            f"content-type: application/problem+json\r\ncontent-length: {len(body)}\r\n"
            f"x-request-id: {request_id}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(STATUS_LINES[int(error.status)] + head.encode() + body)
        self.transport.close()


def nothing() -> None:
    """What a cycle that is over calls."""
