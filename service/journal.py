"""What is kept of every request: an id, how it was answered, how long it took; counted and logged once."""

import os
import re
from itertools import count
from time import monotonic

from service.logs import logger
from service.metrics import OTHER_ROUTE, REQUEST_SECONDS, REQUESTS, Metrics

# W3C Trace Context: version, trace id, parent id, flags, and what later versions add.
TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-|$)")
REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")


class Journal:
    """One HTTP process's requests."""

    def __init__(self, metrics: Metrics, access_log: bool, model: str = "") -> None:
        """Of requests to a `model`, or to none; successes are logged with `access_log` only."""
        self.model = {"model": model} if model else {}
        self.metrics = metrics
        self.access_log = access_log
        self.ids = count()

    def begin(self) -> None:
        """In a process of its own, so that no two give the same id."""
        self.ids = count(int.from_bytes(os.urandom(15), "big"))

    def new_id(self) -> str:
        """An id that no request has."""
        return f"{next(self.ids):032x}"

    def request_id(self, offered: bytes) -> str:
        """The client's id for the request if it is fit for headers and logs, else a new one."""
        return offered.decode() if REQUEST_ID.fullmatch(offered) else self.new_id()

    def close(
        self, route: str, status: int, code: str, request_id: str, started: float, traceparent: bytes = b""
    ) -> None:
        """A request that began at `started` (CLOCK_MONOTONIC) is over; `code` says why it was not answered."""
        seconds = monotonic() - started
        self.metrics.add(REQUESTS, route, str(status))
        self.metrics.observe(REQUEST_SECONDS, seconds, route)
        if status < 400 and not self.access_log:
            return
        told = self.model | {"request_id": request_id, "route": route, "status": status, "ms": round(seconds * 1000, 1)}
        if found := TRACEPARENT.match(traceparent):
            told["trace_id"] = found[1].decode()
        if status >= 400:
            logger.warning("not answered", extra=told | ({"code": code} if code else {}))
        else:
            logger.info("answered", extra=told)

    def unreadable(self, status: int, code: str, request_id: str) -> None:
        """Bytes that are no request were refused."""
        self.metrics.add(REQUESTS, OTHER_ROUTE, str(status))
        logger.warning("not answered", extra={"request_id": request_id, "route": OTHER_ROUTE, "code": code})
