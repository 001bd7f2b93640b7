"""An HTTP process's way to the workers of one side: what the socket takes at once goes, the rest follows."""

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice

from service.transport import MESSAGE_BODIES_BYTES, MESSAGE_IMAGES, REQUEST, Item


class Outlet:
    """Descriptors that come together travel together."""

    def __init__(self, sender: socket.socket, before_sending: Callable[[], None]) -> None:
        """`sender` is the sending end of the side's requests; `before_sending` is called once a turn."""
        self.sender, self.before_sending = sender, before_sending
        self.sender.setblocking(False)
        self.backlog: deque[Item] = deque()
        self.blocked = False  # the socket takes no more for now
        self.loop = asyncio.get_running_loop()

    def send(self, item: Item) -> None:
        """Send an item with those of other requests of this turn of the event loop, at its end.

        Once they fill a message it goes at once, so that decoding begins while others are still parsed.
        """
        self.backlog.append(item)
        if self.blocked:
            return
        if len(self.backlog) >= MESSAGE_IMAGES:
            self.flush()
        elif len(self.backlog) == 1:
            self.loop.call_soon(self.flush)

    def flush(self) -> None:
        """Send what the socket takes; the rest follows when it can take more."""
        if self.blocked:
            self.loop.remove_writer(self.sender)
            self.blocked = False
        self.before_sending()
        while self.backlog:
            count = together(self.backlog)
            try:
                self.sender.send(b"".join([REQUEST.pack(*self.backlog[index]) for index in range(count)]))
            except BlockingIOError:
                self.loop.add_writer(self.sender, self.flush)
                self.blocked = True
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
