"""What a request can be answered with instead of predictions: the closed set of codes.

    ServiceError
    ├── Rejected   the client's input; counted in darkroom_images_rejected_total{reason}
    ├── Refused    not now, or not in time; counted in darkroom_refused_total{reason}
    └── Failed     our fault

Each leaf carries its status and code; `models.errors.ImageError` leaves join the set as rejections. Texts are fit for
clients: they name no path, class or traceback.
"""

from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, ClassVar

from models.errors import ImageError

RETRY_AFTER_S = 1


class ServiceError(Exception):
    """An answer that is no prediction; `str(error)` is the detail for the client."""

    status: ClassVar[HTTPStatus]
    code: ClassVar[str]
    headers: dict[str, str] = {}  # noqa: RUF012 - never changed in place

    def __init__(self, detail: str, headers: dict[str, str] | None = None) -> None:
        """`headers` are sent with the answer, beside those of the class."""
        super().__init__(detail)
        if headers:
            self.headers = self.headers | headers


class Rejected(ServiceError):
    """The client's input cannot be answered; sending it again does not help."""

    status = HTTPStatus.BAD_REQUEST


class Refused(ServiceError):
    """The request is not answered now."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    headers = {"retry-after": str(RETRY_AFTER_S)}  # noqa: RUF012


class Failed(ServiceError):
    """Our fault."""

    status = HTTPStatus.INTERNAL_SERVER_ERROR


class Framing(Rejected):
    """Bytes that are no HTTP request, or one whose body cannot be told."""

    code = "framing"


class Empty(Rejected):
    """No bytes where an image should be."""

    code = "empty"


class BadForm(Rejected):
    """multipart/form-data that cannot be parsed or breaks a form limit."""

    code = "bad_form"


class MissingFile(Rejected):
    """A form without a part named `file`."""

    code = "missing_file"


class SlowClient(Rejected):
    """A head or body that did not come in time."""

    status, code = HTTPStatus.REQUEST_TIMEOUT, "slow_client"


class Unauthorized(Rejected):
    """No key, or one that is not known."""

    status, code = HTTPStatus.UNAUTHORIZED, "unauthorized"
    headers = {"www-authenticate": "Bearer"}  # noqa: RUF012


class BadJson(Rejected):
    """JSON that is malformed or not of the documented shape."""

    code = "bad_json"


class BadParameter(Rejected):
    """A query parameter or header outside its range."""

    code = "bad_parameter"


NO_ROUTE = "No such route."


class NotFound(ServiceError):
    """No such route, model or prediction."""

    status, code = HTTPStatus.NOT_FOUND, "not_found"


class MethodNotAllowed(ServiceError):
    """The route exists for other methods; the reply names them in `Allow`."""

    status, code = HTTPStatus.METHOD_NOT_ALLOWED, "method_not_allowed"


class TooLarge(Rejected):
    """A body beyond the limit."""

    status, code = HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_large"


class TooManyImages(Rejected):
    """More images in one request than the limit."""

    status, code = HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_many_images"


class ContentType(Rejected):
    """A Content-Type that is no image, form or JSON."""

    status, code = HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "content_type"


class ContentEncoding(Rejected):
    """A compressed body."""

    status, code = HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "content_encoding"


class HeadersTooLarge(Rejected):
    """Request headers beyond the limit."""

    status, code = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "headers"


class ClientDisconnect(Rejected):
    """The client left before its request was complete or answered; nobody reads this answer."""

    code = "client_disconnect"


class AtCapacity(Refused):
    """As many images wait as may."""

    status, code = HTTPStatus.TOO_MANY_REQUESTS, "capacity"


class Overloaded(Refused):
    """So many images wait that the answer would come after the deadline."""

    status, code = HTTPStatus.TOO_MANY_REQUESTS, "overloaded"


class Crowded(Refused):
    """As many connections are open as may be."""

    status, code = HTTPStatus.TOO_MANY_REQUESTS, "connections"


class NotReady(Refused):
    """No worker can answer."""

    code = "not_ready"


class Draining(Refused):
    """The service is stopping."""

    code = "draining"


class DeadlineExceeded(Refused):
    """The request's time is over."""

    status, code = HTTPStatus.GATEWAY_TIMEOUT, "deadline"
    headers = {}  # noqa: RUF012


class NonFinite(Failed):
    """The model answered NaN or infinity for this image."""

    code = "nonfinite"


class Internal(Failed):
    """A bug of ours, or the model raised for this image."""

    code = "internal"


AnyError = ServiceError | ImageError


def leaves(base: type[Any]) -> Iterator[type[Any]]:
    """The classes below `base` that have a code."""
    for child in base.__subclasses__():
        if "code" in vars(child):
            yield child
        yield from leaves(child)


BY_CODE: dict[str, type[AnyError]] = {leaf.code: leaf for base in (ServiceError, ImageError) for leaf in leaves(base)}


def problem(error: AnyError, request_id: str) -> dict[str, object]:
    """The error as an RFC 9457 problem document."""
    return {
        "type": f"urn:darkroom:{error.code}",
        "title": error.status.phrase,
        "status": int(error.status),
        "detail": str(error),
        "code": error.code,
        "request_id": request_id,
    }
