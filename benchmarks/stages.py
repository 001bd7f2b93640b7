"""Where a request's time goes: the service's own metrics, stage by stage, over 1, 16 and 64 connections."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from statistics import median
from time import monotonic, sleep

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import contenders, plots, servers
from benchmarks.errors import BenchmarkError
from benchmarks.plan import Plan, Row
from benchmarks.results import Table, distinct, number, select, spread, values
from benchmarks.servers import Server
from benchmarks.workloads import Workload, prepare
from service.metrics import STAGE_SECONDS, STAGES

CONNECTIONS = (1, 16, 64)
SETTLED_S = 30
QUIET_S = 0.5  # longer than a pass
REST = "HTTP and client"  # what the client waits for and no stage counts
NOTHING = dict.fromkeys(STAGES, 0.0)


def measure(plan: Plan) -> list[Row]:
    """A row for each workload, number of connections and round: milliseconds of each stage, and what the client saw."""
    rows: list[Row] = []
    with ExitStack() as stack:
        running = [
            (
                workload,
                stack.enter_context(
                    servers.paused(contenders.darkroom(plan.flags), workload.model, workload.body, device=plan.device)
                ),
            )
            for workload in prepare(plan.models, plan.workloads)
        ]
        for at in plan.numbers():
            for workload, server in running:
                with server.awake():
                    rows += [row | {"round": at} for row in staged(server, workload, plan)]
    return rows


def staged(server: Server, workload: Workload, plan: Plan) -> list[Row]:
    """A row for each number of connections."""
    rows: list[Row] = []
    for connections in CONNECTIONS:
        before = settled(server)
        found = server.load(workload.body, connections=connections, seconds=plan.seconds)
        stages = times(before, settled(server))
        rows.append({"workload": workload.name, "connections": connections, "per_s": found.requests_per_s})
        rows[-1] |= {"errors": found.errors, "mean_ms": found.mean_ms, "stages_ms": stages}
        plan.say(f"{workload.name} over {connections} connections: {found.mean_ms:.2f} ms a request")
    return rows


def settled(server: Server) -> Mapping[str, float]:
    """A scrape once nothing has been counted for a while: what a load leaves behind belongs to it, not to the next.

    Raises:
        BenchmarkError: it does not end.
    """
    deadline = monotonic() + SETTLED_S
    found = server.metrics()
    while monotonic() < deadline:
        sleep(QUIET_S)
        before, found = found, server.metrics()
        if times(before, found) == NOTHING:
            return found
    raise BenchmarkError(f"the service still works {SETTLED_S} s after the load")


def times(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Milliseconds an image spent in each stage, on average, between two scrapes."""
    found = {}
    for stage in STAGES:
        labels = f'{{stage="{stage}"}}'
        seconds, count = (
            after[name] - before.get(name, 0.0)
            for name in (f"{STAGE_SECONDS.name}_{end}{labels}" for end in ("sum", "count"))
        )
        found[stage] = 1000 * seconds / max(1.0, count)
    return found


def rest(row: Row) -> float:
    """Milliseconds that the client waited and no stage counts."""
    return max(0.0, float(row["mean_ms"] - sum(row["stages_ms"].values())))


def tables(rows: Sequence[Row]) -> list[Table]:
    """A table a workload: a row a number of connections, a column a stage."""
    made = []
    for workload in distinct(rows, "workload"):
        cells = []
        for count in distinct(rows, "connections"):
            here = select(rows, workload=workload, connections=count)
            stages = [spread([row["stages_ms"][stage] for row in here]) for stage in STAGES]
            told = [*stages, spread([rest(row) for row in here])]
            cells.append([str(count), *told, spread(values(here, "mean_ms")), spread(values(here, "per_s"))])
        columns = ("connections", *STAGES, REST, "all the client waits", "answers a second")
        made.append(Table(f"{workload}: mean ms of a request", columns, cells))
    return made


def figure(rows: Sequence[Row]) -> Figure:
    """A panel a workload, a stacked bar a number of connections."""
    names = distinct(rows, "workload")
    drawn, panels = plots.panels(len(names), height=3.0)
    for axes, workload in zip(panels, names, strict=True):
        stack(axes, select(rows, workload=workload))
        axes.set_title(workload)
    drawn.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    return drawn


def stack(axes: Axes, rows: Sequence[Row]) -> None:
    """Stacked bars of one workload's rows: medians, as shares, for the times themselves differ too much."""
    counts = distinct(rows, "connections")
    groups = [select(rows, connections=count) for count in counts]
    parts = {stage: [median(row["stages_ms"][stage] for row in group) for group in groups] for stage in STAGES}
    parts[REST] = [median(map(rest, group)) for group in groups]
    totals = [sum(lengths) for lengths in zip(*parts.values(), strict=True)]
    shares = {
        part: [100 * length / total for length, total in zip(lengths, totals, strict=True)]
        for part, lengths in parts.items()
    }
    names = [f"{count} connections\n{number(total)} ms" for count, total in zip(counts, totals, strict=True)]
    plots.stacks(axes, names, shares)
    axes.set(xlabel="share of a request's time (%)", xlim=(0, 100))
