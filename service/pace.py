"""Pace: how fast images are answered, and so how long what waits will take."""

from math import exp
from time import monotonic

MEMORY_S = 1.0  # of the mean service time: what was that long ago counts a third


class Pace:
    """How long an image takes while there is work, as a mean over about the last `MEMORY_S` seconds of work."""

    def __init__(self) -> None:
        """Nothing is known yet, so nothing takes time."""
        self.worked = self.served = 0.0
        self.since = monotonic()

    def idle(self) -> None:
        """Work begins only now."""
        self.since = monotonic()

    def learn(self, images: int, outage: float) -> None:
        """So many images have just been answered; a silence as long as an `outage` (seconds) before it is no work."""
        now = monotonic()
        seconds, self.since = now - self.since, now
        if seconds < outage:
            kept = exp(-seconds / MEMORY_S)
            self.worked = self.worked * kept + seconds
            self.served = self.served * kept + images

    def wait(self, images: int) -> float:
        """Seconds until so many images are answered."""
        return images * self.worked / self.served if self.served else 0.0
