"""ResNet-50 with 500x375 JPEGs over HTTP, against the smaller of two bounds without HTTP: decoding and the network."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from benchmarks import bounds, contenders, plots, servers, stages
from benchmarks.contenders import DARKROOM
from benchmarks.plan import Plan, Row
from benchmarks.results import Table, distinct, number, select, spread, values
from benchmarks.workloads import prepare

CONNECTIONS = (64, 256)


def measure(plan: Plan) -> list[Row]:
    """In each round the service over few and many connections, and the bounds."""
    (workload,) = prepare(plan.models, plan.workloads)
    model, body = workload.model, workload.body
    where = {"dtype": plan.dtype, "device": plan.device}
    rows: list[Row] = []
    with (
        servers.paused(contenders.darkroom(plan.flags), model, body, **where) as server,
        bounds.bounding(model, body, **where) as bounder,
    ):
        for at in plan.numbers():
            about = {"workload": workload.name, "round": at}
            for count in CONNECTIONS[:1] if plan.quick else CONNECTIONS:
                with server.awake():
                    before = server.metrics()
                    found = server.load(body, connections=count, seconds=plan.seconds)
                    told = stages.times(before, server.metrics())
                rows.append(about | {"server": DARKROOM.name, "connections": count, "per_s": found.requests_per_s})
                rows[-1] |= {"p50_ms": found.p50_ms, "p99_ms": found.p99_ms, "errors": found.errors}
                rows[-1] |= {"mean_ms": found.mean_ms, "stages_ms": told}
                plan.say(f"{workload.name} over {count} connections: {found.requests_per_s:.0f}/s")
            for kind in (bounds.DECODE, bounds.FORWARD):
                rows.append(about | {"bound": kind, "per_s": bounder.measure(kind, plan.seconds).images_per_s})
                plan.say(f"{workload.name} {kind}: {rows[-1]['per_s']:.0f} images/s")
    return rows


def shares(rows: Sequence[Row], connections: int) -> list[float]:
    """Of each round, the service's answers a second as a share of the smaller bound."""
    found = []
    for at in distinct(rows, "round"):
        here = select(rows, round=at)
        least = min(row["per_s"] for row in here if "bound" in row)
        found += [row["per_s"] / least for row in select(here, connections=connections)]
    return found


def tables(rows: Sequence[Row]) -> list[Table]:
    """The service and the bounds, then the stages."""
    cells = []
    for count in distinct(rows, "connections"):
        here = select(rows, connections=count)
        told = [spread(values(here, name)) for name in ("per_s", "p50_ms", "p99_ms")]
        errors = str(sum(values(here, "errors")))
        cells.append([f"darkroom, {count} connections", *told, spread(shares(rows, count)), errors])
    for kind in distinct(rows, "bound"):
        cells.append([f"bound: {kind}", spread(values(rows, "per_s", bound=kind)), "-", "-", "-", "-"])
    columns = ("", "a second", "p50 ms", "p99 ms", "share of the smaller bound", "errors")
    ours = select(rows, server=DARKROOM.name)
    return [Table(f"{rows[0]['workload']}: the service and its bounds", columns, cells), *stages.tables(ours)]


def figure(rows: Sequence[Row]) -> Figure:
    """Bars of the service and its bounds, and the stages."""
    drawn, (left, right) = plots.panels(2)
    found = {
        f"{count} connections": values(rows, "per_s", connections=count) for count in distinct(rows, "connections")
    }
    found |= {f"bound: {kind}": values(rows, "per_s", bound=kind) for kind in distinct(rows, "bound")}
    plots.bars(left, found, [plots.GREY if "bound" in name else plots.OURS for name in found], number)
    left.set(xlabel="answers or images a second", title=rows[0]["workload"])
    stages.stack(right, select(rows, server=DARKROOM.name))
    right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, frameon=False)
    return drawn
