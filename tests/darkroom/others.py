"""A server of somebody else's that answers as it is told."""

import json
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event
from typing import Any

ANSWER = {
    "request_id": "a",
    "model": {"name": "other", "version": "1"},
    "predictions": [{"class": "cat", "index": 3, "probability": 0.5}],
}
KEY = "open-sesame"  # of the fixture `guarded`
Reply = tuple[int, dict[str, str], object]  # status, headers, JSON


class Other(ThreadingHTTPServer):
    """Gives `replies` one after the other, the last one again and again; None cuts the connection.

    `asked` are the headers of each request so far. No reply at all: requests are held until the server ends.
    """

    daemon_threads = True

    def __init__(self, replies: Sequence[Reply | None]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies, self.asked = list(replies), list[Any]()
        self.reached, self.over = Event(), Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """One connection to `Other`."""

    server: Other

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        replies, number = self.server.replies, len(self.server.asked)
        self.server.asked.append(self.headers)
        self.server.reached.set()
        if not replies:
            self.server.over.wait()
        elif reply := replies[min(number, len(replies) - 1)]:
            self.answer(*reply)

    def answer(self, status: int, headers: dict[str, str], document: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(json.dumps(document).encode())

    def log_message(self, *_: object) -> None:
        pass
