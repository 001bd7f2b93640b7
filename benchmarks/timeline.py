"""A schedule's outcomes over time: bins with the faults marked, and how long a fault was felt."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.outcomes import Outcome, percentile

BIN_S = 0.1
LEAST = 20  # requests that a bin should hold, so that answers that come in batches do not look like a stall
GOOD = 0.9  # of the offered rate is full rate
STEADY = 5  # good bins in a row
FELT_S = 1.0  # a fault is felt this soon, or not at all
NORMAL = 1.2  # times the p99 before the fault
WINDOW_S = 1.0  # over which p99 is taken after the fault


@dataclass(frozen=True)
class Mark:
    """When something was done to the server, in seconds from the start of the schedule."""

    at: float
    name: str


@dataclass(frozen=True)
class Bin:
    """A stretch of time from `at` seconds on: requests due in it, answers that came in it, by status.

    Latencies, in milliseconds, are of accepted requests that were due in it; 0 where there are none.
    """

    at: float
    due: int
    answered: dict[str, int]
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Recovery:
    """Seconds from a fault to the first 200 of a later request, to the full rate, and to the usual p99.

    Full rate: from then on five bins in a row have right answers for at least 90 % of what is due in them. Usual p99:
    over one second, at most 1.2 times that before the fault. None: not before the end.
    """

    first_200_s: float | None
    full_rate_s: float | None
    normal_s: float | None


def bins(outcomes: Sequence[Outcome], width: float = BIN_S) -> list[Bin]:
    """The time line, from the first request due to the last answer, in stretches of `width` seconds."""
    last = max(max(outcome.due, outcome.finished or 0.0) for outcome in outcomes)
    due: list[list[Outcome]] = [[] for _ in range(int(last / width) + 1)]
    answered: list[Counter[str]] = [Counter() for _ in due]
    for outcome in outcomes:
        due[int(outcome.due / width)].append(outcome)
        if outcome.finished is not None:
            answered[int(outcome.finished / width)][f"{outcome.status:03}"] += 1
    made = []
    for number, (here, statuses) in enumerate(zip(due, answered, strict=True)):
        taken = [1000 * outcome.latency for outcome in here if outcome.finished is not None and outcome.accepted]
        p50, p99 = (round(percentile(taken, share), 3) for share in (0.5, 0.99))
        made.append(Bin(round(number * width, 6), len(here), dict(sorted(statuses.items())), p50, p99))
    return made


def recovery(outcomes: Sequence[Outcome], at: float, calm: float | None = None) -> Recovery:
    """How long what was done at `at` seconds was felt; the usual p99 is that until `calm`, or else until then."""
    first = min((o.finished for o in outcomes if o.right and o.finished and o.sent and o.sent >= at), default=None)
    return Recovery(None if first is None else first - at, full_rate(outcomes, at), normal(outcomes, at, calm))


def full_rate(outcomes: Sequence[Outcome], at: float) -> float | None:
    """Seconds from `at` to the first of five good bins in a row, after what was felt of the fault."""
    end = max(outcome.due for outcome in outcomes)
    rate = len(outcomes) / max(end, BIN_S)
    width = max(BIN_S, LEAST / rate)
    count = int((end - at) / width)
    due, right = [0] * count, [0] * count
    for outcome in outcomes:
        for when, found in ((outcome.due, due), (outcome.finished if outcome.right else None, right)):
            if when is not None and at <= when < at + count * width:
                found[min(count - 1, int((when - at) / width))] += 1
    good = [answers >= GOOD * offered for answers, offered in zip(right, due, strict=True)]
    felt = next((number for number in range(min(count, int(FELT_S / width) + 1)) if not good[number]), 0)
    starts = (number for number in range(felt, count - STEADY + 1) if all(good[number : number + STEADY]))
    return next((number * width for number in starts), None)


def normal(outcomes: Sequence[Outcome], at: float, calm: float | None = None) -> float | None:
    """Seconds from `at` until p99 is again what it was until `calm`, nearly."""
    before = at if calm is None else calm
    limit = NORMAL * percentile([o.latency for o in outcomes if o.right and o.finished and o.finished < before], 0.99)
    after = [outcome for outcome in outcomes if outcome.due >= at]
    end = max((outcome.due for outcome in after), default=at)
    for tenth in range(int((end - at - WINDOW_S) / BIN_S) + 1):
        start = at + tenth * BIN_S
        here = [outcome for outcome in after if start <= outcome.due < start + WINDOW_S]
        slow = sum(not outcome.right or outcome.latency > limit for outcome in here)
        if here and slow <= 0.01 * len(here):
            return tenth * BIN_S
    return None
