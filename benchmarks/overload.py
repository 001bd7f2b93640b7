"""Capacity, a burst of ten times as much, and a drain, all with open loops."""

import math
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from subprocess import TimeoutExpired

from benchmarks import load, servers, trials
from benchmarks.load import Act, Course
from benchmarks.outcomes import report
from benchmarks.plan import Row
from benchmarks.servers import Server
from benchmarks.timeline import recovery
from benchmarks.trials import Ground

SHARES = (0.5, 0.7, 0.85, 0.95)  # of what a closed loop is answered
QUICK_SHARES = (0.5,)
LIMIT_MS = 100.0  # p99 at capacity
BASE, STEADY, BURST = 0.5, 0.7, 10.0  # times C
CALM_S, BURST_S, AFTER_S = 5.0, 30.0, 10.0
IN_FLIGHT, QUEUED = 20, 50


def capacity(ground: Ground, server: Server, name: str = "capacity") -> list[Row]:
    """A row a rate, and C in `ground.rate`: the highest rate that is all answered in time, as are those below it.

    In time: p99 of at most 100 ms, nothing refused. Where no rate is, C is the lowest.
    """
    quick = ground.plan.quick
    closed = server.load(ground.body, connections=32, seconds=1 if quick else 3).requests_per_s
    rows: list[Row] = []
    within = True
    for share in QUICK_SHARES if quick else SHARES:
        row = ground.trial(server, name, rate=share * closed, seconds=1 if quick else 3)
        clean = row["groups"]["good"]["right"] == row["scheduled"]
        within = within and clean and row["p99_ms"] <= LIMIT_MS
        rows.append(row | {"closed_per_s": closed, "within": within})
    ground.rate = max((row["rate"] for row in rows if row["within"]), default=rows[0]["rate"])
    ground.plan.say(f"{ground.name} {name}: C = {ground.rate:.0f}/s, {closed:.0f}/s in the closed loop")
    return [row | {"capacity": ground.rate} for row in rows]


def burst(ground: Ground) -> list[Row]:
    """H2: 10 C for 30 s on 0.5 C; ours with a capacity of C x the p99 at 0.7 C."""
    quick = ground.plan.quick
    with ground.fresh() as server:
        rows = capacity(ground, server, "burst capacity")
        steady = ground.trial(server, "burst steady", rate=STEADY * ground.rate, seconds=1 if quick else CALM_S)
    images = max(1, math.ceil(ground.rate * steady["p99_ms"] / 1000))
    with ground.fresh(*(["--capacity", str(images)] if ground.ours else [])) as server:
        calm, long, after = (2.0, 2.0, 3.0) if quick else (CALM_S, BURST_S, AFTER_S)
        times, times_over = phases(ground.rate, calm, long, after)
        marks = [Act(at, name, lambda mark: mark()) for at, name in ((calm, "10 C"), (calm + long, "0.5 C"))]
        course, row = ground.loaded(server, times, acts=marks)
    row |= {"scenario": "burst", "server": ground.name, "rate": BURST * ground.rate, "capacity": ground.rate}
    row |= {"images": images if ground.ours else None, "steady_p99_ms": steady["p99_ms"]}
    row |= felt(course, calm, times_over, ground.rate)
    ground.plan.say(
        f"{ground.name} burst: goodput {row['burst_goodput']:.2f} C, refusals p99 {row['refused_ms']:.0f} ms"
    )
    return [*rows, steady, row]


def phases(rate: float, calm: float, long: float, after: float) -> tuple[list[float], float]:
    """When requests are due, and when the burst is over; seconds."""
    over = calm + long
    parts = ((0.0, BASE, calm), (calm, BASE + BURST, long), (over, BASE, after))
    times = [start + at for start, share, seconds in parts for at in load.schedule(share * rate, seconds)]
    return times, over


def felt(course: Course, start: float, over: float, rate: float) -> Row:
    """What the burst did: to who came in it, and how long after it."""
    inside = [outcome for outcome in course.outcomes if start <= outcome.due < over]
    found = report(inside)
    right = sum(o.right and o.finished is not None and start <= o.finished < over for o in course.outcomes)
    again = recovery(course.outcomes, over, calm=start)
    return {
        "burst": asdict(found),
        "burst_goodput": right / (over - start) / rate,
        "accepted_ms": found.p99_ms,
        "refused_ms": found.refusal_p99_ms,
        "normal_s": again.normal_s,
        "full_rate_s": again.full_rate_s,
        "first_200_s": again.first_200_s,
    }


def drain(ground: Ground) -> list[Row]:
    """F11: SIGTERM to the main process with 20 images in a batch and 50 waiting, and new clients while it drains."""
    told: list[str] = []
    # The first batch waits until it is full; what comes then waits behind it.
    flags = ["--max-batch-size", str(IN_FLIGHT), "--max-delay-ms", "500"] if ground.ours else []
    with ground.fresh(*flags) as server:
        count = IN_FLIGHT + QUEUED

        def terminate(mark: Callable[[], None]) -> None:
            if ground.ours:
                told.append(f"{waiting(server):.0f} of {count} were not yet in a batch")
            server.process.send_signal(signal.SIGTERM)
            mark()
            told.append(knock(ground, server))

        course, row = ground.loaded(server, [0.0] * count, acts=[Act(0.1, "SIGTERM", terminate)])
        (mark,) = course.marks
        with suppress(TimeoutExpired):
            row["exit_code"] = server.process.wait(servers.STOP_S)
            row["ended_s"] = row.get("ended_s", time.monotonic() - course.start) - mark.at
        last = max((outcome.finished or 0.0 for outcome in course.outcomes), default=0.0)
        row |= trials.left(server) | {"last_s": last - mark.at}
    ground.plan.say(f"{ground.name} drain: {row['answered']} of {count} answered, exit code {row.get('exit_code')}")
    return [row | {"scenario": "F11", "server": ground.name, "notes": told, "rate": 0.0}]


def waiting(server: Server, within_s: float = 3.0) -> float:
    """Images that are not yet in a batch, as soon as there are no more than should wait."""
    deadline = time.monotonic() + within_s
    while (depth := server.metrics().get("darkroom_queue_depth", 0.0)) > QUEUED and time.monotonic() < deadline:
        time.sleep(0.005)
    return depth


def knock(ground: Ground, server: Server) -> str:
    """What a new client is told while the server drains."""
    time.sleep(0.1)
    try:
        status: object = servers.post(server.url, ground.images[0].body, ground.images[0].kind, timeout=5)[0]
    except TimeoutError:
        status = "no answer"
    except OSError:
        status = "refused"
    return f"a new client: {status}, /health: {trials.health(server) or 'refused'}"
