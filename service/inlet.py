"""A worker's end of the requests, at which several threads wait."""

import select
import socket
from contextlib import suppress


class Inlet:
    """What comes is taken by an idle thread that came last.

    What that thread works with is still in a core's caches. Threads that wait in `recv` are woken in turn, by which a
    worker that is asked one image at a time took a fifth longer. Of those that wait for an epoll, Linux wakes the last.
    """

    timeout: float | None = None  # seconds; a worker waits for ever

    def __init__(self, end: socket.socket) -> None:
        """`end` is the receiving end; other processes may receive at it too."""
        self.end = end
        self.arrivals = select.epoll()
        self.arrivals.register(end, select.EPOLLIN)

    def receive(self, most: int) -> bytes:
        """The next message, of up to `most` bytes; empty when no sender is left.

        Raises:
            TimeoutError: none came in time.
        """
        while self.arrivals.poll(self.timeout):
            with suppress(BlockingIOError):  # another was quicker
                return self.end.recv(most, socket.MSG_DONTWAIT)
        raise TimeoutError

    def take(self, most: int) -> bytes:
        """The next message where one has come; empty where none has, or no sender is left."""
        with suppress(BlockingIOError):
            return self.end.recv(most, socket.MSG_DONTWAIT)
        return b""
