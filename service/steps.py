"""What threads are at, and whether one hangs: by its own CPU time, so that one that gets no core is waited for.

A thread hangs that has computed for too long, or has computed nothing for as long.
"""

import threading
import time
from time import monotonic

PROGRESS_S = 0.001  # of CPU time


class Step:
    """One thread's; times in seconds of CLOCK_MONOTONIC and of the thread's own CPU clock."""

    def __init__(self) -> None:
        """It begins now, on this thread."""
        self.since = self.moved = monotonic()
        self.clock = time.pthread_getcpuclockid(threading.get_ident())
        self.begun = self.seen = time.thread_time()

    def hangs(self, now: float, awake_since: float, longest: float) -> bool:
        """Whether it has taken too long; the process as a whole has run since `awake_since`."""
        used = time.clock_gettime(self.clock)
        if used - self.seen > PROGRESS_S:
            self.seen, self.moved = used, now
        return used - self.begun >= longest or now - max(self.moved, awake_since) >= longest


class Steps:
    """Each thread's, by its name; a thread that waits for something to do, or for others, is at none."""

    def __init__(self) -> None:
        """Nobody is at anything."""
        self.by_thread: dict[str, Step] = {}

    def begin(self) -> float:
        """This thread takes something up; the time."""
        step = self.by_thread[threading.current_thread().name] = Step()
        return step.since

    def end(self) -> None:
        """This thread is done, or waits."""
        self.by_thread.pop(threading.current_thread().name, None)

    def hang(self, now: float, awake_since: float, longest: float) -> bool:
        """Whether any thread does."""
        return any(step.hangs(now, awake_since, longest) for step in list(self.by_thread.values()))
