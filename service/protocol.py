"""What is no HTTP is answered with a problem document too; uvicorn's own answer is plain text."""

import json
import uuid

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service import metrics
from service.boundary import OTHER_ROUTE
from service.errors import Framing, problem
from service.logs import logger


class Protocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol on httptools."""

    def send_400_response(self, msg: str) -> None:
        """Refuse bytes that do not parse as a request, and close."""
        error, request_id = Framing("The request is not valid HTTP/1.1."), uuid.uuid4().hex
        metrics.count(error)
        metrics.REQUESTS.labels(OTHER_ROUTE, str(int(error.status))).inc()
        logger.warning("not answered", extra={"request_id": request_id, "route": OTHER_ROUTE, "code": error.code})
        body = json.dumps(problem(error, request_id)).encode()
        head = (
            "HTTP/1.1 400 Bad Request\r\ncontent-type: application/problem+json\r\n"
            f"content-length: {len(body)}\r\nx-request-id: {request_id}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
