"""Pace: how fast images are answered, and so how long what waits will take."""

from math import exp, inf
from time import monotonic

MEMORY_S = 1.0  # of the mean service time: what was that long ago counts a third
PRIOR_S = 0.1  # of work is what was known before worth, so that what is seen soon counts more


class Pace:
    """How long an image takes while there is work, as a mean over about the last `MEMORY_S` seconds of work."""

    def __init__(self, images_per_second: float = 0.0, together: int = 0, longest: float = inf) -> None:
        """Zero `images_per_second`: nothing is known yet, so nothing takes time.

        `longest` is how many seconds of work may wait, but so many images `together` always may. Fewer are slower,
        each, than many, so nothing is learnt from those.
        """
        self.worked, self.served = PRIOR_S, PRIOR_S * images_per_second
        self.together, self.longest = together, longest
        self.since = monotonic()

    def idle(self) -> None:
        """Work begins only now."""
        self.since = monotonic()

    def learn(self, images: int, waiting: int, outage: float) -> None:
        """So many of the `waiting` images have just been answered.

        A silence as long as an `outage` (seconds) before it is no work.
        """
        now = monotonic()
        seconds, self.since = now - self.since, now
        if seconds < outage and waiting >= self.together:
            kept = exp(-seconds / MEMORY_S)
            self.worked = self.worked * kept + seconds
            self.served = self.served * kept + images

    def wait(self, images: int) -> float:
        """Seconds until so many images are answered."""
        return images * self.worked / self.served if self.served else 0.0

    def excess(self, images: int) -> float:
        """How many seconds so many take beyond `longest`; none where another may still wait with them."""
        return max(0.0, self.wait(images) - self.longest) if images >= self.together else 0.0
