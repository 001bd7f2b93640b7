"""A call: one request for predictions, from its head to its reply, whatever protocol its endpoint speaks."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from models.errors import ImageError
from models.manifest import Manifest
from service.board import DRAINING, FAILED, READY
from service.boundary import headers_of, refuse_long
from service.channel import Channel
from service.errors import (
    AnyError,
    BadParameter,
    ClientDisconnect,
    ContentEncoding,
    Draining,
    Framing,
    Internal,
    NotReady,
    Rejected,
    ServiceError,
    TooLarge,
    problem,
)
from service.journal import Journal
from service.keys import Keys
from service.logs import logger
from service.metrics import ANSWER_SECONDS, DISCONNECTED, REQUESTS_IN_FLIGHT, STAGE_SECONDS
from service.pending import Pending
from service.settings import Settings
from service.transport import NO_TRACE, Answer
from service.versions import Version

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from service.feedback import Feedback
    from service.tracing import Tracing

LONGEST_TIMEOUT_MS = 60_000
LENGTH_DIGITS = 18


@dataclass(slots=True)  # made for every request, and frozen it would take four times as long
class Asked:
    """What a body asks for: images in order, an error in the place of one that is none, and predictions for each.

    A body is an encoded image or, with `pixels`, uint8 (3, S, S). `timeout` is in seconds from the request's head.
    """

    bodies: Sequence[bytes | Rejected]
    top_k: int
    pixels: bool = False
    timeout: float | None = None


@dataclass(slots=True)
class Content:
    """A reply: its body and what it is; `error` where there are no predictions. `head` are more lines of headers."""

    body: bytes
    kind: str = "application/json"
    head: str = ""
    error: AnyError | None = None


class Shared(NamedTuple):
    """What all of a model's endpoints share; `channel` gives this process's, which exists once the process serves."""

    manifest: Manifest
    settings: Settings
    keys: Keys
    journal: Journal
    channel: Callable[[], Channel]


class Endpoint(ABC):
    """What all calls of one protocol in one HTTP process share."""

    route: ClassVar[str]  # as metrics and logs name it

    def __init__(self, shared: Shared) -> None:
        """Nothing is asked yet."""
        self.manifest, self.settings, self.keys, self.journal, self.channel = shared
        self.metrics = self.journal.metrics
        self.tracing: Tracing | None = None
        self.feedback: Feedback | None = None  # that remembers the predictions

    @abstractmethod
    def top_k(self, query: bytes) -> int:
        """How many predictions an image gets unless the body asks for others.

        Raises:
            Rejected: the query is wrong.
        """

    @abstractmethod
    def asked(self, body: bytes, headers: Mapping[bytes, bytes], top_k: int) -> Asked:
        """What a body asks for.

        Raises:
            Rejected: the request as a whole cannot be understood.
        """

    @abstractmethod
    def answered(self, asked: Any, answers: Sequence[Answer], request_id: str, version: Version) -> Content:
        """The reply, from what `asked` gave and an answer by `version` for each body that is no error.

        Raises:
            ServiceError, ImageError: that is the reply.
        """

    def problem(self, error: AnyError, request_id: str) -> dict[str, object]:
        """The document of a request that is not answered."""
        return problem(error, request_id)


class Endpoints:
    """Where a request for predictions goes, by its path."""

    def __init__(self, endpoints: Mapping[str, Endpoint], journal: Journal) -> None:
        """A path with the star `*` in the place of a version is every version's that is there.

        `journal` is of what is no request.
        """
        self.plain = {path: endpoint for path, endpoint in endpoints.items() if "*" not in path}
        self.starred = {tuple(path.split("*")): endpoint for path, endpoint in endpoints.items() if "*" in path}
        self.first = next(iter(endpoints.values()))  # settings are the same for all, and the phase is on every channel
        self.journal = journal

    def find(self, path: str) -> tuple[Endpoint, Version | None] | None:
        """The endpoint, and the version if the path names one; None where it is no path for predictions."""
        if path in self.plain:
            return self.plain[path], None
        for (before, after), endpoint in self.starred.items():
            if path.startswith(before) and path.endswith(after):
                version = endpoint.channel().versions.named(path[len(before) : -len(after)])
                return (endpoint, version) if version else None
        return None


Reply = Callable[[int, str, bytes], None]  # status, lines of headers, body


class Call:
    """One request for predictions, from its head to its reply. It replies once, whatever happens.

    begin -> growing ... -> complete -> (the answers come) answered -> reply
    """

    def __init__(
        self,
        endpoint: Endpoint,
        headers: Sequence[tuple[bytes, bytes]],
        query: bytes,
        reply: Reply,
        version: Version | None = None,
    ) -> None:
        """The request's head is there: `headers` have lower-case names, `query` is what follows the question mark.

        `version` is the one that its path asks for.
        """
        self.started = monotonic()
        self.version = version
        self.endpoint, self.query, self.reply = endpoint, query, reply
        self.headers = dict(headers)
        self.all_headers = headers
        self.pending: Pending | None = None
        self.received = 0.0
        self.deadline = self.started + endpoint.settings.timeout_ms / 1000
        self.request_id = endpoint.journal.request_id(self.headers.get(b"x-request-id", b""))
        endpoint.metrics.add(REQUESTS_IN_FLIGHT)
        self.span: Span | None = None
        if endpoint.tracing:
            self.span = endpoint.tracing.begin(
                endpoint.route, endpoint.manifest.name, self.request_id, self.started, self.headers
            )

    def begin(self) -> None:
        """Refuse what the head alone tells to be unusable."""
        self.attempt(self.read_head)

    def growing(self, size: int) -> None:
        """So many bytes of the body have come."""
        if size > self.endpoint.settings.max_body_bytes:
            self.attempt(self.refuse_large, size)

    def complete(self, body: bytes) -> None:
        """The whole body has come."""
        self.attempt(self.submit, body)

    def answered(self, answers: Sequence[Answer]) -> None:
        """All answers have come."""
        self.attempt(self.succeed, answers)

    def leave(self) -> None:
        """The client has left; nobody reads a reply."""
        if self.pending is not None:
            self.endpoint.channel().cancel(self.pending)
        error = ClientDisconnect("The client left before its answer.")
        self.endpoint.metrics.reject(error)
        self.close(DISCONNECTED, error.code)
        self.end_trace(DISCONNECTED, error.code)

    def attempt(self, step: Callable[..., None], *arguments: object) -> None:
        """Take a step; where it fails, that is the reply."""
        try:
            step(*arguments)
        except (ServiceError, ImageError) as error:
            self.refuse(error)
        except Exception:
            logger.exception("a request failed", extra={"request_id": self.request_id, "route": self.endpoint.route})
            self.refuse(Internal("The service failed on this request."))

    def read_head(self) -> None:
        """Whether it can be answered, and the parameters."""
        refuse_long(self.all_headers)
        self.endpoint.keys.check(self.headers)
        refuse_unready(self.endpoint.channel().transport.phase)
        if b"content-encoding" in self.headers:
            refuse_encoded(self.headers[b"content-encoding"].decode("latin-1"))
        self.top_k = self.endpoint.top_k(self.query)
        timeout = self.headers.get(b"x-timeout-ms")
        if timeout is not None:
            self.deadline = self.started + timeout_of(timeout.decode("latin-1"))
        announced = self.headers.get(b"content-length", b"")
        if announced.isdigit():
            self.refuse_large(int(announced[:LENGTH_DIGITS]))  # Python refuses to read thousands

    def refuse_large(self, size: int) -> None:
        """Compare a body's size with the limit."""
        limit = self.endpoint.settings.max_body_bytes
        if size > limit:
            raise TooLarge(f"The body is larger than {limit} bytes.")

    def submit(self, body: bytes) -> None:
        """Send the images on their way."""
        if not body and b"upgrade" in self.headers:
            raise Framing("An Upgrade is not supported, and it hid the body; send plain HTTP/1.1.")
        channel = self.endpoint.channel()
        if channel.transport.phase == FAILED:  # since its head came
            refuse_unready(FAILED)
        self.asked = asked = self.endpoint.asked(body, self.headers, self.top_k)
        if asked.timeout is not None:
            self.deadline = min(self.deadline, self.started + asked.timeout)
        self.received = monotonic() - self.started
        if asked.bodies:
            self.endpoint.metrics.observe(STAGE_SECONDS, self.received, "receive")
        bodies = [image for image in asked.bodies if isinstance(image, bytes)]
        if bodies:
            trace = self.endpoint.tracing.trace_of(self.span) if self.endpoint.tracing and self.span else NO_TRACE
            self.pending = channel.submit(
                bodies,
                asked.top_k,
                self.deadline,
                self.answered,
                self.refuse,
                pixels=asked.pixels,
                trace=trace,
                version=self.version,
            )
        else:
            self.succeed([])

    def succeed(self, answers: Sequence[Answer]) -> None:
        """Reply with what each image got."""
        answered = monotonic()
        version = self.pending.version if self.pending else self.version or self.endpoint.channel().versions.serving
        content = self.endpoint.answered(self.asked, answers, self.request_id, version)
        if self.endpoint.feedback and answers:
            self.endpoint.feedback.remember(self.request_id, self.asked, answers)
        self.send(content, answers)
        if not self.asked.bodies:  # nothing was predicted
            return
        now = monotonic()
        self.endpoint.metrics.observe(STAGE_SECONDS, now - answered, "respond")
        if content.error is None:
            self.endpoint.metrics.observe(ANSWER_SECONDS, now - self.started - self.received, self.endpoint.route)

    def refuse(self, error: AnyError) -> None:
        """Reply with why there are no predictions."""
        self.endpoint.metrics.reject(error)
        document = json.dumps(self.endpoint.problem(error, self.request_id))
        self.send(Content(document.encode(), "application/problem+json", error=error))

    def send(self, content: Content, answers: Sequence[Answer] = ()) -> None:
        """Reply; `answers` tell how long it took."""
        status, more, error = 200, content.head, content.error
        if error is not None:
            status = int(error.status)
            more += "".join([f"{name}: {value}\r\n" for name, value in headers_of(error).items()])
        if answers:
            more += f"server-timing: {server_timing(self.received, answers)}\r\n"
        head = (
            f"content-type: {content.kind}\r\n{more}content-length: {len(content.body)}\r\n"
            f"x-request-id: {self.request_id}\r\n"
        )
        self.close(status, error.code if error else "")
        self.reply(status, head, content.body)
        self.end_trace(status, error.code if error else "", answers)

    def close(self, status: int, code: str) -> None:
        """Nothing that still comes for this request is waited for."""
        if self.pending is not None:
            self.pending.forget()
            self.pending = None
        self.endpoint.metrics.add(REQUESTS_IN_FLIGHT, n=-1)
        traceparent = self.headers.get(b"traceparent", b"")
        self.endpoint.journal.close(self.endpoint.route, status, code, self.request_id, self.started, traceparent)

    def end_trace(self, status: int, code: str, answers: Sequence[Answer] = ()) -> None:
        """After the reply, so that nobody waits for it."""
        if self.endpoint.tracing and self.span:
            self.endpoint.tracing.end(self.span, status, code, self.started, self.received, answers)


