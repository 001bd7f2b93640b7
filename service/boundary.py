"""Around the application that answers all but predictions.

Whatever happens inside, a request leaves counted once, with an id, and without a traceback.
"""

import json
from collections.abc import Collection, Sequence
from time import monotonic

from starlette.requests import ClientDisconnect as Left
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from models.errors import ImageError
from service.errors import AnyError, ClientDisconnect, HeadersTooLarge, Internal, ServiceError, problem
from service.journal import Journal
from service.logs import logger
from service.metrics import DISCONNECTED, MODELS_ROUTE, OTHER_ROUTE, ROUTES, V2_ROUTE

HEADER_BYTES = 32 * 1024
HEADER_FIELDS = 256
PROBES = frozenset({"/health", "/readyz", "/livez", "/v2/health/live"})


class Boundary:
    """An ASGI application around another."""

    def __init__(self, app: ASGIApp, routes: Collection[str], journal: Journal) -> None:
        """`routes` are the paths that may become labels."""
        self.app = app
        self.routes = routes
        self.journal = journal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the application answer, or answer for it."""
        started = monotonic()
        headers = dict(scope["headers"])
        request_id = self.journal.request_id(headers.get(b"x-request-id", b""))
        route = label(scope["path"], self.routes)
        status, code = 0, ""

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            refuse_long(scope["headers"])
            await self.app(scope, receive, send_with_id)
        except (ServiceError, ImageError) as error:
            if not probes(scope["path"]):
                self.journal.metrics.reject(error)
            code = error.code
            await send_problem(error, request_id, route, send_with_id)
        except Left:
            self.journal.metrics.reject(ClientDisconnect("The client left before its request was complete."))
            status, code = DISCONNECTED, ClientDisconnect.code
        except Exception:
            logger.exception("a request failed", extra={"request_id": request_id, "route": route})
            code = Internal.code
            if not status:
                internal = Internal("The service failed on this request.")
                await send_problem(internal, request_id, route, send_with_id)
        traceparent = headers.get(b"traceparent", b"")
        self.journal.close(route, status, code, request_id, started, traceparent)


def probes(path: str) -> bool:
    """Whether it only asks whether the service is well."""
    return path in PROBES or (path.startswith(V2_ROUTE + "/") and path.endswith("/ready"))


def label(path: str, routes: Collection[str]) -> str:
    """The route that a path is counted under."""
    for several in V2_ROUTE, MODELS_ROUTE:
        if path == several or path.startswith(several + "/"):
            return several
    if path not in routes:
        return OTHER_ROUTE
    return path if path in ROUTES else path.rpartition("/")[0]  # a model's name follows


def refuse_long(headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Bound what a request says before its body."""
    if len(headers) > HEADER_FIELDS:
        raise HeadersTooLarge(f"The request has more than {HEADER_FIELDS} headers.")
    if sum([len(name) + len(value) for name, value in headers]) > HEADER_BYTES:
        raise HeadersTooLarge(f"The request's headers are larger than {HEADER_BYTES} bytes.")


async def send_problem(error: AnyError, request_id: str, route: str, send: Send) -> None:
    """Answer with the error as application/problem+json (RFC 9457), under `/v2` as its protocol has it too."""
    body = json.dumps(problem(error, request_id) | ({"error": str(error)} if route == V2_ROUTE else {})).encode()
    headers = {"content-type": "application/problem+json", "content-length": str(len(body))} | headers_of(error)
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": int(error.status), "headers": raw})
    await send({"type": "http.response.body", "body": body})


def headers_of(error: AnyError) -> dict[str, str]:
    """What an error asks to be sent with it, like Retry-After."""
    return error.headers if isinstance(error, ServiceError) else {}
