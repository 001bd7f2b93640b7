"""An HTTP process's way to the workers of one side: what the socket takes at once goes, the rest follows."""

import asyncio
import socket
from collections import deque
from collections.abc import Sequence
from itertools import islice

from service.transport import MESSAGE_BODIES_BYTES, MESSAGE_IMAGES, REQUEST, Item


class Outlet:
    """Descriptors that come together travel together."""

    def __init__(self, sender: socket.socket) -> None:
        """`sender` is the sending end of the side's requests."""
        self.sender = sender
        self.sender.setblocking(False)
        self.backlog: deque[Item] = deque()
        self.flushing = False  # soon, or when the socket can take more
        self.loop = asyncio.get_running_loop()

    def send(self, item: Item) -> None:
        """Send an item at the end of this turn of the event loop, together with what its other requests bring."""
        self.backlog.append(item)
        if not self.flushing:
            self.loop.call_soon(self.flush)
            self.flushing = True

    def flush(self) -> None:
        """Send what the socket takes; the rest follows when it can take more."""
        self.loop.remove_writer(self.sender)
        self.flushing = False
        while self.backlog:
            count = together(self.backlog)
            try:
                self.sender.send(b"".join(REQUEST.pack(*self.backlog[index]) for index in range(count)))
            except BlockingIOError:
                self.loop.add_writer(self.sender, self.flush)
                self.flushing = True
                return
            for _ in range(count):
                self.backlog.popleft()

    def close(self) -> None:
        """Let the workers see that this process sends no more."""
        self.loop.remove_writer(self.sender)
        self.sender.close()


def together(items: Sequence[Item]) -> int:
    """How many of the first items share a message."""
    size = 0
    for index, item in enumerate(islice(items, MESSAGE_IMAGES)):
        size += item.length
        if index and size > MESSAGE_BODIES_BYTES:
            return index
    return min(len(items), MESSAGE_IMAGES)
