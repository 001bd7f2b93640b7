"""Speed: what the curve that a worker measured at its start lets one expect, and the batch size for an objective.

Where more comes than can be answered every pass is full, and a cycle, all passes once with the decoding and HTTP of
their images on the same cores, takes

    cycle(n) = curve(n) + n * passes * (decoding + REQUEST_S)

An image that is let in while no more than a cycle's images wait comes, at worst, just after passes have begun: it waits
for one to end, is in the next, and is answered within

    worst(n) = 2 * cycle(n) + delay

Assumed: pictures as costly to decode as the goldens, one a request, and cores that nobody else takes.
"""

from collections.abc import Mapping
from math import inf
from typing import Any, NamedTuple

from service.pace import Pace
from service.settings import Settings
from service.transport import Transport

# HTTP and pipeline, an image: 4,000 to 5,000 a second on 2 cores of an Intel Xeon where the network takes little.
REQUEST_S = 0.0002


JOINING = 1 / 3  # of a pass of its own; of small networks it is a tenth, of ResNet-18 more than half


class Speed(NamedTuple):
    """What one worker does; times in seconds, `curve` by batch size."""

    curve: Mapping[int, float]
    passes: int
    batch_size: int
    cycle: float
    worst: float
    objective: float | None

    @property
    def images_per_second(self) -> float:
        """With every pass full."""
        return self.passes * min(self.batch_size, max(self.curve)) / self.cycle

    @property
    def met(self) -> bool:
        """Whether the objective is one that this machine can keep."""
        return self.objective is None or self.worst <= self.objective

    def told(self) -> dict[str, Any]:
        """As `/info` tells it; milliseconds."""
        objective = None
        if self.objective is not None:
            objective = {"p99_ms": ms(self.objective), "predicted_ms": ms(self.worst), "met": self.met}
        return {
            "curve": [[n, ms(seconds)] for n, seconds in self.curve.items()],
            "batch_size": self.batch_size,
            "passes": self.passes,
            "images_per_second": round(self.images_per_second, 1),
            "objective": objective,
        }


def of(plan: Mapping[str, Any], settings: Settings) -> Speed:
    """The speed of a worker with this `models.engine.Plan`.

    Without an objective batches grow while that pays; who waits for fuller ones (`max_delay_ms`) wants them.
    """
    delay = settings.max_delay_ms / 1000
    most = settings.max_batch_size if delay else plan["batch_size"]
    curve = {int(n): seconds for n, seconds in plan["curve"].items()}
    each = plan["passes"] * (plan["decode_seconds"] + REQUEST_S)
    cycles = {n: seconds + n * each for n, seconds in curve.items() if n <= most}
    objective = settings.objective_p99_ms and settings.objective_p99_ms / 1000
    size = choose(cycles, delay, objective or inf)
    worst = worst_case(cycles[size], delay)
    return Speed(curve, plan["passes"], size if objective else most, cycles[size], worst, objective)


def choose(cycles: Mapping[int, float], delay: float, objective: float) -> int:
    """The largest batch size whose worst case is within the objective; where none is, the smallest."""
    return max((n for n, cycle in cycles.items() if worst_case(cycle, delay) <= objective), default=min(cycles))


def joining_pays(curve: Mapping[int, float]) -> bool:
    """Whether an image more in a pass costs at most `JOINING` of a pass for one; `curve` is seconds by batch size.

    Then those that come meanwhile are answered sooner, and with less work, in one pass after that under way.
    """
    most = max(curve)
    return most > 1 and curve[most] - curve[1] <= JOINING * curve[1] * (most - 1)


def worst_case(cycle: float, delay: float) -> float:
    """See above."""
    return 2 * cycle + delay


def pace(transport: Transport, settings: Settings) -> Pace:
    """What an HTTP process knows before its first answer: its equal share of what all ready workers do.

    With an objective no more may wait than half of it takes: the other half is for the image's own pass.
    """
    speeds = [of(facts["plan"], settings) for facts in transport.told_on(transport.serving)]
    rate = sum(speed.images_per_second for speed in speeds) / transport.processes
    if settings.objective_p99_ms is None:
        return Pace(rate)
    together = sum(speed.passes * speed.batch_size for speed in speeds) // transport.processes
    return Pace(rate, together, settings.objective_p99_ms / 2000)


def ms(seconds: float) -> float:
    """To a microsecond."""
    return round(1000 * seconds, 3)
