"""uvicorn's HTTP/1.1, with a short way for predictions.

    bytes -> httptools -> POST to an endpoint: Call, synchronous, one write a reply
          `head` -^       all else: ASGI (Boundary, FastAPI), a task a request

A task, an event and an ASGI message for each step would cost as much again as all that a `Call` does.

A connection has one timer, the guard. What the client must do next sets `due`; the guard looks whether that has passed,
and is set anew where it would look too late. A request that comes in one piece touches it not at all.
"""

import asyncio
import json
import socket
from http import HTTPStatus
from time import monotonic
from typing import Any

from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.board import DRAINING
from service.boundary import HEADER_BYTES
from service.call import Call, Endpoint, Endpoints
from service.errors import (
    Crowded,
    DeadlineExceeded,
    Framing,
    HeadersTooLarge,
    Rejected,
    ServiceError,
    SlowClient,
    problem,
)
from service.head import Head, head_of
from service.room import SETTLED_S, Room
from service.versions import Version

STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
VERSION = len("HTTP/1.1 ")  # with which every reply begins
LINGER_S = 2  # how long a refused request may go on sending on a connection that is to be closed
NOTICE_S = 0.1  # how soon a client that sends no more is looked for
CROWDED_HEAD_S = 1  # the time for a head on a connection beyond the limit
TCP_CLOSE = 7  # of the kernel's tcp_states.h
LATE_HEAD = "The request's head did not come in time."
SLOW_BODY = "The request's body did not come in time."
CROWDED = "Too many connections are open. Try again soon."
LATE_BODY = "The request's deadline passed before its body was complete."


