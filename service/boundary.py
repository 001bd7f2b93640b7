"""The outermost layer of an HTTP process: request ids, counting, logging, and every error as a problem document.

Whatever happens inside, a request leaves here counted once, with an id, and without a traceback.
"""

import json
import re
import uuid
from collections.abc import Collection
from time import monotonic

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from models.errors import ImageError
from service import metrics
from service.errors import AnyError, ClientDisconnect, HeadersTooLarge, Internal, ServiceError, problem
from service.logs import logger

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
HEADER_BYTES = 32 * 1024
DISCONNECTED = 499  # nobody read the answer; nginx's convention
OTHER_ROUTE = "other"
PROBES = frozenset({"/health", "/readyz", "/livez"})  # asked all the time; a 503 there refuses nobody


class Boundary:
    """ASGI middleware around everything else."""

    def __init__(self, app: ASGIApp, routes: Collection[str], access_log: bool) -> None:
        """`routes` are the paths that may become labels; successes are logged with `access_log` only."""
        self.app = app
        self.routes = routes
        self.access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the application answer, or answer for it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = monotonic()
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        route = scope["path"] if scope["path"] in self.routes else OTHER_ROUTE
        status, code = 0, ""

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            refuse_large_headers(scope)
            await self.app(scope, receive, send_with_id)
        except ClientDisconnect as error:
            metrics.count(error)
            status, code = DISCONNECTED, error.code
        except (ServiceError, ImageError) as error:
            if route not in PROBES:
                metrics.count(error)
            code = error.code
            await send_problem(error, request_id, send_with_id)
        except Exception:
            logger.exception("a request failed", extra={"request_id": request_id, "route": route})
            code = Internal.code
            if not status:
                await send_problem(Internal("The service failed on this request."), request_id, send_with_id)
        seconds = monotonic() - started
        metrics.REQUESTS.labels(route, str(status)).inc()
        metrics.REQUEST_SECONDS.labels(route).observe(seconds)
        self.log(route, status, code or scope["state"].get("code", ""), request_id, seconds)

    def log(self, route: str, status: int, code: str, request_id: str, seconds: float) -> None:
        """Refusals and errors always, successes when asked for."""
        told = {"request_id": request_id, "route": route, "status": status, "ms": round(seconds * 1000, 1)}
        if status >= 400:
            logger.warning("not answered", extra=told | ({"code": code} if code else {}))
        elif self.access_log:
            logger.info("answered", extra=told)


def refuse_large_headers(scope: Scope) -> None:
    """Bound what a request's head may cost."""
    if sum(len(name) + len(value) for name, value in scope["headers"]) > HEADER_BYTES:
        raise HeadersTooLarge(f"The request's headers are larger than {HEADER_BYTES} bytes.")


async def send_problem(error: AnyError, request_id: str, send: Send) -> None:
    """Answer with the error as application/problem+json (RFC 9457)."""
    headers = {"content-type": "application/problem+json"} | headers_of(error)
    await send_json(send, int(error.status), headers, problem(error, request_id))


def headers_of(error: AnyError | None) -> dict[str, str]:
    """What an error asks to be sent with it, like Retry-After."""
    return error.headers if isinstance(error, ServiceError) else {}


async def send_json(send: Send, status: int, headers: dict[str, str], document: object) -> None:
    """Answer with strict JSON: NaN raises instead of being written."""
    body = json.dumps(document, allow_nan=False).encode()
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    raw.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
