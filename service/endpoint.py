"""`POST /predict`: from a request's bytes to its reply, whatever form the images came in."""

import json
from collections.abc import Callable, Iterable, Sequence
from time import monotonic
from urllib.parse import parse_qs

from models.errors import ImageError
from models.manifest import Manifest
from service.boundary import headers_of, refuse_long
from service.channel import Channel, Pending
from service.errors import (
    BY_CODE,
    AnyError,
    BadParameter,
    ClientDisconnect,
    ContentEncoding,
    Draining,
    Framing,
    Internal,
    NotReady,
    ServiceError,
    TooLarge,
    problem,
)
from service.forms import Images, images
from service.journal import Journal
from service.keys import Keys
from service.logs import logger
from service.metrics import DISCONNECTED, REQUESTS_IN_FLIGHT, STAGE_SECONDS
from service.settings import Settings
from service.transport import DRAINING, FAILED, READY, Answer

ROUTE = "/predict"
DEFAULT_TOP_K = 5
LONGEST_TIMEOUT_MS = 60_000
QUERY_FIELDS = 100


class Predict:
    """What all requests for predictions in one HTTP process share."""

    def __init__(
        self, manifest: Manifest, settings: Settings, keys: Keys, journal: Journal, channel: Callable[[], Channel]
    ) -> None:
        """`channel` gives this process's channel, which exists once the process serves."""
        self.settings, self.keys = settings, keys
        self.journal, self.metrics = journal, journal.metrics
        self.channel = channel
        # What is the same in every reply is written once.
        self.model = json.dumps({"name": manifest.name, "version": manifest.version})
        self.classes = [
            f'{{"class": {json.dumps(name)}, "index": {index}, "probability": '
            for index, name in enumerate(manifest.classes)
        ]

    def predictions(self, answer: Answer) -> str:
        """Classes by name, highest first, as a member of a JSON object; the worker sends finite numbers only."""
        # Nine digits tell every float32 from the others.
        return f'"predictions": [{", ".join([f"{self.classes[i]}{p:.9}}}" for i, p in answer.predictions])}]'


Reply = Callable[[int, str, bytes], None]  # status, lines of headers, body


