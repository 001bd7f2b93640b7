"""How throughput changes with the picture's size, with more workers and with more HTTP processes; SimpleCNN."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from benchmarks import contenders, plots, servers
from benchmarks.plan import Plan, Row
from benchmarks.results import Table, distinct, select, spread, values
from benchmarks.workloads import jpeg, prepare

SIZES = ((32, 32), (128, 128), (500, 375), (1024, 768), (2048, 1536), (4000, 3000))  # pixels
QUICK_SIZES = SIZES[:2]
SIZE_CONNECTIONS = 16  # of more, bodies of 12 megapixels would pass the service's limit on bytes in flight
CONNECTIONS = 64
MOST = 4  # workers or HTTP processes
PANELS = {"pixels": "pixels", "workers": "--workers", "http": "--http-processes"}


def measure(plan: Plan) -> list[Row]:
    """A row for each size and round, and for each number of workers and of HTTP processes and round."""
    (workload,) = prepare(plan.models, ["A"])
    pictures = {width * height: jpeg(width, height) for width, height in (QUICK_SIZES if plan.quick else SIZES)}
    more = [] if plan.quick else range(2, MOST + 1)
    layouts = [(1, 1), *((workers, 1) for workers in more), *((1, http) for http in more)]
    rows: list[Row] = []
    for at in plan.numbers():
        for workers, http in layouts:
            flags = [*["--workers", str(workers)] * (workers > 1), *["--http-processes", str(http)] * (http > 1)]
            contender = contenders.darkroom([*plan.flags, *flags])
            with servers.running(contender, workload.model, workload.body, device=plan.device) as server:
                server.load(workload.body, connections=CONNECTIONS, seconds=servers.WARM_S)
                found = server.load(workload.body, connections=CONNECTIONS, seconds=plan.seconds)
                layout = {"workers": workers} if http == 1 else {}
                layout |= {"http": http} if workers == 1 else {}
                rows.append({"round": at, "per_s": found.requests_per_s, "errors": found.errors} | layout)
                plan.say(f"{workers} workers, {http} HTTP processes: {found.requests_per_s:.0f}/s")
                for pixels, body in pictures.items() if workers == http == 1 else ():
                    found = server.load(body, connections=SIZE_CONNECTIONS, seconds=plan.seconds)
                    rows.append({"round": at, "pixels": pixels, "bytes": len(body)})
                    rows[-1] |= {"per_s": found.requests_per_s, "errors": found.errors}
                    plan.say(f"{pixels:,} pixels: {found.requests_per_s:.0f}/s")
    return rows


def tables(rows: Sequence[Row]) -> list[Table]:
    """One table a panel."""
    made = []
    for name, told in PANELS.items():
        here = [row for row in rows if name in row]
        cells = []
        for value in distinct(here, name):
            found = select(here, **{name: value})
            about = [f"{value:,}", *([f"{found[0]['bytes'] / 1000:,.1f}"] if name == "pixels" else [])]
            cells.append([*about, spread(values(found, "per_s")), str(sum(values(found, "errors")))])
        count = SIZE_CONNECTIONS if name == "pixels" else CONNECTIONS
        columns = (told, *(["kB"] if name == "pixels" else []), "answers a second", "errors")
        made.append(Table(f"By {told}, {count} connections", columns, cells))
    return made


def figure(rows: Sequence[Row]) -> Figure:
    """A panel for each of the three."""
    drawn, panels = plots.panels(len(PANELS), width=4.2)
    for axes, (name, told) in zip(panels, PANELS.items(), strict=True):
        here = [row for row in rows if name in row]
        found = {value: values(here, "per_s", **{name: value}) for value in distinct(here, name)}
        plots.line(axes, found, told, plots.OURS)
        axes.set(xlabel=told, ylabel="answers a second")
        if name == "pixels":
            axes.set(xscale="log", yscale="log", xlabel="size of the JPEG (pixels)")
        else:
            axes.set_ylim(0, None)
            axes.set_xticks(sorted(found))
    return drawn