def refuse_unready(phase: int) -> None:
    """Answer only while there is somebody to predict."""
    if phase == DRAINING:
        raise Draining("The service is stopping; try another replica.")
    if phase != READY:
        raise NotReady("The service is not ready to answer.")


def refuse_encoded(encoding: str) -> None:
    """Images are compressed already; decompressing bodies only serves bombs."""
    if encoding.strip().lower() not in ("", "identity"):
        raise ContentEncoding("Content-Encoding is not accepted; send the image as it is.")


def timeout_of(given: str) -> float:
    """Seconds that the request allows by its `X-Timeout-Ms`."""
    milliseconds = whole_number("X-Timeout-Ms", given)
    if milliseconds > LONGEST_TIMEOUT_MS:
        raise BadParameter(f"X-Timeout-Ms must be at most {LONGEST_TIMEOUT_MS}.")
    return milliseconds / 1000


def whole_number(name: str, text: str) -> int:
    """The positive integer in `text`; beyond 18 digits its size is all that matters."""
    if text.isascii() and text.isdigit() and (value := int(text[:18])) > 0:
        return value
    raise BadParameter(f"{name} must be a whole number greater than zero.")


def server_timing(receive: float, answers: Sequence[Answer]) -> str:
    """The `Server-Timing` header: milliseconds of each stage, of several images the longest."""
    times = [answer[4:] for answer in answers]
    queue, decode, inference = times[0] if len(times) == 1 else map(max, zip(*times, strict=True))
    return (
        f"receive;dur={receive * 1000:.3f}, queue;dur={queue * 1000:.3f}, "
        f"decode;dur={decode * 1000:.3f}, inference;dur={inference * 1000:.3f}"
    )
