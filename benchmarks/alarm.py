"""An alarm more exact than an event loop's."""

import ctypes
import os
import time

TFD_TIMER_ABSTIME = 1  # <sys/timerfd.h>


class Alarm:
    """A file descriptor that becomes readable at a time of CLOCK_MONOTONIC; event loops round theirs to 1 ms."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL(None, use_errno=True)
        self.descriptor = self.library.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self.descriptor < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")

    def set(self, at: float) -> None:
        """Ring once at `at` seconds, at once where that has passed."""
        value = (ctypes.c_long * 4)(0, 0, int(at), int(at % 1 * 1e9))
        self.library.timerfd_settime(self.descriptor, TFD_TIMER_ABSTIME, value, None)
