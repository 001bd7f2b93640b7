"""Many minutes at half of the capacity: does memory grow, does anything stay open, is all answered, is it idle then?"""

import threading
import time
from collections.abc import Sequence
from statistics import linear_regression

from matplotlib.figure import Figure

from benchmarks import contenders, overload, plots, processes, trials
from benchmarks.plan import Plan, Row
from benchmarks.results import Table, number, select
from benchmarks.servers import Server
from benchmarks.trials import LONG_S, Ground
from benchmarks.workloads import expected, prepare

SAMPLE_S = 5.0
PART_S = 30.0  # of the load, after each of which its replies are checked and forgotten
WARM = 0.2  # the share of the time before memory counts
IDLE_S = 10.0
LEFT = {"in flight": "darkroom_requests_in_flight", "queue depth": "darkroom_queue_depth"}


def measure(plan: Plan) -> list[Row]:
    """`sample` rows with memory and descriptors over time, `part` rows of the load, and one of what was left."""
    (workload,) = prepare(plan.models, plan.workloads)
    model, body, seconds = workload.model, workload.body, 2.5 if plan.quick else 60 * plan.minutes
    ground = Ground(plan, contenders.darkroom(plan.flags), model, body, expected(model, body), LONG_S)
    with ground.fresh() as server:
        rows = overload.capacity(ground, server)
        before = processes.descriptors(server)
        started = time.monotonic()
        samples: list[Row] = []
        over = threading.Event()
        sampler = threading.Thread(target=sample, args=(server, samples, over, 0.2 if plan.quick else SAMPLE_S))
        sampler.start()
        try:
            while (rest := started + seconds - time.monotonic()) > 1:
                row = ground.trial(server, "part", rate=ground.rate / 2, seconds=min(PART_S, rest))
                rows.append({name: value for name, value in row.items() if name != "timeline"})
        finally:
            over.set()
            sampler.join()
        trials.settled(server, ground.images[0])
        told = server.metrics()
        end: Row = {"scenario": "end", "server": ground.name, "left": {name: told[key] for name, key in LEFT.items()}}
        end["descriptors"] = (before, processes.descriptors(server))
        end |= {"idle_percent": server.idle_percent(1.0 if plan.quick else IDLE_S), "seconds": seconds}
    return [*rows, *samples, end]


def sample(server: Server, rows: list[Row], over: threading.Event, every_s: float) -> None:
    """Look at memory and descriptors now and then."""
    known, started = processes.kinds(server), time.monotonic()
    while not over.wait(every_s):
        row: Row = {"scenario": "sample", "at": time.monotonic() - started}
        rows.append(row | {"mib": processes.rss_mib(server, known), "descriptors": processes.descriptors(server)})


def slope(points: Sequence[tuple[float, float]]) -> float:
    """MiB an hour, by least squares, of (seconds, MiB) after the warm-up."""
    last = max((at for at, _ in points), default=0.0)
    late = [(at, mib) for at, mib in points if at >= WARM * last]
    return 3600 * linear_regression(*zip(*late, strict=True)).slope if len(late) > 1 else 0.0


def memory(rows: Sequence[Row]) -> dict[str, list[tuple[float, float]]]:
    """(seconds, MiB) by kind of process."""
    samples = select(rows, scenario="sample")
    kinds = dict.fromkeys(kind for row in samples for kind in row["mib"])
    return {kind: [(row["at"], row["mib"][kind]) for row in samples if kind in row["mib"]] for kind in kinds}


def tables(rows: Sequence[Row]) -> list[Table]:
    """The load, and what it left behind."""
    parts, samples = select(rows, scenario="part"), select(rows, scenario="sample")
    (end,) = select(rows, scenario="end")
    counts = {name: sum(row[name] for row in parts) for name in ("sent", "accepted", "answered", "lost", "wrong")}
    others = counts["answered"] - sum(row["statuses"].get("200", 0) for row in parts)
    load = [["C", number(rows[0]["capacity"])], ["requests", f"{counts['sent']:,}"], ["lost", str(counts["lost"])]]
    load += [["wrong", str(counts["wrong"])], ["other than 200", str(others)]]
    load += [["worst p99 of half a minute, ms", number(max(row["p99_ms"] for row in parts))]]
    most = max((row["descriptors"] for row in samples), default=0)
    after = [
        [
            "file descriptors before the load, at most, after it",
            "{0}, {most}, {1}".format(*end["descriptors"], most=most),
        ]
    ]
    after += [[name, f"{value:.0f}"] for name, value in end["left"].items()]
    after.append(["idle CPU, % of a core, all processes", number(end["idle_percent"])])
    cells = [
        [
            kind,
            number(points[0][1]),
            number(points[-1][1]),
            number(max(mib for _, mib in points)),
            number(slope(points)),
        ]
        for kind, points in memory(rows).items()
    ]
    return [
        Table(f"{end['seconds'] / 60:.1f} minutes at C/2", ("", "value"), load),
        Table("At the end", ("", "value"), after),
        Table("Resident memory", ("process", "MiB first", "last", "most", "MiB an hour, after a fifth"), cells),
    ]


def figure(rows: Sequence[Row]) -> Figure:
    """Memory since the first sample by kind of process, and p99 over the parts."""
    drawn, (left, right) = plots.panels(2)
    for (kind, points), colour in zip(memory(rows).items(), (*plots.COLOURS, plots.GREY), strict=False):
        left.plot([at / 60 for at, _ in points], [mib - points[0][1] for _, mib in points], label=kind, color=colour)
    left.set(xlabel="minutes", ylabel="MiB more than at first (RSS)")
    left.legend(frameon=False)
    parts = select(rows, scenario="part")
    right.plot(range(1, len(parts) + 1), [row["p50_ms"] for row in parts], "o-", color=plots.OURS, label="p50")
    right.plot(range(1, len(parts) + 1), [row["p99_ms"] for row in parts], "s-", color=plots.OTHER, label="p99")
    right.set(xlabel="half minute", ylabel="latency, ms", ylim=(0, None))
    right.legend(frameon=False)
    return drawn
