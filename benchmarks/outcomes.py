"""What became of the requests of a schedule: each one judged, and all of them counted."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from math import ceil

TOLERANCE = 1e-4  # between an answered probability and the expected one
REQUEST_ID = re.compile(rb"\r\nx-request-id: *(\S+)", re.IGNORECASE)
REFUSALS = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)


@dataclass(frozen=True)
class Outcome:
    """One request; times in seconds from the start of the schedule, None where that never happened.

    `wrong` is an answer of status 200 other than expected, `misnamed` an answer without its request's id, `waited`
    whether it was due before a connection was free, `unread` whether the server reset the connection, which it does if
    it closed it without having read the request. `group` is its image's.
    """

    due: float
    sent: float | None = None
    finished: float | None = None
    status: int = 0
    wrong: bool = False
    misnamed: bool = False
    waited: bool = False
    unread: bool = False
    group: str = ""

    @property
    def latency(self) -> float:
        """Seconds from the scheduled time to the answer, which there must be."""
        assert self.finished is not None
        return self.finished - self.due

    @property
    def refused(self) -> bool:
        """Whether the server would not take it."""
        return self.status in REFUSALS

    @property
    def accepted(self) -> bool:
        """Read by the server and not refused: what it owes an answer."""
        return self.sent is not None and not self.unread and not self.refused

    @property
    def lost(self) -> bool:
        """Whether an answer is owed for ever."""
        return self.accepted and self.finished is None

    @property
    def right(self) -> bool:
        """Whether it has the answer that it should have."""
        return self.status == HTTPStatus.OK and not self.wrong


@dataclass(frozen=True)
class Report:
    """A schedule's outcomes counted; latencies in milliseconds from the scheduled time.

    `accepted` is what was sent and neither refused (429, 503) nor `unread`; `lost` what of that has no answer. The
    latencies are those of accepted requests, `refusal_p99_ms` that of the others. `goodput` is right answers a second
    of the schedule. `late_ms` is the 99th percentile of how late this tool sent what had a free connection.
    """

    scheduled: int
    sent: int
    accepted: int
    answered: int
    lost: int
    unread: int
    wrong: int
    misnamed: int
    statuses: dict[str, int]
    answers_per_s: float
    goodput: float
    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    p999_ms: float
    refusal_p99_ms: float
    late_ms: float

    @property
    def clean(self) -> bool:
        """Whether every request was sent and answered as expected."""
        return self.answered == self.scheduled == self.statuses.get("200", 0) and not self.wrong + self.misnamed

    @property
    def others(self) -> int:
        """Answers other than 200."""
        return self.answered - self.statuses.get("200", 0)


def report(outcomes: Sequence[Outcome]) -> Report:
    """Count what came back."""
    answered = [outcome for outcome in outcomes if outcome.finished is not None]
    statuses = Counter(f"{outcome.status:03}" for outcome in answered)
    taken = [outcome.latency for outcome in answered if not outcome.refused]
    refused = [outcome.latency for outcome in answered if outcome.refused]
    late = [outcome.sent - outcome.due for outcome in outcomes if outcome.sent is not None and not outcome.waited]
    first = min(outcome.due for outcome in outcomes)
    seconds = max((outcome.finished or 0.0 for outcome in answered), default=first + 1.0) - first
    p50, p95, p99, p999 = (percentile(taken, share) * 1000 for share in (0.5, 0.95, 0.99, 0.999))
    return Report(
        scheduled=len(outcomes),
        sent=sum(outcome.sent is not None for outcome in outcomes),
        accepted=sum(outcome.accepted for outcome in outcomes),
        answered=len(answered),
        lost=sum(outcome.lost for outcome in outcomes),
        unread=sum(outcome.unread for outcome in outcomes),
        wrong=sum(outcome.wrong for outcome in answered),
        misnamed=sum(outcome.misnamed for outcome in answered),
        statuses=dict(sorted(statuses.items())),
        answers_per_s=len(answered) / seconds,
        goodput=sum(outcome.right for outcome in answered) / seconds,
        mean_ms=1000 * sum(taken) / max(1, len(taken)),
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        p999_ms=p999,
        refusal_p99_ms=percentile(refused, 0.99) * 1000,
        late_ms=percentile(late, 0.99) * 1000,
    )


Expected = tuple[int, float] | Mapping[str, tuple[int, float]]  # class index and probability; of several, by version


def as_expected(reply: bytes, expected: Expected) -> bool:
    """Whether a reply's first prediction has this class index and this probability."""
    try:
        told = json.loads(reply.partition(b"\r\n\r\n")[2])
        if isinstance(expected, Mapping):
            expected = expected[told["model"]["version"]]
        first = told["predictions"][0] if "predictions" in told else told  # LitServe's README has no list
        return bool(first["index"] == expected[0] and abs(first["probability"] - expected[1]) <= TOLERANCE)
    except (ValueError, KeyError, IndexError, TypeError):
        return False


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that this share of all does not exceed (nearest rank); 0 where there is none."""
    return sorted(values)[max(0, ceil(share * len(values)) - 1)] if values else 0.0
