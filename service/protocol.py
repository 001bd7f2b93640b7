"""uvicorn's HTTP/1.1, with a short way for `POST /predict`.

    bytes -> httptools -> POST /predict: Call, synchronous, one write a reply
                          all else: ASGI (Boundary, FastAPI), a task a request

A task, an event and an ASGI message for each step would cost as much again as all that a `Call` does.
"""

import json
from http import HTTPStatus
from typing import Any

from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.endpoint import Call, Predict
from service.errors import Framing, problem

STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


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

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """A request's head is there and the request before it is answered."""
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
        if cycle.waiting_for_100_continue and not cycle.response_complete:
            self.transport.write(CONTINUE)
        self.advance(cycle)

    def on_body(self, body: bytes) -> None:
        """A piece of a body; uvicorn collects it, and would stop reading at 64 KiB."""
        super().on_body(body)
        if self.answering is self.cycle:
            self.advance(self.cycle)

    def on_message_complete(self) -> None:
        """The body is complete."""
        super().on_message_complete()
        if self.answering is self.cycle:
            self.advance(self.cycle)

    def advance(self, cycle: RequestResponseCycle) -> None:
        """Tell the call how far its body has come."""
        if cycle.response_complete or self.call is None:
            return
        if cycle.more_body:
            self.flow.resume_reading()
            self.call.growing(len(cycle.body))
        else:
            self.call.complete(bytes(cycle.body))

    def reply(self, status: int, head: str, body: bytes) -> None:
        """Answer the request under way; `head` are lines of headers, each with its end."""
        cycle, self.answering, self.call = self.answering, None, None
        assert cycle is not None, "a call replies once"
        cycle.response_complete = True
        parts = [STATUS_LINES[status], head.encode()]
        for name, value in self.server_state.default_headers:
            parts += name, b": ", value, b"\r\n"
        if not cycle.keep_alive:
            parts.append(b"connection: close\r\n")
        parts += b"\r\n", body
        self.transport.write(b"".join(parts))
        if not cycle.keep_alive:
            self.transport.close()
        if self.pipeline:
            self.loop.call_soon(self.on_response_complete)  # from here it would nest, once a request
        else:
            self.on_response_complete()

    def resume_writing(self) -> None:
        """The client has read enough."""
        super().resume_writing()
        cycle, self.held = self.held, None
        if cycle is not None:
            self.begin(cycle)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left, or we have closed the connection."""
        super().connection_lost(exc)
        call, self.call, self.answering = self.call, None, None
        if call is not None:
            call.leave()

    def send_400_response(self, msg: str) -> None:
        """Refuse bytes that do not parse as a request, and close; uvicorn's own answer is plain text."""
        journal = self.predict.journal
        error, request_id = Framing("The request is not valid HTTP/1.1."), journal.new_id()
        journal.metrics.reject(error)
        journal.unreadable(error.code, request_id)
        body = json.dumps(problem(error, request_id)).encode()
        head = (
            "HTTP/1.1 400 Bad Request\r\ncontent-type: application/problem+json\r\n"
            f"content-length: {len(body)}\r\nx-request-id: {request_id}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
