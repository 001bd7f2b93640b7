"""`POST /predict`: from a request's bytes to its reply, whatever form the images came in."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from time import monotonic
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from models.manifest import Manifest
from service import metrics
from service.boundary import headers_of, send_json
from service.channel import Channel
from service.errors import (
    BY_CODE,
    AnyError,
    BadParameter,
    ClientDisconnect,
    ContentEncoding,
    DeadlineExceeded,
    Draining,
    Framing,
    NotReady,
    TooLarge,
    problem,
)
from service.forms import Images, images
from service.settings import Settings
from service.transport import DRAINING, READY, Answer

DEFAULT_TOP_K = 5
LONGEST_TIMEOUT_MS = 60_000
QUERY_FIELDS = 100


class Predict:
    """The endpoint as an ASGI application; raises a `ServiceError` or `ImageError` instead of answering with one."""

    def __init__(self, manifest: Manifest, settings: Settings, channel: Callable[[], Channel]) -> None:
        """`channel` gives this process's channel, which exists once the process serves."""
        self.manifest = manifest
        self.settings = settings
        self.channel = channel

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        with metrics.REQUESTS_IN_FLIGHT.track_inprogress():
            await self.answer(scope, receive, send)

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read, predict, reply."""
        started = monotonic()
        channel, headers, settings = self.channel(), Headers(scope=scope), self.settings
        refuse_unready(channel.transport.phase)
        refuse_encoded(headers.get("content-encoding", ""))
        top_k = top_k_of(scope["query_string"], len(self.manifest.classes))
        deadline = started + timeout_of(headers.get("x-timeout-ms"), settings.timeout_ms)
        body = await read_body(receive, headers.get("content-length", ""), settings.max_body_bytes)
        if not body and "upgrade" in headers:
            raise Framing("An Upgrade is not supported, and it hid the body; send plain HTTP/1.1.")
        found = images(body, headers.get("content-type", ""), settings.max_images)
        received = monotonic()
        metrics.STAGE_SECONDS.labels("receive").observe(received - started)

        bodies = [image for image in found.bodies if isinstance(image, bytes)]
        answers = await predicted(channel, bodies, top_k, deadline, receive) if bodies else []
        answered = monotonic()
        replies = in_order(found, answers)
        error, document = self.document(found, replies, scope["state"])
        await respond(send, error, document, server_timing(received - started, answers))
        metrics.STAGE_SECONDS.labels("respond").observe(monotonic() - answered)

    def document(
        self, found: Images, replies: Sequence[Answer | AnyError], state: dict[str, str]
    ) -> tuple[AnyError | None, object]:
        """The reply, and the first error where no image succeeded; a single image's error is raised."""
        request_id = state["request_id"]
        success = {"request_id": request_id, "model": {"name": self.manifest.name, "version": self.manifest.version}}
        if not found.several:
            (reply,) = replies
            if isinstance(reply, Answer):
                return None, success | {"predictions": self.predictions(reply)}
            raise reply
        errors = [reply for reply in replies if not isinstance(reply, Answer)]
        for error in errors:
            metrics.count(error)
        results = [
            {"predictions": self.predictions(reply)}
            if isinstance(reply, Answer)
            else {"error": problem(reply, request_id)}
            for reply in replies
        ]
        if len(errors) < len(replies):
            return None, success | {"results": results}
        state["code"] = errors[0].code
        return errors[0], problem(errors[0], request_id) | {"results": results}

    def predictions(self, answer: Answer) -> list[dict[str, object]]:
        """Classes by name, highest first."""
        names = self.manifest.classes
        return [{"class": names[i], "index": i, "probability": probability} for i, probability in answer.predictions]


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
    try:
        given = parse_qs(query.decode("latin-1"), keep_blank_values=True, max_num_fields=QUERY_FIELDS).get("top_k")
    except ValueError:
        raise BadParameter(f"The query has more than {QUERY_FIELDS} fields.") from None
    if given is None:
        return min(DEFAULT_TOP_K, num_classes)
    return min(whole_number("top_k", given[-1]), num_classes)


def timeout_of(given: str | None, default_ms: int) -> float:
    """Seconds that the request allows, from `X-Timeout-Ms` or the setting."""
    milliseconds = default_ms if given is None else whole_number("X-Timeout-Ms", given)
    if milliseconds > LONGEST_TIMEOUT_MS:
        raise BadParameter(f"X-Timeout-Ms must be at most {LONGEST_TIMEOUT_MS}.")
    return milliseconds / 1000


def whole_number(name: str, text: str) -> int:
    """The positive integer in `text`; beyond 18 digits its size is all that matters."""
    if text.isascii() and text.isdigit() and (value := int(text[:18])) > 0:
        return value
    raise BadParameter(f"{name} must be a whole number greater than zero.")


async def read_body(receive: Receive, announced: str, limit: int) -> bytes:
    """The whole body; refused before the rest is read once it is known to be too large."""
    if announced.isdigit() and int(announced) > limit:
        raise TooLarge(f"The body is larger than {limit} bytes.")
    size, chunks = 0, []
    while size <= limit:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect("The client left before its request was complete.")
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size <= limit and not message.get("more_body", False):
            return b"".join(chunks)
    raise TooLarge(f"The body is larger than {limit} bytes.")


async def predicted(
    channel: Channel, bodies: Sequence[bytes], top_k: int, deadline: float, receive: Receive
) -> Sequence[Answer]:
    """The answers of all bodies, in order.

    Raises:
        DeadlineExceeded: they did not all come in time.
        ClientDisconnect: nobody waits for them any more.
    """
    answers = channel.submit(bodies, top_k, deadline)
    leaving = asyncio.ensure_future(receive())
    try:
        for answer in answers:
            waited = (answer, leaving)
            await asyncio.wait(waited, timeout=deadline - monotonic(), return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                continue
            if leaving.done():
                raise ClientDisconnect("The client left before its answer.")
            raise DeadlineExceeded("The request's deadline passed before it was answered.")
        return [answer.result() for answer in answers]
    finally:
        leaving.cancel()
        for answer in answers:
            answer.cancel()


def in_order(found: Images, answers: Iterable[Answer]) -> list[Answer | AnyError]:
    """Every image's answer or error, in the request's order."""
    coming = iter(answers)
    return [settled(next(coming)) if isinstance(image, bytes) else image for image in found.bodies]


def settled(answer: Answer) -> Answer | AnyError:
    """The answer, or the error that it tells of."""
    return BY_CODE[answer.code](answer.detail) if answer.code else answer


def server_timing(receive: float, answers: Sequence[Answer]) -> str:
    """The `Server-Timing` header: milliseconds of each stage, of several images the longest."""
    stages = {"receive": receive}
    for stage in ("queue", "decode", "inference"):
        stages[stage] = max((getattr(answer, stage) for answer in answers), default=0.0)
    return ", ".join(f"{stage};dur={seconds * 1000:.3f}" for stage, seconds in stages.items())


async def respond(send: Send, error: AnyError | None, document: object, timing: str) -> None:
    """Send the document: 200 and JSON, or as the problem document that it is."""
    kind = "application/problem+json" if error else "application/json"
    headers = {"content-type": kind, "server-timing": timing} | headers_of(error)
    await send_json(send, int(error.status) if error else 200, headers, document)
