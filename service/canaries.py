"""Canaries: images of our own on the way of all others; they ask whether images are answered, where no other tells."""

from collections.abc import Callable
from contextlib import suppress
from math import inf
from time import monotonic

from service.errors import ServiceError
from service.pending import Pending
from service.transport import Transport

AFTER_S = 0.75  # without an answer
# A slow model's come later, so that it idles too: they may take about so much of a core.
IDLE_SHARE, LATEST_S = 0.01, 10.0
STALE_S = 2.0  # without an answer, of a canary neither, nobody works; as much later as canaries come later
PASSES = 3  # how many forward passes of a slow model such a silence may at least be


class Canaries:
    """One HTTP process's, and what its images have told meanwhile."""

    def __init__(self, transport: Transport, send: Callable[[], Pending]) -> None:
        """`send` sends one; it may be refused."""
        self.transport, self.send = transport, send
        self.sent: list[Pending] = []  # that are not answered yet
        self.asked_at = -inf
        self.answered_at = monotonic()
        self.slowest = self.single = 0.0  # forward pass, and that of one image to those who get canaries, in seconds

    def look(self) -> None:
        """Send one if it is time."""
        if told := self.transport.all_told():
            self.slowest = max(facts["pass_seconds"] for facts in told)
        if serving := self.transport.told_on(self.transport.serving):
            self.single = max(facts["plan"]["curve"]["1"] for facts in serving)
        self.sent = [canary for canary in self.sent if canary.missing and canary.awaited]
        # One a worker and one more: a worker that has stopped may hold some.
        few = len(self.sent) <= len(told)
        now, told_at = monotonic(), self.told_at
        # The second soon: whoever got the first may have stopped, or failed once.
        after = self.after if told_at >= self.asked_at else AFTER_S
        if few and now - max(told_at, self.asked_at) > after:
            self.asked_at = now
            with suppress(ServiceError):  # no room: images wait, and their answers will tell
                self.sent.append(self.send())

    def answered(self) -> None:
        """An image or a canary of this process has been."""
        self.answered_at = monotonic()

    def answering(self) -> bool:
        """Whether images are answered, here or to another HTTP process that has more to ask."""
        patience = max(STALE_S, PASSES * self.slowest) + self.after - AFTER_S
        return monotonic() - self.told_at < patience

    @property
    def after(self) -> float:
        """Seconds without an answer until the first is sent."""
        return min(LATEST_S, max(AFTER_S, self.single / IDLE_SHARE))

    @property
    def told_at(self) -> float:
        """When an answer last told that images are answered, in seconds of CLOCK_MONOTONIC."""
        return max(self.answered_at, self.transport.last_answered())
