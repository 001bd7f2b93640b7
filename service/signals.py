"""SIGTERM and SIGINT, which end the main process only where it waits."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from models.interrupt import Interrupt

STOPPING = signal.SIGTERM, signal.SIGINT


class Signals:
    """Whether a signal asked for the end.

    Raised anywhere, an interrupt gets lost: Python drops what is raised in hooks of fork and in finalizers, and some
    libraries that are being imported turn it into an error of their own. Forked processes inherit this, and wait not.
    """

    def __init__(self) -> None:
        """Take signals from now on; one without a handler would be dropped in process 1."""
        self.asked = self.waits = False
        for number in STOPPING:
            signal.signal(number, self.take)

    def take(self, number: int, frame: FrameType | None) -> None:
        """A signal has come; only the first counts."""
        if not self.asked:
            self.asked = True
            if self.waits:
                raise Interrupt

    def check(self) -> None:
        """Here nothing is lost by an interrupt.

        Raises:
            KeyboardInterrupt: a signal has come.
        """
        if self.asked:
            raise Interrupt

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The same all the while.

        Raises:
            KeyboardInterrupt: a signal has come, or comes.
        """
        self.waits = True
        try:
            self.check()
            yield
        finally:
            self.waits = False