class Protocol(HttpToolsProtocol):
    """One connection. A request is a `cycle` here, as in uvicorn; pipelined ones are answered one after the other."""

    def __init__(self, *args: Any, app: ASGIApp, endpoints: Endpoints, room: Room, **kwargs: Any) -> None:
        """POST requests go to their path's endpoint, others to `app` without the layers that FastAPI puts around it.

        Connections for which there is no `room` are answered once each, and get no predictions.
        """
        super().__init__(*args, **kwargs)
        self.app = app
        self.endpoints = endpoints
        self.shared = endpoints.first
        self.room = room
        self.header_timeout = self.shared.settings.header_timeout_ms / 1000
        self.body_timeout = self.shared.settings.body_timeout_ms / 1000
        self.call: Call | None = None
        self.answering: RequestResponseCycle | None = None  # the cycle of `call`, or of the application's task
        self.held: RequestResponseCycle | None = None  # until the client has read the replies before
        self.head: Head | None = None  # of `cycle`, where another request may begin with the same
        self.unused = 0  # bytes of a head or trailer so far
        self.crowded = False  # beyond the limit
        self.leaving = False  # the service stops: what comes still is answered, and is the last
        self.ended = False  # the client sends no more
        self.closing = False  # only what is written already is still sent
        self.greeted = False  # the reply under way has begun
        self.begun: object = None  # what `due` was set for
        self.due = self.rings = 0.0  # when the client is late; when the guard looks
        self.guard: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        self.crowded = len(self.connections) > self.room.most and not self.room.make()
        if self.crowded:
            self.header_timeout = min(self.header_timeout, CROWDED_HEAD_S)
            self.timeout_keep_alive = CROWDED_HEAD_S
        self.stopping()  # where it was accepted just before the socket was closed
        self.await_client()

    def stopping(self) -> bool:
        """Whether the service stops. uvicorn learns of it a moment later than the board tells it."""
        if not self.leaving and self.shared.channel().transport.phase == DRAINING:
            self.leave()
        return self.leaving

    def leave(self) -> None:
        """The next reply is the last."""
        self.leaving = True
        self.timeout_keep_alive = min(self.timeout_keep_alive, SETTLED_S)

    def shutdown(self) -> None:
        """The service stops. uvicorn would close what is idle at once, also under a request that is on its way."""
        if self.cycle is not None:
            self.cycle.keep_alive = False
        if self.idle and not self.flow.write_paused:
            self.due += SETTLED_S - self.timeout_keep_alive
            self.set_guard()
        self.leave()

    def data_received(self, data: bytes) -> None:
        """Bytes have come; heads and trailers are bounded."""
        whole = self.idle and not self.flow.write_paused  # if all that comes now is one request
        if whole and self.head and (body := self.head.body(data)) is not None:
            self.begin_again(self.head, body)
            return
        self.unused += len(data)
        super().data_received(data)
        self.head = head_of(data, self.headers) if whole and self.repeatable() else None
        if self.unused > 2 * HEADER_BYTES:
            self.refuse_bytes(HeadersTooLarge(f"The request's headers are larger than {HEADER_BYTES} bytes."))
        elif (begun := self.unfinished()) is not None and begun is not self.begun:
            self.await_client()

    def repeatable(self) -> bool:
        """Whether a whole request for predictions has come, and one with the same head would go the same way.

        A version that a path names may be gone by then; `Expect` asks for an answer before the body.
        """
        call, cycle = self.call, self.answering
        if call is None or cycle is None or cycle.more_body:
            return False
        return call.version is None and cycle.keep_alive and not self.expect_100_continue

    def begin_again(self, head: Head, body: bytes) -> None:
        """A request has come whose head is that of the one before: it is not parsed again."""
        cycle = self.cycle
        self.headers[head.header] = b"content-length", b"%d" % len(body)
        cycle.body, cycle.response_complete = body, False  # type: ignore[assignment]  # read only
        self._start_asgi_task(cycle, self.app)

    def unfinished(self) -> object:
        """What the client is in the middle of: a head, as its scope, or a body, as its cycle."""
        cycle = self.cycle
        if cycle is None or cycle.scope is not self.scope:
            return self.scope
        return cycle if cycle.more_body else None

    def await_client(self) -> None:
        """It is the client's turn: from now on it has so long."""
        self.begun = begun = self.unfinished()
        if self.flow.write_paused:
            seconds = self.body_timeout  # to read
        elif self.ended:
            seconds = NOTICE_S
        elif begun is None:
            seconds = self.timeout_keep_alive
            self.room.enter(self)
        elif begun is self.scope:
            seconds = self.header_timeout
        elif self.cycle.response_complete and not self.cycle.keep_alive:
            seconds = LINGER_S
        else:
            seconds = self.body_timeout
        self.due = monotonic() + seconds
        if self.call and self.answering and self.answering.more_body:
            self.due = min(self.due, self.call.deadline)
        if self.guard is None or self.due < self.rings:
            self.set_guard()

    def set_guard(self) -> None:
        """Look again when it is due."""
        if self.guard is not None:
            self.guard.cancel()
        self.rings = self.due
        self.guard = self.loop.call_later(max(0, self.due - monotonic()), self.look)

    def look(self) -> None:
        """The guard looks whether the client is late."""
        now = monotonic()
        late, closing = now >= self.due, self.transport.is_closing()
        if late and (self.closing or self.flow.write_paused or (self.ended and self.left())):
            self.transport.abort()  # with what it does not read
            return
        if closing and not self.closing:
            self.closing, self.due = True, now + self.body_timeout
        elif late and (self.working() or self.pipeline):
            self.due = now + (NOTICE_S if self.ended else self.header_timeout)
        elif late:
            self.refuse_late()
        self.set_guard()

    @property
    def idle(self) -> bool:
        """Whether nothing has been asked that is not answered."""
        asked = self.answering or self.held or self.pipeline
        return not asked and self.unfinished() is None

    def working(self) -> bool:
        """Whether it is our turn."""
        return self.answering is not None and not (self.call and self.answering.more_body)

    def left(self) -> bool:
        """Whether a client that sends no more reads no more either: it has answered what we wrote with a reset."""
        found: bytes = self.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
        return found[0] == TCP_CLOSE

    def refuse_late(self) -> None:
        """End what the client has not done in time."""
        if self.call:
            expired = monotonic() >= self.call.deadline
            self.refuse_unfinished(DeadlineExceeded(LATE_BODY) if expired else SlowClient(SLOW_BODY))
        elif self.scope is not None and self.unfinished() is self.scope:
            self.refuse_bytes(SlowClient(LATE_HEAD))
        else:
            self.transport.close()  # idle, or with the rest of a body that was refused

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client sends no more: it has left, or waits for the answers to what it has sent whole."""
        if self.pipeline and self.pipeline[0][0].more_body:
            self.pipeline.popleft()
        last = self.pipeline[0][0] if self.pipeline else self.held or self.answering
        if last is None or last.more_body:
            return False
        last.keep_alive = False
        self.ended = True
        if self.call and not self.greeted:
            # Only an answer to something tells who has left, so the reply begins now.
            self.greeted = True
            self.transport.write(STATUS_LINES[200][:VERSION])
        self.await_client()
        return True

    def on_headers_complete(self) -> None:
        """A head is complete; what the parser is told here to refuse, it refuses as it does malformed bytes."""
        self.unused = 0
        codings = [value.strip().lower() for name, value in self.headers if name == b"transfer-encoding"]
        if codings and codings != [b"chunked"]:
            raise ValueError("another server may read another body")
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """As uvicorn's, with the guard in the place of a timer of its own for each request."""
        self.answering = None
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        if not self.working():
            self.await_client()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """A request's head is there and the request before it is answered."""
        if self.transport.is_closing():
            return  # by the answer to that
        if self.pipeline:
            self.flow.pause_reading()  # more come only once these are answered
        last = self.crowded or (self.stopping() and not self.pipeline)
        if last or (cycle is self.cycle and self.parser.should_upgrade()):
            cycle.keep_alive = False  # of an upgrade the parser took no body, and would take it for the next request
        found = self.endpoints.find(cycle.scope["path"]) if cycle.scope["method"] == "POST" else None
        if not found:
            self.answering = cycle
            super()._start_asgi_task(cycle, app)
        elif self.flow.write_paused:
            self.held = cycle
        else:
            self.begin(cycle, *found)

    def begin(self, cycle: RequestResponseCycle, endpoint: Endpoint, version: Version | None) -> None:
        """Let the endpoint have the request, and the body as far as it is there."""
        self.answering = cycle
        headers, query = list(cycle.scope["headers"]), cycle.scope["query_string"]
        self.call = call = Call(endpoint, headers, query, self.reply, version)
        if self.crowded:
            call.refuse(Crowded(CROWDED))
        else:
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
        # The service may have stopped since the head came; whether an awaited body still comes is the client's choice.
        if cycle.waiting_for_100_continue or (self.stopping() and not self.pipeline):
            cycle.keep_alive = False
        # As uvicorn does at a cycle's end: what refers to this connection would keep it.
        cycle.response_complete, cycle.on_response = True, nothing
        cycle.body = bytearray()
        parts = [STATUS_LINES[status][VERSION if self.greeted else 0 :], head.encode()]
        self.greeted = False
        for name, value in self.server_state.default_headers:
            parts += name, b": ", value, b"\r\n"
        if not cycle.keep_alive:
            parts.append(b"connection: close\r\n")
        parts += b"\r\n", body
        self.transport.write(b"".join(parts))
        if cycle.more_body:
            # Closed now, what the client still sends would be answered by a reset, which can overtake the reply.
            self.await_client()
        elif not cycle.keep_alive:
            self.transport.close()
        elif self.pipeline:
            self.loop.call_soon(self.on_response_complete)  # from here it would nest, once a request
        else:
            self.on_response_complete()

    def refuse_unfinished(self, error: ServiceError) -> None:
        """Refuse the request whose body is still coming, and close; the application learns that from its body's end."""
        if not self.answering or not self.answering.more_body:
            return
        if self.call:
            self.answering.keep_alive = False
            self.call.refuse(error)
        else:
            self.transport.close()

    def pause_writing(self) -> None:
        """The client does not read."""
        super().pause_writing()
        self.await_client()

    def resume_writing(self) -> None:
        """The client has read enough."""
        super().resume_writing()
        self.await_client()
        cycle, self.held = self.held, None
        if cycle is not None:
            self._start_asgi_task(cycle, self.app)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left, or we have closed the connection."""
        if self.answering is not None:
            self.answering.disconnected = True  # of pipelined requests uvicorn tells only the last
        super().connection_lost(exc)
        if self.guard is not None:
            self.guard.cancel()
        self.guard = self.begun = None
        self.room.leave(self)
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
        if under_way := self.answering or self.held:
            self.flow.pause_reading()
            self.pipeline.clear()
            under_way.keep_alive = False
            self.refuse_unfinished(error)
            return
        if self.cycle is not None and self.cycle.more_body:
            self.transport.close()  # its reply has been written
            return
        journal = self.endpoints.journal
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
