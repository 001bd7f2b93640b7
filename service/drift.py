"""Drift: how far the images and answers of a sliding window are from those that the model was validated on.

The main process looks at what the workers of the version that serves have counted and keeps the sums of before;
`darkroom_drift_psi` is absent where the manifest has no statistics, and while the window holds so few images that
chance alone could make it large.
"""

from collections import deque
from collections.abc import Callable, Sequence

from models import statistics
from models.manifest import Statistics
from service.logs import logger
from service.metrics import BRIGHTNESS, CONFIDENCE, DRIFT, DRIFT_IMAGES, PREDICTIONS, SIZE, Cells, Family, Metrics

STEPS = 60  # in which the window slides
# Zero is a gauge that is absent; an index of zero is one that is known.
LEAST = 1e-9


class Drift:
    """The window, and what is expected of it."""

    def __init__(
        self,
        expected: Statistics | None,
        metrics: Metrics,
        workers: Callable[[], Sequence[Cells]],
        window_s: float,
    ) -> None:
        """`metrics` has cells that nobody else writes; `workers` gives those of the version that serves."""
        self.metrics, self.workers, self.window = metrics, workers, window_s
        self.before: deque[tuple[float, dict[str, list[float]]]] = deque()  # times and sums, the oldest first
        self.expect(expected)

    def expect(self, expected: Statistics | None) -> None:
        """Begin anew, for another version."""
        self.watched = {name: (counts, span(self.metrics, family)) for name, family, counts in comparable(expected)}
        self.before.clear()
        for name in statistics.NAMES:
            self.metrics.set(DRIFT, 0.0, name)
        self.metrics.set(DRIFT_IMAGES, 0.0)

    def look(self, now: float) -> None:
        """Slide the window up to `now`, in seconds of CLOCK_MONOTONIC, and tell what it holds, if it is time."""
        if not self.watched or (self.before and now - self.before[-1][0] < self.window / STEPS):
            return
        sums = {name: self.sums(cells) for name, (_, cells) in self.watched.items()}
        while len(self.before) > 1 and self.before[1][0] <= now - self.window:
            self.before.popleft()
        earlier = self.before[0][1] if self.before else sums
        self.before.append((now, sums))
        for name, (expected, _) in self.watched.items():
            found = [late - early for late, early in zip(sums[name], earlier[name], strict=True)]
            index = statistics.drift(expected, found)
            self.metrics.set(DRIFT, 0.0 if index is None else max(LEAST, index), name)
            if name == "classes":
                self.metrics.set(DRIFT_IMAGES, sum(found))

    def sums(self, cells: slice) -> list[float]:
        """What all workers together have counted there."""
        return [sum(column) for column in zip(*[counts[cells] for counts in self.workers()], strict=True)]


def comparable(expected: Statistics | None) -> list[tuple[str, Family, Sequence[int]]]:
    """Names, families and validation counts of what is counted over the same bins here; says which are not."""
    if expected is None:
        return []
    found: list[tuple[str, Family, Sequence[int]]] = [("classes", PREDICTIONS, expected.classes)]
    for name, family in (("confidence", CONFIDENCE), ("brightness", BRIGHTNESS), ("size", SIZE)):
        told = getattr(expected, name)
        if told.edges == family.buckets:
            found.append((name, family, told.counts))
        else:
            logger.warning("drift is not told: the artifact has other bins", extra={"statistic": name})
    return found


def span(metrics: Metrics, family: Family) -> slice:
    """The cells that count a family: one a label's value, or one a bucket."""
    places = list(metrics.places[family.name].values())
    return slice(places[0][0], places[-1][1] + (0 if family.buckets else 1))
