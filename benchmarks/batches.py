"""Batches and latency against offered load: an open loop at shares of the service's peak, which it sets itself.

The peak is what the same tool is answered when it offers more than the service takes, so the tool's own work on the
same cores is in both. How steady the machine is by itself is measured first, to compare with.
"""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from benchmarks import bounds, contenders, load, plots, servers
from benchmarks.load import Image
from benchmarks.plan import Plan, Row
from benchmarks.results import Table, distinct, number, select, spread, values
from benchmarks.workloads import expected, prepare
from service.metrics import BATCH_SIZE

SHARES = tuple(tenth / 10 for tenth in range(1, 11))
QUICK_SHARES = (0.5, 0.8)
CONNECTIONS = 256  # enough that what is due nearly always finds a free one
TOO_MUCH = 1.5  # times what a closed loop is answered
SEED = 1  # of arrivals by Poisson's law
STEADY = 0.8  # the share of the peak at which p99 is held against p50


def measure(plan: Plan) -> list[Row]:
    """A row for the peak, and one for each share and round."""
    (workload,) = prepare(plan.models, plan.workloads)
    images = [Image(workload.body, expected(workload.model, workload.body))]
    rows: list[Row] = []
    with bounds.bounding(workload.model, workload.body, device=plan.device) as bounder:
        alone = bounder.alone(bounds.BOTH, plan.seconds)
    with servers.running(contenders.darkroom(plan.flags), workload.model, workload.body, device=plan.device) as server:
        server.load(workload.body, connections=64, seconds=servers.WARM_S)
        closed = server.load(workload.body, connections=64, seconds=plan.seconds).requests_per_s
        offered = load.run(server.url, images, rate=TOO_MUCH * closed, seconds=plan.seconds, connections=64).report
        peak = offered.answers_per_s
        rows.append({"workload": workload.name, "peak_per_s": peak, "closed_per_s": closed})
        rows[-1] |= {"alone_p50_ms": 1000 * alone.p50_s, "alone_p99_ms": 1000 * alone.p99_s}
        plan.say(f"{workload.name}: peak {peak:.0f}/s in the open loop, {closed:.0f}/s in the closed one")
        for at in plan.numbers():
            for share in QUICK_SHARES if plan.quick else SHARES:
                before = server.metrics()
                found = load.run(
                    server.url,
                    images,
                    rate=share * peak,
                    seconds=plan.seconds,
                    connections=CONNECTIONS,
                    seed=SEED + at if plan.arrivals == "poisson" else None,
                ).report
                rows.append({"workload": workload.name, "share": share, "round": at, "rate": share * peak})
                rows[-1] |= {"batch": batch(before, server.metrics()), "lost": found.lost, "wrong": found.wrong}
                rows[-1] |= {"clean": found.clean, "late_ms": found.late_ms, "answers_per_s": found.answers_per_s}
                rows[-1] |= {"p50_ms": found.p50_ms, "p99_ms": found.p99_ms}
                plan.say(f"{share:.0%} of the peak: p50 {found.p50_ms:.2f} ms, p99 {found.p99_ms:.2f} ms")
    return rows


def batch(before: Mapping[str, float], after: Mapping[str, float]) -> float:
    """Images in a batch, on average, between two scrapes."""
    images, batches = (
        after[name] - before.get(name, 0.0) for name in (f"{BATCH_SIZE.name}_sum", f"{BATCH_SIZE.name}_count")
    )
    return images / max(1.0, batches)


def tables(rows: Sequence[Row]) -> list[Table]:
    """A row a share of the peak; and how steady the machine is with nothing else on it."""
    peak, cells = rows[0], []
    for share in distinct(rows, "share"):
        here = select(rows, share=share)
        p50, p99 = values(here, "p50_ms"), values(here, "p99_ms")
        ratio = [high / low for low, high in zip(p50, p99, strict=True) if low]
        figures = map(spread, (values(here, "batch"), p50, p99, ratio, values(here, "late_ms")))
        unclean = sum(not row["clean"] for row in here)
        cells.append([f"{share:.0%}", number(here[0]["rate"]), *figures, f"{unclean} of {len(here)}"])
    columns = ("share of the peak", "offered a second", "images a batch", "p50 ms", "p99 ms", "p99 / p50")
    more = ("sent late, ms (p99)", "rounds with a lost or wrong answer")
    told = f"peak {number(peak['peak_per_s'])} answers a second"
    alone = [f"{peak[f'alone_{name}_ms']:.2f}" for name in ("p50", "p99")]
    alone.append(f"{peak['alone_p99_ms'] / peak['alone_p50_ms']:.2f}")
    return [
        Table(f"{peak['workload']}: batches and latency by offered load, {told}", (*columns, *more), cells),
        Table(
            "The machine alone: 8 images decoded and predicted after another, weighted by time",
            columns[-3:],
            [alone],
            0,
        ),
    ]


def figure(rows: Sequence[Row]) -> Figure:
    """Images a batch, and latency, over the share of the peak."""
    drawn, (left, right) = plots.panels(2)
    shares = distinct(rows, "share")

    def by_share(name: str) -> dict[float, list[float]]:
        return {100 * share: values(rows, name, share=share) for share in shares}

    plots.line(left, by_share("batch"), "images a batch", plots.OURS)
    left.set(ylabel="images a batch (mean)", ylim=(0, None))
    plots.line(right, by_share("p50_ms"), "p50", plots.OURS)
    plots.line(right, by_share("p99_ms"), "p99", plots.OTHER, "s")
    right.set(ylabel="latency from the scheduled time (ms)", yscale="log")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.set_xlabel(f"offered load (% of the peak, {number(rows[0]['peak_per_s'])} a second)")
    return drawn
