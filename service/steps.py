"""What threads are at, and whether one hangs: by its own CPU time, so that one that gets no core is waited for.

A thread hangs that has computed for too long, or has computed nothing for as long. Whoever takes a step only notes the
time; CPU time, which costs a system call, is read when somebody looks, and counts from then.
"""

import time
from threading import get_ident
from time import monotonic

PROGRESS_S = 0.001  # of CPU time


class Step:
    """One thread's, as it has been seen; times in seconds of CLOCK_MONOTONIC and of the thread's own CPU clock."""

    def __init__(self, since: float, clock: int) -> None:
        """It began at `since`, and is seen for the first time."""
        self.since = self.moved = since
        self.clock = clock
        self.begun = self.seen = time.clock_gettime(clock)

    def hangs(self, now: float, awake_since: float, longest: float) -> bool:
        """Whether it has taken too long; the process as a whole has run since `awake_since`."""
        used = time.clock_gettime(self.clock)
        if used - self.seen > PROGRESS_S:
            self.seen, self.moved = used, now
        return used - self.begun >= longest or now - max(self.moved, awake_since) >= longest


class Steps:
    """Each thread's; a thread that waits for something to do, or for others, is at none."""

    def __init__(self) -> None:
        """Nobody is at anything."""
        self.since: dict[int, float] = {}  # by thread
        self.clocks: dict[int, int] = {}
        self.looked_at: dict[int, Step] = {}

    def begin(self) -> float:
        """This thread takes something up; the time."""
        thread = get_ident()
        if thread not in self.clocks:
            self.clocks[thread] = time.pthread_getcpuclockid(thread)
        now = self.since[thread] = monotonic()
        return now

    def end(self) -> None:
        """This thread is done, or waits."""
        self.since.pop(get_ident(), None)

    def hang(self, now: float, awake_since: float, longest: float) -> bool:
        """Whether any thread does."""
        before = self.looked_at
        self.looked_at = {
            thread: step if (step := before.get(thread)) and step.since == since else Step(since, self.clocks[thread])
            for thread, since in self.since.copy().items()
        }
        return any(step.hangs(now, awake_since, longest) for step in self.looked_at.values())
