"""An objective against hand-tuned batching: who answers more within it, at shares of the peak and beyond it.

The service with --objective-p99-ms, and by hand with every batch size and delay of a small grid, all there at once and
measured in turn with the same arrivals, by Poisson's law.
"""

from collections.abc import Sequence
from contextlib import ExitStack

from matplotlib.figure import Figure

from benchmarks import contenders, load, plots, servers
from benchmarks.batches import CONNECTIONS, SEED, TOO_MUCH, batch
from benchmarks.load import Image
from benchmarks.plan import Plan, Row
from benchmarks.results import Table, distinct, select, spread, values
from benchmarks.servers import Server
from benchmarks.workloads import Workload, expected, prepare

OBJECTIVE_MS = {"A": 25.0, "B": 250.0}
OTHERS_MS = OBJECTIVE_MS["B"]  # another architecture's, with the photo
SIZES, DELAYS_MS = (1, 4, 8, 32), (0, 2)
SHARES = (0.5, 0.8, 1.3)  # of the default's peak
AUTO, DEFAULT = "objective", "by hand: 32, 0 ms"  # the latter is what the service does without any flag
COLUMNS = {"in_time_per_s": "in time a second", "p99_ms": "p99 ms", "refused": "refused, %", "batch": "images a batch"}


def measure(plan: Plan) -> list[Row]:
    """A row for each workload's peak, and one a server, share and round."""
    rows: list[Row] = []
    for workload in prepare(plan.models, plan.workloads):
        objective = OBJECTIVE_MS.get(workload.name[0], OTHERS_MS)
        with ExitStack() as stack:
            running = {
                name: stack.enter_context(
                    servers.paused(contenders.darkroom([*plan.flags, *flags], name), workload.model, workload.body)
                )
                for name, flags in tunings(objective, quick=plan.quick).items()
            }
            peak = peak_of(running[DEFAULT], workload, plan.seconds)
            rows.append({"workload": workload.name, "objective_ms": objective, "peak_per_s": peak})
            for at in plan.numbers():
                for share in SHARES[-1:] if plan.quick else SHARES:
                    for name, server in running.items():
                        found = loaded(server, workload, share * peak, plan.seconds, SEED + at, objective)
                        rows.append({"workload": workload.name, "server": name, "share": share, "round": at} | found)
                        told = ", ".join(f"{what} {found[key]:.1f}" for key, what in COLUMNS.items())
                        plan.say(f"{workload.name} {share:.0%} {name}: {told}")
    return rows


def tunings(objective: float, *, quick: bool) -> dict[str, list[str]]:
    """Flags by name."""
    grid = [(32, 0)] if quick else [(size, delay) for size in SIZES for delay in DELAYS_MS]
    by_hand = {
        f"by hand: {size}, {delay} ms": ["--max-batch-size", str(size), "--max-delay-ms", str(delay)]
        for size, delay in grid
    }
    return {AUTO: ["--objective-p99-ms", str(objective)]} | by_hand


def peak_of(server: Server, workload: Workload, seconds: float) -> float:
    """Answers a second when more is offered than it takes."""
    with server.awake():
        closed = server.load(workload.body, connections=64, seconds=seconds).requests_per_s
        offered = load.run(server.url, [Image(workload.body)], rate=TOO_MUCH * closed, seconds=seconds, connections=64)
    return offered.report.answers_per_s


def loaded(server: Server, workload: Workload, rate: float, seconds: float, seed: int, objective: float) -> Row:
    """What a server does at a rate; in time is right and within the objective (milliseconds)."""
    images = [Image(workload.body, expected(workload.model, workload.body))]
    with server.awake():
        before = server.metrics()
        course = load.run(server.url, images, rate=rate, seconds=seconds, connections=CONNECTIONS, seed=seed)
        after = server.metrics()
    in_time = sum(outcome.right and outcome.latency <= objective / 1000 for outcome in course.outcomes)
    refused = sum(outcome.refused for outcome in course.outcomes)
    found = course.report
    return {
        "rate": rate,
        "in_time_per_s": in_time / seconds,
        "p50_ms": found.p50_ms,
        "p99_ms": found.p99_ms,
        "refused": 100 * refused / found.scheduled,
        "batch": batch(before, after),
        "errors": found.wrong + found.lost,
    }


def tables(rows: Sequence[Row]) -> list[Table]:
    """One a workload and share."""
    made = []
    for peak in (row for row in rows if "peak_per_s" in row):
        here = select(rows, workload=peak["workload"])
        for share in distinct(here, "share"):
            cells = [
                [name, *(spread(values(here, key, server=name, share=share)) for key in COLUMNS)]
                for name in distinct(here, "server")
            ]
            offered = f"{share * peak['peak_per_s']:,.0f} a second offered, {share:.0%} of the default's peak"
            title = f"{peak['workload']}: within {peak['objective_ms']:g} ms, {offered}"
            made.append(Table(title, ("batch size, delay", *COLUMNS.values()), cells))
    return made


def figure(rows: Sequence[Row]) -> Figure:
    """In time a second, and p99, over the offered load: the objective and everything by hand."""
    workloads = distinct(rows, "workload")
    drawn, panels = plots.panels(2 * len(workloads), across=2)
    for number, workload in enumerate(workloads):
        here = select(rows, workload=workload)
        for axes, key in zip(panels[2 * number :], ("in_time_per_s", "p99_ms"), strict=False):
            for name in reversed(distinct(here, "server")):
                label = name if name == AUTO else "the default" if name == DEFAULT else "others by hand"
                label = label if label not in axes.get_legend_handles_labels()[1] else f"_{name}"
                colour = plots.OURS if name == AUTO else plots.OTHER if name == DEFAULT else plots.GREY
                shares = distinct(here, "share")
                points = {100 * share: values(here, key, server=name, share=share) for share in shares}
                plots.line(axes, points, label, colour)
            axes.set(xlabel="offered load (% of the default's peak)", title=workload)
        panels[2 * number].set(ylabel="answers in time, a second", ylim=(0, None))
        panels[2 * number + 1].axhline(here[0]["objective_ms"], color="#333333", linestyle="--", linewidth=1)
        panels[2 * number + 1].set(ylabel="p99 of the accepted (ms)", yscale="log")
        panels[2 * number].legend(frameon=False)
    return drawn