class Call:
    """One request for predictions, from its head to its reply. It replies once, whatever happens.

    begin -> growing ... -> complete -> (the answers come) answered -> reply
    """

    def __init__(self, predict: Predict, headers: Sequence[tuple[bytes, bytes]], query: bytes, reply: Reply) -> None:
        """The request's head is there: `headers` have lower-case names, `query` is what follows the question mark."""
        self.started = monotonic()
        self.predict, self.query, self.reply = predict, query, reply
        self.headers = dict(headers)
        self.all_headers = headers
        self.pending: Pending | None = None
        self.deadline = self.started + predict.settings.timeout_ms / 1000
        self.request_id = predict.journal.request_id(self.headers.get(b"x-request-id", b""))
        predict.metrics.add(REQUESTS_IN_FLIGHT)

    def begin(self) -> None:
        """Refuse what the head alone tells to be unusable."""
        self.attempt(self.read_head)

    def growing(self, size: int) -> None:
        """So many bytes of the body have come."""
        if size > self.predict.settings.max_body_bytes:
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
            self.predict.channel().cancel(self.pending)
        error = ClientDisconnect("The client left before its answer.")
        self.predict.metrics.reject(error)
        self.close(DISCONNECTED, error.code)

    def attempt(self, step: Callable[..., None], *arguments: object) -> None:
        """Take a step; where it fails, that is the reply."""
        try:
            step(*arguments)
        except (ServiceError, ImageError) as error:
            self.refuse(error)
        except Exception:
            logger.exception("a request failed", extra={"request_id": self.request_id, "route": ROUTE})
            self.refuse(Internal("The service failed on this request."))

    def read_head(self) -> None:
        """Whether it can be answered, and the parameters."""
        refuse_long(self.all_headers)
        self.predict.keys.check(self.headers)
        refuse_unready(self.predict.channel().transport.phase)
        if b"content-encoding" in self.headers:
            refuse_encoded(self.headers[b"content-encoding"].decode("latin-1"))
        self.top_k = top_k_of(self.query, len(self.predict.classes))
        timeout = self.headers.get(b"x-timeout-ms")
        if timeout is not None:
            self.deadline = self.started + timeout_of(timeout.decode("latin-1"))
        announced = self.headers.get(b"content-length", b"")
        if announced.isdigit():
            self.refuse_large(int(announced))

    def refuse_large(self, size: int) -> None:
        """Compare a body's size with the limit."""
        limit = self.predict.settings.max_body_bytes
        if size > limit:
            raise TooLarge(f"The body is larger than {limit} bytes.")

    def submit(self, body: bytes) -> None:
        """Send the images on their way."""
        if not body and b"upgrade" in self.headers:
            raise Framing("An Upgrade is not supported, and it hid the body; send plain HTTP/1.1.")
        channel = self.predict.channel()
        if channel.transport.phase == FAILED:  # since its head came
            refuse_unready(FAILED)
        kind = self.headers.get(b"content-type", b"").decode("latin-1")
        self.found = images(body, kind, self.predict.settings.max_images)
        self.received = monotonic() - self.started
        self.predict.metrics.observe(STAGE_SECONDS, self.received, "receive")
        bodies = [image for image in self.found.bodies if isinstance(image, bytes)]
        if bodies:
            self.pending = channel.submit(bodies, self.top_k, self.deadline, self.answered, self.refuse)
        else:
            self.succeed([])

    def succeed(self, answers: Sequence[Answer]) -> None:
        """Reply with what each image got."""
        answered = monotonic()
        if not self.found.several:
            (answer,) = answers
            if answer.code:
                raise BY_CODE[answer.code](answer.detail)
            self.send(None, f"{self.success()}, {self.predict.predictions(answer)}}}", answers)
        else:
            self.send(*self.several(answers), answers)
        self.predict.metrics.observe(STAGE_SECONDS, monotonic() - answered, "respond")

    def several(self, answers: Iterable[Answer]) -> tuple[AnyError | None, str]:
        """The reply for several images as JSON, and the first error where no image succeeded."""
        replies = in_order(self.found, answers)
        errors = [reply for reply in replies if not isinstance(reply, Answer)]
        for error in errors:
            self.predict.metrics.reject(error)
        results = ", ".join(
            f"{{{self.predict.predictions(reply)}}}"
            if isinstance(reply, Answer)
            else json.dumps({"error": problem(reply, self.request_id)})
            for reply in replies
        )
        if len(errors) < len(replies):
            return None, f'{self.success()}, "results": [{results}]}}'
        return errors[0], f'{json.dumps(problem(errors[0], self.request_id))[:-1]}, "results": [{results}]}}'

    def success(self) -> str:
        """How the document of a success begins."""
        return f'{{"request_id": "{self.request_id}", "model": {self.predict.model}'

    def refuse(self, error: AnyError) -> None:
        """Reply with why there are no predictions."""
        self.predict.metrics.reject(error)
        self.send(error, json.dumps(problem(error, self.request_id)))

    def send(self, error: AnyError | None, text: str, answers: Sequence[Answer] = ()) -> None:
        """Reply with JSON, or with the problem document that it is."""
        body = text.encode()
        status, kind, more = 200, "application/json", ""
        if error is not None:
            status, kind = int(error.status), "application/problem+json"
            more = "".join([f"{name}: {value}\r\n" for name, value in headers_of(error).items()])
        if answers:
            more += f"server-timing: {server_timing(self.received, answers)}\r\n"
        head = f"content-type: {kind}\r\n{more}content-length: {len(body)}\r\nx-request-id: {self.request_id}\r\n"
        self.close(status, error.code if error else "")
        self.reply(status, head, body)

    def close(self, status: int, code: str) -> None:
        """Nothing that still comes for this request is waited for."""
        if self.pending is not None:
            self.pending.forget()
            self.pending = None
        self.predict.metrics.add(REQUESTS_IN_FLIGHT, n=-1)
        self.predict.journal.close(ROUTE, status, code, self.request_id, self.started)


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


def top_k_of(query: bytes, num_classes: int) -> int:
    """How many predictions the query asks for: `min(5, K)` by default, at most K."""
    if not query:
        return min(DEFAULT_TOP_K, num_classes)
    try:
        given = parse_qs(query.decode("latin-1"), keep_blank_values=True, max_num_fields=QUERY_FIELDS).get("top_k")
    except ValueError:
        raise BadParameter(f"The query has more than {QUERY_FIELDS} fields.") from None
    if given is None:
        return min(DEFAULT_TOP_K, num_classes)
    return min(whole_number("top_k", given[-1]), num_classes)


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


def in_order(found: Images, answers: Iterable[Answer]) -> list[Answer | AnyError]:
    """Every image's answer or error, in the request's order."""
    coming = iter(answers)
    return [settled(next(coming)) if isinstance(image, bytes) else image for image in found.bodies]


def settled(answer: Answer) -> Answer | AnyError:
    """The answer, or the error that it tells of."""
    return BY_CODE[answer.code](answer.detail) if answer.code else answer


def server_timing(receive: float, answers: Sequence[Answer]) -> str:
    """The `Server-Timing` header: milliseconds of each stage, of several images the longest."""
    times = [answer[4:] for answer in answers]
    queue, decode, inference = times[0] if len(times) == 1 else map(max, zip(*times, strict=True))
    return (
        f"receive;dur={receive * 1000:.3f}, queue;dur={queue * 1000:.3f}, "
        f"decode;dur={decode * 1000:.3f}, inference;dur={inference * 1000:.3f}"
    )
